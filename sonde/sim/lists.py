"""Lists without allocation: the queue and the batch of a replica by priority, and the heap of ends."""

from __future__ import annotations

from sonde.sim.jit import part
from sonde.sim.state import World

FIRST, LAST, NEWEST = range(3)  # columns of World.queues


@part
def enqueue(w: World, r: int, i: int, front: bool) -> None:
    """Put request `i` at the back (or the front) of its priority's queue at replica `r`."""
    q, work, replica = w.queues[r], w.work, w.replicas[r]
    c = work[i].priority
    if q[c, FIRST] < 0:
        q[c, FIRST] = i
        q[c, LAST] = i
        work[i].next = -1
    elif front:
        work[i].next = q[c, FIRST]
        q[c, FIRST] = i
    else:
        work[q[c, LAST]].next = i
        q[c, LAST] = i
        work[i].next = -1
    replica.waiting += 1
    replica.urgent = min(replica.urgent, c)


@part
def dequeue(w: World, r: int) -> None:
    """Take the first request of the most urgent queue that has one off that queue."""
    q, replica = w.queues[r], w.replicas[r]
    c = replica.urgent
    q[c, FIRST] = w.work[q[c, FIRST]].next
    replica.waiting -= 1
    while c < len(q) and q[c, FIRST] < 0:
        c += 1
    replica.urgent = c


@part
def admit(w: World, r: int, i: int) -> None:
    """Put request `i` at the end of the list of what replica `r` has admitted, by priority."""
    q, work = w.queues[r], w.work
    c = work[i].priority
    newest = q[c, NEWEST]
    work[i].prev = newest
    work[i].next = -1
    if newest >= 0:
        work[newest].next = i
    q[c, NEWEST] = i
    w.replicas[r].admitted += 1


@part
def release(w: World, r: int, i: int) -> None:
    """Take request `i` off the list of what replica `r` has admitted."""
    q, work = w.queues[r], w.work
    before, after = work[i].prev, work[i].next
    if before >= 0:
        work[before].next = after
    if after >= 0:
        work[after].prev = before
    else:
        q[work[i].priority, NEWEST] = before
    w.replicas[r].admitted -= 1


@part
def push_end(w: World, r: int, key: int, i: int) -> None:
    """Add (key, request) to the heap of replica `r`; equal keys leave in the order of request numbers."""
    heap = w.ends[r]
    at = w.replicas[r].heap
    w.replicas[r].heap += 1
    while at > 0:
        up = (at - 1) >> 1
        if heap[up, 0] < key or (heap[up, 0] == key and heap[up, 1] < i):
            break
        heap[at, 0] = heap[up, 0]
        heap[at, 1] = heap[up, 1]
        at = up
    heap[at, 0] = key
    heap[at, 1] = i


@part
def pop_end(w: World, r: int, at: int) -> None:
    """Remove the entry at position `at` (0: the first to end) from the heap of replica `r`."""
    heap = w.ends[r]
    w.replicas[r].heap -= 1
    n = w.replicas[r].heap
    key, i = heap[n, 0], heap[n, 1]
    if at == n:
        return
    while at > 0:  # an entry taken out of the middle may have to rise
        up = (at - 1) >> 1
        if heap[up, 0] < key or (heap[up, 0] == key and heap[up, 1] < i):
            break
        heap[at, 0] = heap[up, 0]
        heap[at, 1] = heap[up, 1]
        at = up
    while True:
        low = 2 * at + 1
        if low >= n:
            break
        other = low + 1
        if other < n and (
            heap[other, 0] < heap[low, 0] or (heap[other, 0] == heap[low, 0] and heap[other, 1] < heap[low, 1])
        ):
            low = other
        if key < heap[low, 0] or (key == heap[low, 0] and i < heap[low, 1]):
            break
        heap[at, 0] = heap[low, 0]
        heap[at, 1] = heap[low, 1]
        at = low
    heap[at, 0] = key
    heap[at, 1] = i


@part
def find_end(w: World, r: int, i: int) -> int:
    """Return the position of request `i` in the heap of replica `r`."""
    heap = w.ends[r]
    for at in range(w.replicas[r].heap):
        if heap[at, 1] == i:
            return at
    return -1

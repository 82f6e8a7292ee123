"""Lists without allocation: the queue and the batch of a replica by priority, and the heap of ends."""

from __future__ import annotations

from typing import Any

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
def before(heap: Any, at: int, key: int, i: int) -> bool:
    """Return whether the entry at `at` leaves the heap before (key, request `i`)."""
    return heap[at, 0] < key or (heap[at, 0] == key and heap[at, 1] < i)


@part
def move(heap: Any, source: int, target: int) -> None:
    """Copy the entry at `source` to `target`."""
    heap[target, 0] = heap[source, 0]
    heap[target, 1] = heap[source, 1]


@part
def rise(heap: Any, at: int, key: int, i: int) -> int:
    """Make room for (key, request `i`) at `at` or above it, and return where."""
    while at > 0 and not before(heap, (at - 1) >> 1, key, i):
        move(heap, (at - 1) >> 1, at)
        at = (at - 1) >> 1
    return at


@part
def sink(heap: Any, n: int, at: int, key: int, i: int) -> int:
    """Make room for (key, request `i`) at `at` or below it among `n` entries, and return where."""
    while 2 * at + 1 < n:
        low = 2 * at + 1
        if low + 1 < n and before(heap, low + 1, heap[low, 0], heap[low, 1]):
            low += 1
        if not before(heap, low, key, i):
            break
        move(heap, low, at)
        at = low
    return at


@part
def push_end(w: World, r: int, key: int, i: int) -> None:
    """Add (key, request) to the heap of replica `r`; equal keys leave in the order of request numbers."""
    heap = w.ends[r]
    at = rise(heap, w.replicas[r].heap, key, i)
    heap[at, 0] = key
    heap[at, 1] = i
    w.replicas[r].heap += 1


@part
def pop_end(w: World, r: int, at: int) -> None:
    """Remove the entry at position `at` (0: the first to end) from the heap of replica `r`."""
    heap = w.ends[r]
    w.replicas[r].heap -= 1
    n = w.replicas[r].heap
    if at == n:
        return
    key, i = heap[n, 0], heap[n, 1]
    at = sink(heap, n, rise(heap, at, key, i), key, i)  # an entry out of the middle may have to rise
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

"""Links: transfers share the bandwidth equally, as many at once as there are streams; the others wait their turn.

A transfer of b bytes that begins when the link has given `served` bytes to each of those on it is done when it has
given served + b: nothing has to be counted again as others come and go. Then it is `latency` on its way.
"""

from __future__ import annotations

import numpy as np

from sonde.sim.jit import i64, part
from sonde.sim.lists import rise, sink
from sonde.sim.state import Record, World

#: rows of `Network.ways`: caches handed over, live migration, and from here on the tiers of prefix blocks
HAND_OVER, MIGRATE, TIERS = range(3)


@part
def way(w: World, row: int, source: int, target: int) -> int:
    """Return the link for a transfer between two replicas."""
    first, scope = w.net.ways[row, 0], w.net.ways[row, 1]
    if scope == 0:
        return first
    return first + (source if scope == 1 else target)


@part
def settle(link: Record, now: float) -> None:
    """Give every transfer on the link its share of the bandwidth up to `now`."""
    if link.active > 0:
        link.served += (now - link.at) * link.rate / link.active
        link.busy += now - link.at
    link.at = now


@part
def schedule(w: World, l: int) -> None:  # noqa: E741
    """Set when the next transfer is done, and when the next event of link `l` is."""
    link = w.net.links[l]
    link.done = np.inf
    if link.active > 0:
        link.done = link.at + max(w.net.carried[l, 0, 0] - link.served, 0.0) * link.active / link.rate
    w.net.next[l] = link.done
    if link.land >= 0:
        w.net.next[l] = min(link.done, w.net.flow[link.land].lands)


@part
def board(w: World, l: int, i: int) -> None:  # noqa: E741
    """Let the transfer of request `i` have its share of link `l` from now on."""
    link, heap = w.net.links[l], w.net.carried[l]
    key = link.served + w.net.flow[i].bytes
    at = rise(heap, link.active, key, i)
    heap[at, 0] = key
    heap[at, 1] = i
    link.active += 1


@part
def carry(w: World, l: int, i: int, now: float) -> None:  # noqa: E741
    """Begin the transfer of `flow[i].bytes` for request `i` on link `l`."""
    link, flow = w.net.links[l], w.net.flow
    settle(link, now)
    link.transfers += 1
    link.bytes += flow[i].bytes
    if link.active < link.streams:
        board(w, l, i)
    else:
        flow[i].next = -1
        if link.wait < 0:
            link.wait = i
        else:
            flow[link.wait_last].next = i
        link.wait_last = i
    schedule(w, l)


@part
def unload(w: World, l: int) -> None:  # noqa: E741
    """Take the transfer that is done off link `l`, and let the next one that waits begin."""
    link, flow, heap = w.net.links[l], w.net.flow, w.net.carried[l]
    now = link.done
    link.busy += now - link.at
    link.served, link.at = heap[0, 0], now
    i = i64(heap[0, 1])
    link.active -= 1
    n = link.active
    key, last = heap[n, 0], i64(heap[n, 1])
    at = sink(heap, n, i64(0), key, last)
    heap[at, 0] = key
    heap[at, 1] = last
    if link.active == 0:
        link.served = 0.0
    if link.wait >= 0:
        waiting = link.wait
        link.wait = i64(flow[waiting].next)
        board(w, l, waiting)
    flow[i].lands = now + link.latency
    flow[i].next = -1
    if link.land < 0:
        link.land = i
    else:
        flow[link.land_last].next = i
    link.land_last = i


@part
def deliver(w: World, l: int) -> int:  # noqa: E741
    """Go on with link `l` by one event; return the request whose transfer has landed, or -1 where none has."""
    link, now = w.net.links[l], w.net.next[l]
    i = i64(-1)
    if link.land >= 0 and w.net.flow[link.land].lands <= now:
        i = i64(link.land)
        link.land = i64(w.net.flow[i].next)
    else:
        unload(w, l)
    schedule(w, l)
    return i


@part
def soonest(w: World) -> int:
    """Return the link whose next event is first (0 where there is none)."""
    best = 0
    for l in range(1, len(w.net.next)):  # noqa: E741
        if w.net.next[l] < w.net.next[best]:
            best = l
    return best

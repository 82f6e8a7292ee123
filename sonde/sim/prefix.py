"""Prefix caches: blocks of prompts that need not be computed again, in tiers.

A replica sees one store in each tier: its own, or one that all share. What a prompt finds, it finds when it is sent:
blocks of the first tier are there at once, those of others are fetched over the tier's link before the prompt waits for
its turn. When a prompt has been computed, all its blocks are put in every store that its replica sees.
"""

from __future__ import annotations

from typing import Any

from sonde.policies.caching import BlockView
from sonde.sim.jit import i64, part
from sonde.sim.links import TIERS, carry, way
from sonde.sim.memory import kv_bytes
from sonde.sim.state import FETCH, LINEAR, NOTHING, World


@part
def settle_at(w: World, s: int, at: int, key: float, block: int) -> None:
    """Put (key, block) at `at` of the heap of store `s`, or where it belongs below or above it."""
    place, store = w.net.place, w.net.stores[s]
    heap = w.net.kept[store.start : store.start + store.capacity]
    while at > 0:
        up = (at - 1) >> 1
        if heap[up, 0] < key or (heap[up, 0] == key and heap[up, 1] < block):
            break
        heap[at, 0], heap[at, 1] = heap[up, 0], heap[up, 1]
        place[i64(heap[at, 1]), s] = at
        at = up
    while 2 * at + 1 < store.held:
        low = 2 * at + 1
        if low + 1 < store.held and (
            heap[low + 1, 0] < heap[low, 0] or (heap[low + 1, 0] == heap[low, 0] and heap[low + 1, 1] < heap[low, 1])
        ):
            low += 1
        if key < heap[low, 0] or (key == heap[low, 0] and block < heap[low, 1]):
            break
        heap[at, 0], heap[at, 1] = heap[low, 0], heap[low, 1]
        place[i64(heap[at, 1]), s] = at
        at = low
    heap[at, 0] = key
    heap[at, 1] = block
    place[block, s] = at


@part
def rank(w: World, r: int, s: int, block: int, depth: int, evict: Any) -> float:
    """Return the rank of a block in store `s`, seen from replica `r`."""
    run, e = w.run[0], w.replicas[r].engine
    engine = w.engines[e]
    tokens = min(run.block_tokens, engine.last)
    seconds = w.curves[e, LINEAR, tokens] + engine.prefill * (run.block_tokens * (depth + run.block_tokens / 2))
    uses = i64(w.net.place[block, len(w.net.stores)])
    return evict(BlockView(i64(run.touches), depth, uses, w.net.stores[s].floor, seconds))


@part
def put_ranked(w: World, s: int, block: int, key: float) -> None:
    """Put a block in store `s` at that rank, in place of the lowest where there is no room."""
    place, store = w.net.place, w.net.stores[s]
    at = i64(place[block, s])
    if at < 0:
        if store.held == store.capacity:
            heap = w.net.kept[store.start : store.start + store.capacity]
            store.floor = max(store.floor, heap[0, 0])
            store.evicted += 1
            place[i64(heap[0, 1]), s] = -1
            store.held -= 1
            if store.held > 0:
                settle_at(w, s, i64(0), heap[store.held, 0], i64(heap[store.held, 1]))
        at = i64(store.held)
        store.held += 1
    settle_at(w, s, at, key, block)


@part
def put_newest(w: World, s: int, block: int) -> None:
    """Put a block in store `s` as the one used last, in place of that used longest ago where there is no room."""
    place, store = w.net.place, w.net.stores[s]
    start = store.start
    at = i64(place[block, s])
    if at < 0 and store.held < store.capacity:
        at = i64(store.held)
        store.held += 1
    else:
        if at < 0:
            at = i64(store.oldest)
            place[i64(w.net.kept[start + at, 1]), s] = -1
            store.evicted += 1
        before, after = i64(w.net.order[start + at, 0]), i64(w.net.order[start + at, 1])
        if before < 0:
            store.oldest = after
        else:
            w.net.order[start + before, 1] = after
        if after < 0:
            store.newest = before
        else:
            w.net.order[start + after, 0] = before
    w.net.order[start + at, 0] = store.newest
    w.net.order[start + at, 1] = -1
    if store.newest < 0:
        store.oldest = at
    else:
        w.net.order[start + store.newest, 1] = at
    store.newest = at
    w.net.kept[start + at, 1] = block
    place[block, s] = at


@part
def keep(w: World, r: int, i: int, evict: Any) -> None:
    """Put the blocks of the prompt of request `i` in the stores that replica `r` sees, the last block first."""
    net, run = w.net, w.run[0]
    first, end = net.starts[i], net.starts[i + 1]
    for j in range(first, end):
        net.place[net.blocks[j], len(net.stores)] += 1
    for t in range(run.tiers):
        s = net.homes[t, r]
        if net.stores[s].capacity == 0:
            continue
        for j in range(end - 1, first - 1, -1):
            block = i64(net.blocks[j])
            run.touches += 1
            if run.ranked:
                put_ranked(w, s, block, rank(w, r, s, block, i64((j - first) * run.block_tokens), evict))
            else:
                put_newest(w, s, block)


@part
def found(w: World, r: int, i: int, tiers: int) -> int:
    """Return how many blocks at the head of the prompt of request `i` are in the first `tiers` tiers of replica `r`."""
    net = w.net
    first, end = net.starts[i], net.starts[i + 1]
    for j in range(first, end):
        there = False
        for t in range(tiers):
            if net.place[net.blocks[j], net.homes[t, r]] >= 0:
                there = True
        if not there:
            return j - first
    return end - first


@part
def look_up(w: World, r: int, i: int) -> int:
    """Write down what of a prompt replica `r` need not compute; return the tier to fetch from first, or 0."""
    net, run, flow = w.net, w.run[0], w.net.flow[i]
    first = net.starts[i]
    for t in range(run.tiers):
        flow.blocks[t] = 0
    n = found(w, r, i, i64(run.tiers))
    for j in range(first, first + n):
        t = 0
        while net.place[net.blocks[j], net.homes[t, r]] < 0:
            t += 1
        flow.blocks[t] += 1
    flow.hit = min(n * run.block_tokens, w.prompt[i] - 1)
    return next_tier(w, i, i64(0))


@part
def next_tier(w: World, i: int, tier: int) -> int:
    """Return the first tier after `tier` that request `i` has blocks to fetch from, or 0."""
    for t in range(tier + 1, w.run[0].tiers):
        if w.net.flow[i].blocks[t] > 0:
            return i64(t)
    return i64(0)


@part
def fetch(w: World, r: int, i: int, tier: int, now: float) -> None:
    """Begin to fetch the blocks that request `i` found in `tier`."""
    flow = w.net.flow[i]
    flow.kind, flow.stage, flow.source, flow.target = FETCH, tier, r, r
    engine = w.engines[w.replicas[r].engine]
    flow.bytes = float(flow.blocks[tier] * kv_bytes(engine, i64(w.run[0].block_tokens)))
    carry(w, way(w, TIERS + tier, r, r), i, now)


@part
def fetched(w: World, i: int, now: float) -> bool:
    """Go on to the next tier that request `i` fetches from; return whether everything is there."""
    flow = w.net.flow[i]
    tier = next_tier(w, i, i64(flow.stage))
    if tier > 0:
        fetch(w, i64(flow.target), i, tier, now)
        return False
    flow.kind, flow.stage = NOTHING, 0
    return True

"""Live migration: a running sequence is copied while it goes on decoding, and stops for the last few tokens only.

Every stage copies what there is of its cache that has not been copied. Once little enough is left, or after the
last stage that there may be, the sequence leaves its batch at the end of the step and the rest is sent. It is given
up where the other replica has no memory for it, and where it ends or is preempted meanwhile.
"""

from __future__ import annotations

from typing import Any

from sonde.policies.migration import NONE, Thresholds
from sonde.sim.batch import cached, drop, take_out, turn_away
from sonde.sim.jit import i64, part, rare, where_connected
from sonde.sim.links import MIGRATE, carry, way
from sonde.sim.lists import NEWEST, release
from sonde.sim.memory import kv_bytes
from sonde.sim.runs import cut, decoded, take
from sonde.sim.state import BAD_MIGRATION, COPY, DROPPED, HANDOVER, MOVE, NOTHING, World


@part
def shortest(w: World, r: int) -> int:
    """Return the decoding request of replica `r`, of the least urgent, with the shortest cache, or -1."""
    q, replica = w.queues[r], w.replicas[r]
    best, size = i64(-1), i64(0)
    c = len(q) - 1
    while c >= 0 and best < 0:
        i = q[c, NEWEST]
        while i >= 0:
            work = w.work[i]
            free = w.net.flow[i].kind == NOTHING and w.net.flow[i].lent == 0
            if free and i != replica.part and work.made > 0 and work.done == work.target:
                tokens = cached(w, r, i)
                if best < 0 or tokens < size or (tokens == size and i < best):
                    best, size = i64(i), tokens
            i = i64(work.prev)
        c -= 1
    return best


@rare
def begin(w: World, source: int, target: int, now: float) -> None:
    """Begin to migrate a sequence between two replicas, if there is one and the target has memory for it."""
    there, engine = w.replicas[target], w.engines[w.replicas[target].engine]
    i = shortest(w, source)
    if i < 0 or there.admitted + there.pulling >= engine.max_batch:
        return
    tokens = cached(w, source, i) + decoded(w, source, now)
    if kv_bytes(engine, w.prompt[i] + w.output[i] - 1) > engine.capacity:
        return
    if not take(w, target, kv_bytes(engine, tokens), now):
        return
    flow = w.net.flow[i]
    flow.kind, flow.source, flow.target, flow.stage, flow.tokens = COPY, source, target, 1, tokens
    flow.bytes = kv_bytes(w.engines[w.replicas[source].engine], tokens)
    w.replicas[source].mover = i
    there.pulling += 1
    there.guests += 1
    carry(w, way(w, i64(MIGRATE), source, target), i, now)


@rare
def copied(w: World, i: int, now: float) -> None:
    """Go on with the migration of request `i`, of which another stage has been copied."""
    flow, run = w.net.flow[i], w.run[0]
    source, target = i64(flow.source), i64(flow.target)
    if flow.kind == DROPPED:
        turn_away(w, flow, now)
        return
    tokens = cached(w, source, i) + decoded(w, source, now)
    if tokens - flow.tokens <= run.tail_tokens or flow.stage >= run.copies:
        flow.kind = MOVE
        if w.replicas[source].n > 1:
            cut(w, source, now)
        return
    here, there = w.engines[w.replicas[source].engine], w.engines[w.replicas[target].engine]
    if not take(w, target, kv_bytes(there, tokens) - kv_bytes(there, i64(flow.tokens)), now):
        flow.kind = MOVE  # nothing is under way
        drop(w, source, now)
        return
    flow.bytes = kv_bytes(here, tokens) - kv_bytes(here, i64(flow.tokens))
    flow.tokens = tokens
    flow.stage += 1
    carry(w, way(w, i64(MIGRATE), source, target), i, now)


@where_connected
def depart(w: World, r: int, now: float) -> None:
    """Let the sequence that is about to leave replica `r` leave it, at the end of a step, and send the rest of it."""
    i = w.replicas[r].mover
    flow = w.net.flow[i]
    if flow.kind != MOVE:
        return
    target = i64(flow.target)
    here, there = w.engines[w.replicas[r].engine], w.engines[w.replicas[target].engine]
    tokens = cached(w, r, i)
    if not take(w, target, kv_bytes(there, tokens) - kv_bytes(there, i64(flow.tokens)), now):
        drop(w, r, now)
        return
    take_out(w, r, i, now)
    release(w, r, i)
    w.replicas[r].mover = -1
    w.replicas[target].coming += 1
    w.replicas[target].coming_tokens += tokens
    w.seen.queued[target] += 1
    flow.bytes = kv_bytes(here, tokens) - kv_bytes(here, i64(flow.tokens))
    flow.tokens, flow.kind = tokens, HANDOVER
    flow.moves += 1
    flow.left, flow.away = now, 1
    w.work[i].replica, w.work[i].target = target, tokens
    carry(w, way(w, i64(MIGRATE), r, target), i, now)


@part
def tick(w: World, first: int, now: float, migrate: Any) -> None:
    """Ask the policy which of the replicas from `first` on should send a sequence to which, until it names none."""
    run, seen = w.run[0], w.seen
    for r in range(first, len(w.replicas)):
        seen.moving[r] = (w.replicas[r].mover >= 0) + w.replicas[r].guests
    thresholds = Thresholds(run.low, run.high, run.headroom, i64(first))
    for _ in range(first, len(w.replicas)):
        source, target = migrate(seen, thresholds)
        if source == NONE:
            break
        if source < first or target < first or max(source, target) >= len(w.replicas) or source == target:
            run.abort = BAD_MIGRATION
            return
        if w.replicas[source].mover < 0:
            begin(w, source, target, now)
        seen.moving[source] += 1
        seen.moving[target] += 1
    run.tick += run.interval

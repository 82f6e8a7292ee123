"""The clock where replicas depend on each other: hand-over, links, prefix caches and live migration.

Ties, at one moment: steps that end (by replica), links (by link), the control tick, arrivals in order, and
idle replicas that have been woken.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sonde.sim.advance import advance, publish
from sonde.sim.clock import choose, earliest, observe, queue, refuse, roomiest, shown
from sonde.sim.handover import arrive, offer
from sonde.sim.jit import i64, kernel, part
from sonde.sim.lend import look_again
from sonde.sim.links import deliver, soonest
from sonde.sim.migrate import copied, tick
from sonde.sim.prefix import fetch, fetched, found, keep, look_up
from sonde.sim.state import COPY, DROPPED, FETCH, World

STEP, LINK, TICK, ARRIVAL, WAKE, END = range(6)


@part
def next_event(w: World, arrival: float) -> int:
    """Return what comes first: a step's end, a link, a tick, an arrival, or an idle replica that was woken."""
    r, l = earliest(w), soonest(w)  # noqa: E741
    woken = w.replicas[r].wake
    now = min(w.next[r], w.net.next[l], arrival)
    if now == np.inf:
        return END
    if w.next[r] == now and not woken and w.run[0].tick >= now:
        return STEP
    if w.run[0].tick < now:
        return TICK
    if w.net.next[l] == now:
        return LINK
    if w.run[0].tick == now:
        return TICK
    if arrival == now:
        return ARRIVAL
    return WAKE


@part
def dispatch(w: World, i: int, now: float, route: Any) -> None:
    """Route request `i` at `now`, look for what of its prompt is cached, and let it wait or fetch that first."""
    run, work = w.run[0], w.work[i]
    work.arrival = now
    if run.sees_tokens:
        observe(w, now)
    if run.sees_cache:
        for r in range(run.first_stage):
            w.seen.cached_tokens[r] = min(found(w, r, i, i64(run.tiers)) * run.block_tokens, w.prompt[i] - 1)
    r = choose(w, shown(w.seen, i64(0), i64(run.first_stage)), i, now, i64(0), route)
    goes_on = r >= 0 and run.first_stage < len(w.replicas) and w.output[i] > 1
    if goes_on and roomiest(w, i, i64(run.first_stage), i64(len(w.replicas))) < 0:
        r = i64(-1)
    if r == -1:
        refuse(w, i)
    if r < 0:
        return
    work.replica = r
    work.target = w.prompt[i]
    if run.tiers > 0:
        tier = look_up(w, r, i)
        work.done = w.net.flow[i].hit
        if tier > 0:
            w.replicas[r].coming += 1
            fetch(w, r, i, tier, now)
            publish(w, r)
            return
    queue(w, r, i, now)


@part
def hand_over(w: World, now: float, second: Any) -> None:
    """Route what has ended its prompt and decodes elsewhere."""
    run = w.run[0]
    for k in range(run.leaving):
        i = i64(w.net.leaving[k])
        if run.sees_tokens:
            observe(w, now)
        first = i64(run.first_stage)
        r = choose(w, shown(w.seen, first, i64(len(w.replicas))), i, now, first, second)
        if r < 0:
            return
        offer(w, i, r, now)
        publish(w, r)
    run.leaving = 0


@part
def land(w: World, i: int, now: float) -> None:
    """Go on with request `i`, whose transfer has landed."""
    flow = w.net.flow[i]
    if flow.kind == FETCH:
        if fetched(w, i, now):
            r = i64(flow.target)
            w.replicas[r].coming -= 1
            queue(w, r, i, now)
    elif flow.kind == COPY or flow.kind == DROPPED:
        copied(w, i, now)
    else:
        arrive(w, i, now)


@kernel
def run_paths(w: World, arrival: np.ndarray, clients: int, decide: Any, policies: tuple[Any, ...]) -> None:
    """Run until all requests are done: sent at `arrival`, or by `clients` one after the other.

    `decide` holds the policies of routing (first and second stage), eviction and migration.
    """
    run = w.run[0]
    route, second, evict, migrate = decide
    run.closed = clients > 0
    run.back = clients
    run.forming = -1
    w.pending[:] = 0.0
    i, n = 0, len(w.work)
    while not run.abort:
        sent = np.inf
        if i < n and clients == 0:
            sent = arrival[i]
        elif i < n and run.front < run.back:
            sent = w.pending[run.front % len(w.pending)]
        event = next_event(w, sent)
        if event in (STEP, WAKE):
            r = earliest(w)
            now = w.next[r]
            computed = i64(0) if w.replicas[r].wake else i64(w.replicas[r].joiners)
            if run.tiers > 0 and r < run.first_stage:
                for k in range(computed):
                    keep(w, r, i64(w.joining[r, k]), evict)
            run.now, run.sending = now, 0.0
            run.forming = i64(-1) if w.replicas[r].wake else i64(r)
            waited = w.replicas[r].waiting > 0
            advance(w, r, policies)
            if run.leaving > 0:
                hand_over(w, now, second)
            if run.lends and (run.freed or (waited and w.replicas[r].waiting == 0)):
                look_again(w, r, now)
            run.forming = -1
        elif event == LINK:
            l = soonest(w)  # noqa: E741
            now = w.net.next[l]
            k = deliver(w, l)
            if k >= 0:
                land(w, k, now)
            if run.lends and run.freed:
                look_again(w, i64(-1), now)
        elif event == TICK:
            observe(w, run.tick)
            tick(w, i64(run.first_stage if run.first_stage < len(w.replicas) else 0), run.tick, migrate)
        elif event == ARRIVAL:
            run.front += clients > 0
            dispatch(w, i, sent, route)
            i += 1
        else:
            return

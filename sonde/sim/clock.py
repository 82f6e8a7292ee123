"""The clock: arrivals and step boundaries in order of time, routed to replicas.

Ties, at one moment: first the steps that end (and the steps formed at their end), then arrivals in order,
then idle replicas that an arrival has woken. So an arrival waits for the first boundary after it, and
requests that arrive together at an idle replica share its first step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sonde.policies.routing import PoolView, RequestView
from sonde.sim.advance import advance, publish
from sonde.sim.batch import reserved
from sonde.sim.jit import i64, kernel, part
from sonde.sim.lists import FIRST, NEWEST, enqueue
from sonde.sim.memory import growth, kv_bytes
from sonde.sim.record import count_miss
from sonde.sim.runs import cut, passed
from sonde.sim.state import BAD_ROUTING, E2E, TPOT, TTFT, World


@part
def observe(w: World, now: float) -> None:
    """Show the router the tokens and the memory of every replica, after the last step that each completed."""
    last = w.queues.shape[1] - 1
    for r in range(len(w.replicas)):
        replica = w.replicas[r]
        k = passed(w, r, now) if w.next[r] < np.inf and not replica.wake else 0
        w.seen.queued_tokens[r] = replica.queued_tokens - k * replica.tokens
        w.seen.running_tokens[r] = replica.kept + replica.coming_tokens
        w.seen.kv_used[r] = replica.used
        w.seen.moving[r] = (replica.mover >= 0) + replica.guests
        w.seen.urgent[r] = last > 0 and w.queues[r, 0, NEWEST] >= 0
        w.seen.head_tokens[r] = 0
        if replica.waiting > 0:
            w.seen.head_tokens[r] = w.work[w.queues[r, replica.urgent, FIRST]].target
        if replica.decode and k > 0:
            w.seen.running_tokens[r] += k * replica.active
            w.seen.kv_used[r] += growth(w, r, replica.steps + 1, k)


@part
def fits(w: World, r: int, i: int) -> bool:
    """Return whether replica `r` could hold request `i` for as long as it is there, were it empty."""
    engine = w.engines[w.replicas[r].engine]
    tokens = i64(w.prompt[i]) if engine.hands_over else w.prompt[i] + w.output[i] - 1
    return kv_bytes(engine, tokens) <= engine.most


@part
def roomiest(w: World, i: int, first: int, end: int) -> int:
    """Return, of the replicas from `first` to `end` that could hold request `i`, that with the fewest, or -1."""
    best = i64(-1)
    for r in range(first, end):
        if fits(w, r, i) and (
            best < 0 or w.seen.queued[r] + w.seen.running[r] < w.seen.queued[best] + w.seen.running[best]
        ):
            best = i64(r)
    return best


@part
def refuse(w: World, i: int) -> None:
    """Write down that request `i` fits into no memory here: it has missed every objective."""
    w.work[i].replica = -1
    count_miss(w, TTFT, np.inf)
    count_miss(w, E2E, np.inf)
    if w.output[i] > 1:
        count_miss(w, TPOT, np.inf)
    if w.run[0].closed:
        w.pending[w.run[0].back % len(w.pending)] = w.work[i].arrival
        w.run[0].back += 1


@part
def shown(view: PoolView, first: int, end: int) -> PoolView:
    """Return what a router sees of the replicas from `first` to `end`."""
    return PoolView(
        view.queued[first:end], view.queued_tokens[first:end], view.running[first:end], view.running_tokens[first:end],
        view.kv_used[first:end], view.kv_capacity[first:end], view.cached_tokens[first:end],
        view.head_tokens[first:end], view.urgent[first:end], view.moving[first:end], view.token_bytes[first:end],
    )  # fmt: skip


@part
def choose(w: World, view: PoolView, i: int, now: float, first: int, route: Any) -> int:
    """Return the replica for request `i` among those of `view`, which begin at `first`; -1 where none could hold it.

    An answer that is no replica ends the run, with -2.
    """
    work, d = w.work[i], i % len(w.draws)
    request = RequestView(i, now, i64(w.prompt[i]), i64(work.priority), i64(w.session[i]), w.draws[d, 0], w.draws[d, 1])
    r = route(view, request)
    if r < 0 or r >= len(view.queued):
        w.run[0].abort = BAD_ROUTING
        w.run[0].fault = i
        return i64(-2)
    r += first
    return i64(r) if fits(w, r, i) else roomiest(w, i, first, first + len(view.queued))


@part
def queue(w: World, r: int, i: int, now: float) -> None:
    """Let request `i` wait at replica `r`, and join the step after the one in progress if it may."""
    work, replica = w.work[i], w.replicas[r]
    engine = w.engines[replica.engine]
    alone = replica.waiting == 0 or work.priority < replica.urgent
    enqueue(w, r, i, False)
    replica.queued_tokens += work.target - work.done
    if w.next[r] == np.inf:
        w.next[r] = now
        replica.wake = 1
    elif replica.n > 1 and not replica.wake:
        full = replica.admitted + replica.pulling >= engine.max_batch or (replica.chunk > 0 and engine.own == 0)
        if engine.own or (
            alone and not full and (replica.used + reserved(w, engine, i) <= engine.capacity or engine.lends)
        ):
            cut(w, r, now)
    publish(w, r)


@part
def send(w: World, i: int, now: float, route: Any) -> None:
    """Route request `i` at `now` to a replica, where it waits."""
    work = w.work[i]
    work.arrival = now
    if w.run[0].sees_tokens:
        observe(w, now)
    r = choose(w, w.seen, i, now, i64(0), route)
    if r == -1:
        refuse(w, i)
    if r >= 0:
        work.replica = r
        work.target = w.prompt[i]
        queue(w, r, i, now)


@kernel
def run_open(w: World, arrival: np.ndarray, route: Any, policies: tuple[Any, ...]) -> None:
    """Send every request at its time of arrival, and run until all are done."""
    for i in range(len(w.work) + 1):
        now = arrival[i] if i < len(w.work) else np.inf
        for r in range(len(w.replicas)):
            while w.next[r] <= now and w.next[r] < np.inf and not (w.replicas[r].wake and w.next[r] == now):
                advance(w, r, policies)
                if w.run[0].abort:
                    return
        if i < len(w.work):
            send(w, i, now, route)
            if w.run[0].abort:
                return


@part
def earliest(w: World) -> int:
    """Return the replica whose run of steps ends first; at one moment, those that were woken come last."""
    best = 0
    for r in range(1, len(w.replicas)):
        if w.next[r] < w.next[best] or (w.next[r] == w.next[best] and w.replicas[best].wake and not w.replicas[r].wake):
            best = r
    return best


@kernel
def run_closed(w: World, clients: int, route: Any, policies: tuple[Any, ...]) -> None:
    """Let `clients` clients send the requests in order, each the next as soon as its last is finished."""
    run = w.run[0]
    run.closed = 1
    w.pending[:] = 0.0
    run.back = clients
    i = 0
    while not run.abort:
        r = earliest(w)
        now = w.pending[run.front % len(w.pending)] if run.front < run.back and i < len(w.work) else np.inf
        if w.next[r] < now or (w.next[r] == now and now < np.inf and not w.replicas[r].wake):
            advance(w, r, policies)
        elif now < np.inf:
            run.front += 1
            send(w, i, now, route)
            i += 1
        else:
            return

"""Build the arrays of a run from requests and engines, and read the outcome off them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Engine, KvMemory
from sonde.errors import InputError
from sonde.metrics import ITL_BINS, Objective, Outcome, Timeline, Travel
from sonde.policies import batching
from sonde.policies.routing import PoolView
from sonde.sim.links import TIERS
from sonde.sim.network import ALONE, LendingSpec, Paths, link_names, most_bytes, network, tier_names
from sonde.sim.state import (
    BUSY,
    E2E,
    ENGINE,
    GOAL,
    KV,
    REPLICA,
    RUN,
    RUNNING,
    SPANS,
    TPOT,
    TTFT,
    WORK,
    Network,
    Record,
    World,
)
from sonde.workload.requests import Requests

Fleet = Sequence[tuple[Engine, int]]
METRICS = {"ttft": TTFT, "tpot": TPOT, "e2e": E2E}
PRIORITIES = 8


def records(n: int, dtype: np.dtype[np.void]) -> Record:
    """Return `n` zeroed records whose fields are attributes, with and without the JIT."""
    return np.zeros(n, dtype).view(np.recarray)


def build(requests: Requests, fleet: Fleet, draws: NDArray[np.float64], clients: int, paths: Paths = ALONE) -> World:
    """Return the state before the first event. Raises InputError on priorities past 7 or an empty fleet."""
    counts = [count for _, count in fleet]
    if not fleet or sum(counts) < 1 or min(counts) < 0:
        raise InputError("replicas", counts, "needs at least 1 replica", "every request would be dropped")
    if requests.priority.min() < 0 or requests.priority.max() >= PRIORITIES:
        row = int(np.argmax((requests.priority < 0) | (requests.priority >= PRIORITIES)))
        raise InputError(
            f"requests[{row}].priority", int(requests.priority[row]), f"must be 0 (first) to {PRIORITIES - 1}"
        )
    engines = [engine for engine, _ in fleet]
    replicas = records(sum(counts), REPLICA)
    replicas.engine = np.repeat(np.arange(len(fleet)), counts)
    classes = int(requests.priority.max()) + 1
    replicas.part, replicas.urgent = -1, classes
    replicas.pull, replicas.landed, replicas.mover = -1, -1, -1
    capacity = np.array([engine.memory.capacity_bytes for engine in engines], np.int64)[replicas.engine]
    growth = np.array([_token_bytes(engine.memory) for engine in engines], np.int64)[replicas.engine]
    places = max(engine.max_batch for engine in engines)
    run = records(1, RUN)
    run.width = max(0.0 if clients else requests.span_s, 1e-3) / SPANS  # folded as often as it takes
    r = len(replicas)
    _set_paths(run, fleet, requests, paths)
    rows = _engines(engines, paths.prefill)
    rows.most, rows.lends = most_bytes(fleet, paths), 0
    if paths.lending is not None:
        rows.lends[paths.prefill :] = 1
        _set_lending(run, paths.lending)
    return World(
        run=run,
        engines=rows,
        curves=_curves(engines),
        replicas=replicas,
        next=np.full(r, np.inf),
        seen=PoolView._make([*np.zeros((5, r), np.int64), capacity, *np.zeros((4, r), np.int64), growth]),
        work=_work(requests),
        prompt=requests.prompt_tokens,
        output=requests.output_tokens,
        session=requests.session,
        queues=np.full((r, classes, 3), -1, np.int64),
        ends=np.zeros((r, places + 1, 2), np.int64),
        phases=np.zeros((r, 2, max(engine.memory.block_tokens for engine in engines)), np.int32),
        joining=np.zeros((r, places), np.int64),
        stalled=np.zeros((r, 2 * places + 4, 2)),
        itl=np.zeros(ITL_BINS, np.int64),
        timeline=np.zeros((SPANS, 3)),
        goals=records(0, GOAL),
        draws=draws,
        pending=np.zeros(max(clients, 1)),
        net=None if paths == ALONE else network(requests, fleet, paths),
    )


def _set_paths(run: Record, fleet: Fleet, requests: Requests, paths: Paths) -> None:
    counts = [count for _, count in fleet]
    run.first_stage = sum(counts[: paths.prefill]) if paths.prefill else sum(counts)
    run.forming = -1
    run.tick, run.layers, run.block_tokens = np.inf, paths.layers, requests.block_tokens
    if paths.cache is not None:
        run.tiers, run.ranked = len(paths.cache.tiers), paths.cache.eviction != "lru"
    moving = paths.migration
    if moving is not None:
        run.tick, run.interval, run.low, run.high = moving.interval_s, moving.interval_s, moving.low, moving.high
        run.headroom, run.tail_tokens, run.copies = moving.headroom_bytes, moving.tail_tokens, moving.copies


def _set_lending(run: Record, lending: LendingSpec) -> None:
    link = lending.link
    run.lends, run.reserve = 1, lending.reserve_bytes
    run.lend_latency, run.lend_rate = link.latency_s, link.bytes_per_s
    run.exchange_s = 2 * lending.rounds * link.latency_s
    run.sequence_s = lending.exchange_bytes / link.bytes_per_s


def _token_bytes(memory: KvMemory) -> int:
    """Return the bytes that one more token of a sequence takes, windows that are full left out."""
    return max(1, memory.block_bytes // memory.block_tokens)


def _work(requests: Requests) -> Record:
    work = records(requests.n, WORK)
    work.scheduled, work.first, work.finish = np.nan, np.nan, np.nan
    work.arrival = requests.arrival_s - requests.arrival_s[0]
    work.priority = requests.priority
    return work


def _engines(engines: Sequence[Engine], prefill: int) -> Record:
    rows = records(len(engines), ENGINE)
    names = sorted({engine.batching for engine in engines})
    for row, engine in zip(rows, engines, strict=True):
        time, energy, memory = engine.table.time, engine.table.energy, engine.memory
        policy = batching.POLICIES.get(engine.batching)
        row.fixed, row.slope, row.prefill, row.prefill_window = (
            time.fixed,
            time.slope,
            time.prefill,
            time.prefill_window,
        )
        row.e_fixed, row.e_slope, row.e_prefill = energy.fixed, energy.slope, energy.prefill
        row.e_prefill_window = energy.prefill_window
        row.idle_w, row.swap_s_per_byte = engine.idle_w, 1.0 / memory.swap_bytes_per_s
        row.capacity, row.block_bytes, row.block_tokens = memory.capacity_bytes, memory.block_bytes, memory.block_tokens
        row.window_bytes, row.state_bytes, row.window = (
            memory.window_block_bytes,
            memory.state_bytes,
            engine.table.window,
        )
        row.last, row.max_batch, row.token_budget = len(time.linear) - 1, engine.max_batch, engine.token_budget
        row.mixed_budget = engine.mixed_budget or engine.token_budget
        row.swap = engine.preemption == "swap"
        row.own = policy is None
        row.reserve = policy is not None and policy.reserve_output
        row.hold = policy is not None and policy.hold_slots
        row.policy = names.index(engine.batching)
    rows.hands_over[:prefill] = 1
    return rows


def _curves(engines: Sequence[Engine]) -> NDArray[np.float64]:
    longest = max(max(len(engine.table.time.linear), engine.max_batch + 1) for engine in engines)
    curves = np.zeros((len(engines), 8, longest))
    for curve, engine in zip(curves, engines, strict=True):
        for at, table in ((0, engine.table.time), (4, engine.table.energy)):
            for row, values in enumerate((table.linear, table.decode, table.read, table.read_window)):
                curve[at + row, : len(values)] = values
    return curves


def set_goals(world: World, requests: Requests, objectives: Sequence[Objective]) -> World:
    """Return the state with the per-request objectives at which to stop once one can't be met any more."""
    counted = [goal for goal in objectives if goal.metric in METRICS]
    goals = records(len(counted), GOAL)
    for row, goal in zip(goals, counted, strict=True):
        n = int(np.count_nonzero(requests.output_tokens > 1)) if goal.metric == "tpot" else requests.n
        row.metric, row.limit = METRICS[goal.metric], goal.limit_s
        row.allowed = n - max(1, int(np.ceil(goal.quantile * n)))
    return world._replace(goals=goals)


def outcome(world: World, requests: Requests, fleet: Fleet, simulation_s: float, paths: Paths = ALONE) -> Outcome:
    """Return what happened, read off the state after the last event; the clock began at the first arrival."""
    work, replicas = world.work, world.replicas
    zero = 0.0 if world.run.closed[0] else float(requests.arrival_s[0])
    finish, scheduled, first, arrival = (
        column + zero for column in (work.finish, work.scheduled, work.first, work.arrival)
    )
    done = np.isfinite(finish)
    start = float(arrival.min())
    end = float(finish[done].max()) if done.any() else start
    idle_w = np.array([engine.idle_w for engine, _ in fleet])[replicas.engine]
    return Outcome(
        requests=requests,
        replica=np.ascontiguousarray(work.replica),
        scheduled_s=scheduled,
        first_token_s=first,
        finish_s=finish,
        preemptions=np.ascontiguousarray(work.preemptions),
        steps=np.ascontiguousarray(replicas.all_steps),
        busy_s=np.ascontiguousarray(replicas.busy),
        energy_j=replicas.energy + idle_w * np.maximum(end - start - replicas.busy, 0.0),
        peak_kv_bytes=replicas.peak.astype(np.float64),
        kv_capacity_bytes=world.seen.kv_capacity.astype(np.float64),
        itl_counts=world.itl,
        timeline=_timeline(world, work.arrival[work.replica >= 0], work.scheduled),
        usd_per_hour=sum(engine.usd_per_hour * count for engine, count in fleet),
        simulation_s=simulation_s,
        arrival_s=arrival,
        aborted=bool(world.run.abort[0]),
        travel=_travel(world, world.net, paths, zero) if world.net is not None else None,
    )


def _travel(world: World, net: Network, paths: Paths, zero: float) -> Travel:
    flow, links, run = net.flow, net.links, world.run[0]
    table = np.zeros(len(links), [("name", "U64"), ("bytes", "f8"), ("transfers", "i8"), ("busy", "f8")])
    table["name"] = link_names(paths, len(world.replicas))
    for name in ("bytes", "transfers", "busy"):
        table[name] = links[name]
    return Travel(
        source=np.where(flow.origin > 0, flow.origin - 1, -1).astype(np.int32),
        landed_s=np.where(flow.landed > 0, flow.landed + zero, np.nan),
        cached_tokens=np.ascontiguousarray(flow.hit),
        moves=np.ascontiguousarray(flow.moves),
        paused_s=np.ascontiguousarray(flow.paused),
        links=table,
        tiers=_tiers(net, paths, table, int(run.block_tokens)),
        evicted=int(net.stores.evicted.sum()),
        migrations=int(run.migrations),
        given_up=int(run.given_up),
        borrowed_tokens=np.asarray(flow.most_lent * world.engines.block_tokens[-1], np.int32),
        loans=int(run.loans),
    )


def _tiers(net: Network, paths: Paths, links: NDArray[np.void], block_tokens: int) -> NDArray[np.void]:
    """Return what every tier of the cache gave, and gave up."""
    names, tokens = tier_names(paths), net.flow.blocks.astype(np.int64)
    table = np.zeros(len(names), [("name", "U64"), ("tokens", "i8"), ("bytes", "f8"), ("evicted", "i8")])
    over = np.zeros(len(tokens), np.int64) - net.flow.hit
    if names:
        tokens *= block_tokens
        over += tokens.sum(axis=1)
    for t in range(len(names) - 1, -1, -1):  # the last token of a prompt is computed, wherever it was found
        less = np.minimum(tokens[:, t], np.maximum(over, 0))
        over -= less
        own = np.unique(net.homes[t])
        table[t] = names[t], (tokens[:, t] - less).sum(), 0.0, net.stores.evicted[own].sum()
        if paths.cache is not None and paths.cache.tiers[t].link is not None:
            first, scope = net.ways[TIERS + t]
            table["bytes"][t] = links["bytes"][first : first + (net.homes.shape[1] if scope else 1)].sum()
    return table


def _timeline(world: World, arrival: NDArray[np.float64], scheduled: NDArray[np.float64]) -> Timeline:
    width = float(world.run.width[0])
    used = np.flatnonzero(world.timeline[:, BUSY])
    spans = int(used[-1]) + 1 if len(used) else 1
    table = world.timeline[:spans]
    start, stop = _integral(arrival, width, spans), _integral(scheduled[np.isfinite(scheduled)], width, spans)
    return Timeline(
        width, table[:, BUSY].copy(), table[:, KV] / width, table[:, RUNNING] / width, (start - stop) / width
    )


def _integral(moments: NDArray[np.float64], width: float, spans: int) -> NDArray[np.float64]:
    """Return, for every span, the integral over it of the number of `moments` that have passed."""
    at = np.clip((moments / width).astype(np.int64), 0, spans)
    passed = np.bincount(at, minlength=spans + 1)[:spans]
    late = np.bincount(at, weights=np.maximum((at + 1) * width - moments, 0.0), minlength=spans + 1)[:spans]
    before = np.concatenate([[0], np.cumsum(passed)[:-1]])
    return np.asarray(before * width + late)

"""What cannot hold whatever the number of replicas: prunings that are proofs, each with both figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Engine, KvMemory
from sonde.metrics import Metric, Objective
from sonde.plan.explain import Failure
from sonde.plan.rates import alone, step_floor
from sonde.plan.work import Work, allowed_misses, work
from sonde.units import show
from sonde.workload.requests import Requests

Floats = NDArray[np.float64]


def kv_bytes(memory: KvMemory, window: int, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bytes of KV memory that sequences of so many tokens take, as the simulator counts them."""
    blocks = -(-tokens // memory.block_tokens)
    windowed = -(-np.minimum(tokens, window) // memory.block_tokens) if window else 0
    return np.asarray(memory.block_bytes * blocks + memory.window_block_bytes * windowed + memory.state_bytes)


def impossible(
    engine: Engine, trace: Requests, objectives: Sequence[Objective], *, cached: bool = False
) -> Failure | None:
    """Return why no number of replicas of `engine` can hold `objectives`; None where that is not certain.

    Every request is taken as if it were alone on an idle replica, under any schedule: more load never
    helps it; where it may be `cached`, as if all was that could be. A request whose cache does not fit the memory of
    a replica never ends, so it misses.
    """
    return _too_long(engine, trace, objectives) or _too_slow(engine, trace, objectives, cached)


def _too_long(engine: Engine, trace: Requests, objectives: Sequence[Objective]) -> Failure | None:
    total = trace.prompt_tokens.astype(np.int64) + trace.output_tokens - 1  # the last token is never read again
    needed = kv_bytes(engine.memory, engine.table.window, total)
    over = needed > engine.memory.capacity_bytes
    if engine.memory.capacity_bytes >= needed.max():
        return None
    for item in objectives:
        counted = over if item.metric not in ("tpot", "transfer") else over & (trace.output_tokens > 1)
        if item.metric != "itl" and int(np.count_nonzero(counted)) > allowed_misses(item, trace):
            i = int(needed.argmax())
            reason = (
                f"{np.count_nonzero(over):,} requests are longer than the KV memory of a replica: row {i} of "
                f"{total[i] + 1:,} tokens needs {show(float(needed[i]), 'bytes')}, there are "
                f"{show(float(engine.memory.capacity_bytes), 'bytes')}"
            )
            return Failure("kv-memory", reason, np.inf)
    return None


def _too_slow(engine: Engine, trace: Requests, objectives: Sequence[Objective], cached: bool) -> Failure | None:
    demand = work(trace, engine.table.window, cached=cached)
    first, gap = alone(step_floor(engine), demand)
    first = first + _waits(engine, demand, gap)
    floors: dict[Metric, Floats] = {"ttft": first, "tpot": gap, "e2e": first + gap * demand.decode}
    for item in objectives:
        if item.metric not in floors:
            continue
        counted = np.flatnonzero(trace.output_tokens > 1) if item.metric == "tpot" else np.arange(trace.n)
        if not len(counted):
            continue
        values = floors[item.metric][counted]
        rank = max(0, int(np.ceil(item.quantile * len(counted))) - 1)
        at = int(np.argpartition(values, rank)[rank])
        if values[at] > item.limit_s * (1 + 1e-9):
            row = int(counted[at])
            reason = (
                f"{item.label} at least {show(float(values[at]), 'time')} against {show(item.limit_s, 'time')}: "
                f"{_alone_text(item.metric, trace, row)}"
            )
            return Failure(item.metric, reason, float(values[at]) / item.limit_s)
    return None


def _waits(engine: Engine, demand: Work, gap: Floats) -> Floats:
    """Return the least that clients wait for beside the engine: a request's polls last at least `gap` each."""
    client = engine.client
    return client.request_s + client.token_s * demand.prompt + min(client.polls, client.polls_busy) * gap


def _alone_text(metric: Metric, trace: Requests, row: int) -> str:
    prompt, output = int(trace.prompt_tokens[row]), int(trace.output_tokens[row])
    if metric == "ttft":
        return f"a prompt of {prompt:,} tokens takes that long on an idle replica"
    if metric == "tpot":
        return f"one sequence of {prompt + output:,} tokens decodes no faster on an idle replica"
    return f"{prompt:,} prompt and {output:,} output tokens take that long on an idle replica"

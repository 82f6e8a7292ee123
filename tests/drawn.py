"""Engines, workloads and user policies drawn for property tests.

Every number is a multiple of a power of two, so that sums are exact in float64 however they are ordered: a
twin must then agree to the last bit, ties included.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.policies.batching import Step
from sonde.workload.requests import requests as make_requests

TICK = 2.0**-16


def ticks(low: int, high: int) -> st.SearchStrategy[float]:
    return st.integers(low, high).map(lambda n: n * TICK)


def coefficients(draw: st.DrawFn, tokens: int, batch: int, windowed: bool) -> Coefficients:
    def table(n: int, high: int) -> np.ndarray:
        return np.concatenate([[0.0], np.array(draw(st.lists(ticks(0, high), min_size=n, max_size=n)))])

    return Coefficients(
        fixed=draw(ticks(1, 64)),
        linear=np.cumsum(table(tokens, 16)),
        slope=draw(ticks(0, 8)),
        prefill=draw(ticks(0, 4)),
        prefill_window=draw(ticks(0, 4)) if windowed else 0.0,
        decode=np.cumsum(table(batch, 16)),
        read=table(batch, 2),
        read_window=table(batch, 2) if windowed else np.zeros(batch + 1),
    )


@st.composite
def engines(draw: st.DrawFn, policies: tuple[str, ...], *, longest: int = 24) -> Engine:
    batch = draw(st.integers(1, 5))
    window = draw(st.sampled_from([0, 0, 1, 3, 4, 8]))
    block = draw(st.sampled_from([1, 2, 3, 4]))
    block_bytes = draw(st.integers(0 if window else 1, 3))
    memory = KvMemory(
        capacity_bytes=draw(st.integers(longest * 2, longest * 8)),
        block_tokens=block,
        block_bytes=block_bytes,
        window_block_bytes=draw(st.integers(0, 2)) if window else 0,
        state_bytes=draw(st.integers(0, 4)),
        swap_bytes_per_s=float(2 ** draw(st.integers(2, 12))),
    )
    tokens = draw(st.integers(1, 12))
    time, energy = (coefficients(draw, tokens, batch, window > 0) for _ in range(2))
    return Engine(
        table=StepTable(time, energy, window),
        memory=memory,
        batching=draw(st.sampled_from(policies)),
        max_batch=batch,
        token_budget=draw(st.integers(1, 16)),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        idle_w=draw(ticks(0, 64)),
        usd_per_hour=1.0,
        devices=1,
        mixed_budget=draw(st.sampled_from([0, 0, 3, 7])),
    )


@st.composite
def workloads(draw: st.DrawFn, *, most: int = 14, longest: int = 24):
    n = draw(st.integers(1, most))
    gaps = draw(st.lists(ticks(0, 400), min_size=n, max_size=n))
    prompts = draw(st.lists(st.integers(1, longest // 2), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, longest // 2), min_size=n, max_size=n))
    urgent = draw(st.booleans())
    priority = draw(st.lists(st.integers(0, 2 if urgent else 0), min_size=n, max_size=n))
    session = draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))
    return make_requests(np.cumsum(gaps), prompts, outputs, session=session, priority=priority)


def patient(view):
    """Admit prompts only when two wait, or nothing runs: a policy that looks at the queue."""
    if view.waiting >= 2 or view.running == 0:
        return Step(view.token_budget, view.waiting % 2 == 0, False)
    return Step(0, True, False)


def shortest_queue(view, request):
    """Pick the replica with the most free memory per queued request."""
    best = 0
    for i in range(len(view.queued)):
        free = (view.kv_capacity[i] - view.kv_used[i]) * (1 + view.queued[best])
        if free > (view.kv_capacity[best] - view.kv_used[best]) * (1 + view.queued[i]):
            best = i
    return best


def out_of_range(view, request):
    return len(view.queued)


def not_numbers(view, request):
    return {"a": view}["a"]


def lazy(view):
    return Step(0, True, False)


def raises(view, request):
    if request.number > 1:
        raise ValueError("no")
    return 0


def past_the_end(view, request):
    return view.queued[len(view.queued) + 3]


def half(view, request):
    return 0.5


def raises_step(view):
    return Step(view.token_budget // (view.waiting - view.waiting), True, False)


constant = 3

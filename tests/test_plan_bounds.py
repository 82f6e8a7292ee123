"""The planner's bounds: they hold for every step, every window, and every fleet that can be tried."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import draw_engine, draw_trace

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.metrics import Objective
from sonde.plan.bounds import peak, replicas_needed
from sonde.plan.dollars import Kind, _cheapest, _Line, dollars_needed
from sonde.plan.rates import alone, prompt_rates, rates, step_floor
from sonde.plan.work import allowed_misses, work
from sonde.workload.requests import requests

LLAMA_LIKE = {"fixed": 2e-3, "floor": 5e-3, "token": 2.5e-5, "pair": 1e-10, "decode": 4e-6, "read": 4e-8}


def step_s(engine: Engine, prompt: int, batch: int, area: float, read: float, wide: float) -> float:
    """The step model in plain words."""
    time = engine.table.time
    tokens, last = prompt + batch, len(time.linear) - 1
    value = time.fixed + time.linear[min(tokens, last)] + time.slope * max(0, tokens - last)
    return float(
        value + time.prefill * area + time.decode[batch] + time.read[batch] * read + time.read_window[batch] * wide
    )


@given(st.integers(0, 10_000), st.sampled_from(["chunked", "iteration"]), st.sampled_from([0, 12]))
@settings(max_examples=60, deadline=None)
def test_no_step_is_cheaper_than_its_rates(seed: int, batching: str, window: int) -> None:
    rng = np.random.default_rng(seed)
    engine = draw_engine(rng, window=window, batching=batching)
    trace = draw_trace(rng)
    demand = work(trace, window)
    limit = float(rng.uniform(0.005, 0.05))
    floor = step_floor(engine)
    plain, kept, first = rates(floor, demand), rates(floor, demand, limit), prompt_rates(floor)
    most = engine.memory.capacity_bytes // engine.memory.block_bytes * engine.memory.block_tokens
    for _ in range(300):
        batch = int(rng.integers(0, len(floor.decode)))
        longest = engine.token_budget if batching == "chunked" else 500
        prompt = int(rng.integers(0, max(1, longest - batch)))
        if prompt + batch == 0:
            continue
        read = float(rng.choice([batch, max(most, batch), rng.integers(batch, max(most, batch) + 1)])) if batch else 0.0
        wide = min(read, window * batch) if window else 0.0
        took = step_s(engine, prompt, batch, 0.0, read, wide)
        for price in (plain, first):
            owed = price.prompt * prompt + price.decode * batch + price.read * read + price.read_window * wide
            assert took >= owed - 1e-12
    # with a TPOT limit single steps may be cheaper: it is whole schedules that keep it that may not
    assert total(kept, demand) >= total(plain, demand) * 0.99  # the grids differ a little


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_decoding_that_is_cheaper_than_prompts_has_rates_too(seed: int) -> None:
    """Pipelines take a batch apart, so that the decode column corrects the tokens' price down."""
    rng = np.random.default_rng(seed)
    engine = draw_engine(rng)
    time = engine.table.time
    cheaper = np.minimum(0.0, -0.99 * (time.fixed + time.linear[: len(time.decode)]) * rng.uniform(0.8, 1.0))
    cheaper[0] = 0.0
    engine = engine._replace(table=engine.table._replace(time=time._replace(decode=cheaper, read=0 * time.read)))
    demand = work(draw_trace(rng), 0)
    for limit in (None, 0.02):
        price = rates(step_floor(engine), demand, limit)
        assert np.isfinite(price).all()
        if limit is None:
            for batch in range(1, len(cheaper)):
                assert step_s(engine, 0, batch, 0.0, batch, 0.0) >= (price.decode + price.read) * batch - 1e-12


def total(price: object, demand: object) -> float:
    return float(sum(rate * column.sum() for rate, column in zip(price, demand, strict=True)))  # type: ignore[call-overload]


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_schedules_that_keep_tpot_take_as_long_as_their_rates(seed: int) -> None:
    """Steps drawn so that the batch keeps its TPOT on average: Σ B·t ≤ limit·Σ B."""
    rng = np.random.default_rng(seed)
    engine = draw_engine(rng)
    demand = work(draw_trace(rng))
    floor = step_floor(engine)
    most = engine.memory.capacity_bytes // engine.memory.block_bytes * engine.memory.block_tokens
    steps = []
    for _ in range(200):
        batch = int(rng.integers(1, len(floor.decode)))
        prompt = int(rng.integers(0, engine.token_budget - batch))
        read = float(rng.integers(batch, max(most, batch) + 1))
        steps.append((prompt, batch, read, step_s(engine, prompt, batch, 0.0, read, 0.0)))
    columns = np.array(steps)
    limit = float((columns[:, 1] * columns[:, 3]).sum() / columns[:, 1].sum())
    for factor in (1.0, 1.5):
        price = rates(floor, demand, limit * factor)
        owed = price.prompt * columns[:, 0] + price.decode * columns[:, 1] + price.read * columns[:, 2]
        assert columns[:, 3].sum() >= owed.sum() * (1 - 1e-9)


def test_rates_use_the_tpot_limit() -> None:
    """A decode-heavy load under a tight TPOT cannot use the largest batch, and the bound knows."""
    batch = np.arange(257)
    linear = np.maximum(5e-3, np.arange(2049) * LLAMA_LIKE["token"])
    linear[0] = 0
    time = Coefficients(2e-3, linear, 2.5e-5, 0.0, 0.0, batch * 4e-4, np.full(257, 1e-9), np.zeros(257))
    memory = KvMemory(10**9, 16, 16, 0, 0, 1e9)
    engine = Engine(StepTable(time, time, 0), memory, "chunked", 256, 2048, "recompute", 0.0, 1.0, 1)
    trace = requests(np.arange(100.0), np.full(100, 10), np.full(100, 400))
    demand, floor = work(trace), step_floor(engine)
    loose, tight = total(rates(floor, demand, 1.0), demand), total(rates(floor, demand, 0.012), demand)
    assert tight > 1.5 * loose


@given(st.integers(0, 10_000), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_a_peak_is_at_most_the_best_window_tried_in_full(seed: int, misses: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(misses + 1, 40))
    arrival, load, wait = np.cumsum(rng.exponential(1, n)), rng.lognormal(0, 1, n), float(rng.uniform(0.1, 5))
    best = 0.0
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        inside = np.sort(load[i : j + 1])
        kept = inside[: max(0, len(inside) - misses)].sum()
        best = max(best, kept / (arrival[j] - arrival[i] + wait))
    found = peak(arrival, load, wait, misses)
    assert found.rate <= best * (1 + 1e-9)
    if not misses:
        assert found.rate >= best / 1.5  # windows grow by less than that from one length to the next
    else:
        assert found.rate >= 0


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 99, 100, 101])
def test_misses_are_counted_as_quantiles_are(q: float, n: int) -> None:
    trace = requests(np.arange(float(n)), np.ones(n), np.full(n, 2))
    may = allowed_misses(Objective("ttft", q, 1.0), trace)
    values = np.zeros(n)
    values[:may] = 2.0
    rank = min(n - 1, max(0, int(np.ceil(q * n)) - 1))
    assert np.partition(values, rank)[rank] <= 1.0
    if may < n:
        values[: may + 1] = 2.0
        assert np.partition(values, rank)[rank] > 1.0


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_cheapest_fleet_is_the_cheapest_of_all_that_satisfy_the_lines(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    base = draw_engine(rng)
    prices = rng.uniform(0.3, 5, count)
    choices = [
        Kind(base._replace(usd_per_hour=float(price), devices=int(rng.integers(1, 3))), f"stock {i % 2}", 4)
        for i, price in enumerate(prices)
    ]
    lines = [_Line(np.ones(count), 1.0), _Line(prices, float(rng.uniform(0, 8)))]
    lines.append(_Line(np.where(rng.random(count) < 0.5, prices, 0.0), float(rng.uniform(0, 4))))
    best = math.inf
    for fleet in itertools.product(range(5), repeat=count):
        held = {kind.stock: 0 for kind in choices}
        for kind, n in zip(choices, fleet, strict=True):
            held[kind.stock] += n * kind.engine.devices
        if all(n <= 4 for n in held.values()) and all(line.weights @ fleet >= line.amount - 1e-9 for line in lines):
            best = min(best, float(prices @ fleet))
    assert _cheapest(choices, prices, lines)[0] == pytest.approx(best, rel=1e-6)


def test_the_work_of_a_request_is_what_its_steps_read() -> None:
    trace = requests([0.0, 1.0], [5, 3], [4, 1])
    whole, cut = work(trace), work(trace, 6)
    assert whole.read.tolist() == [6 + 7 + 8, 0]
    assert whole.pair.tolist() == [12.5, 4.5]
    assert cut.read_window.tolist() == [18, 0]
    assert cut.pair_window.tolist() == [12.5, 4.5]
    assert work(trace, 4).pair_window.tolist() == [8 + 4, 4.5]


def test_alone_is_a_floor_and_exact_for_one_step() -> None:
    rng = np.random.default_rng(3)
    engine = draw_engine(rng, budget=64)
    trace = requests([0.0], [20], [3])
    first, gap = alone(step_floor(engine), work(trace))
    assert first[0] <= step_s(engine, 20, 0, 200.0, 0, 0) + 1e-12
    assert gap[0] <= (step_s(engine, 0, 1, 0, 21, 0) + step_s(engine, 0, 1, 0, 22, 0)) / 2 + 1e-12
    assert first[0] > 0
    assert gap[0] > 0


def test_more_load_needs_more() -> None:
    rng = np.random.default_rng(5)
    engine = draw_engine(rng)
    goals = (Objective("ttft", 0.9, 0.2), Objective("tpot", 0.9, 0.02))
    slow, fast = draw_trace(rng, 200, rate=10), draw_trace(rng, 200, rate=400)
    few, _ = replicas_needed(engine, slow, goals)
    many, need = replicas_needed(engine, fast, goals)
    assert many > few
    assert need is not None
    assert need.peak.end_s > need.peak.start_s
    cheap = dollars_needed([Kind(engine, "stock", 1000)], fast, goals)
    assert sum(cheap.replicas) >= 1
    assert cheap.usd_per_hour >= (many - 1) * engine.usd_per_hour * 0.3

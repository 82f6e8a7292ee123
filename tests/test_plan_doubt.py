"""How sure a plan is: the range of its cost, what it may be mistaken for, and that it is said everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import draw_engine, draw_trace

import sonde
from sonde.catalogue.devices import device
from sonde.cost.table import Doubt
from sonde.deployment.tree import Replica
from sonde.metrics import Objective
from sonde.plan.candidates import Candidate, Fleet, Hardware
from sonde.plan.doubt import Range, Traffic, at_end, both, cost_range, turns
from sonde.plan.explain import holds
from sonde.plan.result import PlanResult

MOST = 6
SCENARIO = {
    "model": "llama-3.1-8b",
    "workload": {"profile": "azure-conv-2023", "rate": "30/s", "duration": "60 s"},
    "objectives": {"ttft": {"p99": "900 ms", "p95": "700 ms"}, "tpot": "50 ms"},
    "hardware": [{"device": "l40s", "max": 16}, {"device": "h100-sxm", "max": 8}],
    "search": {"token_budget": [2048], "max_batch": [256], "tensor_parallel": [1]},
}  # fmt: skip


def candidate(seed: int, name: str = "h100-sxm") -> Candidate:
    rng = np.random.default_rng(seed)
    engine = draw_engine(rng)._replace(
        doubt=Doubt(rng.uniform(0.5, 1), rng.uniform(1, 2), rng.uniform(0.6, 1), rng.uniform(1, 1.5), 0.8, 1.2)
    )
    row = device(name)
    hardware = Hardware(row, MOST, engine.usd_per_hour, "on-demand", False)
    replica = Replica(model="llama-3.1-8b", device=row.name, pipeline_parallel=1)
    return Candidate(hardware, replica, "least-outstanding", engine, MOST, f"engine {seed}")


def asked(seed: int) -> Traffic:
    rng = np.random.default_rng(seed)
    goals = (
        Objective("ttft", 0.9, float(rng.uniform(0.02, 0.4))),
        Objective("tpot", 0.9, float(rng.uniform(0.01, 0.04))),
    )
    return Traffic(draw_trace(rng, 60, rate=float(rng.choice([40, 120, 300]))), goals)


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_the_range_of_cost_is_that_of_trying_every_number(seed: int) -> None:
    item, traffic = candidate(seed), asked(seed)

    def found(slow: bool) -> list[int]:
        return [n for n in range(1, MOST + 1) if holds(at_end(traffic, ((item, n),), slow=slow), traffic.objectives)]

    fast, slow = found(False), found(True)
    guess = next(iter(fast), MOST)
    if fast != list(range(guess, MOST + 1)) or (slow and slow != list(range(slow[0], MOST + 1))):
        return  # where more replicas hurt, what is found is one that holds while one less does not
    own = cost_range(traffic, ((item, min(slow[0] if slow else MOST, MOST)),))
    if fast:
        assert own.fast == pytest.approx(fast[0] * item.engine.usd_per_hour)
    if slow:
        assert own.slow == pytest.approx(slow[0] * item.engine.usd_per_hour)
    else:
        assert own.slow == math.inf


def test_a_mix_gives_way_in_its_larger_part() -> None:
    for seed in range(40):
        first, second, traffic = candidate(seed), candidate(seed + 1000, "l40s"), asked(seed)
        fleet: Fleet = ((first, 1), (second, 3))
        own = cost_range(traffic, fleet)
        prices = [first.engine.usd_per_hour + n * second.engine.usd_per_hour for n in range(MOST + 1)]
        assert any(own.fast == pytest.approx(each) for each in prices)
        assert own.slow == math.inf or any(own.slow == pytest.approx(each) for each in prices)
        assert own.fast <= own.usd <= own.slow


@given(*(st.floats(0.5, 8.0) for _ in range(6)), st.booleans())
def test_order_turns_as_drawn_errors_say(a, b, a_low, b_low, a_high, b_high, together) -> None:
    """On the same devices at the same end; on others by the interval of the ratio of two costs that err apart."""
    a, b = sorted((a, b))
    here = frozenset({("h100-sxm", "vllm")})
    first = Range(min(a, a_low), a, max(a, a_high), here)
    second = Range(min(b, b_low), b, max(b, b_high), here if together else frozenset({("l40s", "vllm")}))
    if together:
        assert turns(first, second) == (first.fast > second.fast or first.slow > second.slow)
        return
    up, down = math.log(first.slow / a), math.log(b / second.fast)
    assert turns(first, second) == (math.log(b / a) ** 2 < up**2 + down**2)
    if first.slow <= a and second.fast >= b:
        assert not turns(first, second)
    if first.slow > b and a < b:
        assert turns(first, second)


def test_a_plan_that_may_not_hold_at_all_may_be_beaten_by_any_other() -> None:
    first = Range(1.0, 2.0, math.inf, frozenset({("l40s", "vllm")}))
    assert turns(first, Range(9.0, 9.0, 9.0, frozenset({("h100-sxm", "vllm")})))
    assert not turns(first, Range(3.0, 3.0, math.inf, first.devices))
    assert turns(first, Range(3.0, 3.0, 3.0, first.devices))


@pytest.fixture(scope="module")
def result() -> PlanResult:
    return sonde.plan(SCENARIO, top=3)


def test_shown_plans_say_how_sure_they_are_and_others_can_be_asked(result: PlanResult) -> None:
    shown = result.kinds[:3]
    assert [plan for plan in result.plans if plan.doubt] == list(shown)
    assert not any("ends" in vars(plan.outcome) for plan in result.plans)  # columns of both ends would fill the memory
    for plan in shown:
        doubt = plan.doubt
        assert doubt is not None
        assert doubt.usd_low <= plan.usd_per_hour <= doubt.usd_high
        slow = plan.outcome.ends[1]
        assert doubt.holds_slow == holds(slow, result.objectives)
        assert doubt.holds_slow == (doubt.usd_high == plan.usd_per_hour)
        low, high = doubt.interval("ttft")
        assert (low, high) == plan.outcome.interval("ttft", 0.99)
        assert low < plan.summary["ttft_s"]["p99"] < high
        assert doubt.interval("ttft", "p95") == plan.outcome.interval("ttft", 0.95)
        for k in doubt.like:
            other = next(each for each in shown if each.rank == k)
            assert other.doubt is not None
            assert plan.rank in other.doubt.like
    other = next(plan for plan in result.plans if plan.doubt is None)
    low, high = other.outcome.interval("tpot", 0.9)
    assert low < other.summary["tpot_s"]["p90"] < high


def test_a_plan_names_the_engine_that_it_was_computed_with(result: PlanResult) -> None:
    assert {pool.replica.engine for plan in result.plans for pool in plan.deployment.pools} == {"vllm"}
    again = sonde.simulate(result.plans[0].deployment, result.requests)
    assert again.summary()["ttft_s"] == result.plans[0].summary["ttft_s"]


def test_both_ends_are_charged(result: PlanResult) -> None:
    plan = result.plans[0]
    fast, slow = plan.outcome.ends
    assert 0 < fast.carbon_g < plan.outcome.carbon_g < slow.carbon_g


def test_stock_that_other_parts_use_is_not_there_twice() -> None:
    item, traffic = candidate(3), asked(3)
    tight = Traffic(traffic.requests, (Objective("ttft", 0.9, 1e-9),))
    own = cost_range(tight, ((item, 2), (item, 3)))
    assert own.slow == math.inf
    assert own.fast == own.usd
    assert both(tight, ((item, 1),))[0].completed == traffic.requests.n


def test_python_says_it_too(result: PlanResult) -> None:
    said, first = repr(result), result.kinds[0]
    assert first.doubt is not None
    assert f"80 %: ${first.doubt.usd_low:,.2f} to" in said
    rows = result.rows()
    assert rows[first.rank - 1]["usd_per_hour_low"] == first.doubt.usd_low
    assert rows[first.rank - 1]["holds_if_slow"] == first.doubt.holds_slow
    assert [row["usd_per_hour_high"] for row in rows].count(None) == len(rows) - 3
    assert result.to_polars().height == len(rows)
    plain = first.to_json()
    assert plain["interval"]["usd_per_hour"] == [first.doubt.usd_low, first.doubt.usd_high]
    assert plain["like"] == list(first.doubt.like)
    assert "interval" not in next(plan for plan in result.plans if plan.doubt is None).to_json()


def test_an_end_that_is_interrupted_keeps_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sonde.plan.planner.doubted", stop)
    found = sonde.plan(SCENARIO)
    assert found.interrupted
    assert found.plans
    assert all(plan.doubt is None for plan in found.plans)

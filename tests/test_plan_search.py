"""The planner's search against trying everything, and its bounds against what the simulator needs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import draw_engine, draw_trace

from sonde.catalogue.devices import device
from sonde.cost.table import Client, Engine
from sonde.deployment.tree import Replica
from sonde.metrics import Objective, Outcome
from sonde.plan.bounds import replicas_needed
from sonde.plan.candidates import Candidate, Fleet, Hardware, deployment, label, price
from sonde.plan.dollars import Kind, dollars_needed
from sonde.plan.explain import holds
from sonde.plan.frontier import on_frontier
from sonde.plan.mix import _Kind, combinations, mix
from sonde.plan.prune import impossible
from sonde.plan.search import fewest
from sonde.plan.sweep import Sweep
from sonde.sim.engine import run
from sonde.workload.requests import Requests, requests

MOST = 6


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 60), st.integers(1, 70))
def test_fewest_is_the_smallest_that_holds(low: int, high: int, guess: int, first: int) -> None:
    asked: list[int] = []

    def works(n: int) -> bool:
        asked.append(n)
        return n >= first

    expected = next((n for n in range(low, high + 1) if n >= first), None)
    assert fewest(works, low, high, guess).replicas == expected
    assert len(asked) == len(set(asked))
    assert all(low <= n <= high for n in asked)


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 20))
def test_fewest_holds_and_one_less_does_not_where_more_may_hurt(held: list[bool], guess: int) -> None:
    found = fewest(lambda n: held[n - 1], 1, len(held), guess).replicas
    if found is not None:
        assert held[found - 1]
        assert found == 1 or not held[found - 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_frontier_is_what_nothing_beats(points: list[tuple[float, ...]]) -> None:
    for point, kept in zip(points, on_frontier(points), strict=True):
        beaten = any(
            all(a <= b for a, b in zip(other, point, strict=True))
            and any(a < b for a, b in zip(other, point, strict=True))
            for other in points
        )
        assert kept is not beaten


@dataclass
class Case:
    """A small question: a trace, what must hold, and a few engines."""

    trace: Requests
    goals: tuple[Objective, ...]
    candidates: list[Candidate]


def draw_case(seed: int, engines: int = 3) -> Case:
    """A case near the edge: limits are a little above what one request alone takes."""
    rng = np.random.default_rng(seed)
    trace = draw_trace(rng, 80, rate=float(rng.choice([20, 80, 300])))
    drawn = [
        draw_engine(rng, batching=str(rng.choice(["chunked", "prefill-first", "iteration", "static"])))
        for _ in range(engines)
    ]
    quantile = float(rng.choice([0.5, 0.9, 0.99]))
    goals = [Objective("ttft", quantile, float(rng.uniform(0.02, 0.4)))]
    if rng.random() < 0.7:
        goals.append(Objective("tpot", float(rng.choice([0.9, 0.99])), float(rng.uniform(0.005, 0.04))))
    if rng.random() < 0.3:
        goals.append(Objective("e2e", 0.9, float(rng.uniform(0.2, 1.0))))
    return Case(trace, tuple(goals), [candidate(engine, i) for i, engine in enumerate(drawn)])


def candidate(engine: Engine, number: int) -> Candidate:
    row = device("h100-sxm")
    hardware = Hardware(row, MOST, engine.usd_per_hour, "on-demand", False)
    replica = Replica(model="llama-3.1-8b", device=row.name, pipeline_parallel=number + 1)
    return Candidate(hardware, replica, "least-outstanding", engine, MOST, f"engine {number}")


def simulate(case: Case, *fleet: tuple[Engine, int], stop_early: bool = False) -> Outcome:
    return run(case.trace, fleet, until_missed=case.goals if stop_early else ())


def needed(case: Case, engine: Engine) -> int | None:
    """The twin: try every number, run each to its end."""
    return next((n for n in range(1, MOST + 1) if holds(simulate(case, (engine, n)), case.goals)), None)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_bounds_are_never_above_what_the_simulator_needs(seed: int) -> None:
    case = draw_case(seed, engines=2)
    if seed % 2:  # clients that wait for more than the engine keep fewer limits: a bound without them stays one
        waits = Client(*np.random.default_rng(seed).uniform(0, (0.05, 1e-4, 2.0, 2.0)))
        case.candidates = [candidate(item.engine._replace(client=waits), i) for i, item in enumerate(case.candidates)]
    for item in case.candidates:
        found = needed(case, item.engine)
        if found is not None:
            assert impossible(item.engine, case.trace, case.goals) is None
            for any_batching in (False, True):
                assert replicas_needed(item.engine, case.trace, case.goals, any_batching=any_batching)[0] <= found
    a, b = (item.engine for item in case.candidates)
    least = dollars_needed([Kind(a, "a", 100), Kind(b, "b", 100)], case.trace, case.goals).usd_per_hour
    for i, j in itertools.product(range(4), range(4)):
        cost = i * a.usd_per_hour + j * b.usd_per_hour
        fleet = [(engine, n) for engine, n in ((a, i), (b, j)) if n]
        if fleet and cost < least:
            assert not holds(simulate(case, *fleet), case.goals)


def test_the_bounds_of_those_cases_are_not_idle() -> None:
    """The property above would hold for a bound of one replica; these bounds say more than that."""
    ratios, proofs = [], 0
    for seed in range(60):
        case = draw_case(seed, engines=1)
        engine = case.candidates[0].engine
        found = needed(case, engine)
        proofs += found is None and impossible(engine, case.trace, case.goals) is not None
        if found is not None and found > 1:
            ratios.append(replicas_needed(engine, case.trace, case.goals)[0] / found)
    assert len(ratios) >= 10
    assert max(ratios) > 0.6
    assert float(np.mean(ratios)) > 0.25
    assert proofs >= 3


@pytest.mark.parametrize("seed", range(4))
def test_a_bound_is_close_where_load_is_steady(seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine, n = draw_engine(rng), 3000
    engine = engine._replace(memory=engine.memory._replace(capacity_bytes=10**6))
    trace = requests(np.arange(n) / 400, rng.integers(1, 60, n), rng.integers(1, 30, n))
    goals = (Objective("ttft", 0.9, 1.0), Objective("e2e", 0.9, 1.5))
    low = replicas_needed(engine, trace, goals)[0]
    found = fewest(lambda k: holds(run(trace, [(engine, k)]), goals), 1, 400, low).replicas
    assert found is not None
    assert low >= 3
    assert 0.6 * found <= low <= found


@given(st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_a_sweep_finds_what_trying_everything_finds(seed: int) -> None:
    case = draw_case(seed)

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        return simulate(case, *((item.engine, n) for item, n in fleet), stop_early=stop_early)

    sweep = Sweep(case.trace, case.goals, evaluate)
    assert sweep.run(case.candidates, threads=2) is False
    found = {item.fleet[0][0].label: item.fleet[0][1] for item in sweep.found}
    for item in case.candidates:
        n = found.get(item.label)
        held = [k for k in range(1, MOST + 1) if holds(simulate(case, (item.engine, k)), case.goals)]
        monotone = held == list(range(min(held, default=MOST + 1), MOST + 1))
        if monotone:
            assert n == min(held, default=None)
        if n is None:
            assert MOST not in held
            assert any(item.label in rejection.label for rejection in sweep.rejected)
        else:
            assert n in held
            assert n - 1 not in held
    assert len(sweep.found) + len(sweep.rejected) == len(case.candidates) == sweep.done


def test_stopping_keeps_what_was_found() -> None:
    case = draw_case(4)
    seen: list[int] = []

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        return simulate(case, *((item.engine, n) for item, n in fleet), stop_early=stop_early)

    def stop(done: int, total: int, text: str) -> None:
        seen.append(done)
        assert total == 3
        assert "simulations" in text
        if done:
            raise KeyboardInterrupt

    sweep = Sweep(case.trace, case.goals, evaluate)
    assert sweep.run(case.candidates, stop, threads=1) is True
    assert len(sweep.found) + len(sweep.rejected) >= 1


def test_errors_in_a_thread_are_not_swallowed() -> None:
    case = draw_case(7)

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        raise ZeroDivisionError

    loose = (Objective("ttft", 0.99, 100.0),)
    with pytest.raises(ZeroDivisionError):
        Sweep(case.trace, loose, evaluate).run(case.candidates)


def test_outcomes_that_were_not_kept_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonde.plan.sweep._KEPT_BYTES", 1.0)
    case = draw_case(7)
    loose = (Objective("ttft", 0.99, 100.0),)
    runs: list[str] = []

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        runs.append(label(fleet))
        return simulate(case, *((item.engine, n) for item, n in fleet), stop_early=stop_early)

    sweep = Sweep(case.trace, loose, evaluate)
    sweep.run(case.candidates, threads=1)
    assert len(sweep.found) == 3
    before = len(runs)
    for item in sweep.found:
        assert isinstance(item.outcome, Outcome)
        assert item.outcome.summary(loose)["e2e_s"] == item.summary["e2e_s"]
        assert item.outcome.aborted is False
        assert item.outcome.carbon_g == item.summary["carbon_g"]
    assert len(runs) == before + 2


@given(st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_mixing_adds_at_most_one_fleet_that_is_cheaper_and_holds(seed: int) -> None:
    case = draw_case(seed, engines=3)

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        return simulate(case, *((item.engine, n) for item, n in fleet), stop_early=stop_early)

    sweep = Sweep(case.trace, case.goals, evaluate)
    sweep.run(case.candidates, threads=1)
    alone = {item.label: item.usd_per_hour for item in sweep.found}
    assert mix(sweep) is False
    mixed = [item for item in sweep.found if len(item.fleet) > 1]
    assert len(sweep.found) == len(alone) + len(mixed)
    assert len(mixed) <= 1
    for item in mixed:
        assert item.usd_per_hour == price(item.fleet) < min(alone.values())
        assert holds(simulate(case, *((part.engine, n) for part, n in item.fleet)), case.goals)
        stock = [Kind(part.engine, part.label, MOST) for part in case.candidates]
        assert dollars_needed(stock, case.trace, case.goals).usd_per_hour <= item.usd_per_hour
        tree = deployment(item.fleet)
        assert [pool.replicas for pool in tree.pools] == [n for _, n in item.fleet]
        assert len({pool.name for pool in tree.pools}) == 2


def test_a_mix_is_found_where_one_kind_rounds_up() -> None:
    """B is three quarters as fast as A for 0.7 of its price: where two A or three B are needed, one of each may do."""
    rng = np.random.default_rng(0)
    quick = draw_engine(rng)
    quick = quick._replace(usd_per_hour=1.0, memory=quick.memory._replace(capacity_bytes=10**6))
    time = quick.table.time
    late = time._replace(**{name: getattr(time, name) / 0.75 for name in time._fields})
    slow = quick._replace(usd_per_hour=0.7, table=quick.table._replace(time=late))
    mixed = []
    for rate in range(200, 500, 20):
        n = 600
        trace = requests(np.arange(n) / rate, rng.integers(1, 60, n), rng.integers(1, 30, n))
        goals = (Objective("ttft", 0.9, 0.5), Objective("e2e", 0.9, 1.0))
        case = Case(trace, goals, [candidate(quick, 0), candidate(slow, 1)])

        def evaluate(fleet: Fleet, stop_early: bool, case: Case = case) -> Outcome:
            return simulate(case, *((item.engine, n) for item, n in fleet), stop_early=stop_early)

        sweep = Sweep(trace, goals, evaluate)
        sweep.run(case.candidates, threads=1)
        mix(sweep)
        mixed += [item for item in sweep.found if len(item.fleet) > 1]
    assert mixed


def test_combinations_are_all_that_could_be_cheaper_in_order() -> None:
    case = draw_case(1, engines=3)
    alone = [_Kind(item, n) for item, n in zip(case.candidates, (2, 4, 3), strict=True)]
    best = 3.0 * max(item.engine.usd_per_hour for item in case.candidates)
    seen = list(combinations(alone, best))
    costs = [price(fleet) for fleet in seen]
    assert costs == sorted(costs)
    assert all(cost < best for cost in costs)
    every = 0
    for a, b in itertools.combinations(alone, 2):
        for i, j in itertools.product(range(1, a.replicas), range(1, b.replicas)):
            enough = i / (a.replicas - 1) + j / (b.replicas - 1) > 1
            cheap = price(((a.candidate, i), (b.candidate, j))) < best
            devices = i * a.candidate.replica.devices + j * b.candidate.replica.devices
            every += enough and cheap and devices <= MOST  # they share one stock
    assert len(seen) == every

"""Intervals: the same run as fast and as slow as measurements allow."""

from __future__ import annotations

import pickle

import drawn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sonde
from sonde.catalogue.devices import device
from sonde.catalogue.engines import spread
from sonde.catalogue.power import spread as power_spread
from sonde.cost.ends import drawn as joules_at
from sonde.cost.ends import late, stretch, stretched
from sonde.cost.table import Client, Doubt
from sonde.errors import CannotError
from sonde.metrics import LEVEL, METRICS, UNCERTAIN, Objective
from sonde.plan.explain import holds
from sonde.sim.ends import run_at
from sonde.sim.engine import run
from sonde.sim.simulate import fleet
from sonde.workload.requests import requests

POLICIES = ("chunked", "prefill-first")
POOL = {"replica": {"model": "llama-3.1-8b", "device": "h100-sxm"}}
DEPLOYMENT = {"sites": [{"pools": [POOL], "usd_per_kwh": 0.1}]}
DOUBTS = st.builds(
    Doubt, st.floats(0.3, 1.0), st.floats(1.0, 3.0), st.floats(0.3, 1.0), st.floats(1.0, 3.0), st.floats(0.3, 1.0),
    st.floats(1.0, 3.0),
)  # fmt: skip


def closed(clients: int = 8, count: int = 80):
    """Equal requests: prompts and outputs as every client sends them."""
    return sonde.simulate(DEPLOYMENT, requests(np.zeros(count), np.full(count, 500), np.full(count, 40)),
                          clients=clients)  # fmt: skip


def test_in_a_closed_loop_an_interval_is_the_prediction_times_its_ends():
    outcome, held = closed(), spread("vllm", "llama-3.1-8b", "h100-sxm")
    for metric, low, high in (("ttft", held.ttft_low, held.ttft_high), ("tpot", held.tpot_low, held.tpot_high)):
        for q in (0.5, 0.9, 0.99):
            value = outcome.quantile(metric, q)
            assert outcome.interval(metric, q) == pytest.approx((low * value, high * value), rel=1e-9)


def test_cost_per_token_is_certain_until_the_fleet_is_full():
    full = closed()
    low, high = full.intervals()["usd_per_million_tokens"]
    held = spread("vllm", "llama-3.1-8b", "h100-sxm")
    assert low / full.summary()["usd_per_million_tokens"] == pytest.approx(held.tpot_low, rel=0.1)
    assert high / full.summary()["usd_per_million_tokens"] == pytest.approx(held.tpot_high, rel=0.1)
    free = {"sites": [{"pools": [POOL]}]}  # of power, whose price is in the devices' own
    spare = sonde.simulate(free, requests(np.arange(600) * 2.0, np.full(600, 500), np.full(600, 40)))
    low, high = spare.intervals()["usd_per_million_tokens"]
    assert high / low < 1.001  # the last answer takes longer, of 20 minutes


def test_a_queue_grows_by_more_than_the_steps_do():
    """Near saturation a longer step is more than a longer wait: the interval is simulated, not multiplied."""
    engine = fleet(sonde.load(DEPLOYMENT))[0][0]._replace(doubt=Doubt(tpot_high=1.3), max_batch=1, client=Client())
    every = run(requests([0.0], [300], [20]), [(engine, 1)]).e2e_s[0]
    ratio = []
    for load in (0.01, 0.9):
        trace = requests(np.arange(400) * every / load, np.full(400, 300), np.full(400, 20))
        plain, slow = run(trace, [(engine, 1)]), run_at(trace, [(engine, 1)], slow=True)
        ratio.append(slow.quantile("ttft", 0.9) / plain.quantile("ttft", 0.9))
    assert ratio[0] == pytest.approx(1.3, rel=1e-6)
    assert ratio[1] > 2.0


@settings(max_examples=40, deadline=None)
@given(drawn.engines(POLICIES), drawn.workloads(), DOUBTS, st.booleans(), st.integers(1, 3))
def test_a_burst_is_the_same_run_stretched(engine, trace, doubt, slow, clients):
    """Where nothing depends on the clock, both ends are the run itself, all times multiplied."""
    engine = engine._replace(doubt=doubt, client=Client(0.5, 0.25, 2.0, 3.0))
    engine = engine._replace(memory=engine.memory._replace(swap_bytes_per_s=1e18))
    plain, there = run(trace, [(engine, 1)], clients=clients), run_at(trace, [(engine, 1)], slow=slow, clients=clients)
    factor = stretch(engine, slow=slow)
    assert there.tpot_s == pytest.approx(factor * plain.tpot_s, rel=1e-6, abs=1e-9, nan_ok=True)
    more = late(engine, slow=slow)
    assert there.ttft_s == pytest.approx(factor * more * plain.ttft_s, rel=1e-6, abs=1e-9, nan_ok=True)
    assert np.array_equal(there.replica, plain.replica)


@settings(max_examples=40, deadline=None)
@given(drawn.engines(POLICIES), drawn.workloads(), DOUBTS, st.booleans(), st.floats(0.001, 2.0))
def test_stopping_early_at_an_end_never_changes_the_verdict(engine, trace, doubt, slow, limit):
    goals = (Objective("ttft", 0.5, limit), Objective("e2e", 0.9, 2 * limit), Objective("tpot", 0.9, limit / 8))
    fleet = [(engine._replace(doubt=doubt), 1)]
    early = run_at(trace, fleet, slow=slow, until_missed=goals)
    assert holds(early, goals) == holds(run_at(trace, fleet, slow=slow), goals)


@given(DOUBTS, st.booleans())
def test_errors_of_power_and_of_time_add_up_in_squares(doubt, slow):
    engine = fleet(sonde.load(DEPLOYMENT))[0][0]._replace(doubt=doubt)
    alone = (doubt.energy_high if slow else doubt.energy_low), stretch(engine, slow=slow)
    found = np.log(joules_at(engine, slow=slow))
    assert found**2 == pytest.approx(np.log(alone[0]) ** 2 + np.log(alone[1]) ** 2, abs=1e-12)
    assert (found >= 0) == slow or found == 0
    assert stretched(engine, slow=slow).table.energy is engine.table.energy


def test_a_replica_doubts_as_its_engine_model_and_device_say():
    doubt = fleet(sonde.load(DEPLOYMENT))[0][0].doubt
    assert doubt == Doubt(*spread("vllm", "llama-3.1-8b", "h100-sxm"), *power_spread(device("h100-sxm")))
    other = fleet(sonde.load({"sites": [{"pools": [{"replica": POOL["replica"] | {"engine": "sglang"}}]}]}))[0][0].doubt
    assert other[:4] == spread("sglang", "llama-3.1-8b", "h100-sxm")


def test_every_uncertain_figure_lies_within_its_interval():
    outcome = closed()
    found, summary = outcome.intervals(), outcome.summary()
    assert found.pop("level") == LEVEL
    assert tuple(found) == (*(f"{metric}_s" for metric in METRICS), *UNCERTAIN)
    for key, ends in found.items():
        pairs = ends.items() if isinstance(ends, dict) else [("", ends)]
        for name, (low, high) in pairs:
            assert low <= (summary[key][name] if name else summary[key]) <= high
    assert found["joules_per_token"][0] < summary["joules_per_token"] < found["joules_per_token"][1]
    assert found["usd"][0] < summary["usd"] < found["usd"][1]


def test_a_run_of_which_nobody_said_how_sure_it_is_has_no_interval():
    engine = fleet(sonde.load(DEPLOYMENT))[0][0]
    with pytest.raises(CannotError, match="no interval"):
        run(requests([0.0], [8], [4]), [(engine, 1)]).interval("ttft", 0.5)


def test_an_outcome_travels_with_its_interval():
    outcome = closed(count=8)
    assert pickle.loads(pickle.dumps(outcome)).interval("tpot", 0.5) == outcome.interval("tpot", 0.5)

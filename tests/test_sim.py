"""The simulator against queueing theory, its own conservation laws, and itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import drawn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.errors import CannotError, InputError
from sonde.metrics import Objective, itl_edges
from sonde.sim.engine import run
from sonde.workload.requests import requests as make_requests

ROOMY = KvMemory(1 << 50, 16, 16, 0, 0, 1e9)


def engine(*, fixed=0.0, per_token=0.0, step=0.0, batch=1, policy="chunked", budget=1 << 40, memory=ROOMY, **more):
    """An engine whose prompts take `per_token` each and whose every step takes `fixed` (+ `step` if it decodes)."""
    zero = np.zeros(batch + 1)
    decode = np.where(np.arange(batch + 1) > 0, step - per_token * np.arange(batch + 1), 0.0)
    time = Coefficients(fixed, np.array([0.0, per_token]), per_token, 0.0, 0.0, decode, zero, zero)
    energy = time._replace(fixed=2.0, linear=np.zeros(2), slope=0.0, decode=zero)
    idle_w = more.pop("idle_w", 1.0)
    return Engine(
        StepTable(time, energy, 0), memory, policy, batch, budget, more.pop("preemption", "recompute"), idle_w, 3.6, 1
    )


def poisson(rate, n, seed):
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_constant_service_is_an_m_d_1_queue(load):
    n = 200_000
    trace = make_requests(poisson(load, n, 1), np.ones(n), np.ones(n))
    wait = run(trace, [(engine(fixed=1.0), 1)]).queueing_s.mean()
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.06)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_exponential_service_is_an_m_m_1_queue(load):
    n, scale = 200_000, 1_000_000
    prompt = 1 + np.random.default_rng(2).exponential(scale, n).astype(np.int64)
    trace = make_requests(poisson(load, n, 3), prompt, np.ones(n))
    outcome = run(trace, [(engine(per_token=1 / scale), 1)])
    assert outcome.queueing_s.mean() == pytest.approx(load / (1 - load), rel=0.08)
    assert (outcome.e2e_s > 3.0).mean() == pytest.approx(np.exp(-3 * (1 - load)), rel=0.08)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.8), (8, 0.8), (8, 0.95)])
def test_a_batch_of_places_is_an_m_m_c_queue(servers, load):
    n, mean = 100_000, 2000  # a decode step is 1/2000 of a service, so places are freed almost continuously
    output = 1 + np.random.default_rng(4).exponential(mean, n).astype(np.int64)
    trace = make_requests(poisson(load * servers, n, 5), np.ones(n), output)
    outcome = run(trace, [(engine(step=1 / mean, batch=servers), 1)])
    offered = load * servers
    terms = np.cumprod([1.0, *(offered / k for k in range(1, servers + 1))])
    queued = terms[servers] / (1 - load)
    erlang_c = queued / (terms[:servers].sum() + queued)
    wait = outcome.queueing_s
    assert wait.mean() == pytest.approx(erlang_c / (servers * (1 - load)), rel=0.1)


def test_a_lone_request_takes_what_the_table_says():
    zero, one = np.zeros(5), np.arange(5) == 1
    linear = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    time = Coefficients(0.125, linear, 0.5, 0.0625, 0.0, 0.5 * one, 0.03125 * one, zero)
    lone = Engine(StepTable(time, time, 0), ROOMY, "chunked", 4, 4, "recompute", 0.0, 1.0, 1)
    outcome = run(make_requests([10.0], [6], [3]), [(lone, 1)])
    chunks = [0.125 + 1.0 + 0.0625 * 4 * 2, 0.125 + 0.5 + 0.0625 * 2 * (4 + 1)]
    decodes = [0.125 + 0.25 + 0.5 + 0.03125 * read for read in (7, 8)]
    assert outcome.first_token_s[0] == 10.0 + sum(chunks)
    assert outcome.finish_s[0] == 10.0 + sum(chunks) + sum(decodes)
    assert outcome.tpot_s[0] == sum(decodes) / 2
    assert outcome.steps[0] == 4
    assert outcome.energy_j[0] == pytest.approx(sum(chunks) + sum(decodes))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_goes_in_comes_out(data):
    requests = data.draw(drawn.workloads(most=30))
    engine_ = data.draw(drawn.engines(("static", "iteration", "prefill-first", "chunked")))
    outcome = run(requests, [(engine_, 2)])
    served = outcome.replica >= 0
    assert np.isfinite(outcome.finish_s[served]).all()
    assert np.isnan(outcome.finish_s[~served]).all()
    assert (outcome.scheduled_s >= outcome.arrival_s)[served].all()
    assert (outcome.first_token_s > outcome.scheduled_s)[served].all()
    assert (outcome.finish_s >= outcome.first_token_s)[served].all()
    assert outcome.itl_counts.sum() == (requests.output_tokens[served] - 1).sum()
    assert (outcome.peak_kv_bytes <= outcome.kv_capacity_bytes).all()
    assert (outcome.peak_kv_bytes >= 0).all()
    line, width = outcome.timeline, outcome.timeline.width_s
    assert line.busy_s.sum() == pytest.approx(outcome.busy_s.sum())
    assert (line.waiting * width).sum() == pytest.approx(np.nansum(outcome.queueing_s))
    assert (line.kv_bytes >= 0).all()
    assert line.kv_bytes.max() <= outcome.kv_capacity_bytes.sum()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    trace = make_requests(poisson(2.0, 2000, 6), np.full(2000, 20), np.full(2000, 20))
    fleet = [(engine(fixed=0.01, per_token=1e-3, step=0.02, batch=8), 4)]
    one, same, other = (run(trace, fleet, routing="random", seed=seed) for seed in (7, 7, 8))
    for a, b in zip(one.columns().values(), same.columns().values(), strict=True):
        assert a.tobytes() == b.tobytes()
    assert one.itl_counts.tobytes() == same.itl_counts.tobytes()
    assert (one.replica != other.replica).any()


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_stopping_early_never_changes_the_answer(data):
    requests = data.draw(drawn.workloads(most=30))
    engine_ = data.draw(drawn.engines(("static", "prefill-first", "chunked")))
    whole = run(requests, [(engine_, 1)])
    metric, q = data.draw(st.sampled_from(["ttft", "tpot", "e2e"])), data.draw(st.sampled_from([0.3, 0.5, 0.9, 0.99]))
    reached = whole.quantile(metric, q)
    factor = data.draw(st.sampled_from([0.5, 0.999, 1.0, 1.001]))
    goal = Objective(metric, q, reached * factor if np.isfinite(reached) else 100.0)
    early = run(requests, [(engine_, 1)], until_missed=[goal])
    assert early.aborted == (reached > goal.limit_s)


def test_memory_that_fills_preempts_and_still_serves_everyone():
    trace = make_requests(np.arange(40) * 0.01, np.full(40, 30), np.full(40, 100))
    for preemption in ("recompute", "swap"):
        tight = engine(step=0.01, batch=16, memory=KvMemory(60 * 16, 16, 16, 0, 0, 1e3), preemption=preemption)
        outcome = run(trace, [(tight, 1)])
        assert outcome.preemptions.sum() > 10
        assert outcome.completed == 40
        assert outcome.peak_kv_bytes[0] <= 60 * 16


def test_a_request_that_fits_nowhere_is_refused_and_counted():
    small = engine(step=0.01, batch=4, memory=KvMemory(10 * 16, 16, 16, 0, 0, 1e9))
    outcome = run(make_requests([0.0, 1.0], [100, 100], [10, 100]), [(small, 1)])
    assert outcome.replica.tolist() == [0, -1]
    assert outcome.completed == 1
    assert outcome.quantile("e2e", 0.99) == np.inf
    assert outcome.summary()["refused"] == 1


def test_urgent_requests_go_first():
    n = 200
    trace = make_requests(np.zeros(n), np.full(n, 10), np.full(n, 10), priority=np.arange(n) % 2)
    outcome = run(trace, [(engine(fixed=0.01, step=0.01, batch=4), 1)])
    assert outcome.scheduled_s[0::2].max() <= outcome.scheduled_s[1::2].min()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"routing": "least"}, "routing.policy"),
        ({"routing": "drawn:nothing_there"}, "routing.policy"),
        ({"routing": "no_such_module:f"}, "routing.policy"),
        ({"routing": "drawn:out_of_range"}, "routing.policy"),
        ({"routing": "drawn:not_numbers"}, "routing.policy"),
        ({"routing": "drawn:constant"}, "routing.policy = 'drawn:constant': must be a function"),
        ({"routing": "drawn:half"}, "routing.policy = 'drawn:half': must return the number of a replica"),
        ({"routing": "drawn:raises"}, "for request 2 raised ValueError: no"),
        ({"routing": "drawn:past_the_end"}, "for request 0 raised IndexError"),
        ({"routing": "drawn:out_of_range"}, "for request 0 returned 1"),
        ({"clients": 0}, "clients"),
    ],
)
def test_what_cannot_be_used_is_named(change, path):
    with pytest.raises(InputError, match=path.replace(".", r"\.")):
        run(make_requests([0.0, 1.0, 2.0], [1, 1, 1], [1, 1, 1]), [(engine(fixed=1.0), 1)], **change)


def test_a_batching_policy_that_serves_nobody_is_an_error():
    with pytest.raises(InputError, match="never be served"):
        run(make_requests([0.0], [1], [1]), [(engine(fixed=1.0, policy="drawn:lazy"), 1)])
    with pytest.raises(InputError, match="raised ZeroDivisionError"):
        run(make_requests([0.0], [1], [1]), [(engine(fixed=1.0, policy="drawn:raises_step"), 1)])


def test_no_replica_and_odd_priorities_are_errors():
    trace = make_requests([0.0], [1], [1])
    with pytest.raises(InputError, match="at least 1 replica"):
        run(trace, [])
    with pytest.raises(InputError, match="priority"):
        run(trace._replace(priority=np.array([9], np.int8)), [(engine(fixed=1.0), 1)])


def test_gaps_are_binned_where_the_edges_say():
    from sonde.sim.record import bin_end, itl_bin

    edges = itl_edges()
    plain_bin, plain_end = getattr(itl_bin, "py_func", itl_bin), getattr(bin_end, "py_func", bin_end)
    for at in (0, 1, 63, 64, 700, 2046):
        assert plain_bin(edges[at]) == at
        assert plain_bin(np.nextafter(edges[at + 1], 0)) == at
        assert plain_end(at) == edges[at + 1]


def test_without_the_jit_the_twin_still_agrees():
    """The kernels are plain Python too: a run with the JIT off passes on small cases."""
    names = ["equals_stepping_one_by_one", "equals_stepping_in_a_closed_loop"]
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider",
         str(here / "test_sim_twin.py"), "-k", " or ".join(names)],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "SONDE_TWIN_EXAMPLES": "4"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 9


def test_a_library_that_is_missing_is_named(monkeypatch):
    outcome = run(make_requests([0.0], [1], [1]), [(engine(fixed=1.0), 1)])
    assert len(outcome.to_pandas()) == len(outcome.to_polars()) == 1
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CannotError, match="pip install pandas"):
        outcome.to_pandas()

"""The jumping simulator against the naive stepper, to the last bit."""

from __future__ import annotations

import os

import drawn
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from reference import Stepper

from sonde.policies import routing
from sonde.sim.engine import run

#: fewer where the JIT is off, since every step is then interpreted
EXAMPLES = int(os.environ.get("SONDE_TWIN_EXAMPLES", "0"))
OWN_BATCHING, OWN_ROUTING = "drawn:patient", "drawn:shortest_queue"
BATCHING = ("static", "iteration", "prefill-first", "chunked", "inflight", "chunks-first", OWN_BATCHING)
ROUTING = (*routing.POLICIES, OWN_ROUTING)


def compare(requests, fleet, policy, clients=None, seed=0):
    function = drawn.shortest_queue if policy == OWN_ROUTING else routing.POLICIES[policy].function
    slow = Stepper(requests, fleet, function, seed).run(clients)
    fast = run(requests, fleet, routing=policy, clients=clients, seed=seed)
    got = {
        "arrival": fast.arrival_s, "replica": fast.replica, "scheduled": fast.scheduled_s,
        "first": fast.first_token_s, "finish": fast.finish_s, "preemptions": fast.preemptions,
    }  # fmt: skip
    for name, column in got.items():
        np.testing.assert_array_equal(column, [getattr(s, name) for s in slow.sequences], err_msg=name)
    for name, column in (("steps", fast.steps), ("busy", fast.busy_s), ("peak", fast.peak_kv_bytes)):
        np.testing.assert_array_equal(column, [getattr(r, name) for r in slow.replicas], err_msg=name)
    span = np.nanmax(fast.finish_s) - fast.arrival_s.min() if fast.completed else 0.0
    idle = [(r.engine.idle_w * max(span - r.busy, 0.0)) for r in slow.replicas]
    np.testing.assert_allclose(fast.energy_j, [r.energy for r in slow.replicas] + np.array(idle), rtol=1e-12)
    np.testing.assert_array_equal(fast.itl_counts, slow.itl_counts())
    return fast


@pytest.mark.parametrize("policy", BATCHING)
@settings(max_examples=EXAMPLES or 150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_equals_stepping_one_by_one(policy, data):
    requests = data.draw(drawn.workloads())
    engine = data.draw(drawn.engines((policy,)))
    compare(requests, [(engine, data.draw(st.integers(1, 3)))], "least-outstanding")


@pytest.mark.parametrize("policy", ROUTING)
@settings(max_examples=EXAMPLES or 60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_equals_stepping_under_every_router_and_mixed_fleets(policy, data):
    requests = data.draw(drawn.workloads())
    fleet = data.draw(st.lists(st.tuples(drawn.engines(BATCHING[:6]), st.integers(1, 2)), min_size=1, max_size=3))
    compare(requests, fleet, policy, seed=data.draw(st.integers(0, 9)))


@pytest.mark.parametrize("policy", BATCHING[:6])
@settings(max_examples=EXAMPLES or 60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_equals_stepping_in_a_closed_loop(policy, data):
    requests = data.draw(drawn.workloads())
    engine = data.draw(drawn.engines((policy,)))
    clients = data.draw(st.integers(1, 6))
    fast = compare(requests, [(engine, data.draw(st.integers(1, 2)))], "least-tokens", clients=clients)
    moments = np.concatenate([fast.arrival_s, fast.finish_s[np.isfinite(fast.finish_s)]])
    for moment in moments:  # never more requests under way than clients
        under_way = (fast.arrival_s <= moment) & (fast.finish_s > moment)
        assert under_way.sum() <= clients


@st.composite
def cases(draw, policy):
    return draw(drawn.workloads()), draw(drawn.engines((policy,)))


def windowed(case, outcome):
    requests, engine = case
    crossed = (requests.prompt_tokens < engine.table.window) & (
        requests.prompt_tokens + requests.output_tokens - 1 > engine.table.window
    )
    return (crossed & np.isfinite(outcome.finish_s)).sum() >= 2 and engine.memory.window_block_bytes > 0


@pytest.mark.parametrize(
    ("policy", "reached"),
    [
        ("chunked", lambda case, out: case[1].preemption == "recompute" and out.preemptions.max() >= 2),
        ("chunked", lambda case, out: case[1].preemption == "swap" and out.preemptions.sum() >= 3),
        ("prefill-first", lambda case, out: case[1].preemption == "swap" and out.preemptions.sum() >= 3),
        ("prefill-first", lambda _, out: out.completed >= 8 and out.steps.max() > 30),
        ("static", windowed),
        ("chunked", windowed),
        ("chunked", lambda case, out: out.preemptions.sum() >= 2 and windowed(case, out)),
        ("chunked", lambda case, out: case[0].prompt_tokens.max() > 4 * case[1].token_budget and out.completed > 3),
    ],
)
def test_drawn_cases_reach_what_is_rare(policy, reached):
    """What the twin is compared on holds preemption, swapping, windows that fill, and prompts of many chunks."""
    find(
        cases(policy),
        lambda case: reached(case, run(case[0], [(case[1], 1)])),
        settings=settings(
            max_examples=3000,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )

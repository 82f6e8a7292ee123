"""Prompts and decoding apart: closed forms of the hand-over, the technique, and the search for replicas of both."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.devices import device
from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.deployment.tree import Deployment, Pool, Replica, Site
from sonde.errors import InputError
from sonde.metrics import Objective
from sonde.plan.disaggregate import (
    Goal,
    Option,
    decodes,
    devices,
    goodput,
    holds_at,
    most_rate,
    prefills,
    rate_of,
    split,
    whole,
)
from sonde.sim.engine import run
from sonde.sim.network import LinkSpec, Paths
from sonde.sim.simulate import simulate
from sonde.techniques.compose import arranged, chosen
from sonde.workload.requests import requests

BLOCK, BLOCK_BYTES, LAYERS = 16, 16_000, 8


def engine(ranks=1, policy="prefill-first", weights_s=0.02, token_s=1e-4, budget=2048, blocks=4000):
    """Return a replica: reading weights takes 20 ms, a token 0.1 ms, both less on more ranks."""
    n = np.arange(4097)
    linear = np.where(n > 0, (weights_s + token_s * n) / ranks**0.8, 0.0)
    batch = np.zeros(257)
    time = Coefficients(0.0, linear, token_s / ranks**0.8, 1e-8, 0.0, batch, np.full(257, 5e-7 / ranks**0.8), batch)
    none = Coefficients(0.0, np.zeros(2), 0.0, 0.0, 0.0, np.zeros(257), np.zeros(257), np.zeros(257))
    memory = KvMemory(blocks * ranks * BLOCK_BYTES, BLOCK, BLOCK_BYTES, 0, 0, 1e12)
    return Engine(StepTable(time, none, 0), memory, policy, 256, budget, "recompute", 0.0, 2.0 * ranks, ranks)


def prompt_s(made, tokens):
    time = made.table.time
    return time.linear[tokens] + time.prefill * tokens * tokens / 2


def decode_s(made, context, count):
    """Return the seconds of `count` steps of one sequence, the first of which reads `context` tokens."""
    time = made.table.time
    return sum(time.linear[1] + time.read[1] * (context + k) for k in range(count))


def traffic(seed, n=1500, prompt=400, output=60):
    draws = np.random.default_rng(seed)
    lengths = (np.maximum(draws.poisson(mean, n), 1) for mean in (prompt, output))
    return requests(np.cumsum(draws.exponential(size=n)), *lengths)


GOAL = Goal((Objective("ttft", 0.9, 0.25), Objective("tpot", 0.9, 0.04)), 0.9)
FAST = LinkSpec(1e12, 1e-5, 16, "source")
SLOW = LinkSpec(20e6, 1e-3, 16, "source")


# --- the hand-over of one cache


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(2, 40), st.floats(1e4, 1e12), st.floats(0, 0.5), st.sampled_from([0, LAYERS]))
def test_a_lone_request_decodes_when_its_cache_has_come(prompt, output, bandwidth, latency, layers):
    first, second = engine(), engine(2)
    paths = Paths(hand_over=LinkSpec(bandwidth, latency), layers=layers)
    found = run(requests([0.0], [prompt], [output]), whole(first, 1, second, 1, paths))
    done, size = prompt_s(first, prompt), BLOCK_BYTES * math.ceil(prompt / BLOCK)
    left = max(size / layers, size - bandwidth * done) if layers else size
    landed = done + left / bandwidth + latency
    assert found.first_token_s[0] == pytest.approx(done)
    assert found.travel.landed_s[0] == pytest.approx(landed)
    assert found.finish_s[0] == pytest.approx(landed + decode_s(second, prompt + 1, output - 1))
    assert (found.travel.source[0], found.replica[0]) == (0, 1)


def test_at_infinite_bandwidth_a_lone_request_is_served_as_by_one_replica():
    made, asked = engine(), requests([0.0, 100.0], [700, 3000], [30, 5])
    apart = run(asked, whole(made, 1, made, 1, Paths(hand_over=LinkSpec(1e30))))
    together = run(asked, [(made, 1)])
    assert np.allclose(apart.finish_s, together.finish_s, rtol=1e-12)
    assert np.allclose(apart.first_token_s, together.first_token_s, rtol=1e-12)


def test_caches_that_leave_together_share_the_link():
    made, asked = engine(), requests([0.0, 0.0], [800, 800], [2, 2])
    size, done = BLOCK_BYTES * 50, prompt_s(made, 800)
    for scope, sharing in (("shared", 2), ("source", 1)):
        link = LinkSpec(1e6, 0.0, 16, scope)
        found = run(asked, whole(made, 2, made, 1, Paths(hand_over=link)), routing="round-robin")
        assert found.travel.landed_s == pytest.approx([done + sharing * size / 1e6] * 2)
    one = run(asked, whole(made, 2, made, 1, Paths(hand_over=LinkSpec(1e6, 0.0, 1))), routing="round-robin")
    assert sorted(one.travel.landed_s) == pytest.approx([done + size / 1e6, done + 2 * size / 1e6])


def test_prompts_do_not_stall_those_who_read():
    """A reader's tokens come at the pace of its own steps, whatever prompts arrive; on one replica they do not."""
    made = engine()
    asked = requests([0.0, *np.linspace(0.5, 1.0, 8)], [100] + [3000] * 8, [60] + [1] * 8)
    apart = run(asked, whole(made, 1, made, 1, Paths(hand_over=LinkSpec(1e30))))
    together = run(asked, [(made, 1)])
    alone = decode_s(made, 101, 59) / 59
    assert apart.tpot_s[0] == pytest.approx(alone)
    assert together.tpot_s[0] > alone + 0.9 * 8 * prompt_s(made, 3000) / 59 * 0.5


# --- the technique


def deployed(*techniques, replicas=1, **replica):
    replica = {"model": "llama-3.1-8b", "device": "h100-sxm"} | replica
    pool = Pool(replica=Replica.model_validate(replica), replicas=replicas)
    return Deployment(sites=(Site(pools=(pool,)),), techniques=techniques)


def test_stages_differ_where_they_are_said_to():
    stages = {"prefill": {"policy": "prefill-first", "token_budget": 512}, "decode": {"tensor_parallel": 2}}
    tree = arranged(deployed({"disaggregation": {"prefill": 2, "decode": 3, "stages": stages}}))
    one, two = tree.pools
    assert (one.name, one.replicas, two.name, two.replicas) == ("prefill", 2, "decode", 3)
    assert (one.replica.batching.policy, one.replica.batching.token_budget, one.replica.tensor_parallel) == (
        "prefill-first", 512, 1,
    )  # fmt: skip
    assert two.replica == deployed(tensor_parallel=2).pools[0].replica
    assert tree.path.visits == ("prefill", "hand-over", "decode")


@pytest.mark.parametrize(
    ("given", "ranks", "inside"),
    [
        ({"prefill": 2, "decode": 6}, 1, True),
        ({"prefill": 3, "decode": 6}, 1, False),
        ({"prefill": 1, "decode": 1}, 4, True),
        ({"prefill": 1, "decode": 1}, 8, False),
        ({"prefill": 1, "decode": 2, "stages": {"decode": {"tensor_parallel": 2}}}, 1, True),
    ],
)
def test_the_link_is_that_of_the_node_where_both_pools_fit_one(given, ranks, inside):
    there = device("h100-sxm")
    link = arranged(deployed({"disaggregation": given}, tensor_parallel=ranks)).links["hand-over"]
    wire = there.node if inside else there.fabric
    assert link.bandwidth == pytest.approx(wire.bandwidth * ranks)
    assert link.latency == wire.latency_s
    assert link.per == "source"


def test_a_link_that_is_given_is_taken_as_it_is():
    use = {"disaggregation": {"bandwidth": "10 GB/s", "latency": "1 ms"}}
    link = arranged(deployed(use, tensor_parallel=2)).links["hand-over"]
    assert (link.bandwidth, link.latency) == (10e9, 1e-3)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"prefill": 0}, "techniques[0].disaggregation.prefill"),
        ({"bandwidth": "0 GB/s"}, "techniques[0].disaggregation.bandwidth"),
        ({"stages": {"other": {}}}, "techniques[0].disaggregation.stages.other"),
        ({"stages": {"decode": {"tensor_parallel": 0}}}, "techniques[0].disaggregation.stages.decode.tensor_parallel"),
        ({"stages": {"decode": {"batch": 2}}}, "techniques[0].disaggregation.stages.decode.batch"),
    ],
)
def test_it_refuses_what_can_not_be(given, path):
    with pytest.raises(InputError) as caught:
        chosen(({"disaggregation": given},))
    assert caught.value.path == path


def test_it_refuses_what_it_can_not_split():
    pools = tuple(pool.model_copy(update={"name": name}) for pool in deployed().pools for name in "ab")
    two = Deployment(sites=(Site(pools=pools),), techniques=("disaggregation",))
    with pytest.raises(InputError, match="one pool to split"):
        arranged(two)
    asked = requests([0.0], [100], [10])
    with pytest.raises(InputError, match="admit by prompts"):
        simulate(deployed("disaggregation", batching={"policy": "static"}), asked)


def test_techniques_act_on_the_stage_that_they_name():
    use = {"chunked-prefill": {"pools": ["decode"], "token_budget": 64}}
    one, two = arranged(deployed("disaggregation", use)).pools
    assert (one.replica.batching.token_budget, two.replica.batching.token_budget) == (2048, 64)


# --- the search


def test_a_rate_is_where_the_goal_begins_to_fail():
    asked = traffic(0)
    for policy in ("prefill-first", "chunked"):
        fleet = [(engine(policy=policy), 2)]
        rate = most_rate(asked, GOAL, fleet)
        assert holds_at(asked, GOAL, fleet, rate)
        assert not holds_at(asked, GOAL, fleet, rate * 1.021)
        assert most_rate(asked, GOAL, fleet, rate * 100) == pytest.approx(rate, rel=0.04)
        assert most_rate(asked, GOAL, fleet, rate / 100) == pytest.approx(rate, rel=0.04)


def test_no_rate_holds_what_a_lone_request_misses_and_any_rate_what_is_not_asked():
    fleet = [(engine(), 1)]
    assert most_rate(traffic(0), Goal((Objective("ttft", 0.5, 1e-3),)), fleet) == 0.0
    assert most_rate(traffic(0), Goal((Objective("ttft", 0.5, 1e6),)), fleet) == math.inf


def test_phases_are_rated_alone():
    """Prompts alone are a queue before one server; what decodes does not see them."""
    asked, options = traffic(1), [Option(engine(ranks), label=str(ranks)) for ranks in (1, 2)]
    first, second = prefills(asked, GOAL, options), decodes(asked, GOAL, options)
    assert [phase.option.label for phase in (*first, *second)] == ["1", "2", "1", "2"]
    for phase in first:
        assert phase.rate < 1 / prompt_s(phase.option.engine, 400) * 1.2 * 2  # weights are read once for several
    without = decodes(asked._replace(prompt_tokens=asked.prompt_tokens), GOAL.of("tpot"), options)
    assert [phase.rate for phase in without] == [phase.rate for phase in second]
    quick = [phase._replace(option=Option(engine(weights_s=1e-5, token_s=1e-9))) for phase in first[:1]]
    apart = whole(quick[0].option.engine, 1, options[0].engine, 1, Paths(hand_over=LinkSpec(1e30)))
    assert most_rate(asked, GOAL, apart) == pytest.approx(second[0].rate, rel=0.05)


def test_phases_that_can_not_hold_are_left_out():
    slow = Option(engine(weights_s=1.0))
    assert prefills(traffic(0), GOAL, [slow]) == []
    assert decodes(traffic(0), GOAL, [slow]) == []
    assert [p.rate for p in decodes(traffic(0), GOAL.of("ttft"), [slow])] == [math.inf]


@pytest.mark.parametrize("link", [FAST, SLOW])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_is_the_cheapest_of_all_placements(link, seed):
    """Try everything: two kinds of replica for either phase, one to nine of each."""
    asked = traffic(seed, n=600)
    asked = asked._replace(arrival_s=asked.arrival_s / 40)
    options = [Option(engine(ranks), most=9) for ranks in (1, 2)]
    paths = Paths(hand_over=link)
    found = split(asked, GOAL, (prefills(asked, GOAL, options), decodes(asked, GOAL, options)), paths, devices)
    prices = [
        n * a.engine.devices + m * b.engine.devices
        for a, b, n, m in product(options, options, range(1, 10), range(1, 10))
        if GOAL.holds(run(asked, whole(a.engine, n, b.engine, m, paths)))
    ]
    assert found is not None
    assert found.devices == min(prices)
    assert GOAL.holds(found.outcome)
    assert found.rate == pytest.approx(rate_of(asked))
    assert found.usd_per_hour == 2.0 * found.devices


def test_split_says_so_where_nothing_holds():
    asked = traffic(0)
    asked = asked._replace(arrival_s=asked.arrival_s / 1000)
    options = [Option(engine(), most=2)]
    phases = prefills(asked, GOAL, options), decodes(asked, GOAL, options)
    assert split(asked, GOAL, phases, Paths(hand_over=FAST)) is None


def test_a_slow_link_takes_more_replicas_that_send():
    asked = traffic(3)
    asked = asked._replace(arrival_s=asked.arrival_s / 30)
    options = [Option(engine())]
    phases = prefills(asked, GOAL, options), decodes(asked, GOAL, options)
    fast, slow = (
        split(asked, GOAL, phases, Paths(hand_over=link)) for link in (FAST, LinkSpec(4e6, 1e-3, 16, "source"))
    )
    assert slow.prefills > fast.prefills
    assert slow.devices > fast.devices


def test_different_devices_serve_the_phases():
    """The cheaper device for each phase is found, whatever it costs for the other one."""
    asked = traffic(4)
    asked = asked._replace(arrival_s=asked.arrival_s / 20)
    dense = engine(token_s=2e-5)._replace(usd_per_hour=3.0)
    wide = engine(weights_s=0.008, token_s=1e-3)._replace(usd_per_hour=3.0)
    options = [Option(dense, label="dense"), Option(wide, label="wide")]
    found = split(asked, GOAL, (prefills(asked, GOAL, options), decodes(asked, GOAL, options)), Paths(hand_over=FAST))
    assert found.prefill.label == "dense"


@pytest.mark.parametrize("link", [FAST, SLOW])
def test_goodput_is_near_the_best_of_all_placements(link):
    asked, options, paths = traffic(5), [Option(engine(ranks)) for ranks in (1, 2)], Paths(hand_over=link)
    phases = prefills(asked, GOAL, options), decodes(asked, GOAL, options)
    found = goodput(asked, GOAL, phases, paths, 4)
    every = [
        most_rate(asked, GOAL, whole(a.engine, n, b.engine, m, paths))
        for a, b, n, m in product(options, options, range(1, 4), range(1, 4))
        if n * a.engine.devices + m * b.engine.devices <= 4
    ]
    assert found.devices <= 4
    assert found.rate >= max(every) / 1.05
    assert GOAL.holds(found.outcome)


def test_goals_are_joint_or_one_by_one():
    asked = traffic(6)
    found = run(asked, [(engine(), 1)])
    limits = tuple(Objective(m, 0.9, found.quantile(m, 0.9)) for m in ("ttft", "tpot"))
    assert Goal(limits).holds(found)
    assert not Goal(tuple(it._replace(limit_s=0.99 * it.limit_s) for it in limits)).holds(found)
    share = float(found.met(limits).mean())
    assert 0.8 <= share < 0.9
    assert Goal(limits, share).holds(found)
    assert not Goal(limits, share + 0.01).holds(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 1.0), st.floats(0.02, 0.1), st.floats(0.5, 0.99), st.floats(1, 60))
def test_stopping_early_never_changes_the_answer(seed, ttft, tpot, share, rate):
    asked = traffic(seed, n=80)
    asked = asked._replace(
        arrival_s=asked.arrival_s / rate, output_tokens=np.where(np.arange(80) % 3, asked.output_tokens, 1)
    )
    goal = Goal((Objective("ttft", 0.9, ttft), Objective("tpot", 0.9, tpot)), share)
    fleet = whole(engine(), 1, engine(), 1, Paths(hand_over=SLOW))
    assert goal.holds(run(asked, fleet, until_missed=goal.stops(asked))) == goal.holds(run(asked, fleet))

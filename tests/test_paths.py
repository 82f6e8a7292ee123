"""Paths, links, caches and migration as they are written in a deployment: what is refused, and what they come to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.deployment.check import check
from sonde.deployment.load import dump, load
from sonde.errors import InputError
from sonde.sim.engine import run
from sonde.sim.network import CacheSpec, Connected, LinkSpec, MigrationSpec, Paths, TierSpec
from sonde.sim.simulate import simulate
from sonde.workload.requests import requests

EXAMPLE = Path(__file__).parents[1] / "examples" / "disaggregated-70b.yaml"
REPLICA = {"model": "llama-3.1-8b", "device": "h100-sxm"}
POOLS = [{"name": "prefill", "replica": REPLICA}, {"name": "decode", "replica": REPLICA}]
LINKS = {"fabric": {"bandwidth": "25 GB/s"}}
VISITS = ["prefill", "fabric", "decode"]


def tree(pools=POOLS, links=LINKS, **more):
    return {"sites": [{"pools": pools}], "links": links, **more}


def engine(**more):
    """An engine of one token a step of 1 s, prompts of 2 s a token, and one byte a token of cache."""
    zero = np.zeros(9)
    time = Coefficients(0.0, 2.0 * np.arange(9.0), 2.0, 0.0, 0.0, -np.arange(9.0), zero, zero)
    made = Engine(StepTable(time, time, 0), KvMemory(1000, 1, 1, 0, 0, 1.0), "chunked", 8, 8, "recompute", 0.0, 1.0, 1)
    return made._replace(**more)


def test_the_example_is_read_written_and_run():
    deployment = load(EXAMPLE)
    assert load(dump(deployment)) == deployment
    outcome = simulate(deployment, requests(np.arange(20.0), np.full(20, 500), np.full(20, 50)))
    assert outcome.completed == 20
    assert set(outcome.replica) == {2}
    assert set(outcome.travel.source) == {0, 1}


@pytest.mark.parametrize(
    ("more", "path", "says"),
    [
        ({"path": {"visits": ["prefil", "fabric", "decode"]}}, "path.visits[0]", "prefill"),
        ({"path": {"visits": ["prefill", "fabric", "prefill"]}}, "path.visits", "no loops"),
        ({"path": {"visits": ["prefill", "fabrik", "decode"]}}, "path.visits[1]", "fabric"),
        ({"path": {"visits": ["prefill", "decode"]}}, "path.visits[1]", "link"),
        ({"path": {"visits": ["prefill"]}}, "path.visits", "leaves out decode"),
        ({"path": {"visits": ["decode", "fabric", "prefill"]}}, "path.visits", "order"),
        ({"path": {"visits": VISITS}, "links": {}}, "path.visits[1]", "is no link"),
        ({"path": {"visits": VISITS, "routing": "leest-tokens"}}, "path.routing", "least-tokens"),
        ({"cache": {"tiers": [{"name": "device", "capacity": 1}, {"name": "host", "capacity": 1, "link": "x"}]}},
         "cache.tiers[1].link", "fabric"),
        ({"migration": {"link": "fabric", "low": 9, "high": 3}}, "migration.low", "at most"),
        ({"migration": {"link": "wire"}}, "migration.link", "fabric"),
    ],
)  # fmt: skip
def test_what_cannot_be_walked_is_refused(more, path, says):
    with pytest.raises(InputError) as caught:
        check(load(tree(**more)))
    assert caught.value.path == path
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"links": {"fabric": {"latency": "1 ms"}}}, "links.fabric.bandwidth"),
        ({"links": {"fabric": {"bandwidth": "0 GB/s"}}}, "links.fabric.bandwidth"),
        ({"links": {"fabric": {"bandwidth": "25 GB/s", "per": "pair"}}}, "links.fabric.per"),
        ({"cache": {"tiers": []}}, "cache.tiers"),
        ({"cache": {"tiers": [{"name": "a", "capacity": 1}, {"name": "b", "capacity": 1}]}}, "cache.tiers"),
        ({"cache": {"tiers": [{"name": "a", "capacity": 1, "shared": True}]}}, "cache.tiers"),
    ],
)
def test_what_is_not_whole_is_refused(more, path):
    with pytest.raises(InputError) as caught:
        load(tree(**more))
    assert caught.value.path == path


def test_batching_that_holds_memory_for_answers_cannot_hand_over():
    pools = [{"name": pool["name"], "replica": {**REPLICA, "batching": {"policy": "static"}}} for pool in POOLS]
    with pytest.raises(InputError, match=r"batching\.policy"):
        simulate(load(tree(pools, path={"visits": VISITS})), requests([0.0], [9], [9]))


def test_a_lone_request_waits_for_its_cache():
    paths = Paths(prefill=1, hand_over=LinkSpec(bytes_per_s=4.0, latency_s=0.5))
    outcome = run(requests([1.0], [10], [4]), Connected([(engine(), 1), (engine(), 1)], paths))
    assert outcome.first_token_s[0] == 1 + 20
    assert outcome.travel.landed_s[0] == 21 + 10 / 4 + 0.5
    assert outcome.finish_s[0] == 24 + 3
    assert outcome.replica[0] == 1
    assert outcome.travel.source[0] == 0


def test_two_transfers_share_a_link_and_a_third_waits():
    paths = Paths(prefill=1, hand_over=LinkSpec(bytes_per_s=4.0, streams=2))
    whole = engine(token_budget=64)  # three prompts end with one step, of 60 s
    outcome = run(requests([0.0] * 3, [10] * 3, [2] * 3), Connected([(whole, 1), (engine(), 1)], paths))
    assert outcome.travel.landed_s.tolist() == [65.0, 65.0, 67.5]


def test_layers_are_sent_while_the_prompt_is_computed():
    paths = Paths(prefill=1, hand_over=LinkSpec(bytes_per_s=4.0), layers=5)
    outcome = run(requests([0.0], [10], [4]), Connected([(engine(), 1), (engine(), 1)], paths))
    assert outcome.travel.landed_s[0] == 20 + 10 / 5 / 4


def test_no_link_carries_more_than_it_can():
    paths = Paths(prefill=1, hand_over=LinkSpec(bytes_per_s=0.25), layers=5)
    asked = requests(np.arange(12.0), [10] * 12, [2] * 12)
    outcome = run(asked, Connected([(engine(), 4), (engine(), 2)], paths))
    assert outcome.travel.links["bytes"][0] == 120
    assert np.nanmax(outcome.travel.landed_s) >= 120 / 0.25


def test_the_first_token_does_not_wait_for_the_link():
    polls = engine()._replace(client=engine().client._replace(polls=2.0, polls_busy=2.0))
    first = [
        run(requests([0.0], [10], [4]), Connected([(polls, 1), (polls, 1)], Paths(1, LinkSpec(rate)))).first_token_s[0]
        for rate in (1e-3, 1e9)
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-6)


def test_cached_tokens_are_not_computed():
    traffic = requests([0.0, 100.0], [10, 10], [2, 2])._replace(
        block_start=np.array([0, 2, 4]), block_hash=np.array([7, 8, 7, 9]), block_tokens=4
    )
    tiers = (TierSpec(0), TierSpec(100, link=LinkSpec(bytes_per_s=2.0, latency_s=0.25)))
    outcome = run(traffic, Connected([(engine(), 1)], Paths(cache=CacheSpec(tiers))))
    assert outcome.travel.cached_tokens.tolist() == [0, 4]
    assert outcome.ttft_s.tolist() == [20.0, 4 / 2 + 0.25 + 12.0]


def test_a_sequence_moves_to_where_memory_is_and_stands_still_for_its_tail_only():
    small = engine(memory=KvMemory(60, 1, 1, 0, 0, 1.0), max_batch=8)
    link = LinkSpec(bytes_per_s=8.0, latency_s=0.25)
    paths = Paths(migration=MigrationSpec(link, 1.0, low=40.0, high=41.0, tail_tokens=2, copies=9))
    first_only = requests([0.0, 0.0], [8, 8], [30, 30], session=[1, 1])
    outcome = run(first_only, Connected([(small, 2)], paths), routing="session")
    assert outcome.travel.migrations == 1
    assert outcome.completed == 2
    assert sorted(outcome.replica.tolist()) == [0, 1]
    gaps = np.repeat(np.arange(len(outcome.itl_counts)), outcome.itl_counts)
    assert len(gaps) == 58  # nothing is lost

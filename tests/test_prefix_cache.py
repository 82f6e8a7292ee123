"""Prefix caches: closed forms, tiers, which blocks are given up, the technique, and traffic with a stated hit rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.models import model
from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable, coefficients
from sonde.deployment.check import check
from sonde.deployment.load import dump, load, load_scenario
from sonde.deployment.scenario import WorkloadChoice
from sonde.errors import InputError
from sonde.plan.demand import demand
from sonde.policies.caching import BlockView, cost_aware, lru
from sonde.sim.engine import run
from sonde.sim.network import CacheSpec, Connected, LinkSpec, Paths, TierSpec
from sonde.sim.simulate import simulate
from sonde.techniques.compose import arranged
from sonde.workload.generate import generate, poisson
from sonde.workload.prefix import with_hit_rate
from sonde.workload.requests import requests
from sonde.workload.statistics import prefix_hits

BLOCK = 4  # tokens; one byte each
SHARED = Path(__file__).parents[1].parent / "shared" / "data"
MOONCAKE = SHARED / "traces" / "mooncake_conversation.jsonl.gz"
REPLICA = {"model": "llama-3.1-8b", "device": "h100-sxm"}


def engine(pairs=0.0):
    """An engine that computes a prompt in one step: 2 s a token, and `pairs` s for every pair of tokens."""
    zero = np.zeros(65)
    time = Coefficients(0.0, 2.0 * np.arange(65.0), 2.0, pairs, 0.0, -np.arange(65.0), zero, zero)
    memory = KvMemory(10_000, BLOCK, BLOCK, 0, 0, 1.0)
    return Engine(StepTable(time, time, 0), memory, "prefill-first", 64, 256, "recompute", 0.0, 1.0, 1)


def prompts(*blocks, every=1000.0, extra=1):
    """Return one request for each list of blocks, far apart, each with `extra` tokens beside them."""
    counts = [len(one) for one in blocks]
    asked = requests(
        every * np.arange(len(blocks)), [BLOCK * count + extra for count in counts], np.ones(len(blocks), np.int32)
    )
    return asked._replace(
        block_start=np.concatenate(([0], np.cumsum(counts))),
        block_hash=np.concatenate([np.asarray(one, np.int64) for one in blocks]), block_tokens=BLOCK,
    )  # fmt: skip


def cached(asked, *tiers, eviction="lru", replicas=1, routing="least-outstanding", pairs=0.0):
    fleet = Connected([(engine(pairs), replicas)], Paths(cache=CacheSpec(tiers, eviction)))
    return run(asked, fleet, routing=routing)


def device(blocks):
    return TierSpec(blocks * BLOCK, name="device")


# --- closed forms


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4))
def test_lru_finds_nothing_in_a_cycle_one_block_too_long(held, rounds):
    asked = prompts(*[[block] for _ in range(rounds + 1) for block in range(held + 1)])
    assert cached(asked, device(held)).travel.cached_tokens.sum() == 0
    longer = cached(asked, device(held + 1)).travel
    assert longer.cached_tokens.sum() == BLOCK * rounds * (held + 1)
    assert longer.evicted == 0


@pytest.mark.parametrize(("items", "held", "power"), [(500, 50, 1.0), (400, 100, 0.8), (2000, 300, 1.2)])
def test_lru_finds_what_che_says_it_does(items, held, power):
    """Che, Tung and Wang, 2002: an item is found where it was asked for in the last T, in which C others were."""
    popular = 1.0 / np.arange(1, items + 1) ** power
    popular /= popular.sum()
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-popular * middle)).sum() < held else (low, middle)
    expected = float((popular * (1 - np.exp(-popular * high))).sum())
    drawn = np.random.default_rng(0).choice(items, 40_000, p=popular)
    found = cached(prompts(*drawn[:, None]), device(held)).travel.cached_tokens > 0
    assert found[10_000:].mean() == pytest.approx(expected, rel=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.25, 1.5]))
def test_what_is_found_on_the_device_is_not_computed_and_nothing_else_changes(common, own, pairs):
    asked = prompts(list(range(common)), [*range(common), *range(100, 100 + own)], every=1e6)
    outcome = cached(asked, device(99), pairs=pairs)
    hit, total = BLOCK * common, BLOCK * (common + own) + 1
    assert outcome.travel.cached_tokens.tolist() == [0, hit]
    assert outcome.travel.links["bytes"].sum() == 0
    time = engine(pairs).table.time

    def step(done, tokens):
        return coefficients(time, tokens, 0, tokens * (done + tokens / 2), 0.0)

    assert outcome.ttft_s[1] == pytest.approx(step(hit, total - hit), rel=1e-12)
    assert outcome.ttft_s[1] == pytest.approx(step(0, total) - step(0, hit), rel=1e-12)


def test_the_last_token_of_a_prompt_is_always_computed():
    outcome = cached(prompts([1, 2], [1, 2], extra=0), device(9))
    assert outcome.travel.cached_tokens.tolist() == [0, 2 * BLOCK - 1]
    assert outcome.ttft_s[1] == 2.0
    assert outcome.travel.tiers["tokens"].tolist() == [2 * BLOCK - 1]


def test_blocks_are_fetched_tier_by_tier_at_latency_and_bandwidth():
    """Two blocks are on the device, two more in the host and three more on disk: what the fourth prompt finds."""
    chain = list(range(7))
    asked = prompts(chain, chain[:4], chain[:2], [*chain, 7])
    host, disk = (
        TierSpec(size * BLOCK, link=LinkSpec(rate, latency), name=name)
        for name, size, rate, latency in (("host", 4, 8.0, 0.5), ("disk", 7, 2.0, 3.0))
    )
    outcome = cached(asked, device(2), host, disk)
    assert outcome.travel.cached_tokens[3] == 7 * BLOCK
    assert outcome.ttft_s[3] == 0.5 + 2 * BLOCK / 8.0 + 3.0 + 3 * BLOCK / 2.0 + 2.0 * (BLOCK + 1)
    tiers = {str(row["name"]): row for row in outcome.travel.tiers}
    assert list(tiers) == ["device", "host", "disk"]
    assert tiers["disk"]["bytes"] == 3 * BLOCK  # the second and the third prompt found theirs nearer
    assert tiers["disk"]["tokens"] == 3 * BLOCK


def test_a_shared_tier_is_read_by_all_and_an_own_tier_by_its_replica():
    asked = prompts([1, 2], [1, 2], [1, 2])
    link = LinkSpec(8.0)
    own = cached(asked, device(0), TierSpec(99, link=link), replicas=2, routing="round-robin").travel
    assert own.cached_tokens.tolist() == [0, 0, 2 * BLOCK]
    shared = cached(asked, device(0), TierSpec(99, True, link), replicas=2, routing="round-robin").travel
    assert shared.cached_tokens.tolist() == [0, 2 * BLOCK, 2 * BLOCK]


def test_routing_that_knows_caches_goes_where_least_is_left():
    asked = prompts([1, 2], [3, 4], [1, 2], [3, 4], [1, 2])
    blind = cached(asked, device(9), replicas=3, routing="round-robin")
    aware = cached(asked, device(9), replicas=3, routing="prefix")
    assert blind.travel.cached_tokens.sum() == 0
    assert aware.travel.cached_tokens.tolist() == [0, 0, *[2 * BLOCK] * 3]
    assert aware.replica[2] == aware.replica[0] == aware.replica[4]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tiers_add_up_to_what_was_found(data):
    chains = [[10 * kind + j for j in range(6)] for kind in range(3)]
    drawn = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=2, max_size=20))
    asked = prompts(*[chains[kind][:count] for kind, count in drawn], extra=data.draw(st.integers(0, 2)))
    tiers = [
        TierSpec(BLOCK * data.draw(st.integers(0, 8)), t > 0 and data.draw(st.booleans()), LinkSpec(4.0) if t else None)
        for t in range(data.draw(st.integers(1, 3)))
    ]
    outcome = cached(asked, *tiers, replicas=2, eviction=data.draw(st.sampled_from(["lru", "cost-aware"])))
    travel = outcome.travel
    assert travel.tiers["tokens"].sum() == travel.cached_tokens.sum()
    assert travel.tiers["evicted"].sum() == travel.evicted
    assert travel.tiers["bytes"].sum() == travel.links["bytes"].sum()
    if asked.prompt_tokens[0] % BLOCK:  # whole blocks
        assert (travel.tiers["bytes"][1:] == travel.tiers["tokens"][1:]).all()


# --- which block is given up


def test_prompts_lose_their_ends_first():
    """Half of a prompt that does not fit is still found, whichever policy: nothing behind a missing block is of use."""
    for eviction in ("lru", "cost-aware"):
        found = cached(prompts(list(range(10)), list(range(10))), device(5), eviction=eviction).travel
        assert found.cached_tokens.tolist() == [0, 5 * BLOCK], eviction


def test_prompts_that_come_once_do_not_drive_out_those_that_come_often():
    """Ten prompts that nobody asks for again between two uses of one: LRU forgets it, cost-aware keeps it."""
    fresh, asked = iter(range(100, 10_000)), []
    for _ in range(20):
        asked += [[1, 2, 3], [1, 2, 3], *[[next(fresh)] for _ in range(10)]]
    kept = {
        eviction: int((cached(prompts(*asked), device(8), eviction=eviction).travel.cached_tokens >= 3 * BLOCK).sum())
        for eviction in ("lru", "cost-aware")
    }
    assert kept == {"lru": 20, "cost-aware": 39}


def test_what_was_used_often_long_ago_is_given_up_in_the_end():
    old, new = [[1]] * 50, [[block] for block in range(10, 16) for _ in range(2)]
    found = cached(prompts(*old, *(new * 30)), device(6), eviction="cost-aware").travel
    assert found.cached_tokens[-len(new) :].sum() == BLOCK * len(new)


def test_ranks_say_what_they_are_of():
    view = BlockView(touch=7, depth=0, uses=3, floor=2.0, seconds=1.0)
    assert lru(view) == 7
    assert cost_aware(view) == 5
    assert cost_aware(view._replace(depth=100)) < cost_aware(view)
    assert cost_aware(view._replace(depth=1_000_000)) > cost_aware(view._replace(uses=2))


# --- the technique


def tree(cache=None, replicas=1, **more):
    pools = [{"name": "chat", "replicas": replicas, "replica": {**REPLICA, **more}}]
    return load({"sites": [{"pools": pools}], "techniques": [] if cache is None else [{"prefix-cache": cache}]})


def test_the_technique_writes_tiers_links_and_routing():
    found = arranged(tree({"host": "100 GB", "host_bandwidth": "50 GB/s", "pool": "2 TB", "eviction": "cost-aware"}))
    assert [tier.name for tier in found.cache.tiers] == ["device", "host", "pool"]
    assert [tier.shared for tier in found.cache.tiers] == [False, False, True]
    assert found.cache.tiers[0].capacity == "20 %"
    assert found.links["host tier"].bandwidth == 50e9
    assert found.cache.eviction == "cost-aware"
    assert found.routing.policy == "prefix"
    assert load(dump(found.model_copy(update={"techniques": ()}))).cache == found.cache
    assert arranged(tree({"aware": False})).routing.policy == "least-outstanding"


def test_the_example_is_read_and_run():
    example = load(Path(__file__).parents[1] / "examples" / "cached-70b.yaml")
    check(example)
    outcome = simulate(example, generate("mooncake-conversation", count=200, hashes=True))
    assert outcome.completed == 200
    assert outcome.summary()["tiers"].keys() == {"device", "host"}
    assert outcome.summary()["cached_share"] > 0.05


def test_a_share_of_device_memory_is_taken_off_that_for_requests():
    asked = with_hit_rate(poisson(2.0, 60, 500, 4), 0.5)
    plain, part, bytes_ = (simulate(tree(cache), asked) for cache in (None, {"device": "25%"}, {"device": "4 GiB"}))
    assert part.kv_capacity_bytes[0] == plain.kv_capacity_bytes[0] - int(0.25 * plain.kv_capacity_bytes[0])
    assert bytes_.kv_capacity_bytes[0] == plain.kv_capacity_bytes[0] - 4 * 2**30


def test_every_pool_gives_up_the_same_share_of_its_own_memory():
    pools = [{"name": name, "replica": {**REPLICA, "device": name}} for name in ("h100-sxm", "h200-sxm")]
    asked = with_hit_rate(poisson(2.0, 60, 500, 4), 0.5)
    plain, part = (
        simulate(load({"sites": [{"pools": pools}], "techniques": uses}), asked) for uses in ([], ["prefix-cache"])
    )
    assert (part.kv_capacity_bytes == plain.kv_capacity_bytes - (0.2 * plain.kv_capacity_bytes).astype(int)).all()


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"device": "100 %"}, "below 100 %"),
        ({"device": "many"}, "or a share"),
        ({"host": "20 %"}, "host"),
        ({"host_bandwidth": "0 GB/s"}, "host_bandwidth"),
        ({"eviction": "fifo"}, "cost-aware"),
        ({"device": "10 TB"}, "no memory would be left"),
        ({"pools": ["chat"]}, "left out"),
        ({"hit_rate": 0.6}, "hit_rate"),
    ],
)
def test_caches_that_cannot_be_are_refused(cache, says):
    with pytest.raises(InputError, match=r"techniques|cache") as caught:
        simulate(tree(cache), with_hit_rate(poisson(2.0, 9, 500, 4), 0.5, prefixes=1))
    assert says in str(caught.value)


def test_traffic_without_hashes_is_refused_with_what_would_help():
    with pytest.raises(InputError, match="hit_rate"):
        simulate(tree({}), poisson(2.0, 9, 500, 4))


def test_a_cache_beside_a_cache_is_refused():
    both = load(dump(tree({})) + "cache: {tiers: [{name: device, capacity: 1 GB}]}\n")
    check(both)
    with pytest.raises(InputError, match="is there already"):
        arranged(both)


def test_a_cache_belongs_to_replicas_that_compute_prompts_where_others_decode():
    asked = with_hit_rate(poisson(4.0, 200, 1000, 20, seed=1), 0.6)
    both = load({"sites": [{"pools": [{"replica": REPLICA}]}], "techniques": ["prefix-cache", "disaggregation"]})
    apart, plain = simulate(both, asked), simulate(load(dump(both).replace("- prefix-cache", "")), asked)
    assert set(apart.replica) == {1}
    assert apart.kv_capacity_bytes[0] < plain.kv_capacity_bytes[0]
    assert apart.kv_capacity_bytes[1] == plain.kv_capacity_bytes[1]
    assert apart.summary()["cached_share"] == pytest.approx(0.6, abs=0.05)
    assert apart.busy_s[0] < 0.7 * plain.busy_s[0]
    assert list(apart.summary()["links"]) == ["hand-over"]


def test_nothing_known_again_gains_nothing():
    """The control: with a pool and no common prefix, every token comes when it comes without a cache."""
    asked = with_hit_rate(poisson(4.0, 100, 700, 20), 0.0)
    none = simulate(tree(None, 2), asked)
    pool = simulate(tree({"device": 0, "pool": "1 TB", "aware": False}, 2), asked)
    assert np.array_equal(none.finish_s, pool.finish_s)
    assert pool.travel.cached_tokens.sum() == 0


# --- traffic of which a stated share was there before


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.8), st.integers(0, 5), st.sampled_from([16, 64]))
def test_an_endless_cache_finds_the_stated_share(rate, seed, block):
    asked = generate("azure-conv-2023", count=2000, seed=seed)
    drawn = with_hit_rate(asked, rate, block_tokens=block, prefixes=8, seed=seed)
    blocks, seen = prefix_hits(drawn)
    assert np.array_equal(blocks, asked.prompt_tokens // block)
    found = np.minimum(seen * block, asked.prompt_tokens - 1).sum() / asked.prompt_tokens.sum()
    assert found == pytest.approx(rate, abs=1e-3)
    assert drawn.arrival_s is asked.arrival_s
    assert drawn.block_hash.min() == 0
    assert len(np.unique(drawn.block_hash)) == drawn.block_hash.max() + 1


def test_a_stated_share_is_what_a_simulated_endless_cache_finds():
    asked = with_hit_rate(poisson(0.2, 400, 1000, 4), 0.6, prefixes=8)
    outcome = simulate(tree({"device": 0, "host": "10 TB"}), asked)
    assert outcome.summary()["cached_share"] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    ("rate", "more", "says"),
    [
        (-0.1, {}, "from 0 to 1"),
        (1.1, {}, "from 0 to 1"),
        (float("nan"), {}, "from 0 to 1"),
        (0.99, {}, "may be at most 0."),
        (0.5, {"block_tokens": 0}, "block_tokens"),
        (0.5, {"prefixes": 0}, "prefixes"),
    ],
)
def test_hit_rates_that_cannot_be_are_refused(rate, more, says):
    with pytest.raises(InputError, match=says):
        with_hit_rate(poisson(1.0, 50, 300, 1), rate, **more)


def test_a_scenario_states_a_hit_rate_and_a_profile_brings_its_own_where_there_is_a_cache(tmp_path):
    found = model("llama-3.1-8b")
    stated = WorkloadChoice(profile="azure-conv-2023", requests=300, hit_rate=0.4)
    drawn = demand(stated, found, cached=True).requests
    assert prefix_hits(drawn)[1].sum() * drawn.block_tokens / drawn.prompt_tokens.sum() == pytest.approx(0.4, abs=0.01)
    own = WorkloadChoice(profile="mooncake-conversation", requests=300, long_prompts="drop")
    assert demand(own, found, cached=True).requests.block_tokens == 512
    assert demand(own, found).requests.block_tokens == 0
    assert any("none is in use" in note for note in demand(stated, found).notes)
    path = tmp_path / "hashed.csv"
    drawn.to_csv(path)
    with pytest.raises(InputError, match="hashed blocks of its own"):
        demand(WorkloadChoice(trace=str(path), hit_rate=0.4), found)


@pytest.mark.parametrize("rate", [-0.1, 1.5, "many"])
def test_a_scenario_with_a_hit_rate_that_is_none_is_refused(rate):
    asked = {"profile": "azure-conv-2023", "hit_rate": rate}
    scenario = {"model": "llama-3.1-8b", "workload": asked, "objectives": {"ttft": "1 s"}}
    with pytest.raises(InputError, match=r"workload\.hit_rate"):
        load_scenario(scenario | {"hardware": [{"device": "h100-sxm"}]})


# --- what is printed


def test_simulate_without_hashes_ends_with_what_would_help(sonde_cli, tmp_path):
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(dump(tree({})), encoding="utf-8")
    ended = sonde_cli("simulate", str(deployment), "--profile", "azure-conv-2023", "--duration", "10 min")
    assert ended.code == 2
    assert "hit_rate" in ended.err
    assert "Traceback" not in ended.err


def test_simulate_says_what_every_tier_gave(sonde_cli, tmp_path):
    deployment, trace = tmp_path / "deployment.yaml", tmp_path / "trace.csv"
    deployment.write_text(dump(tree({"device": "1 %", "host": "100 GB"}, 2)), encoding="utf-8")
    made = sonde_cli(
        "trace", "generate", "azure-conv-2023", "--requests", "300", "--hit-rate", "0.5", "--out", str(trace)
    )
    assert made.code == 0
    shown = sonde_cli("simulate", str(deployment), "--trace", str(trace))
    assert shown.code == 0
    assert "of prompt tokens were cached" in shown.out
    assert "host" in shown.out
    row = json.loads(sonde_cli("simulate", str(deployment), "--trace", str(trace), "--json").out)
    assert 0.3 < row["cached_share"] < 0.5
    assert row["cached_share"] == pytest.approx(sum(tier["cached_share"] for tier in row["tiers"].values()))
    assert row["transferred_bytes"] == row["tiers"]["host"]["bytes"] == row["links"]["host"]["bytes"] > 0
    assert row["evicted"] == row["tiers"]["device"]["evicted"] > 0
    page = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    for key in ("cached_share", "transfers", "transferred_bytes", "evicted", "migrations", "given_up", "tiers"):
        assert f"`{key}`" in page


# --- a trace with hashes


@pytest.mark.data
@pytest.mark.skipif(not MOONCAKE.is_file(), reason="Mooncake's trace does not lie beside the repository")
def test_mooncake_is_found_as_its_hashes_say_and_counting_uses_beats_recency_in_a_small_cache():
    from sonde.workload.readers import read

    trace = read(MOONCAKE)
    trace = trace._replace(output_tokens=np.ones(trace.n, np.int32), arrival_s=100.0 * np.arange(trace.n))

    def found(blocks, eviction="lru"):
        zero = np.zeros(65)
        time = Coefficients(0.0, zero, 1e-9, 0.0, 0.0, zero, zero, zero)
        memory = KvMemory(10**9, 1, 1, 0, 0, 1.0)
        quick = Engine(StepTable(time, time, 0), memory, "prefill-first", 4, 10**6, "recompute", 0.0, 1.0, 1)
        paths = Paths(cache=CacheSpec((TierSpec(512 * blocks),), eviction))
        return run(trace, Connected([(quick, 1)], paths)).travel.cached_tokens.sum()

    _, seen = prefix_hits(trace)
    assert found(10**6) == np.minimum(seen * 512, trace.prompt_tokens - 1).sum()
    for blocks, gain in ((2000, 1.3), (8000, 1.1), (30_000, 1.0)):
        assert found(blocks, "cost-aware") > gain * found(blocks)

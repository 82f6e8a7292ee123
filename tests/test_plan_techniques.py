"""Plans under techniques: what is simulated is what is written, bounds stay bounds, prompts and answers apart."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import draw_engine, draw_trace

import sonde
from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.cli.simulate import simulate
from sonde.cost.compile import compile_replica
from sonde.cost.table import Engine
from sonde.deployment.load import load_scenario
from sonde.deployment.tree import Pool, Replica
from sonde.errors import InputError
from sonde.metrics import Objective
from sonde.plan.bounds import replicas_needed, stage_needed
from sonde.plan.candidates import enumerate_candidates
from sonde.plan.dollars import Kind, kinds, one_kind_needed
from sonde.plan.explain import holds
from sonde.plan.fleet import Candidate, Hardware
from sonde.plan.prune import impossible
from sonde.plan.setting import settings as settings_of
from sonde.plan.transfer import least_transfer
from sonde.plan.work import work
from sonde.sim.engine import run
from sonde.sim.network import CacheSpec, Connected, LendingSpec, LinkSpec, MigrationSpec, Paths, TierSpec
from sonde.techniques.disaggregation import Split, link
from sonde.workload.requests import Requests

MOST = 5
SCENARIO = {
    "model": "llama-3.1-8b",
    "workload": {"profile": "azure-conv-2023", "rate": "20/s", "requests": 400},
    "objectives": {"ttft": "1 s", "tpot": "40 ms"},
    "hardware": [{"device": "a100-sxm-80gb", "max": 16}],
    "search": {"token_budget": [512], "max_batch": [64], "tensor_parallel": [1, 2]},
}


def hashed(rng: np.random.Generator, trace: Requests, tokens: int = 4) -> Requests:
    """The same requests with blocks of `tokens` tokens, whose heads come from few conversations."""
    blocks = -(-trace.prompt_tokens.astype(np.int64) // tokens)
    start = np.concatenate([[0], np.cumsum(blocks)])
    hashes = []
    for i, count in enumerate(blocks):
        family, shared = int(rng.integers(0, 3)), int(rng.integers(0, count + 1))
        hashes += [10_000 * (family + 1) + k if k < shared else 1_000_000 * (i + 1) + k for k in range(count)]
    return trace._replace(block_start=start, block_hash=np.array(hashes, np.int64), block_tokens=tokens)


def goals_of(rng: np.random.Generator, trace: Requests, fleet: Connected) -> tuple[Objective, ...]:
    """Objectives that a large fleet just holds, or just misses."""
    outcome = run(trace, fleet)
    scale = float(rng.uniform(0.9, 2.0))
    return tuple(
        Objective(metric, q, max(reached, 1e-6) * scale)
        for metric, q in (("ttft", 0.9), ("tpot", 0.9), ("e2e", 0.8))
        if np.isfinite(reached := outcome.quantile(metric, q)) and rng.random() < 0.7
    )  # fmt: skip


def fewest_of(trace: Requests, goals: tuple[Objective, ...], engine: Engine, paths: Paths) -> int | None:
    return next((n for n in range(1, MOST + 1) if holds(run(trace, Connected(((engine, n),), paths)), goals)), None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_cache_does_with_fewer_replicas_than_the_bound_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = draw_engine(rng)
    trace = hashed(rng, draw_trace(rng, rate=float(rng.choice([20, 100, 400]))))
    link = LinkSpec(1e12)
    tiers = (TierSpec(1 << 40), TierSpec(1 << 40, True, link)) if rng.random() < 0.5 else (TierSpec(1 << 40),)
    paths = Paths(cache=CacheSpec(tiers))
    goals = goals_of(rng, trace, Connected(((engine, MOST),), paths))
    found = fewest_of(trace, goals, engine, paths)
    if found is not None:
        assert replicas_needed(engine, trace, goals, any_batching=True, cached=True)[0] <= found
        assert impossible(engine, trace, goals, cached=True) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_could_be_cached_is_all_that_is_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = hashed(rng, draw_trace(rng))
    for window in (0, 20):
        all_of_it, left = work(trace, window), work(trace, window, cached=True)
        engine = draw_engine(rng)
        memory = CacheSpec((TierSpec(1 << 40),))
        travel = run(trace, Connected(((engine, 1),), Paths(cache=memory))).travel
        assert travel is not None
        assert (left.prompt <= trace.prompt_tokens - travel.cached_tokens + 1e-9).all()
        assert (left.prompt >= 1).all()
        for whole, part in zip(all_of_it, left, strict=True):
            assert (part <= whole + 1e-9).all()
            assert (part >= -1e-9).all()
        np.testing.assert_array_equal(all_of_it.read, left.read)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_split_fleet_does_with_fewer_replicas_of_a_stage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = draw_engine(rng), draw_engine(rng)
    trace = draw_trace(rng, rate=float(rng.choice([20, 100, 400])))
    paths = Paths(prefill=1, hand_over=LinkSpec(float(10 ** rng.uniform(5, 12))))
    goals = goals_of(rng, trace, Connected(((one, MOST), (two, MOST)), paths))
    first, second = (stage_needed(engine, trace, goals, stage) for engine, stage in ((one, "prefill"), (two, "decode")))
    for n, m in itertools.product(range(1, MOST), repeat=2):
        if holds(run(trace, Connected(((one, n), (two, m)), paths)), goals):
            assert n >= first
            assert m >= second


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_moving_or_lending_does_with_less_than_the_bound(seed: int, lends: bool) -> None:
    rng = np.random.default_rng(seed)
    engine = draw_engine(rng, window=0)
    memory = engine.memory._replace(window_block_bytes=0, state_bytes=0)
    engine = engine._replace(memory=memory)
    trace = draw_trace(rng, rate=float(rng.choice([20, 100, 400])))
    link = LinkSpec(1e9)
    paths = Paths(lending=LendingSpec(link)) if lends else Paths(migration=MigrationSpec(link, interval_s=0.05))
    hardware = Hardware(device("l4"), 100, engine.usd_per_hour, "on-demand", False)
    replica = Replica(model="llama-3.1-8b", device="l4")
    one = Candidate(hardware, replica, "least-outstanding", engine, 100, "", moving=True, lending=lends)
    goals = goals_of(rng, trace, Connected(((engine, MOST),), paths))
    least = one_kind_needed(kinds([one]), trace, goals).usd_per_hour
    for n in range(2, MOST + 1):
        if holds(run(trace, Connected(((engine, n),), paths)), goals):
            assert least <= n * engine.usd_per_hour * (1 + 1e-9)
            assert impossible(one.least, trace, goals) is None
            break


def test_engines_whose_steps_differ_are_kinds_of_their_own() -> None:
    rng = np.random.default_rng(3)
    one = draw_engine(rng)
    quicker = one._replace(table=one.table._replace(time=one.table.time._replace(fixed=one.table.time.fixed / 2)))
    hardware = Hardware(device("l4"), 100, 1.0, "on-demand", False)
    replica = Replica(model="llama-3.1-8b", device="l4")

    def of(engine: Engine) -> Candidate:
        return Candidate(hardware, replica, "least-outstanding", engine, 100, "")

    assert len(kinds([of(one), of(one._replace(token_budget=16))])) == 1
    found = kinds([of(one), of(quicker)])
    assert {kind.engine.table.time.fixed for kind in found} == {one.table.time.fixed, quicker.table.time.fixed}
    assert isinstance(found[0], Kind)


TOGETHER = (
    ["w4a8", {"speculative-decoding": {"acceptance": 0.7}}],
    ["live-migration"],
    ["prefix-cache"],
    ["disaggregation"],
    ["disaggregation", "prefix-cache", "w4a8"],
    [{"power-cap": {"cap": "70 %", "pools": ["decode"]}}, {"disaggregation": {"bandwidth": "10 GB/s"}}],
    ["non-blocking-pipeline"],
)


@pytest.mark.parametrize("uses", TOGETHER)
def test_plans_are_what_simulate_makes_of_their_trees_and_none_is_below_the_bound(uses: list[object]) -> None:
    search = {**SCENARIO["search"], "weights": ["bf16"]}
    if uses == ["non-blocking-pipeline"]:
        search["pipeline_parallel"] = [2]
    workload = {**SCENARIO["workload"], "hit_rate": 0.5} if "prefix-cache" in uses else SCENARIO["workload"]
    result = sonde.plan({**SCENARIO, "workload": workload, "search": search, "techniques": uses}, top=1)
    assert result.plans
    assert result.bound_usd_per_hour <= result.plans[0].usd_per_hour * (1 + 1e-9)
    tried = [plan for plan in result.plans if (plan.deployment.path is not None) == ("disaggregation" in str(uses))]
    assert tried, "fleets of the technique are among the plans"
    for plan in tried[:2]:
        again = sonde.simulate(sonde.load(plan.deployment.model_dump(mode="json")), result.requests)
        np.testing.assert_array_equal(again.first_token_s, plan.outcome.first_token_s)
        np.testing.assert_array_equal(again.finish_s, plan.outcome.finish_s)
        assert again.usd_per_hour == pytest.approx(plan.usd_per_hour)
        assert holds(again, result.objectives)


def test_split_plans_stand_among_the_others_and_cannot_do_with_a_replica_less() -> None:
    result = sonde.plan({**SCENARIO, "techniques": ["disaggregation"]}, top=3)
    apart = [plan for plan in result.plans if plan.deployment.path is not None]
    whole = [plan for plan in result.plans if plan.deployment.path is None]
    assert apart
    assert whole
    assert all("(prefill)" in plan.label and "(decode)" in plan.label for plan in apart)
    assert [plan.rank for plan in result.plans] == list(range(1, len(result.plans) + 1))
    tree = apart[0].deployment
    one, two = tree.pools
    for k, pool in enumerate((one, two)):
        if pool.replicas == 1:
            continue
        pools = [other.model_copy(update={"replicas": other.replicas - (i == k)}) for i, other in enumerate((one, two))]
        site = tree.sites[0].model_copy(update={"pools": tuple(pools)})
        less = sonde.simulate(tree.model_copy(update={"sites": (site,)}), result.requests)
        assert not holds(less, result.objectives)


def test_a_ratio_that_is_given_is_kept() -> None:
    uses = [{"disaggregation": {"prefill": 2, "decode": 1}}]
    result = sonde.plan({**SCENARIO, "techniques": uses}, top=1)
    apart = [plan for plan in result.plans if plan.deployment.path is not None]
    assert apart
    assert all(one.replicas == 2 * two.replicas for one, two in (plan.deployment.pools for plan in apart))


def test_a_transfer_can_be_an_objective_where_caches_travel() -> None:
    goals = {**SCENARIO["objectives"], "transfer": {"p90": "30 ms"}}
    result = sonde.plan({**SCENARIO, "objectives": goals, "techniques": ["disaggregation"]}, top=1)
    assert result.plans
    for plan in result.plans:
        assert plan.deployment.path is not None
        took = plan.outcome.transfer_s[result.requests.output_tokens > 1]
        assert np.sort(took)[int(np.ceil(0.9 * len(took))) - 1] <= 0.03
        assert plan.summary["transfer_s"]["p90"] <= 0.03
    slow = {"disaggregation": {"bandwidth": "1 GB/s"}}
    late = sonde.plan({**SCENARIO, "objectives": goals, "techniques": [slow]}, top=1)
    assert not late.plans  # a prompt of 1,000 tokens is 131 MB of cache: 131 ms at 1 GB/s
    assert {item.constraint for item in late.rejected} == {"transfer"}
    assert "p90 transfer at least " in late.best_failing


def test_where_transfers_must_be_short_larger_replicas_are_found_than_phases_alone_would_take() -> None:
    """A replica of one device sends too slowly, and decodes in steps for which caches wait too long."""

    def asked(limit: str) -> sonde.PlanResult:
        scenario = {
            "model": "llama-3.1-70b", "workload": {"profile": "azure-conv-2023", "rate": "4/s", "requests": 300},
            "objectives": {"ttft": {"p90": "2 s"}, "tpot": {"p90": "100 ms"}, "transfer": {"p90": limit}},
            "hardware": [{"device": "h100-sxm", "max": 16}], "techniques": ["disaggregation"],
            "search": {"token_budget": [512], "max_batch": [64]},
        }  # fmt: skip
        return sonde.plan(scenario, top=1)

    def devices(result: sonde.PlanResult) -> list[int]:
        return [pool.replica.devices for pool in result.plans[0].deployment.pools]

    easy, hard, none = asked("100 ms"), asked("12 ms"), asked("2 ms")
    assert devices(easy)[0] == 1
    assert min(devices(hard)) > 1
    for result in (easy, hard):
        assert holds(sonde.simulate(result.plans[0].deployment, result.requests), result.objectives)
    assert not none.plans
    assert "p90 transfer" in none.best_failing
    assert "against 2 ms" in none.best_failing


@pytest.mark.parametrize("layer_wise", [False, True])
def test_no_cache_lands_sooner_than_over_an_empty_link(layer_wise: bool) -> None:
    uses = [{"disaggregation": {"layer_wise": layer_wise, "bandwidth": "10 GB/s"}}]
    result = sonde.plan({**SCENARIO, "techniques": uses}, top=1)
    plan = next(plan for plan in result.plans if plan.deployment.path is not None)
    one = plan.deployment.pools[0].replica
    engine = compile_replica(model(one.model), device(one.device), one)
    layers = model(one.model).layers if layer_wise else 1
    for quantile in (0.1, 0.5, 0.9, 0.99):
        least = least_transfer(result.requests, engine, plan.deployment.links["hand-over"], layers, quantile)
        assert 0 < least <= plan.outcome.quantile("transfer", quantile) * (1 + 1e-9)


def test_what_makes_no_sense_ends_before_anything_runs() -> None:
    def asking(**changes: object) -> None:
        sonde.plan({**SCENARIO, **changes})

    goals = {"transfer": "20 ms"}
    with pytest.raises(InputError, match=r"objectives.transfer = .*needs a path with a link"):
        asking(objectives=goals)
    with pytest.raises(InputError, match=r"objectives.transfer = .*live-migration"):
        asking(objectives=goals, techniques=["disaggregation", "live-migration"])
    with pytest.raises(InputError, match=r"techniques\[0\].*w4a9"):
        asking(techniques=["w4a9"])
    with pytest.raises(InputError, match=r"techniques.w4a8.pools"):
        asking(techniques=[{"w4a8": {"pools": ["prefill"]}}])
    with pytest.raises(InputError, match="cannot stand beside"):
        asking(techniques=["w4a8", "w4a4"])
    static = {**SCENARIO["search"], "batching": ["static"]}
    with pytest.raises(InputError, match=r"search\.batching"):
        asking(techniques=["disaggregation"], search=static)


def test_candidates_compile_under_techniques_and_say_where_these_make_no_sense() -> None:
    tree = {**SCENARIO, "techniques": ["w4a8"]}
    asked = load_scenario(tree)
    plain = enumerate_candidates(model("llama-3.1-8b"), load_scenario(SCENARIO)).kept
    narrow = enumerate_candidates(model("llama-3.1-8b"), asked, settings_of(asked)[0]).kept
    assert narrow
    assert max(one.engine.memory.capacity_bytes for one in narrow) > max(
        one.engine.memory.capacity_bytes for one in plain
    )
    assert all(one.setting.uses == ("w4a8",) for one in narrow)
    experts = load_scenario({**SCENARIO, "techniques": ["two-microbatches"]})
    refused = enumerate_candidates(model("llama-3.1-8b"), experts, settings_of(experts)[0])
    assert not refused.kept
    assert {item.constraint for item in refused.rejected} == {"technique"}
    result = sonde.plan(experts)
    assert not result.plans
    assert "experts" in result.best_failing


def test_a_cache_that_leaves_no_memory_is_no_candidate() -> None:
    workload = {**SCENARIO["workload"], "hit_rate": 0.5}
    result = sonde.plan({**SCENARIO, "workload": workload, "techniques": [{"prefix-cache": {"device": "2000 GiB"}}]})
    assert not result.plans
    assert {item.constraint for item in result.rejected} == {"memory"}


def test_the_example_with_techniques_holds_and_is_split_among_others() -> None:
    path = Path(__file__).parents[1] / "examples" / "chat-70b-techniques.yaml"
    question = load_scenario(path)
    assert question.workload is not None
    short = question.model_copy(update={"workload": question.workload.model_copy(update={"duration": "1 min"})})
    result = sonde.plan(short, top=1)
    assert {plan.deployment.path is None for plan in result.plans} == {True, False}
    assert replace(result).bound_usd_per_hour <= result.plans[0].usd_per_hour


def test_simulate_refuses_an_objective_on_a_transfer_that_never_happens(tmp_path: Path) -> None:
    pool = {"replica": {"model": "llama-3.1-8b", "device": "h100-sxm"}}
    path = tmp_path / "deployment.yaml"

    def run_it(*techniques: str) -> Result:
        path.write_text(json.dumps({"sites": [{"pools": [pool]}], "techniques": list(techniques)}))
        asked = ["--profile", "azure-conv-2023", "--rate", "2/s", "--duration", "20 s", "--objective", "transfer=1s"]
        return CliRunner().invoke(simulate, [str(path), *asked])

    refused = run_it()
    assert isinstance(refused.exception, InputError)
    assert refused.exception.path == "objectives.transfer"
    both = run_it("disaggregation", "live-migration").exception
    assert isinstance(both, InputError)
    assert both.path == "objectives.transfer"
    shown = run_it("disaggregation")
    assert shown.exit_code == 0, shown.output
    assert "p99 transfer" in shown.output


def test_the_link_between_unlike_devices_is_the_slower_fabric() -> None:
    replica = Replica(model="llama-3.1-8b", device="a100-sxm-80gb")
    near = Pool(name="prefill", replica=replica)
    there = Pool(name="decode", replica=replica.model_copy(update={"device": "h100-sxm"}))
    fabrics = [device(name).fabric.bandwidth for name in ("a100-sxm-80gb", "h100-sxm")]
    assert link(Split(), (near, there)).bandwidth == min(fabrics)
    assert link(Split(), (near, near)).bandwidth == device("a100-sxm-80gb").node.bandwidth > min(fabrics)


def test_stages_are_searched_and_not_given() -> None:
    stages = {"prefill": {"tensor_parallel": 2}}
    with pytest.raises(InputError, match=r"techniques.disaggregation.stages"):
        sonde.plan({**SCENARIO, "techniques": [{"disaggregation": {"stages": stages}}]})

"""From a scenario to a plan, end to end, on small traffic: candidates, reasons, answers and their forms."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.deployment.load import dump, load, load_scenario
from sonde.deployment.scenario import SearchChoice, WorkloadChoice
from sonde.errors import InputError
from sonde.metrics import Objective, Outcome
from sonde.plan import plan
from sonde.plan.candidates import enumerate_candidates, precisions
from sonde.plan.demand import demand
from sonde.plan.demand import given as handed
from sonde.plan.explain import explain, prefill_per_s
from sonde.plan.prune import impossible
from sonde.plan.result import PlanResult
from sonde.plan.work import allowed_misses
from sonde.report import text as report_text
from sonde.report import views
from sonde.sim.engine import run
from sonde.workload.context import within
from sonde.workload.requests import Requests, requests

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "traces"


def chat(n: int = 300, rate: float = 10.0, seed: int = 0) -> Requests:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    prompt = np.clip(rng.lognormal(6, 1, n), 1, 4000)
    output = np.clip(rng.lognormal(4.5, 0.8, n), 1, 800)
    return requests(arrival - arrival[0], prompt.astype(int), output.astype(int))


def question(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "model": "llama-3.1-8b",
        "workload": {"profile": "azure-conv-2023"},
        "objectives": {"ttft": "1 s", "tpot": {"p99": "60 ms"}},
        "hardware": [{"device": "h100-sxm", "max": 8}, {"device": "l40s", "max": 8, "price": "$0.90/h"}],
        "search": {"tensor_parallel": [1, 2], "token_budget": [2048], "max_batch": [64]},
    }
    return tree | changes


@pytest.fixture(scope="module")
def answer() -> PlanResult:
    return plan(question(), trace=chat())


def test_every_plan_holds_and_one_replica_less_does_not(answer: PlanResult) -> None:
    assert answer.plans
    for item in answer.plans:
        for goal in answer.objectives:
            assert item.outcome.quantile(goal.metric, goal.quantile) <= goal.limit_s
        names = item.label.split(" + ")
        assert item.devices == sum(pool.replicas * pool.replica.devices for pool in item.deployment.pools)
        for pool, name in zip(item.deployment.pools, names, strict=True):
            assert pool.replicas * pool.replica.devices <= 8
            assert name.startswith(f"{pool.replicas} × {pool.replica.device}")
        assert item.usd_per_hour >= answer.bound_usd_per_hour
        assert sum(item.usd_by_part.values()) == pytest.approx(item.usd_per_hour)
        assert item.outcome.usd_per_hour == pytest.approx(item.usd_per_hour)
        assert load(dump(item.deployment)) == item.deployment


def test_simulating_a_plan_gives_what_the_plan_says(answer: PlanResult) -> None:
    import sonde

    for item in answer.plans[::4]:
        outcome = sonde.simulate(item.deployment, answer.requests)
        again = outcome.summary(answer.objectives)
        assert again | {"simulation_s": 0} == dict(item.summary) | {"simulation_s": 0}
        assert np.array_equal(outcome.finish_s, item.outcome.finish_s)
        assert outcome.carbon_g > 0


def test_plans_are_ranked_by_dollars_then_latency(answer: PlanResult) -> None:
    figures = [(item.usd_per_hour, item.summary["e2e_s"]["p99"]) for item in answer.plans]  # type: ignore[index]
    assert figures == sorted(figures)
    assert [item.rank for item in answer.plans] == list(range(1, len(figures) + 1))
    assert answer.plans[0].frontier
    assert answer.gap >= 0


def test_the_price_given_is_the_price_paid(answer: PlanResult) -> None:
    pools = [(item, item.deployment.pools[0]) for item in answer.plans if len(item.deployment.pools) == 1]
    given = [(item, pool) for item, pool in pools if pool.replica.device == "l40s"]
    assert given
    for item, pool in given:
        assert pool.usd_per_device_hour == 0.9
        assert item.usd_per_hour == pytest.approx(0.9 * item.devices)
    assert all(pool.usd_per_device_hour is None for _, pool in pools if pool.replica.device == "h100-sxm")


def test_json_is_the_contract(answer: PlanResult) -> None:
    tree = json.loads(json.dumps(answer.to_json(), default=float))
    assert {"plans", "bound_usd_per_hour", "candidates", "requests_simulated", "rejected"} <= set(tree)
    first = tree["plans"][0]
    keys = {"rank", "deployment", "devices", "usd_per_hour", "usd_per_million_tokens", "joules_per_token", "attainment"}
    assert keys <= set(first)
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert set(first[metric]) == {"p50", "p90", "p99"}
    assert load(first["deployment"]) == answer.plans[0].deployment
    assert all(set(item) == {"label", "constraint", "reason"} for item in tree["rejected"])
    assert tree["requests_simulated"] >= answer.candidates > 0


def test_the_answer_as_frames_and_text(answer: PlanResult) -> None:
    frame, other = answer.to_polars(), answer.to_pandas()
    assert (
        frame["usd_per_hour"].to_list() == [item.usd_per_hour for item in answer.plans] == list(other["usd_per_hour"])
    )
    assert "ttft_s_p99" in frame.columns
    text = repr(answer)
    assert answer.plans[0].label in text
    assert "no scheduler could need less" in text
    assert len(repr(answer.plans[0])) < 200


def test_a_notebook_shows_the_kinds_as_a_table(answer: PlanResult) -> None:
    page = answer._repr_html_()
    assert page.count("<tr>") == 1 + min(len(answer.kinds), 10)
    assert all(item.label in page for item in answer.kinds[:10])
    assert page.count(answer.plans[0].label) == 1
    assert "no scheduler could need less" in page
    none = dataclasses.replace(answer, plans=(), best_failing="<script>")
    assert "<table>" not in none._repr_html_()
    assert "&lt;script&gt;" in none._repr_html_()


def test_requests_show_what_they_are_and_not_their_columns() -> None:
    trace = requests(np.arange(101) * 0.5, np.arange(1, 102) * 10, np.full(101, 7))
    assert repr(trace) == (
        "Requests: 101 over 50 s, 2.02/s; prompts p50 510, p99 1,000 tokens; outputs p50 7, p99 7 tokens"
    )
    assert repr(trace.head(0)) == "Requests: none"
    assert "1 at once;" in repr(trace.head(1))


def test_the_folder_is_the_verb() -> None:
    import sonde

    sonde.plan(question(), trace=chat(20))
    assert sonde.plan(question(), trace=chat(20)).plans


def test_the_same_question_has_the_same_answer(answer: PlanResult) -> None:
    again = plan(question(), trace=chat())
    assert [item.label for item in again.plans] == [item.label for item in answer.plans]
    assert again.rejected == answer.rejected
    assert again.bound_usd_per_hour == answer.bound_usd_per_hour
    assert again.requests_simulated == answer.requests_simulated


def test_more_traffic_takes_more_and_the_bound_stays_below() -> None:
    busy = plan(question(), trace=chat(1500, rate=150))
    devices = [item.devices for item in busy.plans if " tp1 bf16, " in item.label]
    assert devices
    assert max(devices) > 1
    assert 0 < busy.bound_usd_per_hour <= busy.plans[0].usd_per_hour


def test_where_nothing_holds_the_best_is_said() -> None:
    result = plan(question(objectives={"ttft": "1 ms"}), trace=chat(50))
    assert result.plans == ()
    assert result.best_failing.startswith("the best that was reached: ")
    assert "p99 TTFT at least" in result.best_failing
    assert "1 ms" in result.best_failing
    assert result.best_failing[27:] in {f"{item.label}: {item.reason}" for item in result.rejected}
    assert result.bound_usd_per_hour == np.inf
    assert "nothing holds" in repr(result)
    assert np.isnan(result.gap)


def test_stopping_keeps_what_was_found() -> None:
    def stop(done: int, total: int, text: str) -> None:
        if done:
            raise KeyboardInterrupt

    result = plan(question(), trace=chat(), progress=stop)
    assert result.interrupted
    assert "interrupted" in repr(result)
    assert len(result.plans) + len(result.rejected) < 40


def test_a_model_that_is_too_large_is_said_to_be() -> None:
    tree = question(model="llama-3.1-70b", hardware=[{"device": "l40s", "max": 1}])
    result = plan(tree, trace=chat(20))
    kinds = {item.constraint for item in result.rejected}
    assert kinds == {"memory", "devices"}
    memory = next(item for item in result.rejected if item.constraint == "memory")
    assert "GiB" in memory.reason
    assert "one replica takes 2 devices" in next(i.reason for i in result.rejected if i.constraint == "devices")
    assert result.candidates == 0
    assert result.best_failing.startswith("no candidate could be built")


def test_too_few_devices_are_counted() -> None:
    tree = question(hardware=[{"device": "l40s", "max": 1}], search={"tensor_parallel": [1]})
    result = plan(tree, trace=chat(3000, rate=400))
    reasons = [item for item in result.rejected if item.constraint == "devices"]
    assert reasons
    assert "1 allowed" in reasons[0].reason
    assert result.bound_usd_per_hour == np.inf


def test_prompts_beyond_the_context_are_named() -> None:
    trace = requests([0.0, 1.0], [10, 200_000], [5, 5])
    with pytest.raises(InputError, match=r"trace\[1\]\.prompt_tokens = 200000.*131,072"):
        plan(question(), trace=trace)


def test_long_prompts_are_clipped_or_dropped_where_that_is_asked_for() -> None:
    trace = requests([0.0, 1.0, 2.0], [10, 200_000, 131_000], [5, 50, 1000])
    free = {"search": {"tensor_parallel": [1], "max_batch": [64]}, "objectives": {"ttft": "1 h"}}
    clip, drop = (
        plan(question(workload={"profile": "azure-conv-2023", "long_prompts": how}, **free), trace=trace)
        for how in ("clip", "drop")
    )
    assert clip.requests.prompt_tokens.tolist() == [10, 131_072 - 50, 131_000]
    assert clip.requests.output_tokens.tolist() == [5, 50, 72]
    assert drop.requests.prompt_tokens.tolist() == [10, 131_000]
    assert "1 of 3 prompts are clipped" in clip.notes[0]
    assert "1 of 3 outputs end where" in clip.notes[1]
    assert "1 of 3 requests are left out" in drop.notes[0]
    assert drop.plans


def test_a_prompt_beyond_the_context_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n\n1,200000,5\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"long\.csv:4 prompt_tokens = 200000.*long_prompts: clip"):
        plan(question(workload={"trace": str(path)}))
    lines = ['{"timestamp": 0, "input_length": 9, "output_length": 1}']
    lines += ['{"timestamp": 1, "input_length": 900000, "output_length": 1}']
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"long\.csv:2 input_length = 900000"):
        plan(question(workload={"trace": str(path)}))


@given(st.integers(0, 10_000), st.sampled_from(["clip", "drop"]))
def test_what_is_within_the_context_fits_it(seed: int, how: Literal["clip", "drop"]) -> None:
    rng = np.random.default_rng(seed)
    n, block = int(rng.integers(1, 8)), 4
    trace = requests(np.arange(n), rng.integers(1, 40, n), rng.integers(1, 40, n))
    counts = trace.prompt_tokens // block
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    hashed = trace._replace(block_start=start, block_hash=np.arange(start[-1]), block_tokens=block)
    keep = np.arange(n) if how == "clip" else np.flatnonzero(trace.prompt_tokens <= 20)
    if not len(keep):
        with pytest.raises(InputError, match="would leave no request"):
            within(hashed, 20, how)
        return
    served = within(hashed, 20, how).requests
    total = served.prompt_tokens + served.output_tokens
    assert served.n == len(keep)
    assert np.all((total <= 20) | ((served.output_tokens == 1) & (served.prompt_tokens <= 20)))
    for row, before in enumerate(keep):
        assert served.prompt_tokens[row] == trace.prompt_tokens[before] or trace.prompt_tokens[before] > 20
        mine = served.block_hash[served.block_start[row] : served.block_start[row + 1]]
        theirs = hashed.block_hash[start[before] : start[before + 1]]
        assert mine.tolist() == theirs[: len(mine)].tolist()
        assert len(mine) == min(len(theirs), -(-served.prompt_tokens[row] // block))


def test_what_is_in_the_traffic_and_not_in_the_answer_is_said() -> None:
    trace = requests(np.repeat(np.arange(20) * 3.0, 5), np.full(100, 64), np.full(100, 10))
    start, shared = np.arange(101) * 4, np.tile([1, 2, 3, 4], 100)
    hashed = trace._replace(block_start=start, block_hash=shared, block_tokens=16)
    notes = " ".join(given_to(hashed))
    assert "99 % of the prompts' blocks were there before" in notes
    assert "81 % of the requests arrive at the same instant as the one before: times lie on a grid of 3 s" in notes
    assert given_to(chat(50)) == ()


def given_to(trace: Requests) -> tuple[str, ...]:
    return handed(trace, model("llama-3.1-8b")).notes


def test_the_bound_is_round_and_below_the_best_plan(answer: PlanResult) -> None:
    tight = dataclasses.replace(answer, bound_usd_per_hour=answer.plans[0].usd_per_hour * (1 - 1e-9))
    bound = tight.to_json()["bound_usd_per_hour"]
    assert bound == answer.plans[0].usd_per_hour == round(answer.plans[0].usd_per_hour, 6)
    assert report_text.gap(tight.plans[0], tight.bound_usd_per_hour) == 0


def test_the_report_names_a_trace_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    chat(30).to_csv(path)
    result = plan(question(workload={"trace": str(path)}))
    assert report_text.workload_text(result).startswith("mine.csv: 30 requests over ")
    shown = views.plan_view(result)["scenario"]
    assert "trace: mine.csv" in shown
    assert str(tmp_path) not in shown


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"workload": {"profile": "azure-conv-2023", "trace": "x.csv"}}, "workload"),
        ({"workload": {}}, "workload"),
        ({"hardware": [{"device": "h101"}]}, r"hardware\[0\].device"),
        ({"hardware": [{"device": "h100-sxm", "price": "-1"}]}, r"hardware\[0\].price"),
        ({"objectives": {"ttft": "0 s"}}, "objectives.ttft"),
        ({"model": "llama-9"}, "model"),
    ],
)
def test_bad_questions_are_refused_with_their_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError, match=path):
        plan(question(**changes), trace=chat(5))


def test_a_workload_is_read_cut_and_scaled(tmp_path: Path) -> None:
    llama = model("llama-3.1-8b")
    rows = zip(*(getattr(chat(200), name) for name in ("arrival_s", "prompt_tokens", "output_tokens")), strict=True)
    lines = ["arrival_s,prompt_tokens,output_tokens", *(",".join(map(str, row)) for row in rows)]
    path = str(tmp_path / "trace.csv")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = demand(WorkloadChoice(trace=path), llama)
    assert whole.requests.n == 200
    assert whole.notes == ()
    few = demand(WorkloadChoice(trace=path, requests=50), llama)
    assert few.requests.n == 50
    assert "first 50 of 200" in few.notes[0]
    early = demand(WorkloadChoice(trace=path, duration="5 s"), llama).requests
    assert early.arrival_s[-1] <= 5 < whole.requests.arrival_s[early.n]
    with pytest.raises(InputError, match=r"workload.duration = '1 ns': holds 1 request of 200"):
        demand(WorkloadChoice(trace=path, duration="1 ns"), llama)
    fast = demand(WorkloadChoice(trace=path, rate="100/s"), llama).requests
    assert fast.n / fast.span_s == pytest.approx(100)
    drawn = demand(WorkloadChoice(profile="azure-conv-2023", rate="5/s", duration="60 s"), llama)
    assert drawn.requests.n == pytest.approx(300, rel=0.3)
    assert drawn.notes == ()
    assert "no duration" in demand(WorkloadChoice(profile="azure-conv-2023"), llama).notes[0]


def test_plans_that_behave_the_same_are_one() -> None:
    one = {"tensor_parallel": [1], "weights": ["bf16"], "kv_cache": ["bf16"], "token_budget": [8192]}
    tree = question(hardware=[{"device": "h100-sxm"}], search=one | {"max_batch": [200, 250, 300]})
    result = plan(tree, trace=chat(100, rate=2))
    assert [item.deployment.pools[0].replica.batching.max_batch for item in result.plans] == [200]
    assert result.candidates == 3
    assert "2 plans serve every request just as another" in result.notes[-1]
    tight = plan(
        question(hardware=[{"device": "h100-sxm"}], search=one | {"max_batch": [2, 3]}), trace=chat(100, rate=2)
    )
    assert len(tight.plans) + len(tight.rejected) == 2


def test_mixtures_are_cut_three_ways() -> None:
    tree = question(
        model="mixtral-8x7b", hardware=[{"device": "h100-sxm"}], search={"tensor_parallel": [1, 2], "weights": ["bf16"]}
    )
    kept = enumerate_candidates(model("mixtral-8x7b"), load_scenario(tree)).kept
    cuts = {(c.replica.tensor_parallel, c.replica.data_parallel, c.replica.expert_parallel) for c in kept}
    assert cuts == {(2, 1, 1), (2, 1, 2), (1, 2, 2)}


def test_precisions_are_what_the_device_computes_with() -> None:
    llama, free = model("llama-3.1-8b"), SearchChoice()
    assert precisions(llama, device("h100-sxm"), free) == (("bf16", "bf16"), ("fp8", "bf16"), ("fp8", "fp8"))
    assert ("int8", "bf16") in precisions(llama, device("a100-sxm-80gb"), free)
    assert all(cache == "bf16" for _, cache in precisions(llama, device("a100-sxm-80gb"), free))
    assert ("nvfp4", "fp8") in precisions(llama, device("b200-sxm"), free)
    assert ("int4", "bf16") in precisions(llama, device("jetson-orin-nano-8gb"), free)
    asked = SearchChoice(weights=("int4",), kv_cache=("int8",))
    assert precisions(llama, device("h100-sxm"), asked) == (("int4", "int8"),)


def test_equal_candidates_are_tried_once() -> None:
    once = {"tensor_parallel": [1], "weights": ["bf16"], "kv_cache": ["bf16"]}
    static = load_scenario(question(search=once | {"batching": ["static", "chunked"]}))
    found = enumerate_candidates(model("llama-3.1-8b"), static)
    labels = [item.label for item in found.kept]
    assert len(set(labels)) == len(labels)
    assert sum("static" in label for label in labels) == 2 * 2  # devices and batches: it has no token budget
    assert sum("chunked" in label for label in labels) == 2 * 3 * 2
    twice = question(
        hardware=[{"device": "l40s"}, {"device": "l40s", "purchase": "owned", "price": "$1/h"}], search=once
    )
    twice["hardware"][0]["price"] = "$1/h"
    again = enumerate_candidates(model("llama-3.1-8b"), load_scenario(twice))
    assert (len(again.kept), again.merged) == (6, 6)


def test_heads_limit_parallelism() -> None:
    tree = question(search={"tensor_parallel": [3, 1]}, hardware=[{"device": "l40s"}])
    found = enumerate_candidates(model("llama-3.1-8b"), load_scenario(tree))
    reasons = {item.label: item for item in found.rejected}
    assert reasons["l40s tp3 bf16"].constraint == "parallelism"
    assert all(item.replica.tensor_parallel == 1 for item in found.kept)


def test_a_stage_leaves_its_node_only_where_that_is_asked_for() -> None:
    tree = question(hardware=[{"device": "rtx-4090", "max": 64}], search={"weights": ["bf16"]})
    found = enumerate_candidates(model("llama-3.1-8b"), load_scenario(tree))
    most = device("rtx-4090").node_devices
    assert most < 8
    assert {c.replica.tensor_parallel for c in found.kept} == {n for n in (1, 2, 4, 8) if n <= most}
    (left,) = [item for item in found.rejected if item.label.startswith("rtx-4090 tp8 bf16")][:1]
    assert left.constraint == "node"
    assert "search.tensor_parallel" in left.reason
    asked = question(
        hardware=[{"device": "h100-sxm", "max": 16}],
        search={"tensor_parallel": [8, 16], "weights": ["bf16"], "kv_cache": ["bf16"], "token_budget": [2048]},
    )
    result = plan(asked, trace=chat(20))
    inside, across = (next(p for p in result.plans if f" tp{n} " in p.label) for n in (8, 16))
    assert across.summary["tpot_s"]["p50"] > inside.summary["tpot_s"]["p50"]  # type: ignore[index]
    assert any("16 h100-sxm leave the node" in note for note in result.notes)
    import sonde

    again = sonde.simulate(across.deployment, result.requests)
    assert np.array_equal(again.finish_s, across.outcome.finish_s)


def test_pipelines_are_tried_where_no_node_holds_the_model() -> None:
    tree = question(model="deepseek-v3", hardware=[{"device": "h100-sxm", "max": 64}], search={"max_batch": [64]})
    found = enumerate_candidates(model("deepseek-v3"), load_scenario(tree))
    assert found.piped == ("h100-sxm",)
    assert {item.replica.pipeline_parallel for item in found.kept} <= {2, 4}
    assert found.kept
    fixed = load_scenario(tree | {"search": {"pipeline_parallel": [1]}})
    assert enumerate_candidates(model("deepseek-v3"), fixed).kept == ()
    small = load_scenario(question(hardware=[{"device": "h100-sxm", "max": 64}]))
    kept = enumerate_candidates(model("llama-3.1-8b"), small)
    assert {item.replica.pipeline_parallel for item in kept.kept} == {1}
    assert kept.piped == ()


def test_only_prices_of_one_kind_are_ranked() -> None:
    tree = question(hardware=[{"device": "h100-sxm"}, {"device": "gb300", "max": 8}])
    result = plan(tree, trace=chat(20))
    assert {pool.replica.device for item in result.plans for pool in item.deployment.pools} == {"h100-sxm"}
    (left,) = [item for item in result.rejected if item.constraint == "price"]
    assert left.label == "gb300"
    assert left.reason == "no on-demand price is known; give `price:` or `purchase: owned`"
    for bought in ({"purchase": "owned"}, {"price": "$5/h"}):
        found = enumerate_candidates(
            model("llama-3.1-8b"), load_scenario(question(hardware=[{"device": "gb300"} | bought]))
        )
        assert found.kept
        assert not [item for item in found.rejected if item.constraint == "price"]
    alone = plan(question(hardware=[{"device": "gb300"}]), trace=chat(5))
    assert "no on-demand price is known" in alone.best_failing


def engine_of(**changes: Any) -> Any:
    tree = question(search={"tensor_parallel": [1], "weights": ["bf16"], "kv_cache": ["bf16"]} | changes)
    return enumerate_candidates(model("llama-3.1-8b"), load_scenario(tree)).kept[0].engine


def told(trace: Requests, goals: tuple[Objective, ...], engine: Any, replicas: int = 1) -> tuple[str, str]:
    outcome: Outcome = run(trace, [(engine, replicas)])
    failure = explain(outcome, goals, engine)
    assert failure is not None
    assert failure.ratio > 1
    return failure.constraint, failure.reason


def test_a_burst_of_prompts_is_named_with_its_minute() -> None:
    base = chat(1500, rate=1.2)
    start, extra = 700.0, 120
    trace = requests(
        np.sort(np.concatenate([base.arrival_s, start + np.arange(extra) * 0.05])),
        np.full(base.n + extra, 500), np.full(base.n + extra, 20),
    )  # fmt: skip
    slow = trace.prompt_tokens.copy()
    slow[np.searchsorted(trace.arrival_s, start) : np.searchsorted(trace.arrival_s, start + 6)] = 4000
    kind, text = told(trace._replace(prompt_tokens=slow), (Objective("ttft", 0.95, 0.5),), engine_of(max_batch=[256]))
    assert kind == "ttft"
    assert "prompt bursts" in text
    assert "at minute 11" in text or "at minute 12" in text
    assert "against 500 ms" in text


def test_a_batch_limit_and_full_memory_are_named() -> None:
    trace = requests(np.arange(400) * 0.01, np.full(400, 100), np.full(400, 300))
    goals = (Objective("ttft", 0.99, 0.5),)
    kind, text = told(trace, goals, engine_of(max_batch=[4]))
    assert (kind, "batch limit of 4" in text) == ("batch", True)
    engine = engine_of(max_batch=[256])
    small = engine._replace(memory=engine.memory._replace(capacity_bytes=engine.memory.block_bytes * 200))
    kind, text = told(trace, goals, small)
    assert (kind, "KV memory is full" in text) == ("kv-memory", True)
    tiny = engine._replace(memory=engine.memory._replace(capacity_bytes=engine.memory.block_bytes * 20))
    assert "do not fit the KV memory" in told(trace, goals, tiny)[1]
    proof = impossible(tiny, trace, goals)
    assert proof is not None
    assert proof.constraint == "kv-memory"


def test_prompts_that_are_long_even_alone_are_named_before_anything_else() -> None:
    long = np.where(np.arange(300) % 5 == 0, 30_000, 100)
    trace = requests(np.arange(300) * 0.9, long, np.full(300, 20))
    kind, text = told(trace, (Objective("ttft", 0.99, 0.8),), engine_of(max_batch=[256]))
    assert kind == "ttft"
    assert re.search(r"long prompts \(half of those over 30,000 tokens, [\d.]+ m?s on an idle replica\)", text)


def test_more_prompts_than_can_be_prefilled_are_counted() -> None:
    engine = engine_of(max_batch=[256])
    most = prefill_per_s(engine)
    trace = requests(np.arange(900) * 1000 / (1.2 * most), np.full(900, 1000), np.full(900, 4))
    kind, text = told(trace, (Objective("ttft", 0.5, 0.5),), engine)
    assert kind == "ttft"
    assert f"of {most:,.0f} that the replicas can prefill" in text
    asked = float(text.split("(")[1].split()[0].replace(",", ""))
    assert asked == pytest.approx(1.2 * most, rel=0.02)
    assert "busy" not in text


def test_large_chunks_are_named_where_tpot_fails() -> None:
    trace = chat(400, rate=8)
    kind, text = told(trace, (Objective("tpot", 0.99, 0.009),), engine_of(token_budget=[8192]))
    assert kind == "tpot"
    assert "p99 TPOT" in text
    assert "steps of up to 8,192 tokens hold decodes up" in text or "prompt bursts" in text


def test_what_holds_needs_no_explanation() -> None:
    trace, goals = chat(50), (Objective("ttft", 0.9, 100.0),)
    engine = engine_of()
    assert explain(run(trace, [(engine, 1)]), goals, engine) is None
    assert impossible(engine, trace, goals) is None
    assert allowed_misses(goals[0], trace) == 5


def test_gaps_between_tokens_can_be_promised_too() -> None:
    loose, tight = (plan(question(objectives={"itl": {"p90": limit}}), trace=chat(60)) for limit in ("50 ms", "1 ms"))
    assert loose.plans
    assert loose.bound_usd_per_hour == pytest.approx(0.9)
    assert loose.bound_reason.startswith("the objectives set no deadline")
    assert not tight.plans
    assert {item.constraint for item in tight.rejected} == {"itl"}
    assert "p90 ITL" in tight.best_failing


def test_hardware_that_costs_nothing_has_no_gap() -> None:
    result = plan(question(hardware=[{"device": "h100-sxm", "price": 0}]), trace=chat(60))
    assert result.plans[0].usd_per_hour == result.bound_usd_per_hour == 0
    assert np.isnan(result.gap)
    assert any("count as free" in note for note in result.notes)


@pytest.mark.data
def test_a_real_hour_of_chat() -> None:
    path = DATA / "azure_llm_2023_conv.csv.gz"
    if not path.exists():
        pytest.skip("the traces are not beside the project")
    tree = question(workload={"trace": str(path)}, objectives={"ttft": "500 ms", "tpot": "50 ms"})
    result = plan(tree)
    assert result.requests.n == 19_366
    assert result.plans
    assert result.bound_usd_per_hour <= result.plans[0].usd_per_hour
    assert result.requests_simulated >= result.requests.n

"""What the verbs answer: the JSON contract, and that Python says the same as the command line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import yaml
from conftest import ROOT, Ended

import sonde

SCENARIO: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "workload": {"profile": "azure-conv-2023", "rate": "6/s", "duration": "60 s"},
    "objectives": {"ttft": "1 s", "tpot": {"p99": "60 ms"}},
    "hardware": [{"device": "h100-sxm", "max": 4}, {"device": "l40s", "max": 8}],
    "search": {"tensor_parallel": [1], "weights": ["bf16"], "token_budget": [2048], "max_batch": [64]},
}
LATENCIES = {"p50", "p90", "p99"}
PLAN_KEYS = {
    "rank", "deployment", "devices", "usd_per_hour", "usd_per_million_tokens", "joules_per_token", "ttft_s", "tpot_s",
    "e2e_s", "attainment", "precision",
}  # fmt: skip
RESULT_KEYS = {"plans", "bound_usd_per_hour", "candidates", "requests_simulated", "rejected"}
SUMMARY_KEYS = {
    "ttft_s", "tpot_s", "e2e_s", "itl_s", "requests", "completed", "tokens_per_s", "goodput_requests_per_s",
    "energy_j", "usd", "steps", "simulation_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> Any:
    return sonde.plan(SCENARIO)


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Give a function that writes the scenario, with keys changed, into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(**changes: object) -> Path:
        Path("scenario.yaml").write_text(yaml.safe_dump(SCENARIO | changes), encoding="utf-8")
        return Path("scenario.yaml")

    return write


#: keys that are there where techniques are named, an objective is on transfers, or requests have priorities
SOMETIMES = {"techniques", "transfer_s", "itl_note", "priorities"}


def documented(heading: str) -> set[str]:
    """The keys in the tables of a section of docs/json.md."""
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_plan_json_keeps_its_contract(scenario: Callable[..., Path], sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli("plan", scenario(), "--json")
    assert end.code == 0
    answer = end.json()
    assert answer.keys() >= RESULT_KEYS
    assert answer["plans"]
    for rank, plan in enumerate(answer["plans"], 1):
        assert plan.keys() >= PLAN_KEYS
        assert plan["rank"] == rank
        assert all(plan[key].keys() == LATENCIES for key in ("ttft_s", "tpot_s", "e2e_s"))
        assert plan["ttft_s"]["p99"] <= 1.0
        assert plan["tpot_s"]["p99"] <= 0.060
        assert plan["usd_per_hour"] >= answer["bound_usd_per_hour"]
        assert sonde.load(plan["deployment"]).devices == plan["devices"]
    prices = [plan["usd_per_hour"] for plan in answer["plans"]]
    assert prices == sorted(prices)
    assert all(item.keys() >= {"label", "constraint", "reason"} for item in answer["rejected"])
    said = documented("`sonde plan --json`") | documented("`sonde simulate --json`")
    assert set(answer) | set(answer["plans"][0]) == said - SOMETIMES


def test_plan_writes_its_report_where_it_says(scenario: Callable[..., Path], sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli("plan", scenario())
    assert end.code == 0
    assert "report.html" in end.err
    assert "llama-3.1-8b" in Path("report.html").read_text(encoding="utf-8")
    assert "h100-sxm" in end.out
    assert sonde_cli("plan", scenario(), "--no-report", "--report", "other.html").code == 0
    assert not Path("other.html").exists()


def test_objectives_that_nobody_can_meet_end_with_1_and_the_best(
    scenario: Callable[..., Path], sonde_cli: Callable[..., Ended]
) -> None:
    end = sonde_cli("plan", scenario(objectives={"ttft": "1 ms"}), "--json", "--no-report")
    assert end.code == 1
    answer = end.json()
    assert answer["plans"] == []
    assert answer["rejected"]
    assert answer["best_failing"]
    assert answer["best_failing"] in end.err


def test_a_plan_that_is_interrupted_is_printed(
    scenario: Callable[..., Path], sonde_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    import dataclasses

    from sonde.plan import planner

    cut = dataclasses.replace(result, interrupted=True)
    monkeypatch.setattr(planner, "plan", lambda *_, **__: cut)
    end = sonde_cli("plan", scenario(), "--no-report")
    assert end.code == 130
    assert result.plans[0].label.split(",")[0] in end.out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": "llama-3.1-8b"}, "did you mean 'model'"),
        ({"model": "lama-3.1-8b"}, "did you mean"),
        ({"objectives": {"ttft": "500 parsecs"}}, "objectives.ttft"),
        ({"objectives": {"ttft": -1}}, "objectives.ttft"),
        ({"hardware": []}, "hardware"),
        ({"hardware": [{"device": "h100-smx"}]}, "h100-sxm"),
        ({"workload": {"profile": "azure-conv-2023", "rate": "0/s"}}, "workload.rate"),
        ({"workload": {}}, "workload"),
    ],
)
def test_a_wrong_scenario_ends_with_2_and_says_where(
    changes: dict[str, object], words: str, scenario: Callable[..., Path], sonde_cli: Callable[..., Ended]
) -> None:
    end = sonde_cli("plan", scenario(**changes), "--no-report")
    assert end.code == 2
    assert words in end.err
    assert "Traceback" not in end.err


def test_simulate_json_keeps_its_contract(sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli(
        "simulate", ROOT / "examples/deployment-8b.yaml", "--profile", "azure-conv-2023", "--rate", "8/s",
        "--duration", "60 s", "--objective", "ttft=500ms", "--objective", "tpot.p90=50ms", "--json",
    )  # fmt: skip
    assert end.code == 0, end.err
    answer = end.json()
    assert answer.keys() >= SUMMARY_KEYS
    assert set(answer) == documented("`sonde simulate --json`") - SOMETIMES
    assert answer["requests"] == answer["completed"] > 300
    for key in ("ttft_s", "tpot_s", "e2e_s", "itl_s"):
        assert 0 < answer[key]["p50"] <= answer[key]["p90"] <= answer[key]["p99"]


def test_simulate_takes_a_trace_and_a_closed_loop(tmp_path: Path, sonde_cli: Callable[..., Ended]) -> None:
    trace = tmp_path / "trace.csv"
    assert sonde_cli("trace", "generate", "azure-code-2023", "--requests", 200, "--out", trace).code == 0
    deployment = ROOT / "examples/deployment-8b.yaml"
    opened = sonde_cli("simulate", deployment, "--trace", trace, "--json").json()
    closed = sonde_cli("simulate", deployment, "--trace", trace, "--clients", 2, "--json").json()
    assert opened["requests"] == closed["requests"] == 200
    assert closed["span_s"] != pytest.approx(opened["span_s"])
    faster = sonde_cli("simulate", deployment, "--trace", trace, "--rate", "1000/s", "--json").json()
    assert faster["ttft_s"]["p99"] > opened["ttft_s"]["p99"]
    text = sonde_cli("simulate", deployment, "--trace", trace, "--objective", "ttft=10 min").out
    assert all(word in text for word in ("TTFT", "TPOT", "ITL", "kept"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one"),
        (["--profile", "azure-conv-2023", "--objective", "ttft"], "--objective"),
        (["--profile", "azure-conv-2023", "--objective", "tftt=1s"], "did you mean 'ttft'"),
        (["--profile", "azure-conv-2023", "--objective", "ttft=1 parsec"], "ttft"),
        (["--profile", "azure-conv-2023", "--duration", "ten minutes"], "ten minutes"),
        (["--profile", "azure-conv-2023", "--clients", "0"], "--clients"),
        (["--profile", "azure-conv-2023", "--seed", "-1"], "--seed"),
        (["--profile", "azure-conv-2023", "--rate", "1e12/s", "--duration", "1 min"], "at most 200,000,000 requests"),
        (["--profile", "azure-conv-2023", "--duration", "1 ns"], "holds 1 request"),
        (["--profile", "azure-conv-2023", "--objective", "ttft=1s", "--objective", "ttft.p99=2s"], "is there twice"),
    ],
)
def test_simulate_refuses_what_it_cannot_use(arguments: list[str], words: str, sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli("simulate", ROOT / "examples/deployment-8b.yaml", *arguments)
    assert end.code == 2
    assert words in end.err
    assert not end.out


def test_a_policy_is_found_beside_the_scenario_and_the_deployment(
    tmp_path: Path, sonde_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
    folder, name = tmp_path / "question", "mine_beside"
    folder.mkdir()
    (folder / f"{name}.py").write_text(page.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    search = SCENARIO["search"] | {"routing": [f"{name}:emptiest"]}
    (folder / "scenario.yaml").write_text(yaml.safe_dump(SCENARIO | {"search": search}), encoding="utf-8")
    end = sonde_cli("plan", "question/scenario.yaml", "--no-report", "--json")
    assert end.code == 0, end.err
    best = end.json()["plans"][0]["deployment"]
    assert best["routing"]["policy"] == f"{name}:emptiest"
    (folder / "deployment.yaml").write_text(yaml.safe_dump(best), encoding="utf-8")
    sys.modules.pop(name)
    end = sonde_cli("simulate", "question/deployment.yaml", "--profile", "azure-conv-2023", "--duration", "20 s")
    assert end.code == 0, end.err


def test_a_scenario_without_workload_needs_a_trace(
    scenario: Callable[..., Path], sonde_cli: Callable[..., Ended]
) -> None:
    path = scenario()
    path.write_text(yaml.safe_dump({k: v for k, v in SCENARIO.items() if k != "workload"}), encoding="utf-8")
    end = sonde_cli("plan", path, "--no-report")
    assert end.code == 2
    assert "workload = (missing)" in end.err
    Path("t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},100,20\n" for i in range(20)))
    assert sonde_cli("plan", path, "--no-report", "--trace", "t.csv").code == 0


def test_tables_that_are_piped_fold_only_where_columns_says_so(
    scenario: Callable[..., Path], sonde_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    path = scenario(hardware=[*SCENARIO["hardware"], {"device": "gb300"}])
    wide = sonde_cli("plan", path, "--no-report", "--top", 1)
    assert "no on-demand price is known; give `price:` or `purchase: owned`" in wide.out
    assert "in the report" not in wide.out
    assert "more plans are in --json" in wide.out
    assert "Lower bound" in wide.out
    assert "from 0 ns" not in wide.out
    assert " from the start must be served" in wide.out
    monkeypatch.setenv("COLUMNS", "90")
    assert max(map(len, sonde_cli("plan", path, "--no-report").out.splitlines())) <= 90


def test_a_scenario_is_no_deployment_nor_the_other_way_round(sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli("simulate", ROOT / "examples/chat-8b.yaml", "--profile", "azure-conv-2023")
    assert end.code == 2
    assert "this is a scenario; `sonde plan` takes it" in end.err
    end = sonde_cli("plan", ROOT / "examples/deployment-8b.yaml")
    assert end.code == 2
    assert "this is a deployment; `sonde simulate` takes it" in end.err


def test_traces_are_generated_described_and_fitted(tmp_path: Path, sonde_cli: Callable[..., Ended]) -> None:
    first = sonde_cli("trace", "generate", "azure-conv-2023", "--duration", "5 min", "--seed", 7)
    trace, profile = tmp_path / "trace.csv", tmp_path / "mine.yaml"
    trace.write_text(first.out, encoding="utf-8")
    assert first.out == sonde_cli("trace", "generate", "azure-conv-2023", "--duration", "5 min", "--seed", 7).out
    assert first.out != sonde_cli("trace", "generate", "azure-conv-2023", "--duration", "5 min", "--seed", 8).out
    told = sonde_cli("trace", "describe", trace, "--json").json()
    assert told["requests"] == len(first.out.splitlines()) - 1
    assert sonde_cli("trace", "fit", trace, "--out", profile, "--name", "mine").code == 0
    again = sonde_cli("trace", "generate", profile, "--requests", 500, "--json").json()
    assert again["requests"] == 500
    assert again["prompt_tokens"]["p50"] == pytest.approx(told["prompt_tokens"]["p50"], rel=0.1)
    assert "prompt_tokens" in sonde_cli("trace", "describe", trace).out


def test_python_says_what_the_command_line_says(
    scenario: Callable[..., Path], sonde_cli: Callable[..., Ended], result: Any
) -> None:
    answer = sonde_cli("plan", scenario(), "--json", "--no-report").json()
    assert [plan["label"] for plan in answer["plans"]] == [plan.label for plan in result.plans]
    assert [plan["ttft_s"]["p99"] for plan in answer["plans"]] == [
        plan.summary["ttft_s"]["p99"] for plan in result.plans
    ]


def test_python_simulates_paths_trees_and_mappings_alike(tmp_path: Path, result: Any) -> None:
    trace = tmp_path / "trace.csv"
    result.requests.to_csv(trace)
    best = result.plans[0].deployment
    runs = [
        sonde.simulate(best, result.requests),
        sonde.simulate(best.model_dump(mode="json"), sonde.read_trace(trace)),
        sonde.simulate(best, str(trace)),
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.finish_s - run.arrival_s, runs[0].finish_s - runs[0].arrival_s, atol=1e-6)
    np.testing.assert_array_equal(runs[0].finish_s, result.plans[0].outcome.finish_s)
    frame = runs[0].to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame.height == result.requests.n


def test_python_verbs_are_there_with_their_words() -> None:
    assert all(getattr(sonde, name).__doc__ for name in sonde.__all__)
    assert sonde.model("llama-3.1-8b").name == "llama-3.1-8b"
    assert sonde.device("h100-sxm").node_devices == 8


def test_loading_a_folder_does_not_hide_the_verb_of_its_name() -> None:
    importlib.import_module("sonde.plan.result")
    assert "Plan for llama-3.1-8b" in repr(sonde.plan(SCENARIO))


def test_bench_rows_keep_their_contract(sonde_cli: Callable[..., Ended]) -> None:
    rows = sonde_cli("bench", "--only", "colocated, chunked", "--json").json()
    assert [set(row) for row in rows] == [documented("`sonde bench --json`")]
    assert rows[0]["name"] == "colocated, chunked"
    assert rows[0]["requests"] == 19_366
    assert all(rows[0][key] > 0 for key in ("requests_per_s", "steps_per_s", "peak_bytes", "cpu_s", "wall_s"))


def test_classes_of_requests_are_told_apart(
    sonde_cli: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a replica that is short of memory the urgent wait less, and quantiles are those of each class alone."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{0.02 * i},{400 + 7 * (i % 40)},{20 + i % 30},{i % 2}" for i in range(200)]
    Path("trace.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,priority", *rows]), encoding="utf-8")
    replica = {"model": "llama-3.1-8b", "device": "h100-sxm", "memory_fraction": 0.215, "batching": {"max_batch": 8}}
    Path("tree.yaml").write_text(yaml.safe_dump({"sites": [{"pools": [{"replica": replica}]}]}), encoding="utf-8")
    answer = sonde_cli("simulate", "tree.yaml", "--trace", "trace.csv", "--json").json()
    first, second = answer["priorities"]
    assert (first["priority"], first["requests"], second["priority"], second["requests"]) == (0, 100, 1, 100)
    assert first["ttft_s"]["p50"] < second["ttft_s"]["p50"]
    assert first["preemptions"] + second["preemptions"] == answer["preemptions"]
    deployment, trace = sonde.load("tree.yaml"), sonde.read_trace("trace.csv")
    outcome = sonde.simulate(deployment, trace)
    for row in (first, second):
        of = outcome.requests.priority == row["priority"]
        ranked = np.sort(outcome.ttft_s[of])
        assert row["ttft_s"] == {"p50": ranked[49], "p90": ranked[89], "p99": ranked[98]}
    text = sonde_cli("simulate", "tree.yaml", "--trace", "trace.csv").out
    assert "by priority" in text

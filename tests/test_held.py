"""What numbers are held in under techniques: in labels, in JSON, in YAML to copy, and in bytes of a device's share."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import sonde
from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.cli.simulate import simulate as simulate_verb
from sonde.cost.shard import Shard
from sonde.deployment.load import load
from sonde.deployment.tree import Replica
from sonde.errors import InputError
from sonde.metrics import ITL_UNKNOWN, Outcome
from sonde.report.page import write_page
from sonde.report.tables import outcome_table
from sonde.report.text import describe
from sonde.report.views import as_yaml
from sonde.techniques.compose import chosen, shard_under
from sonde.techniques.held import changes, precision, precisions

LLAMA, H100 = "llama-3.1-8b", "h100-sxm"
SCENARIO: dict[str, Any] = {
    "model": LLAMA, "workload": {"profile": "azure-conv-2023", "rate": "4/s", "requests": 200},
    "objectives": {"ttft": "2 s", "tpot": "100 ms"}, "hardware": [{"device": H100, "max": 4}],
    "search": {"token_budget": [2048], "max_batch": [64], "tensor_parallel": [1]},
}  # fmt: skip


def share(replica: Replica, *uses: Any) -> Shard:
    return shard_under(model(replica.model), device(replica.device), replica, chosen(uses))


@pytest.mark.parametrize(
    ("uses", "choices", "short", "rest"),
    [
        ([], {}, "bf16", ("bf16", "bf16", "bf16")),
        ([], {"weights": "fp8", "kv_cache": "fp8"}, "fp8 kv-fp8", ("fp8", "bf16", "fp8")),
        (["w4a8"], {}, "w4a8", ("int4", "int8", "bf16")),
        (["w4a8"], {"weights": "fp8", "activations": "fp8"}, "w4a8 act-fp8", ("int4", "int8", "bf16")),
        ([{"w4a8": {"cache_bits": 4}}], {"kv_cache": "fp8"}, "w4a8 kv-int4", ("int4", "int8", "int4")),
        (["w4a4"], {}, "w4a4 kv-int4", ("int4", "int4, int8", "int4")),
        ([{"w4a4": {"four": 1.0, "cache_bits": 16}}], {}, "w4a4", ("int4", "int4", "bf16")),
        (["w2a8kv4"], {}, "w2a8 kv-int4", ("int2", "int8", "int4")),
        ([{"low-bit-weights": {"number": "float6_e3m2"}}], {}, "float6_e3m2", ("float6_e3m2", "bf16", "bf16")),
        (["low-bit-weights"], {"activations": "fp16"}, "uint4 act-fp16", ("uint4", "fp16", "bf16")),
        (["chunked-prefill", "power-cap"], {}, "bf16", ("bf16", "bf16", "bf16")),
    ],
)
def test_numbers_are_said_to_be_held_in_what_techniques_make_of_them(
    uses: list[Any], choices: dict[str, Any], short: str, rest: tuple[str, str, str]
) -> None:
    replica = Replica(model=LLAMA, device=H100, **choices)
    assert tuple(precision(replica, chosen(uses))) == (short, *rest)


@pytest.mark.parametrize("name", ["w4a8", "w4a4", "w2a8kv4", "low-bit-weights"])
def test_what_is_said_takes_the_bytes_that_are_counted(name: str) -> None:
    """Bits over 8, and what scales add: an eighth at most."""
    replica = Replica(model=LLAMA, device=H100)
    part, said = share(replica, name), precision(replica, chosen([name]))
    for held, bytes_ in ((said.weights, part.weight_bytes), (said.kv_cache, part.kv_bytes)):
        bits = 16 if held == "bf16" else int(held.removeprefix("u").removeprefix("int"))
        assert bits / 8 <= bytes_ <= bits / 8 * 1.125


def test_a_plan_says_what_is_held_and_keeps_the_tree_as_written() -> None:
    result = sonde.plan({**SCENARIO, "techniques": ["w4a4"]}, top=1)
    plan = result.plans[0]
    assert " w4a4" in plan.label
    assert "kv-int4" in plan.label
    for label in (
        *(item.label for item in result.plans),
        *(r.label for r in result.rejected if r.constraint != "technique"),
    ):
        assert " bf16" not in label
    row: Any = plan.to_json()
    assert row["precision"] == [{"pool": "pool", "weights": "int4", "activations": "int4, int8", "kv_cache": "int4"}]
    replica = row["deployment"]["sites"][0]["pools"][0]["replica"]
    assert replica["weights"] in ("bf16", "fp8")
    assert describe(plan.deployment) == plan.label
    again = sonde.simulate(load(row["deployment"]), result.requests)
    assert again.summary()["energy_j"] == plan.summary["energy_j"]


def test_labels_tell_all_candidates_apart() -> None:
    """Products alike, activations between them not."""
    result = sonde.plan({**SCENARIO, "techniques": ["w4a8"]}, top=1)
    labels = [plan.label for plan in result.plans]
    assert len(set(labels)) == len(labels) > 1
    assert any("act-fp8" in label for label in labels)


def test_what_a_technique_refuses_is_named_as_it_was_before() -> None:
    search = {**SCENARIO["search"], "weights": ["bf16", "fp8"]}
    result = sonde.plan({**SCENARIO, "search": search, "techniques": ["low-bit-weights"]}, top=1)
    refused = [item for item in result.rejected if item.constraint == "technique"]
    assert refused
    assert all(" fp8" in item.label for item in refused)


def test_yaml_to_copy_says_what_techniques_change_and_reads_back() -> None:
    pool = {"name": "chat", "replica": {"model": LLAMA, "device": H100}}
    uses = [{"w4a8": {"cache_bits": 4}}, {"chunked-prefill": {"token_budget": 512}}]
    tree = load({"sites": [{"pools": [pool]}], "techniques": uses})
    (line,) = changes(tree)
    assert line.startswith("chat: ")
    for words in (
        "weights bf16 -> int4",
        "activations bf16 -> int8",
        "kv_cache bf16 -> int4",
        "token_budget 2048 -> 512",
    ):
        assert words in line
    text = as_yaml(tree)
    assert text.splitlines()[1] == f"#   {line}"
    assert load(text) == tree
    plain = load({"sites": [{"pools": [pool]}], "techniques": ["live-migration"]})
    assert changes(plain) == []
    assert not as_yaml(plain).startswith("#")


def test_a_technique_of_one_pool_changes_that_pool_alone() -> None:
    pools = [{"name": name, "replica": {"model": LLAMA, "device": H100}} for name in ("old", "new")]
    tree = load({"sites": [{"pools": pools}], "techniques": [{"w4a8": {"pools": ["new"]}}]})
    assert [row["weights"] for row in precisions(tree)] == ["bf16", "int4"]
    assert describe(tree).count("w4a8") == 1


# ---- gaps between tokens where a step makes several


GUESSING: list[Any] = [{"speculative-decoding": {"acceptance": 0.6}}, {"multi-token-prediction": {"trained": True}}]


@pytest.mark.parametrize("use", GUESSING)
def test_gaps_between_tokens_are_not_known_where_steps_make_several(use: Any, tmp_path: Path) -> None:
    result = sonde.plan({**SCENARIO, "techniques": [use]}, top=1)
    (best, *_) = result.plans
    assert all(math.isnan(value) for value in best.summary["itl_s"].values())  # type: ignore[attr-defined]
    assert best.summary["itl_note"] == ITL_UNKNOWN
    assert all(math.isnan(end) for end in best.outcome.interval("itl", 0.99))
    assert any("ITL is not known" in text for text in result.notes)
    assert "ITL" not in repr(best.outcome)
    assert math.isnan(sonde.simulate(best.deployment, result.requests).quantile("itl", 0.5))
    assert "ITL is not known" in shown(best.outcome)
    page = write_page(result, tmp_path / "page.html").read_text(encoding="utf-8")
    assert ITL_UNKNOWN in page
    assert 'data-figure="spread-tpot"' in page
    assert 'data-figure="spread-itl"' not in page
    plain = sonde.plan(SCENARIO, top=1)
    assert "itl_note" not in plain.plans[0].summary
    assert plain.plans[0].summary["itl_s"]["p50"] > 0  # type: ignore[index]
    assert "not known" not in shown(plain.plans[0].outcome)


@pytest.mark.parametrize("use", GUESSING)
def test_simulate_says_that_gaps_are_not_known_and_takes_no_objective_on_them(use: Any, tmp_path: Path) -> None:
    pool = {"replica": {"model": LLAMA, "device": H100}}
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"sites": [{"pools": [pool]}], "techniques": [use]}))
    asked = [str(path), "--profile", "azure-conv-2023", "--rate", "2/s", "--duration", "20 s"]
    said = json.loads(CliRunner().invoke(simulate_verb, [*asked, "--json"]).stdout)
    assert set(said["itl_s"].values()) == {None}
    assert said["itl_note"] == ITL_UNKNOWN
    assert said["interval"]["itl_s"]["p99"] == [None, None]
    told = CliRunner().invoke(simulate_verb, asked)
    assert "ITL is not known" in " ".join(told.output.split())
    refused = CliRunner().invoke(simulate_verb, [*asked, "--objective", "itl=100ms"]).exception
    assert isinstance(refused, InputError)
    assert (refused.path, refused.allowed) == ("objectives.itl", f"cannot stand beside {next(iter(use))}")


def test_no_objective_on_gaps_is_planned_for_where_they_are_not_known() -> None:
    scenario = {**SCENARIO, "objectives": {"itl": "100 ms"}}
    assert sonde.plan(scenario, top=1).plans
    with pytest.raises(InputError, match="promise tpot"):
        sonde.plan({**scenario, "techniques": [GUESSING[0]]}, top=1)


def shown(outcome: Outcome) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(outcome_table(outcome))
    return console.export_text()

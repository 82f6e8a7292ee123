"""What techniques make of a step, operator by operator, and what `sonde plan --explain` says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import sonde
from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.cli.plan import plan
from sonde.cost.compile import step_table
from sonde.cost.explain import step_rows
from sonde.cost.table import coefficients
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError
from sonde.plan.ablation import brought
from sonde.report.text import fleet_words
from sonde.techniques.compose import chosen, replica_under, shard_under

SCENARIO = {
    "model": "llama-3.1-8b",
    "workload": {"profile": "azure-conv-2023", "rate": "20/s", "requests": 400},
    "objectives": {"ttft": "1 s", "tpot": "40 ms"},
    "hardware": [{"device": "a100-sxm-80gb", "max": 16}],
    "search": {"token_budget": [512], "max_batch": [64], "tensor_parallel": [1]},
}


@pytest.mark.parametrize(
    ("name", "on"),
    [("w4a8", "a100-sxm-80gb"), ("w4a4", "a100-sxm-80gb"), ("w2a8kv4", "a100-sxm-80gb"), ("pruning", "a100-sxm-80gb"),
     ("fused-layers", "sn40l"), (("low-bit-weights", {"number": "uint4"}), "a100-sxm-80gb")],
)  # fmt: skip
def test_rows_of_a_step_under_a_technique_add_up_to_its_table(name: str | tuple[str, dict[str, str]], on: str) -> None:
    techniques = chosen([name if isinstance(name, str) else {name[0]: name[1]}])
    written = Replica(model="llama-3.1-8b", device=on, tensor_parallel=2)
    replica = replica_under(written, techniques)
    part = shard_under(model("llama-3.1-8b"), device(on), replica, techniques)
    assert part.edits
    table = step_table(part)
    for prompt, batch, context in ((0, 48, 1000), (700, 0, 0), (512, 32, 400)):
        rows = step_rows(part, prompt, batch, context)
        step = (prompt, batch, prompt**2 / 2, float(batch * context))
        assert sum(row.seconds for row in rows) == pytest.approx(coefficients(table.time, *step), rel=1e-9)
        assert sum(row.joules for row in rows) == pytest.approx(coefficients(table.energy, *step), rel=1e-6)
    plain = step_rows(shard_under(model("llama-3.1-8b"), device(on), written), 0, 48, 1000)
    assert sum(row.bytes for row in step_rows(part, 0, 48, 1000)) < sum(row.bytes for row in plain)


def test_each_technique_is_shown_alone_together_and_removed() -> None:
    uses = ["w4a8", {"speculative-decoding": {"acceptance": 0.8}}, "disaggregation"]
    rows = brought(sonde.plan({**SCENARIO, "techniques": uses}, top=1))
    assert [row.name for row in rows] == [
        "none", "w4a8 alone", "speculative-decoding alone", "disaggregation alone", "all",
        "without w4a8", "without speculative-decoding", "without disaggregation",
    ]  # fmt: skip
    by = {row.name: row for row in rows}
    for name, row in by.items():
        assert row.found is not None, row.reason
        apart = "disaggregation" in row.techniques
        assert ("(prefill)" in row.found.label) == apart, name
        assert row.goodput >= 19  # it holds at the 20/s that were asked for, and the search is to 2 %
    # what is known before: weights of half the bytes, and 2.9 tokens a step for little, cannot hurt what only decodes
    assert by["w4a8 alone"].summary["tpot_s"]["p50"] < by["none"].summary["tpot_s"]["p50"]
    none, guessing = by["none"], by["speculative-decoding alone"]
    assert guessing.goodput / guessing.found.usd_per_hour > none.goodput / none.found.usd_per_hour


def test_a_technique_that_changes_nothing_is_said_to_and_why() -> None:
    uses = [{"chunked-prefill": {"token_budget": 512}}, {"power-cap": {"cap": "400 W"}}, "w4a8"]
    rows = {row.name: row for row in brought(sonde.plan({**SCENARIO, "techniques": uses}, top=1))}
    assert rows["chunked-prefill alone"].same_as == "none"
    assert rows["chunked-prefill alone"].reason == "the cheapest fleet does so without it"
    assert rows["without chunked-prefill"].same_as == "all"
    assert rows["power-cap alone"].same_as == "none"  # it is the peak of the device
    assert "cap allows" in rows["power-cap alone"].reason
    for name in ("none", "all", "w4a8 alone", "without w4a8"):
        assert (rows[name].same_as, rows[name].reason) == ("", "")
    said = fleet_words(rows["chunked-prefill alone"])
    assert said.endswith("; changes nothing here: the cheapest fleet does so without it")
    assert "; the same as with all: " in fleet_words(rows["without power-cap"])
    assert fleet_words(rows["w4a8 alone"]) == rows["w4a8 alone"].found.label
    assert rows["without power-cap"].to_json()["same_as"] == "all"


def test_memory_that_nobody_runs_short_of_is_given_as_the_reason() -> None:
    rows = {row.name: row for row in brought(sonde.plan({**SCENARIO, "techniques": ["distributed-attention"]}, top=1))}
    row = rows["distributed-attention alone"]
    assert row.same_as == "none"
    assert row.reason.startswith("no replica ran short (")


def test_migration_that_moves_nothing_is_told_from_the_routing_it_brings() -> None:
    scenario = {**SCENARIO, "techniques": ["live-migration"]}
    row = next(row for row in brought(sonde.plan(scenario, top=1)) if row.name == "live-migration alone")
    assert (row.summary["migrations"], row.same_as) == (0, "")
    assert fleet_words(row).endswith("; nothing moved: what changes is where requests are sent (dispatch)")
    still = {**SCENARIO, "techniques": [{"live-migration": {"dispatch": False}}]}
    row = next(row for row in brought(sonde.plan(still, top=1)) if row.name == "live-migration alone")
    assert row.same_as == "none"
    assert "no replica ran short while another had room" in row.reason


def test_rows_are_searched_as_a_plan_of_their_own_would_be() -> None:
    whole = {**SCENARIO, "techniques": ["w4a8", "async-scheduling"]}
    result = sonde.plan(whole, top=1)
    rows = {row.name: row for row in brought(result)}
    assert set(rows) == {"none", "w4a8 alone", "async-scheduling alone", "all"}
    pool = result.plans[0].deployment.pools[0].replica
    search = {**SCENARIO["search"], "weights": [pool.weights], "kv_cache": [pool.kv_cache]}
    for name, uses in (("none", []), ("w4a8 alone", ["w4a8"]), ("all", ["w4a8", "async-scheduling"])):
        alone = sonde.plan({**SCENARIO, "search": search, "techniques": uses}, top=1).plans[0]
        assert rows[name].found.usd_per_hour == alone.usd_per_hour


def test_what_holds_nothing_says_why() -> None:
    fast = {**SCENARIO, "objectives": {"tpot": "4 ms", "ttft": "1 s"},
            "techniques": [{"speculative-decoding": {"acceptance": 0.9}}]}  # fmt: skip
    rows = {row.name: row for row in brought(sonde.plan(fast, top=1))}
    assert rows["none"].found is None
    assert "TPOT" in rows["none"].reason
    assert rows["speculative-decoding alone"].found is not None


def test_nothing_to_explain_is_an_error() -> None:
    with pytest.raises(InputError, match="techniques"):
        brought(sonde.plan(SCENARIO, top=1))
    with pytest.raises(CannotError, match="no plan holds"):
        brought(sonde.plan({**SCENARIO, "objectives": {"ttft": "1 ms"}, "techniques": ["w4a8"]}, top=1))


def test_the_command_prints_what_techniques_bring(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(json.dumps({**SCENARIO, "techniques": ["w4a8"]}))
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(plan, [str(path), "--explain", "--report", str(page)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "What techniques bring" in shown.output
    assert "w4a8 alone" in shown.output
    assert "What techniques bring" in page.read_text()
    wide = CliRunner().invoke(plan, [str(path), "--no-report"], env={"COLUMNS": "260"})
    assert "CO2/h" in wide.output
    found = CliRunner().invoke(plan, [str(path), "--explain", "--no-report", "--json"])
    rows = json.loads(found.stdout)["techniques"]
    assert [row["name"] for row in rows] == ["none", "w4a8 alone"]
    assert all(row["usd_per_hour"] > 0 and row["goodput_requests_per_s"] > 0 for row in rows)
    path.write_text(json.dumps(SCENARIO))
    bare = CliRunner().invoke(plan, [str(path), "--explain", "--no-report"])
    assert isinstance(bare.exception, InputError)
    assert bare.exception.path == "techniques"
    without = CliRunner().invoke(plan, [str(path), "--no-report", "--json"])
    assert "techniques" not in json.loads(without.stdout)

"""`sonde show` of techniques and policies: all of them, each with what a user must know to write it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import yaml
from conftest import ROOT, Ended

from sonde.cli.technique import EFFECTS, describe, explained
from sonde.deployment.load import load
from sonde.errors import InputError, listed, unknown
from sonde.policies import batching, caching, migration, routing
from sonde.techniques.compose import chosen
from sonde.techniques.table import TECHNIQUES, technique

REPLICA = {"model": "llama-3.1-8b", "device": "h100-sxm"}


def nodes(owner: type) -> list[type]:
    """The class of parameters and the classes of those inside it."""
    inner = [part for field in owner.model_fields.values() for part in getattr(field.annotation, "__args__", ())]
    return [owner, *[part for part in inner if hasattr(part, "model_fields")]]


def test_all_techniques_are_listed_as_text_and_as_json(sonde_cli: Callable[..., Ended]) -> None:
    rows = sonde_cli("show", "techniques", "--json").json()
    assert [row["name"] for row in rows] == list(TECHNIQUES)
    text = sonde_cli("show", "techniques").out
    for row in rows:
        found = technique(row["name"])
        assert (row["does"], row["source"]) == (found.title, found.source)
        assert all(part in text for part in row.values())
    assert sonde_cli("show", "--json").json()["techniques"] == rows


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_line_to_paste_loads(name: str, sonde_cli: Callable[..., Ended]) -> None:
    shown = sonde_cli("show", name).out
    pasted = yaml.safe_load(shown[shown.index("  techniques:\n") :])
    tree = load({"sites": [{"pools": [{"replica": REPLICA}]}]} | pasted)
    (one,) = chosen(tree.techniques)
    assert one.name == name
    row = sonde_cli("show", name, "--json").json()
    assert pasted["techniques"] == yaml.safe_load(row["yaml"])


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_default_is_written_as_it_would_be_given(name: str) -> None:
    """All that is shown as default, given word for word, is what holds where nothing is given."""
    row, known = describe(name), technique(name).parameters.model_fields
    needed = {key: field.examples[0] for key, field in known.items() if field.is_required()}
    assert [item["name"] for item in row["parameters"] if item["required"]] == list(needed)
    written = [item for item in row["parameters"] if item["default"] is not None]
    shown = {item["name"]: yaml.safe_load(item["default"]) for item in written}
    (given,), (left_out,) = chosen([{name: needed | shown}]), chosen([{name: needed}])
    for key, value in left_out.parameters.model_dump().items():
        same = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        assert getattr(given.parameters, key) == same, key
    absent = {item["name"] for item in row["parameters"] if item["default"] is None and "." not in item["name"]}
    assert all(getattr(left_out.parameters, key) is None for key in absent - set(needed))


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_parameter_is_shown_and_explained(name: str, sonde_cli: Callable[..., Ended]) -> None:
    rows = {item["name"]: item for item in describe(name)["parameters"]}
    owner = technique(name).parameters
    assert set(owner.model_fields) - set(rows) <= {"pools"}
    text = sonde_cli("show", name).out
    for key, item in rows.items():
        assert len(item["means"]) > 5, f"{name}.{key}: the docstring of its class has no line for it"
        assert f"\n  {key}" in text
    for node in nodes(owner):
        assert set(explained(node)) <= set(node.model_fields), "the docstring explains what is no parameter"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_what_is_beyond_the_range_shown_is_refused(name: str) -> None:
    row = describe(name)
    needed = yaml.safe_load(row["yaml"])[0]
    needed = needed[name] if isinstance(needed, dict) else {}
    for item in row["parameters"]:
        found = re.search(r", (?:([\d,]+) to ([\d,]+)|at least ([\d,]+))$", item["takes"])
        if found is None or "." in item["name"]:
            continue
        low, high = found[1] or found[3], found[2]
        beyond = [int(low.replace(",", "")) - 1] + ([int(high.replace(",", "")) + 1] if high else [])
        for value in beyond:
            with pytest.raises(InputError) as caught:
                chosen([{name: needed | {item["name"]: value}}])
            assert caught.value.path == f"techniques[0].{name}.{item['name']}"


def test_every_effect_has_its_words() -> None:
    page = (ROOT / "docs" / "techniques.md").read_text(encoding="utf-8")
    assert list(EFFECTS) == re.findall(r"^\| `(\w+)` \|", page.partition("| effect |")[2].partition("\n\n")[0], re.M)
    for name in TECHNIQUES:
        found = technique(name)
        assert describe(name)["changes"] == {key: EFFECTS[key] for key in EFFECTS if getattr(found, key) is not None}


def test_units_are_those_of_a_user() -> None:
    shown = {(name, item["name"]): item for name in TECHNIQUES for item in describe(name)["parameters"]}
    assert shown["prefix-cache", "host_bandwidth"]["default"] == "25 GB/s"
    assert shown["prefix-cache", "device"]["default"] == "20 %"
    assert "share of a replica's KV memory" in shown["prefix-cache", "device"]["takes"]
    assert shown["prefix-cache", "eviction"]["takes"] == "lru or cost-aware"
    assert shown["live-migration", "interval"]["default"] == "200 ms"
    assert shown["expert-dispatch", "startup"]["unit"] == "s"
    assert shown["token-budget", "tbt"]["required"]
    assert shown["disaggregation", "stages.prefill/decode.max_batch"]["takes"] == "a whole number, 1 to 65,536"
    assert "e+" not in "".join(item["default"] or "" for item in shown.values())


def test_two_that_cannot_stand_together_say_so_of_each_other_and_why() -> None:
    pairs = {(name, other): why for name in TECHNIQUES for other, why in describe(name)["cannot"].items()}
    assert {(other, name) for name, other in pairs} == set(pairs)
    assert {(name, other) for name in TECHNIQUES for other in technique(name).cannot} <= set(pairs)
    for name, other in pairs:
        needed = {key: yaml.safe_load(describe(key)["yaml"])[0] for key in (name, other)}
        with pytest.raises(InputError) as caught:
            chosen(needed.values())
        assert pairs[other, name] in caught.value.allowed or pairs[name, other] in caught.value.allowed


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("what", [*TECHNIQUES, "techniques", "policies"])
def test_what_is_shown_fits_the_terminal(
    what: str, columns: int, sonde_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = sonde_cli("show", what).out.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(name in "\n".join(lines) for name in (TECHNIQUES if what == "techniques" else []))


def test_policies_of_every_kind_are_listed(sonde_cli: Callable[..., Ended]) -> None:
    rows = sonde_cli("show", "policies", "--json").json()
    kinds = {"batching": batching, "routing": routing, "eviction": caching, "migration": migration}
    for kind, module in kinds.items():
        assert [row["name"] for row in rows if row["kind"] == kind] == list(module.POLICIES)
    assert all(row["does"].endswith(".") for row in rows)
    assert sonde_cli("show", "defragment", "--json").json()["kind"] == "migration"


def test_a_list_that_is_cut_says_how_to_see_all() -> None:
    names = [f"name{i:02}" for i in range(13)]
    assert listed(names[:12], "sonde show models").endswith("name11 (what each is: sonde show models)")
    assert listed(names, "sonde show models").endswith("name11, ... (all 13: sonde show models)")
    assert listed(names).endswith("name11, ...")
    assert "'name03'" in unknown("path", "nam03", names, see="sonde show models").allowed


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"techniques": ["chunky"]}, "techniques"),
        ({"routing": {"policy": "least"}}, "policies"),
        ({"sites": [{"pools": [{"replica": REPLICA | {"model": "lama"}}]}]}, "models"),
        ({"sites": [{"pools": [{"replica": REPLICA | {"device": "g100"}}]}]}, "devices"),
    ],
)
def test_an_unknown_name_leads_to_the_command_that_lists_all(
    given: dict[str, object], kind: str, sonde_cli: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("given") / "deployment.yaml"
    path.write_text(yaml.safe_dump({"sites": [{"pools": [{"replica": REPLICA}]}]} | given), encoding="utf-8")
    end = sonde_cli("simulate", str(path), "--profile", "azure-conv-2023")
    assert end.code == 2
    assert f"sonde show {kind})" in end.err
    assert sonde_cli("show", kind).code == 0


def test_a_name_that_is_nothing_leads_to_the_kinds(sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli("show", "prefix-cach")
    assert end.code == 2
    assert "did you mean 'prefix-cache'" in end.err
    assert "models, devices, profiles, policies, techniques" in end.err

"""Deployments and scenarios: read, written, read again equal; and every way to be wrong says where and why."""

from __future__ import annotations

import contextlib
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from sonde.deployment.check import check, check_scenario, tensor_parallels
from sonde.deployment.load import dump, load, load_scenario, objectives
from sonde.deployment.scenario import Scenario
from sonde.deployment.tree import Deployment, Pool, Precision, Replica
from sonde.errors import InputError

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

DEPLOYMENT: dict[str, Any] = {"sites": [{"pools": [{"replica": {"model": "llama-3.1-8b", "device": "h100-sxm"}}]}]}
SCENARIO: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "workload": {"profile": "azure-conv-2023", "rate": "8/s", "duration": "10 min"},
    "objectives": {"ttft": "500 ms", "tpot": {"p99": "50 ms"}},
    "hardware": [{"device": "h100-sxm", "max": 16}, {"device": "l40s"}],
}

# ---- round trips

NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12) | st.sampled_from(
    ["yes", "on", "null", "~", "1e3", "0x1F", "10:30", "2024-01-01", "- a", "a: b", "# c", "'",
     '"', "<<", "é", " ", ".5", "_1"]
)  # fmt: skip
SIZES = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def replicas(draw: st.DrawFn) -> dict[str, Any]:
    tensor, data = draw(SIZES), draw(SIZES)
    divisors = [n for n in range(1, tensor * data + 1) if tensor * data % n == 0]
    node: dict[str, Any] = {
        "model": draw(NAMES),
        "device": draw(NAMES),
        "tensor_parallel": tensor,
        "data_parallel": data,
    }
    optional = {
        "pipeline_parallel": SIZES,
        "expert_parallel": st.sampled_from(divisors),
        "weights": st.sampled_from(typing.get_args(Precision)),
        "activations": st.sampled_from(typing.get_args(Precision)),
        "kv_cache": st.sampled_from(typing.get_args(Precision)),
        "memory_fraction": st.floats(0, 1, exclude_min=True),
        "block_tokens": st.integers(1, 1024),
        "batching": st.fixed_dictionaries(
            {}, optional={"policy": NAMES, "max_batch": st.integers(1, 8192), "token_budget": st.integers(1, 2**20),
                          "preemption": st.sampled_from(["recompute", "swap"])},
        ),
    }  # fmt: skip
    return node | draw(st.fixed_dictionaries({}, optional=optional))


POOLS = st.fixed_dictionaries(
    {"replica": replicas(), "name": NAMES},
    optional={
        "replicas": st.integers(1, 100_000),
        "purchase": st.sampled_from(["on-demand", "spot", "owned"]),
        "usd_per_device_hour": st.floats(0, 1e6) | st.integers(0, 100),
    },
)
SITES = st.fixed_dictionaries(
    {"pools": st.lists(POOLS, min_size=1, max_size=3, unique_by=lambda pool: pool["name"]), "name": NAMES},
    optional={"pue": st.floats(1, 5), "carbon_g_per_kwh": st.floats(0, 1e4), "usd_per_kwh": st.floats(0, 10)},
)
TREES = st.fixed_dictionaries(
    {"sites": st.lists(SITES, min_size=1, max_size=2, unique_by=lambda site: site["name"])},
    optional={"routing": st.fixed_dictionaries({}, optional={"policy": NAMES})},
)


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_what_is_dumped_loads_equal_and_dumps_the_same(tree: dict[str, Any]) -> None:
    deployment = load(tree)
    text = dump(deployment)
    assert load(text) == deployment
    assert dump(load(text)) == text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("deployment*.yaml")), ids=lambda path: path.name)
def test_examples_of_deployments_are_sound(path: Path) -> None:
    deployment = load(path)
    assert load(dump(deployment)) == deployment == load(str(path)) == load(path.read_text()) == load(deployment)
    assert check(deployment) == ()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("chat*.yaml")), ids=lambda path: path.name)
def test_examples_of_scenarios_are_sound(path: Path) -> None:
    scenario = load_scenario(path)
    check_scenario(scenario)
    assert {objective.metric for objective in objectives(scenario)} == {"ttft", "tpot"}


def test_defaults_are_left_out_and_prices_are_read_in_words() -> None:
    tree = {
        "sites": [{"pools": [{**DEPLOYMENT["sites"][0]["pools"][0], "usd_per_device_hour": "$2.10/h", "replicas": 1}]}]
    }
    deployment = load(tree)
    assert deployment.pools[0].usd_per_device_hour == 2.10
    assert yaml.safe_load(dump(deployment)) == {
        "sites": [{"pools": [{"replica": {"model": "llama-3.1-8b", "device": "h100-sxm"}, "usd_per_device_hour": 2.1}]}]
    }


def test_nodes_may_stand_in_a_mapping() -> None:
    pool = Pool(replica=Replica(model="a", device="b", tensor_parallel=2), replicas=3)
    assert load({"sites": [{"pools": (pool,)}]}).pools == (pool,)


# ---- the tree stays small, and known to its page


def leaves(node: type[BaseModel], path: str = "") -> list[str]:
    found = []
    for name, info in node.model_fields.items():
        inner = _node(info.annotation)
        found += leaves(inner, f"{path}{name}.") if inner else [f"{path}{name}"]
    return found


def _node(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return next((node for part in typing.get_args(annotation) if (node := _node(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def test_a_person_can_hold_the_tree_in_mind() -> None:
    deployment, scenario = leaves(Deployment), leaves(Scenario)
    assert "sites.pools.replica.batching.token_budget" in deployment
    assert "search.routing" in scenario
    assert 20 < len(deployment) + len(scenario) < 80


def test_the_page_describes_every_key() -> None:
    page = (ROOT / "docs" / "scenario.md").read_text()
    missing = {leaf for leaf in leaves(Deployment) + leaves(Scenario) if f"`{leaf.rpartition('.')[2]}`" not in page}
    assert not missing


def test_the_page_shows_yaml_that_loads() -> None:
    page = (ROOT / "docs" / "scenario.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    assert load_scenario(blocks[0])
    assert check(load(blocks[1])) == ()
    assert check(load(blocks[2])) == ()


# ---- what is wrong is named

POOL = "sites[0].pools[0]"


def edited(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = yaml.safe_load(yaml.safe_dump(tree))
    steps = [int(step) if step.isdigit() else step for step in re.split(r"[.\[\]]+", path) if step]
    node = copy
    for step in steps[:-1]:
        node = node[step] if isinstance(step, int) else node.setdefault(step, {})
    node[steps[-1]] = value
    return copy


def refused(read: Any, source: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(source)
    assert caught.value.exit_code == 2
    assert caught.value.allowed
    return caught.value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (f"{POOL}.replicas", 0, "needs at least 1; with none, this pool would serve no request"),
        (f"{POOL}.replicas", -1, "needs at least 1"),
        (f"{POOL}.replicas", 1.5, "must be a whole number"),
        (f"{POOL}.replicas", True, "must be a whole number"),
        (f"{POOL}.replicas", "4", "must be a whole number"),
        (f"{POOL}.replicas", 10**30, "may be at most 100000"),
        (
            f"{POOL}.replica.tensor_paralel",
            2,
            "no such key (did you mean 'tensor_parallel'?); known here: model, device,",
        ),
        (f"{POOL}.replica.expert_parallel", 3, "must divide tensor_parallel × data_parallel = 1"),
        (f"{POOL}.replica.weights", "bf17", "must be one of fp32, bf16,"),
        (f"{POOL}.replica.memory_fraction", 1.5, "may be at most 1"),
        (f"{POOL}.replica.memory_fraction", float("nan"), "must be a finite number"),
        (f"{POOL}.replica.batching.max_batch", 0, "needs at least 1; an engine with no room"),
        (f"{POOL}.replica.batching", "chunked", "must be a mapping of keys to values"),
        (f"{POOL}.purchase", "on-demnd", "(did you mean 'on-demand'?)"),
        (f"{POOL}.usd_per_device_hour", "3 GB", "'GB' is a unit of bytes, not of price"),
        (f"{POOL}.usd_per_device_hour", -1, "needs at least 0"),
        (f"{POOL}.usd_per_device_hour", float("inf"), "must be a finite number"),
        (f"{POOL}.name", "", "must not be empty"),
        (f"{POOL}.name", 7, "must be text; write it in quotes if it is a name: '7'"),
        (f"{POOL}.name", "a\nb", "must be one line of text"),
        ("sites[0].pools", [], "needs at least 1; with none, this site would serve no request"),
        ("sites", [], "needs at least 1; with none, no request could be served"),
        ("sites", "here", "must be a list"),
        ("sites[0].pue", 0.9, "needs at least 1"),
        ("rooting", {"policy": "random"}, "(did you mean 'routing'?)"),
    ],
)
def test_a_wrong_deployment_names_path_value_and_what_is_allowed(path: str, value: Any, words: str) -> None:
    tree = edited(DEPLOYMENT, path, value)
    error = refused(load, tree)
    assert error.path == path
    assert error.value == value or value != value  # NaN
    assert words in str(error)
    text = yaml.dump(tree)
    named = refused(load, text)
    assert (named.path, named.allowed) == (path, error.allowed)
    key = re.split(r"[.\[]", path)[-1]
    line = int(re.search(r"line (\d+)", named.where)[1])  # type: ignore[index]
    assert key in text.splitlines()[line - 1]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model", "lama-3.1-8b", "no such model (did you mean 'llama-3.1-8b'?)"),
        ("workload.rate", "8 GB", "'GB' is a unit of bytes, not of rate"),
        ("workload.rate", 0, "must be above zero"),
        ("workload.duration", "-3 s", "must be above zero"),
        ("workload.requests", 0, "needs at least 1"),
        ("workload.seed", -1, "needs at least 0"),
        ("workload.profil", "x", "(did you mean 'profile'?)"),
        ("objectives", {}, "needs at least 1"),
        ("objectives.ttft", "500 GB", "'GB' is a unit of bytes, not of time"),
        ("objectives.ttft", 0, "must be above zero"),
        ("objectives.ttft", -0.5, "must be above zero"),
        ("objectives.ttft", float("nan"), "must be a finite number"),
        ("objectives.ttft", {}, "needs a limit"),
        ("objectives.ttft", [1], "must be text, a number or a mapping"),
        ("objectives.tttf", "1 s", "no such metric (did you mean 'ttft'?)"),
        ("hardware", [], "needs at least 1"),
        ("hardware[0].device", "h10", "no such device (did you mean 'h100'?)"),
        ("hardware[0].max", 0, "needs at least 1; with none, the device could not be used"),
        ("hardware[0].price", "$-2/h", "must be zero or more"),
        ("hardware[0].price", "2 s", "'s' is a unit of time, not of price"),
        ("hardware[1].device", "H100", "is h100-sxm, as hardware[0] is"),
        ("search.token_budget", [], "needs at least 1"),
        ("search.tensor_parallel", [3, 5], "none divides the attention heads of llama-3.1-8b: 1, 2, 4 would"),
        ("search.weights", [], "needs at least 1"),
    ],
)
def test_a_wrong_scenario_names_path_value_and_what_is_allowed(path: str, value: Any, words: str) -> None:
    error = refused(load_scenario, edited(SCENARIO, path, value))
    assert error.path == path
    assert words in str(error)


@pytest.mark.parametrize(
    ("path", "value", "where", "words"),
    [
        ("objectives.ttft", {"p101": 1}, "objectives.ttft.p101", "between p0 and p100"),
        ("objectives.ttft", {"99": 1}, "objectives.ttft.99", "such as p50, p99 or p99.9"),
        ("objectives.ttft", {"p0": 1}, "objectives.ttft.p0", "between p0 and p100"),
        ("objectives.ttft", {"p99": 1, "p99.0": 2}, "objectives.ttft.p99.0", "p99 TTFT is there twice"),
        ("workload", {}, "workload", "exactly one of `trace` (a file) and `profile`"),
        ("workload", {"trace": "a", "profile": "b"}, "workload", "exactly one of"),
        ("hardware", [{"device": "l4"}, {"device": "L4"}], "hardware", "is there twice; add up"),
        ("hardware", [{"max": 3}], "hardware[0].device", "is required"),
        ("search.token_budget", [64, 0], "search.token_budget[1]", "needs at least 1; a step must hold a token"),
        ("search.token_budget", [64, 64], "search.token_budget", "is there twice"),
        ("search.batching", ["chunked", "chunkd"], "search.batching[1]", "did you mean 'chunked'"),
        ("search.routing", ["a b:c"], "search.routing[0]", "module:function"),
        ("search.kv_cache", ["fp7"], "search.kv_cache[0]", "must be one of"),
    ],
)
def test_a_fault_inside_names_its_own_path(path: str, value: Any, where: str, words: str) -> None:
    error = refused(load_scenario, edited(SCENARIO, path, value))
    assert error.path == where
    assert words in str(error)


def test_several_faults_give_the_first_and_the_number_of_others() -> None:
    tree = edited(edited(edited(DEPLOYMENT, f"{POOL}.replicas", 0), "sites[0].pue", 0), "rootin", 1)
    error = refused(load, tree)
    assert "and 2 more: " in error.consequence
    misspelt = refused(load, {"sties": DEPLOYMENT["sites"]})
    assert misspelt.path == "sties"  # the cause, before the key that is missing because of it
    assert "did you mean 'sites'" in str(misspelt)
    assert str(refused(load, {})) == "sites = (missing): is required; with none, no request could be served"


#: ten times ten times ... of the same list
LAUGHS = "a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{last}'] * 10)}]\n" for last, key in ("ab", "bc", "cd", "de", "ef", "fg")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sites:\n\t- pools\n", "line 2, column 1"),
        ("sites: [1, 2\nrouting: {}\n", "line 2"),
        ("sites: []\nsites: []\n", "line 2: sites = 'sites': is there twice, first in line 1"),
        ("sites:\n  - &a\n    pools: [*a]\n", "contains itself"),
        ("- a\n- b\n", "must be a mapping of keys to values: sites, routing"),
        ("\n", "is empty"),
        ("# nothing\n\n", "is empty"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("sites: !!python/object/apply:os.system [ls]\n\n", "a tag is not understood"),
        ("sites: \0\n", "is not YAML"),
        ("? [a, b]\n: 1\n", "cannot be a key"),
        ("[" * 600 + "\n", "nested too deeply"),
        (LAUGHS, "is too much"),
    ],
)  # fmt: skip
def test_text_that_is_no_deployment_is_refused_with_its_line(text: str, words: str) -> None:
    assert words in str(refused(load, text))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "near.yaml").write_text("{}")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.yaml").write_text("sites:\n  - pools:\n      - replicas: 0\n")
    assert "near.yaml" in str(refused(load, tmp_path / "far.yaml"))
    assert "folder" in str(refused(load, tmp_path))
    assert "UTF-8" in str(refused(load, tmp_path / "bytes.yaml"))
    assert "no such file" in str(refused(load_scenario, "nowhere/at/all.yaml"))
    assert refused(load, "a\0b").path == "deployment"
    assert refused(load, tmp_path / "bad.yaml").where == f"{tmp_path / 'bad.yaml'}, line 3"
    assert refused(load, 3).path == "deployment"


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["sites", "pools", "replica", "model", "device", "name", "workload", "objectives", "ttft", "hardware", "x"]
    ), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_tree_whatever_makes_a_traceback(tree: Any) -> None:
    for read in (load, load_scenario):
        for source in (tree, yaml.dump(tree) + "\n"):
            with contextlib.suppress(InputError):
                read(source)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60).map(lambda text: text + "\n"))
@settings(max_examples=60, deadline=None)
def test_no_text_whatever_makes_a_traceback(text: str) -> None:
    with pytest.raises(InputError):
        load(text)


# ---- objectives


def test_a_limit_alone_is_of_p99_and_quantities_are_seconds() -> None:
    found = objectives({"ttft": "500 ms", "tpot": {"p50": 0.03, "p99.9": "80 ms"}, "e2e": 20})
    assert found == (("ttft", 0.99, 0.5), ("tpot", 0.5, 0.03), ("tpot", 0.999, 0.08), ("e2e", 0.99, 20.0))
    assert [objective.label for objective in found] == ["p99 TTFT", "p50 TPOT", "p99.9 TPOT", "p99 end to end"]
    assert objectives(load_scenario(SCENARIO)) == (("ttft", 0.99, 0.5), ("tpot", 0.99, 0.05))


@pytest.mark.parametrize(("key", "wrong"), [("  rate:", "8 GB"), ("  ttft:", "500 GB"), ("- device:", "h10")])
def test_what_is_found_after_reading_has_its_line_too(tmp_path: Path, key: str, wrong: str) -> None:
    lines = yaml.dump(SCENARIO, default_flow_style=False).splitlines()
    line = next(i for i, text in enumerate(lines) if text.startswith(key))
    lines[line] = f"{key} {wrong}"
    path = tmp_path / "q.yaml"
    path.write_text("\n".join(lines))
    assert refused(load_scenario, path).where == f"{path}, line {line + 1}"


def test_files_beside_the_scenario_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "mine.csv").write_text("time,prompt,output\n")
    (folder / "q.yaml").write_text(yaml.dump(edited(SCENARIO, "workload", {"trace": "mine.csv"})))
    monkeypatch.chdir(tmp_path)
    assert load_scenario("questions/q.yaml").workload.trace == str(Path("questions/mine.csv"))
    (folder / "mine.csv").unlink()
    assert load_scenario("questions/q.yaml").workload.trace == "mine.csv"


# ---- what the catalogue knows


def deployed(**replica: Any) -> Deployment:
    return load({"sites": [{"pools": [{"replica": {"model": "llama-3.1-8b", "device": "h100-sxm"} | replica}]}]})


@pytest.mark.parametrize(
    ("replica", "field", "words"),
    [
        ({"model": "llama-9"}, "model", "no such model"),
        ({"device": "h1000"}, "device", "did you mean 'h100'"),
        (
            {"tensor_parallel": 3},
            "tensor_parallel",
            "must divide the attention heads of llama-3.1-8b, 32 heads (8 of keys and",
        ),
        ({"tensor_parallel": 64}, "tensor_parallel", "1, 2, 4, 8, 16, 32; a device would hold part of a head"),
        ({"pipeline_parallel": 33}, "pipeline_parallel", "at most the 32 layers"),
        ({"tensor_parallel": 2, "expert_parallel": 2}, "expert_parallel", "llama-3.1-8b has no experts"),
        (
            {"model": "mixtral-8x7b", "data_parallel": 3, "expert_parallel": 3},
            "expert_parallel",
            "the 8 experts of mixtral-8x7b",
        ),
        ({"activations": "nvfp4"}, "activations", "h100-sxm computes in fp32, bf16, fp16, fp8, int8"),
        ({"device": "a100", "activations": "fp8"}, "activations", "a100-sxm-80gb computes in"),
        ({"batching": {"policy": "chunkd"}}, "batching.policy", "did you mean 'chunked'"),
    ],
)
def test_what_cannot_be_deployed_is_refused(replica: dict[str, Any], field: str, words: str) -> None:
    error = refused(check, deployed(**replica))
    assert error.path == f"{POOL}.replica.{field}"
    assert words in str(error)


@pytest.mark.parametrize(
    "replica",
    [
        {"weights": "fp8", "device": "a100"},  # stored in fp8, computed in bf16
        {"device": "v100"},  # fp16 stands in for bf16
        {"weights": "int4", "device": "apple-m4-max"},
        {"model": "deepseek-v3", "tensor_parallel": 8, "expert_parallel": 8},
        {"tensor_parallel": 8, "batching": {"policy": "my.module:policy"}},
    ],
)
def test_what_can_be_deployed_passes_without_a_word(replica: dict[str, Any]) -> None:
    assert [warning for warning in check(deployed(**replica)) if "price" not in warning] == []


@pytest.mark.parametrize(
    ("replica", "words"),
    [
        ({"tensor_parallel": 16}, "crosses nodes of 8 h100-sxm"),
        ({"data_parallel": 2}, "shares experts, and llama-3.1-8b has none"),
        ({"device": "mi355x"}, "has no 'on-demand' price in the catalogue"),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(replica: dict[str, Any], words: str) -> None:
    (warning,) = check(deployed(**replica))
    assert warning.startswith(f"{POOL}: ")
    assert words in warning


def test_a_routing_policy_that_is_not_known_is_refused() -> None:
    error = refused(check, load(DEPLOYMENT | {"routing": {"policy": "round-robbin"}}))
    assert error.path == "routing.policy"
    assert "did you mean 'round-robin'" in str(error)


def test_equal_names_are_refused() -> None:
    pool, site = DEPLOYMENT["sites"][0]["pools"][0], DEPLOYMENT["sites"][0]
    assert "two pools have this name" in str(refused(load, {"sites": [{"pools": [pool, pool]}]}))
    assert "two sites have this name" in str(refused(load, {"sites": [site, site]}))


def test_degrees_that_divide_the_heads_are_found() -> None:
    from sonde.catalogue.models import model

    llama = model("llama-3.1-8b")  # 32 heads, 8 of keys and values, which 16 and 32 devices would hold copies of
    assert tensor_parallels(llama, 64) == [1, 2, 4, 8, 16, 32]

"""The device row of this machine: it loads back equal, the cost model uses it, scenarios name it by its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonde.calibrate.machine import measured
from sonde.calibrate.machine.facts import Cache, facts
from sonde.calibrate.machine.measured import QUICK, Measured, measure
from sonde.calibrate.machine.row import peak_bandwidth, peak_flops, tables, text, write
from sonde.catalogue.devices import device, read_devices
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.rows import read_sources, sources
from sonde.cost.compile import compile_replica
from sonde.deployment.check import check
from sonde.deployment.load import dump, load, load_scenario
from sonde.errors import CannotError, InputError
from sonde.plan.candidates import deployment as fleet_deployment
from sonde.plan.candidates import enumerate_candidates

SMALL = QUICK._replace(
    repeats=2, chase_steps=500, square=(64,), rows=(1, 4, 16), prompts=(32,), caches=((1, 64),), disk_bytes=4 << 20,
    batches=(1, 2),
)  # fmt: skip


def little(*, torch: bool = True) -> Measured:
    """Measurements of this machine as if its caches were tiny, so that they take no time."""
    with pytest.MonkeyPatch.context() as patch:
        said = facts()._replace(caches=(Cache(1, 16 << 10), Cache(2, 64 << 10)))
        patch.setattr(measured, "facts", lambda: said if torch else said._replace(torch=""))
        patch.setattr(measured, "QUICK", SMALL)
        patch.setattr(measured, "_judge", lambda _: None)
        if not torch:
            for name in ("measured", "gemm", "attention", "backends", "starts", "gpu"):
                patch.setattr(f"sonde.calibrate.machine.{name}.torch_or_none", lambda: None)
        return measure(quick=True, device="cpu")


@pytest.fixture(scope="module")
def found() -> Measured:
    return little()


@pytest.fixture
def row(found: Measured, tmp_path: Path) -> Path:
    write(found, tmp_path / "machine.csv")
    return tmp_path / "machine.csv"


def test_the_row_that_is_written_loads_back_equal(found: Measured, row: Path) -> None:
    rows = tables(found)
    cited = dict(sources()) | read_sources(text(rows.sources), "s")
    (kept,) = read_devices(text(rows.device), "r", {}, cited)
    loaded = device(str(row))
    assert loaded == replace(kept, path=str(row))
    assert loaded.memory[0].bytes == found.memory_bytes
    assert loaded.memory[0].bandwidth == pytest.approx(peak_bandwidth(found), abs=1)
    for name, peak in loaded.flops.items():
        assert peak == pytest.approx(peak_flops(found.products, name), abs=1)
    assert (loaded.kind, loaded.status, loaded.date) == ("cpu", "published", found.date)
    assert "measured on" in loaded.note
    assert loaded.reference == str(row)
    assert device("h100").reference == "h100-sxm"


def test_what_the_machine_reaches_is_read_beside_its_row(found: Measured, row: Path) -> None:
    reached = efficiencies(device(str(row)))
    fit = tables(found).reached
    assert reached.of("gemm/bf16").compute == pytest.approx(fit.compute, rel=1e-5)
    assert reached.of("gemm/int8").half_rows == pytest.approx(fit.half_rows, rel=1e-5, abs=1e-9)
    assert reached.of("bmm/bf16") == reached.of("gemm/bf16"), "no curve of another device is mixed in"
    assert reached.of("window-decode/bf16") == reached.of("attention-decode/bf16")
    if found.overheads is not None:
        assert reached.engine.step_s == pytest.approx(found.overheads.step_s, rel=1e-4)
    beside = row.with_suffix(".efficiencies.csv")
    beside.write_text(
        beside.read_text().replace("gemm,compute,", "gemm,compute,0.5#").replace("0.5#", "0.25,x,2026\n#")
    )
    with pytest.raises(InputError, match=str(beside)):
        efficiencies(device(str(row)))
    beside.unlink()
    assert efficiencies(device(str(row))).engine.step_s != reached.engine.step_s, "those of its kind"


def test_a_scenario_names_the_file_beside_it_and_plans_with_it(row: Path) -> None:
    question = row.with_name("scenario.yaml")
    question.write_text(
        "model: qwen3-0.6b\nworkload: {profile: azure-conv-2023, rate: 1/s, requests: 5}\n"
        "objectives: {ttft: 100 s}\nhardware: [{device: machine.csv, max: 2, price: $0.10/h}]\n"
        "search: {weights: [fp32]}\n"
    )
    scenario = load_scenario(question)
    assert scenario.hardware[0].device == str(row)
    from sonde.catalogue.models import model

    candidates = enumerate_candidates(model(scenario.model), scenario).kept
    assert candidates
    for candidate in candidates:
        deployment = fleet_deployment(((candidate, 1),))
        assert deployment.pools[0].replica.device == str(row)
        assert load(dump(deployment)) == deployment
        check(deployment)
        engine = compile_replica(model(scenario.model), device(str(row)), deployment.pools[0].replica,
                                 usd_per_device_hour=0.1)  # fmt: skip
        assert engine.table.time.linear[1] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text(path.read_text().splitlines()[0]), "must hold one row: it has 0"),
        (lambda path: path.write_text(path.read_text() * 2), ":3"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text("a,b\n1,2\n"), "no such column"),
        (lambda path: path.with_suffix(".sources.csv").unlink(), "no such source"),
        (lambda path: path.write_text("x" * (5 << 20)), "too long"),
    ],
)
def test_a_damaged_file_is_refused_in_words(row: Path, change: Callable[[Path], Any], said: str) -> None:
    change(row)
    with pytest.raises(InputError, match=said):
        device(str(row))


def test_without_torch_all_else_is_measured_and_the_rest_is_named(tmp_path: Path) -> None:
    found = little(torch=False)
    assert {product.engine for product in found.products} == {"numpy"}
    assert {it.engine for it in found.attention} == {"numpy"}
    assert found.steps is None
    assert {"STREAM on torch", "NVIDIA GPU"} <= {what for what, _ in found.missing}
    assert any("torch is not installed" in why for _, why in found.missing)
    write(found, tmp_path / "machine.csv")
    assert set(device(str(tmp_path / "machine.csv")).flops) == {"fp32"}


def test_a_gpu_that_is_not_there_cannot_be_measured() -> None:
    from sonde.calibrate.machine.gpu import missing

    if not missing():
        pytest.skip("there is a GPU")
    with pytest.raises(CannotError, match="no GPU to measure"):
        measure(device="cuda")


@pytest.mark.parametrize("as_json", [True, False])
def test_the_verb_prints_what_was_measured_and_writes_the_row(
    sonde_cli: Callable[..., Any], found: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(measured, "measure", lambda **_: found)
    out = tmp_path / "here.csv"
    ended = sonde_cli("calibrate", "machine", "--quick", "--out", out, *(["--json"] if as_json else []))
    assert ended.code == 0, ended.err
    assert "wrote" in ended.err
    assert device(str(out)).name == tables(found).device[0]["name"]
    if as_json:
        said = ended.json()
        assert said["row"] == tables(found).device[0]
        assert [rate["kernel"] for rate in said["stream"][:4]] == ["copy", "scale", "add", "triad"]
        assert all(product["flops_per_s"] > 0 for product in said["products"])
        page = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
        section = page.partition("## `sonde calibrate machine --json`")[2].partition("\n## ")[0]
        assert [key for key in said if f"`{key}`" not in section] == []
    else:
        assert all(title in ended.out for title in ("STREAM", "Matrix products", "Latency of a load", "The device row"))
    shown = sonde_cli("show", out, "--json")
    assert shown.code == 0, shown.err
    assert shown.json()["name"] == tables(found).device[0]["name"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--out", "machine.json"], "must end in .csv"), (["--out", "absent/machine.csv"], "a folder that exists"),
     (["--disk", "absent"], "does not exist"), (["--device", "tpu"], "tpu")],
)  # fmt: skip
def test_bad_options_are_refused_before_anything_is_measured(
    sonde_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measured, "measure", lambda **_: pytest.fail("measured"))
    ended = sonde_cli("calibrate", "machine", *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_a_held_out_step_is_timed_and_predicted_from_the_row(row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from sonde.calibrate.machine import judge
    from sonde.calibrate.machine.decoder import Size

    small = Size(hidden=64, layers=2, heads=4, kv_heads=2, inner=96, vocabulary=64)
    for name, value in (("HELD_OUT", small), ("PROMPT", 8), ("CONTEXT", 16), ("BATCHES", (1, 2))):
        monkeypatch.setattr(judge, name, value)
    found = judge.judged("cpu", str(row))
    assert [one.step for one in found] == [
        "prefill of 8 tokens", "decode, batch 1, context 16", "decode, batch 2, context 16"
    ]  # fmt: skip
    assert all(one.measured_s > 0 and one.predicted_s > 0 for one in found)
    assert found[0]._replace(measured_s=2.0, predicted_s=3.0).error == pytest.approx(0.5)
    deeper = judge.predicted(str(row), small._replace(layers=8), 1, 8)
    assert 2 < deeper / judge.predicted(str(row), small, 1, 8) < 5, "layers cost, and the head is there once"


def test_the_cost_model_reads_a_decoder_as_it_is_built() -> None:
    torch = pytest.importorskip("torch")
    from sonde.calibrate.machine.decoder import decoder
    from sonde.calibrate.machine.judge import HELD_OUT
    from sonde.catalogue.configs import read_config

    small = HELD_OUT._replace(layers=2, vocabulary=512)
    built = decoder(small, 1, 8)
    weights = built.table.numel() + sum(part.numel() for layer in built.layers for part in layer)
    assert isinstance(built.cache, torch.Tensor)
    said = read_config(small.config(), "x", "x", source="x")
    assert said.total_parameters == weights + small.hidden, "its last norm is the first layer's"
    assert said.cache_bytes_per_token() == built.cache.numel() * 2 / 8

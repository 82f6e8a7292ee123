"""Efficiency curves are found again from times that they made, borrow from kin, and are those of the catalogue."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cost_models import H100

from sonde.calibrate.fit import errors, fit_class, fit_operators, fitted, grouped, held_out, write
from sonde.calibrate.forms import CONSTANTS, FORMS, constants_of, curve_of, predicted
from sonde.calibrate.judge import chosen, judge, shipped
from sonde.calibrate.points import Points, joined, points
from sonde.catalogue.curves import CLASSES, COLUMNS, curve, curves, family, lineage
from sonde.catalogue.devices import device, device_names
from sonde.catalogue.efficiencies import efficiencies, engines
from sonde.catalogue.models import model
from sonde.cost.operators import product
from sonde.cost.roofline import bound
from sonde.cost.shard import Kernel, shard
from sonde.deployment.tree import Replica
from sonde.errors import InputError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
TRUTH = {"compute": 0.7, "memory": 0.85, "overhead_s": 4e-6, "half_outputs": 3e5, "row_s": 2e-9, "cast": 0.4}


def made(
    device_name: str, engine: str, values: dict[str, float], *, count: int = 300, noise: float = 0.0, seed: int = 1
) -> Points:
    """Return 8-bit products whose times follow a curve, with noise and a few points that are far off."""
    rng = np.random.default_rng(seed)
    ranges = ((0, 14), (8, 15), (8, 15))
    rows, columns, inputs = (np.exp2(rng.integers(*ends, count)).astype(np.float64) for ends in ranges)
    found = points(
        ("gemm", "fp8", device_name, engine), np.ones(count), rows=rows, columns=columns,
        work=2 * rows * columns * inputs / 2e15, moved=(columns * inputs + rows * (inputs + 2 * columns)) / 3e12,
        cast=3 * rows * inputs / 3e12, shape=columns * 1e5 + inputs,
    )  # fmt: skip
    seconds = predicted(found, curve_of("gemm", values)) * np.exp(noise * rng.standard_normal(count))
    seconds[::37] *= 1.0 + 20.0 * (noise > 0)
    return replace(found, seconds=seconds)


def start() -> dict[str, float]:
    return {name: CONSTANTS[name].start for name in constants_of("gemm", "fp8")}


def test_constants_are_found_again() -> None:
    found = fitted(made("h100-sxm", "vllm", TRUTH), start(), spread=10.0)
    assert found == pytest.approx(TRUTH, rel=0.02)


def test_a_few_points_that_are_far_off_move_little() -> None:
    found = fitted(made("h100-sxm", "vllm", TRUTH, count=1500, noise=0.05), start(), spread=10.0)
    for name in ("compute", "memory", "overhead_s"):
        assert found[name] == pytest.approx(TRUTH[name], rel=0.1)


def test_the_fit_is_deterministic() -> None:
    sample = made("h100-sxm", "vllm", TRUTH, noise=0.1)
    assert fitted(sample, start()) == fitted(sample, start())


def test_few_points_stay_near_the_level_above_and_many_do_not() -> None:
    slow = TRUTH | {"compute": 0.3}
    few = made("h200-sxm", "vllm", slow, count=400).where(np.arange(400) < 2)
    many = made("h200-sxm", "vllm", slow, count=400)
    pulled = abs(np.log(fitted(few, TRUTH)["compute"] / TRUTH["compute"]))
    freed = abs(np.log(fitted(many, TRUTH)["compute"] / TRUTH["compute"]))
    assert pulled < 0.5 * freed
    assert fitted(many, TRUTH)["compute"] == pytest.approx(0.3, rel=0.05)


def test_an_engine_or_a_device_has_a_row_only_where_it_differs() -> None:
    slower = TRUTH | {"overhead_s": 2e-5, "compute": 0.5}
    same = [made("h100-sxm", name, TRUTH, seed=seed) for seed, name in enumerate(("vllm", "sglang"))]
    apart = [*same, made("h100-sxm", "trtllm", slower, seed=5)]
    assert [(row.device, row.engine) for row in fit_class(same)] == [("", ""), ("hopper", "")]
    rows = list(fit_class(apart))
    assert ("hopper", "trtllm") in [(row.device, row.engine) for row in rows]
    own = chosen(rows, "h100-sxm", "trtllm")
    assert own.values["compute"] == pytest.approx(0.5, rel=0.1)
    assert chosen(rows, "h200-sxm", "vllm").engine != "trtllm"
    assert chosen(rows, "mi300x", "vllm").device == ""


def test_an_engine_with_slow_kernels_does_not_speak_for_the_others() -> None:
    slow = TRUTH | {"compute": 0.1, "memory": 0.1}
    groups = [made("h100-sxm", "vllm", TRUTH), made("h100-sxm", "sglang", slow, seed=3)]
    rows = list(fit_class(groups))
    assert chosen(rows, "h100-sxm", "").values["memory"] == pytest.approx(0.85, rel=0.1)
    assert chosen(rows, "h100-sxm", "sglang").values["memory"] == pytest.approx(0.1, rel=0.1)


def test_held_out_shapes_are_whole() -> None:
    sample = made("h100-sxm", "vllm", TRUTH)
    unseen = held_out(sample)
    assert 0 < unseen.sum() < len(sample) / 2
    assert not set(sample.shape[unseen]) & set(sample.shape[~unseen])


def test_written_rows_are_read_back_as_they_were_fitted(tmp_path: Path) -> None:
    rows = list(fit_class([made("h100-sxm", "vllm", TRUTH)]))
    path = write(rows, tmp_path / "new", "2026-11-24")
    with path.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(COLUMNS)
    for row, record in zip(rows, read, strict=True):
        constants = dict(curve("curves.csv", record).constants)
        assert {name: constants[name] for name in row.values} == pytest.approx(row.values, rel=1e-3)
        assert constants["blend"] == FORMS["gemm"][1]
        assert record["source"]
        assert record["date"] == "2026-11-24"


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_a_fit_and_the_cost_model_say_the_same_of_a_product(form: str) -> None:
    replica = Replica.model_validate(
        {"model": "llama-3.1-8b", "device": "h100-sxm", "weights": form, "activations": form}
    )
    part = shard(model("llama-3.1-8b"), H100, replica, efficiencies(H100))
    rows = np.array([1.0, 64.0, 3000.0])
    spent = bound(part, product(part, Kernel("any", 4096, 6144, 4096 * 6144, row=False), 1, rows, "any")).seconds
    wide = 2.0 if form == "bf16" else 1.0
    bandwidth = H100.memory[0].bandwidth
    same = points(
        ("gemm", form, "h100-sxm", "default"), np.ones(3), rows=rows, columns=6144.0,
        work=2 * rows * 4096 * 6144 / H100.flops[form], cast=rows * 4096 * 3.0 / bandwidth if form == "fp8" else 0.0,
        moved=(4096 * 6144 * wide + rows * (4096 * wide + 6144 * 2.0)) / bandwidth,
    )  # fmt: skip
    assert predicted(same, shipped(same)) == pytest.approx(spent, rel=1e-12)


def test_the_catalogue_names_devices_families_and_engines_that_exist() -> None:
    families = {family(name) for name in device_names()} - {""}
    for row in curves():
        assert row.device in {"", *families, *device_names()}
        assert row.engine in {"", "vllm", "sglang", "trtllm"}
    assert {"vllm", "sglang", "trtllm"} <= set(engines())
    assert {row.operator for row in curves() if not row.device and not row.engine} >= set(FORMS)
    assert all(parent in CLASSES for name in CLASSES for parent in lineage(name, CLASSES))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"operator": "gem"}, "did you mean 'gemm'"),
        ({"format": "fp9"}, "did you mean 'fp8'"),
        ({"compute": "1.5"}, "between 0.001 and 1"),
        ({"memory": "much"}, "between 0.001 and 8"),
        ({"source": ""}, "needs a source"),
    ],
)
def test_a_bad_curve_is_refused(change: dict[str, str], text: str) -> None:
    good = dict.fromkeys(COLUMNS, "") | {"operator": "gemm", "format": "fp8", "source": "a test", "date": "2026-11-24"}
    with pytest.raises(InputError, match=text):
        curve("curves.csv:2", good | change)


def test_a_folder_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no operator measurements"):
        fit_operators(tmp_path)


@pytest.mark.data
def test_a_small_slice_is_refitted_to_what_the_catalogue_holds() -> None:
    if not (DATA / "operators").is_dir():
        pytest.skip(f"measurements are not there: {DATA / 'operators'}")
    rows = fit_operators(DATA, operators=("linear-decode",))
    held = [row for row in curves() if row.operator == "linear-decode"]
    assert [(row.device, row.engine) for row in rows] == [(row.device, row.engine) for row in held]
    for row, kept in zip(rows, held, strict=True):
        assert {name: dict(kept.constants)[name] for name in row.values} == pytest.approx(row.values, rel=2e-3)


@pytest.mark.data
def test_collectives_count_numbers_and_not_bytes() -> None:
    """NCCL takes as long over n numbers of 16 bits as over 2n of 8, so that sizes are counts."""
    path = DATA / "operators" / "h100_sxm" / "comm" / "nccl"
    found = sorted(path.glob("*/nccl_perf.parquet"))
    if not found:
        pytest.skip(f"measurements are not there: {path}")
    import pandas

    rows = pandas.read_parquet(found[0])
    rows = rows[(rows.op_name == "all_reduce") & (rows.num_gpus == 8)]
    half = rows[rows.nccl_dtype == "half"].set_index("message_size").latency
    byte = rows[rows.nccl_dtype == "int8"].set_index("message_size").latency
    sizes = [size for size in half.index if size >= 2**24 and 2 * size in byte.index]
    as_counts = np.array([half[size] / byte[2 * size] for size in sizes])
    as_bytes = np.array([half[size] / byte[size] for size in sizes if size in byte.index])
    assert len(sizes) >= 4
    assert np.median(np.abs(as_counts - 1)) < 0.25
    assert np.median(as_bytes) > 1.4


@pytest.mark.data
def test_curves_are_closer_than_one_share_and_hold_for_devices_left_out() -> None:
    if not (DATA / "operators").is_dir():
        pytest.skip(f"measurements are not there: {DATA / 'operators'}")
    groups = grouped(DATA, ("mla-decode",))
    found = {(row.format, row.device): row for row in judge(groups)}
    for name in ("h100-sxm", "h200-sxm", "b200-sxm"):
        row = found["bf16", name]
        assert row.shipped[0] < 0.1
        assert row.shipped[1] < row.flat[1]
        assert row.left_out[0] < 0.12
    every = joined([part for part in groups["mla-decode", "bf16"] if part.device == "h100-sxm"])
    assert np.median(np.abs(errors(every, efficiencies(device("h100-sxm")).of("mla-decode/bf16")))) < 0.1

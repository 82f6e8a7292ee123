"""`sonde validate --operators`: measured operators and messages beside the catalogue's curves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars
import pytest
from test_validate import DATA

from sonde.calibrate.accuracy import Compared, Unread, compared, scores
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.cli import main
from sonde.errors import InputError

GEMM = {"gemm_dtype": ["bfloat16"] * 3, "m": [2048, 4096, 8192], "n": [4096] * 3, "k": [8192] * 3}


def products(folder: Path, system: str, factor: float = 1.0, **columns: object) -> Path:
    """Write products that take `factor` times as long as the peak of an H100 SXM allows; return their file."""
    place = folder / system / "gemm" / "vllm" / "0.19.0"
    place.mkdir(parents=True, exist_ok=True)
    spent = [1e3 * factor * 2.0 * m * 4096 * 8192 / device("h100-sxm").flops["bf16"] for m in GEMM["m"]]
    polars.DataFrame({**GEMM, "latency": spent, **columns}).write_parquet(place / "gemm_perf.parquet")
    return place / "gemm_perf.parquet"


def messages(path: Path, kind: str, size: int, ranks: int, inside: int, ms: float) -> Path:
    path.write_text(f"size,num_workers,devices_per_node,time_stats.{kind}.median\n{size},{ranks},{inside},{ms}\n")
    return path


def test_large_products_are_predicted_at_a_share_of_the_peak(tmp_path: Path) -> None:
    products(tmp_path, "h100_sxm")
    (found,) = compared(tmp_path)
    assert isinstance(found, Compared)
    assert (found.operator, found.device, found.engine) == ("gemm/bf16", "h100-sxm", "vllm")
    assert np.all(found.predicted > found.measured)
    assert found.predicted[-1] < 2.0 * found.measured[-1]
    assert scores([found])["operator"]["gemm/bf16"].points == 3


def test_errors_are_signed_shares_of_what_was_measured() -> None:
    found = Compared("gemm", "h100-sxm", "vllm", np.array([1.0, 2.0, 4.0]), np.array([1.1, 1.6, 4.4]))
    errors = scores([found])["overall"]["all points"]
    assert errors == pytest.approx((3, 0.1, 0.4 / 3, 0.1))


def test_a_long_message_takes_its_bytes_at_the_share_of_the_link(tmp_path: Path) -> None:
    size, on = 1 << 34, device("h100-sxm")
    share = efficiencies(on).of("collective").memory
    (near,) = compared(messages(tmp_path / "h100_dgx_send_recv.csv", "send_recv", size, 2, 2, 1.0))
    (far,) = compared(messages(tmp_path / "h100_dgx_send_recv.csv", "send_recv", size, 2, 1, 1.0))
    assert isinstance(near, Compared)
    assert isinstance(far, Compared)
    assert near.predicted[0] == pytest.approx(size / (on.node.bandwidth * share), rel=1e-3)
    assert far.predicted[0] == pytest.approx(size / (on.fabric.bandwidth * share), rel=1e-3)
    (summed,) = compared(messages(tmp_path / "h100_dgx_all_reduce.csv", "all_reduce", size, 2, 2, 1.0))
    assert isinstance(summed, Compared)
    assert summed.predicted[0] == pytest.approx(near.predicted[0], rel=1e-3)  # two ranks send the whole once


def test_what_cannot_be_predicted_is_named_and_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = products(tmp_path, "h100_sxm")
    products(tmp_path, "z900_sxm")
    good.with_name("mystery_perf.parquet").write_bytes(good.read_bytes())
    good.with_name("moe_perf.parquet").write_bytes(b"no parquet")
    good.with_name("context_mla_perf.parquet").write_bytes(good.read_bytes())
    (tmp_path / "z9_dgx_all_reduce.csv").write_text("a\n1\n")
    (tmp_path / "a100_dgx_all_reduce.csv").write_text("a\n1\n")
    assert main(["validate", "--operators", str(tmp_path), "--out", str(tmp_path / "out.csv"), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["points"] == found["errors"]["overall"]["all points"]["time"]["points"] == 3
    assert len(found["faults"]) == 6
    for name in ("z900_sxm", "mystery", "moe_perf", "context_mla", "z9_dgx", "a100_dgx"):
        assert any(name in line and "not predicted: " in line for line in said.err.splitlines())
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert [row["operator"] for row in csv.DictReader(file)] == ["gemm/bf16"] * 3


def test_a_place_without_operators_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no measured operators"):
        list(compared(tmp_path))
    assert main(["validate", "--operators", str(tmp_path)]) == 2
    assert main(["validate", "--operators", "--cross-validate", str(tmp_path)]) == 2
    assert main(["validate", "--operators", str(tmp_path / "none")]) == 2
    empty = messages(tmp_path / "h100_dgx_send_recv.csv", "send_recv", 1024, 1, 1, 1.0)
    assert [type(part) for part in compared(empty)] == [Unread]
    assert main(["validate", "--operators", str(empty)]) == 1


@pytest.mark.data
def test_measured_messages_are_predicted() -> None:
    folder = DATA / "network"
    if not folder.is_dir():
        pytest.skip("the measurements are not beside the project")
    errors = scores([part for part in compared(folder) if isinstance(part, Compared)])["operator on device"]
    assert errors["send-recv in a node on h100-sxm"].median < 0.3
    assert errors["all-reduce in a node on h100-sxm"].median < 0.3

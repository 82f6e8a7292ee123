"""The command line as a user meets it: what it prints where, and how it ends."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Ended

from sonde.cli.output import plain

HEAVY = ("numba", "numpy", "polars", "scipy", "plotly", "pydantic", "torch", "pandas", "rich")


@pytest.mark.parametrize("code", ["import sonde", "from sonde.cli import main; main(['--help'])"])
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    listing = f"{code}\nimport sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "sonde" in loaded
    assert not loaded & set(HEAVY)


def test_help_names_every_verb(sonde_cli: Callable[..., Ended]) -> None:
    end = sonde_cli("--help")
    assert end.code == 0
    assert all(verb in end.out for verb in ("plan", "simulate", "trace", "show", "bench"))


def test_version(sonde_cli: Callable[..., Ended]) -> None:
    import sonde

    assert sonde_cli("--version").out.strip().endswith(sonde.__version__)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["plan"], "Missing argument 'SCENARIO'"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "nowhere.yaml", "--colour"], "--colour"),
        (["simulate", "nowhere.yaml", "--profile", "azure-conv-2023"], "nowhere.yaml"),
        (["trace", "describe", "nowhere.csv"], "nowhere.csv"),
        (["trace", "generate", "azure-convo-2023"], "azure-conv-2023"),
        (["show", "lama-3.1-8b"], "did you mean"),
        (["show", "llama-3.1-8b", "--device", "h100-smx"], "did you mean"),
        (["show", "llama-3.1-8b", "--device", "h100-sxm", "--tensor-parallel", "3"], "3"),
        (["show", "models", "--device", "h100-sxm"], "--device"),
        (["bench", "--only", "colocatd"], "did you mean"),
    ],
)
def test_bad_input_ends_with_2_and_one_message(
    arguments: list[str], words: str, sonde_cli: Callable[..., Ended]
) -> None:
    end = sonde_cli(*arguments)
    assert end.code == 2
    assert words in end.err
    assert "Traceback" not in end.err
    assert not end.out


def test_an_unexpected_error_is_one_line_and_debug_shows_where(
    sonde_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sonde.catalogue.models

    def broken() -> list[str]:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(sonde.catalogue.models, "model_names", broken)
    end = sonde_cli("show", "models")
    assert end.code == 1
    assert "unexpected ZeroDivisionError: a fault" in end.err
    assert "Traceback" not in end.err
    assert "Traceback" in sonde_cli("--debug", "show", "models").err


def test_interrupting_ends_with_130(sonde_cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    import sonde.catalogue.models

    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(sonde.catalogue.models, "model_names", interrupted)
    end = sonde_cli("show", "models")
    assert end.code == 130
    assert "Traceback" not in end.err


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m sonde show models | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_reader_of_traffic_that_leaves_early_hears_nothing() -> None:
    command = f"{sys.executable} -m sonde trace generate azure-conv-2023 --requests 300000 | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.startswith("arrival_s")
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    "arguments", ["--help", "show models", "show models --json", "trace generate azure-conv-2023 --requests 9"]
)
def test_a_full_disk_is_one_sentence(arguments: str) -> None:
    command = f"{sys.executable} -m sonde {arguments} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "sonde: the output could not be written: No space left on device\n"


def test_json_has_no_nan_and_no_numpy() -> None:
    value = {"a": math.nan, "b": np.float64(2.5), "c": np.array([1, 2]), "d": (math.inf, None, True), 3: Path("x")}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": None, "b": 2.5, "c": [1, 2], "d": [None, None, True], "3": "x",
    }  # fmt: skip


def test_show_lists_every_kind(sonde_cli: Callable[..., Ended]) -> None:
    every = sonde_cli("show", "--json").json()
    assert set(every) == {"models", "devices", "profiles", "policies", "techniques"}
    assert all(len({row["name"] for row in rows}) == len(rows) > 0 for rows in every.values())
    for kind, rows in every.items():
        text = sonde_cli("show", kind).out
        assert all(row["name"] in text for row in rows)


def test_show_a_model_on_a_device(sonde_cli: Callable[..., Ended]) -> None:
    row = sonde_cli("show", "llama-3.1-8b", "--device", "h100-sxm", "--json").json()
    assert row["parameters"]["total"] == pytest.approx(8.03e9, rel=0.01)
    on = row["on"]
    assert on["fits"]
    parts = on["bytes"]
    assert parts["budget"] == pytest.approx(sum(parts[k] for k in ("weights", "activations", "overhead", "kv_cache")))
    assert 0 < on["step_s"]["decode_1"] < on["step_s"]["decode_64"] < on["step_s"]["decode_256"]
    cut = sonde_cli("show", "llama-3.1-8b", "--device", "h100-sxm", "--tensor-parallel", "2", "--json").json()["on"]
    assert cut["bytes"]["weights"] < 0.6 * parts["weights"]
    assert cut["step_s"]["decode_64"] < on["step_s"]["decode_64"]
    assert "tensor_parallel" in sonde_cli("show", "llama-3.1-8b", "--device", "h100-sxm").out


def test_show_says_what_does_not_fit(sonde_cli: Callable[..., Ended]) -> None:
    on = sonde_cli("show", "llama-3.1-70b", "--device", "l4", "--json").json()["on"]
    assert not on["fits"]
    assert "step_s" not in on

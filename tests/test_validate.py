"""`sonde validate`: rows are read, predicted and judged; what is wrong with a row is named and the rest predicted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.engines import CLASSES, effects, engine_names, release, series, serving_engine, spread
from sonde.catalogue.models import model_names
from sonde.cli import main
from sonde.errors import InputError
from sonde.validate.predict import Prediction, predict
from sonde.validate.rows import Fault, Row, read_rows
from sonde.validate.score import Pair, errors
from sonde.validate.setting import PRECISIONS, lengths, setting, system

DATA = Path(__file__).parents[1].parent / "shared" / "data"
HEAD = (
    "id,backend,backend_version,model,system,gemm_quant_mode,isl,osl,concurrency,tp_size,attention_dp_size,"
    "moe_ep_size,ttft_ms,tpot_ms"
)


def line(**changes: object) -> str:
    cells: dict[str, object] = {
        "id": "a", "backend": "vllm", "backend_version": "0.19.0", "model": "meta-llama/Llama-3.1-8B-Instruct",
        "system": "h100_sxm", "gemm_quant_mode": "", "isl": 1024, "osl": 128, "concurrency": 4, "tp_size": 1,
        "attention_dp_size": "", "moe_ep_size": 0, "ttft_ms": 50.0, "tpot_ms": 8.0,
    }  # fmt: skip
    return ",".join(str({**cells, **changes}[name]) for name in HEAD.split(","))


def table(folder: Path, *lines: str, head: str = HEAD) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def one(folder: Path, **changes: object) -> Row:
    (entry,) = read_rows(table(folder, line(**changes))).entries
    assert isinstance(entry, Row)
    return entry


def predicted(folder: Path, **changes: object) -> Prediction:
    found = predict(one(folder, **changes))
    assert isinstance(found, Prediction), found
    return found


def test_a_row_is_predicted_and_lies_in_its_interval(tmp_path: Path) -> None:
    found = predicted(tmp_path)
    assert 4.0 < found.tpot_ms < 16.0  # 16 GB of weights at 3.35 TB/s is 4.8 ms
    assert found.ttft_lo_ms < found.ttft_ms < found.ttft_hi_ms
    assert found.tpot_lo_ms < found.tpot_ms < found.tpot_hi_ms


def test_what_was_measured_is_not_looked_at(tmp_path: Path) -> None:
    assert predicted(tmp_path) == predicted(tmp_path, ttft_ms=1.0, tpot_ms="")


def test_more_clients_wait_longer(tmp_path: Path) -> None:
    few, many = predicted(tmp_path, concurrency=4), predicted(tmp_path, concurrency=64)
    assert many.tpot_ms > few.tpot_ms
    assert many.ttft_ms > few.ttft_ms


def test_more_devices_are_faster_and_a_longer_prompt_slower(tmp_path: Path) -> None:
    assert predicted(tmp_path, tp_size=4).tpot_ms < predicted(tmp_path).tpot_ms < predicted(tmp_path, isl=8192).tpot_ms


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"system": "h1000_sxm"}, "no such device"),
        ({"model": "meta/none"}, "no such model"),
        ({"backend": "tgi"}, "no such engine"),
        ({"tp_size": 3}, "must divide"),
        ({"gemm_quant_mode": "fp99"}, "precision"),
        ({"isl": "many"}, "isl = 'many'"),
        ({"isl": 0}, "whole number"),
        ({"concurrency": ""}, "is missing"),
        ({"ttft_ms": -4}, "more than 0"),
        ({"model": "meta-llama/Llama-3.1-70B"}, "does not fit"),
        ({"tp_size": "8,9"}, "more fields"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], reason: str
) -> None:
    path, out = table(tmp_path, line(), line(id="bad", **changes), line(id="c")), tmp_path / "out.csv"
    assert main(["validate", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "2 of 3 rows predicted" in said.out
    assert f"{path}:3: bad: not predicted" in said.err
    assert reason in said.err
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a", "bad", "c"]
    assert [bool(row["ttft_ms"]) for row in rows] == [True, False, True]
    assert rows[1]["note"]


def test_columns_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    head, cells = HEAD.replace("tp_size", "tpsize"), line()
    found = read_rows(table(tmp_path, cells, head=head))
    assert any("unknown column 'tpsize'" in note and "tp_size" in note for note in found.notes)
    assert any("lacks the column 'tp_size'" in note for note in found.notes)
    assert isinstance(predict(found.rows[0]), Prediction)


@pytest.mark.parametrize("text", ["", "\n", "a,b\n1,2\n", "\0", HEAD + "\n"])
def test_what_is_no_table_is_refused_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        read_rows(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abc1.,\"'-nan \t", max_size=30), min_size=1, max_size=4))
def test_damaged_rows_end_as_faults(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = table(tmp_path_factory.mktemp("rows"), *lines)
    try:
        entries = read_rows(path).entries
    except InputError:
        return
    assert all(isinstance(entry, (Row, Fault)) for entry in entries)


def test_json_holds_errors_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(table(tmp_path, line(), line(id="b", concurrency=8))), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predicted"] == found["rows"] == 2
    assert set(found["errors"]) == {"overall", "system", "engine", "model", "concurrency"}
    assert found["errors"]["engine"]["vllm"]["tpot"]["rows"] == 2


def test_errors_are_shares_of_what_was_measured(tmp_path: Path) -> None:
    row = one(tmp_path, tpot_ms=10.0)
    found = predicted(tmp_path)._replace(tpot_ms=12.0, tpot_lo_ms=9.0, tpot_hi_ms=11.0)
    over = errors([Pair(row, found), Pair(row, found._replace(tpot_ms=9.0, tpot_lo_ms=10.5))], "tpot")
    assert over.median == pytest.approx(0.15)
    assert over.mean == pytest.approx(0.15)
    assert over.bias == pytest.approx(0.05)
    assert over.coverage == 0.5


def test_lengths_are_those_of_the_benchmark(tmp_path: Path) -> None:
    drawn = lengths(one(tmp_path, concurrency=8))
    assert drawn.n == 80
    assert drawn.prompt_tokens.min() >= 0.8 * 1024 - 1
    assert drawn.prompt_tokens.max() <= 1024
    fixed = lengths(one(tmp_path, backend="sglang"))
    assert set(fixed.output_tokens.tolist()) == {128}


def test_systems_are_found_as_tables_write_them() -> None:
    assert [system(name).name for name in ("h100_sxm", "gb200", "RTX4090", "RTXPRO6000")] == [
        "h100-sxm", "gb200", "rtx-4090", "rtx-pro-6000",
    ]  # fmt: skip


def test_devices_of_a_whole_deployment_are_replicas(tmp_path: Path) -> None:
    row = one(tmp_path, model="deepseek-ai/DeepSeek-R1", system="gb200", tp_size=36, gemm_quant_mode="nvfp4")
    chosen = setting(row)
    assert (chosen.replicas, chosen.replica.tensor_parallel, chosen.replica.expert_parallel) == (9, 4, 4)
    assert "read as 9 replicas of 4" in chosen.note


def test_gpt_oss_is_mxfp4_whatever_the_column_says(tmp_path: Path) -> None:
    chosen = setting(one(tmp_path, model="openai/gpt-oss-120b", gemm_quant_mode="nvfp4"))
    assert chosen.replica.weights == "mxfp4"


@pytest.mark.parametrize("name", engine_names())
def test_every_engine_has_every_constant(name: str) -> None:
    found = serving_engine(name)
    assert found.batching in ("chunked", "inflight", "chunks-first")
    assert all(0.2 < getattr(found, kind.replace("-", "_")) < 5 for kind in CLASSES)
    assert serving_engine(name, "0.0.0-nobody-knows") == found


@pytest.mark.parametrize("name", [*engine_names(), "generic"])
def test_pairs_that_no_fit_has_seen_have_wider_intervals(name: str) -> None:
    seen, new = spread(name, "qwen3-32b", "h100-sxm"), spread(name, "qwen3-32b", "rtx-4090")
    assert new == spread(name, "nobody-knows", "h100-sxm")
    for found in (seen, new):
        assert 0 < found.tpot_low < 1 < found.tpot_high
        assert 0 < found.ttft_low < 1 < found.ttft_high
    assert seen.tpot_high / seen.tpot_low < new.tpot_high / new.tpot_low
    assert seen.ttft_high / seen.ttft_low < new.ttft_high / new.ttft_low


def test_a_row_of_a_new_pair_has_the_wider_interval(tmp_path: Path) -> None:
    for changes, model, device in (
        ({}, "llama-3.1-8b", "h100-sxm"), ({"system": "l40s"}, "llama-3.1-8b", "l40s"),
    ):  # fmt: skip
        found, held = predicted(tmp_path, **changes), spread("vllm", model, device)
        assert found.tpot_hi_ms == pytest.approx(found.tpot_ms * held.tpot_high)
        assert found.ttft_lo_ms == pytest.approx(found.ttft_ms * held.ttft_low)


def test_effects_of_what_is_unknown_are_none() -> None:
    assert set(effects("", "", "", "").values()) == {1.0}


def test_a_release_is_not_one_whose_number_begins_alike() -> None:
    known = serving_engine("sglang", "0.5.1", "hopper")
    assert serving_engine("sglang", "0.5.1.post2", "hopper") == known
    assert serving_engine("sglang", "0.5.17", "hopper") == serving_engine("sglang", "", "hopper") != known
    assert [release(version) for version in ("1.2.0rc2.post2", "nightly-5b8c", "")] == [
        "1.2.0rc2",
        "nightly",
        "unknown",
    ]


def test_effects_of_a_series_belong_to_it_alone() -> None:
    asked = ("hopper", "fp8", "deepseek-v3", "h200-sxm")
    named = series("sglang", "0.5.9.post1", "deepseek-v3", "h200-sxm")
    assert effects(*asked, named)["gemm"] < 0.9 * effects(*asked)["gemm"]
    assert effects(*asked, series("sglang", "9.9", "deepseek-v3", "h200-sxm")) == effects(*asked)
    assert series("sglang", "", "deepseek-v3", "h200-sxm") == ""


@pytest.mark.parametrize(
    ("backend", "name", "precision", "cache"),
    [("vllm", "h100_sxm", "fp8", "bf16"), ("sglang", "h200_sxm", "fp8", "bf16"), ("trtllm", "h100_sxm", "fp8", "fp8"),
     ("vllm", "b200_sxm", "fp8", "fp8"), ("vllm", "b200_sxm", "", "bf16")],
)  # fmt: skip
def test_caches_are_as_wide_as_engines_keep_them(
    tmp_path: Path, backend: str, name: str, precision: str, cache: str
) -> None:
    assert setting(one(tmp_path, backend=backend, system=name, gemm_quant_mode=precision)).replica.kv_cache == cache


def test_a_deployment_of_replicas_has_room_for_caches_where_experts_are_spread(tmp_path: Path) -> None:
    few = {"model": "deepseek-ai/DeepSeek-R1", "system": "gb200", "gemm_quant_mode": "nvfp4", "osl": 1024}
    rack = predicted(tmp_path, tp_size=32, concurrency=2048, isl=8192, **few)
    assert "read as 8 replicas of 4" in rack.note
    assert rack.ttft_ms < 20e3  # 256 sequences a replica fit: none waits for another to end
    assert "not" not in predicted(tmp_path, tp_size=4, **few).note


@pytest.mark.data
def test_all_rows_of_the_measurements_can_be_read() -> None:
    path = DATA / "serving" / "closed_loop.csv"
    if not path.exists():
        pytest.skip("the measurements are not beside the project")
    found = read_rows(path)
    assert len(found.rows) == len(found.entries) == 1417
    part = [predict(row) for row in found.rows[::97]]
    assert all(isinstance(each, Prediction) for each in part)
    off = [abs(p.tpot_ms / row.tpot_ms - 1) for p, row in zip(part, found.rows[::97], strict=True)]  # type: ignore[union-attr]
    assert np.median(off) < 0.15


def test_where_no_row_can_be_predicted_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, line(system="z900_sxm"))
    assert main(["validate", str(path)]) == 1
    assert "none of its 1 rows could be predicted" in capsys.readouterr().err
    assert main(["validate", str(table(tmp_path, line(system="z900_sxm"), line(id="b")))]) == 0


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries({
        "model": st.sampled_from(model_names()),
        "system": st.sampled_from(["h100_sxm", "b200_sxm", "gb200", "l40s", "mi300x"]),
        "backend": st.sampled_from(["vllm", "sglang", "trtllm", "tensorrt-llm"]),
        "backend_version": st.sampled_from(["", "v9.9", "0.5.12", "nightly-1", "nan"]),
        "gemm_quant_mode": st.sampled_from(list(PRECISIONS)), "isl": st.sampled_from([1, 7, 1024, 30000]),
        "osl": st.sampled_from([1, 2, 300]), "concurrency": st.sampled_from([1, 3, 50]),
        "tp_size": st.sampled_from(["", 1, 4, 8, 16]), "attention_dp_size": st.sampled_from(["", 1, 8]),
        "moe_ep_size": st.sampled_from(["", 0, 8]),
    })
)  # fmt: skip
def test_whatever_the_catalogue_knows_is_predicted_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    found = predict(one(tmp_path_factory.mktemp("rows"), **changes))
    if isinstance(found, Fault):
        assert len(found.reason) > 10
        return
    assert 0 < found.ttft_ms < 1e7
    assert (found.tpot_ms > 0) == (changes["osl"] != 1)
    assert found.tpot_lo_ms <= found.tpot_ms <= found.tpot_hi_ms
    assert found.ttft_lo_ms < found.ttft_ms < found.ttft_hi_ms

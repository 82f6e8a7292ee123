"""The fit of engines' constants: features add up, slopes are slopes, known constants are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_validate import DATA, line, table

from sonde.catalogue.efficiencies import EngineOverhead
from sonde.cli import main
from sonde.cost.compile import compile_replica
from sonde.cost.explain import explain
from sonde.cost.served import kernels, served
from sonde.validate.constants import fitted, write
from sonde.validate.cross import ANY, cross_validate, curve_of, folds, intervals, levelled, measured, pair_of
from sonde.validate.features import COMPONENTS, Features, features
from sonde.validate.fit import design, model_times, series_of, solve
from sonde.validate.open_loop import compare, read_run, replay, replay_ends
from sonde.validate.predict import simulated
from sonde.validate.rows import read_rows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """Features of some rows of three pairs and two engines."""
    lines = []
    for engine in ("vllm", "sglang", "trtllm"):
        for model, system in (("meta-llama/Llama-3.1-8B-Instruct", "h100_sxm"), ("Qwen/Qwen3-32B", "h100_sxm"),
                              ("Qwen/Qwen3-32B", "b200_sxm"), ("openai/gpt-oss-120b", "b200_sxm")):  # fmt: skip
            lines += [
                line(id=f"{len(lines)}", backend=engine, model=model, system=system, concurrency=c, tp_size=2, isl=isl)
                for c in (2, 24)
                for isl in (1024, 4096)
            ]
    return features(read_rows(table(tmp_path_factory.mktemp("fit"), *lines)).rows)


def test_components_add_up_to_a_simulation(found: Features) -> None:
    weights = np.array([1.3, 0.7, 1.1, 0.8, 1.2, 0.9, 4e-4, 1e-6, 3e-6, 2e-7])
    for i in (0, 5, 20, 47):
        chosen = found.settings[i]
        reached = replace(
            kernels(chosen.device, chosen.engine.name, block=chosen.block_scaled),
            engine=EngineOverhead(4e-4, 1e-6, 2e-7, 3e-6),
            factors=tuple(zip(COMPONENTS[:6], weights[:6], strict=True)),
        )
        engine = compile_replica(chosen.model, chosen.device, chosen.replica, reached=reached)
        ttft, tpot, _ = simulated(chosen, engine)
        assert float(found.ttft[i] @ weights) == pytest.approx(ttft, rel=1e-6)
        assert float(found.tpot[i] @ weights) == pytest.approx(tpot, rel=1e-6)


def test_slopes_are_those_of_small_steps(found: Features) -> None:
    plan = design(found)
    theta = plan.mean + 0.1 * np.sin(np.arange(len(plan.mean)))
    tpot, ttft, slope_tpot, slope_ttft = model_times(found, plan, theta)
    for j in range(len(theta)):
        moved = theta.copy()
        moved[j] += 1e-6
        more = model_times(found, plan, moved)
        assert np.log(more[0] / tpot) / 1e-6 == pytest.approx(slope_tpot[:, j], abs=1e-4)
        assert np.log(more[1] / ttft) / 1e-6 == pytest.approx(slope_ttft[:, j], abs=1e-4)


def test_constants_that_made_the_times_are_found_again(found: Features) -> None:
    plan = design(found)
    truth = plan.mean + plan.spread * 0.5 * np.cos(3.0 * np.arange(len(plan.mean)))
    tpot, ttft, _, _ = model_times(found, plan, truth)
    theta = solve(found, plan, np.arange(len(tpot)), np.stack([tpot, ttft], axis=1))
    again = model_times(found, plan, theta)
    far = np.abs(model_times(found, plan, plan.mean)[0] / tpot - 1)
    assert np.median(np.abs(again[0] / tpot - 1)) < 0.03 < np.median(far)  # the prior pulls a little
    assert np.median(np.abs(again[1] / ttft - 1)) < 0.05
    same = solve(found, plan, np.arange(len(tpot)), np.stack([tpot, ttft], axis=1))
    assert theta.tobytes() == same.tobytes()


def test_what_belongs_to_a_series_is_fitted_last(found: Features) -> None:
    plan = design(found)
    tpot, ttft, _, _ = model_times(found, plan, plan.mean)
    target, rows = np.stack([tpot, ttft], axis=1), np.arange(len(tpot))
    names = np.array([series_of(chosen) for chosen in found.settings])
    odd = names == names[0]
    target[odd] *= 0.6
    early = ~plan.late
    alone = plan._replace(spread=np.where(plan.late, 1e-6, plan.spread))
    with_series, without = solve(found, plan, rows, target), solve(found, alone, rows, target)
    assert with_series[early] == pytest.approx(without[early], abs=1e-9)
    assert with_series[plan.names.index(f"series/{names[0]}/all")] < np.log(0.8)
    far = [np.abs(model_times(found, plan, theta)[0] / target[:, 0] - 1)[odd].max() for theta in (with_series, without)]
    assert far[0] < 0.5 * far[1]


def test_one_wild_row_does_not_move_the_fit(found: Features) -> None:
    plan = design(found)
    tpot, ttft, _, _ = model_times(found, plan, plan.mean)
    target = np.stack([tpot, ttft], axis=1)
    target[3] *= 20.0
    again = model_times(found, plan, solve(found, plan, np.arange(len(tpot)), target))
    others = np.arange(len(tpot)) != 3
    assert np.abs(again[0] / tpot - 1)[others].max() < 0.12


def test_folds_keep_groups_whole(found: Features) -> None:
    rows = [chosen.row for chosen in found.settings]
    for key in (pair_of, curve_of):
        groups = [key(row) for row in rows]
        fold = folds(groups, 4)
        assert len(set(zip(groups, fold.tolist(), strict=True))) == len(set(groups))
        assert len(set(fold.tolist())) == min(4, len(set(groups)))


def test_a_held_out_row_has_no_part_in_its_prediction(found: Features) -> None:
    plan = design(found)
    tpot, ttft, _, _ = model_times(found, plan, plan.mean)
    rows = [chosen.row._replace(tpot_ms=1e3 * a, ttft_ms=1e3 * b)
            for chosen, a, b in zip(found.settings, tpot, ttft, strict=True)]  # fmt: skip
    first = found._replace(settings=tuple(c._replace(row=r) for c, r in zip(found.settings, rows, strict=True)))
    held = cross_validate(first, "pairs", count=3)
    mine = np.flatnonzero(held.fold == held.fold[0])
    for i in mine:
        rows[i] = rows[i]._replace(tpot_ms=rows[i].tpot_ms * 7, ttft_ms=rows[i].ttft_ms * 7)
    second = found._replace(settings=tuple(c._replace(row=r) for c, r in zip(found.settings, rows, strict=True)))
    assert cross_validate(second, "pairs", count=3).predicted[mine].tobytes() == held.predicted[mine].tobytes()


def test_intervals_cover_what_they_say() -> None:
    random = np.random.default_rng(0)
    past, groups = random.standard_t(3, 2000), ["a"] * 1000 + ["b"] * 1000
    past[1000:] *= 3
    found = intervals(past, groups)
    for name, scale in (("a", 1.0), ("b", 3.0)):
        new = np.exp(scale * random.standard_t(3, 20_000))
        assert 0.77 < np.mean((new > found[name][0]) & (new < found[name][1])) < 0.83


def test_engines_of_few_residuals_have_no_interval_of_their_own() -> None:
    found = intervals(np.linspace(-1.0, 1.0, 101), ["many"] * 60 + ["few"] * 41)
    assert set(found) == {ANY, "many"}
    assert found[ANY] == pytest.approx((np.exp(-0.82), np.exp(0.82)), rel=0.03)


def test_intervals_hold_a_new_group_whose_rows_err_alike() -> None:
    random = np.random.default_rng(1)
    plain, level = [], []
    for _ in range(60):
        fold = np.repeat(np.arange(10), 40)
        past = np.repeat(random.normal(size=10), 40) + 0.2 * random.normal(size=400)
        new = random.normal() + 0.2 * random.normal(size=400)
        for hits, found in ((plain, intervals(past, ["a"] * 400)), (level, levelled(past, ["a"] * 400, fold))):
            low, high = np.log(found["a"])
            hits.append(np.mean((low < new) & (new < high)))
    assert np.mean(plain) < np.mean(level)
    assert 0.72 < np.mean(level) < 0.9


def test_constants_are_written_as_the_catalogue_reads_them(found: Features, tmp_path: Path) -> None:
    values = fitted(_measured_at_priors(found))
    assert values["engine/vllm/step_s"] == pytest.approx(5e-4, rel=0.3)
    (tmp_path / "engines.csv").write_text("engine,version,family,attribute,value,source,date\n", encoding="utf-8")
    write(_measured_at_priors(found), tmp_path)
    text = (tmp_path / "engines.csv").read_text(encoding="utf-8")
    assert "\nvllm,,,gemm," in text
    assert "\nsglang,,hopper,poll_steps_busy," in text
    assert "\n,new," in (tmp_path / "spreads.csv").read_text(encoding="utf-8")
    assert "\nb200-sxm,qwen3-32b,12," in (tmp_path / "pairs.csv").read_text(encoding="utf-8")
    assert "family,blackwell,gemm," in (tmp_path / "effects.csv").read_text(encoding="utf-8")


def _measured_at_priors(found: Features) -> Features:
    plan = design(found)
    tpot, ttft, _, _ = model_times(found, plan, plan.mean)
    return found._replace(settings=tuple(
        c._replace(row=c.row._replace(tpot_ms=1e3 * a, ttft_ms=1e3 * b))
        for c, a, b in zip(found.settings, tpot, ttft, strict=True)
    ))  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_open_loop_runs_are_predicted(gpu: str, tmp_path: Path) -> None:
    folder = DATA / "open_loop" / gpu / "Llama-3.1-8B"
    if not folder.exists():
        pytest.skip("the measurements are not beside the project")
    measured_run = read_run(folder)
    found = compare(measured_run, replay(measured_run), replay_ends(measured_run))
    assert all(abs(part.error) < 0.15 for part in found)
    assert all(part.lo_ms < part.predicted_ms < part.hi_ms for part in found)
    assert all(part.lo_ms < part.measured_ms < part.hi_ms for part in found)
    assert main(["validate", str(folder), "--out", str(tmp_path / "out.csv"), "--json"]) == 0
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 301


@pytest.mark.parametrize(
    ("meta", "requests"),
    [("[]", "{}"), ("{", "{}"), ("{}", "[]"), ("{}", "{"), ("{}", ""), ("{}", '{"input_toks": 3}')],
)
def test_a_damaged_run_is_refused_in_words(tmp_path: Path, meta: str, requests: str) -> None:
    folder = tmp_path / "RTX4090" / "Llama-3.1-8B"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(meta, encoding="utf-8")
    (folder / "requests.jsonl").write_text(requests, encoding="utf-8")
    assert main(["validate", str(folder)]) == 2
    assert measured([]).shape == (0,)


@pytest.mark.parametrize("name", ["vllm", "sglang", "trtllm"])
def test_a_replica_that_names_its_engine_takes_that_engines_constants(found: Features, name: str) -> None:
    chosen = found.settings[0]
    plain = compile_replica(chosen.model, chosen.device, chosen.replica.model_copy(update={"engine": "generic"}))
    replica = chosen.replica.model_copy(update={"engine": name})
    engine = compile_replica(chosen.model, chosen.device, replica)
    reached = served(chosen.device, replica, name)
    assert engine.table.time.fixed == pytest.approx(
        reached.engine.step_s + reached.engine.layer_s * chosen.model.layers, rel=1e-9
    )
    assert engine.table.time.fixed != plain.table.time.fixed
    rows = explain(chosen.model, chosen.device, replica, 100, 0)
    time = engine.table.time
    assert sum(row.seconds for row in rows) == pytest.approx(
        time.fixed + time.linear[100] + time.prefill * 5000, rel=1e-9
    )

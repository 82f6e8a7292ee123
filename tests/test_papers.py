"""Papers as experiments: every file has what is needed, and a status is what the run computes, never what is typed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.errors import CannotError, InputError
from sonde.papers.frame import Claim, Range, Reproduction, at_least, at_most, near, shelf

PAPERS = Path(shelf.__file__).parents[1]
TORCH = importlib.util.find_spec("torch") is not None
MOST_S = 120.0  # of processor time that a reproduction may take, whatever else the machine does
CLAIM = Claim("what", 2.0, "×", "how", near(2.0, 0.1), "where it must not help", at_most(1.0))


def spent() -> float:
    """Return the processor seconds of this process and of those that it started."""
    return sum(os.times()[:4])


def test_every_file_is_a_paper_and_every_paper_a_file() -> None:
    files = sorted(path.stem.replace("_", "-") for path in PAPERS.glob("*.py") if path.stem != "__init__")
    assert shelf.paper_ids() == files
    assert {"genz", "melt", "ondevice-review", "deepseek-v3-hw"} <= set(files)


@pytest.mark.parametrize("name", shelf.paper_ids())
def test_a_paper_has_what_is_needed(name: str) -> None:
    paper = shelf.paper(name)
    assert paper.id == name
    assert paper.title
    assert paper.venue
    assert 1990 < paper.year <= 2026
    assert paper.link.startswith("https://")
    assert paper.claims
    assert paper.headline is next(iter(paper.claims.values()))
    texts = [(claim.text, claim.setup) for claim in paper.claims.values()]
    assert len(set(texts)) == len(texts)
    for claim in paper.claims.values():
        assert claim.text
        assert claim.setup
        assert claim.accept != Range(), "a claim that accepts anything claims nothing"
        assert not claim.control or claim.harmless != Range(), "a control that may be anything controls nothing"
    assert any(claim.control for claim in paper.claims.values()), "no control at all"


@pytest.mark.parametrize("name", shelf.paper_ids())
def test_no_paper_types_its_status_in(name: str) -> None:
    text = (PAPERS / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    assert not any(word in text for word in ('"reproduced"', '"partly"', '"open"'))


@pytest.mark.parametrize("name", shelf.paper_ids())
def test_what_is_stored_is_of_the_claims_as_they_are(name: str) -> None:
    found = shelf.stored().get(name)
    assert found is not None, "never saved: sonde reproduce --all --save"
    claims = shelf.paper(name).claims.values()
    assert {row["claim"] for row in found["rows"]} == {claim.text for claim in claims}
    held = [row["holds"] for row in found["rows"]]
    assert found["status"] == ("reproduced" if all(held) else "partly" if any(held) else "open")
    assert found["date"]
    assert found["version"]


@pytest.mark.parametrize("name", ["deepseek-v3-hw", "genz"])
def test_what_is_stored_is_what_comes_out_now(name: str) -> None:
    told: list[tuple[int, int, str]] = []
    begin = spent()
    found = shelf.record(name, shelf.reproduce(name, lambda *args: told.append(args)))
    assert spent() - begin < MOST_S
    assert told
    kept = {(row["claim"], row["setup"]): row for row in shelf.stored()[name]["rows"]}
    assert found["status"] == shelf.stored()[name]["status"], "stale: sonde reproduce --all --save"
    for row in found["rows"]:
        assert row["why"]
        assert row["holds"] == kept[row["claim"], row["setup"]]["holds"], row["claim"]
        assert row["ours"] == pytest.approx(kept[row["claim"], row["setup"]]["ours"], rel=0.15), row["claim"]
        if row["control_is"]:
            assert row["control"] is not None


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="needs torch: pip install 'sonde[run]'")
@pytest.mark.parametrize("name", ["melt", "ondevice-review"])
def test_what_runs_for_real_comes_out(name: str) -> None:
    """Memory, losses and bounds repeat; times of this machine do not, and are only asked to be there."""
    begin = spent()
    found = shelf.reproduce(name)
    assert spent() - begin < MOST_S
    for row in found.rows:
        assert row.why
        if any(word in row.claim.text for word in ("memory", "learns", "quantisation")) and row.ours is not None:
            assert row.holds, (row.claim.text, row.ours, row.control)
    assert found.status == "partly"


@pytest.mark.parametrize("name", ["melt", "ondevice-review"])
def test_without_torch_a_paper_says_what_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == "torch" else real(found, *rest)
    )
    rows = shelf.reproduce(name).rows
    lacking = [row for row in rows if row.ours is None and "sonde[run]" in row.why]
    assert lacking
    assert not any(row.holds for row in lacking)


@given(ours=st.floats(0.0, 4.0), control=st.floats(0.0, 2.0))
def test_a_row_holds_if_its_figure_and_its_control_do(ours: float, control: float) -> None:
    row = CLAIM.came_out(ours, "why", control=control)
    assert row.holds == (1.8 <= ours <= 2.2 and control <= 1.0)


def test_a_control_that_was_not_run_and_a_figure_that_is_no_number_hold_nothing() -> None:
    assert not CLAIM.came_out(2.0, "why").holds
    assert not CLAIM.came_out(float("nan"), "why", control=0.0).holds
    assert not CLAIM.not_run("why").holds
    assert replace(CLAIM, control="").came_out(2.0, "why").holds


def test_seeds_give_a_mean_and_a_spread() -> None:
    row = CLAIM.came_out([1.0, 2.0, 3.0], "why", control=[0.0, 1.0])
    assert row.ours == 2.0
    assert row.spread == (1.0, 3.0)
    assert row.control == 0.5


@pytest.mark.parametrize(
    ("held", "status"), [((), "open"), ((0, 0), "open"), ((0, 1), "partly"), ((1, 1), "reproduced")]
)
def test_the_status_follows_from_the_rows(held: tuple[int, ...], status: str) -> None:
    claim = Claim("what", None, "", "how", at_least(1.0))
    assert Reproduction(tuple(claim.came_out(float(one), "") for one in held)).status == status


def test_results_are_kept_beside_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert shelf.stored(path) == {}
    shelf.save([{"id": "b", "status": "open"}], path)
    shelf.save([{"id": "a", "status": "partly"}, {"id": "b", "status": "reproduced"}], path)
    assert {name: it["status"] for name, it in shelf.stored(path).items()} == {"a": "partly", "b": "reproduced"}
    with pytest.raises(CannotError, match="could not be kept"):
        shelf.save([], tmp_path / "not there" / "results.json")


def test_papers_are_listed(sonde_cli: Callable[..., Any]) -> None:
    rows = sonde_cli("papers", "--json").json()
    assert [row["id"] for row in rows] == shelf.paper_ids()
    for row in rows:
        assert {"id", "title", "status", "claim", "ours", "date", "version"} <= set(row)
        assert row["status"] in ("reproduced", "partly", "open")
    shown = sonde_cli("papers")
    assert shown.code == 0
    assert all(name in shown.out for name in shelf.paper_ids())
    assert shelf.stored()["genz"]["date"] in shown.out


def test_a_paper_is_tried(sonde_cli: Callable[..., Any]) -> None:
    found = sonde_cli("reproduce", "genz", "--json").json()
    assert found["id"] == "genz"
    assert found["status"] == shelf.stored()["genz"]["status"]
    shown = sonde_cli("reproduce", "GenZ")
    assert shown.code == 0
    for text in ("claim", "paper", "ours", "control", "spread", "why they differ", found["status"], "5.82 %"):
        assert text in shown.out


@pytest.mark.parametrize("words", [["gens"], [], ["genz", "--all"]])
def test_a_paper_that_is_not_there_is_refused_in_words(words: list[str], sonde_cli: Callable[..., Any]) -> None:
    ended = sonde_cli("reproduce", *words)
    assert ended.code == 2
    assert "genz" in ended.err
    with pytest.raises(InputError):
        shelf.paper("gens")


def test_figures_are_json(sonde_cli: Callable[..., Any]) -> None:
    assert np.isfinite([row["ours"] or 0.0 for row in sonde_cli("papers", "--json").json()]).all()
    json.dumps([row.to_json() for row in shelf.reproduce("genz").rows], allow_nan=False)

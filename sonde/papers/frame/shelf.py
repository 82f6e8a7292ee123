"""The papers that there are: every file of `sonde/papers` is one. What they came to last is in `results.json`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import sonde
from sonde import papers
from sonde.errors import CannotError, unknown
from sonde.papers.frame.claim import Paper, Progress, Reproduction

#: what `sonde reproduce --all --save` wrote last
RESULTS = Path(__file__).parents[1] / "results.json"


def paper_ids() -> list[str]:
    """Return the ids of all papers, in alphabetical order, without loading any."""
    return sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(papers.__path__) if not found.ispkg)


def paper(name: str) -> Paper:
    """Return one paper. Raises InputError, with the nearest id, where there is none of that name."""
    known = name.strip().lower()
    if known not in paper_ids():
        raise unknown("ID", name, paper_ids(), "paper")
    found: Paper = importlib.import_module(f"{papers.__name__}.{known.replace('-', '_')}").PAPER
    return found


def reproduce(name: str, progress: Progress | None = None) -> Reproduction:
    """Return what comes of a paper's claims, tried now. Raises InputError for an unknown id."""
    return paper(name).run(progress or _untold)


def _untold(done: int, total: int, text: str) -> None:
    """Tell nobody."""
    del done, total, text


def record(name: str, found: Reproduction) -> dict[str, Any]:
    """Return a reproduction as `sonde reproduce --json` prints it, with the version and the day."""
    it = paper(name)
    return {
        "id": it.id, "title": it.title, "year": it.year, "venue": it.venue, "link": it.link, "status": found.status,
        "rows": [row.to_json() for row in found.rows], "notes": list(found.notes),
        "version": sonde.__version__, "date": date.today().isoformat(),
    }  # fmt: skip


def save(records: Iterable[Mapping[str, Any]], path: Path = RESULTS) -> None:
    """Write what papers came to, beside what others came to before. Raises CannotError where that can't be written."""
    kept = stored(path) | {str(it["id"]): dict(it) for it in records}
    text = json.dumps([kept[name] for name in sorted(kept)], indent=1, ensure_ascii=False, allow_nan=False)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CannotError(f"{path}: {error.strerror}; the results could not be kept") from error


def stored(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return what every paper came to when it was last tried and saved, by id."""
    if not path.exists():
        return {}
    return {it["id"]: it for it in json.loads(path.read_text(encoding="utf-8"))}


def listing() -> list[dict[str, Any]]:
    """Return a row for every paper: id, title, status, headline claim and our figure, and when that was found."""
    known = stored()
    return [_line(paper(name), known.get(name)) for name in paper_ids()]


def _line(it: Paper, found: Mapping[str, Any] | None) -> dict[str, Any]:
    claim = it.headline
    row: Mapping[str, Any] = next((row for row in (found or {}).get("rows", ()) if row["claim"] == claim.text), {})
    return {
        "id": it.id, "title": it.title, "status": found["status"] if found else "open", "claim": claim.text,
        "paper": claim.value, "ours": row.get("ours"), "unit": claim.unit, "date": found["date"] if found else None,
        "version": found["version"] if found else None,
    }  # fmt: skip

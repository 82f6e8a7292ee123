"""How far predictions are from what was measured: per group, as tables and as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.validate.predict import Prediction
from sonde.validate.rows import Fault, Row

METRICS = ("tpot", "ttft")


class Errors(NamedTuple):
    """Errors of one metric over `rows` rows, as shares of what was measured; `coverage` of the 80 % interval."""

    rows: int
    median: float
    mean: float
    bias: float
    coverage: float


class Pair(NamedTuple):
    """A row and its prediction."""

    row: Row
    prediction: Prediction


def pairs(entries: Sequence[Row | Fault], predictions: Sequence[Prediction | Fault]) -> list[Pair]:
    """Return the rows that were predicted, each with its prediction."""
    return [
        Pair(entry, found)
        for entry, found in zip(entries, predictions, strict=True)
        if isinstance(entry, Row) and isinstance(found, Prediction)
    ]


def errors(found: Sequence[Pair], metric: str) -> Errors:
    """Return the errors of a metric; bias is the median signed error. NaN where nothing was measured."""
    measured, predicted, low, high = (
        np.array([getattr(part, f"{metric}{end}_ms") for part in column], dtype=np.float64)
        for column, end in (
            ([pair.row for pair in found], ""), ([pair.prediction for pair in found], ""),
            ([pair.prediction for pair in found], "_lo"), ([pair.prediction for pair in found], "_hi"),
        )
    )  # fmt: skip
    known = np.isfinite(measured)
    if not known.any():
        return Errors(0, np.nan, np.nan, np.nan, np.nan)
    share: NDArray[np.float64] = predicted[known] / measured[known] - 1.0
    inside = (measured >= low) & (measured <= high)
    size = np.abs(share)
    return Errors(
        int(known.sum()), float(np.median(size)), float(size.mean()), float(np.median(share)),
        float(inside[known].mean()),
    )  # fmt: skip


#: what rows are grouped by: title -> the group of a row
GROUPS: dict[str, Callable[[Row], str]] = {
    "system": lambda row: row.system,
    "engine": lambda row: row.engine,
    "model": lambda row: row.model,
    "concurrency": lambda row: _octave(row.concurrency),
}


def apart(row: Row) -> str:
    """Return why a row is counted apart from the rest, or nothing: its measurement is known to be unsure."""
    if re.match(r"gb\d00", row.system.lower()):
        return "GB200"
    return ""


def suspect(row: Row) -> bool:
    """Return whether a row may hide speculative decoding. These are fitted on, and counted apart in tables.

    DeepSeek-R1 on TensorRT-LLM 1.1.0rc2, whose TPOT is below that of rows named DeepSeek-V3 (the same architecture)
    on equal settings; gpt-oss on H100 at 512 clients, which decodes several times the tokens per second that it
    decodes at 64 clients.
    """
    if row.model.endswith("DeepSeek-R1"):
        return row.engine == "trtllm" and row.version.startswith("1.1.0rc2")
    return "gpt-oss" in row.model and row.system.startswith("h100") and row.concurrency >= 512


def table(found: Sequence[Pair]) -> dict[str, dict[str, dict[str, Errors]]]:
    """Return errors by grouping, group and metric: "overall" first, then system, engine, model, concurrency."""
    trusted = [pair for pair in found if not apart(pair.row)]
    groups: dict[str, dict[str, list[Pair]]] = {"overall": {"all rows": list(found)}}
    if len(trusted) < len(found):
        groups["overall"]["without GB200"] = trusted
        groups["overall"]["GB200"] = [pair for pair in found if apart(pair.row)]
        doubted = [pair for pair in trusted if suspect(pair.row)]
        groups["overall"]["may hide speculation"] = doubted
        groups["overall"]["without either"] = [pair for pair in trusted if not suspect(pair.row)]
    for title, key in GROUPS.items():
        split: dict[str, list[Pair]] = {}
        for pair in found:
            split.setdefault(key(pair.row), []).append(pair)
        groups[title] = {name: split[name] for name in sorted(split, key=_natural)}
    return {
        title: {name: {metric: errors(part, metric) for metric in METRICS} for name, part in group.items() if part}
        for title, group in groups.items()
    }


def _octave(clients: int) -> str:
    """Return the range of concurrency that a row is counted in."""
    for low, high in ((1, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256)):
        if clients <= high:
            return f"{low}-{high}"
    return "257 or more"


def _natural(text: str) -> tuple[int, str]:
    digits = re.match(r"\d+", text)
    return (int(digits[0]) if digits else 0, text)

"""Predictions as a CSV, one line per measured row, in order."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonde.validate.predict import Prediction
from sonde.validate.rows import Fault

COLUMNS = ("id", "ttft_ms", "tpot_ms", "ttft_lo_ms", "ttft_hi_ms", "tpot_lo_ms", "tpot_hi_ms", "note")

#: columns of measured operators beside their predictions
COMPARED = ("operator", "device", "engine", "measured_ms", "predicted_ms")


def write(path: Path, found: Sequence[Prediction | Fault]) -> None:
    """Write one line per entry; of a row that could not be predicted the times are empty, and `note` says why."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        for entry in found:
            if isinstance(entry, Fault):
                lines.writerow([entry.id, *[""] * 6, entry.reason])
            else:
                times = [f"{getattr(entry, column):.6g}" for column in COLUMNS[1:-1]]
                lines.writerow([entry.id, *times, entry.note])


def write_requests(path: Path, ids: Sequence[str], times: Sequence[NDArray[np.float64]]) -> None:
    """Write predicted TTFT, TPOT and end to end (given in s) of every request, in ms."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("id", "ttft_ms", "tpot_ms", "e2e_ms"))
        for name, *row in zip(ids, *times, strict=True):
            lines.writerow([name, *(f"{1e3 * value:.6g}" for value in row)])

"""What a reader yields: the requests of a file, and what has to be said about how they were read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.workload.requests import Requests

Floats = NDArray[np.float64]
MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Trace:
    """A trace file, read. `dropped` rows failed in the original run; `notes` say what was assumed."""

    path: str
    format: str
    requests: Requests
    dropped: int = 0
    notes: tuple[str, ...] = ()


class Rows(NamedTuple):
    """Rows as they stand in a file: times in s from any zero, tokens as floats; session -1 is none."""

    arrival: Floats
    prompt: Floats
    output: Floats
    session: NDArray[np.int64]
    priority: NDArray[np.int64]


def check(rows: Rows, last: float, where: Callable[[int, str], str], *, zero_output: bool = False) -> None:
    """Raise InputError for the first row that is not a request, or comes before `last` (s).

    `where(row, role)` names the place in the file. `zero_output` lets rows without output pass.
    """
    before = np.concatenate(([last], rows.arrival[:-1]))
    bad: list[tuple[int, str, float, str, str]] = []

    def first(mask: NDArray[np.bool_], role: str, values: Floats, allowed: str, consequence: str = "") -> None:
        if mask.any():
            row = int(mask.argmax())
            bad.append((row, role, float(values[row]), allowed, consequence))

    first(~np.isfinite(rows.arrival), "arrival", rows.arrival, "must be a time")
    with np.errstate(invalid="ignore"):
        first(
            rows.arrival < before, "arrival", rows.arrival, "time goes backwards: a trace is sorted by arrival",
            "sort the file by that column",
        )  # fmt: skip
        for role, values, least in (("prompt", rows.prompt, 1), ("output", rows.output, 0 if zero_output else 1)):
            good = (values >= least) & (values <= MOST_TOKENS) & (np.floor(values) == values)
            first(~good, role, values, f"must be a whole number of tokens, at least {least}")
    if bad:
        row, role, value, allowed, consequence = min(bad, key=lambda item: item[0])
        if consequence:
            allowed = f"{allowed} (before it: {float(before[row])!r} s)"
        shown: object = int(value) if role != "arrival" and value.is_integer() else value
        raise InputError(where(row, role), shown, allowed, consequence)


def session_codes(ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return session numbers as i4: as they are where they fit, else numbered in the order of their values."""
    if len(ids) == 0 or (ids.min() >= -1 and ids.max() < 2**31):
        return ids.astype(np.int32)
    known = ids != -1
    codes = np.full(len(ids), -1, np.int32)
    codes[known] = np.unique(ids[known], return_inverse=True)[1]
    return codes

"""The result of `vllm bench serve --save-detailed`: lengths per request, and start times in later versions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sonde.errors import InputError
from sonde.workload.readers.lines import Record, as_requests, as_rows
from sonde.workload.readers.trace import Trace, check


def read_result(records: Iterator[Record], path: Path, limit: int | None) -> Trace:
    """Return the requests of a benchmark that got an answer, in order of their start.

    Without "start_times" they are spread evenly at "request_rate", or arrive at 0 where that is infinite
    (all were sent at once, or as clients came free); a note says which.
    """
    line, result = next(records)
    place = f"{path}:{line}"
    prompt, output = (_column(result, name, place) for name in ("input_lens", "output_lens"))
    if len(prompt) != len(output) or not len(prompt):
        raise InputError(place, f"{len(prompt)} and {len(output)} entries", "input_lens, output_lens: one per request")
    arrival, notes = _arrivals(result, len(prompt), place)
    errors = result.get("errors") or []
    failed = output <= 0
    if len(errors) == len(failed):
        failed |= np.asarray([bool(error) for error in errors])
    kept = ~failed
    if not kept.any():
        raise InputError(place, f"{len(failed)} requests that all failed", "needs at least one that was answered")
    dropped = int(failed.sum())
    if dropped:
        notes.append(f"{dropped:,} requests that failed were left out")
    order = np.argsort(arrival[kept], kind="stable")
    rows = as_rows(arrival[kept][order], prompt[kept][order], output[kept][order])
    check(rows, -math.inf, lambda row, role: f"{place} {role}[{int(np.flatnonzero(kept)[order[row]])}]")
    found = as_requests(rows)
    return Trace(str(path), "vllm-bench", found if limit is None else found.head(limit), dropped, tuple(notes))


def _column(result: dict[str, Any], name: str, place: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        column = np.asarray(result[name], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} {name}", str(result[name])[:60], "must be a list of numbers") from error
    if column.ndim != 1:
        raise InputError(f"{place} {name}", str(result[name])[:60], "must be a list of numbers")
    return column


def _arrivals(result: dict[str, Any], n: int, place: str) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[str]]:
    """Return when each request was sent, in s, and how that is known."""
    if "start_times" in result:
        starts = _column(result, "start_times", place)
        if len(starts) != n:
            raise InputError(f"{place} start_times", f"{len(starts)} entries", f"must be {n}, one per request")
        return starts, []
    try:
        rate = float(result.get("request_rate", math.inf))
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} request_rate", result["request_rate"], "must be a number or inf") from error
    if math.isfinite(rate) and rate > 0:
        return np.arange(n) / rate, [f"no start times in the file: spread evenly at its request_rate of {rate:g}/s"]
    return np.zeros(n), ["no start times and no finite request_rate in the file: all requests arrive at 0"]

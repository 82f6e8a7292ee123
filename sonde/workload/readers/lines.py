"""JSON lines, one request each: Mooncake's with hashes of prompt blocks, and records with columns by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.workload.readers.names import find
from sonde.workload.readers.trace import Rows, Trace, check, session_codes
from sonde.workload.requests import Requests

Record = tuple[int, dict[str, Any]]

#: tokens in one hashed block of Mooncake's published traces (arXiv:2407.00079, section 4)
MOONCAKE_BLOCK = 512
_NOTHING = np.empty(0, np.int64)


def read_mooncake(records: Iterator[Record], path: Path, limit: int | None) -> Trace:
    """Return a Mooncake trace: time in ms, one hash for every 512 tokens of the prompt, the last block partial."""
    columns = (("timestamp", 1e3), ("input_length", 1.0), ("output_length", 1.0))
    lines: list[int] = []
    values: list[list[float]] = [[], [], []]
    hashes: list[int] = []
    start = [0]
    for line, record in records:
        if limit is not None and len(lines) >= limit:
            break
        lines.append(line)
        for column, (name, unit) in zip(values, columns, strict=True):
            column.append(number(record.get(name), path, line, name) / unit)
        blocks = record.get("hash_ids", [])
        if not isinstance(blocks, list) or not all(isinstance(item, int) and abs(item) < 2**63 for item in blocks):
            raise InputError(f"{path}:{line} hash_ids", str(blocks)[:60], "must be a list of whole numbers")
        hashes.extend(blocks)
        start.append(len(hashes))
    rows = as_rows(values[0], values[1], values[2])
    names = {"arrival": "timestamp", "prompt": "input_length", "output": "output_length"}
    check(rows, -np.inf, lambda row, role: f"{path}:{lines[row]} {names[role]}")
    plain = as_requests(rows)
    if not hashes:
        return Trace(str(path), "mooncake", plain)
    _check_block_counts(np.diff(start), plain, path, lines)
    hashed = plain._replace(
        block_start=np.asarray(start, np.int64), block_hash=np.asarray(hashes, np.int64), block_tokens=MOONCAKE_BLOCK
    )
    return Trace(str(path), "mooncake", hashed)


def read_lines(records: Iterator[Record], path: Path, limit: int | None) -> Trace:
    """Return a trace of records whose names the table of names knows; times are numbers (s) or ISO text."""
    lines: list[int] = []
    values: dict[str, list[Any]] = {role: [] for role in ("arrival", "prompt", "output", "session", "priority")}
    roles: dict[str, tuple[str, float]] = {}
    for line, record in records:
        if limit is not None and len(lines) >= limit:
            break
        roles = roles or find(record)
        lines.append(line)
        name, unit = roles["arrival"]
        values["arrival"].append(moment(record.get(name), unit, path, line, name))
        for role in ("prompt", "output"):
            values[role].append(number(record.get(roles[role][0]), path, line, roles[role][0]))
        values["session"].append(record.get(roles["session"][0]) if "session" in roles else None)
        values["priority"].append(
            level(record.get(roles["priority"][0]), path, line, roles["priority"][0]) if "priority" in roles else 0
        )
    rows = as_rows(
        values["arrival"], values["prompt"], values["output"],
        number_sessions(values["session"]), np.asarray(values["priority"], np.int64),
    )  # fmt: skip
    check(rows, -np.inf, lambda row, role: f"{path}:{lines[row]} {roles[role][0]}")
    return Trace(str(path), "jsonl", as_requests(rows))


def as_rows(
    arrival: Iterable[float],
    prompt: Iterable[float],
    output: Iterable[float],
    session: NDArray[np.int64] = _NOTHING,
    priority: NDArray[np.int64] = _NOTHING,
) -> Rows:
    """Return the columns as arrays; empty sessions and priorities mean that the file has none."""
    columns = [np.asarray(list(column), np.float64) for column in (arrival, prompt, output)]
    return Rows(columns[0], columns[1], columns[2], session, priority)


def as_requests(rows: Rows, *, sort: bool = False) -> Requests:
    """Return checked rows as requests from the first arrival on, put in order of arrival where `sort`."""
    n = len(rows.arrival)
    session = session_codes(rows.session) if len(rows.session) else np.full(n, -1, np.int32)
    priority = rows.priority.astype(np.int8) if len(rows.priority) else np.zeros(n, np.int8)
    order = np.argsort(rows.arrival, kind="stable") if sort else slice(None)
    arrival = rows.arrival[order]
    return Requests(
        arrival - arrival[0], rows.prompt[order].astype(np.int32), rows.output[order].astype(np.int32),
        session[order], priority[order], np.zeros(n + 1, np.int64), np.empty(0, np.int64), 0,
    )  # fmt: skip


def number_sessions(names: Iterable[object]) -> NDArray[np.int64]:
    """Return sessions as numbers: whole numbers as they are; anything else in the order it appears; None is -1."""
    names = list(names)
    if all(name is None or (type(name) is int and abs(name) < 2**63) for name in names):
        return np.asarray([-1 if name is None else name for name in names], np.int64)
    codes: dict[str, int] = {}
    return np.asarray([-1 if name is None else codes.setdefault(str(name), len(codes)) for name in names], np.int64)


def number(value: object, path: Path, line: int, name: str) -> float:
    """Return a JSON number, or one written as text. Raises InputError with the line."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise InputError(f"{path}:{line} {name}", value, "must be a number", "repair or remove the line")


def level(value: object, path: Path, line: int, name: str) -> int:
    """Return a priority; None is 0."""
    found = 0.0 if value is None else number(value, path, line, name)
    if not -128 <= found <= 127 or found != int(found):
        raise InputError(f"{path}:{line} {name}", value, "must be a whole number from -128 to 127")
    return int(found)


def moment(value: object, unit: float, path: Path, line: int, name: str) -> float:
    """Return a time in s: a number of which `unit` make a second, or ISO text (UTC where it names no zone)."""
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            return number(value, path, line, name) / unit
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return number(value, path, line, name) / unit


def _check_block_counts(counts: NDArray[np.int64], plain: Requests, path: Path, lines: list[int]) -> None:
    """Raise InputError where a prompt has more hashed blocks than it can fill."""
    over = counts > -(-plain.prompt_tokens // MOONCAKE_BLOCK)
    if over.any():
        row = int(over.argmax())
        raise InputError(
            f"{path}:{lines[row]} hash_ids", int(counts[row]),
            f"more blocks of {MOONCAKE_BLOCK} tokens than a prompt of {plain.prompt_tokens[row]} tokens has",
        )  # fmt: skip

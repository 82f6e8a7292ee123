"""Measured results at fixed concurrency: a CSV, read row by row; what is wrong with a row is named with its line."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from sonde.errors import InputError, nearest

#: columns that a row cannot be predicted without, and those that it can
REQUIRED = ("model", "system", "backend", "isl", "osl", "concurrency")
OPTIONAL = (
    "id", "backend_version", "precision", "gemm_quant_mode", "moe_quant_mode", "batch_size", "tp_size", "pp_size",
    "attention_dp_size", "moe_tp_size", "moe_ep_size", "ttft_ms", "tpot_ms",
)  # fmt: skip
#: other names of engines in tables of measurements
ENGINES = {"tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm", "trt-llm": "trtllm", "tensorrtllm": "trtllm"}

#: what stands in cells that hold nothing
NOTHING = ("nan", "none", "null")

#: a file past this size holds something else
LARGEST = 256 << 20


class Row(NamedTuple):
    """One measured result. Times in ms, NaN where they were not measured; parallelism 1 where it was not said."""

    line: int
    id: str
    engine: str
    version: str
    model: str
    system: str
    precision: str
    experts_precision: str
    isl: int
    osl: int
    concurrency: int
    tensor: int
    pipeline: int
    data: int
    expert: int
    ttft_ms: float
    tpot_ms: float


class Fault(NamedTuple):
    """Why the row at `line` cannot be predicted."""

    line: int
    id: str
    reason: str


class Table(NamedTuple):
    """A file of measurements: one entry per data line, in order, and notes on its columns."""

    entries: tuple[Row | Fault, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return the rows that could be read."""
        return tuple(entry for entry in self.entries if isinstance(entry, Row))


def read_rows(path: Path) -> Table:
    """Return the rows of a CSV of the form of `serving/closed_loop.csv`, a `Fault` in the place of each bad one.

    Raises InputError where the file is no such table at all.
    """
    if path.stat().st_size > LARGEST:
        raise InputError(str(path), f"{path.stat().st_size:,} bytes", "is too long to be a table of measurements")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(str(path), "bytes", f"must be UTF-8 text ({error.reason} at byte {error.start})") from error
    if "\0" in text:
        raise InputError(str(path), "a zero byte", "must be text")
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        head = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = head
        notes = _check_head(path, head)
        entries = tuple(_entry(reader.line_num, record) for record in reader)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}", "text", f"must be CSV ({error})") from error
    if not entries:
        raise InputError(str(path), "no rows", "must hold at least one row below its head")
    return Table(entries, notes)


def _check_head(path: Path, head: list[str]) -> tuple[str, ...]:
    known = (*REQUIRED, *OPTIONAL)
    missing = [name for name in REQUIRED if name not in head]
    if "concurrency" in missing and "batch_size" in head:
        missing.remove("concurrency")
    if len(missing) == len(REQUIRED):
        raise InputError(f"{path}:1", ",".join(head)[:80], f"must name columns such as {', '.join(REQUIRED)}")
    notes = [f"{path}:1: lacks the column {name!r}: no row can be predicted" for name in missing]
    notes += [f"{path}:1: lacks the column {name!r}: taken as its default" for name in OPTIONAL
              if name not in head and name not in ("id", "ttft_ms", "tpot_ms", "batch_size")]  # fmt: skip
    notes += [f"{path}:1: unknown column {name!r} is not read{nearest(name, known)}" for name in head
              if name not in known]  # fmt: skip
    repeated = sorted({name for name in head if head.count(name) > 1})
    notes += [f"{path}:1: column {name!r} is there more than once: the last one is read" for name in repeated]
    return tuple(notes)


def _entry(line: int, record: dict[str | None, str | None]) -> Row | Fault:
    cells = {key: (value or "").strip() for key, value in record.items() if isinstance(key, str)}
    name = cells.get("id") or f"line {line}"
    try:
        if None in record:
            raise InputError("row", len(record[None] or ""), "has more fields than the head has columns")
        return _row(line, name, cells)
    except InputError as error:
        return Fault(line, name, str(error))


def _row(line: int, name: str, cells: dict[str, str]) -> Row:
    for column in REQUIRED:
        if not cells.get(column) and not (column == "concurrency" and cells.get("batch_size")):
            raise InputError(column, "", "is missing", "the row cannot be predicted")
    gemm, experts = cells.get("gemm_quant_mode", ""), cells.get("moe_quant_mode", "")
    precision = gemm or cells.get("precision", "")
    engine, version = cells["backend"].lower(), cells.get("backend_version", "").removeprefix("v")
    return Row(
        line, name, ENGINES.get(engine, engine), "" if version.lower() in NOTHING else version, cells["model"],
        cells["system"], precision.lower(), (experts or precision).lower(),
        _count(cells, "isl", most=1 << 22), _count(cells, "osl", most=1 << 22),
        _count(cells, "concurrency" if cells.get("concurrency") else "batch_size", most=1 << 16),
        _ranks(cells, "tp_size"), _ranks(cells, "pp_size"), _ranks(cells, "attention_dp_size"),
        _ranks(cells, "moe_ep_size"), _time(cells, "ttft_ms"), _time(cells, "tpot_ms"),
    )  # fmt: skip


def _number(cells: dict[str, str], column: str) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(column, cells[column], "must be a number")
    return value


def _count(cells: dict[str, str], column: str, *, most: int) -> int:
    value = _number(cells, column)
    if value != int(value) or not 1 <= value <= most:
        raise InputError(column, cells[column], f"must be a whole number from 1 to {most:,}")
    return int(value)


def _ranks(cells: dict[str, str], column: str) -> int:
    """Return a degree of parallelism: 1 where the cell is empty or 0, as in tables of dense models."""
    if not cells.get(column) or cells[column].lower() in NOTHING or _number(cells, column) == 0:
        return 1
    return _count(cells, column, most=4096)


def _time(cells: dict[str, str], column: str) -> float:
    if not cells.get(column) or cells[column].lower() in NOTHING:
        return math.nan
    value = _number(cells, column)
    if value <= 0:
        raise InputError(column, cells[column], "must be more than 0 ms")
    return value

"""CSV traces: Azure, BurstGPT, Sonde's own, and any other with columns that the table of names knows.

Read in blocks of whole lines, each parsed by polars into the columns that are needed, so that memory holds
the result and one block, however large the file is.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.workload.readers.names import NAMES, find, missing
from sonde.workload.readers.source import blocks
from sonde.workload.readers.trace import Rows, Trace, check, session_codes
from sonde.workload.requests import Requests

if TYPE_CHECKING:
    import polars

TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y/%m/%d %H:%M:%S%.f", "%m/%d/%Y %H:%M:%S%.f",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The columns of a CSV: where each role stands, by which name, in how many units a second, with which times."""

    path: Path
    names: tuple[str, ...]
    separator: str
    roles: dict[str, tuple[int, str, float]]
    time_format: str | None = None

    @property
    def format(self) -> str:
        """Return the name of the format that has these columns."""
        names = {name for _, name, _ in self.roles.values()}
        if {"ContextTokens", "GeneratedTokens"} <= names:
            return "azure"
        if {"Request tokens", "Response tokens"} <= names:
            return "burstgpt"
        return "csv"


@dataclass
class _Columns:
    """What has been read so far, as a list of blocks for every column."""

    arrival: list[NDArray[np.float64]] = field(default_factory=list)
    prompt: list[NDArray[np.int32]] = field(default_factory=list)
    output: list[NDArray[np.int32]] = field(default_factory=list)
    session: list[polars.Series] = field(default_factory=list)
    priority: list[NDArray[np.int8]] = field(default_factory=list)
    hashes: list[polars.Series] = field(default_factory=list)
    block_tokens: int = 0
    rows: int = 0
    dropped: int = 0
    line: int = 0
    last: float = -np.inf
    zero: float | int | None = None


def read_csv(stream: IO[bytes], head: tuple[int, str], path: Path, limit: int | None) -> Trace:
    """Return the trace of a CSV whose header is `head` (line number, text) and whose rows are in `stream`."""
    header = parse_header(head[1], path)
    columns = _Columns(line=head[0])
    for block in blocks(stream, path):
        if not block.strip():
            columns.line += block.count(b"\n")
            continue
        if columns.zero is None:
            header = _with_time_format(header, block)
        _append(columns, header, block)
        columns.line += block.count(b"\n")
        if limit is not None and columns.rows >= limit:
            break
    if columns.rows == 0:
        what = f"{columns.dropped} rows that all failed" if columns.dropped else "no rows under the header"
        raise InputError(str(path), what, "needs at least one request", "there is nothing to simulate")
    notes: tuple[str, ...] = ()
    if columns.dropped:
        notes = (f"{columns.dropped:,} requests that failed (0 response tokens) were left out",)
    return Trace(str(path), header.format, _requests(columns, limit), columns.dropped, notes)


def parse_header(text: str, path: Path) -> Header:
    """Return the header that `text` is. Raises InputError saying what was found and which names are known."""
    for separator in (",", ";", "\t", "|"):
        names = tuple(name.strip() for name in next(csv.reader([text], delimiter=separator)))
        found = find(names)
        if len(found) > 1 or not missing(found):
            break
    else:
        raise InputError(
            str(path), text[:80], "no known format: neither a CSV header with known columns nor JSON",
            "known: Azure, BurstGPT or other CSV with columns such as TIMESTAMP,ContextTokens,GeneratedTokens; "
            "Mooncake or other JSON lines; ShareGPT; vLLM benchmark JSON; OpenTelemetry spans (OTLP JSON)",
        )  # fmt: skip
    lack = missing(found)
    if lack:
        known = "; ".join(f"{role}: {', '.join(list(NAMES[role])[:6])}, ..." for role in lack)
        raise InputError(
            str(path), ", ".join(names), f"has no column for {' and '.join(lack)}", f"known names: {known}"
        )
    return Header(
        path, names, separator, {role: (names.index(name), name, unit) for role, (name, unit) in found.items()}
    )


def _append(columns: _Columns, header: Header, block: bytes) -> None:
    """Parse `block`, check its rows against each other and those before, and add them."""
    frame = _parse(header, block, columns.line, integer=True)
    needed = [role for role in ("prompt", "output") if frame[role].null_count()]
    if needed or frame["arrival"].null_count():
        frame = _parse(header, block, columns.line, integer=False)
        _check_nulls(frame, header, block, columns.line)
    ticks = frame["arrival"].to_numpy()
    if columns.zero is None:
        columns.zero = ticks[0]
    arrival = (ticks - columns.zero) / (1e9 if header.time_format else header.roles["arrival"][2])
    prompt, output = frame["prompt"].to_numpy(), frame["output"].to_numpy()
    nothing = np.empty(0, np.int64)
    burst = header.format == "burstgpt"
    check(
        Rows(arrival, prompt, output, nothing, nothing), columns.last,
        lambda row, role: _place(header, block, columns.line, row, role), zero_output=burst,
    )  # fmt: skip
    columns.last = float(arrival[-1])
    keep = output > 0
    columns.dropped += int(len(keep) - np.count_nonzero(keep))
    columns.rows += int(np.count_nonzero(keep))
    columns.arrival.append(arrival[keep])
    columns.prompt.append(prompt[keep].astype(np.int32))
    columns.output.append(output[keep].astype(np.int32))
    _append_optional(columns, frame, header, block, keep)


def _append_optional(
    columns: _Columns, frame: polars.DataFrame, header: Header, block: bytes, keep: NDArray[np.bool_]
) -> None:
    """Add what a trace may lack: sessions, priorities, hashes of blocks."""
    import polars

    if "priority" in frame.columns:
        levels = frame["priority"].cast(polars.Int8, strict=False)
        if (wrong := levels.is_null() & frame["priority"].is_not_null()).any():
            row = int(wrong.arg_true()[0])
            place = _place(header, block, columns.line, row, "priority")
            raise InputError(place, frame["priority"][row], "must be a whole number from -128 to 127")
        columns.priority.append(levels.fill_null(0).to_numpy()[keep])
    frame = frame.filter(polars.Series(keep))
    if "session" in frame.columns:
        ids = frame["session"].cast(polars.Int64, strict=False)
        columns.session.append(frame["session"] if ids.null_count() > frame["session"].null_count() else ids)
    if "block_hash" in frame.columns and "block_tokens" in frame.columns:
        columns.hashes.append(frame["block_hash"].fill_null(""))
        columns.block_tokens = int(frame["block_tokens"].cast(polars.Int32, strict=False).to_numpy().max(initial=0))


def _parse(header: Header, block: bytes, before: int, *, integer: bool) -> polars.DataFrame:
    """Return the needed columns of `block` under the names of their roles; null is what could not be parsed."""
    import polars

    number = polars.Int32 if integer else polars.Float64
    types: list[Any] = [polars.String] * len(header.names)
    names: dict[int, str] = {}
    for role, (index, _, _) in header.roles.items():
        names[index] = role
        if role in ("prompt", "output"):
            types[index] = number
        elif role == "arrival" and header.time_format is None:
            types[index] = polars.Float64
    schema = {names.get(index, f"unused {index}"): kind for index, kind in enumerate(types)}
    try:
        frame = polars.read_csv(
            block.lstrip(b"\r\n"), has_header=False, separator=header.separator, schema=schema,
            columns=sorted(names), ignore_errors=True, truncate_ragged_lines=True,
        )  # fmt: skip
    except polars.exceptions.PolarsError as error:
        raise _unparsed(header, block, before, error) from error
    if header.time_format is not None:
        when = polars.col("arrival").str.to_datetime(header.time_format, time_unit="ns", strict=False)
        frame = frame.with_columns(when.cast(polars.Int64))
    return frame


def _with_time_format(header: Header, block: bytes) -> Header:
    """Return the header with the format of its times, told from the first row; None is a number."""
    import polars

    first = next(line for line in block.split(b"\n") if line.strip()).decode(errors="replace")
    cells = next(csv.reader([first], delimiter=header.separator))
    index = header.roles["arrival"][0]
    text = cells[index].strip() if index < len(cells) else ""
    try:
        float(text)
    except ValueError:
        for form in TIME_FORMATS:
            if polars.Series([text]).str.to_datetime(form, time_unit="ns", strict=False).null_count() == 0:
                return Header(header.path, header.names, header.separator, header.roles, form)
    return header


def _check_nulls(frame: polars.DataFrame, header: Header, block: bytes, before: int) -> None:
    """Raise InputError for the first row in which a needed value is missing or is no number."""
    nulls = {role: frame[role].is_null() for role in ("arrival", "prompt", "output")}
    rows = [(int(null.arg_true()[0]), role) for role, null in nulls.items() if null.any()]
    if not rows:
        return
    row, role = min(rows)
    line, text = _line(block, before, row)
    cells = next(csv.reader([text], delimiter=header.separator))
    index, name, _ = header.roles[role]
    if len(cells) < len(header.names):
        raise _short(header, line, text)
    kind = "a time like those before it, or seconds" if role == "arrival" else "a whole number of tokens"
    raise InputError(f"{header.path}:{line} {name}", cells[index], f"must be {kind}", "repair or remove the line")


def _unparsed(header: Header, block: bytes, before: int, error: Exception) -> InputError:
    """Return the error for the first line with too few columns, or for the block where there is none."""
    for number, line in enumerate(block.split(b"\n"), before + 1):
        shown = line.decode(errors="replace").strip()
        if shown and len(next(csv.reader([shown], delimiter=header.separator))) < len(header.names):
            return _short(header, number, shown)
    return InputError(f"{header.path}:{before + 1}", str(error)[:80], "must be CSV", "repair the lines from there on")


def _short(header: Header, number: int, text: str) -> InputError:
    have = len(next(csv.reader([text], delimiter=header.separator)))
    return InputError(
        f"{header.path}:{number}", text[:80], f"malformed line: has {have} of {len(header.names)} columns",
        "repair or remove the line",
    )  # fmt: skip


def _place(header: Header, block: bytes, before: int, row: int, role: str) -> str:
    """Return the place of a value as file, line and column."""
    return f"{header.path}:{_line(block, before, row)[0]} {header.roles[role][1]}"


def _line(block: bytes, before: int, row: int) -> tuple[int, str]:
    """Return the number in the file and the text of row `row` of a block that follows line `before`."""
    filled = ((number, line) for number, line in enumerate(block.split(b"\n"), 1) if line.strip())
    number, line = next(pair for index, pair in enumerate(filled) if index == row)
    return before + number, line.decode(errors="replace").rstrip("\r")


def _requests(columns: _Columns, limit: int | None) -> Requests:
    """Return the columns in one piece, from the first arrival on; the blocks are let go one by one."""
    start, tokens, hashes = _hashes(columns, limit)
    n = columns.rows if limit is None else min(columns.rows, limit)
    arrival = _joined(columns.arrival, limit)
    arrival -= arrival[0]
    return Requests(
        arrival, _joined(columns.prompt, limit), _joined(columns.output, limit), _sessions(columns, n),
        _joined(columns.priority, limit) if columns.priority else np.zeros(n, np.int8), start, hashes, tokens,
    )  # fmt: skip


def _joined(parts: list[NDArray[Any]], limit: int | None) -> NDArray[Any]:
    whole = np.concatenate(parts)
    parts.clear()
    return whole if limit is None or len(whole) <= limit else whole[:limit].copy()


def _sessions(columns: _Columns, n: int) -> NDArray[np.int32]:
    """Return the session numbers: those of the file, or, where they are text, in the order they appear."""
    import polars

    if not columns.session:
        return np.full(n, -1, np.int32)
    textual = any(part.dtype == polars.String for part in columns.session)
    whole: polars.Series = polars.concat(part.cast(polars.String) if textual else part for part in columns.session)[:n]
    columns.session.clear()
    if not textual:
        return session_codes(whole.fill_null(-1).to_numpy())
    names = whole.drop_nulls().unique(maintain_order=True)
    codes = whole.replace_strict(names, polars.int_range(len(names), dtype=polars.Int32, eager=True), default=-1)
    return codes.cast(polars.Int32).to_numpy().copy()


def _hashes(columns: _Columns, limit: int | None) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """Return where the hashed blocks of each request begin, the tokens in a block, and the hashes."""
    import polars

    n = columns.rows if limit is None else min(columns.rows, limit)
    if not columns.hashes or not columns.block_tokens:
        return np.zeros(n + 1, np.int64), 0, np.empty(0, np.int64)
    lists: polars.Series = polars.concat(columns.hashes)[:n].str.split(" ")
    columns.hashes.clear()
    flat = lists.explode()
    counts = lists.list.eval(polars.element().filter(polars.element() != "")).list.len().to_numpy()
    hashes = flat.filter(flat != "").cast(polars.Int64).to_numpy().copy()
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64))), columns.block_tokens, hashes

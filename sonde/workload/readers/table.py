"""CSV traces: Azure, BurstGPT, Sonde's own, and any other with columns that the table of names knows.

Read in blocks of whole lines, each parsed by polars into the columns that are needed, so that memory holds
the result and one block, however large the file is.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sonde.errors import InputError
from sonde.workload.readers.columns import Columns
from sonde.workload.readers.names import NAMES, find, missing
from sonde.workload.readers.source import blocks
from sonde.workload.readers.trace import Rows, Trace, check

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


def read_csv(stream: IO[bytes], head: tuple[int, str], path: Path, limit: int | None) -> Trace:
    """Return the trace of a CSV whose header is `head` (line number, text) and whose rows are in `stream`."""
    header = parse_header(head[1], path)
    columns = Columns(line=head[0])
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
    return Trace(str(path), header.format, columns.requests(limit), columns.dropped, notes)


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


def _append(columns: Columns, header: Header, block: bytes) -> None:
    """Parse `block`, check its rows against each other and those before, and add them."""
    tidy = _tidy(block, header, columns.line)
    frame = _parse(header, tidy, columns.line, integer=True)
    needed = [role for role in ("prompt", "output") if frame[role].null_count()]
    if needed or frame["arrival"].null_count():
        frame = _parse(header, tidy, columns.line, integer=False)
        _check_nulls(frame, header, block, columns.line)
    ticks = frame["arrival"].to_numpy()
    if columns.zero is None:
        columns.zero = ticks[0]
    with np.errstate(invalid="ignore"):
        arrival = (ticks - columns.zero) / (1e9 if header.time_format else header.roles["arrival"][2])
    prompt, output = frame["prompt"].to_numpy(), frame["output"].to_numpy()
    nothing = np.empty(0, np.int64)
    burst = header.format == "burstgpt"

    def where(row: int, role: str) -> str:
        return f"{header.path}:{_line(block, columns.line, row)[0]} {header.roles[role][1]}"

    check(Rows(arrival, prompt, output, nothing, nothing), columns.last, where, zero_output=burst)
    columns.last = float(arrival[-1])
    keep = output > 0
    columns.dropped += int(len(keep) - np.count_nonzero(keep))
    columns.rows += int(np.count_nonzero(keep))
    columns.arrival.append(arrival[keep])
    columns.prompt.append(prompt[keep].astype(np.int32))
    columns.output.append(output[keep].astype(np.int32))
    columns.add_optional(frame, keep, where)


def _tidy(block: bytes, header: Header, before: int) -> bytes:
    """Return `block` without blank lines, which polars would count as rows. Raises InputError for an open quote."""
    if block.count(b'"') % 2:
        lines = enumerate(block.split(b"\n"), before + 1)
        number, line = next((number, line) for number, line in lines if line.count(b'"') % 2)
        shown = line[:80].decode(errors="replace")
        raise InputError(f"{header.path}:{number}", shown, "malformed line: a quote is not closed", "repair the line")
    if block[:1] in b"\r\n" or b"\n\n" in block or b"\n\r\n" in block:
        return b"\n".join(line for line in block.split(b"\n") if line.strip(b"\r"))
    return block


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

    def parsed(text: bytes) -> polars.DataFrame:
        return polars.read_csv(
            text, has_header=False, separator=header.separator, schema=schema, columns=sorted(names),
            ignore_errors=True,
        )  # fmt: skip

    try:
        frame = parsed(block)
    except polars.exceptions.PolarsError as error:
        trimmed = _trimmed(header, block, before)
        try:
            frame = parsed(trimmed)
        except polars.exceptions.PolarsError:
            place = f"{header.path}:{before + 1}"
            raise InputError(place, str(error)[:80], "must be CSV", "repair the lines from there on") from error
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
        raise _malformed(header, line, text)
    kind = "a time like those before it, or seconds" if role == "arrival" else "a whole number of tokens"
    raise InputError(f"{header.path}:{line} {name}", cells[index], f"must be {kind}", "repair or remove the line")


def _trimmed(header: Header, block: bytes, before: int) -> bytes:
    """Return `block` without the separators that end a line for nothing.

    Raises InputError for the first line with too few columns, or with more of them that are not empty.
    """
    lines, separator = [], header.separator.encode()
    for number, line in enumerate(block.split(b"\n"), before + 1):
        shown = line.decode(errors="replace").strip("\r ")
        if shown.strip():
            cells = next(csv.reader([shown], delimiter=header.separator))
            if len(cells) < len(header.names) or any(cell.strip() for cell in cells[len(header.names) :]):
                raise _malformed(header, number, shown)
            for _ in cells[len(header.names) :]:
                line = line[: line.rindex(separator)]
        lines.append(line)
    return b"\n".join(lines)


def _malformed(header: Header, number: int, text: str) -> InputError:
    have = len(next(csv.reader([text], delimiter=header.separator)))
    return InputError(
        f"{header.path}:{number}", text[:80], f"malformed line: has {have} of {len(header.names)} columns",
        "repair or remove the line",
    )  # fmt: skip


def _line(block: bytes, before: int, row: int) -> tuple[int, str]:
    """Return the number in the file and the text of row `row` of a block that follows line `before`."""
    filled = ((number, line) for number, line in enumerate(block.split(b"\n"), 1) if line.strip(b"\r"))
    number, line = next((pair for index, pair in enumerate(filled) if index == row), (1, b""))
    return before + number, line.decode(errors="replace").rstrip("\r")

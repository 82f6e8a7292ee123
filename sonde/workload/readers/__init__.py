"""Readers: a trace file in any of the formats that people keep traces in, as `Requests`.

The format is told from the header or the first record, never from the file's name; gzip and zstd are read as they are.
"""

from __future__ import annotations

import json
from pathlib import Path

from sonde.errors import InputError
from sonde.workload.readers.source import first_line, open_trace
from sonde.workload.readers.trace import Trace
from sonde.workload.requests import Requests

__all__ = ["Trace", "check_context", "place", "read", "read_trace"]


def read(path: str | Path, *, limit: int | None = None) -> Requests:
    """Return the requests of a trace file, the first at time 0; at most `limit` of them.

    Raises InputError where the file is missing, empty, damaged or of no known format, and for the first line that
    is malformed, goes back in time, or holds a token count that is not a positive whole number.
    """
    return read_trace(path, limit=limit).requests


def read_trace(path: str | Path, *, limit: int | None = None) -> Trace:
    """Return the same requests with the format's name, the number of failed requests left out, and notes."""
    if limit is not None and limit < 1:
        raise InputError("limit", limit, "must be at least 1 request")
    path = Path(path)
    with open_trace(path) as stream:
        head = first_line(stream, path)
        if head[1][0] in "{[":
            from sonde.workload.readers.records import read_json

            return read_json(stream, head, path, limit)
        from sonde.workload.readers.table import read_csv

        return read_csv(stream, head, path, limit)


def place(path: str | Path, row: int) -> str:
    """Return "file:line column" of the prompt of request `row` (from 0), or "file[row]" where no line is a request."""
    from sonde.workload.readers.names import find
    from sonde.workload.readers.table import parse_header

    path = Path(path)
    known = read_trace(path, limit=row + 1)
    if known.dropped or known.format not in ("azure", "csv", "mooncake", "jsonl"):
        return f"{path}[{row}].prompt_tokens"
    with open_trace(path) as stream:
        line, text = first_line(stream, path)
        if known.format in ("azure", "csv"):
            name, left = parse_header(text, path).roles["prompt"][1], row + 1
        else:
            name, left = "input_length" if known.format == "mooncake" else find(json.loads(text))["prompt"][0], row
        while left:
            line += 1
            left -= bool(stream.readline().strip())
    return f"{path}:{line} {name}"


def check_context(requests: Requests, context: int, path: str = "trace") -> None:
    """Raise InputError for the first request whose prompt is longer than `context` tokens, naming its row (from 0)."""
    over = requests.prompt_tokens > context
    if over.any():
        row = int(over.argmax())
        raise InputError(
            f"{path}[{row}].prompt_tokens", int(requests.prompt_tokens[row]),
            f"is longer than the model's context of {context:,} tokens",
            f"{int(over.sum()):,} of {requests.n:,} requests could not be served",
        )  # fmt: skip

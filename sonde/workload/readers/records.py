"""JSON traces: one record a line, or one document, told by the keys that are there.

mooncake            {"timestamp": ms, "input_length", "output_length", "hash_ids": [one per 512 prompt tokens]}
jsonl               one request a line under names of the table of names (Sonde reads vLLM's per-request logs so)
sharegpt            {"conversations": [{"from", "value"}, ...]} or {"messages": [{"role", "content"}, ...]}
vllm-bench          the result of `vllm bench serve --save-detailed`: {"input_lens": [...], "output_lens": [...]}
opentelemetry       OTLP JSON, {"resourceSpans": [...]}, spans with `gen_ai.usage.*` attributes
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sonde.errors import InputError
from sonde.workload.readers import conversations, spans, vllm
from sonde.workload.readers.lines import Record, read_lines, read_mooncake
from sonde.workload.readers.names import find, missing
from sonde.workload.readers.source import blocks, read
from sonde.workload.readers.trace import Trace

Reader = Callable[[Iterator[Record], Path, int | None], Trace]

#: name, whether a record is of this format, reader; the first that fits is taken
FORMATS: tuple[tuple[str, Callable[[dict[str, Any]], bool], Reader], ...] = (
    ("mooncake", lambda r: {"timestamp", "input_length", "output_length"} <= r.keys(), read_mooncake),
    ("sharegpt", lambda r: "conversations" in r or "messages" in r, conversations.read_conversations),
    ("vllm-bench", lambda r: {"input_lens", "output_lens"} <= r.keys(), vllm.read_result),
    ("opentelemetry", lambda r: "resourceSpans" in r or "scopeSpans" in r, spans.read_spans),
    ("jsonl", lambda r: not missing(find(r)), read_lines),
)


def read_json(stream: IO[bytes], head: tuple[int, str], path: Path, limit: int | None) -> Trace:
    """Return the trace of a JSON file, in lines or as a whole, whose first line is `head` (number, text)."""
    records = _records(stream, head, path)
    first = next(records, None)
    if first is None:
        raise InputError(str(path), "an empty list", "needs at least one request", "there is nothing to simulate")
    record = first[1]
    for _, fits, reader in FORMATS:
        if fits(record):
            return reader(_chain(first, records), path, limit)
    keys = ", ".join(list(record)[:8])
    raise InputError(
        f"{path}:{first[0]}", "{" + keys + "}", "no known format has these keys",
        f"known: {', '.join(name for name, _, _ in FORMATS)}; a plain record needs a time, prompt tokens and output "
        "tokens, such as arrival_s, prompt_tokens, output_tokens",
    )  # fmt: skip


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest


def _records(stream: IO[bytes], head: tuple[int, str], path: Path) -> Iterator[Record]:
    """Yield (line number, record): of every line, or of the elements of one document (all on its first line)."""
    number, text = head
    try:
        document = json.loads(text)
    except ValueError as error:
        yield from _document(text.encode() + b"\n" + read(stream, path), number, path, error)
        return
    if isinstance(document, list):
        yield from ((number, _record(item, number, path)) for item in document)
        return
    yield number, _record(document, number, path)
    for block in blocks(stream, path):
        for line in block.splitlines():
            number += 1
            if line.strip():
                yield number, _record(_parse(line, number, path), number, path)


def _document(text: bytes, number: int, path: Path, first: ValueError) -> Iterator[Record]:
    try:
        document = json.loads(text)
    except ValueError as error:
        line = number + getattr(error, "lineno", 1) - 1
        if line > number and getattr(error, "msg", "").startswith("Extra data"):
            line, error = number, first
        shown = text.split(b"\n")[line - number][:80].decode(errors="replace")
        raise InputError(
            f"{path}:{line}", shown, f"malformed line: no JSON ({error})", "repair or remove the line"
        ) from error
    items = document if isinstance(document, list) else [document]
    yield from ((number, _record(item, number, path)) for item in items)


def _parse(line: bytes, number: int, path: Path) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        shown = line[:80].decode(errors="replace")
        raise InputError(
            f"{path}:{number}", shown, f"malformed line: no JSON ({error})", "repair or remove the line"
        ) from error


def _record(value: object, number: int, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number}", str(value)[:80], "must be a JSON object, {...}")
    return value

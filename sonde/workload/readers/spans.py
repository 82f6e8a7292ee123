"""OpenTelemetry: OTLP JSON exports of spans that carry the GenAI conventions' token counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sonde.errors import InputError
from sonde.workload.readers.lines import Record, as_requests, as_rows, number, number_sessions
from sonde.workload.readers.trace import Trace, check

#: attribute names of the GenAI semantic conventions, newest first
PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
SESSION = ("gen_ai.conversation.id", "session.id", "conversation.id")


def read_spans(records: Iterator[Record], path: Path, limit: int | None) -> Trace:
    """Return every span with token counts as a request at its start, in order of start (exports are in order of end).

    Spans without both counts are other work and are passed over; those without output tokens failed.
    """
    starts: list[int] = []
    lines: list[int] = []
    prompts: list[float] = []
    outputs: list[float] = []
    names: list[object] = []
    other = dropped = 0
    for line, span in _spans(records, path):
        values = _attributes(span)
        prompt, output = (_first(values, keys) for keys in (PROMPT, OUTPUT))
        if prompt is None or output is None:
            other += 1
        elif number(output, path, line, OUTPUT[0]) == 0:
            dropped += 1
        else:
            starts.append(_nanoseconds(span, path, line))
            lines.append(line)
            prompts.append(number(prompt, path, line, PROMPT[0]))
            outputs.append(number(output, path, line, OUTPUT[0]))
            names.append(_first(values, SESSION))
    if not starts:
        raise InputError(
            str(path), f"{other} spans, none with token counts", f"needs spans with {PROMPT[0]} and {OUTPUT[0]}"
        )
    order = sorted(range(len(starts)), key=starts.__getitem__)[:limit]
    base = starts[order[0]]
    rows = as_rows(
        ((starts[i] - base) / 1e9 for i in order), (prompts[i] for i in order), (outputs[i] for i in order),
        number_sessions(names[i] for i in order),
    )  # fmt: skip
    attribute = {"arrival": "startTimeUnixNano", "prompt": PROMPT[0], "output": OUTPUT[0]}
    check(rows, -math.inf, lambda row, role: f"{path}:{lines[order[row]]} {attribute[role]}")
    notes = [f"{other:,} spans without token counts passed over"] if other else []
    notes += [f"{dropped:,} spans with 0 output tokens left out"] if dropped else []
    return Trace(str(path), "opentelemetry", as_requests(rows), dropped, tuple(notes))


def _spans(records: Iterator[Record], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every span with the line that it stands in."""
    for line, record in records:
        try:
            resources = record.get("resourceSpans", [record])
            for resource in resources:
                for scope in resource.get("scopeSpans", resource.get("instrumentationLibrarySpans", [])):
                    yield from ((line, span) for span in scope.get("spans", []))
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{path}:{line}", str(record)[:60], "must be OTLP JSON: resourceSpans > scopeSpans > spans"
            ) from error


def _attributes(span: dict[str, Any]) -> dict[str, object]:
    """Return the attributes of a span as plain values."""
    found: dict[str, object] = {}
    for item in span.get("attributes", []):
        value = item.get("value", {})
        found[str(item.get("key"))] = next(iter(value.values()), None) if isinstance(value, dict) else value
    return found


def _first(values: dict[str, object], keys: tuple[str, ...]) -> object:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _nanoseconds(span: dict[str, Any], path: Path, line: int) -> int:
    """Return the start of a span in ns, exactly: OTLP writes it as text, for it is longer than a float holds."""
    value = span.get("startTimeUnixNano", span.get("start_time_unix_nano"))
    try:
        return int(str(value))
    except ValueError as error:
        raise InputError(f"{path}:{line} startTimeUnixNano", value, "must be whole nanoseconds since 1970") from error

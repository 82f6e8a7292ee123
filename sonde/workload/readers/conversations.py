"""Conversations in ShareGPT's form: no times, and seldom token counts; every answer is one request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sonde.errors import InputError
from sonde.workload.readers.lines import Record, as_requests, as_rows
from sonde.workload.readers.trace import Trace

#: a common rule of thumb for English text and byte-pair tokenizers
CHARACTERS_PER_TOKEN = 4
_ANSWERS = {"gpt", "assistant", "chatgpt", "bing", "bard", "model"}
_COUNTS = ("num_tokens", "token_count", "tokens")


def read_conversations(records: Iterator[Record], path: Path, limit: int | None) -> Trace:
    """Return every answer as a request whose prompt is all that was said before it; a conversation is a session.

    Tokens are the counts that messages carry ("num_tokens", "token_count", "tokens"), or characters/4 rounded up.
    There are no times in such a file: all requests arrive at 0, for a closed loop or for `generate.retime`.
    """
    prompts: list[float] = []
    outputs: list[float] = []
    sessions: list[int] = []
    empty = estimated = 0
    for conversation, (line, record) in enumerate(records):
        said = 0
        for message in _messages(record, path, line):
            tokens, guessed = _tokens(message, path, line)
            estimated += guessed
            if _speaker(message) in _ANSWERS:
                if said and tokens:
                    prompts.append(said)
                    outputs.append(tokens)
                    sessions.append(conversation)
                else:
                    empty += 1
            said += tokens
        if limit is not None and len(prompts) >= limit:
            break
    if not prompts:
        raise InputError(str(path), "no answers", "needs at least one answer to a prompt", "there is nothing to do")
    rows = as_rows(np.zeros(len(prompts)), prompts, outputs, np.asarray(sessions, np.int64))
    found = as_requests(rows)
    notes = ["no times in the file: all requests arrive at 0"]
    if estimated:
        notes.append(f"tokens of {estimated:,} messages estimated as characters/{CHARACTERS_PER_TOKEN}")
    if empty:
        notes.append(f"{empty:,} answers without text, or without a prompt, left out")
    return Trace(str(path), "sharegpt", found if limit is None else found.head(limit), empty, tuple(notes))


def _messages(record: dict[str, Any], path: Path, line: int) -> list[dict[str, Any]]:
    messages = record.get("conversations", record.get("messages"))
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"{path}:{line} conversations", str(messages)[:60], "must be a list of messages")
    return messages


def _speaker(message: dict[str, Any]) -> str:
    return str(message.get("from", message.get("role", ""))).lower()


def _tokens(message: dict[str, Any], path: Path, line: int) -> tuple[int, bool]:
    """Return the tokens of a message, and whether they are an estimate."""
    for name in _COUNTS:
        count = message.get(name)
        if isinstance(count, int) and not isinstance(count, bool):
            if count < 0:
                raise InputError(f"{path}:{line} {name}", count, "must not be negative")
            return count, False
    text = message.get("value", message.get("content")) or ""
    if isinstance(text, list):  # parts of a multimodal message
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    return -(-len(str(text)) // CHARACTERS_PER_TOKEN), True

"""The one table of names that columns go by, in CSV headers and in JSON records."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: role -> {name, normalised: units to a second of a number found there}; the first name that is present wins
NAMES: dict[str, dict[str, float]] = {
    "arrival": {
        "arrival_s": 1.0, "arrival_time": 1.0, "arrived_at": 1.0, "arrival": 1.0, "timestamp": 1.0,
        "start_time": 1.0, "start_timestamp": 1.0, "time": 1.0, "time_s": 1.0, "created_at": 1.0, "datetime": 1.0,
        "arrival_ms": 1e3, "arrival_time_ms": 1e3, "timestamp_ms": 1e3, "time_ms": 1e3,
        "timestamp_us": 1e6, "timestamp_ns": 1e9, "start_time_ns": 1e9,
    },
    "prompt": dict.fromkeys((
        "prompt_tokens", "contexttokens", "context_tokens", "request_tokens", "input_tokens", "input_toks",
        "input_length", "input_len", "prompt_length", "prompt_len", "prompt_size", "num_prefill_tokens",
        "num_prompt_tokens", "num_input_tokens", "isl",
    ), 0.0),
    "output": dict.fromkeys((
        "output_tokens", "generatedtokens", "generated_tokens", "response_tokens", "completion_tokens", "output_toks",
        "output_length", "output_len", "response_length", "token_size", "num_decode_tokens", "num_output_tokens",
        "osl",
    ), 0.0),
    "session": dict.fromkeys(("session", "session_id", "conversation_id", "conversation", "chat_id"), 0.0),
    "priority": dict.fromkeys(("priority",), 0.0),
    "block_hash": dict.fromkeys(("block_hash", "hash_ids"), 0.0),
    "block_tokens": dict.fromkeys(("block_tokens",), 0.0),
}  # fmt: skip

#: what a trace cannot do without
REQUIRED = ("arrival", "prompt", "output")


def normal(name: str) -> str:
    """Return `name` in the form that the table has it: lower case, words joined by `_`."""
    return re.sub(r"[\s\-.]+", "_", name.strip().strip("\"'").strip().lower())


def find(header: Iterable[str]) -> dict[str, tuple[str, float]]:
    """Return role -> (name as it stands in `header`, units to a second) for every role that is there."""
    present = {normal(name): name for name in header}
    found: dict[str, tuple[str, float]] = {}
    for role, names in NAMES.items():
        for name, unit in names.items():
            if name in present:
                found[role] = (present[name], unit)
                break
    return found


def missing(found: Iterable[str]) -> list[str]:
    """Return the required roles that are not in `found`."""
    have = set(found)
    return [role for role in REQUIRED if role not in have]

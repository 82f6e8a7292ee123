"""Requests within a model's context: prompts that are too long are refused, clipped or dropped; answers are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from sonde.errors import InputError
from sonde.workload.requests import Requests, chosen

LongPrompts = Literal["refuse", "clip", "drop"]
Place = Callable[[int], str]


class Within(NamedTuple):
    """Requests that a model can serve, and in words what was done to make them so."""

    requests: Requests
    notes: tuple[str, ...]


def within(asked: Requests, context: int, long_prompts: LongPrompts = "refuse", where: Place | None = None) -> Within:
    """Return requests of which prompt and output fit `context` tokens together.

    A prompt longer than that is refused (InputError, naming it by `where(row)`), clipped so that its output fits
    beside it, or dropped with its request. An output that would go past the context ends there, as in engines; one
    token is always made. Clipped prompts lose the hashes of the blocks that are cut off.
    """
    over = asked.prompt_tokens > context
    count, notes = int(np.count_nonzero(over)), []
    if count and long_prompts == "refuse":
        raise _refused(asked, context, where or (lambda row: f"trace[{row}].prompt_tokens"))
    if count == asked.n and long_prompts == "drop":
        raise InputError(
            "workload.long_prompts", "drop", f"would leave no request: all {count:,} prompts are longer than the "
            f"model's context of {context:,} tokens",
        )  # fmt: skip
    if count and long_prompts == "drop":
        notes.append(
            f"{count:,} of {asked.n:,} requests are left out: their prompts are longer than the model's context of "
            f"{context:,} tokens."
        )
        asked = chosen(asked, ~over)
    elif count:
        notes.append(f"{count:,} of {asked.n:,} prompts are clipped to the model's context of {context:,} tokens.")
        room = np.maximum(context - asked.output_tokens, 1).astype(np.int32)
        asked = _shorter(asked, np.where(over, room, asked.prompt_tokens))
    most = np.maximum(context - asked.prompt_tokens, 1).astype(np.int32)
    cut = int(np.count_nonzero(asked.output_tokens > most))
    if cut:
        notes.append(f"{cut:,} of {asked.n:,} outputs end where the model's context of {context:,} tokens is full.")
        asked = asked._replace(output_tokens=np.minimum(asked.output_tokens, most))
    return Within(asked, tuple(notes))


def _refused(asked: Requests, context: int, where: Place) -> InputError:
    over = asked.prompt_tokens > context
    row = int(over.argmax())
    return InputError(
        where(row), int(asked.prompt_tokens[row]), f"is longer than the model's context of {context:,} tokens",
        f"{int(over.sum()):,} of {asked.n:,} requests could not be served; in a scenario "
        "`workload.long_prompts: clip` shortens them, `drop` leaves them out",
    )  # fmt: skip


def _shorter(asked: Requests, prompt: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Requests:
    """Return the requests with shorter prompts, and no hash for what is cut off."""
    asked = asked._replace(prompt_tokens=prompt)
    if not asked.block_tokens:
        return asked
    counts = np.diff(asked.block_start)
    left = np.minimum(counts, -(-prompt.astype(np.int64) // asked.block_tokens))
    place = np.arange(len(asked.block_hash)) - np.repeat(asked.block_start[:-1] - asked.block_start[0], counts)
    return asked._replace(
        block_start=np.concatenate(([0], np.cumsum(left))), block_hash=asked.block_hash[place < np.repeat(left, counts)]
    )

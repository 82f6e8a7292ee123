"""How an engine forms its next step: plain functions from what it sees to what it does.

A policy is asked when the batch may change: a request arrived, a prompt or a sequence was finished, a
step that could be repeated is over. Between two such moments its answer must not change, so it may look
at the view only. The simulator compiles these functions; the gateway calls them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

UNLIMITED = 1 << 40


class BatchView(NamedTuple):
    """What an engine knows before a step.

    running       sequences that are decoding
    waiting       requests that are queued
    prefilling    1 where a prompt is partly done, else 0
    token_budget  tokens that a step may hold
    max_batch     sequences that may be in the batch at once
    """

    running: int
    waiting: int
    prefilling: int
    token_budget: int
    max_batch: int


class Step(NamedTuple):
    """What the next step holds: at most so many prompt tokens, the decodes or not, prompts whole or in chunks.

    A whole prompt longer than `prompt_tokens` runs alone. Where decodes are left out but no prompt can be
    admitted either, the decodes run.
    """

    prompt_tokens: int
    decode: bool
    whole_prompts: bool


def static(view: BatchView) -> Step:
    """Fill an empty engine, run the batch until its last sequence ends, then fill it again."""
    return Step(0 if view.running > 0 else UNLIMITED, True, True)


def iteration(view: BatchView) -> Step:  # noqa: ARG001  (it admits whatever fits)
    """Admit whole prompts into every step, beside the decodes (Orca, OSDI'22)."""
    return Step(UNLIMITED, True, True)


def prefill_first(view: BatchView) -> Step:
    """Run whole prompts as soon as they wait, and decode only when none can run (vLLM v0)."""
    if view.waiting > 0:
        return Step(view.token_budget, False, True)
    return Step(0, True, True)


def chunked(view: BatchView) -> Step:
    """Decode in every step and fill the rest of its token budget with chunks of prompts (Sarathi, vLLM v1)."""
    return Step(max(view.token_budget - view.running, 0), True, False)


def inflight(view: BatchView) -> Step:
    """Decode in every step, and beside it admit whole prompts within the token budget (TensorRT-LLM)."""
    return Step(max(view.token_budget - view.running, 0), True, True)


def chunks_first(view: BatchView) -> Step:
    """Run prompts, in chunks of the token budget, as soon as they wait, and decode when none can run (SGLang)."""
    if view.waiting > 0 or view.prefilling > 0:
        return Step(view.token_budget, False, False)
    return Step(0, True, False)


class Batching(NamedTuple):
    """A batching policy with what memory it reserves, which does not change from step to step.

    reserve_output  admission takes memory for the whole output, so that no sequence is ever preempted
    hold_slots      a finished sequence keeps its place, and is computed, until the whole batch has ended
    """

    function: Callable[[BatchView], Step]
    reserve_output: bool = False
    hold_slots: bool = False


POLICIES: dict[str, Batching] = {
    "static": Batching(static, reserve_output=True, hold_slots=True),
    "iteration": Batching(iteration, reserve_output=True),
    "prefill-first": Batching(prefill_first),
    "chunked": Batching(chunked),
    "inflight": Batching(inflight, reserve_output=True),
    "chunks-first": Batching(chunks_first),
}

"""What a long prompt does to those who are reading: the small engine of `serving`, measured on one core.

Times are of the thread's processor, which what else runs on the machine does not lengthen much.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from sonde.learn.decoder import Decoder, Shape
from sonde.learn.footprint import best
from sonde.learn.serving import Answer, Job, Limits, Pages, Span, hybrid, serve
from sonde.learn.study import one_thread

SHAPE = Shape(layers=4, hidden=256, heads=4, inner=704)
READERS, READ, LONG, SHORT = 8, 60, 1024, 16
TILE, STEADY = 16, 3.0  # budgets are multiples of a tile; the objective is so many times a step that decodes only


class Gaps(NamedTuple):
    """Longest seconds between two tokens of any reader, while a prompt of `LONG` tokens arrives, or a short one.

    objective_s     the time between tokens that the budget was chosen for, from measured steps
    whole, chunked  with whole prompts first, and with chunks of that budget
    short_whole, short_chunked   the same where the prompt that arrives is short
    differs         the largest difference of a logit between the two, over the largest logit
    """

    budget: int
    objective_s: float
    whole: float
    chunked: float
    short_whole: float
    short_chunked: float
    differs: float


def measured(seed: int) -> Gaps:
    """Return what a prompt that arrives does to readers, of a decoder and prompts that `seed` draws."""
    torch.manual_seed(seed)
    model = Decoder(SHAPE).eval()
    with one_thread():
        objective = STEADY * step_s(model, 0)
        budget = largest_budget(model, objective)
        chunks, whole = Limits("chunked", budget), Limits("prefill-first", 4 * LONG)
        one, two = (serve(model, _jobs(LONG, seed), limits, time.thread_time) for limits in (whole, chunks))
        few, fewer = (serve(model, _jobs(SHORT, seed), limits, time.thread_time) for limits in (whole, chunks))
    return Gaps(budget, objective, longest(one), longest(two), longest(few), longest(fewer), difference(one, two))


def step_s(model: Decoder, chunk: int) -> float:
    """Return the seconds of a step: all readers decode, and a long prompt's last `chunk` tokens are computed."""
    pages = Pages(model.shape, 256)
    spans = [Span(i, SHORT + READ, 1) for i in range(READERS)]
    if chunk:
        spans.append(Span(READERS, LONG - chunk, chunk))
    for span in spans:
        pages.take(span.sequence, span.start + span.tokens)
    tokens = torch.zeros(READERS + chunk, dtype=torch.int64)
    with torch.inference_mode():
        return best(lambda: hybrid(model, pages, tokens, spans), 5)


def largest_budget(model: Decoder, objective_s: float) -> int:
    """Return the most tokens of a step, in whole tiles, that was measured to hold the objective."""
    found = TILE
    for budget in range(TILE, LONG + 1, TILE):
        if step_s(model, max(budget - READERS, 0)) > objective_s:
            break
        found = budget
    return found


def longest(answers: list[Answer]) -> float:
    """Return the longest gap between two tokens of a reader."""
    return max(max(answer.gaps) for answer in answers[:READERS])


def difference(one: list[Answer], two: list[Answer]) -> float:
    """Return the largest difference of a logit over the largest logit; infinite where a token differs."""
    if [answer.tokens for answer in one] != [answer.tokens for answer in two]:
        return float("inf")
    rows = [torch.cat([torch.stack(answer.logits) for answer in run]) for run in (one, two)]
    return float((rows[0] - rows[1]).abs().max() / rows[0].abs().max())


def forgetting(seed: int) -> float:
    """Return the same difference, of a prompt's last logits, where its second half cannot see the first."""
    torch.manual_seed(seed)
    model, pages = Decoder(SHAPE).eval(), Pages(SHAPE, LONG // 16)
    prompt = _prompt(LONG, torch.Generator().manual_seed(seed))
    pages.take(0, LONG)
    half = LONG // 2
    with torch.inference_mode(), one_thread():
        whole = hybrid(model, pages, prompt, [Span(0, 0, LONG)])
        pages.keys[:, pages.slots[0][:half]] = 0.0
        pages.values[:, pages.slots[0][:half]] = 0.0
        broken = hybrid(model, pages, prompt[half:], [Span(0, half, half)])
    return float((whole - broken).abs().max() / whole.abs().max())


def _jobs(arriving: int, seed: int) -> list[Job]:
    draws = torch.Generator().manual_seed(seed)
    readers = [Job(_prompt(SHORT, draws), READ) for _ in range(READERS)]
    return [*readers, Job(_prompt(arriving, draws), 4, READ // 3)]


def _prompt(tokens: int, draws: torch.Generator) -> Tensor:
    return torch.randint(256, (tokens,), generator=draws)

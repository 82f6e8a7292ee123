"""Prompts in one process, decoding in another, caches in memory that both see, kept by the hash of a prompt's blocks.

A small mixture of experts: the process for prompts writes keys and values into the pool, the other reads on from there.
What it writes is compared with one process that does both. Processes end with their parent.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, multiprocessing

from sonde.learn.decoder import Decoder, batch
from sonde.learn.mixture import SHAPE, mixture, untrained
from sonde.learn.pipeline import shared, wait, workers
from sonde.learn.serving import PAGE, Pages, Span, hybrid
from sonde.learn.study import one_thread, texts

BLOCK, PROMPT, OUTPUT, SLOTS = 128, 2048, 48, 16_384
REPEATS, STEPS, FIRST = 5, 60, 17


class Desk(NamedTuple):
    """What both processes see: the pool, a prompt's tokens and slots, how many there are and how many are cached."""

    keys: Tensor
    values: Tensor
    tokens: Tensor
    slots: Tensor
    counts: Tensor  # tokens, of which cached, first token
    asked: Any
    done: Any


class Handed(NamedTuple):
    """What came of it.

    alone, handed   tokens of one process that does both, and of two
    spoiled         tokens of two where one cached block was lost in between
    first_s         seconds to the first token with nothing cached, shortest of some
    again_s         the same of another prompt with nothing cached
    reused_s        the same of a prompt of which the first nine tenths are cached
    """

    alone: list[int]
    handed: list[int]
    spoiled: list[int]
    first_s: float
    again_s: float
    reused_s: float


class Kept:
    """Blocks of the pool by the hash of all that comes before their end."""

    def __init__(self) -> None:
        self.slots: dict[int, Tensor] = {}
        self.free = 0

    def of(self, prompt: Tensor) -> tuple[Tensor, int]:
        """Return slots for a prompt and its answer, and how many of its tokens are in the pool already."""
        keys = [hash(bytes(prompt[:end].tolist())) for end in range(BLOCK, len(prompt), BLOCK)]
        held = 0
        while held < len(keys) and keys[held] in self.slots:
            held += 1
        need = len(prompt) + OUTPUT - held * BLOCK
        new = torch.arange(self.free, self.free + need)
        self.free += need
        slots = torch.cat([*(self.slots[key] for key in keys[:held]), new])
        for i, key in enumerate(keys):
            self.slots[key] = slots[i * BLOCK : (i + 1) * BLOCK]
        return slots, held * BLOCK


def handed_over() -> Handed:
    """Return what two processes make of the same prompts as one, and how soon. Raises CannotError where one is mute."""
    model = mixture(0, STEPS)
    text = texts()[1]
    rows = batch(text, 1 + REPEATS * 2, PROMPT - 1, torch.Generator().manual_seed(3))
    context = multiprocessing.get_context("spawn")
    pages = Pages(SHAPE, SLOTS // PAGE)
    desk = Desk(
        shared(pages.keys), shared(pages.values), shared(torch.zeros(PROMPT, dtype=torch.long)),
        shared(torch.zeros(PROMPT + OUTPUT, dtype=torch.long)), shared(torch.zeros(3, dtype=torch.long)),
        context.Semaphore(0), context.Semaphore(0),
    )  # fmt: skip
    with one_thread(), torch.inference_mode(), workers([(prompts, (model.state_dict(), desk))]):
        return _compared(model, desk, rows)


def _compared(model: Decoder, desk: Desk, rows: Tensor) -> Handed:
    kept = Kept()
    _ask(desk, rows[0], torch.arange(PROMPT + OUTPUT), 0)  # the process is up, and warm
    whole, slots, _ = _asked(desk, kept, rows[0])
    handed = _decoded(model, desk, slots, int(desk.counts[2]))
    gone = slots[PROMPT - BLOCK : PROMPT]
    lost = desk.values[:, gone].clone()
    desk.values[:, gone] = 0.0
    spoiled = _decoded(model, desk, slots, handed[0])
    desk.values[:, gone] = lost
    first, again, reused = [whole], [], []
    for i in range(REPEATS):
        kept.free, kept.slots = 2 * (PROMPT + OUTPUT), dict(list(kept.slots.items())[: PROMPT // BLOCK])
        ends = torch.cat((rows[0, : PROMPT * 9 // 10], rows[1 + i, PROMPT * 9 // 10 :]))
        first.append(_ask(desk, rows[0], slots, 0))
        again.append(_asked(desk, kept, rows[1 + REPEATS + i])[0])
        reused.append(_asked(desk, kept, ends)[0])
    return Handed(_alone(model, rows[0]), handed, spoiled, min(first), min(again), min(reused))


def _asked(desk: Desk, kept: Kept, prompt: Tensor) -> tuple[float, Tensor, int]:
    slots, cached = kept.of(prompt)
    return _ask(desk, prompt, slots, cached), slots, cached


def _ask(desk: Desk, prompt: Tensor, slots: Tensor, cached: int) -> float:
    """Have the other process compute what is not cached of a prompt; return the seconds to its first token."""
    begin = time.perf_counter()
    desk.tokens[:], desk.slots[:] = prompt, slots
    desk.counts[0], desk.counts[1] = len(prompt), cached
    desk.asked.release()
    wait(desk.done)
    return time.perf_counter() - begin


def prompts(weights: dict[str, Tensor], desk: Desk) -> None:
    """Compute prompts in this process, as they are asked for, into the pool."""
    torch.set_num_threads(1)
    model = untrained()
    model.load_state_dict(weights)
    with torch.inference_mode():
        while True:
            wait(desk.asked)
            total, cached = int(desk.counts[0]), int(desk.counts[1])
            pages = _pages(desk, desk.slots)
            logits = hybrid(model, pages, desk.tokens[cached:total], [Span(0, cached, total - cached)])
            desk.counts[2] = drawn(logits, torch.Generator().manual_seed(FIRST))
            desk.done.release()


def _pages(desk: Desk, slots: Tensor) -> Pages:
    pages = Pages(SHAPE, 0)
    pages.keys, pages.values, pages.slots = desk.keys, desk.values, {0: slots}
    return pages


def _decoded(model: Decoder, desk: Desk, slots: Tensor, first: int) -> list[int]:
    return _written(model, _pages(desk, slots), first)


def _alone(model: Decoder, prompt: Tensor) -> list[int]:
    pages = Pages(SHAPE, -(-(PROMPT + OUTPUT) // PAGE))
    pages.take(0, PROMPT + OUTPUT)
    logits = hybrid(model, pages, prompt, [Span(0, 0, PROMPT)])
    return _written(model, pages, drawn(logits, torch.Generator().manual_seed(FIRST)))


def drawn(logits: Tensor, draws: torch.Generator) -> int:
    """Return a token drawn by its probability."""
    return int(torch.multinomial(logits[0].softmax(-1), 1, generator=draws))


def _written(model: Decoder, pages: Pages, first: int) -> list[int]:
    """Return the tokens that follow a prompt whose keys and values are in the pages, drawn alike in every run."""
    tokens, draws = [first], torch.Generator().manual_seed(FIRST + 1)
    for i in range(OUTPUT - 1):
        logits = hybrid(model, pages, torch.tensor(tokens[-1:]), [Span(0, PROMPT + i, 1)])
        tokens.append(drawn(logits, draws))
    return tokens

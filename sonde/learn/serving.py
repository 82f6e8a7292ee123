"""A small serving engine in torch: continuous batching over paged caches, its steps formed by Sonde's own policies.

`serve` asks the same functions of `policies.batching` as the simulator does. A step computes the tokens of all its
spans (chunks of prompts, tokens being decoded) in one pass; attention reads each sequence's pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sonde.errors import CannotError
from sonde.learn.decoder import Decoder, Shape, angles, turned
from sonde.policies.batching import POLICIES, BatchView, Step

PAGE = 16
#: no prompt is partly done
NONE = (-1, 0)


class Span(NamedTuple):
    """`tokens` tokens of a sequence that a step computes, the first of which is its token number `start`."""

    sequence: int
    start: int
    tokens: int


class Pages:
    """Keys and values of many sequences, in pages of PAGE tokens that lie anywhere and are used again."""

    def __init__(self, shape: Shape, pages: int, dtype: torch.dtype = torch.float32) -> None:
        runs, dim = shape.layers * shape.repeats, shape.hidden // shape.heads
        self.keys = torch.zeros(runs, pages * PAGE, shape.heads, dim, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.free = list(range(pages))
        self.held: dict[int, list[int]] = {}
        self.slots: dict[int, Tensor] = {}

    def take(self, sequence: int, tokens: int) -> bool:
        """Give a sequence the pages of `tokens` tokens, and return whether that many were free."""
        count = -(-tokens // PAGE)
        if count > len(self.free):
            return False
        pages = [self.free.pop() for _ in range(count)]
        self.held[sequence] = pages
        self.slots[sequence] = (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()
        return True

    def give(self, sequence: int) -> None:
        """Take back the pages of a sequence."""
        self.free += self.held.pop(sequence)
        del self.slots[sequence]

    def where(self, spans: Sequence[Span]) -> Tensor:
        """Return the slots of the tokens of all spans, in order."""
        return torch.cat([self.slots[s.sequence][s.start : s.start + s.tokens] for s in spans])


def hybrid(model: Decoder, pages: Pages, tokens: Tensor, spans: Sequence[Span]) -> Tensor:
    """Return the logits [spans, vocabulary] after the last token of every span, of `tokens` [n] in the spans' order.

    Keys and values of the tokens are written to their pages. A token sees all of its sequence up to itself.
    """
    shape = model.shape
    turn = torch.cat([angles(s.start, s.tokens, shape.hidden // shape.heads) for s in spans])[:, None]
    where = pages.where(spans)
    x: Tensor = model.embedding(tokens)
    run = 0
    for block in model.blocks:
        for _ in range(shape.repeats):
            x = _block(block, x, turn, (pages, run, where, spans))
            run += 1
    last = torch.tensor([s.tokens for s in spans]).cumsum(0) - 1
    logits: Tensor = model.head(model.norm(x[last]))
    return logits


def _block(block: Any, x: Tensor, turn: Tensor, at: tuple[Pages, int, Tensor, Sequence[Span]]) -> Tensor:
    pages, run, where, spans = at
    q, k, v = block.qkv(block.norms[0](x)).view(len(x), 3, block.heads, -1).unbind(1)
    q, k = turned(q, turn), turned(k, turn)
    pages.keys[run, where], pages.values[run, where] = k, v
    mixed, begin = torch.empty_like(q), 0
    for span in spans:
        end = begin + span.tokens
        mixed[begin:end] = _attention(q[begin:end], pages, run, span)
        begin = end
    x = x + block.out(mixed.flatten(1))
    y: Tensor = x + block.feed(block.norms[1](x))
    return y


def _attention(q: Tensor, pages: Pages, run: int, span: Span) -> Tensor:
    """Return [tokens, heads, dim]: what the queries of a span read of their sequence's pages up to each of them."""
    end = span.start + span.tokens
    slots = pages.slots[span.sequence][:end]
    k, v = pages.keys[run, slots].transpose(0, 1), pages.values[run, slots].transpose(0, 1)
    mask = None
    if span.tokens > 1:
        mask = torch.arange(end) <= torch.arange(span.start, end)[:, None]
    return functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=mask).transpose(0, 1)


class Job(NamedTuple):
    """A prompt, how many tokens to write after it, and after how many steps of the engine it arrives."""

    prompt: Tensor
    outputs: int
    after: int = 0


class Answer(NamedTuple):
    """What a job got: tokens, the logits that each was taken from, and when (s) by the engine's clock."""

    tokens: list[int]
    logits: list[Tensor]
    times: list[float]

    @property
    def gaps(self) -> list[float]:
        """Return the seconds between successive tokens."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


class Limits(NamedTuple):
    """How an engine forms its steps: a policy of `sonde.policies.batching`, and its limits."""

    policy: str = "chunked"
    token_budget: int = 64
    max_batch: int = 16
    pages: int = 1024


class _Engine:
    """Jobs at work: waiting, a prompt partly done, decoding."""

    def __init__(self, model: Decoder, jobs: Sequence[Job], limits: Limits) -> None:
        self.model, self.jobs, self.limits = model, jobs, limits
        self.pages = Pages(model.shape, limits.pages, model.head.weight.dtype)
        self.answers = [Answer([], [], []) for _ in jobs]
        self.coming = sorted(range(len(jobs)), key=lambda i: (jobs[i].after, i))
        self.waiting: list[int] = []
        self.part = NONE  # a sequence, and how much of its prompt is done
        self.running: list[int] = []
        self.steps = 0

    def arrive(self) -> None:
        """Queue what has arrived; where nothing is at work, what arrives next."""
        idle = not (self.waiting or self.running or self.part != NONE)
        while self.coming and (self.jobs[self.coming[0]].after <= self.steps or idle):
            self.waiting.append(self.coming.pop(0))
            idle = False

    def schedule(self) -> list[Span]:
        """Return the spans of the next step, as the policy wants it."""
        limits = self.limits
        view = BatchView(
            len(self.running), len(self.waiting), int(self.part != NONE), limits.token_budget, limits.max_batch
        )
        step = POLICIES[limits.policy].function(view)
        prompts = self._prompts(step)
        decode = step.decode or not prompts
        return [self._next(i) for i in self.running] * decode + prompts

    def _next(self, i: int) -> Span:
        return Span(i, len(self.jobs[i].prompt) + len(self.answers[i].tokens) - 1, 1)

    def _prompts(self, step: Step) -> list[Span]:
        """Return the spans of prompts: that of the prompt in work first, then of those that are admitted."""
        found, room = list[Span](), step.prompt_tokens
        while room > 0 and self._in_work(step, room, len(found)):
            i, done = self.part
            rest = len(self.jobs[i].prompt) - done
            count = rest if step.whole_prompts else min(rest, room)
            found.append(Span(i, done, count))
            self.part = NONE if count == rest else (i, done + count)
            room -= count
        return found

    def _in_work(self, step: Step, room: int, taken: int) -> bool:
        """Return whether a prompt is in work: that of the head of the queue, if there is a place, tokens and pages."""
        if self.part != NONE:
            return True
        if not self.waiting or len(self.running) + taken >= self.limits.max_batch:
            return False
        job = self.jobs[self.waiting[0]]
        if step.whole_prompts and taken and len(job.prompt) > room:
            return False
        if not self.pages.take(self.waiting[0], len(job.prompt) + job.outputs):
            return False
        self.part = (self.waiting.pop(0), 0)
        return True

    def step(self, spans: Sequence[Span], clock: Callable[[], float]) -> None:
        """Compute a step, and give every sequence that came to a next token that token."""
        logits = hybrid(self.model, self.pages, torch.cat([self._tokens(span) for span in spans]), spans)
        chosen = logits.argmax(-1).tolist()
        now = clock()
        self.steps += 1
        for span, row, token in zip(spans, logits, chosen, strict=True):
            job, answer = self.jobs[span.sequence], self.answers[span.sequence]
            if span.start + span.tokens < len(job.prompt):
                continue
            answer.tokens.append(token)
            answer.logits.append(row)
            answer.times.append(now)
            if len(answer.tokens) == 1:
                self.running.append(span.sequence)
            if len(answer.tokens) == job.outputs:
                self.running.remove(span.sequence)
                self.pages.give(span.sequence)

    def _tokens(self, span: Span) -> Tensor:
        prompt = self.jobs[span.sequence].prompt
        if span.start < len(prompt):
            return prompt[span.start : span.start + span.tokens]
        return torch.tensor(self.answers[span.sequence].tokens[-1:])


def serve(
    model: Decoder, jobs: Sequence[Job], limits: Limits, clock: Callable[[], float] = time.perf_counter
) -> list[Answer]:
    """Return the answer to every job, written greedily; times are those of `clock` at the end of each step.

    A job takes the pages of its prompt and output when it is admitted, so that none is preempted. Raises CannotError
    for a job that all pages together could not hold.
    """
    for i, job in enumerate(jobs):
        if -(-(len(job.prompt) + job.outputs) // PAGE) > limits.pages:
            raise CannotError(
                f"jobs[{i}] of {len(job.prompt)} + {job.outputs} tokens does not fit {limits.pages} pages"
            )
    engine = _Engine(model, jobs, limits)
    with torch.inference_mode():
        while engine.coming or engine.waiting or engine.running or engine.part != NONE:
            engine.arrive()
            engine.step(engine.schedule(), clock)
    return engine.answers

"""One engine, or one process for prompts and one for answers: what long prompts do to those who are reading.

The process for prompts keeps keys and values where it computed them, in memory that both see; the other pulls them into
pages of its own when it forms a step, and the sequence joins its batch. Times are those of a thread's processor, since
what else runs here lengthens others; one engine that does both is credited with a second core, as if it were twice as
fast on two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, multiprocessing

from sonde.learn.decoder import Decoder
from sonde.learn.pipeline import shared, wait, workers
from sonde.learn.serving import PAGE, Answer, Job, Limits, Pages, Span, hybrid, serve
from sonde.learn.serving_gaps import SHAPE
from sonde.learn.study import one_thread

READERS, SHORT, READ = 8, 16, 48
LONG, ANSWER, ARRIVING, EVERY = 512, 4, 6, 6  # tokens of a long prompt and its answer; how many, every so many steps
CHUNK, CORES = 64, 2


class Desk(NamedTuple):
    """What both processes see of all jobs: their prompts, and keys and values, a row of slots for each of them.

    firsts        the first token of each
    asked, done   jobs that have arrived, and whose prompts are done, in their order
    """

    keys: Tensor
    values: Tensor
    prompts: Tensor
    lengths: Tensor
    firsts: Tensor
    asked: Any
    done: Any


class Apart(NamedTuple):
    """p99 seconds per token of readers, and tokens that differ.

    whole, chunked   one engine on two cores: whole prompts first, or chunks of `CHUNK` tokens; for each seed
    apart            two processes of one core each; for each seed
    quiet            one engine and two processes where no long prompts arrive
    differ, lost     tokens in which two processes differ from one; and where a quarter of every long cache was lost
    tokens           that were compared
    """

    whole: list[float]
    chunked: list[float]
    apart: list[float]
    quiet: tuple[float, float]
    differ: int
    lost: int
    tokens: int


def measured(seeds: Sequence[int]) -> Apart:
    """Return what both ways make of the same jobs. Raises CannotError where a process does not answer."""
    torch.manual_seed(0)
    model, every = Decoder(SHAPE).eval(), [jobs(seed, ARRIVING) for seed in seeds]
    readers = every[0][:READERS]
    whole, chunks = Limits("prefill-first", 8 * LONG), Limits("chunked", CHUNK + READERS)
    with torch.inference_mode(), one_thread():
        with process(model, every[0]) as desk:
            decoded(model, every[0], desk)  # the process is up, and warm
            apart = [decoded(model, asked, desk) for asked in every]
            lost = decoded(model, every[0], desk, lose=True)
            alone = decoded(model, readers, desk)  # the last: the process goes on from here with the next job
        together, cut = ([serve(model, asked, it, time.thread_time) for asked in every] for it in (whole, chunks))
        quiet = serve(model, readers, whole, time.thread_time)
    differ = sum(_differ(one, two) for one, two in zip(together, apart, strict=True))
    return Apart(
        [_p99(run) / CORES for run in together], [_p99(run) / CORES for run in cut], [_p99(run) for run in apart],
        (_p99(quiet) / CORES, _p99(alone)), differ, _differ(together[0], lost),
        sum(len(it.tokens) for run in together for it in run),
    )  # fmt: skip


def jobs(seed: int, arriving: int) -> list[Job]:
    """Return readers of short prompts, who are there at once, and long prompts that arrive one after the other."""
    draws = torch.Generator().manual_seed(seed)

    def prompt(tokens: int) -> Tensor:
        return torch.randint(256, (tokens,), generator=draws)

    readers = [Job(prompt(SHORT), READ) for _ in range(READERS)]
    return [*readers, *(Job(prompt(LONG), ANSWER, EVERY * (1 + k)) for k in range(arriving))]


@contextmanager
def process(model: Decoder, asked: Sequence[Job]) -> Iterator[Desk]:
    """Have another process compute the prompts of the jobs, in their order, as often as they are asked for."""
    context = multiprocessing.get_context("spawn")
    longest = _room(asked)
    pool = Pages(model.shape, len(asked) * longest // PAGE)
    tensors = (
        pool.keys, pool.values, torch.zeros(len(asked), longest, dtype=torch.long),
        torch.tensor([len(job.prompt) for job in asked]), torch.zeros(len(asked), dtype=torch.long),
    )  # fmt: skip
    keys, values, prompts, lengths, firsts = (shared(it) for it in tensors)
    desk = Desk(keys, values, prompts, lengths, firsts, context.Semaphore(0), context.Semaphore(0))
    with workers([(compute, (model.state_dict(), desk))]):
        yield desk


def _room(asked: Sequence[Job]) -> int:
    """Return the slots of the longest prompt, in whole pages."""
    return -(-max(len(job.prompt) for job in asked) // PAGE) * PAGE


def compute(weights: dict[str, Tensor], desk: Desk) -> None:
    """Compute prompts in this process, in the order of the jobs and then from the first again."""
    torch.set_num_threads(1)
    model = Decoder(SHAPE).eval()
    model.load_state_dict(weights)
    room = desk.prompts.shape[1]
    pages = Pages(SHAPE, 0)
    pages.keys, pages.values = desk.keys, desk.values
    pages.slots = {k: torch.arange(k * room, (k + 1) * room) for k in range(len(desk.prompts))}
    with torch.inference_mode():
        while True:
            for k, length in enumerate(desk.lengths.tolist()):
                wait(desk.asked)
                logits = hybrid(model, pages, desk.prompts[k, :length], [Span(k, 0, length)])
                desk.firsts[k] = logits[0].argmax()
                desk.done.release()


class _Batch:
    """What decodes in this process: its pages, and what has been written so far."""

    def __init__(self, model: Decoder, asked: Sequence[Job], desk: Desk) -> None:
        self.model, self.jobs, self.desk = model, asked, desk
        self.pages = Pages(model.shape, sum(-(-(len(job.prompt) + job.outputs) // PAGE) for job in asked))
        self.answers = [Answer([], [], []) for _ in asked]
        self.running: list[int] = []
        self.sent = self.come = self.steps = 0

    def send(self) -> None:
        """Hand on the prompts that have arrived; where nothing is at work, the next one."""
        while self.sent < len(self.jobs):
            idle = not self.running and self.come == self.sent
            if self.jobs[self.sent].after > self.steps and not idle:
                break
            self.desk.asked.release()
            self.sent += 1

    def pull(self, *, lose: bool) -> None:
        """Copy the caches of prompts that are done; wait for one where there is nothing else to do."""
        if not self.running and self.come < self.sent:
            wait(self.desk.done)
            self._take(lose=lose)
        while self.come < self.sent and self.desk.done.acquire(block=False):
            self._take(lose=lose)

    def _take(self, *, lose: bool) -> None:
        k, desk = self.come, self.desk
        length, room = len(self.jobs[k].prompt), desk.prompts.shape[1]
        self.pages.take(k, length + self.jobs[k].outputs)
        here, there = self.pages.slots[k][:length], slice(k * room, k * room + length)
        self.pages.keys[:, here], self.pages.values[:, here] = desk.keys[:, there], desk.values[:, there]
        if lose and length > SHORT:
            self.pages.values[:, here[-length // 4 :]] = 0.0
        self.answers[k].tokens.append(int(desk.firsts[k]))
        self.answers[k].times.append(time.thread_time())
        self.running.append(k)
        self.come += 1

    def step(self) -> None:
        """Give everything in the batch its next token."""
        spans = [Span(k, len(self.jobs[k].prompt) + len(self.answers[k].tokens) - 1, 1) for k in self.running]
        last = torch.tensor([self.answers[k].tokens[-1] for k in self.running])
        chosen = hybrid(self.model, self.pages, last, spans).argmax(-1).tolist()
        now = time.thread_time()
        self.steps += 1
        for k, token in zip(tuple(self.running), chosen, strict=True):
            self.answers[k].tokens.append(token)
            self.answers[k].times.append(now)
            if len(self.answers[k].tokens) == self.jobs[k].outputs:
                self.running.remove(k)
                self.pages.give(k)


def decoded(model: Decoder, asked: Sequence[Job], desk: Desk, *, lose: bool = False) -> list[Answer]:
    """Return the answers to jobs whose prompts the other process computes; `lose` drops a quarter of long caches."""
    for row, job in zip(desk.prompts, asked, strict=False):
        row[: len(job.prompt)] = job.prompt
    batch = _Batch(model, asked, desk)
    while batch.come < len(asked) or batch.running:
        batch.send()
        batch.pull(lose=lose)
        if batch.running:
            batch.step()
    return batch.answers


def _p99(run: Sequence[Answer]) -> float:
    """Return the 99th percentile of seconds per token over the readers."""
    return float(np.quantile([(it.times[-1] - it.times[0]) / (len(it.times) - 1) for it in run[:READERS]], 0.99))


def _differ(one: Sequence[Answer], two: Sequence[Answer]) -> int:
    return sum(a != b for x, y in zip(one, two, strict=True) for a, b in zip(x.tokens, y.tokens, strict=True))

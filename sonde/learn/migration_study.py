"""Sequences moved between processes: whether the text stays the same, how long it pauses, and what room it makes.

Who goes where is decided by the policies that the simulator asks: `routing.freeness` and `migration.defragment`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, multiprocessing

from sonde.errors import CannotError
from sonde.learn.decoder import Shape
from sonde.learn.migration import CAPACITY, HEAD, HELD, MOVING, QUEUED, RUNNING, USED, Move, Way, station
from sonde.learn.pipeline import PATIENCE, shared, workers
from sonde.policies.migration import NONE, Thresholds, defragment
from sonde.policies.routing import PoolView, RequestView, freeness

SHAPE = Shape(layers=4, hidden=256, heads=4, inner=704)
LENGTHS, OUTPUTS, AFTER, REPEATS = (128, 512, 2048), 32, 8, 2
PAGES = 136
LIMITS, TICK = Thresholds(16.0, 64.0, 0, 0), 0.02
#: pages of a worker, what runs on either at first (prompt, output), and what comes then: most of one worker's memory
SMALL_PAGES, RESIDENTS, LARGE, LITTLE = 64, ((64, 400), (64, 400)), (560, 40), (40, 40)


class Work(NamedTuple):
    """A prompt, tokens to write after it, seconds after which it comes, its worker (None: the freest), its move."""

    prompt: list[int]
    outputs: int
    after_s: float = 0.0
    worker: int | None = None
    move: tuple[Way, int] | None = None  # to the next worker, after so many tokens


class Written(NamedTuple):
    """Tokens, when each was made and when the job was sent (s), and how many had been made before each move."""

    tokens: list[int]
    times: list[float]
    sent: float
    moved: list[int]

    @property
    def wait_s(self) -> float:
        """Return the seconds to the first token."""
        return self.times[0] - self.sent

    @property
    def pause_s(self) -> float:
        """Return by how many seconds the gap at the move is longer than the usual one."""
        gaps = np.diff(self.times)
        return float(gaps[self.moved[0] - 1] - np.median(gaps))


class Pool:
    """Workers, and what the parent knows of them."""

    def __init__(self, pipes: Sequence[Any], board: Tensor) -> None:
        self.pipes, self.board = pipes, board
        self.ports = [self._answer(pipe)[1] for pipe in pipes]

    @staticmethod
    def _answer(pipe: Any) -> Any:
        if not pipe.poll(PATIENCE):
            raise CannotError(f"a worker did not answer within {PATIENCE:g} s")
        return pipe.recv()

    def view(self) -> PoolView:
        """Return what the simulator's policies see, in tokens."""
        board = self.board.numpy().copy()
        zero = np.zeros(len(board), np.int64)
        return PoolView(
            board[:, QUEUED], board[:, HEAD], board[:, RUNNING], board[:, HELD], board[:, USED], board[:, CAPACITY],
            zero, board[:, HEAD], zero, board[:, MOVING], zero + 1,
        )  # fmt: skip

    def serve(self, jobs: Sequence[Work], *, migrate: bool = False) -> list[Written]:
        """Return what is written for every job. Raises CannotError where nothing comes for too long."""
        begin = heard = time.monotonic()
        left, found, sent = list(range(len(jobs))), dict[int, Written](), dict[int, float]()
        while len(found) < len(jobs):
            now = time.monotonic()
            while left and jobs[left[0]].after_s <= now - begin:
                i = left.pop(0)
                sent[i] = now
                self._send(i, jobs[i])
            if migrate:
                source, target = defragment(self.view(), LIMITS)
                if source != NONE:
                    self.pipes[source].send(("move", Move(-1, self.ports[target], "live")))
            ready: list[Any] = connection.wait(list(self.pipes), TICK)
            for pipe in ready:
                _, (number, tokens, times, moved) = pipe.recv()
                found[number], heard = Written(tokens, times, sent[number], moved), now
            if now - heard > PATIENCE:
                raise CannotError(f"workers wrote nothing for {PATIENCE:g} s")
        return [found[i] for i in range(len(jobs))]

    def _send(self, i: int, job: Work) -> None:
        worker = job.worker
        if worker is None:
            worker = freeness(self.view(), RequestView(i, 0.0, len(job.prompt), 0, -1, 0.0, 0.0))
        self.pipes[worker].send(("job", (i, job.prompt, job.outputs)))
        if job.move is not None:
            way, after = job.move
            self.pipes[worker].send(("move", Move(i, self.ports[(worker + 1) % len(self.ports)], way, after)))


@contextmanager
def pool(count: int, pages: int, seed: int) -> Iterator[Pool]:
    """Let `count` workers run while the block does, each with so many pages and the same decoder."""
    pairs = [multiprocessing.Pipe() for _ in range(count)]
    board = shared(torch.zeros(count, 7, dtype=torch.int64))
    jobs = [(station, (SHAPE, seed, pages, theirs, board[i])) for i, (_, theirs) in enumerate(pairs)]
    with workers(jobs):
        yield Pool([ours for ours, _ in pairs], board)


class Pauses(NamedTuple):
    """Shortest pauses (s) by length, live, stopped and copied, computed anew; texts that differ from staying.

    wrong   the same of texts whose first stage is lost on the way
    """

    live: list[float]
    stop: list[float]
    recompute: list[float]
    differ: int
    wrong: int


def pauses(seed: int) -> Pauses:
    """Return how long texts of growing length pause at a move, in the same two processes."""
    texts = [_prompt(length, seed) for length in LENGTHS]
    with pool(2, PAGES, seed) as workers_:
        stay = [_one(workers_, text, None).tokens for text in texts]
        ways: dict[Way, list[list[Written]]] = {
            way: [[_one(workers_, text, way) for _ in range(REPEATS)] for text in texts]
            for way in ("live", "stop", "recompute")
        }
        lost = [_one(workers_, text, "lost").tokens for text in texts]
    best = {way: [min(run.pause_s for run in runs) for runs in found] for way, found in ways.items()}
    differ = sum(
        run.tokens != want for way in ways.values() for runs, want in zip(way, stay, strict=True) for run in runs
    )
    wrong = sum(tokens != want for tokens, want in zip(lost, stay, strict=True))
    return Pauses(best["live"], best["stop"], best["recompute"], differ, wrong)


def _one(workers_: Pool, text: list[int], way: Way | None) -> Written:
    return workers_.serve([Work(text, OUTPUTS, worker=0, move=None if way is None else (way, AFTER))])[0]


class Room(NamedTuple):
    """Seconds that a request waits for its first token, without and with migration; texts that differ; moves."""

    without: float
    migrating: float
    differ: int
    moves: int


def rooms(seeds: Sequence[int]) -> list[Room]:
    """Return what migration does for a request that comes to two partly full workers: large ones, then a little one."""
    with pool(2, SMALL_PAGES, 0) as workers_:
        _one(workers_, _prompt(LITTLE[0], 0), None)
        return [*(_room(workers_, seed, LARGE) for seed in seeds), _room(workers_, 0, LITTLE)]


def _room(workers_: Pool, seed: int, size: tuple[int, int]) -> Room:
    jobs = [Work(_prompt(prompt, i), output, worker=i) for i, (prompt, output) in enumerate(RESIDENTS)]
    jobs.append(Work(_prompt(size[0], seed + 9), size[1], 0.3))
    without, migrating = (workers_.serve(jobs, migrate=migrate) for migrate in (False, True))
    differ = sum(a.tokens != b.tokens for a, b in zip(without, migrating, strict=True))
    return Room(without[-1].wait_s, migrating[-1].wait_s, differ, sum(len(run.moved) for run in migrating))


def _prompt(tokens: int, seed: int) -> list[int]:
    return torch.randint(256, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()

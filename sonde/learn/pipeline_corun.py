"""Products and reading of a cache at once on two cores: what each keeps of its speed, and layers in nano-batches.

Two processes take small pieces of work from this one. A product is a matrix product in the cache of a core; a read is
a product of one row with keys that no cache holds. A kind that shares the device runs on one core, a product that has
it to itself on both.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, NamedTuple

import torch
from torch import multiprocessing

from sonde.errors import CannotError
from sonde.learn.pipeline import PATIENCE, workers

Kind = Literal["compute", "memory"]
KINDS: tuple[Kind, ...] = ("compute", "memory")

SIDE, ROWS = 640, 512  # of a product: 1.6 MB of weights
KEYS, WIDTH, SLICES = 65536, 128, 4  # of a read: 32 MiB, from 128 MiB
#: pieces of one stage, so that two cores can share it
PIECES = 4
#: seconds in which it is looked whether the machine is free, and how often in a row
MOMENT, LOOKS = 0.05, 4


class Stage(NamedTuple):
    """One stage of a layer: its kind, and its pieces."""

    kind: Kind
    pieces: int


class Rates(NamedTuple):
    """Pieces per second by kind: on both cores, on one core while the other idles, on one beside the other kind."""

    both: Mapping[Kind, float]
    one: Mapping[Kind, float]
    beside: Mapping[Kind, float]

    def reached(self, kind: Kind) -> float:
        """Return P(1/2): the speed on one core beside the other kind, over that on both."""
        return self.beside[kind] / self.both[kind]


class Pair:
    """Two processes, one thread each, that run pieces: open as long as the block of `pair` lasts."""

    def __init__(self, ends: Sequence[Connection]) -> None:
        self.ends = ends

    def spans(self, kinds: tuple[Kind | None, Kind | None], seconds: float) -> tuple[float, float]:
        """Return the pieces per second of each process while both run their kind (None: it idles) for so long."""
        for end, kind in zip(self.ends, kinds, strict=True):
            if kind is not None:
                end.send(("for", kind, seconds))
        rates = [_answer(end) if kind is not None else 0.0 for end, kind in zip(self.ends, kinds, strict=True)]
        return rates[0], rates[1]

    def rates(self, seconds: float) -> Rates:
        """Return the rates of both kinds, alone and beside each other."""
        both = {kind: sum(self.spans((kind, kind), seconds)) for kind in KINDS}
        one = {kind: self.spans((kind, None), seconds)[0] for kind in KINDS}
        beside = dict(zip(KINDS, self.spans(("compute", "memory"), seconds), strict=True))
        return Rates(both, one, beside)

    def free(self, seconds: float, least: float) -> float:
        """Return how many times as much both processes compute as one does, once it is `least` or `seconds` are over.

        The lowest of a few looks. On a machine with something else to do it is far from 2, and what both do at once
        says nothing.
        """
        end, most = time.perf_counter() + seconds, 0.0
        while True:
            most = max(most, min(self._at_once() for _ in range(LOOKS)))
            if most >= least or time.perf_counter() > end:
                return most
            time.sleep(10 * MOMENT)

    def _at_once(self) -> float:
        both = sum(self.spans(("compute", "compute"), MOMENT))
        return both / self.spans(("compute", None), MOMENT)[0]

    def best(self, tries: int, seconds: float) -> Rates:
        """Return the best of several rates, since what else runs on the machine only lowers them."""
        found = [self.rates(seconds) for _ in range(tries)]
        tables = [{kind: max(table[kind] for table in tables) for kind in KINDS} for tables in zip(*found, strict=True)]
        return Rates(*tables)

    def sequential(self, chain: Sequence[Stage], times: int) -> float:
        """Return the seconds of `times` passes of a chain whose stages run one after the other on both cores."""
        begin = time.perf_counter()
        for _ in range(times):
            for stage in chain:
                share = stage.pieces / 2
                for end, count in zip(self.ends, (int(share + 0.5), int(share)), strict=True):
                    end.send(("pieces", stage.kind, count))
                for end in self.ends:
                    _answer(end)
        return time.perf_counter() - begin

    def overlapped(
        self, chains: Sequence[Sequence[Stage]], queues: Mapping[Kind, Sequence[tuple[int, int, int]]]
    ) -> float:
        """Return the seconds of chains (one a nano-batch) whose stages run as soon as their turn has come.

        queues   (layer, nano-batch, stage) by kind, in the order in which they run. The second core takes pieces of
                 reads first, the first one those of products only.
        """
        return _Schedule(self.ends, chains, queues).run()


class _Schedule:
    """Who runs what: one stage of each kind at a time, in order, its pieces dealt out as cores come free."""

    def __init__(
        self, ends: Sequence[Connection], chains: Sequence[Sequence[Stage]],
        queues: Mapping[Kind, Sequence[tuple[int, int, int]]],
    ) -> None:  # fmt: skip
        self.ends, self.chains = ends, chains
        self.queues = {kind: deque(queue) for kind, queue in queues.items()}
        self.done = [0] * len(chains)  # stages that every nano-batch has behind it
        self.given = dict.fromkeys(KINDS, 0)
        self.left: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.works: dict[int, Kind] = {}

    def run(self) -> float:
        """Run all queues down, and return the seconds that it took."""
        begin = time.perf_counter()
        while any(self.queues.values()):
            for i in range(2):
                if i not in self.works and (kind := self._next(i)) is not None:
                    self.ends[i].send(("pieces", kind, 1))
                    self.works[i] = kind
            heard = wait([self.ends[i] for i in self.works], PATIENCE)
            for i in [i for i in self.works if self.ends[i] in heard] or _silent():
                _answer(self.ends[i])
                self._ended(self.works.pop(i))
        return time.perf_counter() - begin

    def _next(self, core: int) -> Kind | None:
        for kind in ("memory", "compute") if core else ("compute",):
            if self._ready(kind) and self.given[kind] < self._head(kind).pieces:
                self.given[kind] += 1
                return kind
        return None

    def _head(self, kind: Kind) -> Stage:
        _, nano, stage = self.queues[kind][0]
        return self.chains[nano][stage]

    def _ready(self, kind: Kind) -> bool:
        if not self.queues[kind]:
            return False
        layer, nano, stage = self.queues[kind][0]
        return self.done[nano] == layer * len(self.chains[nano]) + stage

    def _ended(self, kind: Kind) -> None:
        self.left[kind] += 1
        if self.left[kind] == self._head(kind).pieces:
            _, nano, _ = self.queues[kind].popleft()
            self.done[nano] += 1
            self.given[kind] = self.left[kind] = 0


@contextmanager
def pair() -> Iterator[Pair]:
    """Give two processes that run pieces while the block lasts; none outlives it."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    with workers([(serve, (far,)) for _, far in pipes]):
        for near, _ in pipes:
            _answer(near)
        yield Pair([near for near, _ in pipes])


def serve(end: Any) -> None:
    """Run the pieces that are asked for, until nobody asks any more."""
    torch.set_num_threads(1)
    kinds = _pieces()
    with torch.inference_mode():
        for run in kinds.values():
            run()
        end.send(0.0)
        while end.poll(PATIENCE):
            how, kind, amount = end.recv()
            begin, count = time.perf_counter(), 0
            while count < amount if how == "pieces" else time.perf_counter() - begin < amount:
                kinds[kind]()
                count += 1
            end.send(count / max(time.perf_counter() - begin, 1e-9))


def _pieces() -> dict[Kind, Callable[[], object]]:
    weights, x = torch.randn(SIDE, SIDE), torch.randn(ROWS, SIDE)
    keys, query = torch.randn(SLICES, KEYS, WIDTH), torch.randn(WIDTH)
    turn = iter(range(1 << 62))
    return {"compute": lambda: x @ weights, "memory": lambda: keys[next(turn) % SLICES] @ query}


def _answer(end: Connection) -> float:
    if not end.poll(PATIENCE):
        _silent()
    return float(end.recv())


def _silent() -> list[int]:
    raise CannotError(f"a process did not answer within {PATIENCE:g} s")

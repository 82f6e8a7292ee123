"""A pipeline of two stages in two processes, joined by shared memory: batches handed over with and without waiting.

A stage is layers of a network in torch on one thread. Processes end with their parent, or when nothing comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, multiprocessing, nn

from sonde.errors import CannotError

#: how a stage hands over: one batch in the pipeline at a time; waiting until the next stage takes it; not waiting
Mode = Literal["one", "blocking", "non-blocking"]
#: seconds after which a process that hears nothing ends
PATIENCE = 60.0
#: places between two stages where nobody waits
DEPTH = 4


class Layers(NamedTuple):
    """Layers of each stage, and their width; weights are drawn with the stage's number as seed."""

    stages: tuple[int, int]
    hidden: int


class Ran(NamedTuple):
    """Rows per second, and what came out, batch by batch."""

    rows_per_s: float
    outputs: list[Tensor]


class Hop(NamedTuple):
    """Places in shared memory [depth, rows, hidden]: who writes takes `free`, who reads takes `full`.

    taken   counts batches whose reader has begun with them: a writer that blocks waits for it
    """

    places: Tensor
    free: Any
    full: Any
    taken: Any

    def put(self, number: int, batch: Tensor) -> None:
        """Write a batch into its place, which must be free."""
        self.places[number % len(self.places), : len(batch)] = batch
        self.full.release()

    def get(self, number: int, rows: int) -> Tensor:
        """Return the next batch, once it is there. Its place stays taken until `done`."""
        wait(self.full)
        self.taken.release()
        return self.places[number % len(self.places), :rows]

    def done(self) -> None:
        """Give the place of the batch read last free."""
        self.free.release()


class Job(NamedTuple):
    """Batches [rows, hidden] to send through the pipeline, and how its stages hand over."""

    batches: Sequence[Tensor]
    mode: Mode


def run(layers: Layers, jobs: Sequence[Job]) -> list[Ran]:
    """Return how fast the batches of each job pass both stages, in order, and what they become.

    Jobs run one after the other in the same two processes. Raises CannotError where one does not answer.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Semaphore(0)
    hops = [[_hop(context, layers, job) for _ in range(3)] for job in jobs]
    orders = [
        [
            ([len(batch) for batch in job.batches], found[i : i + 2], job.mode)
            for job, found in zip(jobs, hops, strict=True)
        ]
        for i in range(2)
    ]
    with workers([(stage, (layers, i, orders[i], ready)) for i in range(2)]):
        for _ in range(2):
            wait(ready)
        return [_timed(job, found) for job, found in zip(jobs, hops, strict=True)]


def _hop(context: Any, layers: Layers, job: Job) -> Hop:
    depth = 1 if job.mode == "blocking" else DEPTH
    places = shared(torch.zeros(depth, max(len(batch) for batch in job.batches), layers.hidden))
    return Hop(places, context.Semaphore(depth), context.Semaphore(0), context.Semaphore(0))


def _timed(job: Job, hops: Sequence[Hop]) -> Ran:
    begin = time.perf_counter()
    outputs = _feed(job.batches, hops, job.mode)
    return Ran(sum(len(batch) for batch in job.batches) / (time.perf_counter() - begin), outputs)


def alone(layers: Layers, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return what both stages make of the batches, one after the other in this process."""
    one, two = (network(layers, i) for i in range(2))
    with torch.inference_mode():
        return [two(one(batch)) for batch in batches]


def stage(layers: Layers, number: int, jobs: Sequence[tuple[Sequence[int], Sequence[Hop], Mode]], ready: Any) -> None:
    """Run one stage in this process: of every job, batches from the first hop into the second one."""
    torch.set_num_threads(1)
    net = network(layers, number)
    with torch.inference_mode():
        net(torch.zeros(max(max(rows) for rows, _, _ in jobs), layers.hidden))
        ready.release()
        for rows, (before, after), mode in jobs:
            for i, count in enumerate(rows):
                made = net(before.get(i, count))
                before.done()
                wait(after.free)
                after.put(i, made)
                if mode == "blocking":
                    wait(after.taken)


def network(layers: Layers, number: int) -> nn.Module:
    """Return the layers of one stage."""
    draws = torch.Generator().manual_seed(number)
    found: list[nn.Module] = []
    for _ in range(layers.stages[number]):
        linear = nn.Linear(layers.hidden, layers.hidden, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(linear.weight.shape, generator=draws) / layers.hidden**0.5)
        found += [linear, nn.SiLU()]
    return nn.Sequential(*found).eval()


def _feed(batches: Sequence[Tensor], hops: Sequence[Hop], mode: Mode) -> list[Tensor]:
    """Return what comes out, while batches are put in as soon as there is a place (or the last one is out)."""
    first, last = hops[0], hops[-1]
    outputs: list[Tensor] = []
    sent = 0
    while len(outputs) < len(batches):
        may = sent < len(batches) and (mode != "one" or sent == len(outputs))
        if may and first.free.acquire(block=False):
            first.put(sent, batches[sent])
            sent += 1
        else:
            outputs.append(last.get(len(outputs), len(batches[len(outputs)])).clone())
            last.done()
    return outputs


@contextmanager
def workers(jobs: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> Iterator[None]:
    """Let every job run in a process of its own while the block runs; none outlives it."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=target, args=args, daemon=True) for target, args in jobs]
    try:
        for process in running:
            process.start()
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def shared(tensor: Tensor) -> Tensor:
    """Return the tensor in memory that other processes see too."""
    tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor


def wait(semaphore: Any) -> None:
    """Take a semaphore. Raises CannotError where nobody gives it in time."""
    if not semaphore.acquire(timeout=PATIENCE):
        raise CannotError(f"a process did not answer within {PATIENCE:g} s")

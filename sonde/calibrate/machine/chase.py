"""Latency of caches and memory by pointer chase, and the levels that its curve shows.

A walk along a random cycle through every cache line of a buffer: each load gives the address of the next, so
that nothing overlaps and no prefetcher guesses it (the method of Saavedra and of lmbench; of GPUs, of
"Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.calibrate.machine.clock import timing

LINE = 64
WORDS = LINE // 8
SMALLEST = 4 << 10

#: neighbouring levels are at least so many times apart, or they are one
APART = 1.75


class Latency(NamedTuple):
    """Seconds of one dependent load from a buffer of so many bytes."""

    bytes: int
    seconds: float


class Level(NamedTuple):
    """A plateau of the curve: buffers up to `bytes` (inf: the last one) are served in `seconds` a load."""

    name: str
    bytes: float
    seconds: float


def cycle(lines: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a buffer [lines · WORDS] in which following[i] leads from line to line, through all in one random cycle.

    Only the first word of a line is used; the others lead nowhere (-1).
    """
    order = rng.permutation(lines).astype(np.int64) * WORDS
    following = np.full(lines * WORDS, -1, dtype=np.int64)
    following[order] = np.roll(order, -1)
    return following


def sizes(last_cache: int, free: int, *, a_doubling: int = 2) -> list[int]:
    """Return the buffer sizes to try, in whole lines: from 4 KiB to four times the last-level cache."""
    most = min(4 * last_cache, max(SMALLEST, free // 4))
    steps = int(np.log2(most / SMALLEST) * a_doubling) + 1
    found = [int(SMALLEST * 2 ** (step / a_doubling)) // LINE * LINE for step in range(steps)]
    return [*found, most // LINE * LINE] if most // LINE * LINE > found[-1] else found


def chase(
    buffers: Sequence[int], rng: np.random.Generator, *, steps: int = 1 << 20, repeats: int = 3
) -> Iterator[Latency]:
    """Yield the latency of a load for each size of buffer: the best of `repeats` walks of at least `steps` loads."""
    from sonde.calibrate.machine.loops import walk

    walker = walk()
    for size in buffers:
        loads = steps if size <= 1 << 20 else max(steps >> 4, 1)
        yield Latency(size, _latency(walker, cycle(size // LINE, rng), loads, repeats))


def _latency(walker: Callable[[Any, int, int], int], following: NDArray[np.int64], loads: int, repeats: int) -> float:
    """Return the seconds of one load; every walk goes on where the last one ended, or it would meet its own lines."""
    at = walker(following, 0, min(loads, len(following) // WORDS))

    def run() -> None:
        nonlocal at
        at = walker(following, at, loads)

    return timing(run, repeats=repeats, warm=0).best_s / loads


def levels(curve: Sequence[Latency]) -> tuple[Level, ...]:
    """Return the plateaus of a curve: it is cut where that lowers the squared error of log latency most.

    A cut must lower the error by more than noise would (Bayes' criterion); neighbours less than 1.75 times apart
    are one level, and a lone point between two others, where a buffer is half in cache, is none.
    """
    if not curve:
        return ()
    log = np.log([point.seconds for point in curve])
    cuts = _segments(log)
    found: list[tuple[int, int]] = []
    for begin, end in cuts:
        if found and np.median(log[begin:end]) - np.median(log[slice(*found[-1])]) < np.log(APART):
            found[-1] = (found[-1][0], end)
        elif end - begin > 1 or begin == 0 or end == len(log):
            found.append((begin, end))
    return tuple(
        Level(
            "memory" if i == len(found) - 1 and i else f"L{i + 1}",
            float("inf") if i == len(found) - 1 else float(curve[end - 1].bytes),
            float(np.exp(np.median(log[begin:end]))),
        )
        for i, (begin, end) in enumerate(found)
    )


def _segments(log: NDArray[np.float64], most: int = 8) -> list[tuple[int, int]]:
    """Return the segments [begin, end) of the best piecewise constant fit, their number by Bayes' criterion."""
    n = len(log)
    one, two = np.concatenate(([0.0], np.cumsum(log))), np.concatenate(([0.0], np.cumsum(log * log)))
    begin, end = np.arange(n + 1)[:, None], np.arange(n + 1)[None, :]
    length = np.maximum(end - begin, 1)
    cost = np.where(end > begin, (two[end] - two[begin]) - (one[end] - one[begin]) ** 2 / length, np.inf)
    total = np.full((min(most, n) + 1, n + 1), np.inf)
    total[0, 0] = 0.0
    back = np.zeros(total.shape, dtype=np.int64)
    for parts in range(1, len(total)):
        choices = total[parts - 1][:, None] + cost
        back[parts] = np.argmin(choices, axis=0)
        total[parts] = np.min(choices, axis=0)
    noise = 0.05**2  # latencies closer than 5 % are noise
    score = [total[parts, n] / noise + 2 * parts * np.log(n) for parts in range(1, len(total))]
    parts, at, cuts = int(np.argmin(score)) + 1, n, []
    while parts:
        cuts.append((int(back[parts, at]), at))
        parts, at = parts - 1, int(back[parts, at])
    return cuts[::-1]

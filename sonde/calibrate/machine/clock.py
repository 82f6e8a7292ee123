"""How long a call takes: repeated, the best of all, with the spread beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

Run = Callable[[], object]

#: tries of a call; the first ones warm caches, clocks and compilers up and are not counted
REPEATS, WARM = 10, 2

#: share of a thread's time below which the work of all other threads is none
ALONE = 0.02


class Timing(NamedTuple):
    """Seconds of one call: the best, the mean and the worst of `repeats`."""

    best_s: float
    mean_s: float
    worst_s: float
    repeats: int


def timing(run: Run, *, repeats: int = REPEATS, warm: int = WARM, wait: Run | None = None) -> Timing:
    """Return how long `run` takes, each time alone. `wait` returns when work that `run` only started is done."""
    for _ in range(warm):
        _once(run, wait)
    taken = [_once(run, wait) for _ in range(repeats)]
    return Timing(min(taken), sum(taken) / repeats, max(taken), repeats)


def each(run: Run, *, seconds: float = 0.004, repeats: int = REPEATS, wait: Run | None = None) -> float:
    """Return the seconds of one call of `run` where it may be too short for the clock: the best batch of calls.

    A batch has as many calls as take `seconds`, and ends with `wait`. Where the calling thread does all the work
    (no other thread of this process runs, and there is nothing to wait for), what counts is the time that it had a
    core: on a busy machine, moments in which another program had it are left out.
    """
    calls = 1
    while (taken := _batch(run, calls, wait)) < seconds and calls < 1 << 24:
        calls = max(2 * calls, int(calls * min(10.0, seconds / max(taken, 1e-9))))
    return min(_batch(run, calls, wait) for _ in range(repeats)) / calls


def _once(run: Run, wait: Run | None) -> float:
    begin = time.perf_counter()
    run()
    if wait is not None:
        wait()
    return time.perf_counter() - begin


def _batch(run: Run, calls: int, wait: Run | None) -> float:
    begin, mine, all_of_us = time.perf_counter(), time.thread_time(), time.process_time()
    for _ in range(calls):
        run()
    if wait is not None:
        wait()
        return time.perf_counter() - begin
    wall, own = time.perf_counter() - begin, time.thread_time() - mine
    others = time.process_time() - all_of_us - own
    return own if others < ALONE * own else wall

"""The loops that numba compiles: kernels of STREAM, the walk of a pointer chase, an empty parallel region."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
from numba import prange


def _one(out: Any, first: Any, scale: float) -> None:
    for i in prange(len(out)):
        out[i] = scale * first[i]


def _two(out: Any, first: Any, second: Any, scale: float) -> None:
    for i in prange(len(out)):
        out[i] = first[i] + scale * second[i]


def _fill(out: Any, value: float) -> None:
    for i in prange(len(out)):
        out[i] = value


def _total(values: Any) -> float:
    total = 0.0
    for i in prange(len(values)):
        total += values[i]
    return total


def _walk(following: Any, start: int, steps: int) -> int:
    at = start
    for _ in range(steps):
        at = following[at]
    return at


def _region(counts: Any) -> None:
    for i in prange(len(counts)):
        counts[i] += 1


@cache
def compiled(parallel: bool) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Return the loops of kernels with one input, with two, and of filling an array; one thread where not parallel."""
    return tuple(  # type: ignore[return-value]
        numba.njit(parallel=parallel, cache=True, fastmath={"contract"}, error_model="numpy")(loop)
        for loop in (_one, _two, _fill)
    )


@cache
def total() -> Callable[[Any], float]:
    """Return the sum of an array on all threads: memory read and never written. Sums are reordered."""
    found: Callable[[Any], float] = numba.njit(parallel=True, cache=True, fastmath=True)(_total)
    return found


@cache
def walk() -> Callable[[Any, int, int], int]:
    """Return the walk of so many steps along `following` (int64), each load waiting for the one before; its end."""
    found: Callable[[Any, int, int], int] = numba.njit(cache=True, nogil=True)(_walk)
    return found


@cache
def region() -> Callable[[Any], None]:
    """Return a parallel region that adds one to each of a few counts: the start and the meeting of threads."""
    found: Callable[[Any], None] = numba.njit(parallel=True, cache=True)(_region)
    return found

"""STREAM: sustained memory bandwidth by four kernels, each described once and run by every back end.

McCalpin's benchmark as to arrays, sequence, bytes and check of the result; one description of a kernel for
several executors after Heller et al., "Closing the Performance Gap with Modern C++" (ISC workshops 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sonde.calibrate.machine.clock import Run, timing
from sonde.errors import CannotError

SCALAR = 3.0
REPEATS = 10
START = {"a": 1.0, "b": 2.0, "c": 0.0}
WORD = 8

#: arrays are so many times the last-level cache, so that no part of one is found there again
TIMES_CACHE = 4

#: largest share of the memory that is free which the three arrays may take
MEMORY_SHARE = 0.5


class Kernel(NamedTuple):
    """out[i] = scale·first[i], or first[i] + scale·second[i] where there is a second; for every i."""

    name: str
    out: str
    first: str
    second: str
    scale: float

    @property
    def words(self) -> int:
        """Return the words that STREAM counts for an element: one written, and one for every array read."""
        return 3 if self.second else 2


KERNELS = (
    Kernel("copy", "c", "a", "", 1.0),
    Kernel("scale", "b", "c", "", SCALAR),
    Kernel("add", "c", "a", "b", 1.0),
    Kernel("triad", "a", "b", "c", SCALAR),
)

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Backend:
    """Something that runs kernels: where its arrays are made, how a kernel runs, how it gives arrays back.

    allocate  (elements, value): an array whose memory is first touched by the threads that will use it
    run       (kernel, arrays): runs one kernel, or starts it where `wait` waits for it
    """

    name: str
    threads: int
    touch: str  # "own": by the threads that use it; "one": by one thread
    allocate: Callable[[int, float], Any]
    run: Callable[[Kernel, Arrays], None]
    host: Callable[[Any], Any] = np.asarray
    wait: Run | None = None


class Rate(NamedTuple):
    """What one kernel reached on one back end."""

    backend: str
    threads: int
    touch: str
    kernel: str
    bytes_per_s: float
    mean_bytes_per_s: float
    elements: int
    error: float


def elements(last_cache: int, free: int) -> tuple[int, str]:
    """Return how many elements an array has, and a remark where memory holds no arrays of four times the cache."""
    wanted = TIMES_CACHE * last_cache // WORD
    most = int(free * MEMORY_SHARE) // (len(START) * WORD)
    if most >= wanted:
        return wanted, ""
    return most, (
        f"arrays are {most * WORD / last_cache:.2g} times the last-level cache, not {TIMES_CACHE}: "
        f"only {free / 2**30:.3g} GiB of memory are free"
    )


def stream(backend: Backend, count: int, *, repeats: int = REPEATS) -> list[Rate]:
    """Return the rates of the four kernels: the best of `repeats` rounds of all four, the results checked.

    Raises CannotError where an array does not hold what the kernels make of it.
    """
    arrays: Arrays = {name: backend.allocate(count, value) for name, value in START.items()}
    taken: dict[str, list[float]] = {kernel.name: [] for kernel in KERNELS}
    for _ in range(repeats + 1):  # the first round compiles and is not counted
        for kernel in KERNELS:
            taken[kernel.name].append(_time(backend, kernel, arrays))
    error = check({name: backend.host(array) for name, array in arrays.items()}, repeats + 1, backend.name)
    return [
        Rate(
            backend.name, backend.threads, backend.touch, kernel.name,
            kernel.words * WORD * count / min(taken[kernel.name][1:]),
            kernel.words * WORD * count * repeats / sum(taken[kernel.name][1:]), count, error,
        )
        for kernel in KERNELS
    ]  # fmt: skip


def expected(rounds: int) -> dict[str, float]:
    """Return what every element of each array holds after so many rounds."""
    values = dict(START)
    for _ in range(rounds):
        for kernel in KERNELS:
            values[kernel.out] = (
                values[kernel.first] + kernel.scale * values[kernel.second]
                if kernel.second
                else kernel.scale * values[kernel.first]
            )
    return values


def check(arrays: Arrays, rounds: int, name: str) -> float:
    """Return the largest mean relative error of the arrays. Raises CannotError where it is above STREAM's 1e-13."""
    worst = 0.0
    for array, value in expected(rounds).items():
        error = float(np.mean(np.abs(arrays[array] / value - 1.0)))
        if not error < 1e-13:
            raise CannotError(f"STREAM on {name}: array {array} is off by {error:.3g} of {value:g}: its rate is void")
        worst = max(worst, error)
    return worst


def best(rates: list[Rate], kernel: str) -> Rate | None:
    """Return the fastest of the rates of a kernel, None where there are none."""
    return max((rate for rate in rates if rate.kernel == kernel), key=lambda rate: rate.bytes_per_s, default=None)


def _time(backend: Backend, kernel: Kernel, arrays: Arrays) -> float:
    return timing(lambda: backend.run(kernel, arrays), repeats=1, warm=0, wait=backend.wait).best_s

"""The batch at which a step stops being bound by the CPU that starts its operators.

Up to there more work costs no time (the CPU starts operators as slowly as before); from there on time follows
the work. The knee is where the two lines meet, fitted to measured latencies, never read off by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Knee(NamedTuple):
    """latency = flat + slope·batch (synchronous) or max(flat, slope·batch); `batch` is where both parts are equal.

    error     root mean square of the relative error of the fit
    """

    batch: float
    flat_s: float
    slope_s: float
    error: float


def knee(batches: Sequence[int], seconds: Sequence[float], *, synchronous: bool) -> Knee:
    """Return the knee of latency over batch. `synchronous`: operators run where they are started, as on a CPU.

    On a GPU the CPU starts operators while earlier ones run, so that the longer of the two counts. The fit has
    the least squared relative error over a fine grid of knees.
    """
    b, t = np.asarray(batches, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    best = Knee(float(b[0]), float(t[0]), 0.0, np.inf)
    for at in np.geomspace(b.min() / 4, b.max() * 4, 400):
        shape = 1.0 + b / at if synchronous else np.maximum(1.0, b / at)
        flat = _scale(shape, t)
        error = float(np.sqrt(np.mean((flat * shape / t - 1.0) ** 2)))
        if error < best.error:
            best = Knee(float(at), flat, flat / float(at), error)
    return best


def _scale(shape: NDArray[np.float64], t: NDArray[np.float64]) -> float:
    """Return the factor of `shape` with the least squared relative error to t."""
    ratio = shape / t
    return float(np.sum(ratio) / np.sum(ratio * ratio))

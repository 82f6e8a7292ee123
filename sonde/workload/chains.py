"""The kernel that copies prefixes of earlier prompts: one pass over the requests, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
TRIES = 256


def chain(start: Ints, depth: Ints, near: Ints) -> Ints:
    """Return block identities: the first `depth[i]` of request i are those of an earlier request near row `near[i]`.

    Of the 256 rows on either side of it, and of all rows before i, the nearest that is long enough is taken; where
    none is, the longest of those tried, as far as it goes. start [n+1], depth and near [n]; result [start[-1]].
    """
    out = np.empty(int(start[-1]), np.int64)
    _chain(start, depth, near, out)
    return out


@njit(cache=True, nogil=True)
def _chain(start: Ints, depth: Ints, near: Ints, out: Ints) -> None:
    fresh = 0
    for i in range(len(depth)):
        want, size = depth[i], start[i + 1] - start[i]
        parent, best = -1, 0
        middle = min(near[i], i - 1)
        step = 0
        while want > 0 and step < TRIES and best < want:
            for side in range(2):
                row = middle - step if side == 0 else middle + step
                if 0 <= row < i and best < want:
                    length = start[row + 1] - start[row]
                    if length > best:
                        parent, best = row, length
            step += 1
        shared = min(want, best)
        for j in range(shared):
            out[start[i] + j] = out[start[parent] + j]
        for j in range(shared, size):
            out[start[i] + j] = fresh
            fresh += 1

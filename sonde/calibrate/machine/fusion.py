"""Which kernels to fuse: chains that always follow each other, by SKIP's proximity score (arXiv 2504.11750).

    PS(C) = f(C) / f(first kernel of C)

over the sequence of kernels of a step. At PS = 1 the chain always follows its first kernel, so that one launch could
stand for the whole chain: of K launches, n chains of L kernels leave K - n·(L - 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Chain(NamedTuple):
    """A chain of kernels: its score, how often it can be fused without overlap, and the launches left then.

    speedup   launches before / launches after: what fusing gives where launches are all the time there is
    """

    kernels: tuple[str, ...]
    score: float
    times: int
    launches: int
    speedup: float


def chains(names: Sequence[str], length: int, *, least: float = 1.0) -> list[Chain]:
    """Return the chains of `length` kernels whose score is at least `least`, the one that saves most launches first."""
    first = Counter(names)
    found = Counter(tuple(names[i : i + length]) for i in range(len(names) - length + 1))
    listed = []
    for chain, often in found.items():
        score = often / first[chain[0]]
        if score >= least:
            count = apart(names, chain)
            left = len(names) - count * (length - 1)
            listed.append(Chain(chain, score, count, left, len(names) / left))
    return sorted(listed, key=lambda chain: (chain.launches, chain.kernels))


def apart(names: Sequence[str], chain: Sequence[str]) -> int:
    """Return how often `chain` occurs without overlap, counted from the start."""
    count, at, wanted = 0, 0, tuple(chain)
    while at + len(wanted) <= len(names):
        if tuple(names[at : at + len(wanted)]) == wanted:
            count, at = count + 1, at + len(wanted)
        else:
            at += 1
    return count


def advice(names: Sequence[str], lengths: Sequence[int] = (2, 4, 8, 16, 32, 64, 128, 256)) -> list[Chain]:
    """Return, for each length that has one, the chain that always follows its first kernel and saves most launches."""
    best = (chains(names, length)[:1] for length in lengths if 1 < length <= len(names))
    return [chain for found in best for chain in found if chain.times]

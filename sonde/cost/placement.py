"""Where experts stand: how often each is met, copies of the hot ones, and which rank holds which copy.

Replication and placement are those of DeepSeek's load balancer (EPLB): one more copy for the expert whose copies are
busiest, again and again; then the busiest copy first to the rank with the least load that has room (LPT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: points of the grid over tokens on which the busiest rank is found, and strengths tried at each
_GRID, _STRENGTHS = 96, 2.0 ** np.arange(-5.0, 5.5, 0.5)


@dataclass(frozen=True)
class Placement:
    """Copies of experts on ranks: for each rank, the share of all tokens that meet each of its copies (0 to 1).

    experts   which experts those are copies of, in the same order
    """

    shares: tuple[tuple[float, ...], ...]
    experts: tuple[tuple[int, ...], ...] = ()

    @property
    def ranks(self) -> int:
        """Return how many ranks there are."""
        return len(self.shares)

    @property
    def slots(self) -> int:
        """Return how many copies the fullest rank holds."""
        return max(map(len, self.shares))

    @cached_property
    def means(self) -> Floats:
        """Return, by rank, the (token, expert) pairs that one token brings on average."""
        return np.array([sum(rank) for rank in self.shares])

    def under(self, shares: Floats) -> Placement:
        """Return the same copies on the same ranks where experts are met by other shares of tokens."""
        counts = np.bincount([expert for rank in self.experts for expert in rank], minlength=len(shares))
        each = shares / np.maximum(counts, 1)
        return Placement(tuple(tuple(float(each[expert]) for expert in rank) for rank in self.experts), self.experts)

    @property
    def imbalance(self) -> float:
        """Return the load of the busiest rank over the mean, of very many tokens."""
        return float(self.means.max() / self.means.mean())


def popularity(loads: Sequence[float] | Floats, top_k: int) -> Floats:
    """Return the share of tokens that meet each expert, in proportion to `loads`, of `top_k` different ones a token.

    They add up to `top_k`; an expert that would be met by more than every token is met by every one, and the
    others share what is left.
    """
    weights = np.asarray(loads, dtype=np.float64)
    shares = np.zeros(len(weights))
    free = np.ones(len(weights), dtype=bool)
    while True:
        left = top_k - int((~free).sum())
        total = weights[free].sum()
        shares[free] = left * (weights[free] / total if total > 0 else 1.0 / max(int(free.sum()), 1))
        over = free & (shares > 1.0)
        if not over.any():
            return shares
        shares[over], free = 1.0, free & ~over


def zipf(experts: int, alpha: float, seed: int) -> Floats:
    """Return loads of experts that fall with their rank as rank^-alpha, the ranks dealt out by `seed`."""
    loads = np.arange(1.0, experts + 1.0) ** -alpha
    return np.random.default_rng(seed).permutation(loads)


def copies(shares: Floats, redundant: int) -> NDArray[np.int64]:
    """Return how many copies each expert has: one, and `redundant` more for those whose copies are busiest."""
    counts = np.ones(len(shares), dtype=np.int64)
    for _ in range(redundant):
        counts[int(np.argmax(shares / counts))] += 1
    return counts


def placed(shares: Floats, ranks: int, redundant: int = 0, *, balanced: bool = True) -> Placement:
    """Return where copies stand: the busiest first, each on the rank of least load with room (LPT), or in order.

    A rank has room for ⌈copies/ranks⌉; the tokens of an expert are spread evenly over its copies.
    """
    counts = copies(shares, redundant)
    slots = np.repeat(np.arange(len(shares)), counts)
    each = shares / counts
    room = math.ceil(len(slots) / ranks)
    held: list[list[int]] = [slots[rank * room : (rank + 1) * room].tolist() for rank in range(ranks)]
    if balanced:
        held, loads = [[] for _ in range(ranks)], np.zeros(ranks)
        for expert in slots[np.argsort(-each[slots], kind="stable")].tolist():
            rank = int(np.argmin(loads))
            held[rank].append(expert)
            loads[rank] = loads[rank] + each[expert] if len(held[rank]) < room else math.inf
    return Placement((), tuple(map(tuple, held))).under(shares)


def busiest(placement: Placement, tokens: Floats) -> Floats:
    """Return the (token, expert) pairs that the busiest rank computes of `tokens` tokens, on average over draws.

    The least over λ of ln Σ exp(λ·mean + λ²·variance/2)/λ over ranks: of even ranks mean + √(2·variance·ln ranks),
    of one that is far busier its mean. The excess over the busiest mean, in roots of the number of tokens, is found
    on a grid of them and interpolated.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    means = placement.means
    variances = np.array([sum(share * (1.0 - share) for share in rank) for rank in placement.shares])
    most = float(tokens.max(initial=1.0))
    if placement.ranks == 1 or variances.max() <= 0.0:
        alone: Floats = tokens * means.max()
        return alone
    grid = np.geomspace(1.0, max(most, 2.0), _GRID)
    strength = np.sqrt(2.0 * math.log(placement.ranks) / (grid * variances.max()))[:, None] * _STRENGTHS
    spread = grid[:, None, None] * variances * (strength**2)[:, :, None] / 2.0
    drift = grid[:, None, None] * (means - means.max()) * strength[:, :, None]
    top = (spread + drift).max(axis=2, keepdims=True)
    total = np.log(np.exp(spread + drift - top).sum(axis=2)) + top[:, :, 0]
    excess = (total / strength).min(axis=1) / np.sqrt(grid)
    found = np.interp(np.log(np.maximum(tokens, 1.0)), np.log(grid), excess)
    all_of_them = tokens * np.array([len(rank) for rank in placement.shares]).max()
    load: Floats = np.minimum(tokens * means.max() + np.sqrt(tokens) * found, all_of_them)
    return load


def fullest(placement: Placement, tokens: Floats) -> Floats:
    """Return the different copies that `tokens` tokens touch on the rank where that is most: Σ 1 - (1 - share)^n."""
    tokens = np.asarray(tokens, dtype=np.float64)
    found = np.zeros_like(tokens)
    for rank in set(placement.shares):
        touched = np.zeros_like(tokens)
        for share in rank:
            touched += -np.expm1(tokens * math.log1p(-share)) if share < 1.0 else np.where(tokens > 0, 1.0, 0.0)
        found = np.maximum(found, touched)
    return found


def nodes_met(experts: int, top_k: int, nodes: int, limit: int = 0) -> float:
    """Return on how many nodes the experts of a token stand, drawn evenly: M·(1 - C((M-1)·g, k)/C(M·g, k)).

    g is the experts of a node, M the nodes: all of them, or the `limit` that a token may be sent to.
    """
    open_ = min(limit, nodes) if limit else nodes
    group = experts // nodes
    return open_ * (1.0 - math.comb((open_ - 1) * group, top_k) / math.comb(open_ * group, top_k))

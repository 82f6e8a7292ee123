"""Prefix sharing: how much of a prompt an earlier request had, and how long ago that was."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sonde.errors import InputError
from sonde.workload.node import Node
from sonde.workload.requests import Requests
from sonde.workload.statistics import prefix_hits

Floats = NDArray[np.float64]
#: at which shares the quantile tables stand
SHARES = tuple(round(0.05 * i, 2) for i in range(21))
MOST_BANDS, LEAST_IN_BAND = 12, 50


class Prefix(Node):
    """Prefix sharing of a trace with hashed blocks.

    block_tokens   tokens in a block
    seen_share     of all blocks, those that an earlier request had
    blocks         least blocks of a prompt in each band of prompt sizes, from 0
    depth          for each band, quantiles (at 0, 5, ..., 100 %) of the share of a prompt's blocks that were seen
    lag_s          quantiles of the time since the deepest of them was last used
    """

    block_tokens: int = Field(ge=1)
    seen_share: float = Field(ge=0, le=1)
    blocks: tuple[int, ...] = Field(min_length=1)
    depth: tuple[tuple[float, ...], ...]
    lag_s: tuple[float, ...] = Field(min_length=len(SHARES), max_length=len(SHARES))

    @model_validator(mode="after")
    def _tables(self) -> Self:
        if self.blocks[0] != 0 or (np.diff(self.blocks) <= 0).any():
            raise ValueError("blocks must start at 0 and increase")
        if len(self.depth) != len(self.blocks) or any(len(row) != len(SHARES) for row in self.depth):
            raise ValueError(f"depth must have {len(self.blocks)} rows, one for each band, of {len(SHARES)} quantiles")
        if any(not 0 <= value <= 1 for row in self.depth for value in row):
            raise ValueError("depth must be shares from 0 to 1")
        if not all(0 <= value < np.inf for value in self.lag_s):
            raise ValueError("lag_s must be times of zero or more")
        return self


def fit_prefix(requests: Requests) -> Prefix | None:
    """Return the prefix sharing of a trace; None where it has no hashes."""
    if not requests.block_tokens or not len(requests.block_hash):
        return None
    blocks, seen = prefix_hits(requests)
    rows = np.flatnonzero(blocks > 0)
    bands = int(np.clip(len(rows) // LEAST_IN_BAND, 1, MOST_BANDS))
    edges = np.unique(np.quantile(blocks[rows], np.arange(1, bands) / bands, method="lower"))
    edges = np.concatenate(([0], edges[edges > 0])).astype(np.int64)
    band = np.searchsorted(edges, blocks[rows], side="right") - 1
    share = seen[rows] / blocks[rows]
    kept = [index for index in range(len(edges)) if (band == index).any()]
    depth = [np.quantile(share[band == index], SHARES) for index in kept]
    lag = _lags(requests, seen)
    return Prefix(
        block_tokens=requests.block_tokens,
        seen_share=float(f"{1 - len(np.unique(requests.block_hash)) / len(requests.block_hash):.6g}"),
        blocks=(0, *(int(edges[index]) for index in kept[1:])),
        depth=tuple(tuple(np.round(row, 5).tolist()) for row in depth),
        lag_s=tuple(np.round(np.quantile(lag, SHARES), 3).tolist()) if len(lag) else (0.0,) * len(SHARES),
    )


def draw_hashes(prefix: Prefix, requests: Requests, rng: np.random.Generator) -> Requests:
    """Return the requests with hashed blocks that are shared as in the trace.

    A request takes its first blocks from the chain of an earlier one, about the drawn time ago and long enough,
    and the rest are new; so what it shares is a path of a tree, as prefixes are.
    """
    from sonde.workload.chains import chain

    n = requests.n
    blocks = -(-requests.prompt_tokens.astype(np.int64) // prefix.block_tokens)
    band = np.searchsorted(prefix.blocks, blocks, side="right") - 1
    share = np.empty(n)
    for index, row in enumerate(prefix.depth):
        inside = np.flatnonzero(band == index)
        even = (rng.permutation(len(inside)) + rng.random(len(inside))) / max(len(inside), 1)
        share[inside] = np.interp(even, SHARES, row)
    depth = np.minimum(np.rint(share * blocks).astype(np.int64), blocks)
    lag = np.interp(rng.random(n), SHARES, prefix.lag_s)
    near = np.searchsorted(requests.arrival_s, requests.arrival_s - lag, side="right") - 1
    start = np.concatenate(([0], np.cumsum(blocks)))
    hashes = chain(start, depth, near)
    return requests._replace(block_start=start, block_hash=hashes, block_tokens=prefix.block_tokens)


def with_hit_rate(
    requests: Requests, hit_rate: float, *, block_tokens: int = 16, prefixes: int = 64, seed: int = 0
) -> Requests:
    """Return the requests with hashed blocks such that a cache without an end finds `hit_rate` of all prompt tokens.

    Every prompt begins with one of so many `prefixes`, drawn with popularities 1, 1/2, 1/3, ... (Zipf), and goes on
    with blocks that no other has; the same share of every prompt is common, but for rounding to blocks of
    `block_tokens`. What the first prompt of each prefix must compute counts as not found, and so does the last token
    of a prompt. Raises InputError for a rate outside 0 to 1, or above what these prompts allow.
    """
    if not 0 <= hit_rate <= 1:
        raise InputError("hit_rate", hit_rate, "must be from 0 to 1: a share of prompt tokens")
    for name, value in (("block_tokens", block_tokens), ("prefixes", prefixes)):
        if value < 1:
            raise InputError(name, value, "must be 1 or more")
    popular = 1.0 / np.arange(1, prefixes + 1)
    family = np.random.default_rng((seed, 5)).choice(prefixes, requests.n, p=popular / popular.sum())
    prompts = requests.prompt_tokens.astype(np.int64)
    asked = hit_rate * prompts.sum()

    def found(share: float) -> float:
        seen = _seen(family, _common(prompts, share, block_tokens))
        return float(np.minimum(seen * block_tokens, prompts - 1).sum())

    low, high = 0.0, 1.0
    if found(high) < asked:
        raise InputError(
            "hit_rate", hit_rate,
            f"may be at most {np.floor(1e3 * found(1.0) / prompts.sum()) / 1e3:g} for these {requests.n:,} prompts, in "
            f"blocks of {block_tokens} tokens and with {prefixes} prefixes", "first prompts have nothing to find",
        )  # fmt: skip
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= asked else (middle, high)
    depth = _common(prompts, high, block_tokens)
    return _numbered(requests, family, depth, block_tokens)


def _common(prompts: NDArray[np.int64], share: float, block_tokens: int) -> NDArray[np.int64]:
    """Return how many blocks at the head of each prompt are of its prefix: `share` of its tokens, over all prompts."""
    whole = np.floor(np.cumsum(share * prompts / block_tokens))
    return np.minimum(np.diff(whole, prepend=0.0).astype(np.int64), prompts // block_tokens)


def _seen(family: NDArray[np.int64], depth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of its first `depth` blocks an earlier prompt of the same family had, for every prompt."""
    order = np.argsort(family, kind="stable")
    apart = family[order] * (int(depth.max()) + 1)  # so that no family reaches into the next
    most = np.maximum.accumulate(depth[order] + apart)
    before = np.concatenate(([0], most[:-1])) - apart
    seen = np.empty_like(depth)
    seen[order] = np.clip(before, 0, depth[order])
    return seen


def _numbered(requests: Requests, family: NDArray[np.int64], depth: NDArray[np.int64], block_tokens: int) -> Requests:
    """Return the requests with blocks numbered from 0: those of prefixes, then those that one prompt has."""
    blocks = requests.prompt_tokens.astype(np.int64) // block_tokens
    start = np.concatenate(([0], np.cumsum(blocks)))
    longest = np.zeros(int(family.max()) + 1, np.int64)
    np.maximum.at(longest, family, depth)
    first = np.concatenate(([0], np.cumsum(longest)))
    at = np.arange(start[-1]) - np.repeat(start[:-1], blocks)
    common = at < np.repeat(depth, blocks)
    hashes = np.repeat(first[family], blocks) + at
    hashes[~common] = first[-1] + np.arange(int((~common).sum()))
    return requests._replace(block_start=start, block_hash=hashes, block_tokens=block_tokens)


def _lags(requests: Requests, seen: NDArray[np.int64]) -> Floats:
    """Return, for each request that shares a prefix, the time since its deepest shared block was last used."""
    rows = np.flatnonzero(seen > 0)
    owner = np.repeat(np.arange(requests.n), np.diff(requests.block_start))
    order = np.argsort(requests.block_hash, kind="stable")
    before = np.full(len(order), -1)
    same = requests.block_hash[order][1:] == requests.block_hash[order][:-1]
    before[order[1:][same]] = owner[order[:-1][same]]
    deepest = before[requests.block_start[rows] + seen[rows] - 1]
    return np.asarray(requests.arrival_s[rows] - requests.arrival_s[deepest])

"""How long requests are: both distributions as quantile tables, and how they hang together as a copula.

The copula is counted on a grid of quantile bands whose edges include the median, p90 and p99. Draws are stratified:
every cell gets its share of the n requests to within one, in random order. So the quantiles of what is drawn are those
of the trace already at small n, and equal lengths (atoms) come back as flat parts of the table.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sonde.workload.node import Node
from sonde.workload.requests import Requests

Floats = NDArray[np.float64]
BANDS = (
    0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85,
    0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0,
)  # fmt: skip
TOLERANCE, MOST_KNOTS = 0.004, 250


class Quantiles(Node):
    """A distribution of whole numbers: `value[i]` is the quantile of `share[i]`, straight lines between."""

    share: tuple[float, ...] = Field(min_length=1)
    value: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _table(self) -> Self:
        share, value = np.asarray(self.share), np.asarray(self.value)
        if len(share) != len(value):
            raise ValueError(f"has {len(share)} shares and {len(value)} values: needs as many of both")
        if not ((share >= 0) & (share <= 1)).all() or (np.diff(share) <= 0).any():
            raise ValueError("share must increase, from 0 to 1")
        if value[0] < 1 or (np.diff(value) < 0).any() or value[-1] >= 2**31:
            raise ValueError("values must be at least 1 and never decrease")
        return self

    def at(self, share: Floats) -> NDArray[np.int32]:
        """Return the quantiles of `share`, as whole numbers."""
        values = np.interp(share, self.share, np.asarray(self.value, np.float64))
        np.rint(values, out=values)
        return values.astype(np.int32)


class Lengths(Node):
    """Prompt and output lengths in tokens, and requests counted by bands of both (rows: prompt, columns: output)."""

    prompt: Quantiles
    output: Quantiles
    bands: tuple[float, ...] = Field(min_length=2)
    counts: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _grid(self) -> Self:
        bands, size = np.asarray(self.bands), len(self.bands) - 1
        if bands[0] != 0 or bands[-1] != 1 or (np.diff(bands) <= 0).any():
            raise ValueError("bands must increase from 0 to 1")
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"counts must have {size} rows and columns, one for each band")
        if min(map(min, self.counts)) < 0 or not any(map(any, self.counts)):
            raise ValueError("counts must be zero or more, not all zero")
        return self


def fit_lengths(requests: Requests) -> Lengths:
    """Return the lengths of a trace: tables to within 0.4 % or half a token of its quantiles, and the grid."""
    prompt, output = requests.prompt_tokens, requests.output_tokens
    inner = np.asarray(BANDS[1:-1])
    rows, columns = (np.searchsorted(inner, _ranks(column), side="right") for column in (prompt, output))
    size = len(BANDS) - 1
    counts = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
    return Lengths(
        prompt=fit_quantiles(prompt), output=fit_quantiles(output), bands=BANDS,
        counts=tuple(tuple(row) for row in counts.tolist()),
    )  # fmt: skip


def draw_lengths(lengths: Lengths, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return n prompt and output lengths, stratified over the cells of the grid, in random order."""
    bands = np.asarray(lengths.bands)
    width = np.diff(bands)
    weight = np.asarray(lengths.counts, np.float64).ravel()
    ends = np.floor(np.cumsum(weight) / weight.sum() * n + rng.random())
    ends[-1] = n
    each = np.diff(ends, prepend=0.0).astype(np.int64)
    cell = np.repeat(np.arange(len(weight), dtype=np.int16), each)
    rng.shuffle(cell)
    columns = []
    for band, table in zip(np.divmod(cell, np.int16(len(width))), (lengths.prompt, lengths.output), strict=True):
        share = rng.random(n)
        share *= width[band]
        share += bands[band]
        columns.append(table.at(share))
    return columns[0], columns[1]


def fit_quantiles(values: NDArray[np.int32] | NDArray[np.int64]) -> Quantiles:
    """Return a table with as few knots as keep every quantile within the tolerance; coarser above 250 knots."""
    unique, counts = np.unique(values, return_counts=True)
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    rank = np.stack((first, last), axis=1).ravel()
    value = np.repeat(unique, 2)
    keep = np.concatenate(([True], (np.diff(rank) > 0)))
    rank, value = rank[keep], value[keep]
    tolerance = TOLERANCE
    while len(knots := _funnel(rank, value, tolerance)) > MOST_KNOTS:
        tolerance *= 1.4
    share = (rank[knots] + 0.5) / len(values)
    return Quantiles(share=tuple(np.round(share, 8).tolist()), value=tuple(value[knots].tolist()))


def _funnel(rank: NDArray[np.int64], value: NDArray[np.int64], tolerance: float) -> list[int]:
    """Return indices of points such that lines between them pass all others within the tolerance (Reumann-Witkam's
    idea with a cone: from each knot, go on as long as one slope passes all points since)."""
    knots = [0]
    low, high = -np.inf, np.inf
    xs, ys = rank.tolist(), value.tolist()
    i = 1
    while i < len(xs):
        x0, y0 = xs[knots[-1]], ys[knots[-1]]
        run = xs[i] - x0
        slope = (ys[i] - y0) / run
        if not low <= slope <= high:
            knots.append(i - 1)
            low, high = -np.inf, np.inf
            continue
        room = max(0.49, tolerance * ys[i])
        low, high = max(low, slope - room / run), min(high, slope + room / run)
        i += 1
    if len(xs) > 1:
        knots.append(len(xs) - 1)
    return knots


def _ranks(values: NDArray[np.int32]) -> Floats:
    """Return the middle of each value's place among n, as a share; ties in the order of their rows."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return (ranks + 0.5) / len(values)

"""Statistics of requests that descriptions and fits share. Columns in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.workload.requests import Requests

Floats = NDArray[np.float64]


def variation(gaps: Floats) -> float:
    """Return the coefficient of variation (standard deviation over mean) of gaps; 0 where all are 0."""
    mean = float(gaps.mean()) if len(gaps) else 0.0
    return float(gaps.std()) / mean if mean > 0 else 0.0


def gamma_shape(gaps: Floats) -> float:
    """Return the maximum-likelihood shape of a Gamma distribution through positive gaps, within 0.001 to 10,000.

    Solves log k - ψ(k) = log mean - mean log by Newton's method from Minka's start ("Estimating a Gamma
    distribution", 2002). Equal gaps have no finite shape and give 10,000. 1 is Poisson; CV is 1/√k.
    """
    from scipy.special import digamma, polygamma

    excess = float(np.log(gaps.mean()) - np.log(gaps).mean())
    if excess <= 5e-5:
        return 1e4
    k = (3 - excess + np.sqrt((excess - 3) ** 2 + 24 * excess)) / (12 * excess)
    for _ in range(20):
        slope = 1 / k - polygamma(1, k)
        step = (np.log(k) - digamma(k) - excess) / slope
        k = max(k - step, k / 4)
        if abs(step) < 1e-12 * k:
            break
    return float(np.clip(k, 1e-3, 1e4))


def tick(arrival: Floats) -> float:
    """Return the interval (s) that all times are multiples of, to a tenth of it; 0 where there is none.

    Clocks that count seconds, and logs written in batches, leave times on such a grid.
    """
    gaps = np.diff(np.unique(arrival))
    if len(gaps) < 10:
        return 0.0
    for candidate in sorted({float(np.median(gaps)), float(np.quantile(gaps, 0.01)), float(gaps.min())}, reverse=True):
        steps = gaps / candidate
        if np.mean(np.abs(steps - np.round(steps)) < 0.1) >= 0.95:
            near = np.round(steps) == 1
            return float(f"{np.median(gaps[near]) if near.any() else candidate:.6g}")
    return 0.0


def rank_correlation(a: NDArray[np.int32], b: NDArray[np.int32]) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; 0 where either column is constant."""
    x, y = _mean_ranks(a), _mean_ranks(b)
    x -= x.mean()
    y -= y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _mean_ranks(values: NDArray[np.int32]) -> Floats:
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(unique) == 1:
        return np.zeros(len(values))
    middle: Floats = np.cumsum(counts) - (counts + 1) / 2
    return middle[inverse]


def turn_gaps(requests: Requests) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Return turns per session, and, from each turn to the next of its session, seconds and growth of the prompt."""
    rows = np.flatnonzero(requests.session >= 0)
    rows = rows[np.argsort(requests.session[rows], kind="stable")]
    session = requests.session[rows]
    turns = np.unique(session, return_counts=True)[1].astype(np.int64)
    same = session[1:] == session[:-1]
    gaps = np.diff(requests.arrival_s[rows])[same]
    growth = np.diff(requests.prompt_tokens[rows].astype(np.int64))[same]
    return turns, gaps, growth


def prefix_hits(requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for every request, its hashed blocks and how many of them, from the first on, were seen before."""
    hashes, start = requests.block_hash, requests.block_start
    blocks = np.diff(start)
    if not len(hashes):
        return blocks, np.zeros(requests.n, np.int64)
    new = np.ones(len(hashes) + 1, bool)
    new[:-1] = False
    new[np.unique(hashes, return_index=True)[1]] = True
    place = np.flatnonzero(new)
    first_new = place[np.searchsorted(place, start[:-1])]
    return blocks, np.minimum(first_new - start[:-1], blocks)


def summary(values: NDArray[Any]) -> dict[str, float]:
    """Return mean, p50, p90, p99 and max."""
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99))
    return {
        "mean": float(values.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99),
        "max": float(values.max()),
    }  # fmt: skip

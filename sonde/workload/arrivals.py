"""When requests arrive: a rate that follows the clock, and how bursty arrivals are around it.

Gaps are Gamma in operational time, the time in which arrivals come at one per unit: the arrival i is at
Λ⁻¹(g_1 + ... + g_i), where Λ is the integral of the rate and the g have mean 1 and shape k. So the rate is
followed whatever the shape, and k = 1 is a Poisson process. (Gamma gaps with the rate re-drawn by window are the
model of BurstGPT, arXiv:2401.17644; operational time replaces its jumps at window ends.)
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sonde.errors import InputError
from sonde.workload.node import Node
from sonde.workload.requests import Requests
from sonde.workload.statistics import gamma_shape, tick

Floats = NDArray[np.float64]
DAY = 86_400.0
MOST_BINS, LEAST_IN_BIN, MOST_SILENCES = 60, 100, 100


class Arrivals(Node):
    """A rate curve that repeats every `edges_s[-1]`, and the burstiness around it.

    edges_s   ends of spans of constant rate, from 0 (unequal: long silences stand as spans of their own)
    per_s     mean arrivals per second in each span
    shape     of the Gamma gaps around the curve: 1 is Poisson, below is burstier; their CV is 1/√shape
    tick_s    times are whole multiples of it (0: they are not), so that several requests share an instant
    """

    edges_s: tuple[float, ...] = Field(min_length=2)
    per_s: tuple[float, ...] = Field(min_length=1)
    shape: float = Field(ge=1e-3, le=1e4)
    tick_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _curve(self) -> Self:
        edges, rates = np.asarray(self.edges_s), np.asarray(self.per_s)
        if len(edges) != len(rates) + 1:
            raise ValueError(f"has {len(edges)} edges and {len(rates)} rates: needs one edge more than rates")
        if edges[0] != 0 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise ValueError("edges_s must start at 0 and increase")
        if not np.isfinite(rates).all() or (rates < 0).any() or not rates.any():
            raise ValueError("per_s must be rates of zero or more, not all zero")
        return self

    @property
    def period_s(self) -> float:
        """Return the time after which the curve repeats."""
        return self.edges_s[-1]

    @property
    def mean_per_s(self) -> float:
        """Return the mean rate over a period."""
        return float(self.cumulative()[-1]) / self.period_s

    def cumulative(self) -> Floats:
        """Return the expected arrivals from 0 to every edge."""
        counts = np.diff(self.edges_s) * np.asarray(self.per_s)
        return np.concatenate(([0.0], np.cumsum(counts)))

    def expected(self, until_s: Floats | float) -> Floats:
        """Return the expected arrivals in [0, until_s), over as many periods as that takes."""
        total = self.cumulative()
        periods, inside = np.divmod(until_s, self.period_s)
        return np.asarray(periods * total[-1] + np.interp(inside, self.edges_s, total))

    def moment(self, expected: Floats) -> Floats:
        """Return when so many arrivals are expected: the inverse of `expected`."""
        total = self.cumulative()
        if len(expected) and expected.max() <= total[-1]:
            return np.asarray(np.interp(expected, total, self.edges_s))
        periods, inside = np.divmod(expected, total[-1])
        return np.asarray(periods * self.period_s + np.interp(inside, total, self.edges_s))


def fit_arrivals(requests: Requests, path: str = "trace") -> Arrivals:
    """Return the rate curve, burstiness and tick of a trace. Raises InputError where all arrive at once.

    From two days on, the curve is the mean day in quarters of an hour; from two weeks on, the mean week in hours;
    below that the trace's own span in up to 60 bins of at least 100 requests, with every gap that Gamma gaps would
    make in fewer than one of ten such traces as a silence of its own.
    """
    arrival = requests.arrival_s - requests.arrival_s[0]
    if requests.n < 2 or arrival[-1] <= 0:
        raise InputError(path, f"{requests.n} requests at one instant", "needs arrivals at two moments or more")
    grid = tick(arrival)
    if arrival[-1] >= 2 * DAY:
        edges, rates = _folded(arrival, *((7 * DAY, 168) if arrival[-1] >= 14 * DAY else (DAY, 96)))
        shape = _shape(arrival, Arrivals(edges_s=edges, per_s=rates, shape=1.0), grid)
        return Arrivals(edges_s=edges, per_s=rates, shape=shape, tick_s=grid)
    mean = float(arrival[-1]) / (requests.n - 1)
    edges, rates = _unfolded(arrival, np.empty(0, np.int64), mean, grid)
    usual = _usual_gaps(arrival, np.asarray(edges), np.asarray(rates), mean)
    for _ in range(2):
        shape = _shape(arrival, Arrivals(edges_s=edges, per_s=rates, shape=1.0), grid)
        if grid <= mean:
            edges, rates = _unfolded(arrival, _silences(arrival, usual, shape), mean, grid)
    shape = _shape(arrival, Arrivals(edges_s=edges, per_s=rates, shape=1.0), grid)
    return Arrivals(edges_s=edges, per_s=rates, shape=shape, tick_s=grid)


def draw_arrivals(curve: Arrivals, scale: float, stop: tuple[float, int | None], rng: np.random.Generator) -> Floats:
    """Return sorted times from 0 on, at `scale` times the curve's rate.

    `stop` is (s, n): at most n of them, before s; where n is None, all before s.
    """
    until_s, count = stop
    most = float(curve.expected(until_s)) * scale if np.isfinite(until_s) else np.inf
    ask = int(min(count if count is not None else np.inf, most + 6 * np.sqrt(most / curve.shape) + 64))
    expected = _gaps(curve.shape, ask, rng)
    expected[0] = 0.0
    np.cumsum(expected, out=expected)
    while expected[-1] < most and (count is None or len(expected) < count):
        more = _gaps(curve.shape, max(ask // 8, 64), rng)
        expected = np.concatenate((expected, expected[-1] + np.cumsum(more)))[:count]
    expected = expected[: int(np.searchsorted(expected, most))] if np.isfinite(most) else expected
    if scale != 1.0:
        expected /= scale
    times = curve.moment(expected)
    if curve.tick_s:
        times = np.floor(times / curve.tick_s) * curve.tick_s
        if curve.tick_s < 1:
            np.round(times, 9, out=times)
    times -= times[0]
    return times


def _gaps(shape: float, n: int, rng: np.random.Generator) -> Floats:
    """Return n Gamma gaps of mean 1."""
    if shape == 1.0:
        return rng.standard_exponential(n)
    gaps = rng.standard_gamma(shape, n)
    gaps /= shape
    return gaps


def _usual_gaps(arrival: Floats, edges: Floats, rates: Floats, mean: float) -> Floats:
    """Return, for every gap, the mean gap that is usual where it stands, and nowhere less than the trace's."""
    rate = rates[np.searchsorted(edges, arrival, side="right") - 1]
    return np.maximum(mean, 1 / np.maximum(rate[1:], rate[:-1]))


def _silences(arrival: Floats, usual: Floats, shape: float) -> NDArray[np.int64]:
    """Return the rows after which nothing comes for longer than Gamma gaps would have it in one trace of ten."""
    from scipy.stats import gamma

    improbable = float(gamma.isf(0.1 / len(arrival), shape)) / shape
    length = np.diff(arrival) / usual
    longest = np.argsort(-length, kind="stable")[:MOST_SILENCES]
    return np.sort(longest[length[longest] > improbable])


def _unfolded(
    arrival: Floats, silences: NDArray[np.int64], mean: float, grid: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return edges and rates over the trace's own span; `silences` are rows after which nothing comes for long."""
    span = float(arrival[-1]) + max(mean, grid)
    bins = int(np.clip(len(arrival) // LEAST_IN_BIN, 1, MOST_BINS))
    ends = np.arange(bins + 1) * (max(round(span / bins / grid), 1) * grid if grid > mean else span / bins)
    ends = np.append(ends[ends < span * (1 - 1e-9)], span)
    edges = np.concatenate((ends, arrival[silences] + mean / 2, arrival[silences + 1] - mean / 2))
    edges = np.unique(np.round(edges, 3 if span > 60 else 6))
    edges[0] = 0.0
    counts = np.histogram(np.minimum(arrival, edges[-1]), edges)[0]
    return tuple(edges.tolist()), _rounded(counts / np.diff(edges))


def _folded(arrival: Floats, period: float, bins: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return edges and rates of the mean period: arrivals in each bin over the time that the trace spent in it."""
    edges = np.linspace(0.0, period, bins + 1)
    counts = np.histogram(arrival % period, edges)[0]
    whole, rest = divmod(float(arrival[-1]), period)
    spent = np.diff(edges) * whole + np.clip(rest - edges[:-1], 0, np.diff(edges))
    return tuple(edges.tolist()), _rounded(counts / spent)


def _rounded(values: Floats) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _shape(arrival: Floats, curve: Arrivals, grid: float) -> float:
    """Return the Gamma shape of gaps around a curve: by maximum likelihood, or from counts where ticks hide the gaps.

    Where a tick holds an arrival or more, gaps inside it are unknown; the variance of its count over its mean tends
    to 1/k for a renewal process of shape k.
    """
    total = curve.expected(arrival)
    if grid and grid * len(arrival) >= arrival[-1]:
        ticks = np.round(arrival / grid).astype(np.int64)
        counts = np.bincount(ticks)
        mean = np.diff(curve.expected(np.arange(len(counts) + 1, dtype=np.float64) * grid))
        some = mean > 1e-9
        freedom = max(int(some.sum()) - len(curve.per_s), 1)
        dispersion = float(np.sum((counts[some] - mean[some]) ** 2 / mean[some])) / freedom
        return float(np.clip(1 / max(dispersion, 1e-9), 1e-3, 1e4))
    gaps = np.diff(total)
    positive = gaps[gaps > 0]
    if not len(positive):
        return 1e4
    return float(f"{gamma_shape(np.maximum(gaps, min(float(positive.min()), 0.5 * float(positive.mean())))):.4g}")

"""What is in a trace, as numbers: how much, when, how bursty, how long, and what hangs together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.workload.requests import Requests
from sonde.workload.statistics import (
    gamma_shape,
    prefix_hits,
    rank_correlation,
    summary,
    tick,
    turn_gaps,
    variation,
)  # fmt: skip

Floats = NDArray[np.float64]
WIDTHS = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
MOST_WINDOWS, LEAST_GAPS = 120, 30
DAY = 86_400.0


@dataclass(frozen=True)
class Description(Mapping[str, Any]):
    """The figures of a trace, ready for JSON; also a mapping from their names. Times in s, rates in 1/s.

    rate            mean, and peak with its window: `peak_per_s` in [peak_at_s, peak_at_s + window_s)
    rate_per_s      the rate in every window of `rate["window_s"]`
    rate_by_hour    the rate in each hour of a day that starts with the first arrival; empty below two days
    burstiness      CV of all gaps; Gamma shape by maximum likelihood inside windows: quantiles over windows with 30
                    gaps or more (None where there are none); the tick that times lie on, and requests that share one
    prompt_tokens, output_tokens   mean, p50, p90, p99, max
    rank_correlation               Spearman's, between prompt and output
    sessions        None, or share of requests, sessions, turns, think time between the arrivals of turns
    prefix          None, or tokens of a block, share of blocks seen before, and of requests that share any
    """

    requests: int
    span_s: float
    rate: dict[str, float]
    rate_per_s: tuple[float, ...]
    rate_by_hour: tuple[float, ...]
    burstiness: dict[str, Any]
    prompt_tokens: dict[str, float]
    output_tokens: dict[str, float]
    rank_correlation: float
    sessions: dict[str, Any] | None
    prefix: dict[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, lists and dictionaries."""
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def __getitem__(self, key: str) -> Any:
        return self.as_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)


def describe(requests: Requests) -> Description:
    """Return the figures of a trace."""
    arrival = requests.arrival_s - requests.arrival_s[0]
    width = next((width for width in WIDTHS if requests.span_s / width <= MOST_WINDOWS), WIDTHS[-1])
    counts = np.bincount((arrival / width).astype(np.int64))
    peak = int(counts.argmax())
    return Description(
        requests=requests.n,
        span_s=requests.span_s,
        rate={
            "mean_per_s": (requests.n - 1) / requests.span_s if requests.span_s else 0.0,
            "peak_per_s": float(counts[peak] / width),
            "peak_at_s": peak * width,
            "window_s": width,
        },
        rate_per_s=tuple((counts / width).tolist()),
        rate_by_hour=_by_hour(arrival),
        burstiness=_burstiness(arrival, width),
        prompt_tokens=summary(requests.prompt_tokens),
        output_tokens=summary(requests.output_tokens),
        rank_correlation=rank_correlation(requests.prompt_tokens, requests.output_tokens),
        sessions=_sessions(requests),
        prefix=_prefix(requests),
    )


def window_shapes(arrival: Floats, width: float) -> Floats:
    """Return the Gamma shape of the gaps inside every window of `width` s that has 30 positive ones or more."""
    gaps = np.diff(arrival)
    window = (arrival[:-1] / width).astype(np.int64)
    usable = (gaps > 0) & ((arrival[1:] / width).astype(np.int64) == window)
    parts = np.split(gaps[usable], np.flatnonzero(np.diff(window[usable])) + 1)
    return np.asarray([gamma_shape(part) for part in parts if len(part) >= LEAST_GAPS])


def _by_hour(arrival: Floats) -> tuple[float, ...]:
    if arrival[-1] < 2 * DAY:
        return ()
    edges = np.arange(25) * 3600.0
    whole, rest = divmod(float(arrival[-1]), DAY)
    spent = 3600.0 * whole + np.clip(rest - edges[:-1], 0, 3600.0)
    return tuple((np.histogram(arrival % DAY, edges)[0] / spent).tolist())


def _burstiness(arrival: Floats, width: float) -> dict[str, Any]:
    gaps, grid = np.diff(arrival), tick(arrival)
    mean = float(arrival[-1]) / max(len(gaps), 1)
    shapes = np.empty(0) if grid > mean else window_shapes(arrival, width)
    quantiles = np.quantile(shapes, (0.1, 0.5, 0.9)).tolist() if len(shapes) else [None] * 3
    return {
        "cv": variation(gaps),
        "gamma_shape": dict(zip(("p10", "p50", "p90"), quantiles, strict=True)) | {"windows": len(shapes)},
        "tick_s": grid,
        "same_instant_share": float(np.mean(gaps == 0)) if len(gaps) else 0.0,
    }


def _sessions(requests: Requests) -> dict[str, Any] | None:
    turns, gaps, growth = turn_gaps(requests)
    if not len(turns):
        return None
    return {
        "share": float(np.mean(requests.session >= 0)),
        "sessions": len(turns),
        "turns": summary(turns),
        "think_s": summary(gaps) if len(gaps) else None,
        "prompts_grow_share": float(np.mean(growth > 0)) if len(growth) else 0.0,
    }


def _prefix(requests: Requests) -> dict[str, float] | None:
    if not len(requests.block_hash):
        return None
    blocks, seen = prefix_hits(requests)
    return {
        "block_tokens": requests.block_tokens,
        "blocks": int(blocks.sum()),
        "seen_before_share": 1 - len(np.unique(requests.block_hash)) / len(requests.block_hash),
        "prefix_seen_share": float(seen.sum() / blocks.sum()),
        "requests_sharing_share": float(np.mean(seen > 0)),
    }

"""Lower bounds that cannot be wrong: replicas that no scheduler could go below.

Requests that arrive in a window and keep their limits are done soon after its end, so their work, priced by
`Rates`, must fit into the replicas' time from the window's start to then. The requests that may miss are
taken out, the largest first. The best of many windows, of all lengths, is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Engine
from sonde.metrics import Objective
from sonde.plan.rates import StepFloor, alone, prompt_rates, rates, seconds, step_floor
from sonde.plan.work import Work, allowed_misses, part, work
from sonde.workload.requests import Requests

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_GROWTH = 1.4  # from one length of window to the next
_STARTS = 24  # windows of one length that begin within one length of each other
_CAPS = (0.5, 0.9, 0.99, 1.0)  # shares of requests whose time limit a window waits for
ROUNDING = 1e-9  # relative: sums of floats may be off by so much


class Peak(NamedTuple):
    """The window that needs most: `rate` is work per second, `first` to `last` the requests that arrive in it.

    Between `start_s` and `end_s` at least `work` must be done, those that may miss already taken out.
    """

    rate: float
    first: int
    last: int
    start_s: float
    end_s: float
    work: float


class Promise(NamedTuple):
    """A way to read the objectives as a deadline per request [n] for its prompt, or for all of it.

    `misses` requests at most do not keep all of `objectives`.
    """

    objectives: tuple[Objective, ...]
    deadline_s: Floats
    misses: int

    @property
    def name(self) -> str:
        """Return the names of the objectives."""
        return " with ".join(item.label for item in self.objectives)

    @property
    def prompt_only(self) -> bool:
        """Return whether the deadline is that of the first token."""
        return [item.metric for item in self.objectives] == ["ttft"]

    @property
    def tpot_limit_s(self) -> float | None:
        """Return the TPOT that requests which keep the promise stay within, where it has one."""
        return next((item.limit_s for item in self.objectives if item.metric == "tpot"), None)


def promises(trace: Requests, objectives: Sequence[Objective]) -> tuple[Promise, ...]:
    """Return every deadline that the objectives imply: TTFT, TTFT with TPOT, end to end."""
    n = trace.n
    found = []
    gaps = trace.output_tokens.astype(np.float64) - 1.0
    for item in objectives:
        misses = allowed_misses(item, trace)
        if item.metric in ("ttft", "e2e"):
            found.append(Promise((item,), np.full(n, item.limit_s), misses))
        if item.metric == "ttft":
            for other in objectives:
                if other.metric == "tpot":
                    both = misses + allowed_misses(other, trace)
                    found.append(Promise((item, other), np.asarray(item.limit_s + other.limit_s * gaps), both))
    return tuple(found)


def peak(arrival_s: Floats, load: Floats, wait_s: float, misses: int) -> Peak:
    """Return the window with the most `load` per second, the `misses` largest loads in it taken out.

    A window of requests i to j lasts from arrival i to arrival j plus `wait_s`. For any threshold h the
    k largest of some loads sum to at most k·h + Σ max(load − h, 0), so Σ min(load, h) − k·h is at most
    what is left of a window: prefix sums, for a few h.
    """
    n = len(arrival_s)
    heights = np.quantile(load, [0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.998, 1.0]) if misses else np.array([np.inf])
    sums = np.zeros((len(heights), n + 1))
    np.cumsum(np.minimum(load, heights[:, None]), axis=1, out=sums[:, 1:])
    cut = misses * heights[:, None] if misses else 0.0
    best = Peak(0.0, 0, n - 1, float(arrival_s[0]), float(arrival_s[-1]) + wait_s, 0.0)
    for size in _sizes(min(n, misses + 1), n):
        starts = np.append(np.arange(0, n - size, max(1, size // _STARTS)), n - size)
        inside = (sums[:, starts + size] - sums[:, starts] - cut).max(axis=0)
        rate = inside / np.maximum(arrival_s[starts + size - 1] - arrival_s[starts] + wait_s, 1e-12)
        i = int(rate.argmax())
        if rate[i] > best.rate:
            first, last = int(starts[i]), int(starts[i]) + size - 1
            end = float(arrival_s[last]) + wait_s
            best = Peak(float(rate[i]), first, last, float(arrival_s[first]), end, float(inside[i]))
    return best


def _sizes(least: int, most: int) -> Iterator[int]:
    size = float(max(1, least))
    while size < most:
        yield int(size)
        size = max(size * _GROWTH, size + 1)
    yield most


class Need(NamedTuple):
    """What a promise needs at least (replicas, dollars per hour), and the window that shows it."""

    amount: float
    promise: Promise
    peak: Peak


def loudest(trace: Requests, promise: Promise, prompt: Floats, decode: Floats, hopeless: Bools) -> Peak:
    """Return the peak of a promise, over several cut-offs of how long a window waits for slow requests.

    Where a request's own limit is beyond the cut-off, only its prompt counts, for its TTFT is within. The
    `hopeless` miss whatever is done: they are among those that may, and nothing needs to be done for them.
    """
    prompt, decode = np.where(hopeless, 0.0, prompt), np.where(hopeless, 0.0, decode)
    misses = max(0, promise.misses - int(np.count_nonzero(hopeless)))
    if promise.prompt_only:
        return peak(trace.arrival_s, prompt, float(promise.deadline_s[0]), misses)
    caps = np.unique(np.quantile(promise.deadline_s, _CAPS, method="higher"))
    peaks = [
        peak(trace.arrival_s, prompt + np.where(promise.deadline_s <= cap, decode, 0.0), float(cap), misses)
        for cap in caps
    ]
    return max(peaks, key=lambda found: found.rate)


def priced(floor: StepFloor, demand: Work, promise: Promise) -> tuple[Floats, Floats, Bools]:
    """Return the least replica-seconds of each prompt and each decoding, and who cannot keep the promise here.

    Decoding whose rate comes out below zero is left out, as any part of the work may be.
    """
    rate = prompt_rates(floor) if promise.prompt_only else rates(floor, demand, promise.tpot_limit_s)
    prompt, decode = seconds(demand, rate)
    first, gap = alone(floor, demand)
    alone_s = {"ttft": first, "tpot": gap, "e2e": first + gap * demand.decode}
    hopeless = np.zeros(len(prompt), np.bool_)
    for item in promise.objectives:
        hopeless |= alone_s[item.metric] > item.limit_s * (1 + ROUNDING)
    return prompt, np.maximum(decode, 0.0), hopeless


def replicas_needed(
    engine: Engine,
    trace: Requests,
    objectives: Sequence[Objective],
    *,
    any_batching: bool = False,
    cached: bool = False,
) -> tuple[int, Need | None]:
    """Return the fewest replicas of `engine` that could hold the objectives on `trace`, and what shows it.

    It holds for every router, every order of work and, with `any_batching`, every way to form steps within
    the batch limit; with `cached`, for every prefix cache. 1 (and None) where the objectives imply no deadline.
    """
    floor = step_floor(engine, any_batching=any_batching)
    demand = work(trace, engine.table.window, cached=cached)
    best: Need | None = None
    for promise in promises(trace, objectives):
        top = loudest(trace, promise, *priced(floor, demand, promise))
        if best is None or top.rate > best.amount:
            best = Need(top.rate, promise, top)
    return (max(1, math.ceil(best.amount * (1 - ROUNDING))) if best else 1), best


def stage_needed(
    engine: Engine, trace: Requests, objectives: Sequence[Objective], stage: str, *, cached: bool = False
) -> int:
    """Return the fewest replicas of `engine` that could do one stage ("prefill" or "decode") of what is asked in time.

    As `replicas_needed`, with `any_batching`: the work of the stage must be done by the deadline of the whole.
    """
    floor = step_floor(engine, any_batching=True)
    demand = part(work(trace, engine.table.window, cached=cached), stage)
    least, nobody = 1.0, np.zeros(trace.n, np.bool_)
    for promise in promises(trace, objectives):
        prompt, decode, _ = priced(floor, demand, promise)
        least = max(least, loudest(trace, promise, prompt, decode, nobody).rate)
    return math.ceil(least * (1 - ROUNDING))

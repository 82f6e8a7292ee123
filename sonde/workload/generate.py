"""Generators: traffic drawn from a profile, and the simple kinds that queueing theory has answers for.

All chance comes from `numpy.random.Generator`s made from the seed, one for each part (arrivals, lengths, sessions,
hashes), so the same seed gives the same bytes, and more of one part changes nothing in another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.workload.arrivals import Arrivals, draw_arrivals
from sonde.workload.lengths import draw_lengths
from sonde.workload.prefix import draw_hashes
from sonde.workload.profile import Profile
from sonde.workload.profile import profile as find_profile
from sonde.workload.requests import Requests, requests
from sonde.workload.sessions import draw_sessions, grown

Floats = NDArray[np.float64]
MOST_REQUESTS = 200_000_000  # 5 GB of columns


def generate(
    profile: Profile | str | Path,
    *,
    rate: float | None = None,
    duration_s: float | None = None,
    count: int | None = None,
    seed: int = 0,
    hashes: bool = False,
) -> Requests:
    """Return traffic like the trace that `profile` (itself, its name, or its file) was fitted from.

    It follows the profile's rate curve from its start, again and again if it is longer, for `duration_s` or `count`
    requests, whichever ends first; for the trace's own count where neither is given. `rate` (1/s) scales the curve
    so that its mean over what is drawn is that. Lengths keep their joint distribution, sessions are drawn where the
    profile has them, hashed prompt blocks where it has them and `hashes` asks. Raises InputError for a rate,
    duration, count or seed that is out of range.
    """
    known = profile if isinstance(profile, Profile) else find_profile(profile)
    _check(rate, duration_s, count, seed)
    times, lengths, sessions, blocks = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    if count is None and duration_s is None:
        count = known.requests
    scale, stop = _scaled(known.arrivals, rate, duration_s, count)
    _check_expected(scale * float(known.arrivals.expected(stop[0])) if duration_s and count is None else 0.0, rate)
    arrival = draw_arrivals(known.arrivals, scale, stop, times)
    n = len(arrival)
    prompt, output = draw_lengths(known.lengths, n, lengths)
    session = None
    if known.sessions is not None:
        session = draw_sessions(known.sessions, arrival, sessions)
        if known.sessions.grows:
            prompt, output = grown(session, prompt, output)
    drawn = requests(arrival, prompt, output, session=session, path="generated")
    return draw_hashes(known.prefix, drawn, blocks) if hashes and known.prefix is not None else drawn


def poisson(rate: float, count: int, prompt: int | Floats, output: int | Floats, seed: int = 0) -> Requests:
    """Return `count` Poisson arrivals at `rate` (1/s) with the given lengths: a number for all, or one each."""
    return gamma(rate, 1.0, count, prompt, output, seed)


def gamma(rate: float, shape: float, count: int, prompt: int | Floats, output: int | Floats, seed: int = 0) -> Requests:
    """Return `count` arrivals at `rate` with Gamma gaps of `shape`: their CV is 1/√shape; the first is at 0."""
    _check(rate, None, count, seed)
    if not 1e-3 <= shape <= 1e4:
        raise InputError("shape", shape, "must be from 0.001 to 10,000")
    curve = Arrivals(edges_s=(0.0, 1.0), per_s=(1.0,), shape=shape)
    arrival = draw_arrivals(curve, rate, (np.inf, count), np.random.default_rng(seed))
    return _with_lengths(arrival, prompt, output)


def evenly(rate: float, count: int, prompt: int | Floats, output: int | Floats) -> Requests:
    """Return `count` arrivals at equal gaps of 1/rate."""
    _check(rate, None, count, 0)
    return _with_lengths(np.arange(count) / rate, prompt, output)


def at_once(count: int, prompt: int | Floats, output: int | Floats) -> Requests:
    """Return `count` requests that all arrive at 0, for a closed loop whose clients decide when each is sent."""
    _check(None, None, count, 0)
    return _with_lengths(np.zeros(count), prompt, output)


def retime(trace: Requests, rate: float, shape: float = 1.0, seed: int = 0) -> Requests:
    """Return the same requests in the same order, arriving at `rate` with Gamma gaps: for traces without times."""
    return trace._replace(arrival_s=gamma(rate, shape, trace.n, 1, 1, seed).arrival_s)


def _with_lengths(arrival: Floats, prompt: int | Floats, output: int | Floats) -> Requests:
    n = len(arrival)
    columns = [np.full(n, value) if np.ndim(value) == 0 else value for value in (prompt, output)]
    return requests(arrival, columns[0], columns[1], path="generated")


def _scaled(
    curve: Arrivals, rate: float | None, duration_s: float | None, count: int | None
) -> tuple[float, tuple[float, int | None]]:
    """Return the factor on the curve, and where to stop."""
    until = np.inf if duration_s is None else duration_s
    if rate is None:
        return 1.0, (until, count)
    span = until if count is None else min(until, count / rate)
    expected = float(curve.expected(span))
    if expected <= 0:
        raise InputError("duration", span, f"must reach past the profile's first {span:g} s, in which nothing arrives")
    return rate * span / expected, (until, count)


def _check_expected(requests: float, rate: float | None) -> None:
    """Raise InputError where a rate over a duration means more requests than may be drawn at once."""
    if requests > MOST_REQUESTS:
        raise InputError(
            "rate", rate, f"times the duration must be at most {MOST_REQUESTS:,} requests, and is about {requests:.3g}",
            "they would not fit the memory of this machine; give a shorter duration, or a number of requests",
        )  # fmt: skip


def _check(rate: float | None, duration_s: float | None, count: int | None, seed: int) -> None:
    for name, value in (("rate", rate), ("duration", duration_s)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(name, value, "must be above zero and finite")
    if count is not None and not 1 <= count <= MOST_REQUESTS:
        raise InputError("count", count, f"must be from 1 to {MOST_REQUESTS:,} requests")
    if seed < 0:
        raise InputError("seed", seed, "must be zero or more")

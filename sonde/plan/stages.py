"""Split fleets in a plan: which replicas compute prompts, which answer, and the fewest of both that hold.

Phases are rated alone (`sonde.plan.disaggregate`), the best replicas of both are put together, and their numbers are
found by simulating whole fleets, under all techniques.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

from sonde.catalogue.model import Model
from sonde.deployment.scenario import Scenario
from sonde.errors import InputError
from sonde.metrics import Objective, Outcome
from sonde.plan.bounds import stage_needed
from sonde.plan.candidates import Candidates, enumerate_candidates
from sonde.plan.disaggregate import (
    WIDTH,
    Goal,
    Option,
    Phase,
    decodes,
    fewest_of_both,
    prefills,
    rate_of,
    unhurried,
)  # fmt: skip
from sonde.plan.explain import Failure, explain, holds
from sonde.plan.fleet import Candidate, Fleet, label
from sonde.plan.result import Rejection
from sonde.plan.search import fewest
from sonde.plan.setting import STAGES, Setting
from sonde.plan.sweep import Sweep
from sonde.plan.transfer import too_slow
from sonde.policies import batching

_PAIRS = 6  # of replicas for prompts and for answers whose numbers are looked for
_PAIRS_SENT = 24  # the same, as long as nothing holds, where transfers have an objective: phases alone know no link
_SLACK = 1.5  # a replica is not rated whose least price alone is so many times that of the best
_SLACK_SENT = 8.0  # the same where transfers have an objective: more devices in a replica send and decode faster
_CENT = 1e-6  # dollars per device-hour of devices that cost nothing: fewer are still better


class Staged(NamedTuple):
    """What may compute prompts, and what may answer."""

    prefill: Candidates
    decode: Candidates


class _Rated(NamedTuple):
    """A candidate for a stage, and how many requests/s one replica takes."""

    candidate: Candidate
    phase: Phase

    def dollars(self, rate: float) -> float:
        """Return dollars per hour of as many replicas as `rate` requests/s take."""
        return self.phase.replicas(rate) * _dollars(self.candidate)


def staged(model: Model, scenario: Scenario, setting: Setting) -> Staged:
    """Return the candidates of both stages. Batching that holds memory for whole answers serves neither."""
    policies = tuple(name for name in scenario.search.batching if _moves(name))
    if not policies:
        raise InputError(
            "search.batching", list(scenario.search.batching), "must have one that admits by prompts, such as chunked",
            "disaggregation hands over caches of prompts alone",
        )  # fmt: skip
    asked = scenario.model_copy(update={"search": scenario.search.model_copy(update={"batching": policies})})
    prefill, decode = (enumerate_candidates(model, asked, setting, stage) for stage in STAGES)
    return Staged(prefill, decode)


def split_fleets(
    sweep: Sweep, choice: Staged, setting: Setting, tell: Callable[[int, int, str], None] | None = None
) -> bool:
    """Add the split fleets that hold to what `sweep` found, and return whether that was interrupted.

    Of each pair of replicas that is tried, the cheapest numbers; a ratio that the scenario gives is kept.
    """
    tell = tell or _silent
    before = len(sweep.found)
    try:
        choice = Staged(
            *(_sent_in_time(sweep, stage, some, setting) for stage, some in zip(STAGES, choice, strict=True))
        )
        rated = [_rated(sweep, stage, some, tell) for stage, some in zip(STAGES, choice, strict=True)]
        rate = rate_of(sweep.trace)
        pairs = list(_pairs(sweep, rated, setting, rate))
        for k, pair in enumerate(pairs):
            if k >= _PAIRS and len(sweep.found) > before:
                break
            tell(k, len(pairs), "fleets whose prompts and answers are apart")
            _search(sweep, pair, setting, rate)
    except KeyboardInterrupt:
        return True
    if len(sweep.found) == before:
        for stage, some, able in zip(STAGES, choice, rated, strict=True):
            if some.kept and not able:
                _none_alone(sweep, stage, some.kept)
    return False


def least_dollars(sweep: Sweep, choice: Staged) -> float:
    """Return dollars per hour that no split fleet of these replicas can go below; infinite where there is none."""
    total = 0.0
    for stage, some in zip(STAGES, choice, strict=True):
        prices = [low * _paid(one) for one, low in _floors(sweep, stage, some.kept)]
        total += min(prices, default=math.inf)
    return total


def _silent(*_: object) -> None:
    """Say nothing."""


def _moves(name: str) -> bool:
    policy = batching.POLICIES.get(name)
    return policy is None or not (policy.reserve_output or policy.hold_slots)


def _dollars(candidate: Candidate) -> float:
    return candidate.usd_per_hour + _CENT * candidate.replica.devices


def _paid(candidate: Candidate) -> float:
    return candidate.usd_per_hour


def _floors(sweep: Sweep, stage: str, kept: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """Return every candidate of which there may be as many as its stage takes at least, with that number."""

    def floor(one: Candidate) -> int:
        low = stage_needed(one.least, sweep.trace, sweep.objectives, stage, cached=one.cached)
        return max(one.fewest, -(-low // one.lanes))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        lows = list(pool.map(floor, kept))
    return [(one, low) for one, low in zip(kept, lows, strict=True) if low <= one.most]


def _rated(sweep: Sweep, stage: str, some: Candidates, tell: Callable[[int, int, str], None]) -> list[_Rated]:
    """Return the candidates that can do their stage alone, those whose floor is far above the best left out."""
    goal, rate = Goal(sweep.objectives), rate_of(sweep.trace)
    phases = prefills if stage == "prefill" else decodes
    order = sorted(_floors(sweep, stage, some.kept), key=lambda item: (item[1] * _dollars(item[0]), item[0].label))
    slack = _SLACK if _travelling(sweep) is None else _SLACK_SENT
    best, found, threads = math.inf, list[_Rated](), os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(order), threads):
            part = [one for one, low in order[first : first + threads] if low * _dollars(one) <= slack * best]
            if not part:
                break
            tell(first, len(order), f"replicas for {stage} alone")
            rows = pool.map(lambda one: phases(sweep.trace, goal, [Option(one.engine, one.most)]), part)
            found += [_Rated(one, row[0]) for one, row in zip(part, rows, strict=True) if row]
            best = min([best, *(item.dollars(rate) for item in found)])
    return found


def _none_alone(sweep: Sweep, stage: str, kept: Sequence[Candidate]) -> None:
    """Say why no replica can do a stage: of each kind of replica the one nearest to its objectives, unhurried."""
    goal, kinds = Goal(sweep.objectives), dict[object, list[tuple[float, str, Failure]]]()
    for one in kept:
        outcome, wanted = unhurried(sweep.trace, goal, one.engine, prompts=stage == "prefill")
        failure = explain(outcome, wanted.objectives, one.engine)
        if failure is not None:
            kinds.setdefault(one.family, []).append((failure.ratio, one.label, failure))
    for some in kinds.values():
        _, name, failure = min(some, key=lambda item: item[:2])
        sweep.reject(f"{name} ({stage}, on its own)", failure)


def _travelling(sweep: Sweep) -> Objective | None:
    return next((goal for goal in sweep.objectives if goal.metric == "transfer"), None)


def _sent_in_time(sweep: Sweep, stage: str, some: Candidates, setting: Setting) -> Candidates:
    """Return the candidates whose own devices could send, or take, caches as fast as an objective wants it."""
    kept, goal = list[Candidate](), _travelling(sweep)
    for one in some.kept:
        failure = too_slow(sweep.trace, goal, one, one, setting.split) if setting.split else None
        if failure is None:
            kept.append(one)
        else:
            sweep.reject(f"{one.label} ({stage})", failure)
    return some._replace(kept=tuple(kept))


def _pairs(
    sweep: Sweep, rated: Sequence[Sequence[_Rated]], setting: Setting, rate: float
) -> Iterator[tuple[_Rated, _Rated]]:
    """Yield pairs that hold the same model and cache, the cheapest first: of the best `WIDTH` of either stage.

    Where transfers have an objective, of all that could send caches in time, the cheapest of each two kinds.
    """
    goal = _travelling(sweep)
    groups: dict[tuple[str, str], tuple[list[_Rated], list[_Rated]]] = {}
    for side, some in enumerate(rated):
        for item in some:
            replica = item.candidate.replica
            groups.setdefault((replica.weights, replica.kv_cache), ([], []))[side].append(item)
    found = []
    for one, two in groups.values():
        width = WIDTH if goal is None else None
        short = [sorted(some, key=lambda it: (it.dollars(rate), -it.phase.rate))[:width] for some in (one, two)]
        found += [
            (a.dollars(rate) + b.dollars(rate), a, b) for a, b in product(*short)
            if setting.split is None or not too_slow(sweep.trace, goal, a.candidate, b.candidate, setting.split)
        ]  # fmt: skip
    found.sort(key=lambda item: item[0])
    if goal is None:
        found = found[:_PAIRS]
    else:
        found = list({(a.candidate.family, b.candidate.family): (usd, a, b) for usd, a, b in reversed(found)}.values())
    for _, a, b in sorted(found, key=lambda item: item[0])[:_PAIRS_SENT]:
        yield a, b


class _Pair:
    """Whether so many replicas of two candidates hold together. Each pair of numbers is simulated once."""

    def __init__(self, sweep: Sweep, prefill: Candidate, decode: Candidate) -> None:
        self.sweep, self.prefill, self.decode = sweep, prefill, decode
        self.known: dict[tuple[int, int], bool] = {}
        self.good: dict[tuple[int, int], Outcome] = {}

    def fleet(self, n: int, m: int) -> Fleet:
        """Return the fleet of so many replicas."""
        return ((self.prefill, n), (self.decode, m))

    def holds(self, n: int, m: int) -> bool:
        """Return whether n replicas for prompts and m that decode hold, and are there to be had."""
        if (n, m) not in self.known:
            self.known[n, m] = self.stocked(n, m) and self._simulated(n, m)
        return self.known[n, m]

    def stocked(self, n: int, m: int) -> bool:
        """Return whether so many of both are to be had."""
        one, two = self.prefill, self.decode
        if m < two.fewest:
            return False
        return one.hardware != two.hardware or (
            n * one.replica.devices + m * two.replica.devices <= one.hardware.most
        )  # fmt: skip

    def _simulated(self, n: int, m: int) -> bool:
        outcome = self.sweep.simulate(self.fleet(n, m), stop_early=True)
        good = holds(outcome, self.sweep.objectives)
        if good:
            self.good = {(n, m): outcome}
        return good


def _search(sweep: Sweep, rated: tuple[_Rated, _Rated], setting: Setting, rate: float) -> None:
    """Keep the cheapest numbers of a pair that hold."""
    one, two = rated
    pair = _Pair(sweep, one.candidate, two.candidate)
    sweep.simulated += 1
    try:
        if setting.counts:
            counts = _in_ratio(pair, setting.counts)
        else:
            price = _dollars(pair.prefill), _dollars(pair.decode)
            counts = fewest_of_both(pair, price, (one.phase.replicas(rate), two.phase.replicas(rate)))
    except InputError as error:
        sweep.rejected.append(Rejection(label(pair.fleet(1, 1)), "technique", str(error)))
        return
    if counts is None:
        fleet = pair.fleet(*_as_many(pair, setting.counts or (one.phase.replicas(rate), two.phase.replicas(rate))))
        outcome = sweep.simulate(fleet, stop_early=False)
        sweep.reject(label(fleet), explain(outcome, sweep.objectives, two.candidate.engine))
    else:
        outcome = pair.good.get(counts) or sweep.simulate(pair.fleet(*counts), stop_early=False)
        sweep.keep(pair.fleet(*counts), outcome)


def _as_many(pair: _Pair, ratio: tuple[int, int]) -> tuple[int, int]:
    """Return the most replicas in such a ratio, or near it, that there may be."""
    n, m = min(ratio[0], pair.prefill.most), min(max(ratio[1], pair.decode.fewest), pair.decode.most)
    while pair.stocked(2 * n, 2 * m) and 2 * n <= pair.prefill.most and 2 * m <= pair.decode.most:
        n, m = 2 * n, 2 * m
    while not pair.stocked(n, m) and n > 1:
        n -= 1
    return n, m


def _in_ratio(pair: _Pair, ratio: tuple[int, int]) -> tuple[int, int] | None:
    n, m = ratio
    most = min(pair.prefill.most // n, pair.decode.most // m)
    times = fewest(lambda k: pair.holds(k * n, k * m), 1, most, 1).replicas
    return (times * n, times * m) if times else None

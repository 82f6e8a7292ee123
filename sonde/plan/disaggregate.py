"""Which replicas compute prompts, which decode, and how many of each: phase by phase, then together (DistServe).

Each phase is simulated alone for the most requests/s of one replica: prompts whose answers are one token; answers
whose prompts cost nothing and whose caches come at once. The phases' best replicas, ⌈R/rate⌉ of each, are where the
search begins; what it ends with has been simulated whole, with the link charged (Zhong et al., OSDI 2024, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.errors import InputError
from sonde.metrics import Objective, Outcome
from sonde.plan.search import fewest
from sonde.sim.engine import run
from sonde.sim.network import Connected, LinkSpec, Paths
from sonde.workload.requests import Requests, scale_rate

#: rates are found to 2 %
TOLERANCE = 0.02
#: so many of the best replicas of each phase are tried together
WIDTH = 2
_DOUBLINGS = 24
_NEAR = 3  # placements of a pair of replicas that `goodput` tries
#: so many numbers of prefill replicas in a row bring nothing before the walk ends
_PATIENCE = 2
#: metrics that computing prompts answers for, and decoding
PROMPTS, DECODING = ("ttft", "e2e"), ("tpot", "itl", "e2e", "transfer")
_AT_ONCE = LinkSpec(1e30)


class Goal(NamedTuple):
    """What must hold: every objective at its quantile, or, with `share`, all limits at once for that share of requests.

    The second is DistServe's attainment: the quantiles of the objectives do not count then.
    """

    objectives: tuple[Objective, ...]
    share: float | None = None

    def holds(self, outcome: Outcome) -> bool:
        """Return whether a complete run met it."""
        if outcome.aborted:
            return False
        if self.share is not None:
            return float(outcome.met(self.objectives).mean()) >= self.share
        return all(outcome.quantile(it.metric, it.quantile) <= it.limit_s for it in self.objectives)

    def stops(self, requests: Requests) -> tuple[Objective, ...]:
        """Return the objectives each of which, once missed, makes it impossible to hold."""
        if self.share is None:
            return self.objectives
        found = []
        for it in self.objectives:
            counted = int(np.count_nonzero(requests.output_tokens > 1)) if it.metric == "tpot" else requests.n
            allowed = math.floor((1 - self.share) * requests.n + 1e-9)
            found.append(it._replace(quantile=max(1 - (allowed + 0.5) / max(counted, 1), 0.0)))
        return tuple(found)

    def of(self, *metrics: str) -> Goal:
        """Return it with the objectives on these metrics alone."""
        return self._replace(objectives=tuple(it for it in self.objectives if it.metric in metrics))


class Option(NamedTuple):
    """A replica that could serve a phase, and how many of it there may be. `label` is the caller's own."""

    engine: Engine
    most: int = 1024
    label: str = ""


class Phase(NamedTuple):
    """An option, and the most requests/s at which one replica of it holds its phase. Infinite: nothing limits it."""

    option: Option
    rate: float

    def replicas(self, rate: float) -> int:
        """Return how many replicas are needed for so many requests/s, if they share them out evenly."""
        return max(1, math.ceil(rate / self.rate * (1 - 1e-9)))


class Placement(NamedTuple):
    """So many replicas for prompts and for decoding, and what happens on them; `rate` in requests/s."""

    prefill: Option
    prefills: int
    decode: Option
    decodes: int
    rate: float
    outcome: Outcome

    @property
    def devices(self) -> int:
        """Return how many devices both pools take."""
        return self.prefills * self.prefill.engine.devices + self.decodes * self.decode.engine.devices

    @property
    def usd_per_hour(self) -> float:
        """Return dollars per hour of both pools."""
        return self.prefills * self.prefill.engine.usd_per_hour + self.decodes * self.decode.engine.usd_per_hour


def dollars(engine: Engine) -> float:
    """Return dollars per hour of a replica: what `split` makes least by default."""
    return engine.usd_per_hour


def devices(engine: Engine) -> float:
    """Return devices of a replica, for a search that makes those least."""
    return float(engine.devices)


def prefills(requests: Requests, goal: Goal, options: Sequence[Option]) -> list[Phase]:
    """Return the options that can compute the prompts in time, with the most requests/s of one replica.

    TTFT must hold as the goal says, and end to end, as far as the first token goes.
    """
    return _phases(_prompts(requests), goal.of(*PROMPTS), options, lambda engine: [(engine, 1)])


def decodes(requests: Requests, goal: Goal, options: Sequence[Option]) -> list[Phase]:
    """Return the options that can decode in time, with the most requests/s of one replica.

    TPOT, gaps and end to end must hold as the goal says. A request waits for memory and a place in the batch where
    its prompt was computed, after its first token; so must transfers, of which the wait for a step's end is left.
    """
    wanted = goal.of(*DECODING)
    return _phases(requests, wanted, options, _fed)


def unhurried(requests: Requests, goal: Goal, engine: Engine, *, prompts: bool) -> tuple[Outcome, Goal]:
    """Return what happens where one replica has a phase to itself and requests come one at a time; the phase's goal."""
    if prompts:
        slow = _at(_prompts(requests), rate_of(requests) / 2**_DOUBLINGS)
        return run(slow, [(engine, 1)], routing="least-tokens"), goal.of(*PROMPTS)
    return run(_at(requests, rate_of(requests) / 2**_DOUBLINGS), _fed(engine)), goal.of(*DECODING)


def split(
    requests: Requests,
    goal: Goal,
    phases: tuple[Sequence[Phase], Sequence[Phase]],
    paths: Paths,
    cost: Callable[[Engine], float] = dollars,
) -> Placement | None:
    """Return the cheapest placement of prompts and decoding that holds on `requests`, or None where none was found.

    `phases` are those of `prefills` and `decodes`; `paths` has the link and how caches are sent. The best `WIDTH`
    replicas of each phase are tried with each other; of every pair all numbers of replicas are tried that
    could be cheaper than what is known, one step either way from ⌈R/rate⌉ at a time.
    """
    rate = rate_of(requests)
    ranked = [
        sorted(some, key=lambda it: (cost(it.option.engine) * it.replicas(rate), cost(it.option.engine) / it.rate))
        for some in phases
    ]
    best: tuple[float, Phase, int, Phase, int] | None = None
    for first, second in product(ranked[0][:WIDTH], ranked[1][:WIDTH]):
        pair = _Pair(requests, goal, first.option, second.option, paths)
        price = cost(first.option.engine), cost(second.option.engine)
        counts = first.replicas(rate), second.replicas(rate)
        found = fewest_of_both(pair, price, counts)
        total = price[0] * found[0] + price[1] * found[1] if found else math.inf
        if found is not None and total < (best[0] if best else math.inf):
            best = (total, first, found[0], second, found[1])
    if best is None:
        return None
    _, one, n, two, m = best
    outcome = run(requests, whole(one.option.engine, n, two.option.engine, m, paths))
    return Placement(one.option, n, two.option, m, rate, outcome)


def goodput(
    requests: Requests,
    goal: Goal,
    phases: tuple[Sequence[Phase], Sequence[Phase]],
    paths: Paths,
    most_devices: int,
) -> Placement | None:
    """Return the placement on at most so many devices that holds at the most requests/s, or None where none does.

    The placements whose slower phase is fastest are simulated whole, the best of every pair of replicas and then the
    best of the rest, on `requests` at the rate asked; the outcome is that at the rate found.
    """
    every = []
    for first, second in product(*phases):
        one, two = (it.option.engine.devices for it in (first, second))
        some = []
        for n in range(1, (most_devices - two) // one + 1):
            m = (most_devices - n * one) // two
            slower = min(n * first.rate, m * second.rate)
            some.append((slower, n * one + m * two, first.option, n, second.option, m))
        some.sort(key=lambda it: (-it[0], it[1]))
        every += [(rank, it) for rank, it in enumerate(some[:_NEAR])]
    best: Placement | None = None
    for _, (guess, _, a, n, b, m) in sorted(every, key=lambda it: (it[0], -it[1][0])):
        fleet = whole(a.engine, n, b.engine, m, paths)
        if best is not None and not holds_at(requests, goal, fleet, best.rate * (1 + TOLERANCE)):
            continue
        rate = most_rate(requests, goal, fleet, guess)
        if rate > (best.rate if best else 0.0):
            best = Placement(a, n, b, m, rate, run(_at(requests, rate), fleet))
    return best


def whole(prefill: Engine, n: int, decode: Engine, m: int, paths: Paths) -> Connected:
    """Return the fleet of both pools."""
    return Connected(((prefill, n), (decode, m)), paths._replace(prefill=1))


def rate_of(requests: Requests) -> float:
    """Return requests/s from the first arrival to the last."""
    return requests.n / max(requests.span_s, 1e-9)


def holds_at(
    requests: Requests, goal: Goal, fleet: Sequence[tuple[Engine, int]] | Connected, rate: float
) -> bool:  # fmt: skip
    """Return whether the goal holds where the same requests arrive at `rate` (1/s)."""
    asked = _at(requests, rate)
    return goal.holds(run(asked, fleet, routing="least-tokens", until_missed=goal.stops(asked)))


def most_rate(
    requests: Requests, goal: Goal, fleet: Sequence[tuple[Engine, int]] | Connected, guess: float = 1.0
) -> float:  # fmt: skip
    """Return the most requests/s at which the goal holds, to 2 %: gallop, then bisect.

    0 where it does not hold for a request that comes alone, infinite where it holds whatever the rate.
    """
    return highest(lambda rate: holds_at(requests, goal, fleet, rate), guess)


def highest(holds: Callable[[float], bool], guess: float = 1.0) -> float:
    """Return the highest rate that holds, to 2 %, where lower ones hold too: gallop from `guess`, then bisect.

    0 where the lowest that is tried does not, infinite where the highest does.
    """
    if not math.isfinite(guess) or guess <= 0:
        guess = 1.0
    low, high = guess, 2 * guess
    if holds(guess):
        for _ in range(_DOUBLINGS):
            if not holds(high):
                break
            low, high = high, 2 * high
        else:
            return math.inf
    else:
        if not holds(guess / 2**_DOUBLINGS):
            return 0.0
        low, high = guess / 2, guess
        while not holds(low):
            low, high = low / 2, low
    while high / low > 1 + TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _at(requests: Requests, rate: float) -> Requests:
    return scale_rate(requests, rate / rate_of(requests))


def _phases(
    requests: Requests,
    goal: Goal,
    options: Sequence[Option],
    fleet: Callable[[Engine], Sequence[tuple[Engine, int]] | Connected],
) -> list[Phase]:
    found: list[Phase] = []
    guess = rate_of(requests)
    for option in options:
        if not goal.objectives:
            found.append(Phase(option, math.inf))
            continue
        rate = most_rate(requests, goal, fleet(option.engine), guess)
        if rate > 0:
            found.append(Phase(option, rate))
            guess = rate
    return found


def _prompts(requests: Requests) -> Requests:
    """Return the same prompts, each answered by one token."""
    return requests._replace(output_tokens=np.ones_like(requests.output_tokens))


def _fed(engine: Engine) -> Connected:
    """Return a replica whose prompts cost nothing, and whose caches come at once."""
    return Connected(((_source(), 1), (engine, 1)), Paths(prefill=1, hand_over=_AT_ONCE))


@cache
def _source() -> Engine:
    """Return an engine to which prompts are nothing: they take a nanosecond, and it has all the memory."""
    zero = np.zeros(2)
    time = Coefficients(1e-9, zero, 0.0, 0.0, 0.0, zero, zero, zero)
    none = time._replace(fixed=0.0)
    memory = KvMemory(1 << 60, 1, 1, 0, 0, 1e30)
    return Engine(StepTable(time, none, 0), memory, "prefill-first", 1, 1 << 40, "recompute", 0.0, 0.0, 0)


class Limited(Protocol):
    """A replica of which there may be so many."""

    @property
    def most(self) -> int:
        """Return how many there may be."""
        ...


class Together(Protocol):
    """Two replicas, one for each phase, and whether so many of both hold."""

    @property
    def prefill(self) -> Limited:
        """Return the one for prompts."""
        ...

    @property
    def decode(self) -> Limited:
        """Return the one that decodes."""
        ...

    def holds(self, n: int, m: int) -> bool:
        """Return whether n replicas for prompts and m that decode hold."""
        ...


class _Pair:
    """Whether so many replicas of two options hold together: each pair of numbers is simulated once."""

    def __init__(self, requests: Requests, goal: Goal, prefill: Option, decode: Option, paths: Paths) -> None:
        self.requests, self.goal, self.paths = requests, goal, paths
        self.prefill, self.decode = prefill, decode
        self.known: dict[tuple[int, int], bool] = {}

    def holds(self, n: int, m: int) -> bool:
        """Return whether n replicas for prompts and m that decode hold."""
        if (n, m) not in self.known:
            fleet = whole(self.prefill.engine, n, self.decode.engine, m, self.paths)
            stops = self.goal.stops(self.requests)
            self.known[n, m] = self.goal.holds(run(self.requests, fleet, until_missed=stops))
        return self.known[n, m]


def fewest_of_both(pair: Together, price: tuple[float, float], start: tuple[int, int]) -> tuple[int, int] | None:
    """Return the cheapest (n, m) that holds, walking both ways from `start`, or None where none was found."""
    if min(price) <= 0:
        raise InputError("price", min(price), "must be above 0 for every replica", "no placement would be the cheapest")
    best, below = (0, 0), math.inf

    def decoding(n: int, guess: int) -> int | None:
        """Return the fewest that decode and hold beside n for prompts, of those that cost less than is known."""
        room = (below - price[0] * n) / price[1]
        high = min(pair.decode.most, math.ceil(room - 1e-9) - 1) if below < math.inf else pair.decode.most
        return fewest(lambda m: pair.holds(n, m), 1, high, guess).replicas

    n, step = min(start[0], pair.prefill.most), 1
    while (found := decoding(n, start[1])) is None:  # more for prompts, until some number that decodes holds
        if n >= pair.prefill.most:
            return None
        n, step = min(n + step, pair.prefill.most), 2 * step
    best, below = (n, found), price[0] * n + price[1] * found
    for way in (-1, 1):
        (at, guess), missed = best, 0
        while 1 <= at + way <= pair.prefill.most and missed < _PATIENCE:
            at += way
            missed += 1
            found = decoding(at, guess)
            if found is not None:
                best, guess, missed = (at, found), found, 0
                below = price[0] * at + price[1] * found
    return best

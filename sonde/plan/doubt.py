"""How sure a plan is: what it would cost if all were as fast or as slow as it may be, and what it may be mistaken for.

Dollars per hour of a fleet are certain; whether it suffices is not. So the fewest replicas that hold are looked for
twice more, with every engine at one end of its interval (`sonde.sim.ends`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sonde.metrics import Objective, Outcome
from sonde.plan.explain import holds
from sonde.plan.fleet import Fleet, deployment, price, wired
from sonde.plan.result import Plan, PlanDoubt, kinds
from sonde.plan.search import fewest
from sonde.techniques.held import guesses
from sonde.workload.requests import Requests

SEED = 0  # of routing policies that draw: two fleets differ in their replicas alone


class Range(NamedTuple):
    """Dollars per hour of the fewest replicas that hold at the fast end, as predicted, and at the slow end.

    `devices` names what runs: where two ranges have the same, they are off by the same factor.
    """

    fast: float
    usd: float
    slow: float
    devices: frozenset[tuple[str, str]]


class Traffic(NamedTuple):
    """What has to be served, and how well."""

    requests: Requests
    objectives: tuple[Objective, ...]


def at_end(asked: Traffic, fleet: Fleet, *, slow: bool, stop_early: bool = False) -> Outcome:
    """Return what happens on a fleet at one end of its interval."""
    from sonde.sim.ends import run_at

    engines, routing = wired(fleet)
    goals = asked.objectives if stop_early else ()
    outcome = run_at(asked.requests, engines, slow=slow, routing=routing, seed=SEED, until_missed=goals)
    return replace(outcome, bursts=guesses(fleet[0][0].setting.chosen))


def both(asked: Traffic, fleet: Fleet) -> tuple[Outcome, Outcome]:
    """Return what happens on a fleet at the fast and at the slow end, with its power charged."""
    from sonde.sim.simulate import charged

    tree = deployment(fleet)
    fast, slow = (charged(at_end(asked, fleet, slow=end), tree) for end in (False, True))
    return fast, slow


def uncertain(outcome: Outcome, asked: Traffic, fleet: Fleet) -> Outcome:
    """Return the outcome with its interval, which is simulated when it is first asked for."""
    return replace(outcome, either=partial(both, asked, fleet))


def doubted(plans: Sequence[Plan], fleets: Sequence[Fleet], asked: Traffic, top: int) -> tuple[Plan, ...]:
    """Return all plans, those of the `top` cheapest kinds of fleet with how sure they are. `fleets` are theirs."""
    shown = [plan.rank - 1 for plan in kinds(plans)[:top]]
    if not shown:
        return tuple(plans)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        ranges = list(pool.map(lambda i: cost_range(asked, fleets[i]), shown))
        sure = list(pool.map(lambda i: _sure(plans[i], fleets[i], asked), shown))
    found = list(plans)
    for i, own, (kept, figures) in zip(shown, ranges, sure, strict=True):
        like = tuple(
            plans[k].rank
            for k, other in zip(shown, ranges, strict=True)
            if k != i and (turns(own, other) if i < k else turns(other, own))
        )
        slower = max(candidate.engine.doubt.tpot_high for candidate, _ in fleets[i]) - 1.0
        found[i] = replace(plans[i], doubt=PlanDoubt(own.fast, own.slow, kept, slower, like, figures))
    return tuple(found)


def _sure(plan: Plan, fleet: Fleet, asked: Traffic) -> tuple[bool, dict[str, object]]:
    """Return whether a plan holds at the slow end, and the intervals of its figures. Neither end's columns are kept."""
    ends = both(asked, fleet)
    return holds(ends[1], asked.objectives), plan.outcome.intervals(asked.objectives, ends)


def cost_range(asked: Traffic, fleet: Fleet) -> Range:
    """Return what the fewest replicas that hold cost at both ends; of a mix, the part with most replicas gives way."""
    part = max(range(len(fleet)), key=lambda i: fleet[i][1])
    candidate, guess = fleet[part]
    least = candidate.fewest if len(fleet) == 1 or candidate.stage else 0
    others = sum(one.replica.devices * count for i, (one, count) in enumerate(fleet)
                 if i != part and one.hardware == candidate.hardware)  # fmt: skip
    most = max((candidate.hardware.most - others) // candidate.replica.devices, guess)

    def sized(replicas: int) -> Fleet:
        return tuple((one, replicas if i == part else count) for i, (one, count) in enumerate(fleet))

    def cheapest(*, slow: bool) -> float:
        def works(replicas: int) -> bool:
            outcome = at_end(asked, sized(replicas), slow=slow, stop_early=True)
            return holds(outcome, asked.objectives)

        low, high = (guess, most) if slow else (least, guess)
        count = fewest(works, low, high, guess).replicas
        if count is None:
            return math.inf if slow else price(fleet)
        return price(sized(count))

    devices = frozenset((one.hardware.device.name, one.replica.engine or "") for one, _ in fleet)
    return Range(cheapest(slow=False), price(fleet), cheapest(slow=True), devices)


def turns(first: Range, second: Range) -> bool:
    """Return whether the order of two plans by cost, `first` before `second`, could be the other way round.

    On the same devices both are off by the same factor, and are compared at either end of it. On others they are off
    apart: the interval of the ratio of their costs is that of their two errors, whose logarithms add up in squares.
    """
    if first.devices == second.devices:
        return first.fast > second.fast or first.slow > second.slow
    if min(first.usd, second.fast) <= 0:
        return False
    up, down = math.log(first.slow / first.usd), math.log(second.usd / second.fast)
    return math.log(second.usd / first.usd) < math.hypot(up, down)

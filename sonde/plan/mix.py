"""Fleets of two kinds, where whole replicas of one kind would round up: two kinds may fit the load closer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sonde.plan.explain import holds
from sonde.plan.fleet import Candidate, Fleet, price
from sonde.plan.frontier import distinct
from sonde.plan.sweep import Found, Sweep

_TRIES = 60  # simulations at most
_KINDS = 8  # kinds that are combined: of each kind of device, the two that serve the workload cheapest alone


class _Kind(NamedTuple):
    """A candidate, and the replicas of it that hold alone: one less does not."""

    candidate: Candidate
    replicas: int


def mix(sweep: Sweep) -> bool:
    """Add the cheapest fleet of two kinds to what `sweep` found, if it is cheaper; return whether it was interrupted.

    Combinations are tried by price, each simulated on the whole workload, until one holds. One is tried only
    if it could hold by what its kinds need alone, and if no larger one of the same kinds has failed. None is where
    requests move between replicas, for no bound is known on a request that several kinds share.
    """
    if not sweep.found or any(candidate.moving for item in sweep.found for candidate, _ in item.fleet):
        return False
    best = min(item.usd_per_hour for item in sweep.found)
    failed: list[Fleet] = []
    try:
        for fleet in combinations(_kinds(distinct(sweep.found), best), best):
            if any(_within(fleet, larger) for larger in failed):
                continue
            if len(failed) == _TRIES:
                break
            outcome = sweep.simulate(fleet, stop_early=True)
            if holds(outcome, sweep.objectives):
                sweep.keep(fleet, outcome)
                break
            failed.append(fleet)
    except KeyboardInterrupt:
        return True
    return False


def _kinds(found: Sequence[Found], best: float) -> list[_Kind]:
    """Return the kinds worth combining: those of which one replica is cheaper than the best fleet and not enough."""
    kept: list[_Kind] = []
    devices: dict[str, int] = {}
    families = set()
    for item in sorted(found, key=lambda item: (item.usd_per_hour, item.label)):
        candidate, replicas = item.fleet[0]
        name = candidate.hardware.device.name
        if candidate.stage or replicas < 2 or candidate.usd_per_hour >= best or candidate.family in families:
            continue
        families.add(candidate.family)
        devices[name] = devices.get(name, 0) + 1
        if devices[name] <= 2 and len(kept) < _KINDS:
            kept.append(_Kind(candidate, replicas))
    return kept


def combinations(kinds: Sequence[_Kind], best: float) -> Iterator[Fleet]:
    """Yield fleets of two kinds that cost less than `best`, the cheapest first.

    n replicas hold alone and n - 1 do not, so one replica takes at most 1/(n - 1) of the workload, about: fleets
    whose shares stay below the whole are left out.
    """
    fleets: list[Fleet] = []
    for a, first in enumerate(kinds):
        for second in kinds[a + 1 :]:
            for i in range(1, first.replicas):
                for j in range(1, second.replicas):
                    fleet = ((first.candidate, i), (second.candidate, j))
                    share = i / (first.replicas - 1) + j / (second.replicas - 1)
                    if share > 1 and price(fleet) < best - 1e-9 and _in_stock(fleet):
                        fleets.append(fleet)
    yield from sorted(fleets, key=lambda fleet: (price(fleet), [(part.label, n) for part, n in fleet]))


def _in_stock(fleet: Fleet) -> bool:
    used: dict[tuple[str, str], int] = {}
    for candidate, replicas in fleet:
        key = candidate.hardware.device.name, candidate.hardware.purchase
        used[key] = used.get(key, 0) + replicas * candidate.replica.devices
        if used[key] > candidate.hardware.most:
            return False
    return True


def _within(fleet: Fleet, larger: Fleet) -> bool:
    """Return whether `larger` has the same kinds and at least as many replicas of each."""
    return all(a is b and i <= j for (a, i), (b, j) in zip(fleet, larger, strict=True))

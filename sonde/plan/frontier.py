"""What was found, ranked by dollars and then latency, and which of it nothing else beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sonde.plan.fleet import deployment
from sonde.plan.result import Plan
from sonde.plan.sweep import Found


def _figures(found: Found) -> tuple[float, float, float]:
    """Return dollars per hour, p99 end to end in s, joules per token: less is better in each."""
    summary: Mapping[str, Any] = found.summary
    return found.usd_per_hour, float(summary["e2e_s"]["p99"]), float(summary["joules_per_token"])


def on_frontier(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Return for each point whether no other is at most as large in every coordinate and less in one."""
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def distinct(found: Sequence[Found]) -> list[Found]:
    """Return what behaves differently: of fleets that serve every request at the same times, the least demanding.

    A batch limit or a token budget that is never reached makes no difference; the lower one stays.
    """
    kept: dict[tuple[object, ...], Found] = {}
    for item in sorted(found, key=_limits):
        kept.setdefault((*((part.family, n) for part, n in item.fleet), item.digest), item)
    return list(kept.values())


def _limits(found: Found) -> tuple[object, ...]:
    batching = found.fleet[0][0].replica.batching
    return batching.token_budget, batching.max_batch, found.label


def ordered(found: Sequence[Found]) -> list[Found]:
    """Return what was found, the cheapest first, then the lowest p99 end to end, then the leanest, then by name."""
    return sorted(found, key=lambda item: (*_figures(item), item.label))


def rank(ordered: Sequence[Found]) -> tuple[Plan, ...]:
    """Return the plans of what was found, in that order."""
    best = on_frontier([_figures(item) for item in ordered])
    return tuple(_plan(i, item, front) for i, (item, front) in enumerate(zip(ordered, best, strict=True), 1))


def _plan(number: int, found: Found, front: bool) -> Plan:
    tree = deployment(found.fleet)
    return Plan(
        rank=number,
        label=found.label,
        deployment=tree,
        devices=tree.devices,
        usd_per_hour=found.usd_per_hour,
        summary=found.summary,
        outcome=found.outcome,
        usd_by_part=_parts(found),
        frontier=front,
    )


def _parts(found: Found) -> dict[str, float]:
    """Return dollars per hour of devices while they compute and while they idle."""
    summary: Mapping[str, Any] = found.summary
    if len(found.fleet) == 1:
        busy = min(1.0, float(summary["utilisation"])) * found.usd_per_hour
    else:  # replicas of unlike price are busy to unlike shares
        prices = np.repeat(
            [part.engine.usd_per_hour for part, _ in found.fleet], [n * part.lanes for part, n in found.fleet]
        )
        shares = np.minimum(found.outcome.busy_s / float(summary["span_s"]), 1.0)
        busy = float((shares * prices).sum())
    return {"devices working": busy, "devices idle": max(found.usd_per_hour - busy, 0.0)}

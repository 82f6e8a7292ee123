"""What was found, ranked by dollars and then latency, and which of it nothing else beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sonde.plan.candidates import deployment
from sonde.plan.result import Plan
from sonde.plan.sweep import Found


def _figures(found: Found) -> tuple[float, float, float]:
    """Return dollars per hour, p99 end to end in s, joules per token: less is better in each."""
    outcome, span = found.outcome, float(found.summary["span_s"])  # type: ignore[arg-type]
    price = np.repeat([part.engine.usd_per_hour for part, _ in found.fleet], [n for _, n in found.fleet])
    busy = float((np.minimum(outcome.busy_s / span, 1.0) * price).sum())
    return {"devices working": busy, "devices idle": max(found.usd_per_hour - busy, 0.0)}

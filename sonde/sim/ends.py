"""The same run at the ends of the interval: every engine as fast, or as slow, as 80 % of measurements allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sonde.cost.ends import drawn, late, stretched
from sonde.metrics import Objective, Outcome
from sonde.sim.engine import run
from sonde.sim.network import Connected
from sonde.sim.world import Fleet
from sonde.workload.requests import Requests


def run_at(
    requests: Requests,
    fleet: Fleet | Connected,
    *,
    slow: bool,
    until_missed: Sequence[Objective] = (),
    **how: Any,
) -> Outcome:
    """Return what `sonde.sim.engine.run` does with engines at one end of their intervals; arguments are its own.

    Steps are stretched and simulated, then the time to first token by what it scatters beyond them, and joules.
    """
    engines = fleet.fleet if isinstance(fleet, Connected) else fleet
    goals = _loosened(until_missed, min((late(engine, slow=slow) for engine, _ in engines), default=1.0))
    there = [(stretched(engine, slow=slow), count) for engine, count in engines]
    again = Connected(there, fleet.paths) if isinstance(fleet, Connected) else there
    outcome = run(requests, again, until_missed=goals, **how)
    counts = [count for _, count in engines]
    first = np.repeat([late(engine, slow=slow) for engine, _ in engines], counts)
    joules = np.repeat([drawn(engine, slow=slow) for engine, _ in engines], counts)
    more = outcome.ttft_s * (np.append(first, 1.0)[outcome.replica] - 1.0)
    travel = outcome.travel and outcome.travel._replace(landed_s=outcome.travel.landed_s + more)
    return replace(
        outcome, first_token_s=outcome.first_token_s + more, finish_s=outcome.finish_s + more,
        energy_j=outcome.energy_j * joules, travel=travel,
    )  # fmt: skip


def _loosened(objectives: Sequence[Objective], least: float) -> tuple[Objective, ...]:
    """Return objectives that a run misses only where it misses those given with first tokens `least` times as late."""
    factor = min(least, 1.0)
    return tuple(
        item._replace(limit_s=item.limit_s / factor) if item.metric in ("ttft", "e2e") else item for item in objectives
    )

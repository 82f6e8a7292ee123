"""From a scenario to a plan: bounds, candidates, simulation, search, frontier.

`sonde.plan` names this folder and the verb: it can be called, and means the same as `sonde.plan.plan`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonde.deployment.scenario import Scenario
    from sonde.plan.result import PlanResult
    from sonde.workload.requests import Requests

__all__ = ["plan"]


def plan(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    trace: Requests | str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    top: int = 10,
) -> PlanResult:
    """Return every deployment that holds the objectives of `scenario`, ranked by dollars, and why others do not.

    See `sonde.plan.planner.plan`, which this calls; the simulator is imported on the first call.
    """
    from sonde.plan.planner import plan as search

    return search(scenario, trace=trace, progress=progress, top=top)


class _Verb(ModuleType):
    """A module that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlanResult:
        return plan(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb

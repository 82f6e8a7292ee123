"""What `plan` answers with: the deployments that hold, what they cost, and why the others fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sonde.deployment.scenario import Scenario
from sonde.deployment.tree import Deployment
from sonde.metrics import Objective, Outcome
from sonde.workload.requests import Requests


@dataclass(frozen=True, eq=False)
class Plan:
    """A deployment that meets every objective on the workload, with the fewest replicas that do.

    `summary` is `outcome.summary(objectives)`; `label` is short text such as "2 × h100-sxm tp1 fp8, chunked 2048".
    `usd_by_part` splits dollars per hour (devices working, devices idle, energy where it is paid apart).
    """

    rank: int
    label: str
    deployment: Deployment
    devices: int
    usd_per_hour: float
    summary: Mapping[str, object]
    outcome: Outcome
    usd_by_part: Mapping[str, float]
    frontier: bool  # no other plan is cheaper, faster (p99 end to end) and leaner (joules per token) at once


@dataclass(frozen=True)
class Rejection:
    """A candidate that cannot hold: `constraint` is the kind ("memory", "ttft", "tpot", "devices", ...).

    `reason` says it in words with both figures: "p99 TTFT 2.1 s against 0.5 s: prompt bursts at minute 37".
    """

    label: str
    constraint: str
    reason: str


@dataclass(frozen=True, eq=False)
class PlanResult:
    """The answer to a scenario. `plans` are ranked by dollars per hour, then by p99 end to end.

    `bound_usd_per_hour` is a cost that no scheduler could go below on the hardware allowed, and `bound_reason`
    says where it comes from. `interrupted` is true where the search was stopped and this is what it had found.
    """

    scenario: Scenario
    requests: Requests
    objectives: tuple[Objective, ...]
    plans: tuple[Plan, ...]
    rejected: tuple[Rejection, ...]
    bound_usd_per_hour: float
    bound_reason: str
    candidates: int
    requests_simulated: int
    simulations: int
    elapsed_s: float
    interrupted: bool = False
    best_failing: str = ""  # where nothing holds: the best that was reached, in words
    notes: tuple[str, ...] = field(default=())

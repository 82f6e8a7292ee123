"""What `plan` answers with: the deployments that hold, what they cost, and why the others fail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from sonde.deployment.scenario import Scenario
from sonde.deployment.tree import Deployment
from sonde.errors import library
from sonde.metrics import Metric, Objective, Outcome
from sonde.techniques.held import precisions
from sonde.units import show
from sonde.workload.requests import Requests

if TYPE_CHECKING:
    import pandas
    import polars

    from sonde.plan.ablation import Brought

_SHOWN = 10  # plans in the text form


@dataclass(frozen=True)
class PlanDoubt:
    """How sure a plan is. All intervals hold 80 %; a price is infinite where no number allowed would hold.

    usd_low, usd_high   dollars per hour of the fewest replicas that hold if all is as fast, and as slow, as it may be
    holds_slow          whether the plan as it stands holds every objective at the slow end
    slower              how much longer steps take there, as a share
    like                ranks of the other shown plans whose order by cost could be the other way round
    figures             `Outcome.intervals`: of every uncertain figure of the summary
    """

    usd_low: float
    usd_high: float
    holds_slow: bool
    slower: float
    like: tuple[int, ...]
    figures: Mapping[str, Any]

    def interval(self, metric: Metric, name: str = "p99") -> tuple[float, float]:
        """Return the interval in s of a latency at "p50", "p90" or "p99"."""
        low, high = self.figures[f"{metric}_s"][name]
        return low, high

    def to_json(self) -> dict[str, object]:
        """Return the keys that a plan has beside its own figures."""
        return {
            "holds_if_slow": self.holds_slow,
            "slower": self.slower,
            "like": list(self.like),
            "interval": {"usd_per_hour": [self.usd_low, self.usd_high], **self.figures},
        }


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
    doubt: PlanDoubt | None = None  # of the plans that are shown

    def to_json(self) -> dict[str, object]:
        """Return the plan as `plan --json` prints it: the deployment, its price, then every figure of its summary."""
        own = {
            "rank": self.rank,
            "label": self.label,
            "frontier": self.frontier,
            "deployment": self.deployment.model_dump(mode="json"),
            "precision": precisions(self.deployment),
            "devices": self.devices,
            "usd_per_hour": self.usd_per_hour,
            "usd_per_hour_by_part": dict(self.usd_by_part),
        }
        return own | (self.doubt.to_json() if self.doubt else {}) | dict(self.summary)

    def __repr__(self) -> str:
        return f"Plan {self.rank}: {self.label}, ${self.usd_per_hour:,.2f}/h"


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
    says where it comes from; it is infinite where no fleet could hold. `candidates` counts those that no proof
    ruled out, each simulated at least once. `interrupted` is true where the search was stopped and this is what
    it had found.
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
    brought: tuple[Brought, ...] = ()  # what each technique brings, where that was asked

    @property
    def kinds(self) -> tuple[Plan, ...]:
        """Return the cheapest plan of every kind of fleet (devices, parallelism, weights), in order of rank."""
        return kinds(self.plans)

    @property
    def gap(self) -> float:
        """Return how much dearer the cheapest plan is than the bound, as a share of it; NaN where there is none."""
        if not self.plans or not self.bound_usd_per_hour:
            return math.nan
        return self.plans[0].usd_per_hour / self.bound_usd_per_hour - 1

    def to_json(self) -> dict[str, object]:
        """Return the answer as `plan --json` prints it, in plain mappings and lists."""
        return {
            "plans": [plan.to_json() for plan in self.plans],
            "bound_usd_per_hour": min([round(self.bound_usd_per_hour, 6), *(p.usd_per_hour for p in self.plans[:1])]),
            "bound_reason": self.bound_reason,
            "objectives": [objective._asdict() for objective in self.objectives],
            "candidates": self.candidates,
            "simulations": self.simulations,
            "requests": self.requests.n,
            "requests_simulated": self.requests_simulated,
            "rejected": [
                {"label": item.label, "constraint": item.constraint, "reason": item.reason} for item in self.rejected
            ],
            "best_failing": self.best_failing,
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed_s,
            "notes": list(self.notes),
        } | ({"techniques": [row.to_json() for row in self.brought]} if self.brought else {})

    def rows(self) -> list[dict[str, object]]:
        """Return one flat row per plan: label, price and every figure ("ttft_s_p99" is p99 of TTFT)."""
        return [_flat(plan) for plan in self.plans]

    def to_polars(self) -> polars.DataFrame:
        """Return `rows` as a polars frame."""
        import polars

        return polars.DataFrame(self.rows(), infer_schema_length=None)

    def to_pandas(self) -> pandas.DataFrame:
        """Return `rows` as a pandas frame (needs pandas installed)."""
        frame: pandas.DataFrame = library("pandas", "to_pandas()").DataFrame(self.rows())
        return frame

    def _repr_html_(self) -> str:
        """Return the cheapest plan of every kind of fleet as a table, for notebooks."""
        heads = ["", "deployment", "cost", *(item.label for item in self.objectives), "J/token"]
        rows = [
            [str(plan.rank), plan.label, show(plan.usd_per_hour, "price")]
            + [show(_reached(plan, item), "time") for item in self.objectives]
            + [f"{float(str(plan.summary['joules_per_token'])):.3g}"]
            for plan in self.kinds[:_SHOWN]
        ]
        table = _html_row("th", heads) + "".join(_html_row("td", row) for row in rows)
        head, *rest = repr(self).splitlines()
        foot = [line.strip() for line in rest if line.startswith("  ") and not line.lstrip(" *")[:1].isdigit()]
        words = "".join(f"<p>{escape(line)}</p>" for line in foot)
        return f"<p>{escape(head)}</p>" + (f"<table>{table}</table>" if rows else "") + words

    def __repr__(self) -> str:
        count = f"{self.candidates:,} candidates, {self.simulations:,} simulations of {self.requests.n:,} requests"
        lines = [f"Plan for {self.scenario.model}: {len(self.plans):,} of {count} hold, in {self.elapsed_s:.1f} s"]
        shown = self.kinds[:_SHOWN]
        lines += [_line(plan, self.objectives) for plan in shown]
        if len(self.plans) > len(shown):
            lines.append(f"  ... {len(self.plans) - len(shown):,} more")
        if not self.plans:
            lines.append(f"  nothing holds; {self.best_failing}")
        gap = f" (the cheapest plan is {100 * self.gap:.0f} % above)" if self.plans else ""
        lines.append(f"  no scheduler could need less than ${self.bound_usd_per_hour:,.2f}/h{gap}")
        kinds = Counter(item.constraint for item in self.rejected)
        if kinds:
            lines.append("  ruled out: " + ", ".join(f"{count:,} by {kind}" for kind, count in kinds.most_common()))
        return "\n".join(lines + (["  interrupted: this is what had been found"] if self.interrupted else []))


def kinds(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Return the first plan of every kind of fleet (devices, parallelism, weights, whether it is split), in order."""
    first: dict[tuple[object, ...], Plan] = {}
    for plan in plans:
        first.setdefault(_kind(plan.deployment), plan)
    return tuple(first.values())


def _kind(deployment: Deployment) -> tuple[object, ...]:
    shapes = tuple(
        (pool.replica.device, pool.replica.tensor_parallel, pool.replica.pipeline_parallel,
         pool.replica.data_parallel, pool.replica.weights)
        for pool in deployment.pools
    )  # fmt: skip
    return (*shapes, deployment.path is not None)


def _html_row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _flat(plan: Plan) -> dict[str, object]:
    row: dict[str, object] = {
        "rank": plan.rank, "label": plan.label, "devices": plan.devices, "usd_per_hour": plan.usd_per_hour,
        "frontier": plan.frontier, "usd_per_hour_low": plan.doubt.usd_low if plan.doubt else None,
        "usd_per_hour_high": plan.doubt.usd_high if plan.doubt else None,
        "holds_if_slow": plan.doubt.holds_slow if plan.doubt else None,
    }  # fmt: skip
    for name, value in plan.summary.items():
        if isinstance(value, Mapping):
            row |= {f"{name}_{part}": figure for part, figure in value.items()}
        else:
            row[name] = value
    return row


def _line(plan: Plan, objectives: tuple[Objective, ...]) -> str:
    reached = ", ".join(f"{item.label} {show(_reached(plan, item), 'time')}" for item in objectives)
    joules = float(str(plan.summary["joules_per_token"]))
    head = f"{'*' if plan.frontier else ' '}{plan.rank:>3}  ${plan.usd_per_hour:,.2f}/h"
    sure = ""
    if plan.doubt is not None:
        high = f"${plan.doubt.usd_high:,.2f}" if math.isfinite(plan.doubt.usd_high) else "nothing that holds"
        sure = f"; 80 %: ${plan.doubt.usd_low:,.2f} to {high}, {'holds' if plan.doubt.holds_slow else 'misses'} if slow"
    return f"{head}  {plan.label}: {reached}, {joules:.2f} J/token{sure}"


def _reached(plan: Plan, item: Objective) -> float:
    known = plan.summary[f"{item.metric}_s"]
    name = f"p{100 * item.quantile:g}"
    if isinstance(known, Mapping) and name in known:
        return float(known[name])
    return plan.outcome.quantile(item.metric, item.quantile)

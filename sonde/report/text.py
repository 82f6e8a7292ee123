"""Figures as text, and the words around them: what the page and the terminal have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sonde.deployment.tree import Deployment
from sonde.metrics import QUANTILES, Metric, Objective, Outcome, quantile_name
from sonde.plan.fleet import title
from sonde.plan.result import Plan, PlanResult, Rejection
from sonde.techniques.compose import chosen
from sonde.units import show

if TYPE_CHECKING:
    from sonde.plan.ablation import Brought

#: the kind of figure that `joules_each` writes
EACH = "joules each"

#: metric -> (what people call it, what it is)
METRIC_NAMES: dict[Metric, tuple[str, str]] = {
    "ttft": ("TTFT", "time to first token"),
    "tpot": ("TPOT", "time per output token after the first, mean of a request"),
    "e2e": ("End to end", "from arrival to last token"),
    "itl": ("ITL", "gap between two successive tokens"),
    "transfer": ("Transfer", "from the first token to the cache having landed where answers are computed"),
}

#: constraint -> what it means for a candidate
CONSTRAINTS: dict[str, str] = {
    "memory": "Does not fit the memory",
    "ttft": "First token too late",
    "tpot": "Tokens too slow",
    "e2e": "Answer too late",
    "itl": "Gaps between tokens too long",
    "devices": "Needs more devices than allowed",
    "kv-memory": "Requests do not fit the KV memory",
    "batch": "The batch limit is reached",
    "transfer": "Caches land too late",
    "technique": "A technique makes no sense here",
    "disaggregation": "Prompts and answers cannot be apart",
    "parallelism": "Parallelism does not divide the model",
    "node": "A stage leaves its node",
    "price": "No price of this kind is known",
    "precision": "Precision that the device lacks",
    "cost": "Cannot beat a plan that holds",
    "throughput": "Cannot keep up with the traffic",
}


class Bar(NamedTuple):
    """An objective and how a run fared against it, in s, and between which times it may have (None: not known)."""

    objective: Objective
    value: float
    interval: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Return whether the value is within the limit."""
        return self.value <= self.objective.limit_s

    @property
    def share(self) -> float:
        """Return the value as a share of the limit."""
        return self.value / self.objective.limit_s


def seconds(value: float) -> str:
    """Return a time with its unit; "never" where it is infinite."""
    return "never" if math.isinf(value) else show(value, "time")


def joules(value: float) -> str:
    """Return an energy with its unit; "-" where there is none to speak of."""
    return show(value, "energy") if math.isfinite(value) else "-"


def joules_each(value: float) -> str:
    """Return an energy of a token in J, whatever its size, so that a column has one unit; "-" where there is none."""
    return f"{_figure(value)} J" if math.isfinite(value) else "-"


def usd(value: float) -> str:
    """Return dollars: whole from a thousand up, cents from one up, three significant digits below."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or abs(value) >= 0.995:
        return f"${value:,.2f}" if abs(value) < 999.5 else f"${value:,.0f}"
    return f"${value:#.3g}"


def between(low: float, high: float, kind: str = "time") -> str:
    """Return "0.287–0.874 s": an interval, the unit once where both ends have the same; "" where they are equal.

    An end that is infinite reads "∞"; dollars per hour are "$2.76–4.14/h", joules of a token always J.
    """
    if low == high or math.isnan(low) or math.isnan(high):
        return ""
    if kind == "price":
        return f"${low:,.2f}–{'∞' if math.isinf(high) else f'{high:,.2f}'}/h"
    if kind == "usd":
        return f"{usd(low)}–{usd(high).lstrip('$')}"
    written = joules_each if kind == EACH else partial(show, dimension=kind)
    if math.isinf(high):
        return f"{written(low)}–∞"
    first, second = written(low), written(high)
    if first == second:
        return ""
    figure, _, unit = first.rpartition(" ")
    return f"{figure if unit == second.rpartition(' ')[2] else first}–{second}"


def percent(value: float) -> str:
    """Return a share in percent; whole where it is exactly all or nothing."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:.0f} %" if value in (0.0, 1.0) else show(value, "ratio")


def whole(value: float) -> str:
    """Return a count with thousands separated."""
    return f"{value:,.0f}"


def listed(words: Sequence[str]) -> str:
    """Return "a", "a and b", or "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def figure(summary: Mapping[str, object], key: str) -> float:
    """Return a number of a summary, NaN where it is not there."""
    value = summary.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def latency(summary: Mapping[str, object], metric: Metric, name: str = "p99") -> float:
    """Return a latency of a summary in s ("p50", "p90" or "p99"), NaN where it is not there."""
    value = summary.get(f"{metric}_s")
    return float(cast(Mapping[str, Any], value).get(name, math.nan)) if isinstance(value, Mapping) else math.nan


def objective_value(objective: Objective, outcome: Outcome, summary: Mapping[str, object]) -> float:
    """Return what a run reached where `objective` looks, from its summary where that has the quantile."""
    for name, q in QUANTILES.items():
        if q == objective.quantile and not math.isnan(value := latency(summary, objective.metric, name)):
            return value
    return outcome.quantile(objective.metric, objective.quantile)


def latency_range(objective: Objective, plan: Plan) -> str:
    """Return the interval of what a plan reaches where `objective` looks; "" where it is not known."""
    if plan.doubt is None:
        return ""
    return between(*plan.doubt.interval(objective.metric, quantile_name(objective.quantile)))


def intervals(outcome: Outcome, objectives: Sequence[Objective]) -> Mapping[str, Any]:
    """Return `Outcome.intervals`, or nothing where none is known."""
    return outcome.intervals(tuple(objectives)) if outcome.either is not None else {}


def latency_interval(sure: Mapping[str, Any], metric: Metric, name: str) -> str:
    """Return the interval of a latency at "p50", "p90" or "p99"; "" where none is known."""
    return between(*sure[f"{metric}_s"][name]) if sure else ""


def summary_interval(sure: Mapping[str, Any], key: str, kind: str) -> str:
    """Return the interval of one figure of a summary; "" where none is known, or where it is certain (dollars and
    rates: to a hundredth, which is what the last answers of a run take longer)."""
    low, high = sure.get(key, (math.nan, math.nan))
    return "" if kind in ("usd", "rate") and high <= 1.01 * low else between(low, high, kind)


def kept_if_slow(outcome: Outcome, objectives: Sequence[Objective]) -> list[bool]:
    """Return for every objective whether a run would keep it at the slow end of its interval."""
    slow = outcome.ends[1]
    return [slow.quantile(item.metric, item.quantile) <= item.limit_s for item in objectives]


def range_of(plan: Plan, key: str, kind: str) -> str:
    """Return the interval of a figure of a plan's summary; "" where it is not known, or certain."""
    return summary_interval(plan.doubt.figures, key, kind) if plan.doubt is not None else ""


def cost_range(plan: Plan) -> str:
    """Return the interval of a plan's price; "" where it is not known, or certain."""
    return between(plan.doubt.usd_low, plan.doubt.usd_high, "price") if plan.doubt is not None else ""


def if_slow(plan: Plan) -> str:
    """Return whether a plan holds at the slow end, and how slow that is: "holds +14 %"."""
    if plan.doubt is None:
        return ""
    return f"{'holds' if plan.doubt.holds_slow else 'misses'} +{100 * plan.doubt.slower:.0f} %"


def steady(result: PlanResult) -> str:
    """Return in words which shown plan is the cheapest that holds even at the slow end; "" where none was asked."""
    shown = [plan for plan in result.plans if plan.doubt is not None]
    if not shown:
        return ""
    sure = next((plan for plan in shown if plan.doubt is not None and plan.doubt.holds_slow), None)
    if sure is None:
        return "No plan that is shown would hold at the slow end of its interval."
    price = show(sure.usd_per_hour, "price")
    return f"The cheapest shown plan that holds there too is #{sure.rank}, for {price}."


def like(plan: Plan, most: int = 3) -> str:
    """Return the ranks of the plans that a plan cannot be told apart from, the first `most` of them: "≈ #3 #5"."""
    if plan.doubt is None or not plan.doubt.like:
        return ""
    ranks = [f"#{rank}" for rank in plan.doubt.like]
    return " ".join(["≈", *ranks[:most], *(["…"] if len(ranks) > most else [])])


def carbon(summary: Mapping[str, object]) -> str:
    """Return the CO2 of an hour of a run in kg, whatever its size: "0.48 kg"."""
    grams = figure(summary, "carbon_g") / max(figure(summary, "span_s"), 1e-9) * 3600
    return f"{_figure(grams / 1000)} kg"


def _figure(value: float) -> str:
    """Return three significant digits, with thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def slow_note(result: PlanResult) -> str:
    """Return in words what "holds +14 %" says in the column "if slow"; "" where no plan has it."""
    shown = [plan.doubt for plan in result.plans if plan.doubt is not None]
    if not shown:
        return ""
    said = "misses" if any(not doubt.holds_slow for doubt in shown) else "holds"
    slower = next(doubt.slower for doubt in shown if doubt.holds_slow == (said == "holds"))
    end = "an objective is then missed" if said == "misses" else "every objective is kept even then"
    return (
        f"If slow: whether the plan as it stands still holds where steps take longer by the share given, the slow end "
        f"of the 80 %; {said} +{100 * slower:.0f} %: with steps {100 * slower:.0f} % longer {end}."
    )


def fleet_words(row: Brought) -> str:
    """Return the fleet that a set of techniques needs, why there is none, or that they change nothing."""
    if row.found is None:
        return f"none: {row.reason}"
    if not row.same_as:
        return row.found.label + (f"; {row.reason}" if row.reason else "")
    same = "changes nothing here" if row.same_as == "none" else "the same as with all"
    return f"{row.found.label}; {same}{f': {row.reason}' if row.reason else ''}"


def times(value: float | None, base: float | None) -> str:
    """Return how many times `base` a value is; "-" where either is not known."""
    return f"{value / base:.2f}" if value is not None and base else "-"


def per_dollar(row: Brought) -> str:
    """Return how many requests in time a dollar buys under a set of techniques; "-" where that has no number."""
    if row.found is None or not row.found.usd_per_hour or math.isinf(row.goodput):
        return "-"
    return whole(row.goodput * 3600 / row.found.usd_per_hour)


def running(outcome: Outcome) -> float:
    """Return the mean number of sequences in the batch of a replica."""
    line = outcome.timeline
    return float(line.running.mean()) / max(len(outcome.steps), 1) if len(line.running) else 0.0


def bars(
    objectives: Sequence[Objective], outcome: Outcome, summary: Mapping[str, object], sure: Mapping[str, Any]
) -> list[Bar]:
    """Return every objective with what the run reached, and with its interval where `sure` has it."""
    return [
        Bar(
            item, objective_value(item, outcome, summary),
            tuple(sure[f"{item.metric}_s"][quantile_name(item.quantile)]) if sure else None,
        )
        for item in objectives
    ]  # fmt: skip


def describe(deployment: Deployment, budgets: Sequence[int] = ()) -> str:
    """Return a deployment in a few words, such as "2 × h100-sxm tp1 fp8, chunked 2048, batch 256".

    Precisions are those that its techniques hold numbers in, whether it is as `arranged` or as written before;
    `budgets` are the tokens of a step in every pool, where techniques have chosen them.
    """
    techniques = chosen(deployment.techniques)
    words = [
        f"{pool.replicas} × "
        + title(pool.replica.device, pool.replica, [one for one in techniques if one.at(pool.name)], budget)
        for pool, budget in zip(deployment.pools, budgets or [0] * len(deployment.pools), strict=True)
    ]
    return " + ".join(words)


def fleet_line(deployment: Deployment, budgets: Sequence[int] = ()) -> str:
    """Return a deployment, as its techniques leave it, in a line: model, pools, routing, techniques; see `describe`."""
    path = deployment.path
    routing = deployment.routing.policy + (f", then {path.routing}" if path and len(path.visits) > 1 else "")
    uses = [use if isinstance(use, str) else next(iter(use)) for use in deployment.techniques]
    under = f", under {', '.join(uses)}" if uses else ""
    name = deployment.pools[0].replica.model
    return f"{name} on {describe(deployment, budgets)}; routed by {routing}{under}"


def workload_text(result: PlanResult) -> str:
    """Return the traffic in words: its source, how many requests over how long."""
    choice, trace = result.scenario.workload, result.requests
    source = "requests" if choice is None else file_name(choice.trace or choice.profile or "")
    span = trace.span_s
    rate = f", {show(trace.n / span, 'rate')} on average" if span > 0 else ""
    return f"{source}: {whole(trace.n)} requests over {seconds(span)}{rate}"


def gap(plan: Plan, bound: float) -> float:
    """Return the share of the plan's cost that a perfect scheduler might save at most, to a hundredth of a percent."""
    return round(max(0.0, 1 - bound / plan.usd_per_hour), 4) if plan.usd_per_hour > 0 else 0.0


def file_name(path: str) -> str:
    """Return the name of a file without the folders of whoever made the report."""
    return PurePath(path).name or path


def grouped(rejected: Sequence[Rejection]) -> dict[str, list[Rejection]]:
    """Return the rejections by constraint, the commonest first."""
    groups: dict[str, list[Rejection]] = {}
    for rejection in rejected:
        groups.setdefault(rejection.constraint, []).append(rejection)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def constraint_title(constraint: str) -> str:
    """Return what a constraint means, or its own name where it is a new one."""
    return CONSTRAINTS.get(constraint, constraint.replace("_", " ").capitalize())

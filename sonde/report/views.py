"""What the page shows, as plain values for its template: nothing here knows of HTML."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from sonde import __version__
from sonde.deployment.scenario import Scenario
from sonde.deployment.text import write
from sonde.deployment.tree import Deployment
from sonde.metrics import METRICS, QUANTILES, Metric, Objective, Outcome
from sonde.plan.result import Plan, PlanResult
from sonde.report import figures, text
from sonde.techniques.compose import arranged
from sonde.techniques.held import changes
from sonde.units import show

View = dict[str, Any]

ROWS = 500  # plans in the table at most
FIRST_ROWS = 12  # plans shown before the reader asks for more
REASONS = 200  # rejections listed in one group at most
COPIES = 12  # deployments given as YAML at most
PARTS = 8  # plans whose cost is split
HOURS_PER_MONTH = 730


def as_yaml(tree: Deployment | Scenario) -> str:
    """Return a deployment in full, or a scenario as it was asked, as YAML that `load` reads back.

    A deployment is written with what is as by default too: whoever copies it should see what it will do. What its
    techniques change in it is said in comments, for it is kept as it was before them.
    """
    whole = isinstance(tree, Deployment)
    changed = changes(tree) if isinstance(tree, Deployment) else []
    head = ["# as written before its techniques, which make of it:"] if changed else []
    return "".join(f"{line}\n" for line in (*head, *(f"#   {text}" for text in changed))) + write(
        tree.model_dump(mode="json", exclude_none=True, exclude_defaults=not whole)
    )


def _unplaced(scenario: Scenario) -> Scenario:
    """Return the scenario without the folders that its trace or profile lies in: the page may travel."""
    choice = scenario.workload
    if choice is None:
        return scenario
    names = {"trace": choice.trace, "profile": choice.profile}
    short = {key: text.file_name(value) for key, value in names.items() if value is not None}
    return scenario.model_copy(update={"workload": choice.model_copy(update=short)})


def plan_view(result: PlanResult) -> View:
    """Return all that the page of a plan shows."""
    best = result.plans[0] if result.plans else None
    view: View = {
        "kind": "plan",
        "title": f"{result.scenario.model}: what to run",
        "model": result.scenario.model,
        "workload": text.workload_text(result),
        "bound": result.bound_usd_per_hour if math.isfinite(result.bound_usd_per_hour) else 0.0,
        "bound_reason": result.bound_reason,
        "best": best,
        "best_failing": result.best_failing,
        "interrupted": result.interrupted,
        "notes": list(result.notes),
        "table": table_view(result) if best else None,
        "groups": rejection_view(result),
        "rejected": len(result.rejected),
        "brought": brought_view(result),
        "parts": part_view(cheapest_of_each_kind(result.plans)[:PARTS], result.bound_usd_per_hour),
        "copies": [copy_view(f"#{plan.rank}  {plan.label}", plan.deployment) for plan in _worth_copying(result.plans)],
        "scenario": as_yaml(_unplaced(result.scenario)),
        "facts": plan_facts(result),
        "figures": {},
        "doubt": None,
    }
    if best:
        saving = text.gap(best, result.bound_usd_per_hour)
        view |= {
            "bars": text.bars(result.objectives, best.outcome, best.summary, best.doubt.figures if best.doubt else {}),
            "saving": saving,
            "tiles": plan_tiles(best, saving),
            "figures": plan_figures(result),
            "spread": spread_view(best.summary, best.doubt.figures if best.doubt else {}),
            "doubt": best.doubt,
            "steady": text.steady(result),
        }
    return view


def outcome_view(outcome: Outcome, deployment: Deployment, objectives: Sequence[Objective]) -> View:
    """Return all that the page of a single run shows."""
    summary = outcome.summary(tuple(objectives))
    sure = text.intervals(outcome, objectives)
    bars = text.bars(objectives, outcome, summary, sure)
    label = text.describe(arranged(deployment))
    n, span = outcome.requests.n, text.figure(summary, "span_s")
    return {
        "kind": "outcome",
        "title": f"{deployment.pools[0].replica.model}: a run",
        "model": ", ".join(dict.fromkeys(pool.replica.model for pool in deployment.pools)),
        "workload": f"{text.whole(n)} requests over {text.seconds(span)}",
        "label": label,
        "bars": bars,
        "broken": [bar for bar in bars if not bar.holds],
        "unfinished": n - outcome.completed,
        "aborted": outcome.aborted,
        "usd_per_hour": outcome.usd_per_hour,
        "tiles": outcome_tiles(outcome, summary, sure, judged=bool(objectives)),
        "figures": run_figures(outcome, objectives),
        "spread": spread_view(summary, sure),
        "copies": [copy_view(label, deployment)],
        "facts": [
            ("Requests", text.whole(n)),
            ("Engine steps", text.whole(text.figure(summary, "steps"))),
            ("Simulated in", text.seconds(outcome.simulation_s)),
            *versions(),
        ],
    }


def plan_tiles(plan: Plan, saving: float) -> list[tuple[str, str, str]]:
    """Return the figures a decision rests on: what, how much, and a word on it."""
    summary, sure = plan.summary, plan.doubt.figures if plan.doubt else {}
    month = f"about {text.usd(HOURS_PER_MONTH * plan.usd_per_hour)} a month"
    return [
        ("Cost", show(plan.usd_per_hour, "price"), _and(month, text.cost_range(plan))),
        ("Left to save", text.percent(saving), "at most, before the bound"),
        ("Tokens", text.usd(text.figure(summary, "usd_per_million_tokens")),
         _and("per million, in and out", text.summary_interval(sure, "usd_per_million_tokens", "usd"))),
        ("Energy", text.joules_each(text.figure(summary, "joules_per_token")),
         _and("per output token", text.summary_interval(sure, "joules_per_token", text.EACH))),
        ("Devices", text.whole(plan.devices), f"KV memory {text.percent(text.figure(summary, 'peak_kv'))} at its peak"),
        ("In time", text.percent(text.figure(summary, "attainment")),
         _and("of requests, every limit kept", text.summary_interval(sure, "attainment", "ratio"))),
    ]  # fmt: skip


def outcome_tiles(
    outcome: Outcome, summary: Mapping[str, object], sure: Mapping[str, Any], *, judged: bool
) -> list[tuple[str, str, str]]:
    """Return the figures of a single run; `sure` are their intervals, or nothing."""
    share = text.percent(text.figure(summary, "attainment"))
    return [
        ("Cost", show(outcome.usd_per_hour, "price"), f"{text.usd(text.figure(summary, 'usd'))} for this run"),
        ("Throughput", show(text.figure(summary, "tokens_per_s"), "rate"),
         _and("output tokens", text.summary_interval(sure, "tokens_per_s", "rate"))),
        ("Tokens", text.usd(text.figure(summary, "usd_per_million_tokens")),
         _and("per million, in and out", text.summary_interval(sure, "usd_per_million_tokens", "usd"))),
        ("Energy", text.joules_each(text.figure(summary, "joules_per_token")),
         _and("per output token", text.summary_interval(sure, "joules_per_token", text.EACH))),
        ("Running", f"{text.running(outcome):.3g}",
         f"sequences a replica on average, KV memory {text.percent(text.figure(summary, 'peak_kv'))} at its peak"),
        ("In time" if judged else "Finished", share,
         _and("of requests" + (", every limit kept" if judged else ""),
              text.summary_interval(sure, "attainment", "ratio"))),
    ]  # fmt: skip


def _and(words: str, interval: str) -> str:
    return f"{words}; {interval}" if interval else words


def table_view(result: PlanResult) -> View:
    """Return the ranked table: headings, and a row a plan as (sort key, text) cells."""
    limits = list(result.objectives)
    if not any(o.metric == "e2e" for o in limits):
        limits.append(Objective("e2e", 0.99, float("inf")))
    rows = []
    for plan in result.plans[:ROWS]:
        million, token = "usd_per_million_tokens", "joules_per_token"
        cost, energy = (text.figure(plan.summary, key) for key in (million, token))
        times = [
            (text.objective_value(objective, plan.outcome, plan.summary), text.latency_range(objective, plan))
            for objective in limits
        ]
        use = text.figure(plan.summary, "peak_kv")
        above = plan.usd_per_hour / result.bound_usd_per_hour if result.bound_usd_per_hour > 0 else float("nan")
        rows.append({
            "rank": plan.rank, "label": plan.label, "frontier": plan.frontier,
            "cells": [
                (plan.usd_per_hour, show(plan.usd_per_hour, "price"), text.cost_range(plan)),
                (above, f"{above:.2f}", ""), (_slow_key(plan), text.if_slow(plan), text.like(plan)),
                (plan.devices, text.whole(plan.devices), ""),
                *((time, text.seconds(time), interval) for time, interval in times),
                (cost, text.usd(cost), text.range_of(plan, million, "usd")),
                (energy, text.joules_each(energy), text.range_of(plan, token, text.EACH)), (use, text.percent(use), ""),
            ],
        })  # fmt: skip
    return {
        "heads": ["Cost", "×\u00a0bound", "If slow", "Devices", *(objective.label for objective in limits),
                  "Per M tokens", "Per token", "Peak KV"],
        "rows": rows, "first": FIRST_ROWS, "left_out": len(result.plans) - len(rows),
        "bound": show(result.bound_usd_per_hour, "price"),
    }  # fmt: skip


def _slow_key(plan: Plan) -> int:
    """Return what the column "if slow" sorts by: what holds, what misses, what was not asked."""
    return 2 if plan.doubt is None else 0 if plan.doubt.holds_slow else 1


def rejection_view(result: PlanResult) -> list[View]:
    """Return the rejected candidates by what binds, each group with its count and its list."""
    groups = text.grouped(result.rejected)
    most = max(map(len, groups.values()), default=1)
    return [
        {
            "constraint": constraint, "title": text.constraint_title(constraint), "count": len(group),
            "share": len(group) / most, "example": group[0], "listed": group[:REASONS],
            "left_out": max(0, len(group) - REASONS),
        }
        for constraint, group in groups.items()
    ]  # fmt: skip


def brought_view(result: PlanResult) -> View | None:
    """Return what each technique brings, headings and cells; None where that was not asked."""
    if not result.brought:
        return None
    rows = [
        {
            "name": row.name, "fleet": text.fleet_words(row),
            "cells": [show(row.found.usd_per_hour, "price"), show(row.goodput, "rate"), text.per_dollar(row),
                      text.seconds(text.latency(row.summary, "ttft")), text.seconds(text.latency(row.summary, "tpot")),
                      text.joules_each(text.figure(row.summary, "joules_per_token"))] if row.found else ["-"] * 6,
        }
        for row in result.brought
    ]  # fmt: skip
    return {"heads": ["Cost", "Goodput", "Requests per $", "p99 TTFT", "p99 TPOT", "Per token"], "rows": rows}


def part_view(plans: Sequence[Plan], bound: float) -> View | None:
    """Return dollars per hour by part of some plans, as shares of the dearest of them."""
    names = list(dict.fromkeys(name for plan in plans for name, usd in plan.usd_by_part.items() if usd > 0))
    most = max((max(sum(plan.usd_by_part.values()), bound) for plan in plans), default=0.0)
    if not names or most <= 0:
        return None
    rows = [
        {
            "rank": plan.rank, "label": plan.label, "total": show(sum(plan.usd_by_part.values()), "price"),
            "parts": [(i, name, show(usd, "price"), usd / most) for i, name in enumerate(names)
                      if (usd := plan.usd_by_part.get(name, 0.0)) > 0],
        }
        for plan in plans
    ]  # fmt: skip
    return {"names": names, "rows": rows, "bound": bound / most}


def spread_view(summary: Mapping[str, object], sure: Mapping[str, Any]) -> list[View]:
    """Return the quantiles of every latency with their intervals, for readers who want the figure, not the curve."""
    return [
        {"name": text.METRIC_NAMES[metric][0], "what": str(summary.get(f"{metric}_note", text.METRIC_NAMES[metric][1])),
         "values": [(text.seconds(text.latency(summary, metric, name)), text.latency_interval(sure, metric, name))
                    for name in QUANTILES]}
        for metric in METRICS
    ]  # fmt: skip


def copy_view(label: str, deployment: Deployment) -> tuple[str, str]:
    """Return a heading and the deployment's YAML."""
    return label, as_yaml(deployment)


def plan_figures(result: PlanResult) -> dict[str, figures.Figure]:
    """Return the figures of a plan: the frontier for each latency, and the best plan's run."""
    metrics: tuple[Metric, ...] = ("e2e", "ttft", "tpot")
    drawn = {
        f"frontier-{metric}": figures.frontier(
            result.plans[:ROWS], result.bound_usd_per_hour, metric, result.objectives
        )
        for metric in metrics
    }
    return drawn | run_figures(result.plans[0].outcome, result.objectives)


def run_figures(outcome: Outcome, objectives: Sequence[Objective]) -> dict[str, figures.Figure]:
    """Return the figures of one run: distributions, gaps, load over time."""
    metrics: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
    drawn = {f"spread-{metric}": figures.distribution(outcome, metric, objectives) for metric in metrics}
    if not outcome.bursts:  # else there are no gaps to draw
        drawn["spread-itl"] = figures.gaps(outcome, objectives)
    return drawn | {"load": figures.load(outcome)}


def plan_facts(result: PlanResult) -> list[tuple[str, str]]:
    """Return how the answer was found."""
    return [
        ("Candidates", text.whole(result.candidates)),
        ("Simulations", text.whole(result.simulations)),
        ("Requests simulated", text.whole(result.requests_simulated)),
        ("Found in", text.seconds(result.elapsed_s)),
        *versions(),
    ]


def versions() -> list[tuple[str, str]]:
    """Return what made the page."""
    return [("Sonde", __version__), ("Python", platform.python_version())]


def cheapest_of_each_kind(plans: Sequence[Plan]) -> list[Plan]:
    """Return the first plan on every kind of device, or mix of kinds, in their order."""
    kinds: dict[frozenset[str], Plan] = {}
    for plan in plans:
        kinds.setdefault(frozenset(pool.replica.device for pool in plan.deployment.pools), plan)
    return list(kinds.values())


def _worth_copying(plans: Sequence[Plan]) -> list[Plan]:
    """Return the best plan of every kind of device, then the frontier, then the next best: `COPIES`, by rank."""
    kinds = {plan.rank for plan in cheapest_of_each_kind(plans)}
    wanted = sorted(plans, key=lambda plan: (plan.rank not in kinds, not plan.frontier, plan.rank))
    return sorted(wanted[:COPIES], key=lambda plan: plan.rank)

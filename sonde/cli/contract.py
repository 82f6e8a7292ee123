"""The JSON that `--json` prints, as plain mappings. What each key means stands in docs/json.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sonde.plan.result import Plan, PlanResult


def of_plan(plan: Plan) -> dict[str, object]:
    """Return one plan: its deployment and price, then every figure of its summary."""
    own = {
        "rank": plan.rank,
        "label": plan.label,
        "frontier": plan.frontier,
        "deployment": plan.deployment.model_dump(mode="json"),
        "devices": plan.devices,
        "usd_per_hour": plan.usd_per_hour,
        "usd_per_hour_by_part": dict(plan.usd_by_part),
    }
    return own | dict(plan.summary)


def of_result(result: PlanResult) -> dict[str, object]:
    """Return the whole answer of `plan`."""
    return {
        "plans": [of_plan(plan) for plan in result.plans],
        "bound_usd_per_hour": result.bound_usd_per_hour,
        "bound_reason": result.bound_reason,
        "objectives": [objective._asdict() for objective in result.objectives],
        "candidates": result.candidates,
        "simulations": result.simulations,
        "requests": result.requests.n,
        "requests_simulated": result.requests_simulated,
        "rejected": [
            {"label": item.label, "constraint": item.constraint, "reason": item.reason} for item in result.rejected
        ],
        "best_failing": result.best_failing,
        "interrupted": result.interrupted,
        "elapsed_s": result.elapsed_s,
        "notes": list(result.notes),
    }

"""`plan`: from a scenario to the deployments that hold, what they cost, and why the others fail."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.catalogue.model import Model
from sonde.deployment.scenario import Scenario, WorkloadChoice
from sonde.metrics import Objective, Outcome
from sonde.plan.candidates import Candidates, Fleet, enumerate_candidates
from sonde.plan.demand import demand, given, rows
from sonde.plan.dollars import Floor, dollars_needed, kinds
from sonde.plan.doubt import SEED, Traffic, doubted, uncertain
from sonde.plan.frontier import distinct, ordered, rank
from sonde.plan.mix import mix
from sonde.plan.result import PlanResult
from sonde.plan.sweep import Evaluate, Progress, Sweep, since
from sonde.units import show
from sonde.workload.requests import Requests


def plan(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    trace: Requests | str | Path | None = None,
    progress: Progress | None = None,
    top: int = 10,
) -> PlanResult:
    """Return every deployment that holds the objectives of `scenario`, ranked by dollars, and why others do not.

    Of the cheapest plans of the `top` cheapest kinds of fleet it is also said how sure they are (`Plan.doubt`).
    `trace` (columns or a file) takes the place of the scenario's workload. `progress` is called with the
    candidates done, all candidates, and a few words. KeyboardInterrupt ends the search; what was found by then
    is returned, marked `interrupted`. Raises InputError on a scenario that cannot be used.
    """
    from sonde.catalogue.models import model as find
    from sonde.deployment.load import load_scenario, objectives

    start = time.perf_counter()
    question = load_scenario(scenario)
    long_prompts = question.workload.long_prompts if question.workload else "refuse"
    if trace is not None:
        file = None if isinstance(trace, tuple) else WorkloadChoice(trace=str(trace), long_prompts=long_prompts)
        question = question.model_copy(update={"workload": file})
    goals, model = objectives(question), find(question.model)
    asked = given(trace, model, long_prompts) if isinstance(trace, tuple) else demand(question.workload, model)
    candidates = enumerate_candidates(model, question)
    sweep = Sweep(asked.requests, goals, simulator(asked.requests, goals))
    if candidates.kept:  # compiled here, where Ctrl-C is heard at once, and not on a thread
        if progress:
            progress(0, len(candidates.kept), "loading the simulator (compiled once, about 20 s)")
        simulator(rows(asked.requests, 1), ())(((candidates.kept[0], 1),), False)
    interrupted = sweep.run(candidates.kept, progress) or mix(sweep)
    bound = dollars_needed(kinds(candidates.kept), asked.requests, goals)
    found = ordered(distinct(sweep.found))
    plans = rank(found)
    try:
        plans = doubted(plans, [item.fleet for item in found], Traffic(asked.requests, goals), top)
    except KeyboardInterrupt:
        interrupted = True
    return PlanResult(
        scenario=question,
        requests=asked.requests,
        objectives=goals,
        plans=plans,
        rejected=(*candidates.rejected, *sorted(sweep.rejected, key=lambda item: item.label)),
        bound_usd_per_hour=bound.usd_per_hour,
        bound_reason=_bound_reason(bound),
        candidates=sweep.simulated,
        requests_simulated=sweep.requests_simulated,
        simulations=sweep.simulations,
        elapsed_s=time.perf_counter() - start,
        interrupted=interrupted,
        best_failing="" if plans else _best_failing(sweep, candidates),
        notes=(*asked.notes, *_notes(model, candidates, len(sweep.found) - len(found))),
    )


def simulator(trace: Requests, goals: Sequence[Objective]) -> Evaluate:
    """Return the function that simulates `trace` on a fleet."""
    from sonde.sim.engine import run

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        engines = [(candidate.engine, replicas) for candidate, replicas in fleet]
        outcome = run(trace, engines, routing=fleet[0][0].routing, seed=SEED, until_missed=goals if stop_early else ())
        return uncertain(outcome, Traffic(trace, tuple(goals)), fleet)

    return evaluate


def _bound_reason(bound: Floor) -> str:
    if not bound.replicas:
        return "no number of replicas, of any kinds that are allowed, could hold"
    if bound.need is None:
        return "the objectives set no deadline: one replica of the cheapest kind"
    window, count = bound.need.peak, sum(bound.replicas)
    return (
        f"{window.last - window.first + 1:,} requests {since(window.start_s)} must be served by "
        f"{show(window.end_s, 'time')} ({bound.need.promise.name}): {show(bound.need.amount, 'price')} of work at the "
        f"least price of each; the cheapest whole replicas that could serve them in time ({count}) cost "
        f"{show(bound.usd_per_hour, 'price')}"
    )


def _best_failing(sweep: Sweep, candidates: Candidates) -> str:
    if sweep.best is not None:
        return f"the best that was reached: {sweep.best[1]}"
    if candidates.rejected:
        first = candidates.rejected[0]
        return f"no candidate could be built; {first.label}: {first.reason}"
    return "nothing was tried"


def _notes(model: Model, candidates: Candidates, same: int) -> list[str]:
    notes = []
    if candidates.piped:
        notes.append(
            f"No replica of {model.name} fits the devices of one node of {', '.join(candidates.piped)}: pipelines of 2 "
            "and 4 stages were tried too (search.pipeline_parallel)."
        )
    far = sorted({
        f"{item.replica.tensor_parallel * item.replica.data_parallel} {item.hardware.device.name}"
        for item in candidates.kept
        if item.replica.tensor_parallel * item.replica.data_parallel > item.hardware.device.node_devices
    })  # fmt: skip
    if far:
        notes.append(f"Stages of {', '.join(far)} leave the node: every layer waits for the network between nodes.")
    if candidates.merged:
        notes.append(f"{candidates.merged:,} candidates equal another in every number and were not tried twice.")
    if same:
        notes.append(
            f"{same:,} plans serve every request just as another does (a batch limit or token budget that is never "
            "reached) and are left out."
        )
    free = sorted({item.hardware.device.name for item in candidates.kept if item.hardware.usd_per_hour == 0})
    if free:
        notes.append(f"No price by the hour is known for {', '.join(free)}: they count as free.")
    return notes

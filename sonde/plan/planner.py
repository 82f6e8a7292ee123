"""`plan`: from a scenario to the deployments that hold, what they cost, and why the others fail."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sonde.catalogue.model import Model
from sonde.deployment.scenario import Scenario, WorkloadChoice
from sonde.errors import InputError
from sonde.metrics import ITL_UNKNOWN, Objective, Outcome
from sonde.plan.candidates import Candidates, enumerate_candidates
from sonde.plan.demand import demand, given, has_cache, rows
from sonde.plan.dollars import Floor, dollars_needed, kinds, one_kind_needed
from sonde.plan.doubt import SEED, Traffic, doubted, uncertain
from sonde.plan.fleet import Fleet, wired
from sonde.plan.frontier import distinct, ordered, rank
from sonde.plan.mix import mix
from sonde.plan.result import PlanResult
from sonde.plan.setting import Setting, settings
from sonde.plan.stages import Staged, least_dollars, split_fleets, staged
from sonde.plan.sweep import Evaluate, Found, Progress, Sweep, since
from sonde.techniques.held import check_gaps, guesses
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
    goals, model, ways = objectives(question), find(question.model), settings(question)
    travelling(goals, ways)
    check_gaps(goals, ways[-1].chosen)
    cached = has_cache(question.techniques)
    if isinstance(trace, tuple):
        asked = given(trace, model, long_prompts, cached=cached)
    else:
        asked = demand(question.workload, model, cached=cached)
    if cached and not asked.requests.block_tokens:
        raise InputError(
            "techniques.prefix-cache", "no hashed blocks",
            "needs requests whose prompts have some: a trace that has them, or `workload.hit_rate`",
            "no prompt would be known again",
        )  # fmt: skip
    sweep = Sweep(asked.requests, goals, simulator(asked.requests, goals))
    interrupted, found = _searched(sweep, model, question, ways, progress)
    plans = rank(found.ordered)
    try:
        plans = doubted(plans, [item.fleet for item in found.ordered], Traffic(asked.requests, goals), top)
    except KeyboardInterrupt:
        interrupted = True
    candidates = found.candidates
    return PlanResult(
        scenario=question,
        requests=asked.requests,
        objectives=goals,
        plans=plans,
        rejected=(*candidates.rejected, *sorted(sweep.rejected, key=lambda item: item.label)),
        bound_usd_per_hour=found.bound,
        bound_reason=found.why,
        candidates=sweep.simulated,
        requests_simulated=sweep.requests_simulated,
        simulations=sweep.simulations,
        elapsed_s=time.perf_counter() - start,
        interrupted=interrupted,
        best_failing="" if plans else _best_failing(sweep, candidates),
        notes=(
            *asked.notes,
            *_notes(model, candidates, len(sweep.found) - len(found.ordered)),
            *_remarks(ways, candidates),
        ),
    )


class _Searched(NamedTuple):
    """What a search has found: candidates, what holds in order, and dollars per hour below which nothing can."""

    candidates: Candidates
    ordered: list[Found]
    bound: float
    why: str


def _searched(
    sweep: Sweep, model: Model, question: Scenario, ways: Sequence[Setting], progress: Progress | None
) -> tuple[bool, _Searched]:
    """Search fleets of whole requests, then split ones where the scenario asks for them."""
    apart = next((way for way in ways if way.split is not None), None)
    nothing = Candidates((), (), 0)
    if progress is not None:
        progress(0, 1, "compiling candidates")
    choice = staged(model, question, apart) if apart else Staged(nothing, nothing)
    travels = any(goal.metric == "transfer" for goal in sweep.objectives)
    candidates = nothing if travels else enumerate_candidates(model, question, ways[0])
    _warm(sweep, candidates, choice, progress)
    interrupted = sweep.run(candidates.kept, progress) or mix(sweep)
    if apart is not None and not interrupted:
        interrupted = split_fleets(sweep, choice, apart, progress)
    usd, why = _bound(sweep, candidates, choice)
    known = {item.label for item in candidates.rejected}
    more = {item.label: item for some in choice for item in some.rejected if item.label not in known}
    candidates = candidates._replace(rejected=(*candidates.rejected, *more.values()))
    return interrupted, _Searched(candidates, ordered(distinct(sweep.found)), usd, why)


def _warm(sweep: Sweep, candidates: Candidates, choice: Staged, progress: Progress | None) -> None:
    """Compile the simulator here, where Ctrl-C is heard at once, and not on a thread."""
    from sonde.sim.engine import ready

    if progress:
        progress(0, len(candidates.kept), "loading the simulator (compiled once, about 20 s)")
    if candidates.kept:
        first = candidates.kept[0]
        simulator(rows(sweep.trace, 1), ())(((first, first.fewest),), False)
    if choice.prefill.kept and choice.decode.kept:
        ready("paths")


def _bound(sweep: Sweep, candidates: Candidates, choice: Staged) -> tuple[float, str]:
    """Return dollars per hour below which no fleet of the search can hold, and why."""
    kept = kinds(candidates.kept)
    if any(one.moving for one in candidates.kept):
        whole = one_kind_needed(kept, sweep.trace, sweep.objectives)
        why = f"the {sum(whole.replicas)} replicas of one kind that do the work for least, wherever it moves among them"
    else:
        whole = dollars_needed(kept, sweep.trace, sweep.objectives)
        why = _bound_reason(whole)
    apart = least_dollars(sweep, choice) if choice.prefill.kept else math.inf
    if apart < whole.usd_per_hour:
        return apart, "the least replicas that could compute all prompts in time, and the least that could answer them"
    return whole.usd_per_hour, why


def travelling(goals: Sequence[Objective], ways: Sequence[Setting]) -> None:
    """Raise InputError for an objective on a transfer where no cache travels, or where it goes on travelling."""
    goal = next((goal for goal in goals if goal.metric == "transfer"), None)
    if goal is None:
        return
    apart = next((way for way in ways if way.split is not None), None)
    if apart is None:
        raise InputError(
            "objectives.transfer", show(goal.limit_s, "time"), "needs a path with a link: techniques: [disaggregation]",
            "prompts and answers are computed in one place, and no cache is ever sent",
        )  # fmt: skip
    for one in apart.chosen:
        if one.name == "live-migration":
            raise InputError(
                "objectives.transfer", show(goal.limit_s, "time"), f"cannot stand beside {one.name}",
                "when a cache first landed is not known of requests that have moved since",
            )  # fmt: skip


def simulator(trace: Requests, goals: Sequence[Objective]) -> Evaluate:
    """Return the function that simulates `trace` on a fleet."""
    from sonde.sim.engine import run

    def evaluate(fleet: Fleet, stop_early: bool) -> Outcome:
        engines, routing = wired(fleet)
        outcome = run(trace, engines, routing=routing, seed=SEED, until_missed=goals if stop_early else ())
        outcome = replace(outcome, bursts=guesses(fleet[0][0].setting.chosen))
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


def _remarks(ways: Sequence[Setting], candidates: Candidates) -> Iterator[str]:
    """Yield what techniques change in how the answer is to be read."""
    if ways[-1].chosen:
        names = [one.name + "".join(f" ({pool})" for pool in one.parameters.pools) for one in ways[-1].chosen]
        yield f"Every candidate runs under {', '.join(names)}."
    if ways[-1].split is not None:
        yield "Fleets marked (prefill) and (decode) compute prompts and answers apart; the others serve whole requests."
    if guesses(ways[-1].chosen):
        yield f"ITL is {ITL_UNKNOWN}."
    if any(one.cached for one in candidates.kept):
        yield "The bound takes all blocks of prompts that were sent before as found in a cache, of whatever size."
    if any(one.moving for one in candidates.kept):
        yield "Requests move between replicas: fleets are of one kind, and so is the bound."


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

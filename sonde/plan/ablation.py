"""What each technique of a scenario brings: alone against none, and what is lost without it when all are together.

Every row is a search of its own on the best plan's kind of device, in its precision: parallelism and batching are
chosen anew, since a technique may pay only with others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sonde.catalogue.devices import device
from sonde.catalogue.models import model as find_model
from sonde.deployment.scenario import HardwareChoice, Scenario
from sonde.deployment.tree import Use
from sonde.errors import CannotError, InputError
from sonde.metrics import Objective
from sonde.plan.candidates import enumerate_candidates
from sonde.plan.disaggregate import highest, rate_of
from sonde.plan.explain import holds
from sonde.plan.frontier import distinct, ordered
from sonde.plan.planner import simulator
from sonde.plan.result import Plan, PlanResult
from sonde.plan.setting import settings
from sonde.plan.stages import split_fleets, staged
from sonde.plan.sweep import Found, Sweep
from sonde.techniques.compose import use_name
from sonde.techniques.table import technique
from sonde.workload.requests import Requests, scale_rate

#: (done, of, words)
Progress = Callable[[int, int, str], None]
_ALL, _NONE, _ALONE, _WITHOUT = "all", "none", "alone", "without"
_DISPATCHED = "nothing moved: what changes is where requests are sent (dispatch)"
_EQUAL = 4  # fleets of one price, of which that of the highest goodput is shown


class Brought(NamedTuple):
    """A set of techniques, and the cheapest fleet of the best plan's devices that holds under it.

    name           "none", "all", "w4a8 alone", "without w4a8"
    techniques     names of the set
    found          the fleet, of equally cheap ones that of the highest goodput; None where none holds
    reason         why none does, why it is the same where that is known, or what it is that changes figures
    goodput        requests/s up to which that fleet holds every objective, to 2 %, the same traffic made denser
    same_as        "none" where one technique alone changes no figure of that row, "all" where its absence changes none
    """

    name: str
    techniques: tuple[str, ...]
    found: Found | None
    goodput: float
    reason: str = ""
    same_as: str = ""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Return the figures of the run; none where nothing holds."""
        return self.found.summary if self.found else {}

    @property
    def replicas(self) -> int:
        """Return how many replicas hold: the fewest of their kind."""
        return sum(count for _, count in self.found.fleet) if self.found else 0

    @property
    def devices(self) -> int:
        """Return how many devices these take."""
        return sum(count * one.replica.devices for one, count in self.found.fleet) if self.found else 0

    def to_json(self) -> dict[str, object]:
        """Return the row as `plan --explain --json` prints it."""
        own: dict[str, object] = {
            "name": self.name, "techniques": list(self.techniques), "reason": self.reason, "same_as": self.same_as,
        }  # fmt: skip
        if self.found is None:
            return own | {"label": "", "replicas": None, "devices": None, "usd_per_hour": None}
        figures = {key: self.summary[key] for key in ("ttft_s", "tpot_s", "e2e_s", "attainment", "joules_per_token")}
        return own | {
            "label": self.found.label, "replicas": self.replicas, "devices": self.devices,
            "usd_per_hour": self.found.usd_per_hour, "goodput_requests_per_s": self.goodput,
            "requests_per_usd": self.goodput * 3600 / self.found.usd_per_hour if self.found.usd_per_hour else None,
        } | figures  # fmt: skip


def brought(result: PlanResult, progress: Progress | None = None) -> tuple[Brought, ...]:
    """Return what each technique of the scenario brings on its workload and the best plan's devices.

    Rows: none, each alone, all together, each removed in turn (of one technique: none and it alone). Objectives on a
    transfer count where caches travel. KeyboardInterrupt ends it with the rows found by then. Raises InputError where
    the scenario names no technique, CannotError where no plan holds.
    """
    uses = named(result.scenario)
    if not result.plans:
        raise CannotError("no plan holds, so there is no best hardware on which to tell techniques apart")
    question = _narrowed(result.scenario, result.plans[0])
    rows = _sets(uses)
    found = []
    for k, (name, some) in enumerate(rows):
        if progress is not None:
            progress(k, len(rows), f"techniques: {name}")
        asked = question.model_copy(update={"techniques": some})
        try:
            found.append(_row(name, asked, result.requests, result.objectives))
        except KeyboardInterrupt:
            break
    return _told(found)


def named(scenario: Scenario) -> tuple[Use, ...]:
    """Return the techniques of a scenario. Raises InputError where it names none."""
    if not scenario.techniques:
        raise InputError(
            "techniques", [], "needs at least one, such as [chunked-prefill]", "there is nothing to tell apart"
        )
    return scenario.techniques


def _sets(uses: Sequence[Use]) -> list[tuple[str, tuple[Use, ...]]]:
    sets: list[tuple[str, tuple[Use, ...]]] = [(_NONE, ())]
    sets += [(f"{use_name(use)} {_ALONE}", (use,)) for use in uses]
    if len(uses) > 1:
        sets.append((_ALL, tuple(uses)))
    if len(uses) > 2:  # of two, one without the other is one alone
        sets += [(f"{_WITHOUT} {use_name(use)}", tuple(other for other in uses if other != use)) for use in uses]
    return sets


def _told(rows: Sequence[Brought]) -> tuple[Brought, ...]:
    """Return the rows, those that a technique or its absence does not change marked so, with the reason."""
    by = {row.name: row for row in rows}
    found = []
    for row in rows:
        name = row.name.removesuffix(f" {_ALONE}").removeprefix(f"{_WITHOUT} ")
        base = by.get(_NONE if row.name.endswith(_ALONE) else _ALL)
        if name == row.name or base is None or not _same(row, base):
            idle = row.name == f"live-migration {_ALONE}" and row.summary.get("migrations") == 0
            found.append(row._replace(reason=_DISPATCHED) if idle and not row.summary["given_up"] else row)
            continue
        less, more = (base, row) if base.name == _NONE else (row, base)
        found.append(row._replace(same_as=base.name, reason=_why(name, less, more)))
    return tuple(found)


def _same(one: Brought, two: Brought) -> bool:
    """Return whether no figure of two rows differs."""
    if one.found is None or two.found is None:
        return False
    pairs = [(one.goodput, two.goodput), (one.found.usd_per_hour, two.found.usd_per_hour)]
    pairs += [(float(one.summary[key]), float(two.summary[key])) for key in ("joules_per_token", "attainment")]
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        pairs += zip(one.summary[metric].values(), two.summary[metric].values(), strict=True)
    return all(math.isclose(left, right, rel_tol=1e-9) for left, right in pairs)


def _why(name: str, less: Brought, more: Brought) -> str:
    """Return why a technique changes nothing between a row without it and one with it; "" where that is not known."""
    peak = f"{100 * float(more.summary['peak_kv']):.2g} % of the memory for caches was in use at most"
    if name in ("live-migration", "distributed-attention") and more.replicas == 1:
        return "there is one replica"
    if name == "live-migration":
        return f"no replica ran short while another had room ({peak})"
    if name == "distributed-attention":
        return f"no replica ran short ({peak})"
    if name == "prefix-cache":
        return "no prompt began as one that was still kept"
    if name == "power-cap":
        return "nothing draws as much as the cap allows"
    with_, without = ([one.replica for one, _ in row.found.fleet] if row.found else [] for row in (more, less))
    return "the cheapest fleet does so without it" if with_ == without and technique(name).replica else ""


def _narrowed(scenario: Scenario, best: Plan) -> Scenario:
    """Return the scenario on the devices of the best plan's first pool, in the precision of its weights and cache."""
    pool = best.deployment.pools[0]

    def is_it(choice: HardwareChoice) -> bool:
        return device(choice.device).reference == pool.replica.device and choice.purchase == pool.purchase

    kept = tuple(choice for choice in scenario.hardware if is_it(choice))
    search = scenario.search.model_copy(
        update={"weights": (pool.replica.weights,), "kv_cache": (pool.replica.kv_cache,)}
    )
    return scenario.model_copy(update={"hardware": kept, "search": search})


def _row(name: str, question: Scenario, requests: Requests, objectives: Sequence[Objective]) -> Brought:
    names = tuple(use_name(use) for use in question.techniques)
    try:
        ways = settings(_without_stages(question))
        travels = ways[-1].split is not None
        goals = tuple(goal for goal in objectives if travels or goal.metric != "transfer")
        sweep = Sweep(requests, goals, simulator(requests, goals))
        model = find_model(question.model)
        if travels:
            stopped = split_fleets(sweep, staged(model, question, ways[-1]), ways[-1])
            refused = sweep.rejected
        else:
            candidates = enumerate_candidates(model, question, ways[0])
            stopped = sweep.run(candidates.kept)
            refused = [*candidates.rejected, *sweep.rejected]
    except InputError as error:
        return Brought(name, names, None, 0.0, str(error))
    if stopped:
        raise KeyboardInterrupt
    if not sweep.found:
        why = sweep.best[1] if sweep.best else refused[0].reason if refused else "nothing could be tried"
        return Brought(name, names, None, 0.0, why)
    fleets = ordered(distinct(sweep.found))
    equal = [item for item in fleets if item.usd_per_hour <= fleets[0].usd_per_hour * (1 + 1e-9)][:_EQUAL]
    goodput, _, best = max((_goodput(item, requests, goals), -k, item) for k, item in enumerate(equal))
    return Brought(name, names, best, goodput)


def _without_stages(question: Scenario) -> Scenario:
    """Return the question without techniques for one stage where there are no stages."""
    names = {use_name(use) for use in question.techniques}
    if "disaggregation" in names:
        return question
    kept = tuple(use for use in question.techniques if not _of_stage(use))
    return question.model_copy(update={"techniques": kept})


def _of_stage(use: Use) -> bool:
    return not isinstance(use, str) and bool(next(iter(use.values())).get("pools"))


def _goodput(found: Found, requests: Requests, goals: tuple[Objective, ...]) -> float:
    """Return the requests/s up to which a fleet holds when the same requests come faster."""
    now = rate_of(requests)

    def at(rate: float) -> bool:
        denser = scale_rate(requests, rate / now)
        return holds(simulator(denser, goals)(found.fleet, True), goals)

    return highest(at, now)

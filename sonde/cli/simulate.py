"""`sonde simulate`: what happens to a workload on one deployment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sonde.cli.output import emit, import_beside, json_option, note, prepare, table
from sonde.errors import InputError
from sonde.units import show

if TYPE_CHECKING:
    from sonde.deployment.tree import Deployment
    from sonde.metrics import Objective


@click.command()
@click.argument("deployment", type=click.Path(path_type=Path))
@click.option("--trace", type=click.Path(path_type=Path), help="Requests from a trace file, of any format Sonde reads.")
@click.option("--profile", help="Requests drawn from a profile, by name or file.")
@click.option("--rate", help='Mean rate, such as "8/s"; the profile\'s own where absent. Speeds a trace up or down.')
@click.option("--duration", help='Length of the traffic, such as "10 min"; of a trace, the part that is used.')
@click.option("--clients", type=click.IntRange(1), help="Closed loop: so many clients, each waiting for its answer.")
@click.option(
    "--objective", multiple=True, help='A promise, such as "ttft=500ms" (p99) or "tpot.p90=50ms"; may be repeated.'
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of whatever is drawn.")
@json_option
def simulate(
    deployment: Path,
    trace: Path | None,
    profile: str | None,
    rate: str | None,
    duration: str | None,
    clients: int | None,
    objective: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Simulate DEPLOYMENT, a YAML file, exactly under a trace or a profile's traffic.

    Prints latencies, rates, energy and dollars. The exit code is 0 whether or not the objectives are met.
    """
    from sonde.catalogue.models import model
    from sonde.deployment.load import load, located
    from sonde.deployment.paths import check_objectives
    from sonde.deployment.scenario import WorkloadChoice
    from sonde.plan.demand import demand, has_cache
    from sonde.sim.simulate import fleet
    from sonde.sim.simulate import simulate as run
    from sonde.techniques.compose import checked, chosen
    from sonde.techniques.held import check_gaps

    if (trace is None) == (profile is None):
        given = "neither" if trace is None else "both"
        raise InputError("--trace, --profile", given, "needs exactly one of them", "it is unclear what to simulate")
    import_beside(deployment)
    promised = objectives(objective)
    tree = load(deployment)
    with located(deployment):
        arranged, warnings = checked(tree)
        check_objectives(arranged, promised)
        check_gaps(promised, chosen(tree.techniques))
    for text in warnings:
        note(text)
    file = None if trace is None else str(trace)
    asked = WorkloadChoice(trace=file, profile=profile, rate=rate, duration=duration, seed=seed)
    cached = tree.cache is not None or has_cache(tree.techniques)
    requests, notes = demand(asked, model(tree.pools[0].replica.model), cached=cached)
    for text in notes:
        note(text)
    prepare(closed=clients is not None)
    with located(deployment):
        outcome = run(tree, requests, clients=clients, seed=seed)
    if as_json:
        emit(outcome.summary(promised) | {"interval": outcome.intervals(promised)})
    else:
        from sonde.cli.output import console
        from sonde.report.tables import outcome_table
        from sonde.report.text import fleet_line

        budgets = [engine.token_budget for engine, _ in fleet(arranged)]
        console().print(fleet_line(arranged, budgets), soft_wrap=True, highlight=False, markup=False)
        console().print(outcome_table(outcome, promised))
        _by_priority(outcome.priorities())
        if outcome.travel is not None:
            _moved(outcome.summary())
        for text in _unused(arranged, outcome.summary()):
            note(text)


def _unused(deployment: Deployment, summary: Mapping[str, Any]) -> Iterator[str]:
    """Return in words what a deployment has and the run made no use of, and requests that it had no room for."""
    peak = f"{100 * summary['peak_kv']:.2g} % of the memory for caches was in use at most"
    if summary["refused"]:
        count = f"{summary['refused']:,} request{' was' if summary['refused'] == 1 else 's were'} refused"
        yield f"{count}: no replica has the memory for caches that long"
    if deployment.migration is not None and not summary["migrations"] + summary["given_up"]:
        yield f"live migration moved nothing: no replica ran short while another had room ({peak})"
    if deployment.lending is not None and not summary["loans"]:
        yield f"distributed attention lent nothing: no replica ran short ({peak})"
    if deployment.cache is not None and not summary["cached_share"]:
        yield "the prefix cache found nothing: no prompt began as one that was still kept"


def _by_priority(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print latencies of each class of requests, where there are several."""
    if len(rows) > 1:
        cells = [
            [str(row["priority"]), f"{row['requests']:,}", f"{row['preemptions']:,}"]
            + [show(row[key][name], "time") for key in ("ttft_s", "tpot_s", "e2e_s") for name in ("p50", "p99")]
            for row in rows
        ]
        heads = [f"{name} {metric}" for metric in ("TTFT", "TPOT", "e2e") for name in ("p50", "p99")]
        table("by priority, the most urgent first", ("priority", "requests", "preemptions", *heads), cells)


def _moved(summary: Mapping[str, Any]) -> None:
    """Print what prefix caches saved, and what went over links."""
    tiers = summary["tiers"]
    links = {name: link for name, link in summary["links"].items() if name not in tiers}
    if tiers:
        rows = [
            [name, f"{100 * tier['cached_share']:.1f} %", show(tier["bytes"], "bytes"), f"{tier['evicted']:,}"]
            for name, tier in tiers.items()
        ]
        title = f"{100 * summary['cached_share']:.1f} % of prompt tokens were cached"
        table(title, ("tier", "of prompt tokens", "fetched", "blocks evicted"), rows)
    if links:
        rows = [[name, f"{link['transfers']:,}", show(link["bytes"], "bytes")] for name, link in links.items()]
        table("", ("link", "transfers", "carried"), rows)
    if summary["loans"]:
        note(f"{summary['loans']:,} loans of memory between replicas")
    if summary["migrations"] or summary["given_up"]:
        mean, most = (show(summary["paused_s"][key], "time") for key in ("mean", "max"))
        moved = f"{summary['migrations']:,} live migrations, {summary['given_up']:,} given up"
        note(f"{moved}; a request was in no batch for {mean} a migration on average, and for {most} in all at most")


def objectives(texts: tuple[str, ...]) -> tuple[Objective, ...]:
    """Return promises given as "metric=limit" or "metric.pNN=limit". Raises InputError for any other text."""
    from sonde.deployment.load import objectives as read

    tree: dict[str, dict[str, str | float]] = {}
    for text in texts:
        left, equals, limit = text.partition("=")
        metric, _, quantile = left.strip().partition(".")
        if not equals or not metric or not limit.strip():
            raise InputError("--objective", text, 'must look like "ttft=500ms" or "tpot.p90=50ms"')
        limits, quantile = tree.setdefault(metric, {}), quantile or "p99"
        if quantile in limits:
            raise InputError(
                "--objective", text, f"{quantile} of {metric} is there twice", "one of the two limits would be lost"
            )
        limits[quantile] = limit.strip()
    return read(tree) if tree else ()

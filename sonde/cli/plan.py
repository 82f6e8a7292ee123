"""`sonde plan`: the cheapest deployments that keep their promises, and why the others do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sonde.cli.output import console, emit, import_beside, json_option, note, progress

if TYPE_CHECKING:
    from sonde.plan.result import PlanResult


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--trace", type=click.Path(path_type=Path), help="Plan for this trace in place of the scenario's workload."
)
@click.option(
    "--report", default="report.html", show_default=True, type=click.Path(path_type=Path), help="Where the report goes."
)
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option(
    "--top",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Most rows in the tables, which say how sure they are.",
)
@click.option("--explain", is_flag=True, help="Say what each technique of SCENARIO brings, alone and with the others.")
@json_option
def plan(
    scenario: Path, trace: Path | None, report: Path, no_report: bool, top: int, explain: bool, as_json: bool
) -> None:
    """Find the cheapest deployments that hold the objectives of SCENARIO.

    Every sensible deployment on the hardware that SCENARIO allows is simulated exactly under its workload. Prints
    the plans that hold, the cheapest first, a price that no scheduler could go below, and the constraint that binds
    the others. Where nothing holds, the best that was reached is said and the exit code is 1. Ctrl-C ends the search
    and keeps what was found.
    """
    from sonde.deployment.load import load_scenario, located
    from sonde.plan.ablation import brought, named
    from sonde.plan.planner import plan as search

    import_beside(scenario)
    with located(scenario), progress() as tell:
        if explain:
            named(load_scenario(scenario))
        result = search(scenario, trace=trace, progress=tell, top=top)
        if explain and result.plans and not result.interrupted:
            result = replace(result, brought=brought(result, tell))
    if as_json:
        emit(result.to_json())
    else:
        _show(result, top, reported=not no_report)
    if not no_report:
        from sonde.report.page import write_page

        note(f"report: {write_page(result, report)}")
    _end(result)


def _show(result: PlanResult, top: int, *, reported: bool) -> None:
    from sonde.report import tables

    screen = console()
    if result.plans:
        screen.print(tables.plan_table(result, top, reported=reported))
    else:
        for text in result.notes:
            note(text)
    if result.brought:
        screen.print(tables.brought_table(result.brought, result.objectives))
    screen.print(tables.rejection_table(result, top, reported=reported))


def _end(result: PlanResult) -> None:
    if result.interrupted:
        note("sonde: interrupted; this is what had been found")
        raise click.exceptions.Exit(130)
    if not result.plans:
        note(f"sonde: no deployment on the hardware allowed holds every objective; {result.best_failing}")
        raise click.exceptions.Exit(1)

"""`sonde bench`: how fast Sonde is on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from sonde.cli.output import emit, json_option, progress, table


@click.command()
@click.option("--trace", type=click.Path(path_type=Path), help="A trace file to run on in place of generated traffic.")
@click.option("--full", is_flag=True, help="Also 10 million requests end to end, and a cold start that compiles anew.")
@click.option("--only", multiple=True, metavar="NAME", help="Run this row only; may be repeated.")
@json_option
def bench(trace: Path | None, full: bool, only: tuple[str, ...], as_json: bool) -> None:
    """Measure how fast Sonde is on this machine: simulation, planning, start-up.

    Prints requests and engine steps per second, and peak memory, a row for each case. Nothing else
    should run at the same time.
    """
    from sonde.bench import measure

    with progress() as tell:
        rows = measure(trace, full=full, only=only, progress=tell)
    if as_json:
        emit([row._asdict() for row in rows])
    else:
        table(
            "",
            ("case", "candidates", "requests", "requests/s", "steps/s", "peak", "CPU", "wall"),
            [row.cells() for row in rows],
        )

"""`sonde calibrate fit` and `judge`: efficiency curves from operator measurements, and how far off they are."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from sonde.cli.output import emit, json_option, note, table
from sonde.errors import InputError

FOLDER = click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
OPERATOR = click.option("--operator", "operators", multiple=True, metavar="CLASS",
                        help="Only this class of operators, such as gemm (may be repeated).")  # fmt: skip


@click.command()
@FOLDER
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write curves.csv into this folder.")
@OPERATOR
@json_option
def fit(folder: Path, out: Path | None, operators: tuple[str, ...], as_json: bool) -> None:
    """Fit efficiency curves to the operator measurements in FOLDER, and write them as catalogue rows.

    FOLDER holds operators/SYSTEM/OP/ENGINE/VERSION/*.parquet (as ai-dynamo/aiconfigurator publishes them), or
    open_loop/GPU/MODEL/operators, or both. The same files give the same curves.
    """
    _known(operators)
    from sonde.calibrate.fit import fit_operators, write

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    rows = fit_operators(folder, operators=operators)
    if as_json:
        emit([row.record(today) for row in rows])
    else:
        lines = [
            (row.operator, row.format or "-", row.device or "all", row.engine or "all", f"{row.points:,}",
             f"{100 * row.median_error:.1f} %", ", ".join(f"{name} {value:.3g}" for name, value in row.values.items()))
            for row in rows
        ]  # fmt: skip
        heads = ("operator", "format", "device", "engine", "points", "median error", "constants")
        table(f"{len(rows)} curves", heads, lines, left=4)
    if out is not None:
        note(f"wrote {write(rows, out, today)}")


@click.command()
@FOLDER
@OPERATOR
@click.option("--leave-out/--no-leave-out", default=True, help="Also fit every device's curves to the others alone.")
@json_option
def judge(folder: Path, operators: tuple[str, ...], leave_out: bool, as_json: bool) -> None:
    """Say how far the catalogue's curves are off the operator measurements in FOLDER.

    Beside them stand one share of the peak for all devices and sizes, and curves fitted to other devices alone.
    """
    _known(operators)
    from sonde.calibrate.fit import grouped
    from sonde.calibrate.judge import judge as judged

    rows = list(judged(grouped(folder, operators), leave_out=leave_out))
    if not rows:
        raise InputError("FOLDER", str(folder), "holds no operator measurements of these classes")
    if as_json:
        emit([row._asdict() for row in rows])
        return
    heads = ("operator", "format", "device", "points", "one share", "curves", "device left out")
    lines = [
        (row.operator, row.format or "-", row.device, f"{row.points:,}", *map(_errors, row[4:]))
        for row in rows
    ]  # fmt: skip
    table("absolute error, median / mean", heads, lines, left=3)


def _errors(pair: tuple[float, float]) -> str:
    return "-" if pair[0] != pair[0] else f"{100 * pair[0]:.1f} / {100 * pair[1]:.1f} %"


def _known(operators: tuple[str, ...]) -> None:
    from sonde.catalogue.curves import CLASSES
    from sonde.errors import unknown

    for name in operators:
        if name not in CLASSES:
            raise unknown("--operator", name, CLASSES, "class of operators")

"""`sonde calibrate fit` and `judge`: efficiency curves and power from measurements, and how far off they are."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from sonde.cli.output import emit, json_option, note, table
from sonde.errors import InputError

if TYPE_CHECKING:
    from sonde.calibrate.fit import Row
    from sonde.calibrate.power import Judged, JudgedCap
    from sonde.calibrate.power import Row as PowerRow

#: what stands for powers among the classes of operators
POWER = "power"

FOLDER = click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
OPERATOR = click.option("--operator", "operators", multiple=True, metavar="CLASS",
                        help="Only this class of operators, such as gemm, or power (may be repeated).")  # fmt: skip


@click.command()
@FOLDER
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write curves.csv and power.csv into this folder."
)
@OPERATOR
@json_option
def fit(folder: Path, out: Path | None, operators: tuple[str, ...], as_json: bool) -> None:
    """Fit efficiency curves, and what devices draw, to the measurements in FOLDER; write them as catalogue rows.

    FOLDER holds operators/SYSTEM/OP/ENGINE/VERSION/*.parquet (as ai-dynamo/aiconfigurator publishes them),
    open_loop/GPU/MODEL/operators, or steps/*.csv with powers (as Mutinifni/splitwise-sim does), or several of these.
    The same files give the same rows.
    """
    _known(operators)
    from sonde.calibrate.fit import fit_operators, write
    from sonde.calibrate.power import fit_power, measured, write_power

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    power = fit_power(folder) if _of_power(operators) and measured(folder) else []
    classes = tuple(name for name in operators if name != POWER)
    rows = fit_operators(folder, operators=classes) if classes or _has_operators(folder, operators, power) else []
    if not rows and not power:
        raise InputError("FOLDER", str(folder), "holds no runs with a measured power")
    if as_json:
        emit({"curves": [row.record(today) for row in rows], "power": [row.record(today) for row in power]})
    else:
        _print_fit(rows, power)
    if out is not None:
        for written in ([write(rows, out, today)] if rows else []) + (
            [write_power(power, out, today)] if power else []
        ):
            note(f"wrote {written}")


def _print_fit(rows: list[Row], power: list[PowerRow]) -> None:
    if rows:
        lines = [
            (row.operator, row.format or "-", row.device or "all", row.engine or "all", f"{row.points:,}",
             f"{100 * row.median_error:.1f} %", ", ".join(f"{name} {value:.3g}" for name, value in row.values.items()))
            for row in rows
        ]  # fmt: skip
        heads = ("operator", "format", "device", "engine", "points", "median error", "constants")
        table(f"{len(rows)} curves", heads, lines, left=4)
    if power:
        found = [(row.name or "all", row.attribute, f"{row.value:.3g}", str(row.points)) for row in power]
        table("power", ("of", "constant", "value", "runs"), found, left=2)


@click.command()
@FOLDER
@OPERATOR
@click.option("--leave-out/--no-leave-out", default=True, help="Also fit every device's curves to the others alone.")
@json_option
def judge(folder: Path, operators: tuple[str, ...], leave_out: bool, as_json: bool) -> None:
    """Say how far the catalogue's curves and powers are off the measurements in FOLDER.

    Beside them stand one share of the peak for all devices and sizes, and curves fitted to other devices alone; of
    energy, the shares that GenZ publishes, and those fitted to other models and degrees of parallelism alone.
    """
    _known(operators)
    from sonde.calibrate.fit import grouped
    from sonde.calibrate.judge import judge as judged
    from sonde.calibrate.power import judge_caps, judge_power

    classes = tuple(name for name in operators if name != POWER)
    rows = list(judged(grouped(folder, classes), leave_out=leave_out)) if classes or not operators else []
    power, caps = (judge_power(folder), judge_caps(folder)) if _of_power(operators) else ([], [])
    if not rows and not power and not caps:
        raise InputError("FOLDER", str(folder), "holds no measurements of these classes")
    if as_json:
        emit({"curves": _dicts(rows), "power": _dicts(power), "power_caps": _dicts(caps)})
        return
    if rows:
        heads = ("operator", "format", "device", "points", "one share", "curves", "device left out")
        cells = [
            (row.operator, row.format or "-", row.device, f"{row.points:,}", *map(_errors, row[4:])) for row in rows
        ]
        table("absolute error, median / mean", heads, cells, left=3)
    _print_power(power, caps)


def _print_power(power: list[Judged], caps: list[JudgedCap]) -> None:
    if power:
        heads = ("model", "device", "ranks", "runs", "GenZ's shares", "catalogue", "left out", "left out, no pauses")
        lines = [(row.model, row.device, str(row.ranks or "-"), str(row.runs), *map(_errors, row[4:])) for row in power]
        table("energy in a known time: absolute error, median / mean", heads, lines, left=2)
    if caps:
        slower = [
            (row.model, row.device, str(row.ranks), row.power_cap, str(row.runs), *map(_slower, row[5:]))
            for row in caps
        ]
        head = ("model", "device", "ranks", "cap", "runs", "prompts", "tokens")
        table("times as long under a cap on power: measured (predicted)", head, slower, left=2)


def _dicts(rows: Sequence[NamedTuple]) -> list[dict[str, object]]:
    return [row._asdict() for row in rows]


def _slower(ends: tuple[float, float, float]) -> str:
    return f"{ends[0]:.2f} ({ends[1]:.2f} to {ends[2]:.2f})"


def _errors(pair: tuple[float, float]) -> str:
    return "-" if pair[0] != pair[0] else f"{100 * pair[0]:.1f} / {100 * pair[1]:.1f} %"


def _of_power(operators: tuple[str, ...]) -> bool:
    return not operators or POWER in operators


def _has_operators(folder: Path, operators: tuple[str, ...], power: list[PowerRow]) -> bool:
    """Return whether curves are asked for and may be there: a folder of runs alone is enough where powers are found."""
    return not operators and (not power or (folder / "operators").is_dir() or (folder / "open_loop").is_dir())


def _known(operators: tuple[str, ...]) -> None:
    from sonde.catalogue.curves import CLASSES
    from sonde.errors import unknown

    for name in operators:
        if name not in CLASSES and name != POWER:
            raise unknown("--operator", name, (*CLASSES, POWER), "class of operators")

"""`sonde validate`: predictions beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sonde.cli.output import emit, json_option, note, progress, table
from sonde.errors import CannotError, InputError

if TYPE_CHECKING:
    from sonde.validate.score import Errors

#: (system, model) pairs without which nothing can be left out and predicted from the rest
LEAST_PAIRS = 3


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV with one prediction per row, in order."
)
@click.option(
    "--cross-validate", is_flag=True, help="Fit the engines' constants anew without the rows that are judged."
)
@click.option("--operators", is_flag=True, help="PATH holds measured operators or messages.")
@json_option
def validate(path: Path, out: Path | None, cross_validate: bool, operators: bool, as_json: bool) -> None:
    """Predict what was measured at PATH, and say how far the predictions are off.

    PATH is a CSV of results at fixed concurrency, or a folder with the requests of a real engine
    (requests.jsonl, meta.json); with --operators a folder of measured operators (SYSTEM/OP/ENGINE/VERSION/*.parquet,
    GPU/MODEL/operators) or messages (h100_dgx_all_reduce.csv).
    """
    if operators:
        if cross_validate:
            raise InputError("--cross-validate", "--operators", "cannot be together: see `sonde calibrate judge`")
        _operators(path, out, as_json)
    elif path.is_dir():
        if cross_validate:
            raise InputError("--cross-validate", str(path), "needs a CSV of results at fixed concurrency")
        _open_loop(path, out, as_json)
    elif cross_validate:
        _crossed(path, as_json)
    else:
        _closed_loop(path, out, as_json)


def _closed_loop(path: Path, out: Path | None, as_json: bool) -> None:
    from sonde.validate.predict import predict_all
    from sonde.validate.rows import Fault, read_rows
    from sonde.validate.score import pairs
    from sonde.validate.score import table as score
    from sonde.validate.write import write

    measured = read_rows(path)
    for text in measured.notes:
        note(text)
    with progress() as tell:
        found = predict_all(measured.entries, tell)
    faults = [entry for entry in found if isinstance(entry, Fault)]
    for fault in faults:
        note(f"{path}:{fault.line}: {fault.id}: not predicted: {fault.reason}")
    if out is not None:
        write(out, found)
    both = pairs(measured.entries, found)
    groups = score(both)
    if as_json:
        head = {"rows": len(found), "predicted": len(both), "faults": [fault._asdict() for fault in faults]}
        emit({**head, "errors": _plain(groups)})
    else:
        click.echo(f"{len(both):,} of {len(found):,} rows predicted")
        if any(part.rows for group in list(groups["overall"].values())[:1] for part in group.values()):
            print_groups(groups)
    if len(faults) == len(found):
        raise CannotError(f"{path}: none of its {len(found):,} rows could be predicted")


def _crossed(path: Path, as_json: bool) -> None:
    from sonde.validate.cross import GROUPS, cross_validate, judged
    from sonde.validate.features import features
    from sonde.validate.rows import read_rows
    from sonde.validate.score import Pair
    from sonde.validate.score import table as score

    measured = read_rows(path)
    rows = [row for row in measured.rows if row.ttft_ms > 0 and row.tpot_ms > 0]
    if len({row.model + row.system for row in rows}) < LEAST_PAIRS:
        raise InputError("--cross-validate", str(path), f"needs measured rows of at least {LEAST_PAIRS} pairs")
    found = features(rows)
    judged_rows = [chosen.row for chosen in found.settings]
    result = {}
    for by in GROUPS:
        predicted = judged(found, cross_validate(found, by))
        result[by] = score([Pair(row, part) for row, part in zip(judged_rows, predicted, strict=True)])
    if as_json:
        emit({by: _plain(groups) for by, groups in result.items()})
        return
    for by, groups in result.items():
        click.echo(f"whole {by} left out of the fit")
        print_groups({title: groups[title] for title in ("overall", "system", "engine")})


def _operators(path: Path, out: Path | None, as_json: bool) -> None:
    from sonde.calibrate.accuracy import Compared, Unread, compared, scores, write

    both = list(compared(path))
    found = [part for part in both if isinstance(part, Compared)]
    faults = [part for part in both if isinstance(part, Unread)]
    for fault in faults:
        note(f"{fault.file}: not predicted: {fault.reason}")
    if not found:
        raise CannotError(f"{path}: none of its {len(faults):,} files could be predicted")
    if out is not None:
        write(out, found)
    groups = scores(found)
    if as_json:
        plain = {
            title: {name: {"time": part._asdict()} for name, part in group.items()} for title, group in groups.items()
        }
        emit({"points": sum(len(part.measured) for part in found), "faults": [part._asdict() for part in faults],
              "errors": plain})  # fmt: skip
        return
    click.echo(f"{sum(len(part.measured) for part in found):,} points predicted")
    for title, group in groups.items():
        lines = [
            [name, f"{part.points:,}", f"{100 * part.median:.1f}", f"{100 * part.mean:.1f}", f"{100 * part.bias:+.1f}"]
            for name, part in group.items()
        ]
        table(title, ["", "points", "median %", "mean %", "bias %"], lines)


def _plain(groups: dict[str, dict[str, dict[str, Errors]]]) -> dict[str, object]:
    return {
        title: {name: {metric: part._asdict() for metric, part in row.items()} for name, row in group.items()}
        for title, group in groups.items()
    }


def print_groups(groups: dict[str, dict[str, dict[str, Errors]]]) -> None:
    """Print errors in percent: one table a grouping."""
    heads = ["", "rows"]
    for metric in ("TPOT", "TTFT"):
        heads += [f"{metric} median %", "mean %", "bias %", "in 80 %"]
    for title, group in groups.items():
        lines = []
        for name, row in group.items():
            cells = [name, f"{max(part.rows for part in row.values()):,}"]
            for metric in ("tpot", "ttft"):
                part = row[metric]
                cells += [f"{100 * value:.1f}" for value in part[1:3]]
                cells += [f"{100 * part.bias:+.1f}", f"{100 * part.coverage:.0f}"]
            lines.append(cells)
        table(title, heads, lines)


def _open_loop(path: Path, out: Path | None, as_json: bool) -> None:
    from sonde.validate.open_loop import compare, read_run, replay, replay_ends
    from sonde.validate.write import write_requests

    measured = read_run(path)
    predicted = replay(measured)
    found = compare(measured, predicted, replay_ends(measured))
    if out is not None:
        write_requests(out, measured.ids, predicted)
    if as_json:
        emit({"requests": measured.requests.n, "figures": [part._asdict() for part in found]})
        return
    click.echo(f"{measured.requests.n:,} requests of {measured.model.name} on {measured.device.name}")
    lines = [
        [f"{part.statistic} {part.metric.upper()}", f"{part.measured_ms:,.1f}", f"{part.predicted_ms:,.1f}",
         f"{100 * part.error:+.1f}", f"{part.lo_ms:,.1f}", f"{part.hi_ms:,.1f}"]
        for part in found
    ]  # fmt: skip
    table("", ["", "measured ms", "predicted ms", "error %", "80 % from", "to"], lines)

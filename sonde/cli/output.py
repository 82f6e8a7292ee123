"""What every verb prints with: JSON that is only JSON, tables that fit the terminal, a progress bar on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import click

from sonde import units

if TYPE_CHECKING:
    from rich.console import Console

PIPED = 1000  # columns of a table that goes to a file or another program

Progress = Callable[[int, int, str], None]

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and no table.")


def plain(value: object) -> Any:
    """Return `value` in JSON's own types: columns as lists, paths as text, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    return str(value)


def emit(value: object) -> None:
    """Print `value` as indented JSON on stdout."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """Print a line for the reader on stderr."""
    click.echo(text, err=True)


@contextmanager
def patience(text: str, after_s: float = 1.5) -> Iterator[None]:
    """Print `text` on stderr where what is done inside takes longer than `after_s`."""
    timer = Timer(after_s, note, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def prepare(*, closed: bool) -> None:
    """Load the simulator's machine code, or make it once, and say so: it takes a while."""
    from sonde.sim.engine import ready

    with patience("compiling the simulator, once on this machine (about 20 s)"):
        ready(closed)


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or as COLUMNS says; where there is neither, too wide to fold."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(stderr=stderr, width=None if known else PIPED, highlight=False, soft_wrap=False)


def import_beside(path: Path) -> None:
    """Let policies of the user's own, `module:function`, be found in the folder of a scenario or deployment too."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows under their heads on stdout; the first `left` columns are text, the others numbers."""
    from rich import box
    from rich.table import Table

    sheet = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, head in enumerate(heads):
        sheet.add_column(head, justify="left" if column < left else "right", overflow="fold", no_wrap=not column)
    for row in rows:
        sheet.add_row(*row)
    console().print(sheet)


#: how a key says what its number is in; an inner key has the unit of the key that it stands under
_UNITS = (
    (re.compile(r"bytes"), "bytes"), (re.compile(r"^bandwidth$"), "bandwidth"), (re.compile(r"^flops$"), "compute"),
    (re.compile(r"parameters|flops_per_token|^elements"), "count"), (re.compile(r"usd_per_hour"), "price"),
    (re.compile(r"_w$"), "power"), (re.compile(r"_per_s$"), "rate"), (re.compile(r"_s$"), "time"),
)  # fmt: skip


def fields(title: str, row: Mapping[str, object]) -> None:
    """Print a mapping on stdout, a line for every leaf, inner keys indented under their own, units by their names."""
    click.echo(title)
    flat = list(_leaves(row, "  ", ""))
    width = max((len(key) for key, _ in flat), default=0)
    for key, value in flat:
        click.echo(f"{key:<{width}}  {value}".rstrip())


def _leaves(row: Mapping[str, object], indent: str, unit: str) -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        items = plain(value)
        own = next((name for pattern, name in _UNITS if pattern.search(key)), unit)
        if isinstance(items, list) and items and isinstance(items[0], dict):
            items = {str(item.get("name", i)): item for i, item in enumerate(items, 1)}
        if isinstance(items, dict):
            yield f"{indent}{key}", ""
            yield from _leaves(items, indent + "  ", own)
        else:
            yield f"{indent}{key}", _leaf(items, own)


def _leaf(value: object, unit: str) -> str:
    if isinstance(value, list) and len(value) > 12 and all(isinstance(item, (int, float)) for item in value):
        return _curve(value)
    if isinstance(value, list):
        return ", ".join(_leaf(item, unit) for item in value) or "-"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, (int, float)):
        if unit:
            return units.show(float(value), unit)
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return str(value)


def _curve(values: Sequence[float], width: int = 60) -> str:
    """Return a curve of blocks, each the mean of its share of the values."""
    share = max(len(values) / width, 1.0)
    starts = [int(i * share) for i in range(min(len(values), width))] + [len(values)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(starts)]
    top = max(means) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * mean / top))] for mean in means)


@contextmanager
def progress() -> Iterator[Progress]:
    """Give a function (done, total, text) that draws a progress bar on stderr while the block runs.

    Nothing is drawn where stderr is not a terminal.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting (the first run on a machine compiles)", total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total or None, description=text)

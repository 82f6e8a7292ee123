"""Fitted constants, written to the catalogue: `python -m sonde.validate.constants CSV` fits them anew."""

from __future__ import annotations

import csv
import datetime
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sonde.catalogue.engines import CLASSES, COLUMNS, EFFECTS, PAIRS, SCOPES, SPREADS
from sonde.errors import InputError
from sonde.validate.cross import cross_validate, levelled, measured
from sonde.validate.features import OVERHEADS, Features, features
from sonde.validate.fit import SPREADS as PRIORS
from sonde.validate.fit import Floats, design, solve
from sonde.validate.rows import read_rows
from sonde.validate.score import apart

SCHEDULING = ("batching", "token_budget", "max_batch", "memory_fraction")
SOURCE = (
    "fitted by `python -m sonde.validate.constants` on serving measurements of ai-dynamo/aiconfigurator (Apache-2.0)"
)
HELD = "quantiles of residuals of rows that the fit had not seen (sonde.validate.constants), same measurements"

Line = tuple[str, ...]


def fitted(found: Features, spreads: Mapping[str, float] = PRIORS) -> dict[str, float]:
    """Return every constant by its name, fitted on all rows that are not counted apart."""
    rows = [chosen.row for chosen in found.settings]
    plan = design(found, spreads)
    use = np.flatnonzero([not apart(row) for row in rows])
    theta: Floats = solve(found, plan, use, measured(rows))
    return {name: float(np.exp(value)) for name, value in zip(plan.names, theta, strict=True)}


def spread_lines(found: Features) -> Iterator[Line]:
    """Yield the lines of spreads.csv: per engine and kind of pair the ends of the 80 % intervals."""
    rows = [chosen.row for chosen in found.settings]
    trusted = np.array([not apart(row) for row in rows])
    engines = [row.engine for row, use in zip(rows, trusted, strict=True) if use]
    for by, kind in (("curves", "seen"), ("pairs", "new")):
        held = cross_validate(found, by)
        residual = np.log(measured(rows) / held.predicted)[trusted]
        tpot, ttft = (levelled(residual[:, metric], engines, held.fold[trusted]) for metric in (0, 1))
        for engine in tpot:
            yield engine, kind, *(f"{end:.4g}" for end in (*ttft[engine], *tpot[engine]))


def pair_lines(found: Features) -> Iterator[Line]:
    """Yield the lines of pairs.csv: what the constants were fitted on, and how many rows of it."""
    count = Counter((chosen.device.name, chosen.model.name) for chosen in found.settings if not apart(chosen.row))
    for (device, model), rows in sorted(count.items()):
        yield device, model, str(rows)


def engine_lines(values: Mapping[str, float], engine: str) -> Iterator[tuple[str, str, str, float]]:
    """Yield (version, family, attribute, value) of one engine."""
    for kind in CLASSES:
        factor = values.get(f"all//{kind}", 1.0) * values.get(f"engine/{engine}/{kind}", 1.0)
        yield "", "", kind.replace("-", "_"), factor
    for name in (*OVERHEADS, "ttft", "ttft_token"):
        yield "", "", f"{name}_s", values[f"engine/{engine}/{name}_s"]
    polls = {tuple(name.split("/")[2:]): value for name, value in values.items() if name.startswith(f"poll/{engine}/")}
    usual, busy = (_middle([value for (_, load), value in polls.items() if load in (kind, "")] or list(polls.values()))
                   for kind in ("idle", "busy"))  # fmt: skip
    ranks = polls.get(("", "ranks"), busy)
    for attribute, value in (("poll_steps", usual), ("poll_steps_busy", busy), ("poll_steps_ranks", ranks)):
        yield "", "", attribute, value
    for (family, load), value in polls.items():
        if family:
            yield "", family, "poll_steps_busy" if load == "busy" else "poll_steps", value
    for attribute, name in (("ttft_factor", "ttft"), ("poll_factor", "poll")):
        yield "", "", attribute, 1.0
        for label, value in values.items():
            scope, _, rest = label.partition("/")
            if scope == "version" and rest.startswith(f"{engine}/") and rest.endswith(f"/{name}"):
                yield rest.split("/")[1], "", attribute, value


def _middle(values: Sequence[float]) -> float:
    """Return the geometric mean of what families of devices have: the guess for a family that was not measured."""
    return float(np.exp(np.mean(np.log(values))))


def effect_lines(values: Mapping[str, float]) -> Iterator[tuple[str, str, str, float]]:
    """Yield (scope, name, operator, factor) of what is not an engine's."""
    for label, value in values.items():
        scope, _, rest = label.partition("/")
        name, _, operator = rest.rpartition("/")
        if scope in SCOPES and not (scope == "series" and f"{value:.3f}" == "1.000"):
            yield scope, name, operator, value


def write(found: Features, folder: Path) -> None:
    """Write engines.csv, effects.csv, spreads.csv and pairs.csv of `folder`; scheduling defaults in them are kept."""
    values, today = fitted(found), datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    with (folder / "engines.csv").open(encoding="utf-8", newline="") as file:
        kept = [row for row in csv.DictReader(file) if row["attribute"] in SCHEDULING]
    lines: list[Line] = [tuple(row[column] for column in COLUMNS) for row in kept]
    for engine in sorted({chosen.engine.name for chosen in found.settings}):
        lines += [(engine, *row[:3], f"{row[3]:.4g}", SOURCE, today) for row in engine_lines(values, engine)]
    _write(folder / "engines.csv", COLUMNS, lines)
    effects = [(*row[:3], f"{row[3]:.4g}", SOURCE, today) for row in effect_lines(values)]
    _write(folder / "effects.csv", EFFECTS, sorted(effects))
    _write(folder / "spreads.csv", SPREADS, [(*line, HELD, today) for line in spread_lines(found)])
    _write(folder / "pairs.csv", PAIRS, [(*line, SOURCE, today) for line in pair_lines(found)])


def _write(path: Path, head: Line, lines: Sequence[Line]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(lines)


def main(arguments: Sequence[str]) -> None:
    """Fit the constants on the CSV named, and write them to the catalogue (or to the folder named after it)."""
    if not arguments:
        raise InputError("arguments", "none", "needs the CSV of serving measurements")
    from importlib.resources import files

    folder = Path(arguments[1]) if len(arguments) > 1 else Path(str(files("sonde.catalogue"))) / "data"
    write(features(read_rows(Path(arguments[0])).rows), folder)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Fits efficiency curves to operator measurements: all devices, then each family, then what differs within it.

Every level is a robust least-squares fit of the logarithm of time (soft L1 beyond a tenth) that is pulled to the
level above, so that a family with few points borrows from all devices. An engine or a device gets a row of its own
only where that predicts shapes that its fit has not seen better than the family's row does.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.calibrate.forms import CONSTANTS, constant, constants_of, curve_of, predicted
from sonde.calibrate.measurements import from_memory, operator_points
from sonde.calibrate.points import Floats, Points, joined
from sonde.calibrate.profiles import profile_points
from sonde.catalogue.curves import COLUMNS, FORMATS, OperatorEfficiency, family
from sonde.catalogue.devices import device
from sonde.errors import InputError

#: residual (natural logarithm) beyond which a point counts linearly and not squared
SOFT = 0.1

#: standard deviation of a constant (natural logarithm) about that of the level above, and its weight in points
SPREAD, WEIGHT = 0.5, 4.0

#: points of one device and engine that a fit of all devices, and of a family, takes
FEW, MANY = 400, 1200

#: an engine whose kernels take this much longer than another's is left out of the rows that speak of all engines
SLOW = 1.5

#: a row of its own must lower the median error of unseen shapes to this share of the family's, and by this much
SHARE, LEAST = 0.7, 0.03

SOURCE = "fitted by `sonde calibrate fit` on operator measurements of ai-dynamo/aiconfigurator (Apache-2.0)"


class Row(NamedTuple):
    """A fitted curve: whose it is, its constants, and how it does on the points of its fit."""

    operator: str
    format: str
    device: str  # a device, a family, or "" for all
    engine: str
    values: dict[str, float]
    points: int
    median_error: float

    def record(self, date: str) -> dict[str, str]:
        """Return the row as text, as `data/curves.csv` holds it."""
        curve = curve_of(self.operator, self.values)
        stated = {"overhead_s": "0"} | {name: f"{value:.4g}" for name, value in self.values.items()}
        stated["blend"] = f"{curve.blend:g}"
        about = {
            "operator": self.operator, "format": self.format, "device": self.device, "engine": self.engine,
            "points": str(self.points), "median_error": f"{self.median_error:.3f}", "source": SOURCE, "date": date,
        }  # fmt: skip
        return {column: (about | stated).get(column, "") for column in COLUMNS}


def fit_operators(folder: str | Path, *, operators: tuple[str, ...] = ()) -> list[Row]:
    """Return the curves that the measurements below `folder` support, in the order of the catalogue.

    folder      holds `operators/SYSTEM/OP/ENGINE/VERSION/*.parquet`, and may hold `open_loop/GPU/MODEL/operators`
    operators   classes to fit; all of them if there is none

    The result depends on nothing but the files. Raises InputError where there is none that can be read.
    """
    groups = grouped(folder, operators)
    if not groups:
        raise InputError("folder", str(folder), "holds no operator measurements of these classes")
    rows: list[Row] = []
    for key in sorted(groups, key=_order):
        rows += list(fit_class(groups[key]))
    return rows


def write(rows: list[Row], folder: Path, date: str) -> Path:
    """Return the file `curves.csv` in `folder`, which now holds the rows in the form of the catalogue."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "curves.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.record(date) for row in rows)
    return path


def grouped(folder: str | Path, operators: tuple[str, ...] = ()) -> dict[tuple[str, str], list[Points]]:
    """Return all measurements below `folder` by (class of operators, format), one `Points` per device and engine."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[Points]]] = defaultdict(lambda: defaultdict(list))
    for points in _every(Path(folder), operators):
        if not operators or points.operator in operators:
            found[points.operator, points.format][points.device, points.engine].append(points)
    return {key: [_one(parts[own]) for own in sorted(parts)] for key, parts in found.items()}


def _every(folder: Path, operators: tuple[str, ...]) -> Iterator[Points]:
    if (folder / "operators").is_dir():
        yield from operator_points(folder / "operators", operators)
    for points in profile_points(folder / "open_loop"):
        yield from_memory(points, device(points.device))


def _one(parts: list[Points]) -> Points:
    first = parts[0]
    return replace(joined(parts), device=first.device, engine=first.engine) if len(parts) > 1 else first


def _order(key: tuple[str, str]) -> tuple[int, int]:
    from sonde.catalogue.curves import CLASSES

    return list(CLASSES).index(key[0]), list(FORMATS).index(key[1]) if key[1] else -1


def fit_class(groups: list[Points], wanted: str = "") -> Iterator[Row]:
    """Yield the rows of one class and format: of all devices, of families, and of what differs within them.

    `wanted` asks for the rows that speak of one device alone.
    """
    kin: dict[str, list[Points]] = defaultdict(list)
    for group in groups:
        kin[family(group.device) or group.device].append(group)
    usual = [group for name in sorted(kin) for group in _usual(kin[name])]
    everywhere = joined([group.thinned(FEW) for group in usual])
    names = constants_of(everywhere.operator, everywhere.format)
    root = fitted(everywhere, {name: CONSTANTS[name].start for name in names}, spread=4.0)
    yield _row(everywhere, "", "", root)
    for name in sorted(kin):
        if wanted in ("", name) or family(wanted) == name:
            yield from _fit_family(name, kin[name], root)


def _fit_family(name: str, groups: list[Points], root: dict[str, float]) -> Iterator[Row]:
    usual = _usual(groups)
    together = joined([group.thinned(MANY) for group in usual])
    base = fitted(together, root)
    yield _row(together, name, "", base)
    engines: dict[str, list[Points]] = defaultdict(list)
    devices: dict[str, list[Points]] = defaultdict(list)
    for group in groups:
        engines[group.engine].append(group)
    for group in usual:
        devices[group.device].append(group)
    for parts, place in ((engines, "engine"), (devices, "device")):
        for part in sorted(parts):
            if not part or len(parts) < 2:
                continue
            own = joined([group.thinned(MANY) for group in parts[part]])
            if _differs(own, base):
                found = fitted(own, base)
                yield _row(own, name if place == "engine" else part, part if place == "engine" else "", found)


def _usual(groups: list[Points]) -> list[Points]:
    """Return the groups of one family less those of engines whose kernels are far slower than another's."""
    engines = sorted({group.engine for group in groups})
    if len(engines) < 2:
        return groups
    every = joined([group.thinned(FEW) for group in groups])
    names = constants_of(every.operator, every.format)
    begin = {name: CONSTANTS[name].start for name in names}
    spent = {}
    for engine in engines:
        own = fitted(joined([group.thinned(FEW) for group in groups if group.engine == engine]), begin, spread=4.0)
        spent[engine] = np.log(predicted(every, curve_of(every.operator, own)))
    best = np.min(list(spent.values()), axis=0)
    slow = {engine for engine in engines if np.median(spent[engine] - best) > np.log(SLOW)}
    return [group for group in groups if group.engine not in slow]


def _differs(own: Points, base: dict[str, float]) -> bool:
    """Return whether constants of their own predict shapes that they were not fitted on better than `base` does."""
    unseen = held_out(own)
    if unseen.all() or not unseen.any():
        return False
    mine = fitted(own.where(~unseen), base)
    test = own.where(unseen)
    before, after = (float(np.median(np.abs(errors(test, curve_of(own.operator, v))))) for v in (base, mine))
    return after <= SHARE * before and before - after >= LEAST


def held_out(points: Points) -> NDArray[np.bool_]:
    """Return a mask of about a quarter of the points: every fourth shape, so that shapes are whole."""
    shapes = np.unique(points.shape)
    return np.isin(points.shape, shapes[2::4])


def errors(points: Points, curve: OperatorEfficiency) -> Floats:
    """Return predicted/measured - 1 of every point."""
    return predicted(points, curve) / points.seconds - 1.0


def fitted(
    points: Points, prior: dict[str, float], *, spread: float = SPREAD, blend: float | None = None
) -> dict[str, float]:
    """Return the constants that fit `points` best, pulled towards `prior`: deterministic.

    `blend` replaces the power with which compute and memory run together.
    """
    from scipy.optimize import least_squares

    names = tuple(prior)
    kinds = [constant(points.operator, name) for name in names]
    centre = np.array([np.log(prior[n]) if k.logarithm else prior[n] for n, k in zip(names, kinds, strict=True)])
    bounds = [[np.log(b) if k.logarithm else b for b in (k.low, k.high)] for k in kinds]
    low, high = np.array(bounds).T
    centre = np.clip(centre, low + 1e-6, high - 1e-6)
    measured = np.log(points.seconds)
    pull = np.sqrt(WEIGHT) / spread * SOFT

    def values(x: Floats) -> dict[str, float]:
        return {n: float(np.exp(v) if k.logarithm else v) for n, k, v in zip(names, kinds, x, strict=True)}

    def residuals(x: Floats) -> Floats:
        curve = curve_of(points.operator, values(x))
        guess = predicted(points, curve if blend is None else replace(curve, blend=blend))
        return np.concatenate([np.log(guess) - measured, pull * (x - centre)])

    found = least_squares(residuals, centre, bounds=(low, high), loss="soft_l1", f_scale=SOFT)
    return values(found.x)


def _row(points: Points, place: str, engine: str, values: dict[str, float]) -> Row:
    rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
    median = float(np.median(np.abs(errors(points, curve_of(points.operator, rounded)))))
    return Row(points.operator, points.format, place, engine, rounded, len(points), median)

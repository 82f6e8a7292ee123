"""How far curves are off: by class of operators and device, for the catalogue's curves and for devices left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sonde.calibrate.fit import FEW, MANY, Row, errors, fit_class, fitted, held_out
from sonde.calibrate.forms import CONSTANTS, constants_of, curve_of
from sonde.calibrate.points import Points, joined
from sonde.catalogue.curves import OperatorEfficiency, family
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies, engines

Groups = dict[tuple[str, str], list[Points]]


class Judged(NamedTuple):
    """Absolute errors (shares of the measured time) of one class of operators on one device, all engines together.

    flat       by one share of peak compute, of bandwidth and one start of a kernel, fitted to all devices at once
    shipped    by the curves of the catalogue, which have seen these points
    left_out   by curves fitted to other devices alone
    """

    operator: str
    format: str
    device: str
    points: int
    flat: tuple[float, float]  # median, mean
    shipped: tuple[float, float]
    left_out: tuple[float, float]


def judge(groups: Groups, *, leave_out: bool = True) -> Iterator[Judged]:
    """Yield the errors of every class, format and device of the measurements, in the order of the groups.

    `left_out` is nan where not asked for, and where no other device has been measured.
    """
    for (operator, form), parts in groups.items():
        flat = _flat(parts)
        by_device: dict[str, list[Points]] = defaultdict(list)
        for part in parts:
            by_device[part.device].append(part)
        for name in sorted(by_device):
            others = [part for part in parts if part.device != name]
            rows = list(fit_class(others, name)) if leave_out and others else []
            own = by_device[name]
            yield Judged(
                operator, form, name, sum(len(part) for part in own),
                _errors(own, flat),
                _errors(own, shipped),
                _errors(own, _chooser(rows)) if rows else (np.nan, np.nan),
            )  # fmt: skip


def blends(groups: Groups, powers: tuple[float, ...] = (1.0, 2.0, 4.0, 0.0)) -> Iterator[tuple[str, str, list[float]]]:
    """Yield, of every class and format, the median error on unseen shapes by the power that blends compute and memory.

    Every device and engine is fitted alone on three quarters of its shapes; errors are means over them. The power 0
    is the longer of the two.
    """
    for (operator, form), parts in groups.items():
        start = {name: CONSTANTS[name].start for name in constants_of(operator, form)}
        found: list[list[float]] = []
        for part in (part.thinned(MANY) for part in parts):
            unseen = held_out(part)
            seen, test = part.where(~unseen), part.where(unseen)
            if not len(test):
                continue
            curves = [
                replace(curve_of(operator, fitted(seen, start, spread=4.0, blend=power)), blend=power)
                for power in powers
            ]
            found.append([float(np.median(np.abs(errors(test, curve)))) for curve in curves])
        if found:
            yield operator, form, np.mean(found, axis=0).tolist()


def shipped(points: Points) -> OperatorEfficiency:
    """Return the catalogue's curve for the class, format, device and engine of the points."""
    engine = points.engine if points.engine in engines() else "default"
    key = f"{points.operator}/{points.format}" if points.format else points.operator
    return efficiencies(device(points.device), engine).of(key)


def chosen(rows: list[Row], name: str, engine: str) -> Row:
    """Return the row that speaks most closely of a device and an engine, as the catalogue chooses it."""
    place = {"": 0, family(name) or name: 1, name: 2}
    of_engine = {"": 0, engine: 4}
    speaking = [row for row in rows if row.device in place and row.engine in of_engine]
    return max(speaking, key=lambda row: place[row.device] + of_engine[row.engine])


def _chooser(rows: list[Row]) -> Callable[[Points], OperatorEfficiency]:
    return lambda points: curve_of(points.operator, chosen(rows, points.device, points.engine).values)


def _errors(parts: list[Points], curve: Callable[[Points], OperatorEfficiency]) -> tuple[float, float]:
    off = np.abs(np.concatenate([errors(part, curve(part)) for part in parts]))
    return float(np.median(off)), float(np.mean(off))


def _flat(parts: list[Points]) -> Callable[[Points], OperatorEfficiency]:
    every = joined([part.thinned(FEW) for part in parts])
    messages = every.latency.any()
    names = ("memory", "latency") if messages else ("compute", "memory", "overhead_s")
    fit = curve_of(every.operator, fitted(every, {name: CONSTANTS[name].start for name in names}, spread=4.0))
    return lambda _: fit

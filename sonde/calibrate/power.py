"""Fits what devices draw to measured powers, and their clocks to times under a cap; judges both on unseen runs.

The shares of peak power are a robust fit of the logarithm of power (soft L1 beyond a twentieth), pulled to the shares
that GenZ publishes: of all devices, then of each family, pulled to all. How power follows the clock is fitted to the
slowdown of capped runs. A family without a measurement borrows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sonde.calibrate.points import Floats
from sonde.calibrate.runs import Runs, prompt_seconds, prompt_use, runs, token_seconds, token_use
from sonde.catalogue.curves import family
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.power import COLUMNS, RANGES, SCOPES, Power, power_rows
from sonde.catalogue.rows import read, table
from sonde.errors import InputError

#: residual (natural logarithm of power) beyond which a run counts linearly and not squared
SOFT = 0.05

#: standard deviation of a share (natural logarithm) about that of the level above, and its weight in runs
SPREAD, WEIGHT = 0.5, 4.0

#: seconds over which the highest power is averaged, as meters sample it, and the longest prompt of which it is taken:
#: a longer one holds bursts above its mean
SAMPLE_S, BURSTS_S = 0.1, 0.2

#: kinds of device that borrow from the families that were measured
KINDS = ("datacentre", "workstation")

FITTED = ("static", "compute", "memory", "network")
SOURCE = "fitted by `sonde calibrate fit` on Mutinifni/splitwise-sim (MIT)"


class Row(NamedTuple):
    """A fitted constant: whose it is, and on how many runs."""

    scope: str
    name: str
    attribute: str
    value: float
    points: int
    source: str

    def record(self, date: str) -> dict[str, str]:
        """Return the row as text, as `data/power.csv` holds it."""
        return {
            "scope": self.scope, "name": self.name, "attribute": self.attribute, "value": f"{self.value:.3g}",
            "points": str(self.points), "source": self.source, "date": date,
        }  # fmt: skip


class Judged(NamedTuple):
    """How far off the energy of runs in a known time is: (median, mean) of absolute errors, by what was left out.

    published   by GenZ's shares, which no run here was fitted to
    shipped     by the catalogue's constants, which have seen these runs
    left_out    by constants fitted to the other models and degrees of parallelism alone
    running     the same, without runs that state a mean below what any step draws: pauses are in it
    """

    model: str
    device: str
    ranks: int
    runs: int
    published: tuple[float, float]
    shipped: tuple[float, float]
    left_out: tuple[float, float]
    running: tuple[float, float]


class Slowed(NamedTuple):
    """Runs under a cap on power, and the same without one."""

    capped: Runs
    free: Runs


class JudgedCap(NamedTuple):
    """How many times as long prompts and tokens take under a cap: (measured, lowest and highest predicted)."""

    model: str
    device: str
    ranks: int
    power_cap: str
    runs: int
    prompt: tuple[float, float, float]
    token: tuple[float, float, float]


def drawn(of: Runs, power: Power) -> tuple[Floats, Floats]:
    """Return the mean and the highest power of every run over the peak of its device, as `sonde.cost.power` has it."""
    part = of.part()
    shares = np.array([power.compute, power.memory, power.network])
    prompt, token = (
        np.minimum(power.static + use @ shares, 1.0) for use in (prompt_use(of, part), token_use(of, part))
    )
    share = np.minimum(of.prompt_s / of.whole_s, 1.0)
    seen = np.minimum(of.prompt_s / SAMPLE_S, 1.0)
    return prompt * share + token * (1.0 - share), np.maximum(token, prompt * seen + token * (1.0 - seen))


def measured(folder: str | Path) -> list[Runs]:
    """Return the runs below `folder` whose power was measured."""
    found = [of.where(of.average > 0.0) for of in runs(folder)]
    return [of for of in found if len(of)]


def fit_power(folder: str | Path) -> list[Row]:
    """Return the constants of power that the runs below `folder` support. Raises InputError where there are none.

    The result depends on nothing but the files.
    """
    groups, capped = measured(folder), slowed(folder)
    if not groups:
        raise InputError("folder", str(folder), "holds no runs with a measured power")
    count = sum(map(len, groups))
    root = fitted(groups, published())
    rows = [Row("kind", kind, name, getattr(root, name), count, SOURCE) for kind in KINDS for name in FITTED]
    for name in sorted({family(of.device) for of in groups}):
        own = [of for of in groups if family(of.device) == name]
        rows += _of_family(name, own, fitted(own, root))
    if capped:
        rows += _clocks(capped, root)
    far = 1.0 + float(
        np.median(np.abs(np.concatenate([drawn(of, published())[0] / of.average - 1.0 for of in groups])))
    )
    words = "median error of shares fitted to no measurement, on these runs: as far as to a family without one"
    return [*rows, Row("default", "", "low", 1.0 / far, count, words), Row("default", "", "high", far, count, words)]


def _of_family(name: str, groups: list[Runs], power: Power) -> Iterator[Row]:
    count = sum(map(len, groups))
    for attribute in FITTED:
        yield Row("family", name, attribute, getattr(power, attribute), count, SOURCE)
    ratio = np.concatenate([1.0 / (1.0 + errors) for errors in left_out(groups)])
    low, high = np.quantile(ratio, (0.1, 0.9))
    words = "10 % and 90 % quantiles of measured over predicted energy, each model and degree of parallelism left out"
    yield Row("family", name, "low", min(float(low), 1.0), count, words)
    yield Row("family", name, "high", max(float(high), 1.0), count, words)


def published() -> Power:
    """Return the shares that hold where nothing was fitted."""
    found = {row.attribute: row.value for row in power_rows() if row.scope == "default"}
    return Power(**{name: value for name, value in found.items() if name not in ("low", "high")})


def fitted(groups: list[Runs], prior: Power) -> Power:
    """Return the shares that fit the powers of `groups` best, pulled towards `prior`: deterministic."""
    from scipy.optimize import least_squares

    centre = np.log([getattr(prior, name) for name in FITTED])
    pull = np.sqrt(WEIGHT) / SPREAD * SOFT

    def residuals(x: Floats) -> Floats:
        power = replace(prior, **dict(zip(FITTED, np.exp(x).tolist(), strict=True)))
        parts = [pull * (x - centre)]
        for of in groups:
            average, highest = drawn(of, power)
            short = of.prompt_s < BURSTS_S
            parts += [np.log(average / of.average), np.log(highest / np.minimum(of.highest, 1.0))[short]]
        return np.concatenate(parts)

    high = np.log([RANGES[name][1] for name in FITTED])
    found = least_squares(residuals, centre, bounds=(np.log(1e-3), high), loss="soft_l1", f_scale=SOFT)
    return replace(prior, **dict(zip(FITTED, np.exp(found.x).tolist(), strict=True)))


def left_out(groups: list[Runs]) -> list[Floats]:
    """Return predicted/measured - 1 of the energy of every run, by shares fitted to the other groups alone."""
    found = []
    for i, of in enumerate(groups):
        others = groups[:i] + groups[i + 1 :]
        power = fitted(others, published()) if others else published()
        found.append(drawn(of, power)[0] / of.average - 1.0)
    return found


def judge_power(folder: str | Path) -> list[Judged]:
    """Return how far off the energy of the runs below `folder` is in a known time, by model and parallelism, then all.

    No runs, no rows.
    """
    groups = measured(folder)
    if not groups:
        return []
    unseen = left_out(groups)
    shipped = [drawn(of, efficiencies(device(of.device)).power)[0] / of.average - 1.0 for of in groups]
    plain = [drawn(of, published())[0] / of.average - 1.0 for of in groups]
    busy = [errors[of.average > published().static] for errors, of in zip(unseen, groups, strict=True)]
    rows = [
        Judged(of.model, of.device, of.ranks, len(of), *map(_absolute, parts))
        for of, *parts in zip(groups, plain, shipped, unseen, busy, strict=True)
    ]
    joined = [_absolute(np.concatenate(parts)) for parts in (plain, shipped, unseen, busy)]
    return [*rows, Judged("all", "", 0, sum(map(len, groups)), *joined)]


def _absolute(errors: Floats) -> tuple[float, float]:
    return float(np.median(np.abs(errors))), float(np.mean(np.abs(errors)))


def slowed(folder: str | Path) -> list[Slowed]:
    """Return the runs below `folder` with a cap on power, each with the same runs without one."""
    every = runs(folder)
    free = {(of.model, of.device, of.ranks): of for of in every if of.power_cap is None}
    keyed = [(of, free.get((of.model, of.device, of.ranks))) for of in every if of.power_cap]
    return [Slowed(of, other) for of, other in keyed if other is not None and _same(of, other)]


def _same(one: Runs, two: Runs) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in ("length", "batch", "tokens")
    )


def _clocks(capped: list[Slowed], power: Power) -> Iterator[Row]:
    """Yield how power follows the clock: of all devices, then of each family, pulled to all."""
    words = f"{SOURCE}: times at half the power; its authors give one factor for the prompts of all runs"
    root = clock_power(capped, power)
    for kind in KINDS:
        yield Row("kind", kind, "voltage", root, sum(len(pair.capped) for pair in capped), words)
    for name in sorted({family(pair.capped.device) for pair in capped}):
        own = [pair for pair in capped if family(pair.capped.device) == name]
        value = clock_power(own, replace(power, voltage=root))
        yield Row("family", name, "voltage", value, sum(len(pair.capped) for pair in own), words)


def clock_power(pairs: list[Slowed], power: Power) -> float:
    """Return the power v of the clock that slows runs as measured, pulled to that of `power`."""
    from scipy.optimize import least_squares

    pull = np.sqrt(WEIGHT) / SPREAD * SOFT

    def residuals(x: Floats) -> Floats:
        guess = replace(power, voltage=float(np.exp(x[0])))
        parts = [pull * (x - np.log(power.voltage))]
        for pair in pairs:
            parts += [np.log(found / seen) for found, seen in slowdowns(pair, guess)]
        return np.concatenate(parts)

    low, high = np.log(RANGES["voltage"])
    start = [np.log(power.voltage)]
    found = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=SOFT, diff_step=1e-3)
    return float(np.exp(found.x[0]))


def slowdowns(pair: Slowed, power: Power) -> list[tuple[Floats, Floats]]:
    """Return how many times as long prompts, and tokens, take under the cap: (predicted, measured) of every run."""
    reached = replace(efficiencies(device(pair.free.device)), power=power)
    capped, free = (pair.free.part(reached=reached, power_cap=cap) for cap in (pair.capped.power_cap, None))
    return [
        (seconds(pair.free, capped) / seconds(pair.free, free), getattr(pair.capped, name) / getattr(pair.free, name))
        for seconds, name in ((prompt_seconds, "prompt_s"), (token_seconds, "token_s"))
    ]


def judge_caps(folder: str | Path) -> list[JudgedCap]:
    """Return how far off the catalogue's slowdown under a cap is, by model and parallelism."""
    found = []
    for pair in slowed(folder):
        power = efficiencies(device(pair.capped.device)).power
        prompt, token = slowdowns(pair, power)
        ends = [(float(np.median(side[1])), float(side[0].min()), float(side[0].max())) for side in (prompt, token)]
        of = pair.capped
        found.append(JudgedCap(of.model, of.device, of.ranks, str(of.power_cap), len(of), *ends))
    return found


def write_power(rows: list[Row], folder: Path, date: str) -> Path:
    """Return the file `power.csv` in `folder`: the catalogue's table, with these rows in the place of their like."""
    new = {(row.scope, row.name, row.attribute): row.record(date) for row in rows}
    old = read(table("power.csv"), "power.csv", COLUMNS)
    kept = {(row["scope"], row["name"], row["attribute"]): row for _, row in old}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "power.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted((kept | new).values(), key=_order))
    return path


def _order(row: Mapping[str, str]) -> tuple[int, str, int]:
    return SCOPES[row["scope"]], row["name"], list(RANGES).index(row["attribute"])

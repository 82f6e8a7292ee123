"""What a device draws while it works: shares of its peak power by what is in use, and how they fall with its clock.

`data/power.csv` holds one constant a row, fitted by `sonde calibrate fit` where a power was measured and an estimate
elsewhere, each with source and date. The most specific row wins: default < kind of device < family < device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

from sonde.catalogue.curves import family
from sonde.catalogue.device import Device
from sonde.catalogue.rows import read, table
from sonde.errors import InputError, unknown

#: scope -> rank: the higher one wins
SCOPES = {"default": 0, "kind": 2, "family": 4, "device": 5}

COLUMNS = ("scope", "name", "attribute", "value", "points", "source", "date")

#: constant -> lowest and highest value that make sense
RANGES: dict[str, tuple[float, float]] = {
    "static": (0.0, 1.0),
    "compute": (0.0, 4.0),
    "memory": (0.0, 4.0),
    "network": (0.0, 4.0),
    "voltage": (1.0, 5.0),
    "dram": (0.0, 1.0),
    "slowest": (0.01, 1.0),
    "low": (0.05, 1.0),
    "high": (1.0, 20.0),
}


@dataclass(frozen=True, slots=True)
class Power:
    """Shares of peak power, and what a lower clock does to them.

    static   drawn in any step, whatever is in it
    compute  added at the peak arithmetic of any precision; memory: at peak bandwidth; network: at that of the links.
             Together they may exceed 1: a device then draws its peak, and runs slower than it could
    voltage  power v of what switches all the time in the clock (clock^v; energy of an operation falls as clock^(v-1))
    dram     share of the energy of memory that is spent outside the chip, which a lower clock does not save
    slowest  lowest clock, as a share of the highest
    """

    static: float
    compute: float
    memory: float
    network: float
    voltage: float
    dram: float
    slowest: float


CONSTANTS = tuple(field.name for field in fields(Power))


@dataclass(frozen=True, slots=True)
class PowerRow:
    """One constant, and of which devices it speaks: all, a kind, a family, one."""

    scope: str
    name: str
    attribute: str
    value: float


@cache
def power_rows() -> tuple[PowerRow, ...]:
    """Return all rows, checked. Raises InputError for an unknown name, a value out of range or a missing source."""
    return read_power(table("power.csv"), "power.csv")


def read_power(text: str, path: str) -> tuple[PowerRow, ...]:
    """Return the rows of CSV text with COLUMNS; raises InputError as `power_rows` does."""
    return tuple(_row(where, row) for where, row in read(text, path, COLUMNS))


def stated(name: str, kind: str) -> Iterator[tuple[int, PowerRow]]:
    """Yield the rows that speak of a device of that name and kind, each with its rank."""
    wanted = {"default": "", "kind": kind, "family": family(name), "device": name}
    for row in power_rows():
        if row.name == wanted[row.scope] and (row.name or row.scope == "default"):
            yield SCOPES[row.scope], row


def spread(device: Device) -> tuple[float, float]:
    """Return what to multiply the energy of known work in a known time by, for the ends of an 80 % interval.

    They are the 10 % and 90 % quantiles of measured over predicted power, of rows that the fit had not seen: of
    other models and degrees of parallelism where the family was measured, of other families where it was not.
    How far off the time itself is comes on top.
    """
    best: dict[str, tuple[int, float]] = {}
    for rank, row in stated(device.name, device.kind):
        best[row.attribute] = max(best.get(row.attribute, (-1, 0.0)), (rank, row.value))
    return best["low"][1], best["high"][1]


def _row(where: str, row: dict[str, str]) -> PowerRow:
    if row["scope"] not in SCOPES:
        raise unknown(f"{where} scope", row["scope"], SCOPES, "scope")
    if row["attribute"] not in RANGES:
        raise unknown(f"{where} attribute", row["attribute"], RANGES, "constant")
    low, high = RANGES[row["attribute"]]
    try:
        value = float(row["value"])
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InputError(f"{where} value", row["value"], f"must be between {low:g} and {high:g}")
    if not row["source"] or not row["date"]:
        raise InputError(where, row["attribute"], "needs a source and a date")
    return PowerRow(row["scope"], row["name"], row["attribute"], value)

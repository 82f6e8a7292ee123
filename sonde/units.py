"""Quantities: "80 GiB", "$2.10/h", "300 GB/s" in, SI floats inside, and back to text at the edge.

`parse` reads, `show` prints. Inside Sonde every number is in seconds, bytes, FLOP, joules, watts,
tokens, and dollars; prices are dollars per hour, as every price list has them.
"""

from __future__ import annotations

import math
import re

from sonde.errors import InputError

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _scaled(unit: str, prefixes: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{unit}": factor for prefix, factor in prefixes.items()}


_BYTES = _scaled("B", _DECIMAL | _BINARY)
_BITS = {f"{prefix}{name}": factor / 8 for prefix, factor in _DECIMAL.items() for name in ("bit", "b")}

#: unit -> factor to the SI unit, by dimension
UNITS: dict[str, dict[str, float]] = {
    "time": _TIME,
    "bytes": _BYTES,
    "bandwidth": {f"{unit}/s": factor for unit, factor in (_BYTES | _BITS).items()},
    "compute": _scaled("FLOP/s", _DECIMAL)
    | _scaled("FLOPS", _DECIMAL)
    | _scaled("OP/s", _DECIMAL)
    | _scaled("OPS", _DECIMAL),
    "power": {"mW": 1e-3, "W": 1.0, "kW": 1e3, "MW": 1e6},
    "energy": {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6},
    "price": {"$/h": 1.0, "USD/h": 1.0, "$/s": 3600.0, "$/d": 1 / 24, "$/month": 1 / 730.0},
    "rate": {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600, "/d": 1 / 86400, "Hz": 1.0},
    "count": {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9},
    "ratio": {"": 1.0, "%": 1e-2},
}

#: the unit that a bare number of this dimension is in
BASE: dict[str, str] = {
    "time": "s", "bytes": "B", "bandwidth": "B/s", "compute": "FLOP/s", "power": "W", "energy": "J",
    "price": "$/h", "rate": "/s", "count": "", "ratio": "",
}  # fmt: skip

_QUANTITY = re.compile(r"^\s*(\$?)\s*([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*$")


def parse(value: object, dimension: str, path: str = "value", *, zero: bool = False) -> float:
    """Return `value` in the SI unit of `dimension`, finite and above zero (or zero where `zero`).

    A bare number is taken to be in the SI unit already. Raises InputError with the path, the value and
    the units that would do.
    """
    units = UNITS[dimension]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(path, value, f"must be a {dimension} such as {_example(dimension)}")
    if isinstance(value, str):
        match = _QUANTITY.match(value)
        if match is None:
            raise InputError(path, value, f"must be a {dimension} such as {_example(dimension)}")
        dollar, digits, unit = match.groups()
        unit = f"$/{unit.lstrip('/')}" if dollar and unit else ("$/h" if dollar else unit)
        unit = unit.removeprefix("req").removeprefix("requests") if dimension == "rate" else unit
        if unit and unit not in units:
            known = ", ".join(sorted(units, key=lambda name: (len(name), name))[:14])
            raise InputError(path, value, f"{unit!r} is no unit of {dimension}; use one of {known}")
        number = float(digits.replace(",", "").replace("_", "")) * (units[unit] if unit else units[BASE[dimension]])
    else:
        number = float(value)
    if not math.isfinite(number):
        raise InputError(path, value, f"must be a finite {dimension}")
    if number < 0 or (number == 0 and not zero):
        raise InputError(
            path, value, f"must be {'zero or more' if zero else 'above zero'}, such as {_example(dimension)}"
        )
    return number


def _example(dimension: str) -> str:
    return {
        "time": '"500 ms"', "bytes": '"80 GiB"', "bandwidth": '"3.35 TB/s"', "compute": '"989 TFLOP/s"',
        "power": '"700 W"', "energy": '"1.5 kWh"', "price": '"$2.10/h"', "rate": '"20/s"', "count": '"8"',
        "ratio": '"0.9"',
    }[dimension]  # fmt: skip


def show(value: float, dimension: str) -> str:
    """Return `value` (SI) as text with three significant digits and a unit that people use for it."""
    if math.isnan(value):
        return "-"
    if dimension == "price":
        return f"${value:,.2f}/h"
    if dimension == "ratio":
        return f"{100 * value:.1f} %"
    steps = {
        "time": [(1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h")],
        "bytes": [(1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB")],
        "energy": [(1e-3, "mJ"), (1.0, "J"), (1e3, "kJ"), (3.6e6, "kWh")],
        "power": [(1e-3, "mW"), (1.0, "W"), (1e3, "kW"), (1e6, "MW")],
    }.get(dimension)
    if steps is None:
        suffix = {"bandwidth": "B/s", "compute": "FLOP/s", "rate": "/s", "count": ""}[dimension]
        steps = [(1.0, suffix), (1e3, "k" + suffix), (1e6, "M" + suffix), (1e9, "G" + suffix), (1e12, "T" + suffix),
                 (1e15, "P" + suffix)]  # fmt: skip
    factor, unit = steps[0]
    for step, name in steps:
        if abs(value) >= step * (0.9995 if dimension != "time" or step <= 1 else 2.0):
            factor, unit = step, name
    return f"{_digits(value / factor)} {unit}".rstrip() if dimension != "rate" else f"{_digits(value / factor)}{unit}"


def _digits(value: float) -> str:
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"

"""Quantities: "80 GiB", "$2.10/h", "300 GB/s" in, SI floats inside, and back to text at the edge.

`parse` reads, `show` prints. Inside Sonde every number is in seconds, bytes, FLOP, joules, watts,
tokens, and dollars; prices are dollars per hour, as every price list has them.
"""

from __future__ import annotations

import math
import re
from numbers import Real

from sonde.errors import InputError, nearest

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PER_HOUR = {"/h": 1.0, "/hr": 1.0, "/s": 3600.0, "/min": 60.0, "/d": 1 / 24, "/month": 1 / 730.0, "/year": 1 / 8766.0}


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
    "energy": {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6, "MWh": 3.6e9},
    "price": {f"{dollar}{per}": factor for dollar in ("$", "USD") for per, factor in _PER_HOUR.items()},
    "money": {"$": 1.0, "USD": 1.0, "k$": 1e3, "M$": 1e6},
    "rate": {"/s": 1.0, "k/s": 1e3, "M/s": 1e6, "/min": 1 / 60, "/h": 1 / 3600, "/d": 1 / 86400,
             "Hz": 1.0, "kHz": 1e3, "rps": 1.0, "qps": 1.0},
    "count": {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15},
    "ratio": {"": 1.0, "%": 1e-2},
}  # fmt: skip

#: the unit that a bare number of this dimension is in
BASE: dict[str, str] = {
    "time": "s", "bytes": "B", "bandwidth": "B/s", "compute": "FLOP/s", "power": "W", "energy": "J",
    "price": "$/h", "money": "$", "rate": "/s", "count": "", "ratio": "",
}  # fmt: skip

#: text that `parse` reads, by dimension
EXAMPLES: dict[str, str] = {
    "time": '"500 ms"', "bytes": '"80 GiB"', "bandwidth": '"3.35 TB/s"', "compute": '"989 TFLOP/s"',
    "power": '"700 W"', "energy": '"1.5 kWh"', "price": '"$2.10/h"', "money": '"$1,599"', "rate": '"20/s"',
    "count": '"8"', "ratio": '"0.9"',
}  # fmt: skip

#: a comma only ever separates thousands: "1,5" is refused, for it would be 15 here and 1.5 elsewhere
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)(?:\.\d*)?|\.\d+"
_QUANTITY = re.compile(rf"^([-+]?)\s*(\$?)\s*([-+]?(?:{_DIGITS})(?:[eE][-+]?\d+)?)(?![\d,.])\s*(.*)$", re.ASCII)
_REQUESTS = re.compile(r"^(?:requests?|reqs?)\s*(?=/)")


def parse(value: object, dimension: str, path: str = "value", *, zero: bool = False) -> float:
    """Return `value` in the SI unit of `dimension`, finite and above zero (or zero where `zero`).

    A bare number is taken to be in the SI unit already. Raises InputError with the path, the value and
    the units that would do.
    """
    if isinstance(value, str):
        number = _read(value, dimension, path)
    elif isinstance(value, (int, float, Real)) and not isinstance(value, bool):
        number = _float(value)
    else:
        raise InputError(path, value, f"must be a {dimension} such as {EXAMPLES[dimension]}")
    if not math.isfinite(number):
        raise InputError(path, value, f"must be a finite {dimension}, such as {EXAMPLES[dimension]}")
    if number < 0 or (number == 0 and not zero):
        least = "zero or more" if zero else "above zero"
        raise InputError(path, value, f"must be {least}, such as {EXAMPLES[dimension]}")
    return number


def _read(text: str, dimension: str, path: str) -> float:
    match = _QUANTITY.match(text.strip())
    if match is None:
        raise InputError(path, text, f"must be a {dimension} such as {EXAMPLES[dimension]}")
    sign, dollar, digits, unit = match.groups()
    unit = re.sub(r"\s*/\s*", "/", unit)
    if dollar:
        unit = f"${unit}" if not unit or unit.startswith("/") else f"$ {unit}"
    if dimension == "price" and unit in ("$", "USD"):
        unit = BASE["price"]
    if dimension == "rate":
        unit = _REQUESTS.sub("", unit)
    units = UNITS[dimension]
    if unit and unit not in units:
        raise InputError(path, text, _wrong_unit(unit, dimension))
    number = float(digits.replace(",", "").replace("_", "")) * units[unit or BASE[dimension]]
    return -number if sign == "-" else number


def _float(value: float | Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _wrong_unit(unit: str, dimension: str) -> str:
    units = UNITS[dimension]
    known = ", ".join(name for name in sorted(units, key=lambda name: (len(name), name)) if name)
    other = next((name for name, table in UNITS.items() if unit in table), "")
    kind = f"is a unit of {other}, not of {dimension}" if other else f"is no unit of {dimension}{nearest(unit, units)}"
    return f"{unit!r} {kind}; use one of {known}" if known else f"{unit!r} {kind}"


#: unit and its size, smallest first, that `show` picks from
_SHOWN: dict[str, list[tuple[float, str]]] = {
    "time": [(1e-9, " ns"), (1e-6, " µs"), (1e-3, " ms"), (1.0, " s"), (60.0, " min"), (3600.0, " h")],
    "bytes": [(1.0, " B"), (2.0**10, " KiB"), (2.0**20, " MiB"), (2.0**30, " GiB"), (2.0**40, " TiB")],
    "energy": [(1e-3, " mJ"), (1.0, " J"), (1e3, " kJ"), (3.6e6, " kWh")],
    "power": [(1e-3, " mW"), (1.0, " W"), (1e3, " kW"), (1e6, " MW")],
    "rate": [(1.0, "/s"), (1e3, " k/s"), (1e6, " M/s")],
} | {
    dimension: [(10.0**exponent, f" {prefix}{unit}".rstrip()) for exponent, prefix in
                ((0, ""), (3, "k"), (6, "M"), (9, "G"), (12, "T"), (15, "P"))]
    for dimension, unit in (("bandwidth", "B/s"), ("compute", "FLOP/s"), ("count", ""))
}  # fmt: skip


def show(value: float, dimension: str) -> str:
    """Return `value` (SI) as text with three significant digits and a unit that people use for it.

    "-" stands for NaN and "∞" for infinity; `parse` reads all other text back to within 0.5 %.
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if dimension in ("price", "money"):
        sign, size = "-" if value < 0 else "", abs(value)
        digits = f"{size:,.2f}" if size >= 1 or size == 0 else _digits(size)
        return f"{sign}${digits}" + ("/h" if dimension == "price" else "")
    if dimension == "ratio":
        return f"{_digits(100 * value)} %"
    steps = _SHOWN[dimension]
    factor, unit = steps[0]
    for step, name in steps:
        # minutes and hours begin at two of them: "90 s" reads better than "1.5 min"
        if abs(value) >= step * (2.0 if dimension == "time" and step > 1 else 0.9995):
            factor, unit = step, name
    return f"{_digits(value / factor)}{unit}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"

"""The form of every class of operators: which constants are fitted, from where the fit starts, and the formula.

The formula is that of the cost model itself (`sonde.cost`), so that what is fitted is what is used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sonde.calibrate.points import Floats, Points
from sonde.catalogue.curves import OperatorEfficiency
from sonde.catalogue.device import Link
from sonde.cost.collectives import message_seconds
from sonde.cost.roofline import busy, moving, together


class Constant(NamedTuple):
    """A constant that is fitted: where the fit starts, its bounds, and whether it is fitted as a logarithm."""

    start: float
    low: float
    high: float
    logarithm: bool = True


CONSTANTS: dict[str, Constant] = {
    "compute": Constant(0.6, 0.005, 1.0),
    "memory": Constant(0.8, 0.02, 1.0),
    "overhead_s": Constant(5e-6, 5e-7, 1e-4),
    "half_rows": Constant(16.0, 0.05, 2000.0),
    "half_outputs": Constant(1e5, 10.0, 1e7),
    "half_columns": Constant(50.0, 0.5, 2000.0),
    "row_s": Constant(1e-10, 1e-13, 1e-7),
    "cast": Constant(0.5, 0.02, 1.0),
    "tile_tokens": Constant(64.0, 0.5, 2000.0),
    "latency": Constant(0.7, 0.01, 5.0),
    "hop_s": Constant(2e-7, 1e-9, 1e-4),
    "crowding": Constant(0.0, -1.0, 3.0, logarithm=False),
}

_PRODUCT = ("compute", "memory", "overhead_s", "half_outputs")
_PROMPT = ("compute", "memory", "overhead_s")
_DECODE = ("compute", "memory", "overhead_s", "tile_tokens")
_MESSAGE = ("memory", "latency", "hop_s", "crowding")

#: class of operators -> (constants, power with which compute and memory run together)
FORMS: dict[str, tuple[tuple[str, ...], float]] = {
    "gemm": (_PRODUCT, 2.0),
    "bmm": (_PRODUCT, 2.0),
    "experts": (("compute", "memory", "overhead_s", "half_rows", "half_columns", "cast"), 2.0),
    "attention-prefill": (_PROMPT, 1.0),
    "window-prefill": ((*_PROMPT, "tile_tokens"), 1.0),
    "mla-prefill": (_PROMPT, 1.0),
    "sparse-prefill": (_PROMPT, 1.0),
    "indexer-prefill": (_PROMPT, 1.0),
    "linear-prefill": (_PROMPT, 1.0),
    "attention-decode": (_DECODE, 2.0),
    "window-decode": (_DECODE, 2.0),
    "mla-decode": (_DECODE, 2.0),
    "linear-decode": (("memory", "overhead_s"), 0.0),
    "elementwise": (("memory", "overhead_s"), 0.0),
    "collective": (_MESSAGE, 0.0),
    "all-gather": (_MESSAGE, 0.0),
    "all-to-all": (_MESSAGE, 0.0),
}

#: formats whose activations are quantised by a kernel of its own before the product
NARROW = ("fp8", "fp8-block", "nvfp4")

_SECOND = Link(1.0, 1.0)


def constants_of(operator: str, form: str) -> tuple[str, ...]:
    """Return the names of the constants that are fitted to a class of operators in a format."""
    names = FORMS[operator][0]
    return (*names, "row_s", "cast") if operator in ("gemm", "bmm") and form in NARROW else names


def constant(operator: str, name: str) -> Constant:
    """Return how a constant of a class is fitted: what only moves numbers finds them in caches, faster than memory."""
    found = CONSTANTS[name]
    return found._replace(high=8.0) if (operator, name) == ("elementwise", "memory") else found


def curve_of(operator: str, values: dict[str, float]) -> OperatorEfficiency:
    """Return the curve of a class of operators with these constants, the others neutral."""
    fixed = {"overhead_s": 0.0, "blend": FORMS[operator][1]}
    return OperatorEfficiency(**(fixed | values))


def predicted(points: Points, curve: OperatorEfficiency) -> Floats:
    """Return the seconds of every point by the cost model's own formula."""
    if points.operator in ("collective", "all-gather", "all-to-all"):
        sent = message_seconds(curve, _SECOND, points.ranks, 0.0, points.moved, near=True)
        return sent + curve.latency * points.latency
    work = points.work + curve.tile_tokens * points.tile_work
    moved = points.moved + curve.tile_tokens * points.tile_moved
    spent = together(busy(curve, work, points.rows, points.columns), moving(curve, moved, points.columns), curve.blend)
    rest = curve.overhead_s + points.cast / curve.cast
    if curve.row_s:
        rest = rest + curve.row_s * points.rows
    return np.asarray(spent + rest, dtype=np.float64)

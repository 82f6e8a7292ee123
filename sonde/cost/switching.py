"""Models that take turns in a fast memory: which are loaded when, what loading costs, and how long requests take.

The fast memory holds `resident` models, the least recently used of which makes room for one that is asked for and is
not there (LRU). A node serves one request at a time, in the order in which they come. Exact: nothing is approximated.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Switched(NamedTuple):
    """What happened to every request [n]: whether its model had to be loaded, and when (s) it began and finished."""

    missed: Bools
    start_s: Floats
    finish_s: Floats


def popularity(models: int, alpha: float) -> Floats:
    """Return the share of requests that each model gets, the most popular first: 1/rank^alpha (Zipf); 0: all alike.

    Raises InputError for no models, or an alpha below zero.
    """
    if models < 1:
        raise InputError("experts", models, "must be at least 1")
    if not 0 <= alpha <= 20:
        raise InputError("popularity", alpha, "must be from 0 (all alike) to 20")
    weight = np.arange(1, models + 1, dtype=np.float64) ** -alpha
    return np.asarray(weight / weight.sum())


def misses(asked: Ints, resident: int) -> Bools:
    """Return for every request, in order, whether its model was not among the `resident` used last.

    The fast memory holds models 0 to resident - 1 at first, the lowest used last. Raises InputError where none fits.
    """
    if resident < 1:
        raise InputError("resident", resident, "must be at least 1", "no model could ever run")
    held = OrderedDict.fromkeys(range(resident - 1, -1, -1))
    missed = np.zeros(len(asked), dtype=np.bool_)
    for i, model in enumerate(asked.tolist()):
        if model in held:
            held.move_to_end(model)
            continue
        missed[i] = True
        held.popitem(last=False)
        held[model] = None
    return missed


def switched(arrival_s: Floats, asked: Ints, resident: int, switch_s: float, service_s: float) -> Switched:
    """Return what happens to requests for models: one at a time, each `service_s` long, and before it `switch_s` where
    its model is not loaded.

    finish = total + running maximum of (arrival - total before): Lindley's recursion, unrolled.
    """
    missed = misses(asked, resident)
    spent = service_s + np.where(missed, switch_s, 0.0)
    total = np.cumsum(spent)
    finish = total + np.maximum.accumulate(arrival_s - (total - spent))
    return Switched(missed, finish - spent, finish)

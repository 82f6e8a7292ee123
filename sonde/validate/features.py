"""What a measured row's times consist of: seconds by class of operators and by what the engine adds.

In a closed loop without thinking time the schedule of a replica does not depend on how long its steps take: which
requests share which step is decided by lengths, clients and batch alone. So mean TTFT and TPOT are sums over the
components of a step, and one run per component yields them exactly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import EngineOverhead
from sonde.catalogue.engines import CLASSES
from sonde.catalogue.models import model
from sonde.cost.compile import compile_replica
from sonde.cost.served import kernels
from sonde.cost.table import Engine
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, SondeError
from sonde.validate.predict import FULLER, simulated
from sonde.validate.rows import Row
from sonde.validate.setting import Setting, roomier, setting

Floats = NDArray[np.float64]

#: what a step's time is made of: classes of operators, and unit overheads of the engine (s per step, layer, ...)
OVERHEADS = ("step", "layer", "sequence", "token")
COMPONENTS = (*CLASSES, *OVERHEADS)

#: overheads that runs are made with, in s: small beside a step, and large beside rounding
_STEP, _SEQUENCE, _TOKEN = 1e-3, 1e-6, 1e-6


class Features(NamedTuple):
    """Of n rows: seconds of TTFT and TPOT by component [n, components], and prompt tokens [n].

    A class of operators counts with its catalogue time; an overhead with one second of it per step, layer,
    sequence or token.
    """

    settings: tuple[Setting, ...]
    ttft: Floats
    tpot: Floats
    prompt: Floats


def features(rows: Sequence[Row], threads: int | None = None) -> Features:
    """Return the features of the rows that can be predicted; others are left out."""
    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
        found = [part for part in pool.map(_row, rows) if part is not None]
    return Features(
        tuple(part[0] for part in found),
        np.array([part[1][:, 0] for part in found]),
        np.array([part[1][:, 1] for part in found]),
        np.array([part[2] for part in found]),
    )


def _row(row: Row) -> tuple[Setting, Floats, float] | None:
    try:
        chosen = setting(row)
        engines = _engines(chosen)
        runs = [simulated(chosen, engine) for engine in engines]
    except SondeError:
        return None
    times = np.array([run[:2] for run in runs])
    more = times[1:] - times[0]
    classes = more[: len(CLASSES)]
    step = more[len(CLASSES)] / _STEP
    sequence, token = more[len(CLASSES) + 1] / _SEQUENCE, more[len(CLASSES) + 2] / _TOKEN
    layers = chosen.model.layers
    return chosen, np.vstack([classes, step, step * layers, sequence, token]), runs[0][2]


def _engines(chosen: Setting) -> tuple[Engine, ...]:
    for fraction in (chosen.replica.memory_fraction, *FULLER):
        larger = max(fraction, chosen.replica.memory_fraction)
        try:
            engines = _compiled(
                chosen.replica.model_copy(update={"memory_fraction": larger}), chosen.row.engine, chosen.block_scaled
            )
            return tuple(roomier(chosen, engine) for engine in engines)
        except CannotError as error:
            why = error
    raise why


@lru_cache(maxsize=64)
def _compiled(replica: Replica, engine: str, block_scaled: bool) -> tuple[Engine, ...]:
    """Return the engine with the catalogue's times, then one with each component counted once more."""
    hardware = device(replica.device)
    reached = replace(
        kernels(hardware, engine, block=block_scaled), engine=EngineOverhead(_STEP, 0.0, 0.0, 0.0), factors=()
    )
    changed = [reached, *(replace(reached, factors=((name, 2.0),)) for name in CLASSES)]
    overheads = ((2 * _STEP, 0.0, 0.0, 0.0), (_STEP, 0.0, 0.0, _SEQUENCE), (_STEP, 0.0, _TOKEN, 0.0))
    changed += [replace(reached, engine=EngineOverhead(*values)) for values in overheads]
    found = model(replica.model)
    return tuple(compile_replica(found, hardware, replica, reached=each) for each in changed)

"""Predictions of measured rows, by running the simulator with as many clients as were there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sonde.catalogue.devices import device
from sonde.catalogue.engines import UNKNOWN_VERSION, spread
from sonde.catalogue.models import model
from sonde.cost.compile import compile_replica
from sonde.cost.served import client, served
from sonde.cost.table import Engine
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, SondeError
from sonde.sim.engine import run
from sonde.validate.rows import Fault, Row
from sonde.validate.setting import Setting, lengths, roomier, setting

#: shares of device memory tried in turn where weights leave no room for caches
FULLER = (0.95, 0.98, 1.0)

Progress = Callable[[int, int, str], None]


class Prediction(NamedTuple):
    """What was predicted of a row: times in ms, and the interval that holds 80 % of measurements."""

    line: int
    id: str
    ttft_ms: float
    tpot_ms: float
    ttft_lo_ms: float
    ttft_hi_ms: float
    tpot_lo_ms: float
    tpot_hi_ms: float
    note: str


def predict(row: Row) -> Prediction | Fault:
    """Return the prediction of a measured row, or why there is none. The measured times are not looked at."""
    try:
        chosen = setting(row)
        engine, note = compiled(chosen)
        seen = client(chosen.engine, chosen.replica.data_parallel, row.concurrency)
        ttft_s, tpot_s, _ = simulated(chosen, engine._replace(client=seen))
    except SondeError as error:
        return Fault(row.line, row.id, str(error))
    ttft_ms, tpot_ms = 1e3 * ttft_s, 1e3 * tpot_s
    held = spread(row.engine, chosen.model.name, chosen.device.name)
    return Prediction(
        row.line, row.id, ttft_ms, tpot_ms,
        ttft_ms * held.ttft_low, ttft_ms * held.ttft_high,
        tpot_ms * held.tpot_low, tpot_ms * held.tpot_high,
        "; ".join(text for text in (chosen.note, note) if text),
    )  # fmt: skip


def predict_all(
    entries: Sequence[Row | Fault], progress: Progress | None = None, threads: int | None = None
) -> list[Prediction | Fault]:
    """Return one prediction or fault per entry, in order; faults of reading are handed through."""
    count = threads or min(os.cpu_count() or 1, 8)
    found: list[Prediction | Fault] = []
    with ThreadPoolExecutor(count) as pool:
        for done, result in enumerate(pool.map(_one, entries), start=1):
            found.append(result)
            if progress is not None:
                progress(done, len(entries), "rows")
    return found


def _one(entry: Row | Fault) -> Prediction | Fault:
    return entry if isinstance(entry, Fault) else predict(entry)


def compiled(chosen: Setting) -> tuple[Engine, str]:
    """Return the engine of a setting, and what was changed so that it fits. Raises CannotError where nothing does."""
    replica, version = chosen.replica, chosen.row.version or UNKNOWN_VERSION
    for fraction in (replica.memory_fraction, *FULLER):
        tried = replica.model_copy(update={"memory_fraction": max(fraction, replica.memory_fraction)})
        try:
            engine = _engine(tried, chosen.engine.name, version, chosen.block_scaled)
        except CannotError as error:
            why = error
            continue
        return roomier(
            chosen, engine
        ), "" if tried == replica else f"fits at {tried.memory_fraction:.0%} of device memory only"
    raise why


@lru_cache(maxsize=512)
def _engine(replica: Replica, name: str, version: str, block_scaled: bool) -> Engine:
    hardware = device(replica.device)
    reached = served(hardware, replica, name, version, block=block_scaled)
    return compile_replica(model(replica.model), hardware, replica, reached=reached)


def simulated(chosen: Setting, engine: Engine) -> tuple[float, float, float]:
    """Return the mean TTFT and TPOT (s) over all requests of a run, and the mean prompt (tokens)."""
    requests = lengths(chosen.row)
    outcome = run(requests, [(engine, chosen.replicas)], clients=chosen.row.concurrency)
    if not np.isfinite(outcome.finish_s).all():
        raise CannotError(
            f"a sequence of {chosen.row.isl + chosen.row.osl:,} tokens does not fit the memory left for caches"
        )
    longer = requests.output_tokens > 1
    tpot = float(outcome.tpot_s[longer].mean()) if longer.any() else 0.0
    return float(outcome.ttft_s.mean()), tpot, float(requests.prompt_tokens.mean())

"""A real engine under open load, request by request: its arrivals replayed through the simulator."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.device import Device
from sonde.catalogue.engines import serving_engine
from sonde.catalogue.model import Model
from sonde.catalogue.models import model
from sonde.cost.compile import compile_replica
from sonde.cost.served import served
from sonde.cost.table import Engine
from sonde.deployment.tree import Batching, Replica
from sonde.errors import CannotError, InputError
from sonde.metrics import Outcome
from sonde.sim.ends import run_at
from sonde.sim.engine import run
from sonde.validate.setting import system
from sonde.workload.requests import Requests, requests

Floats = NDArray[np.float64]

METRICS = ("ttft", "tpot", "e2e")

_TIMES = ("arrival_time", "queued_ts", "first_token_ts", "last_token_ts")


class Measured(NamedTuple):
    """A run of a real engine, sorted by arrival. Times in s, one per request."""

    requests: Requests
    ids: tuple[str, ...]
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    meta: dict[str, Any]
    device: Device
    model: Model


#: TTFT, TPOT and end to end (s) of every request
Times = tuple[Floats, Floats, Floats]


class Compared(NamedTuple):
    """One figure, measured and predicted, in ms; `error` is the signed share of what was measured.

    lo_ms, hi_ms   ends of the 80 % interval of the prediction (NaN: not asked for)
    """

    metric: str
    statistic: str
    measured_ms: float
    predicted_ms: float
    error: float
    lo_ms: float = math.nan
    hi_ms: float = math.nan


def read_run(folder: Path) -> Measured:
    """Return the run in `folder`: requests.jsonl and meta.json, under GPU/MODEL. Raises InputError on bad files.

    TTFT and end to end count from the moment at which the engine's queue first saw the request: clocks of the
    client and of the engine are aligned by the request that waited least between the two.
    """
    meta = _object(folder / "meta.json")
    rows = _requests(folder / "requests.jsonl")
    rows.sort(key=lambda row: float(row["arrival_time"]))
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in _TIMES}
    arrival = columns["arrival_time"] + float(np.min(columns["queued_ts"] - columns["arrival_time"]))
    output = np.array([row["output_toks"] for row in rows])
    ttft = columns["first_token_ts"] - arrival
    e2e = columns["last_token_ts"] - arrival
    asked = requests(arrival - arrival[0], np.array([row["input_toks"] for row in rows]), output)
    place = folder.resolve()
    return Measured(
        asked, tuple(str(row.get("request_id", i)) for i, row in enumerate(rows)), ttft,
        (e2e - ttft) / np.maximum(output - 1, 1), e2e, meta, system(place.parent.name),
        model(str(meta.get("model", place.name))),
    )  # fmt: skip


def replay(measured: Measured) -> Times:
    """Return predicted TTFT, TPOT and end to end (s) of every request, from the catalogue and the run's settings."""
    return times(measured, vllm(measured))


def replay_ends(measured: Measured) -> tuple[Times, Times]:
    """Return the same at the fast and at the slow end of the 80 % interval."""
    engine = vllm(measured)
    fast, slow = (_served(run_at(measured.requests, [(engine, 1)], slow=end)) for end in (False, True))
    return fast, slow


def times(measured: Measured, engine: Engine) -> Times:
    """Return what `engine` does with the arrivals of a run: TTFT, TPOT and end to end (s) of every request."""
    return _served(run(measured.requests, [(engine, 1)]))


def _served(outcome: Outcome) -> Times:
    if not np.isfinite(outcome.finish_s).all():
        raise CannotError("requests of this run do not fit the memory left for caches")
    return outcome.ttft_s, outcome.tpot_s, outcome.e2e_s


def vllm(measured: Measured) -> Engine:
    """Return the engine with the run's settings: batch, budget, parallelism, and its own count of KV blocks.

    Nothing is added for clients, for times are measured from where the engine's queue first sees a request.
    """
    meta, version = measured.meta, str(measured.meta.get("vllm_version", ""))
    given, cache = meta.get("engine_kwargs", {}), meta.get("kv_cache", {})
    constants = serving_engine("vllm", version)
    replica = Replica.model_validate(
        {
            "model": measured.model.name, "device": measured.device.name,
            "tensor_parallel": given.get("tensor_parallel_size", 1),
            "memory_fraction": cache.get("gpu_memory_utilization", constants.memory_fraction),
            "block_tokens": cache.get("block_size", 16),
            "batching": Batching(
                policy=constants.batching, max_batch=given.get("max_num_seqs", int(constants.max_batch)),
                token_budget=given.get("max_num_batched_tokens", int(constants.token_budget)),
            ),
        }
    )  # fmt: skip
    reached = served(measured.device, replica, "vllm", version)
    engine = compile_replica(measured.model, measured.device, replica, reached=reached)
    blocks = cache.get("num_gpu_blocks")
    if not blocks:
        return engine
    memory = engine.memory
    held = int(blocks) * (memory.block_bytes + memory.window_block_bytes)
    return engine._replace(memory=memory._replace(capacity_bytes=held))


def compare(measured: Measured, predicted: Times, ends: tuple[Times, Times] | None = None) -> list[Compared]:
    """Return mean and p90 of TTFT, TPOT and end to end, measured beside predicted; `ends` as `replay_ends` has them."""
    found = []
    for i, metric in enumerate(METRICS):
        real: Floats = getattr(measured, f"{metric}_s")
        for statistic, take in (("mean", np.mean), ("p90", lambda column: np.quantile(column, 0.9))):
            a, b = 1e3 * float(take(real)), 1e3 * float(take(predicted[i]))
            there = [1e3 * float(take(end[i])) for end in ends] if ends else []
            span = (min(b, *there), max(b, *there)) if there else ()
            found.append(Compared(metric, statistic, a, b, b / a - 1.0, *span))
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(str(path), "text", f"must be JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(str(path), type(found).__name__, "must hold a JSON object")
    return found


def _requests(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}:{line}", text[:60], "must be a JSON object") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{line}", text[:60], "must be a JSON object")
        for name in (*_TIMES, "input_toks", "output_toks"):
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InputError(f"{path}:{line} {name}", value, "must be a number")
        rows.append(row)
    if not rows:
        raise InputError(str(path), "no requests", "must hold at least one request")
    return rows

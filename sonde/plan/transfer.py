"""The least that a cache takes from where prompts are computed to where answers are: over an empty link."""

from __future__ import annotations

import math

import numpy as np

from sonde.catalogue.models import model
from sonde.cost.table import Engine
from sonde.deployment.network import Link
from sonde.deployment.tree import Pool
from sonde.metrics import Objective
from sonde.plan.explain import Failure
from sonde.plan.fleet import Candidate
from sonde.plan.prune import kv_bytes
from sonde.techniques.disaggregation import Split, link
from sonde.units import show
from sonde.workload.requests import Requests


def least_transfer(trace: Requests, engine: Engine, over: Link, layers: int, quantile: float) -> float:
    """Return seconds that transfers of `trace` take at a quantile, each alone on the link.

    Counted as `Outcome.quantile` does, over requests of two tokens or more; `layers` is 1 where caches are sent whole,
    else so many parts, of which the last can't be sent before the prompt is done.
    """
    tokens = trace.prompt_tokens[trace.output_tokens > 1].astype(np.int64)
    if not len(tokens):
        return 0.0
    times = over.latency + kv_bytes(engine.memory, engine.table.window, tokens) / layers / over.bandwidth
    rank = max(0, math.ceil(quantile * len(times)) - 1)
    return float(np.partition(times, rank)[rank])


def too_slow(trace: Requests, goal: Objective | None, one: Candidate, other: Candidate, split: Split) -> Failure | None:
    """Return why a pair cannot hold an objective on transfers whatever else happens; None where it may, or need not.

    Given the same replica twice it is what holds of that replica beside any other of its kind.
    """
    if goal is None:
        return None
    over = link(split, tuple(Pool(replicas=1, replica=it.written or it.replica) for it in (one, other)))
    layers = model(one.replica.model).layers if split.layer_wise else 1
    least = least_transfer(trace, one.engine, over, layers, goal.quantile)
    if least <= goal.limit_s * (1 + 1e-9):
        return None
    reason = (
        f"{goal.label} at least {show(least, 'time')} against {show(goal.limit_s, 'time')}: a cache takes that long "
        f"over an empty link of {show(over.bandwidth, 'bandwidth')}"
    )
    return Failure("transfer", reason, least / goal.limit_s)

"""Engines and traces drawn for tests of the planner."""

from __future__ import annotations

import numpy as np

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.workload.requests import Requests, requests


def draw_engine(
    rng: np.random.Generator, *, window: int = 0, max_batch: int = 16, budget: int = 64, batching: str = "chunked"
) -> Engine:
    """An engine with bumpy tables, as measured ones are: they need not rise, nor be convex."""
    tokens, batch = 80, max_batch
    flat = rng.uniform(1e-3, 1e-2)
    linear = np.maximum(flat, np.arange(tokens + 1) * rng.uniform(1e-5, 4e-4)) * rng.uniform(0.9, 1.1, tokens + 1)
    linear[0] = 0
    decode = np.arange(batch + 1) * rng.uniform(0, 1e-4) * rng.uniform(0.9, 1.1, batch + 1)
    read = rng.uniform(1e-7, 1e-5) * rng.uniform(0.8, 1.2, batch + 1)
    wide = rng.uniform(1e-7, 1e-5) * rng.uniform(0.8, 1.2, batch + 1) if window else np.zeros(batch + 1)
    time = Coefficients(
        rng.uniform(0, 2e-3), linear, rng.uniform(1e-5, 4e-4), rng.uniform(0, 1e-6), 1e-7 if window else 0.0,
        decode, read, wide,
    )  # fmt: skip
    memory = KvMemory(int(rng.integers(60, 400)) * 16, 4, 64, 16 if window else 0, int(rng.integers(0, 2)) * 8, 1e9)
    return Engine(
        StepTable(time, time, window), memory, batching, max_batch, budget, "recompute", 10.0,
        float(rng.uniform(0.5, 4)), 1,
    )  # fmt: skip


def draw_trace(rng: np.random.Generator, n: int = 60, rate: float = 20.0) -> Requests:
    arrival = np.cumsum(rng.exponential(1 / rate, n))
    return requests(arrival, rng.integers(1, 60, n), rng.integers(1, 30, n))

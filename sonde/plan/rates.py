"""Prices of work in seconds that no schedule can undercut: a linear floor under the step table.

A step with P prompt tokens, B decoding sequences and S tokens read takes t(P, B, S). `Rates` are numbers
with

    t(P, B, S) ≥ prompt·P + decode·B + read·S      for every step that the engine can make,

so that the steps of any schedule, added up, take at least the sum of the rates over all the work. They are
the dual of a linear programme over all possible steps; any numbers that satisfy the line above are a valid
bound, and `rates` picks the ones that give the most for the work at hand.

Requests that keep a TPOT limit L allow for more. Each of them spends at most L per token in the steps that
decode it, so over all steps Σ B·t ≤ L·Σ B, and for any λ ≥ 0

    (1 + λ·B)·t(P, B, S) − λ·L·B ≥ prompt·P + decode·B + read·S

is enough: large batches, whose steps are long, stop being free.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Coefficients, Engine
from sonde.plan.work import Work

Floats = NDArray[np.float64]
_NO_LIMIT = 1e15  # tokens of KV cache: more than any memory holds
_ALPHAS = 33
_ROUNDS = 4


class Rates(NamedTuple):
    """Seconds per unit of each column of `Work`."""

    prompt: float
    pair: float
    pair_window: float
    decode: float
    read: float
    read_window: float


class StepFloor(NamedTuple):
    """Tables that lie at or below the step table and never fall: leaving work out never costs time.

    tokens [T + 1]        fixed + linear, from 1 token on (entry 0 repeats entry 1)
    decode, read [B + 1]  by number of decoding sequences
    read_window           seconds per token of windowed cache read, the least over batches
    kv_tokens             tokens of KV cache that memory holds at most
    slope                 seconds per token past the end of `tokens`; infinite where no step is that long
    """

    tokens: Floats
    decode: Floats
    read: Floats
    read_window: float
    pair: float
    pair_window: float
    kv_tokens: float
    slope: float


def step_floor(engine: Engine, *, any_batching: bool = False) -> StepFloor:
    """Return the floor under the steps of an engine, within its batch limit and, if chunked, token budget.

    `any_batching` leaves the token budget out, for a statement about every scheduler.
    """
    time, memory = engine.table.time, engine.memory
    each = memory.block_bytes + memory.window_block_bytes + memory.state_bytes
    batch = min(engine.max_batch, len(time.decode) - 1)
    if each > 0:
        batch = max(1, min(batch, memory.capacity_bytes // each))
    tokens, slope = _tokens(time, engine, any_batching)
    room = (
        memory.capacity_bytes / memory.block_bytes * memory.block_tokens + batch
        if memory.block_bytes > 0
        else _NO_LIMIT
    )
    return StepFloor(
        tokens=tokens,
        decode=_rising(time.decode[: batch + 1]),
        read=_rising(time.read[: batch + 1]),
        read_window=float(time.read_window[1 : batch + 1].min()),
        pair=max(time.prefill, 0.0),
        pair_window=max(time.prefill_window, 0.0),
        kv_tokens=room,
        slope=slope,
    )


def _tokens(time: Coefficients, engine: Engine, any_batching: bool) -> tuple[Floats, float]:
    linear = time.linear
    if any_batching or engine.batching != "chunked":
        tokens, slope = linear, max(time.slope, 0.0)
    else:
        most = max(engine.token_budget, engine.max_batch)
        past = np.arange(1, max(0, most - len(linear) + 1) + 1)
        tokens, slope = np.concatenate([linear, linear[-1] + time.slope * past])[: most + 1], np.inf
    floor = _rising(time.fixed + tokens)
    floor[0] = floor[min(1, len(floor) - 1)]
    return floor, slope


def _rising(values: Floats) -> Floats:
    """Return the largest table that never falls and lies at or below `values`."""
    return np.minimum.accumulate(values[::-1])[::-1].copy()


class _Conjugate(NamedTuple):
    """least[a, b] = min over n ≥ max(b, 1) tokens of tokens[n] − alpha[a]·n; concave in alpha."""

    alpha: Floats
    least: Floats


def _conjugate(floor: StepFloor) -> _Conjugate:
    n = np.arange(len(floor.tokens), dtype=np.float64)
    batch = len(floor.decode) - 1
    top = min(float((floor.tokens[1:] / n[1:]).min()), floor.slope)
    alpha = top * np.linspace(0.0, 1.0, _ALPHAS)
    least = np.empty((_ALPHAS, batch + 1))
    last = len(n) - 1
    for row, value in enumerate(alpha):
        gain = floor.tokens - value * n
        gain[0] = gain[min(1, last)]
        tail = np.minimum.accumulate(gain[::-1])[::-1]
        least[row] = tail[np.minimum(np.arange(batch + 1), last)]
    return _Conjugate(alpha, least)


def prompt_rates(floor: StepFloor) -> Rates:
    """Return the rates that put all on the prompt: for work that must be done by a TTFT limit."""
    n = np.arange(1, len(floor.tokens), dtype=np.float64)
    top = min(float((floor.tokens[1:] / n).min()), floor.slope)
    return Rates(top, floor.pair, floor.pair_window, 0.0, 0.0, 0.0)


def rates(floor: StepFloor, demand: Work, tpot_limit_s: float | None = None) -> Rates:
    """Return the rates that make the total of `demand` (columns or sums) as long as the floor allows.

    `tpot_limit_s` may be given where all the work that is counted is of requests that keep that TPOT, each
    decoded on one replica. The search is a grid that shrinks around its best point (the total is concave in
    all three unknowns); a grid that misses the best point gives a lower bound that is a little lower.
    """
    conjugate = _conjugate(floor)
    totals = [float(column.sum()) for column in demand]
    top = conjugate.alpha[-1]
    batch = np.arange(1, len(floor.decode), dtype=np.float64)
    steps = floor.tokens[np.minimum(batch.astype(int), len(floor.tokens) - 1)] + floor.decode[1:]
    gamma_top = 1.5 * max(float((steps / floor.kv_tokens + floor.read[1:]).min()), 0.0)
    lambdas = np.array([0.0]) if tpot_limit_s is None else np.concatenate([[0.0], np.geomspace(1e-4, 2.0, 12)])
    alphas, gammas = np.linspace(0, top, 9), np.linspace(0, gamma_top, 9)
    best = (-np.inf, 0.0, 0.0, 0.0, 0.0)
    for _ in range(_ROUNDS):
        for weight in lambdas:
            beta = _beta(floor, conjugate, alphas, gammas, float(weight), tpot_limit_s or 0.0)
            total = alphas[:, None] * totals[0] + beta * totals[3] + gammas[None, :] * totals[4]
            i, j = np.unravel_index(int(total.argmax()), total.shape)
            if total[i, j] > best[0]:
                best = (float(total[i, j]), float(alphas[i]), float(beta[i, j]), float(gammas[j]), float(weight))
        alphas = _around(alphas, best[1], top)
        gammas = _around(gammas, best[3], gamma_top)
        lambdas = lambdas if len(lambdas) == 1 else _around_weight(lambdas, best[4])
    return Rates(best[1], floor.pair, floor.pair_window, best[2], best[3], floor.read_window)


def _beta(
    floor: StepFloor, conjugate: _Conjugate, alphas: Floats, gammas: Floats, weight: float, limit_s: float
) -> Floats:
    """Return the largest decode rate that keeps the floor, for every (alpha, gamma): [alphas, gammas]."""
    batch = np.arange(1, len(floor.decode), dtype=np.float64)
    scale = 1.0 + weight * batch
    column = np.arange(1, len(floor.decode))
    where = alphas[:, None] / scale[None, :] / max(conjugate.alpha[-1], 1e-300) * (_ALPHAS - 1)
    low = np.minimum(where.astype(int), _ALPHAS - 2)
    part = where - low
    least = conjugate.least[low, column] * (1 - part) + conjugate.least[low + 1, column] * part  # a chord lies below
    base = scale * (least + floor.decode[1:]) + (alphas[:, None] - weight * limit_s) * batch
    short = np.minimum(0.0, scale * floor.read[1:] - gammas[:, None]) * floor.kv_tokens  # [gammas, batch]
    return np.asarray(((base[:, None, :] + short[None, :, :]) / batch).min(axis=2))


def _around(grid: Floats, centre: float, top: float) -> Floats:
    step = grid[1] - grid[0] if len(grid) > 1 else 0.0
    return np.unique(np.clip(np.append(np.linspace(centre - step, centre + step, 8), centre), 0.0, top))


def _around_weight(grid: Floats, centre: float) -> Floats:
    at = int(np.searchsorted(grid, centre))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    return np.unique(np.append(np.linspace(low, high, 6), centre))


def seconds(demand: Work, price: Rates) -> tuple[Floats, Floats]:
    """Return per request the least replica-seconds of its prompt, and of its decoding."""
    prompt = price.prompt * demand.prompt + price.pair * demand.pair + price.pair_window * demand.pair_window
    decode = price.decode * demand.decode + price.read * demand.read + price.read_window * demand.read_window
    return prompt, decode


def alone(floor: StepFloor, demand: Work) -> tuple[Floats, Floats]:
    """Return per request the least TTFT and TPOT in s that any schedule of this engine can give it.

    As if it were alone on an idle replica: its prompt takes at least one step and at least the price of
    its tokens; each token after the first takes at least the shortest step that reads its context.
    """
    conjugate = _conjugate(floor)
    tokens = np.zeros_like(demand.prompt)
    for alpha, least in zip(conjugate.alpha, conjugate.least[:, 0], strict=True):
        np.maximum(tokens, alpha * demand.prompt + max(least, 0.0), out=tokens)
    first = tokens + floor.pair * demand.pair + floor.pair_window * demand.pair_window
    batch = np.minimum(np.arange(1, len(floor.decode)), len(floor.tokens) - 1)
    step = float((floor.tokens[batch] + floor.decode[1:]).min())
    reads = float(floor.read[1:].min()) * demand.read + floor.read_window * demand.read_window
    gap = np.where(demand.decode > 0, step + reads / np.maximum(demand.decode, 1.0), 0.0)
    return first, gap

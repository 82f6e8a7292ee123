"""The least dollars per hour of any fleet: an integer programme over kinds of replica, all of whose lines are proofs.

For any weights π ≥ 0 on the kinds of replica, a request costs at least its cheapest π·seconds over the kinds
that could serve it in time, so what a window of requests must cost divided by its time is at least needed of
Σ π·replicas. With the prices as weights that is the linear programme that spreads work over kinds; with the
prices of capable kinds alone, it says how many of those it takes for the requests that the others cannot
serve. The cheapest whole numbers of replicas that satisfy all these lines cost less than, or the same as,
any fleet that holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Engine
from sonde.metrics import Objective
from sonde.plan.bounds import ROUNDING, Need, Promise, loudest, priced, promises, replicas_needed
from sonde.plan.demand import rows
from sonde.plan.fleet import Candidate
from sonde.plan.rates import step_floor
from sonde.plan.work import work
from sonde.workload.requests import Requests

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_MOST_REQUESTS = 100_000
_SETS = 12  # sets of capable kinds that are looked at


class Kind(NamedTuple):
    """A way to run a replica, batching aside: no batching of it does better than `engine` is priced here.

    `stock` names where its devices come from and `most` how many devices there are; kinds share a stock. `cached`:
    prompts may be in a cache.
    """

    engine: Engine
    stock: str
    most: int
    cached: bool = False


class Floor(NamedTuple):
    """The bound: dollars per hour, the cheapest fleet that no proof rules out, and the window behind the price."""

    usd_per_hour: float
    replicas: tuple[int, ...]
    need: Need | None


class _Line(NamedTuple):
    """Σ weights·replicas ≥ amount."""

    weights: Floats
    amount: float


class _Prices(NamedTuple):
    """Per kind and request [k, n]: least replica-seconds of prompt and of decoding, and who could not be served."""

    prompt: Floats
    decode: Floats
    hopeless: Bools


def kinds(candidates: Sequence[Candidate]) -> list[Kind]:
    """Return one kind for each family, with the largest batch and memory of any in it: bounds on it hold for all.

    Where techniques give members of a family steps that differ in more than how far the table reaches, each such
    table is a kind.
    """
    found: dict[tuple[object, ...], list[Kind]] = {}
    for candidate in candidates:
        engine, hardware = candidate.least, candidate.hardware
        stock = f"{hardware.device.name} {hardware.purchase} {hardware.usd_per_hour}"
        family = found.setdefault(candidate.family, [])
        at = next((i for i, kind in enumerate(family) if _same_steps(kind.engine, engine)), len(family))
        known = family[at].engine if at < len(family) else engine
        room = max(engine.memory.capacity_bytes, known.memory.capacity_bytes)
        best = max(engine, known, key=lambda item: (item.max_batch, item.token_budget))
        best = best._replace(memory=best.memory._replace(capacity_bytes=room))
        family[at : at + 1] = [Kind(best, stock, hardware.most, candidate.cached)]
    return [kind for family in found.values() for kind in family]


def _same_steps(one: Engine, other: Engine) -> bool:
    """Return whether steps that both engines can make take the same time."""
    if one is other:
        return True
    pairs = list(zip(one.table.time, other.table.time, strict=True))
    return one.table.window == other.table.window and all(
        np.array_equal(a[: len(b)], b[: len(a)]) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a == b
        for a, b in pairs
    )


def dollars_needed(choices: Sequence[Kind], trace: Requests, objectives: Sequence[Objective]) -> Floor:
    """Return dollars per hour below which no fleet of these kinds, mixed in any way, holds the objectives.

    Each request is served, whole, by one replica of any kind, under any routing, order and batching within the
    kind's batch limit. Infinite where no fleet that the stock allows could hold.
    """
    if not choices:
        return Floor(math.inf, (), None)
    prices = np.array([kind.engine.usd_per_hour for kind in choices])
    lines = [_Line(np.ones(len(choices)), 1.0)]
    best: Need | None = None
    part = _busiest(trace)
    busy = rows(trace, part.stop, part.start)
    for whole in promises(trace, objectives):
        promise = whole._replace(deadline_s=whole.deadline_s[part])
        table = _table(choices, busy, promise)
        if np.count_nonzero(table.hopeless.all(axis=0)) > promise.misses:
            return Floor(math.inf, (), None)
        need = _need(busy, promise, table, prices)
        lines.append(_Line(prices, need.amount))
        if best is None or need.amount > best.amount:
            best = need
        lines += _capable(busy, promise, table, prices)
    cost, replicas = _cheapest(choices, prices, lines)
    return Floor(cost, replicas, best)


def one_kind_needed(choices: Sequence[Kind], trace: Requests, objectives: Sequence[Objective]) -> Floor:
    """Return dollars per hour below which no fleet of any one of these kinds holds the objectives.

    Requests may move between its replicas: each token is still made in some step of that kind.
    """
    best, replicas = math.inf, tuple[int, ...]()
    for kind in choices:
        count, _ = replicas_needed(kind.engine, trace, objectives, any_batching=True, cached=kind.cached)
        if count * kind.engine.devices <= kind.most and count * kind.engine.usd_per_hour < best:
            best, replicas = count * kind.engine.usd_per_hour, (count,)
    return Floor(best, replicas, None)


def _busiest(trace: Requests) -> slice:
    """Return the requests to look at: all, or of very many the stretch with most tokens per second.

    A bound on some of the requests, of which as many may miss as of all, is a bound on all.
    """
    if trace.n <= _MOST_REQUESTS:
        return slice(0, trace.n)
    tokens = np.concatenate([[0], np.cumsum(trace.prompt_tokens.astype(np.int64) + trace.output_tokens)])
    starts = np.arange(0, trace.n - _MOST_REQUESTS + 1, _MOST_REQUESTS // 8)
    span = trace.arrival_s[starts + _MOST_REQUESTS - 1] - trace.arrival_s[starts]
    first = int(starts[int(((tokens[starts + _MOST_REQUESTS] - tokens[starts]) / np.maximum(span, 1e-9)).argmax())])
    return slice(first, first + _MOST_REQUESTS)


def _table(choices: Sequence[Kind], trace: Requests, promise: Promise) -> _Prices:
    keys = [(kind.engine.table.window, kind.cached) for kind in choices]
    demands = {(window, cached): work(trace, window, cached=cached) for window, cached in set(keys)}
    columns = [
        priced(step_floor(kind.engine, any_batching=True), demands[key], promise)
        for kind, key in zip(choices, keys, strict=True)
    ]
    return _Prices(*(np.array(column) for column in zip(*columns, strict=True)))


def _need(trace: Requests, promise: Promise, table: _Prices, weights: Floats) -> Need:
    """Return what Σ weights·replicas must be at least, by the window that needs most."""
    column = weights[:, None]
    prompt = np.where(table.hopeless, np.inf, column * table.prompt).min(axis=0)
    whole = np.where(table.hopeless, np.inf, column * (table.prompt + table.decode)).min(axis=0)
    nobody = np.isinf(prompt)
    prompt, whole = np.where(nobody, 0.0, prompt), np.where(nobody, 0.0, whole)
    top = loudest(trace, promise, prompt, whole - prompt, nobody)
    return Need(top.rate * (1 - ROUNDING), promise, top)


def _capable(trace: Requests, promise: Promise, table: _Prices, prices: Floats) -> list[_Line]:
    """Return lines on the kinds that can serve what others cannot: the others' weight is 0, and so is what they can.

    Where more requests than may miss can be served by capable kinds alone, at least one replica is of those.
    """
    counts = np.count_nonzero(table.hopeless, axis=1)
    nobody = int(np.count_nonzero(table.hopeless.all(axis=0)))
    levels = np.unique(counts)
    lines = []
    for level in levels[np.unique(np.linspace(0, len(levels) - 1, _SETS).astype(int))][:-1]:
        able = counts <= level
        only = int(np.count_nonzero(table.hopeless[~able].all(axis=0))) - nobody
        if only <= 0:
            continue
        weights = np.where(able, prices, 0.0)
        lines.append(_Line(weights, _need(trace, promise, table, weights).amount))
        if only > promise.misses - nobody:
            lines.append(_Line(able.astype(np.float64), 1.0))
    return lines


def _cheapest(choices: Sequence[Kind], prices: Floats, lines: Sequence[_Line]) -> tuple[float, tuple[int, ...]]:
    """Return the least cost of whole replicas within the stock that satisfies every line, and the replicas."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    needs = [LinearConstraint(np.array([line.weights for line in lines]), [line.amount for line in lines], np.inf)]
    stocks = {kind.stock: kind.most for kind in choices}
    held = [[kind.engine.devices * (kind.stock == stock) for kind in choices] for stock in stocks]
    needs.append(LinearConstraint(np.array(held, dtype=np.float64), -np.inf, list(stocks.values())))
    solved = milp(
        prices, constraints=needs, integrality=np.ones(len(choices)), bounds=Bounds(0, np.inf),
        options={"mip_rel_gap": 0.0, "time_limit": 5.0},
    )  # fmt: skip
    if solved.status == 2:
        return math.inf, ()
    amount = max(line.amount for line in lines if np.array_equal(line.weights, prices)) if len(lines) > 1 else 0.0
    if solved.x is None or solved.mip_dual_bound is None:
        return max(amount, float(prices.min())), ()
    cost = float(solved.fun) if solved.status == 0 else float(solved.mip_dual_bound)
    return max(cost * (1 - ROUNDING), amount), tuple(round(value) for value in solved.x)

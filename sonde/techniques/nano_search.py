"""The search for nano-batches, in two stages as NanoFlow does it: how many, how large and in which order, as if
nothing disturbed anything (a mixed-integer programme); then which share of the device each kind of stage gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sonde.catalogue.interference import Interference
from sonde.cost.roofline import Floats
from sonde.techniques.layer import Stage
from sonde.techniques.timeline import Device, Order, makespan

#: sizes of nano-batches over that of the batch: even, and NanoFlow's uneven ones (768 and 640 of 2048)
SPLITS: tuple[tuple[float, ...], ...] = (
    (0.5, 0.5),
    (0.375, 0.625),
    (0.3125, 0.6875),
    (1 / 3, 1 / 3, 1 / 3),
)
#: shares of the device that are tried for stages of memory and links, and how much of it they leave at least
SHARES = tuple(i / 20 for i in range(2, 17))
LEAST_LEFT = 0.1
#: splits that the second stage looks at, the best of the first one
KEPT = 3
#: of the branch and bound: a limit in nodes, so that the answer is the same everywhere
NODES, GAP = 100, 0.01


class Pipeline(NamedTuple):
    """What the search found: sizes of nano-batches, the order of their stages, and shares by name of the stage.

    ideal   seconds of a layer if nothing disturbed anything: what the first stage took for the best
    """

    split: tuple[float, ...]
    order: Order
    device: Device
    ideal: float


def search(
    cut: Sequence[tuple[tuple[float, ...], Sequence[Sequence[Stage]]]], interference: Interference, layers: int
) -> Pipeline:
    """Return the pipeline whose layers take the least time.

    cut   candidates: sizes of nano-batches, and the stages of a layer of each (all with the same names)
    """
    first = sorted((shortest(nanos), i) for i, (_, nanos) in enumerate(cut))[:KEPT]
    found = []
    for (ideal, order), i in first:
        split, nanos = cut[i]
        shares, seconds = _shares(nanos, order, interference, layers)
        found.append((seconds, Pipeline(split, order, Device(interference, shares), ideal)))
    return min(found, key=lambda each: each[0])[1]


def shortest(nanos: Sequence[Sequence[Stage]]) -> tuple[float, Order]:
    """Return the shortest period of a layer, and when stages start in it, if units of each kind run side by side.

    The periodic schedule as a programme over frequency u = 1/period and starts w in periods: a stage starts when
    the one before it has ended, k periods on (w_i + d_i·u <= w_j + k; the k around a nano-batch's chain add up to
    the one period until its next layer), and of two stages on one unit one is first (a binary each way).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    chains = [[(nano, i) for i in range(len(chain))] for nano, chain in enumerate(nanos)]
    places = {place: at for at, place in enumerate(place for chain in chains for place in chain)}
    unit = sum(stage.seconds for chain in nanos for stage in chain)
    length = {place: nanos[place[0]][place[1]].seconds / unit for place in places}
    pairs = [
        (a, b) for a, b in combinations(places, 2) if a[0] != b[0] and nanos[a[0]][a[1]].kind == nanos[b[0]][b[1]].kind
    ]
    n, p = len(places), len(pairs)
    size = 1 + 2 * n + p  # u, starts, periods passed after every stage, who is first
    rows: list[tuple[dict[int, float], float, float]] = []
    for chain in chains:
        for place, after in zip(chain, [*chain[1:], chain[0]], strict=True):
            row = {0: length[place], 1 + n + places[place]: -1.0}
            row[1 + places[place]] = row.get(1 + places[place], 0.0) + 1.0
            row[1 + places[after]] = row.get(1 + places[after], 0.0) - 1.0
            rows.append((row, -np.inf, 0.0))
        rows.append(({1 + n + places[place]: 1.0 for place in chain}, 1.0, 1.0))
    for at, (a, b) in enumerate(pairs):
        i, j, k = 1 + places[a], 1 + places[b], 1 + 2 * n + at
        rows.append(({0: length[a], i: 1.0, j: -1.0, k: -1.0}, -np.inf, 0.0))
        rows.append(({0: length[b], j: 1.0, i: -1.0, k: 1.0}, -np.inf, 1.0))
    matrix = np.zeros((len(rows), size))
    for line, (row, _, _) in enumerate(rows):
        matrix[line, list(row)] = list(row.values())
    upper = np.ones(size)
    upper[0], upper[1] = 1.0 / max(sum(length[place] for place in chain) for chain in chains), 0.0
    cost = np.zeros(size)
    cost[0] = -1.0
    whole = np.ones(size)
    whole[: 1 + n] = 0.0
    solved = milp(
        cost, integrality=whole, bounds=Bounds(np.zeros(size), upper),
        constraints=LinearConstraint(matrix, [row[1] for row in rows], [row[2] for row in rows]),
        options={"node_limit": NODES, "mip_rel_gap": GAP},
    )  # fmt: skip
    if solved.x is None:  # no order in so many nodes: one nano-batch after the other
        ends = np.cumsum([0.0, *(length[place] for place in places)])
        return unit, _starts(chains, places, ends[:-1], np.zeros(n))
    return unit / float(solved.x[0]), _starts(
        chains, places, solved.x[1 : 1 + n], np.round(solved.x[1 + n : 1 + 2 * n])
    )


def _starts(
    chains: Sequence[Sequence[tuple[int, int]]], places: dict[tuple[int, int], int], at: Floats, passed: Floats
) -> Order:
    """Return starts in periods since the layer's first: within the period, and the whole ones passed before it."""
    found = []
    for chain in chains:
        whole, starts = 0.0, []
        for place in chain:
            starts.append(float(at[places[place]] + whole))
            whole += passed[places[place]]
        found.append(tuple(starts))
    return Order(tuple(found))


def _shares(
    nanos: Sequence[Sequence[Stage]], order: Order, interference: Interference, layers: int
) -> tuple[dict[str, float], float]:
    """Return the shares by name of the stage under which the layers take the least time, and that time.

    Every pair of shares for memory and links, then one stage at a time, as long as it gets better.
    """

    def seconds(shares: dict[str, float]) -> float:
        return makespan(nanos, order, Device(interference, shares), layers)

    kinds = {stage.name: stage.kind for stage in nanos[0] if stage.kind != "compute"}
    tries = [
        {name: memory if kind == "memory" else network for name, kind in kinds.items()}
        for memory in SHARES[::2]
        for network in SHARES[::2]
        if memory + network <= 1 - LEAST_LEFT
    ]
    best = min(((seconds(shares), i) for i, shares in enumerate(tries)), default=(seconds({}), -1))
    shares, least = (tries[best[1]] if best[1] >= 0 else {}), best[0]
    for name, kind in kinds.items():
        other = max((share for one, share in shares.items() if kinds[one] != kind), default=0.0)
        for share in SHARES:
            if share + other <= 1 - LEAST_LEFT and (took := seconds(shares | {name: share})) < least:
                shares, least = shares | {name: share}, took
    return shares, least

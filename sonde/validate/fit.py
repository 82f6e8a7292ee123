"""The fit of the engines' constants: few, physically named, robust, regularised, deterministic.

Mean TTFT and TPOT of a row are sums of components (`features`), each times the product of a few factors. Logarithms
of all factors are fitted at once: soft-L1 loss on the logarithm of predicted over measured, TTFT at a lower weight
since it repeats worse, and a normal prior on every parameter, so that an engine or a model with few rows borrows
from the rest. What belongs to one series of measurements alone is fitted last, with all else held, so that it takes
only what physics leaves. Gauss-Newton with reweighting from the prior's mean; no random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.curves import family
from sonde.catalogue.engines import BUSY, CLASSES, UNKNOWN_VERSION, release, series
from sonde.validate.features import COMPONENTS, OVERHEADS, Features
from sonde.validate.setting import Setting

Floats = NDArray[np.float64]

#: (typical value, standard deviation of its logarithm) of what an engine adds: s per step, layer, sequence and token
_OVERHEADS = {"step": (5e-4, 1.0), "layer": (5e-6, 1.0), "sequence": (2e-6, 1.0), "token": (1e-6, 1.0)}
#: of what a request waits: s, s per token, steps
_WAITS = {"ttft": (0.03, 1.0), "ttft_token": (1e-5, 1.0), "poll": (2.0, 1.0)}
#: standard deviations of the logarithms of factors, by what they belong to
SPREADS: Mapping[str, float] = {
    "all": 0.4, "engine": 0.25, "family": 0.3, "precision": 0.10, "model experts": 0.0, "model": 0.07, "system": 0.0,
    "version": 1.0, "model wait": 0.6, "series": 0.5, "series wait": 1.0,
}  # fmt: skip

TTFT_WEIGHT, SOFT, PRIOR_WEIGHT, ROUNDS = 0.4, 0.1, 0.1, 30


class Design(NamedTuple):
    """Which parameters act where.

    names [p], mean [p], spread [p]    of every parameter: its name, and the prior of its logarithm
    slots [n, components + 3, s]       parameters whose product is the weight of a component (last row: none)
    """

    names: tuple[str, ...]
    mean: Floats
    spread: Floats
    slots: NDArray[np.int64]

    @property
    def late(self) -> NDArray[np.bool_]:
        """Return which parameters are fitted last: those of one series of measurements."""
        return np.array([name.startswith("series/") for name in self.names], dtype=np.bool_)


def design(found: Features, spreads: Mapping[str, float] = SPREADS) -> Design:
    """Return the parameters that the rows of `found` call for."""
    known: dict[str, tuple[int, float, float]] = {}

    def parameter(name: str, mean: float, spread: float) -> int:
        return known.setdefault(name, (len(known), mean, spread))[0]

    def factor(kind: str, name: str) -> int:
        return parameter(name, 0.0, spreads[kind]) if spreads[kind] > 0 else -1

    rows = []
    for chosen in found.settings:
        engine, made = chosen.engine.name, family(chosen.device.name)
        everywhere = [
            factor("model", f"model/{chosen.model.name}/all"),
            factor("system", f"system/{chosen.device.name}/all"),
            factor("series", f"series/{series_of(chosen)}/all"),
        ]
        row = []
        for kind in CLASSES:
            own = factor("model experts", f"model/{chosen.model.name}/experts") if kind == "experts" else -1
            row.append([
                factor("all", f"all//{kind}"), factor("engine", f"engine/{engine}/{kind}"),
                factor("family", f"family/{made}/{kind}"),
                factor("precision", f"precision/{chosen.replica.weights}/{kind}"), own, *everywhere,
            ])  # fmt: skip
        for name in OVERHEADS:
            typical, spread = _OVERHEADS[name]
            row.append([parameter(f"engine/{engine}/{name}_s", np.log(typical), spread), -1, -1, -1, -1, *everywhere])
        for name, (typical, spread) in _WAITS.items():
            label = f"poll/{regime(chosen)}" if name == "poll" else f"engine/{engine}/{name}_s"
            waits = [-1] * 3 if name == "ttft_token" else [
                factor("version", f"version/{engine}/{release(chosen.row.version)}/{name}"),
                factor("model wait", f"model/{chosen.model.name}/{name}"),
                factor("series wait", f"series/{series_of(chosen)}/{name}"),
            ]  # fmt: skip
            row.append([parameter(label, np.log(typical), spread), *waits] + [-1] * 4)
        rows.append(row)
    slots = np.array(rows, dtype=np.int64)
    slots[slots < 0] = len(known)
    mean = np.array([value for _, value, _ in known.values()])
    return Design(tuple(known), mean, np.array([spread for _, _, spread in known.values()]), slots)


def series_of(chosen: Setting) -> str:
    """Return the series of measurements that a row belongs to."""
    return series(chosen.engine.name, chosen.row.version or UNKNOWN_VERSION, chosen.model.name, chosen.device.name)


def regime(chosen: Setting) -> str:
    """Return what decides how long a request waits for the scheduler: engine, family, and load or ranks."""
    engine = chosen.engine.name
    if chosen.replica.data_parallel > 1:
        return f"{engine}//ranks"
    if engine == "sglang":
        busy = "busy" if chosen.row.concurrency >= BUSY else "idle"
        return f"{engine}/{family(chosen.device.name)}/{busy}"
    return f"{engine}//"


def model_times(found: Features, plan: Design, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return TPOT and TTFT (s) [n], and the derivatives of their logarithms by the parameters [n, p]."""
    n, size = len(found.settings), len(theta)
    weight = np.exp(np.append(theta, 0.0)[plan.slots].sum(axis=2))
    parts = len(COMPONENTS)
    tpot_parts = found.tpot * weight[:, :parts]
    tpot = tpot_parts.sum(axis=1)
    ttft_parts = np.hstack([
        found.ttft * weight[:, :parts], weight[:, parts : parts + 1],
        (weight[:, parts + 1] * found.prompt)[:, None], (weight[:, parts + 2] * tpot)[:, None],
    ])  # fmt: skip
    ttft = ttft_parts.sum(axis=1)
    slope_tpot = _scatter(tpot_parts / tpot[:, None], plan.slots[:, :parts], n, size)
    slope_ttft = _scatter(ttft_parts / ttft[:, None], plan.slots, n, size)
    slope_ttft += (ttft_parts[:, -1] / ttft)[:, None] * slope_tpot
    return tpot, ttft, slope_tpot, slope_ttft


def _scatter(share: Floats, slots: NDArray[np.int64], n: int, size: int) -> Floats:
    """Return [n, size]: the shares of components, added up at the parameters that act on them."""
    total = np.zeros((n, size + 1))
    row = np.broadcast_to(np.arange(n)[:, None, None], slots.shape)
    np.add.at(total, (row, slots), np.broadcast_to(share[:, :, None], slots.shape))
    return total[:, :size]


def solve(found: Features, plan: Design, rows: NDArray[np.int64], measured: Floats) -> Floats:
    """Return the parameters fitted on `rows`; `measured` [n, 2] holds TPOT and TTFT in s."""
    part = Features(
        tuple(found.settings[row] for row in rows), found.ttft[rows], found.tpot[rows], found.prompt[rows]
    )  # fmt: skip
    here = plan._replace(slots=plan.slots[rows])
    target = np.log(measured[rows])
    theta = plan.mean.copy()
    for active in (~plan.late, plan.late):
        if active.any():
            theta = _descend(part, here, theta, target, active)
    return theta


def _descend(part: Features, here: Design, theta: Floats, target: Floats, active: NDArray[np.bool_]) -> Floats:
    """Return `theta` with its `active` parameters at the least loss that Gauss-Newton finds."""
    damping, best = 1e-3, _loss(part, here, theta, target)
    pull = PRIOR_WEIGHT / here.spread[active] ** 2
    for _ in range(ROUNDS):
        tpot, ttft, slope_tpot, slope_ttft = model_times(part, here, theta)
        residual = np.concatenate([np.log(tpot) - target[:, 0], TTFT_WEIGHT * (np.log(ttft) - target[:, 1])])
        slope = np.vstack([slope_tpot, TTFT_WEIGHT * slope_ttft])[:, active]
        robust = 1.0 / np.sqrt(1.0 + (residual / SOFT) ** 2)
        left = (slope * robust[:, None]).T @ slope
        right = -(slope * robust[:, None]).T @ residual - pull * (theta - here.mean)[active]
        for _ in range(12):
            step = np.zeros(len(theta))
            step[active] = np.linalg.solve(left + np.diag(pull + damping * (np.diag(left) + pull)), right)
            tried = _loss(part, here, theta + step, target)
            if tried <= best:
                break
            damping *= 4.0
        else:
            break
        gain, best, theta, damping = best - tried, tried, theta + step, max(damping / 4.0, 1e-6)
        if gain < 1e-6 * best:
            break
    return theta


def _loss(part: Features, plan: Design, theta: Floats, target: Floats) -> float:
    tpot, ttft, _, _ = model_times(part, plan, theta)
    residual = np.concatenate([np.log(tpot) - target[:, 0], TTFT_WEIGHT * (np.log(ttft) - target[:, 1])])
    data = 2.0 * SOFT**2 * (np.sqrt(1.0 + (residual / SOFT) ** 2) - 1.0)
    return float(data.sum() + (PRIOR_WEIGHT * ((theta - plan.mean) / plan.spread) ** 2).sum())

"""Cross-validation: constants fitted without the rows that they are judged on.

By pairs, whole (system, model) pairs are left out: what a new model or device would see. By curves, a curve
(everything but concurrency fixed) is left out whole, while others of its pair stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.validate.features import Features
from sonde.validate.fit import SPREADS, Floats, design, model_times, solve
from sonde.validate.predict import Prediction
from sonde.validate.rows import Row
from sonde.validate.score import apart

FOLDS = 8


class Held(NamedTuple):
    """Predictions of rows that their fit has not seen: TPOT and TTFT in s, [n, 2], and the fold of every row."""

    predicted: Floats
    fold: NDArray[np.int64]


def pair_of(row: Row) -> str:
    """Return the (system, model) pair of a row."""
    return f"{row.system}|{row.model}"


def curve_of(row: Row) -> str:
    """Return what a row shares with those that differ from it in concurrency alone."""
    return "|".join(
        str(value)
        for value in (
            row.system, row.model, row.engine, row.version, row.tensor, row.pipeline, row.data, row.expert,
            row.precision, row.isl, row.osl,
        )
    )  # fmt: skip


GROUPS = {"pairs": pair_of, "curves": curve_of}

#: engines with fewer residuals than this take the quantiles of all engines
LEAST = 60

#: share of measurements that an interval is to hold, and shares tried of the residuals of other groups
HOLDS, TRIED = 0.8, tuple(np.arange(0.80, 0.945, 0.01).round(2).tolist())

#: interval of rows of any engine
ANY = ""


def folds(groups: Sequence[str], count: int = FOLDS) -> NDArray[np.int64]:
    """Return the fold of every row: groups stay whole, the largest goes to the fold that holds fewest rows."""
    names, where, sizes = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    held = np.zeros(min(count, len(names)), dtype=np.int64)
    of_group = np.zeros(len(names), dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        of_group[group] = int(held.argmin())
        held[of_group[group]] += sizes[group]
    return of_group[where]


def measured(rows: Sequence[Row]) -> Floats:
    """Return TPOT and TTFT in s, [n, 2]."""
    return np.array([(row.tpot_ms, row.ttft_ms) for row in rows]) / 1e3


def cross_validate(found: Features, by: str, spreads: Mapping[str, float] = SPREADS, count: int = FOLDS) -> Held:
    """Return predictions of every row by constants that were fitted without its group ("pairs" or "curves").

    Rows that are counted apart are predicted and never fitted on.
    """
    rows = [chosen.row for chosen in found.settings]
    fold = folds([GROUPS[by](row) for row in rows], count)
    trusted = np.array([not apart(row) for row in rows])
    target = measured(rows)
    plan = design(found, spreads)
    predicted = np.zeros((len(rows), 2))
    for each in range(int(fold.max()) + 1):
        theta = solve(found, plan, np.flatnonzero((fold != each) & trusted), target)
        tpot, ttft, _, _ = model_times(found, plan, theta)
        here = fold == each
        predicted[here, 0], predicted[here, 1] = tpot[here], ttft[here]
    return Held(predicted, fold)


def intervals(residual: Floats, engines: Sequence[str], share: float = HOLDS) -> dict[str, tuple[float, float]]:
    """Return per engine, and for all engines (`ANY`), the factors on a prediction between which `share` of rows lie.

    residual   logarithm of measured over predicted, of rows that the fit had not seen. The two quantiles are the
               conformal ones: of n residuals the one of rank (n + 1)·q, so that a new one of the same kind falls
               between with at least that chance. Engines of fewer than `LEAST` are left out.
    """
    names = np.array(engines)
    low, high = (1.0 - share) / 2.0, (1.0 + share) / 2.0
    found = {ANY: _ends(residual, low, high)}
    for name in np.unique(names):
        if np.count_nonzero(names == name) >= LEAST:
            found[str(name)] = _ends(residual[names == name], low, high)
    return found


def _ends(residual: Floats, low: float, high: float) -> tuple[float, float]:
    n = len(residual)
    ordered = np.sort(residual)
    first = ordered[max(int(np.floor((n + 1) * low)) - 1, 0)]
    last = ordered[min(int(np.ceil((n + 1) * high)) - 1, n - 1)]
    return float(np.exp(first)), float(np.exp(last))


def levelled(residual: Floats, engines: Sequence[str], fold: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Return `intervals` at the least share of residuals whose intervals hold 80 % of the rows of other folds.

    Rows of a group err alike, so that a new group falls outside of the plain quantiles more often than a new row.
    """
    names = np.array(engines)
    for share in TRIED:
        inside = np.zeros(len(residual), dtype=np.bool_)
        for each in np.unique(fold):
            found = intervals(residual[fold != each], list(names[fold != each]), share)
            here = np.flatnonzero(fold == each)
            ends = np.log([found.get(name, found[ANY]) for name in names[here]])
            inside[here] = (ends[:, 0] <= residual[here]) & (residual[here] <= ends[:, 1])
        if inside.mean() >= HOLDS:
            break
    return intervals(residual, engines, share)


def judged(found: Features, held: Held) -> list[Prediction]:
    """Return predictions of all rows with their intervals, in neither of which a row's own group has had a part."""
    rows = [chosen.row for chosen in found.settings]
    residual = np.log(measured(rows) / held.predicted)
    trusted = np.array([not apart(row) for row in rows])
    engine = np.array([row.engine for row in rows])
    ends = np.ones((len(rows), 2, 2))
    for each in np.unique(held.fold):
        rest, here = (held.fold != each) & trusted, held.fold == each
        for metric in (0, 1):
            factors = levelled(residual[rest, metric], list(engine[rest]), held.fold[rest])
            ends[here, metric] = [factors.get(name, factors[ANY]) for name in engine[here]]
    times = 1e3 * held.predicted
    edges = times[:, :, None] * ends
    return [
        Prediction(
            row.line, row.id, times[i, 1], times[i, 0], edges[i, 1, 0], edges[i, 1, 1], edges[i, 0, 0],
            edges[i, 0, 1], "",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip

"""A mean layer of a model as a chain of stages, each bound by compute, memory or links, for any share of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sonde.cost.operators import batch_operators, pair_operators, read_operators, title, token_operators
from sonde.cost.power import held
from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard, kernels

#: the stages of a layer in order, and what each waits for
STAGES: dict[str, str] = {
    "projections": "compute",
    "attention": "memory",
    "prompt attention": "compute",
    "output": "compute",
    "attention sum": "network",
    "norm": "memory",
    "up": "compute",
    "activation": "memory",
    "down": "compute",
    "dispatch": "network",
    "experts": "compute",
    "feed-forward sum": "network",
}

_OUTSIDE = ("embedding", "head", "pipeline", "engine")


class Point(NamedTuple):
    """A step: tokens in it, sequences of them that decode, cached tokens that these read, pairs of its prompts."""

    tokens: float
    batch: float
    read: float
    pairs: float

    def share(self, share: float) -> Point:
        """Return the step of a nano-batch that holds `share` of everything."""
        return Point(*(share * each for each in self))


class Stage(NamedTuple):
    """One stage of a mean layer: seconds alone on the device, and the share of memory bandwidth that it then takes."""

    name: str
    kind: str
    seconds: float
    bandwidth: float


def stages(part: Shard, point: Point) -> list[Stage]:
    """Return the stages of a layer of one step in the order in which they run: those that take time.

    They hold every operator of the cost model but the embedding, the head and the engine's own time; weights are
    loaded by each of them, so that a share of a batch takes more than its share of the time. Where layers differ,
    they are those of their mean. Neighbours that wait for the same are one stage, named after the last of them.
    """
    rows = _row_products(part)
    seconds, moving = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
    for operator, times in _operators(part, point):
        stage = _stage(part, operator, rows)
        spent = held(part, operator)
        seconds[stage] += float(np.ravel(spent.seconds)[0]) * times
        moving[stage] += float(np.ravel(spent.memory)[0]) * times
    found: list[Stage] = []
    for name, kind in STAGES.items():
        if not seconds[name]:
            continue
        one = Stage(name, kind, seconds[name] / part.model.layers, min(moving[name] / seconds[name], 1.0))
        if found and found[-1].kind == kind:
            one = _joined(found.pop(), one)
        found.append(one)
    return found


def sequential(part: Shard, point: Point) -> float:
    """Return the seconds of all layers of a step whose stages run one after the other."""
    return part.model.layers * sum(stage.seconds for stage in stages(part, point))


def _joined(one: Stage, two: Stage) -> Stage:
    seconds = one.seconds + two.seconds
    bandwidth = (one.seconds * one.bandwidth + two.seconds * two.bandwidth) / seconds
    return Stage(two.name, one.kind, seconds, bandwidth)


def _operators(part: Shard, point: Point) -> Iterable[tuple[Operator, float]]:
    """Yield the operators within layers, and how many times each is done."""
    tokens, batch = np.array([max(point.tokens, 1e-9)]), np.array([point.batch])
    lists = [(token_operators(part, tokens), 1.0)]
    if point.batch:
        lists.append((batch_operators(part, batch, batch), 1.0))
    for windowed in (False, True):
        if point.read:
            lists.append((read_operators(part, windowed=windowed), point.read))
        if point.pairs:
            lists.append((pair_operators(part, windowed=windowed), point.pairs))
    for operators, times in lists:
        for edit in part.edits:
            operators = edit(part, operators)
        yield from ((operator, times) for operator in operators if not operator.name.startswith(_OUTSIDE))


def _row_products(part: Shard) -> set[str]:
    """Return the names of the products whose results are summed over ranks: the last ones of attention and MLP."""
    model = part.model
    found = {
        f"{title(mixer)} {kernel.name}"
        for mixer in model.mixers
        for kernel in kernels(part, mixer.matrices, mixer)
        if kernel.row
    }
    for forward in model.feedforwards:
        name = "shared" if forward.experts else "mlp"
        found |= {f"{name} {kernel.name}" for kernel in kernels(part, forward.matrices) if kernel.row}
    return found


def _stage(part: Shard, operator: Operator, rows: set[str]) -> str:
    """Return the stage that an operator belongs to, by what it is to an engine and by its name."""
    name, kind = operator.name, operator.kind
    mixing = name.startswith(tuple(title(mixer) for mixer in part.model.mixers))
    if kind == "experts":
        return "experts"
    if kind == "attention-prefill" and name.endswith(" prefill"):
        return "prompt attention"
    if kind in ("attention-prefill", "attention-decode") or name.endswith("cache write"):
        return "attention"
    if kind == "collective":
        if "dispatch" in name:
            return "dispatch"
        return "attention sum" if mixing else "feed-forward sum"
    if kind == "gemm":
        last = name in rows
        return ("output" if last else "projections") if mixing else ("down" if last else "up")
    return "norm" if mixing else "activation"

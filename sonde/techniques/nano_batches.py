"""Nano-batches: the batch is cut so that one part computes while another reads its cache or sums over links (NanoFlow).

The pipeline is searched once, for a full step; every other step runs it too, or none where it would be slower. What
it saves goes into the table over tokens, at a working point: so many sequences decode at so long a context.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydantic import Field

from sonde.catalogue.interference import interference
from sonde.cost.power import running_w
from sonde.cost.roofline import Floats
from sonde.cost.shard import Shard
from sonde.cost.table import Coefficients, Engine
from sonde.deployment.node import Line
from sonde.errors import InputError
from sonde.techniques.layer import Point, Stage, sequential, stages
from sonde.techniques.nano_search import SPLITS, Pipeline, search
from sonde.techniques.retime import retimed
from sonde.techniques.technique import Parameters, Technique
from sonde.techniques.timeline import makespan

#: policies whose steps hold prompts and decodes at once
MIXED = ("chunked", "iteration")
#: steps at which what is saved is found; straight between them
GRID = 24

Cut = tuple[tuple[tuple[float, ...], tuple[tuple[Stage, ...], ...]], ...]


class NanoBatches(Parameters):
    """How nano-batches are found.

    count         how many; the best of 2 and 3 where it is not given
    overlap       whether stages of different nano-batches run at once; without, only what cutting costs is left
    context       cached tokens that a decoding sequence reads at the working point
    decoding      sequences that decode in a full step; half of its tokens, at most the batch, where it is not given
    interference  what share of its speed a stage reaches on a share of the device: a profile of
                  `catalogue/data/interference.csv`
    """

    count: int | None = Field(default=None, ge=2, le=3)
    overlap: bool = True
    context: int = Field(default=1024, ge=1, le=10_000_000)
    decoding: int | None = Field(default=None, ge=0, le=8192)
    interference: Line = "gpu"


class Saved(NamedTuple):
    """Seconds that steps of so many tokens save at the working point, below zero where cutting costs."""

    tokens: Floats
    seconds: Floats


def engine(engine: Engine, part: Shard, nano: NanoBatches) -> Engine:
    """Return the engine with steps as long as their pipeline takes, and as much less energy as it is on for less.

    Raises InputError where a replica deals its batch out over stages or attention ranks already.
    """
    found = saved(part, nano)
    watts = running_w(part) * part.replica.devices
    return engine._replace(table=retimed(engine.table, _less(engine.table.time, found), watts))


def saved(part: Shard, nano: NanoBatches) -> Saved:
    """Return what nano-batches save by the tokens of a step, at the working point. Raises InputError as `engine`."""
    if part.lanes > 1:
        name = "pipeline_parallel" if part.replica.pipeline_parallel > 1 else "data_parallel"
        raise InputError(
            f"replica.{name}", getattr(part.replica, name), "must be 1 under nano-batches",
            "its batch is dealt out already, and the parts run on devices of their own",
        )  # fmt: skip
    if part.replica.power_cap is not None:
        raise InputError(
            "replica.power_cap", part.replica.power_cap, "must not be set under nano-batches",
            "stages that run at once draw more than any of them, and no cap is modelled for that",
        )  # fmt: skip
    most = part.replica.batching.token_budget
    grid = np.unique(np.round(np.geomspace(1, max(most, 2), GRID)))
    pipe = pipeline(part, nano)
    seconds = [0.0, *(_saves(part, nano, pipe, working_point(part, nano, tokens)) for tokens in grid)]
    return Saved(np.array([0.0, *grid]), np.array(seconds))


def pipeline(part: Shard, nano: NanoBatches) -> Pipeline:
    """Return the pipeline that the search finds for a full step."""
    full = working_point(part, nano, float(part.replica.batching.token_budget))
    splits = [split for split in SPLITS if nano.count in (None, len(split))]
    cut = tuple((split, tuple(tuple(stages(part, full.share(share))) for share in split)) for split in splits)
    return _searched(cut, nano.interference, part.model.layers)


def working_point(part: Shard, nano: NanoBatches, tokens: float) -> Point:
    """Return the step of so many tokens that the table is made exact for.

    Up to `decoding` tokens all of them decode; beyond, `decoding` do where steps are mixed, else none.
    """
    batching = part.replica.batching
    most = min(batching.max_batch, math.ceil(batching.token_budget / 2) if nano.decoding is None else nano.decoding)
    batch = min(tokens, most) if tokens <= most or batching.policy in MIXED else 0.0
    return Point(tokens, batch, batch * nano.context, (tokens - batch) * nano.context / 2)


def overlapped(part: Shard, pipe: Pipeline, point: Point) -> float:
    """Return the seconds of all layers of a step that runs as the pipeline says, stage by stage."""
    nanos = [stages(part, point.share(share)) for share in pipe.split]
    return makespan(nanos, pipe.order, pipe.device, part.model.layers)


@lru_cache(maxsize=64)
def _searched(cut: Cut, profile: str, layers: int) -> Pipeline:
    return search(cut, interference(profile), layers)


def _saves(part: Shard, nano: NanoBatches, pipe: Pipeline, point: Point) -> float:
    if point.tokens * min(pipe.split) < 1.0:
        return 0.0  # not a token for every nano-batch
    alone = sequential(part, point)
    if nano.overlap:
        return max(alone - overlapped(part, pipe, point), 0.0)
    return alone - sum(sequential(part, point.share(share)) for share in pipe.split)


def _less(table: Coefficients, found: Saved) -> Coefficients:
    """Return the table with what is saved taken off its tokens; past the last of them by the same share of a token."""
    at = np.arange(len(table.linear), dtype=np.float64)
    last = found.tokens[-1]
    rate = float(found.seconds[-1] / last)
    off = np.interp(at, found.tokens, found.seconds) + rate * np.maximum(at - last, 0.0)
    return table._replace(linear=table.linear - off, slope=table.slope - rate)


TECHNIQUE = Technique(
    title="parts of a batch overlap: one computes while another reads its cache or sums over links",
    source="Zhu et al., NanoFlow, OSDI 2025, arXiv 2408.12757",
    parameters=NanoBatches,
    cannot={
        "two-microbatches": "both cut the batch to overlap the same exchanges",
        "power-cap": "stages that run at once draw more than any of them, and no cap is modelled for that",
        "speculative-decoding": "the search counts one token a sequence and step",
        "multi-token-prediction": "the search counts one token a sequence and step",
    },
    engine=engine,
)

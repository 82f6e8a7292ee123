"""Peer memory: every k-th layer lives in the memory of another device and is fetched while those before it run.

EnergonAI's peer memory pooling. More memory is left for caches, or a model fits that did not; where the link is slower
than the layers in between, the step waits for it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from sonde.cost.memory import weight_bytes
from sonde.cost.power import running_w
from sonde.cost.shard import Shard
from sonde.cost.table import Engine
from sonde.errors import InputError
from sonde.techniques.layer import Point, sequential
from sonde.techniques.retime import retimed
from sonde.techniques.technique import Parameters, Technique

#: steps at which the wait is found; straight between them
GRID = 24


class Lent(Parameters):
    """Which layers live elsewhere, and how they come.

    every     every so many layers, one does
    ahead     its fetch starts so many layers before it
    link      "node" (the link between devices of a node), "host" (host memory)
    context   cached tokens that a decoding sequence reads where the wait is found
    """

    every: int = Field(default=4, ge=1, le=1000)
    ahead: int = Field(default=3, ge=0, le=1000)
    link: Literal["node", "host"] = "node"
    context: int = Field(default=1024, ge=0, le=10_000_000)


def shard(part: Shard, lent: Lent) -> Shard:
    """Return the share of a device whose memory has grown by the layers that live elsewhere, less room to fetch them.

    Raises InputError where that frees nothing, and in a pipeline, whose stages share the layers already.
    """
    if part.replica.pipeline_parallel > 1:
        raise InputError(
            "replica.pipeline_parallel", part.replica.pipeline_parallel, "must be 1 under peer-memory",
            "the layers are on several devices already",
        )  # fmt: skip
    freed = lent_layers(part, lent) - buffers(lent)
    if freed <= 0:
        raise InputError(
            "techniques.peer-memory.every", lent.every,
            f"frees nothing: of {part.model.layers} layers {lent_layers(part, lent)} live elsewhere, and "
            f"{buffers(lent)} of them are held here while they are fetched and run",
        )  # fmt: skip
    first, *rest = part.device.memory
    usable = part.efficiencies.memory.usable * part.replica.memory_fraction
    grown = replace(first, bytes=first.bytes + freed * layer_bytes(part) / usable)
    return replace(part, device=replace(part.device, memory=(grown, *rest)))


def engine(engine: Engine, part: Shard, lent: Lent) -> Engine:
    """Return the engine whose steps wait for layers that are not there yet, and whose price holds the memory lent.

    Memory is charged at its share of a device; host memory is free.
    """
    last = len(engine.table.time.linear) - 1
    grid = np.unique(np.round(np.geomspace(1, last, GRID)))
    waits = [wait(part, lent, _point(part, lent, tokens)) for tokens in grid]
    table = engine.table.time
    linear = table.linear + np.interp(np.arange(last + 1), grid, waits)
    linear[0] = 0.0
    time = table._replace(linear=linear)
    price = 0.0
    if lent.link == "node":
        held = lent_layers(part, lent) * layer_bytes(part)
        price = engine.usd_per_hour * held / _nominal(part, lent)
    watts = running_w(part) * part.replica.devices
    return engine._replace(table=retimed(engine.table, time, watts), usd_per_hour=engine.usd_per_hour + price)


def wait(part: Shard, lent: Lent, point: Point) -> float:
    """Return the seconds for which a step waits: each fetch, less what runs meanwhile.

    The link carries one layer at a time, so that more than `every` layers ahead hide no more than `every`.
    """
    link = part.device.node if lent.link == "node" else part.device.host
    fetch = link.latency_s + layer_bytes(part) / link.bandwidth
    layer = sequential(part, point) / part.model.layers
    return lent_layers(part, lent) * max(fetch - min(lent.ahead, lent.every) * layer, 0.0)


def lent_layers(part: Shard, lent: Lent) -> int:
    """Return how many layers live elsewhere."""
    return part.model.layers // lent.every


def buffers(lent: Lent) -> int:
    """Return the layers that are held for fetching: the one that runs, and those on the way meanwhile."""
    return 1 + lent.ahead // lent.every


def layer_bytes(part: Shard) -> float:
    """Return the bytes of one device's share of a mean layer."""
    model = part.model
    tables = (1 if model.tied_embeddings else 2) * model.embedding_parameters / part.tensor
    other = model.other_parameters + model.vectors
    return (weight_bytes(part) - (tables + other) * part.table_bytes) / model.layers


def _point(part: Shard, lent: Lent, tokens: float) -> Point:
    batch = min(tokens, float(part.replica.batching.max_batch))
    return Point(tokens, batch, batch * lent.context, (tokens - batch) * lent.context / 2)


def _nominal(part: Shard, lent: Lent) -> float:
    """Return the capacity of a device as it is sold."""
    usable = part.efficiencies.memory.usable * part.replica.memory_fraction
    freed = (lent_layers(part, lent) - buffers(lent)) * layer_bytes(part) / usable
    return math.ceil(part.device.memory[0].bytes - freed)


TECHNIQUE = Technique(
    title="every k-th layer lives in another device's memory and is fetched ahead over the link",
    source="Du et al., EnergonAI (peer memory pooling), 2022, arXiv 2209.02341",
    parameters=Lent,
    shard=shard,
    engine=engine,
)

"""One person and one device: which weights and contexts fit, how fast an answer is written, on how much energy.

Decoding one sequence reads all active weights and the cache for every token, so that the share of the memory's
bandwidth that the engine reaches decides. That share differs between engines: the interval is what it was seen at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from sonde.catalogue.device import Device
from sonde.catalogue.efficiencies import Efficiencies, efficiencies
from sonde.catalogue.formats import weight_format
from sonde.catalogue.model import Model
from sonde.cost.explain import step_rows
from sonde.cost.memory import report
from sonde.cost.shard import Shard, shard
from sonde.deployment.tree import Batching, Precision, Replica

#: formats that are tried, widest first
WIDTHS = ("fp16", "q8_0", "q4_0")
CONTEXT = 4096  # tokens at which speed is stated, or all that fit where fewer do

#: share of the bandwidth that decoding reached, lowest, usual and highest: tok/s that SmallThinker (arXiv 2507.20984)
#: publishes of 4B-A0.6B and 21B-A3B in Q4_0 on an i9-14900K and a Raspberry Pi 5, over bandwidth by bytes read
REACHED_ON_DEVICES = (0.41, 0.57, 0.65)
#: elsewhere: the catalogue's own share, and the worst error on DistServe's A100 rows (docs/cost.md)
WORST_ELSEWHERE = 0.21
ON_DEVICES = ("phone", "board", "edge", "laptop", "cpu")


class Fit(NamedTuple):
    """What one format of weights makes of a model on a device.

    context           tokens of one conversation that fit beside the weights, at most the model's own
    memory_bytes      weights, activations, engine and the cache of `at_context` tokens
    tokens_per_s      written by one conversation at `at_context`, with the interval from `low` to `high`
    joules_per_token  modelled, not measured
    """

    weights: str
    fits: bool
    weight_bytes: float
    context: int
    at_context: int
    memory_bytes: float
    tokens_per_s: float
    low: float
    high: float
    joules_per_token: float


def choices(model: Model, device: Device, widths: tuple[str, ...] = WIDTHS) -> list[Fit]:
    """Return what every format of `widths` makes of one conversation with `model` on one `device`."""
    return [_fit(part_of(model, device, name), name) for name in widths]


def part_of(model: Model, device: Device, weights: str, *, memory_fraction: float = 1.0) -> Shard:
    """Return the model on one device for one conversation, all its weights stored in the format `weights`."""
    wide: Precision = "bf16" if "bf16" in device.flops else "fp16" if "fp16" in device.flops else "fp32"
    cached: Precision = "fp16" if wide == "fp32" else wide
    replica = Replica(
        model=model.name, device=device.name, weights=wide, activations=wide, kv_cache=cached,
        memory_fraction=memory_fraction, batching=Batching(max_batch=1, token_budget=512),
    )  # fmt: skip
    size = weight_format(weights).weight_bytes
    part = shard(model, device, replica, efficiencies(device))
    return replace(part, weight_bytes=size, expert_bytes=size, table_bytes=size)


def decode_s(part: Shard, context: int, share: float | None = None) -> tuple[float, float]:
    """Return seconds and joules of one decode step at `context` tokens, weights read at `share` of the bandwidth."""
    used = part if share is None else replace(part, efficiencies=reaching(part.efficiencies, share))
    rows = step_rows(used, 0, 1, context)
    return sum(row.seconds for row in rows), sum(row.joules for row in rows)


def reaching(found: Efficiencies, share: float) -> Efficiencies:
    """Return efficiencies in which whatever reads weights or caches reaches `share` of the bandwidth.

    A product of one row is not held back otherwise: what small products lose on a device is in the share.
    """
    share = min(max(share, 1e-3), 1.0)
    readers = ("gemm", "bmm", "experts")
    return replace(
        found,
        curves={
            name: replace(curve, memory=share, half_rows=0.0, half_outputs=0.0)
            if name.startswith(readers) or "-decode" in name
            else curve
            for name, curve in found.curves.items()
        },
    )


def _shares(part: Shard) -> tuple[float, float, float]:
    if part.device.kind in ON_DEVICES:
        return REACHED_ON_DEVICES
    usual = part.efficiencies.gemm.memory
    return usual * (1 - WORST_ELSEWHERE), usual, usual * (1 + WORST_ELSEWHERE)


def _fit(part: Shard, name: str) -> Fit:
    found = report(part)
    per_token = found.kv_bytes / found.kv_tokens if found.kv_tokens else 0.0
    grows = part.model.cache_bytes_per_token() > 0
    context = (min(found.kv_tokens, part.model.context) if grows else part.model.context) if found.fits else 0
    at = min(context, CONTEXT)
    memory = found.weights + found.activations + found.overhead + at * per_token * grows
    if not found.fits:
        return Fit(name, False, found.weights, 0, 0, memory, 0.0, 0.0, 0.0, 0.0)
    low, usual, high = (decode_s(part, at, share) for share in _shares(part))
    return Fit(name, True, found.weights, context, at, memory, 1 / usual[0], 1 / low[0], 1 / high[0], usual[1])

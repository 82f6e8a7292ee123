"""Two of every four weights dropped (2:4): half the arithmetic where the device skips them; bytes less an index."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique
from sonde.techniques.tiles import on_products


class Kept(Parameters):
    """What an index takes, and what a device makes of it.

    index_bits   of every four weights, saying which two are kept (3 tell the six ways apart; hardware reads 4)
    speedup      of the arithmetic, on this device: 2 where it skips what was dropped, 1 where it multiplies zeros
    """

    index_bits: int = Field(default=4, ge=3, le=8)
    speedup: float = Field(default=2.0, ge=1, le=2)


def shard(part: Shard, kept: Kept) -> Shard:
    """Return the share of a device that holds half of the weights, each four of them with an index."""
    index = kept.index_bits / 32.0
    smaller = part.weight_bytes / 2.0 + index
    if smaller > part.weight_bytes * 1.001 and kept.speedup == 1.0:
        raise InputError(
            "techniques.pruning", kept.index_bits,
            f"saves nothing: a weight takes {part.weight_bytes:.3f} bytes, and half of it with an index {smaller:.3f}",
        )  # fmt: skip
    return replace(part, weight_bytes=smaller, expert_bytes=part.expert_bytes / 2.0 + index)


def operators(part: Shard, found: list[Operator], kept: Kept) -> list[Operator]:
    """Return the operators with products that skip what was dropped."""
    del part
    return on_products(found, lambda one: one._replace(flops=one.flops / kept.speedup))


TECHNIQUE = Technique(
    title="two of every four weights dropped, and their arithmetic skipped",
    source="2:4 sparsity as in Liang et al., AccLLM, 2025, arXiv 2505.03745",
    parameters=Kept,
    shard=shard,
    operators=operators,
)

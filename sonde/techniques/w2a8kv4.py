"""Weights in 2 bits, activations in 8, caches in 4, all multiplied as integers, attention too (AccLLM)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard
from sonde.techniques.technique import Technique
from sonde.techniques.w4a8 import Integers, held_as, multiplied, narrow, tiles_of


class Narrow(Integers):
    """Activations have one scale a token, so that weights take their groups' scales on the way to 8 bits.

    packing   products that one 8-bit multiplier yields at a time, of 2-bit weights (FPGA: 2; GPU: 1)
    """

    cache_bits: int = Field(default=4, ge=2, le=16)
    conversion: float = Field(default=1.0, ge=0, le=100)
    packing: float = Field(default=1.0, ge=1, le=8)


def shard(part: Shard, narrowed: Narrow) -> Shard:
    """Return the share of a device whose layers hold weights in 2 bits; attention multiplies 8-bit integers."""
    return replace(narrow(part, 2, "w2a8kv4", narrowed), attention="int8")


def operators(part: Shard, found: list[Operator], narrowed: Narrow) -> list[Operator]:
    """Return the operators with products of 8-bit integers."""
    tiles = tiles_of(narrowed, 0.0, narrowed.packing)._replace(folded=True)
    return multiplied(part, found, tiles, narrowed, "w2a8kv4")


TECHNIQUE = Technique(
    title="weights in 2 bits, activations in 8, caches in 4",
    source="Liang et al., AccLLM, 2025, arXiv 2505.03745",
    parameters=Narrow,
    shard=shard,
    operators=operators,
    holds=lambda narrowed: held_as("w2a8", "int2", "int8", narrowed),
)

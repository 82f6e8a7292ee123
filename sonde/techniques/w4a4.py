"""Weights in 4 bits; most groups of activations in 4, those with outliers in 8; caches in 4 (COMET).

On devices whose matrix units outrun their general cores the scaling of every group's sums takes longer than the
products that 4 bits save: a gain at small batches, where weights are waited for, and a loss in prompts.
"""

from __future__ import annotations

from pydantic import Field

from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard
from sonde.techniques.technique import Holds, Technique
from sonde.techniques.w4a8 import Integers, held_as, multiplied, narrow, tiles_of


class Mixed(Integers):
    """How many activations are in 4 bits.

    four   share of the groups of activations in 4 bits; the other groups are in 8
    """

    four: float = Field(default=0.84, ge=0, le=1)
    cache_bits: int = Field(default=4, ge=2, le=16)


def shard(part: Shard, mixed: Mixed) -> Shard:
    """Return the share of a device whose layers hold weights in 4 bits."""
    return narrow(part, 4, "w4a4", mixed)


def operators(part: Shard, found: list[Operator], mixed: Mixed) -> list[Operator]:
    """Return the operators with products of 4-bit and of 8-bit integers, by the share of their groups."""
    return multiplied(part, found, tiles_of(mixed, mixed.four), mixed, "w4a4")


def holds(mixed: Mixed) -> Holds:
    """Return what numbers are held in: activations of both widths, unless all groups are in one."""
    activations = "int4" if mixed.four == 1 else "int8" if mixed.four == 0 else "int4, int8"
    return held_as("w4a8" if mixed.four == 0 else "w4a4", "int4", activations, mixed)


TECHNIQUE = Technique(
    title="weights and most activations in 4 bits, groups with outliers in 8, caches in 4",
    source="Liu et al., COMET, 2024, arXiv 2410.12168; its limit: Guo et al., APEX4, 2026, arXiv 2606.08761",
    parameters=Mixed,
    cannot={"w2a8kv4": "both say what weights are held in"},
    shard=shard,
    operators=operators,
    holds=holds,
)

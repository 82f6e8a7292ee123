"""Weights in 4 bits and activations in 8, multiplied as integers, with caches in 4 bits if wanted."""

from __future__ import annotations

import math
from dataclasses import replace

from pydantic import Field

from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard
from sonde.errors import InputError
from sonde.techniques.technique import Holds, Parameters, Technique
from sonde.techniques.tiles import (
    DEQUANTISATION,
    ZERO_BYTES,
    Tiles,
    bytes_of,
    cache_widened,
    in_tiles,
    instructions_per_s,
    on_products,
)


class Integers(Parameters):
    """What integer products take beside the products themselves.

    group            inputs that share the scales of a weight's output and of a token
    cache_bits       of a cached number; 16 leaves caches as the replica has them
    dequantisation   instructions of general cores, in line, for every result and group (0: a data path does it)
    conversion       hidden instructions for a weight that is brought to 8 bits
    cache_reading    hidden instructions for a cached number that is read, where caches are narrow
    """

    group: int = Field(default=128, ge=16, le=65_536)
    cache_bits: int = Field(default=16, ge=2, le=16)
    dequantisation: float = Field(default=DEQUANTISATION, ge=0, le=1000)
    conversion: float = Field(default=0.5, ge=0, le=100)
    cache_reading: float = Field(default=2.0, ge=0, le=100)


def narrow(part: Shard, bits: float, name: str, integers: Integers) -> Shard:
    """Return the share of a device whose layers hold weights of `bits`, with its caches as `integers` says.

    Activations between products stay as the replica has them. Raises InputError where the device has no integer
    products, and where that would widen something.
    """
    device = part.device
    if "int8" not in device.flops:
        raise InputError(
            f"techniques.{name}", name, f"needs integer products, which {device.name} lacks",
            f"it computes in {', '.join(device.flops)}: low-bit-weights saves the same bytes there",
        )  # fmt: skip
    held = bytes_of(bits, integers.group)
    if held >= part.weight_bytes and held >= part.expert_bytes:
        raise InputError(f"techniques.{name}", name, f"weights take {part.weight_bytes:.3f} bytes without it, no more")
    cache = bytes_of(integers.cache_bits, 128, ZERO_BYTES) if integers.cache_bits < 16 else part.kv_bytes
    if cache > part.kv_bytes:
        raise InputError(
            f"techniques.{name}.cache_bits", integers.cache_bits,
            f"takes {cache:.3f} bytes a number with its scales, and caches take {part.kv_bytes:.3f} without it",
        )  # fmt: skip
    return replace(part, weight_bytes=held, expert_bytes=held, kv_bytes=cache)


def multiplied(part: Shard, found: list[Operator], tiles: Tiles, integers: Integers, name: str) -> list[Operator]:
    """Return the operators with products of integers, and with caches that are widened as they are read."""
    charged = integers.dequantisation or integers.conversion or integers.cache_reading
    rate = instructions_per_s(part.device, name) if charged else math.inf
    done = on_products(found, lambda one: in_tiles(part, one, tiles, rate))
    if integers.cache_bits == 16:
        return done
    return [cache_widened(part, one, integers.cache_reading, rate) for one in done]


def held_as(products: str, weights: str, activations: str, integers: Integers) -> Holds:
    """Return what numbers are held in, caches as `integers` says."""
    return Holds(products, weights, activations, f"int{integers.cache_bits}" if integers.cache_bits < 16 else "")


def tiles_of(integers: Integers, four: float, packing: float = 1.0) -> Tiles:
    """Return the tiles of a product with a share `four` of its groups in 4 bits."""
    return Tiles(four, integers.group, integers.dequantisation, integers.conversion, packing)


class Folded(Integers):
    """Where the scales of weights go.

    folded   weights take their groups' scales on the way to 8 bits, and sums are scaled once (QServe); where they
             don't, every group's sums are, as with activations that have scales by group (COMET)
    """

    folded: bool = True
    conversion: float = Field(default=1.0, ge=0, le=100)


def shard(part: Shard, folded: Folded) -> Shard:
    """Return the share of a device whose layers hold weights in 4 bits."""
    return narrow(part, 4, "w4a8", folded)


def operators(part: Shard, found: list[Operator], folded: Folded) -> list[Operator]:
    """Return the operators with products of 8-bit integers."""
    tiles = tiles_of(folded, 0.0)._replace(folded=folded.folded)
    return multiplied(part, found, tiles, folded, "w4a8")


_TWICE = "both say what weights are held in"

TECHNIQUE = Technique(
    title="weights in 4 bits, activations in 8, multiplied as integers",
    source="Lin et al., QServe, MLSys 2025, arXiv 2405.04532; Liu et al., COMET, 2024, arXiv 2410.12168",
    parameters=Folded,
    cannot={"w4a4": "w4a4 with a share below 1 has W4A8 groups beside its own", "w2a8kv4": _TWICE},
    shard=shard,
    operators=operators,
    holds=lambda folded: held_as("w4a8", "int4", "int8", folded),
)

"""Matrix products of narrow integers: what runs on matrix units, and what general cores must do beside them.

Two sorts of work are charged to general cores, at one instruction a lane and cycle (half of the FP32 peak, which
counts a multiplication and an addition):

- **hidden**: widening what was loaded, before it is multiplied. It runs beside the loads and the products of the
  tile before, so a kernel takes the longest of the three.
- **in line**: scaling the integer sums of a group, after it is multiplied. The sums are the product's own
  registers, so the next group waits.

Both draw power as arithmetic at the peak of these cores does (`sonde.cost.power`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sonde.catalogue.device import Device
from sonde.cost.roofline import Floats, Operator, bound, together
from sonde.cost.shard import Shard
from sonde.errors import InputError

#: instructions for every result and group of a product: to turn the integer sum into a number, to load the two scales
#: and to multiply by them, and to add. Fitted to APEX4 (arXiv 2606.08761): W4A4-g128 on A100 at 0.43 to 0.47 of FP16
DEQUANTISATION = 20.0
#: rows of a tile: what is widened serves so many of them
TILE_ROWS = 128
#: bytes of a group's scale, of its scale and zero
SCALE_BYTES, ZERO_BYTES = 2.0, 4.0


class Tiles(NamedTuple):
    """A product cut along its inputs into groups whose activations are held in 4 or in 8 bits.

    four             share of the groups in 4 bits
    group            inputs in a group, each with scales of its own
    dequantisation   instructions in line for every result and group
    conversion       hidden instructions that bring a weight to 8 bits, where its group is in 8
    packing          products of one 8-bit multiplier at a time
    folded           whether weights take their groups' scales as they are brought to 8 bits, so that each result is
                     scaled once
    """

    four: float
    group: int
    dequantisation: float = DEQUANTISATION
    conversion: float = 0.5
    packing: float = 1.0
    folded: bool = False

    @property
    def activation_bytes(self) -> float:
        """Return the bytes of one activation with its share of the scale."""
        return self.four * 0.5 + (1.0 - self.four) + SCALE_BYTES / self.group


def bytes_of(bits: float, group: int, extra: float = SCALE_BYTES) -> float:
    """Return the bytes of one number of `bits` in groups that hold `extra` bytes beside."""
    return bits / 8.0 + extra / group


def instructions_per_s(device: Device, technique: str) -> float:
    """Return what a device's general cores execute. Raises InputError where nothing says how fast they are."""
    if "fp32" not in device.flops:
        raise InputError(
            f"techniques.{technique}", technique,
            f"needs to know the FP32 peak of {device.name}, at which its general cores widen and scale numbers",
            "set its instructions to 0 for hardware that does this in its data path",
        )  # fmt: skip
    return device.flops["fp32"] / 2.0


def on_products(operators: list[Operator], change: Callable[[Operator], Operator]) -> list[Operator]:
    """Return the operators with `change` made to every product with a layer's weights; the head's table stays."""
    return [change(one) if is_product(one) else one for one in operators]


def is_product(operator: Operator) -> bool:
    """Return whether an operator multiplies by the weights of a layer."""
    return operator.kind in ("gemm", "experts") and operator.name != "head"


def weights_of(operator: Operator) -> Floats:
    """Return how many weights a product reads: its FLOP over two a row."""
    return np.asarray(operator.flops / (2.0 * np.maximum(operator.rows, 1e-9)), dtype=np.float64)


def hidden(part: Shard, operator: Operator, seconds: Floats | float) -> Operator:
    """Return the operator with `seconds` (one layer) of general cores, beside its loads and its arithmetic."""
    layers = operator.layers * part.efficiencies.factor(operator.kind)
    spent = bound(part, operator)
    waited = np.maximum(seconds - together(spent.compute, spent.memory, spent.blend) / layers, 0.0)
    return operator._replace(waited_s=operator.waited_s + waited, cores_s=operator.cores_s + seconds)


def widened(
    part: Shard, operator: Operator, instructions: float, rate: float, weights: Floats | None = None
) -> Operator:
    """Return a product whose weights (all of them by default) are widened on general cores, once a tile of rows."""
    passes = np.ceil(np.asarray(operator.rows, dtype=np.float64) / TILE_ROWS)
    count = weights_of(operator) if weights is None else weights
    return hidden(part, operator, count * passes * instructions / rate)


def in_tiles(part: Shard, operator: Operator, tiles: Tiles, rate: float) -> Operator:
    """Return a product of narrow integers: in 4 bits where the device has them, in 8 bits elsewhere.

    `rate` is instructions/s of general cores; infinite where all that is done in the data path.
    """
    flops = part.device.flops
    quicker = flops["int8"] / flops.get("int4", flops["int8"])
    read = operator.flops / (2.0 * operator.columns) if operator.kind == "gemm" else 0.0  # activations, in numbers
    cast = read * (2.0 + tiles.activation_bytes) if part.activation_bytes >= 2.0 else 0.0
    found = operator._replace(
        precision="int8",
        flops=operator.flops * (tiles.four * quicker + (1.0 - tiles.four)) / tiles.packing,
        bytes=operator.bytes - read * (part.activation_bytes - tiles.activation_bytes),
        cast=operator.cast + cast,
        curve=operator.curve.partition("/")[0] + "/int8",
    )
    found = widened(part, found, tiles.conversion, rate, (1.0 - tiles.four) * weights_of(operator))
    sums = _results(part, operator)
    if not tiles.folded:  # results by groups; a group is no longer than the inputs
        sums = np.maximum(sums, operator.flops / (2.0 * tiles.group))
    scaling = sums * tiles.dequantisation / rate
    return found._replace(waited_s=found.waited_s + scaling, cores_s=found.cores_s + scaling)


def _results(part: Shard, operator: Operator) -> Floats:
    """Return how many numbers a product yields; of experts, those of its gate, its inner and its outer matrix."""
    if operator.kind == "gemm":
        return np.asarray(operator.rows * operator.columns, dtype=np.float64)
    hidden_, inner = part.model.hidden, operator.columns
    pairs = operator.flops / (6.0 * hidden_ * inner)
    return np.asarray(pairs * (hidden_ + 2.0 * inner), dtype=np.float64)


def cache_widened(part: Shard, operator: Operator, instructions: float, rate: float) -> Operator:
    """Return decoding attention that widens every cached number that it reads."""
    if operator.kind != "attention-decode" or operator.curve.startswith("linear") or not np.any(operator.bytes):
        return operator
    return hidden(part, operator, operator.bytes / part.kv_bytes * instructions / rate)

"""An operator and how long it takes: the roofline in seconds, vectorised over a grid of steps.

seconds = layers · (narrow · blend(flops·(1 + half_rows/rows + half_outputs/(rows·columns))/(peak·compute),
                                   bytes/(bandwidth·memory))
                    + overhead + rows·row_s + cast/(bandwidth·cast_share)) + link + host

with narrow = 1 + half_columns/columns and the constants of the operator's curve (`sonde.catalogue.curves`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.curves import OperatorEfficiency
from sonde.cost.shard import Shard

Floats = NDArray[np.float64]


class Operator(NamedTuple):
    """One operator on one device, in `layers` layers. Arrays and scalars may be mixed; all per layer.

    kind     what it is to an engine: "gemm", "experts", "attention-prefill", "attention-decode", "elementwise",
             "collective", or "engine" (host time alone)
    curve    what it reaches, a key of `Efficiencies.of`: "gemm/fp8", "mla-decode/bf16"; "" is that of its kind
    flops    FLOP;  bytes: moved to and from device memory
    rows     rows of the matrix product, of `columns` each
    cast     bytes moved to quantise its activations, or to deal them out to experts and gather them
    sent     bytes that one device sends;  link_s: seconds on the links;  host_s: seconds of the engine
    cores_s  seconds of general cores at their peak (widening and scaling numbers), whether or not anything waits
    waited_s of these, the seconds that the kernel takes longer for them
    launches kernels in one layer
    """

    name: str
    kind: str
    layers: float
    precision: str = "bf16"
    flops: Floats | float = 0.0
    bytes: Floats | float = 0.0
    rows: Floats | float = 1.0
    sent: Floats | float = 0.0
    link_s: Floats | float = 0.0
    host_s: Floats | float = 0.0
    launches: float = 1.0
    curve: str = ""
    columns: float = math.inf
    cast: Floats | float = 0.0
    cores_s: Floats | float = 0.0
    waited_s: Floats | float = 0.0


class Bound(NamedTuple):
    """Seconds of an operator (all layers) by what it waits for: compute, memory, and kernel starts and links.

    blend   power p of (compute^p + memory^p)^(1/p); 0: the longer of the two
    cores   the part of `other` in which general cores compute
    """

    compute: Floats
    memory: Floats
    other: Floats
    blend: float = 0.0
    cores: Floats | float = 0.0

    @property
    def seconds(self) -> Floats:
        """Return the time: compute and memory together, and the rest."""
        total: Floats = together(self.compute, self.memory, self.blend) + self.other
        return total


def together(compute: Floats, memory: Floats, power: float) -> Floats:
    """Return the time of two streams of work of one kernel: the power mean `power`, or the longer one if it is 0."""
    found: Floats
    if power == 0.0:
        found = np.maximum(compute, memory)
    elif power == 1.0:
        found = compute + memory
    elif power == 2.0:
        found = np.sqrt(compute * compute + memory * memory)
    else:
        found = (compute**power + memory**power) ** (1.0 / power)
    return found


def busy(curve: OperatorEfficiency, work: Floats, rows: Floats | float, columns: Floats | float) -> Floats:
    """Return the seconds of arithmetic that would take `work` seconds at the peak."""
    if curve.half_rows or curve.half_outputs:
        share = (curve.half_rows + curve.half_outputs / columns) / np.maximum(rows, 1e-9)
        work = work * (1.0 + share)
    return work * _narrow(curve, columns) / curve.compute


def moving(curve: OperatorEfficiency, moved: Floats, columns: Floats | float) -> Floats:
    """Return the seconds of bytes that would take `moved` seconds at the peak bandwidth."""
    return moved * _narrow(curve, columns) / curve.memory


def _narrow(curve: OperatorEfficiency, columns: Floats | float) -> Floats | float:
    return 1.0 + curve.half_columns / columns if curve.half_columns else 1.0


def bound(shard: Shard, operator: Operator) -> Bound:
    """Return the seconds of `operator` by cause."""
    layers = operator.layers
    if operator.kind == "engine":
        return Bound(np.zeros(1), np.zeros(1), np.asarray(layers * operator.host_s, dtype=np.float64))
    layers = layers * shard.efficiencies.factor(operator.kind)
    curve = shard.efficiencies.of(operator.curve or operator.kind)
    device = shard.device
    bandwidth = device.memory[0].bandwidth
    work = np.asarray(operator.flops / device.flops.get(operator.precision, 1.0), dtype=np.float64)
    compute = layers * busy(curve, work, operator.rows, operator.columns)
    moved = np.asarray(operator.bytes / bandwidth, dtype=np.float64)
    memory = layers * moving(curve, moved, operator.columns)
    rest = operator.link_s + operator.host_s + operator.waited_s
    if operator.kind != "collective":
        rest = rest + curve.overhead_s * operator.launches
        if curve.row_s:
            rest = rest + curve.row_s * operator.rows
        if not isinstance(operator.cast, float) or operator.cast:
            rest = rest + operator.cast / (bandwidth * curve.cast)
    return Bound(compute, memory, np.asarray(layers * rest, dtype=np.float64), curve.blend, layers * operator.waited_s)

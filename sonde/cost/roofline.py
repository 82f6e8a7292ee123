"""An operator and what it takes: the roofline, in seconds and joules, vectorised over a grid of steps.

seconds = layers · (max(flops·(1 + half_rows/rows)/(peak·compute), bytes/(bandwidth·memory)) + overhead) + link + host
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.shard import Shard

Floats = NDArray[np.float64]

#: arithmetic that reaches `compute` of its peak; narrower kinds reach `narrow`
WIDE = ("fp32", "bf16", "fp16")


class Operator(NamedTuple):
    """One operator on one device, in `layers` layers. Arrays and scalars may be mixed; all per layer.

    kind     class of efficiencies: "gemm", "experts", "attention-prefill", "attention-decode", "elementwise",
             "collective", or "engine" (host time alone)
    flops    FLOP;  bytes: moved to and from device memory;  rows: rows of the matrix product
    sent     bytes that one device sends;  link_s: seconds on the links;  host_s: seconds of the engine
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


class Bound(NamedTuple):
    """Seconds of an operator (all layers) by what it waits for: compute, memory, kernel starts and links."""

    compute: Floats
    memory: Floats
    other: Floats

    @property
    def seconds(self) -> Floats:
        """Return the time: the longer of compute and memory, and the rest."""
        total: Floats = np.maximum(self.compute, self.memory) + self.other
        return total


def bound(shard: Shard, operator: Operator) -> Bound:
    """Return the seconds of `operator` by cause."""
    layers = operator.layers
    if operator.kind == "engine":
        return Bound(np.zeros(1), np.zeros(1), np.asarray(layers * operator.host_s, dtype=np.float64))
    reached = shard.efficiencies.of(operator.kind)
    device = shard.device
    rows = 1.0 + reached.half_rows / np.maximum(operator.rows, 1e-9) if reached.half_rows else 1.0
    share = reached.compute if operator.precision in WIDE else reached.narrow
    peak = device.flops.get(operator.precision, 1.0) * share
    compute = np.asarray(layers * operator.flops * rows / peak, dtype=np.float64)
    memory = np.asarray(layers * operator.bytes / (device.memory[0].bandwidth * reached.memory), dtype=np.float64)
    starts = 0.0 if operator.kind == "collective" else reached.overhead_s * operator.launches
    other = np.asarray(layers * (starts + operator.link_s + operator.host_s), dtype=np.float64)
    return Bound(compute, memory, other)


def activity_joules(shard: Shard, operator: Operator, seconds: Floats) -> Floats:
    """Return the joules that work of `seconds` draws on one device, above what a running step draws anyway.

    Power above that is peak power times the share of compute, memory and network in use, each weighted
    (GenZ, arXiv 2406.01698), so its energy is the weighted sum of the times each would take at full use; a
    device never draws more than its peak.
    """
    device, shares = shard.device, shard.efficiencies.power
    full = shares.compute * operator.flops / device.flops.get(operator.precision, 1.0)
    full = full + shares.memory * operator.bytes / device.memory[0].bandwidth
    full = full + shares.network * operator.sent / device.node.bandwidth
    drawn = np.asarray(operator.layers * device.peak_w * full, dtype=np.float64)
    return np.minimum(drawn, (device.peak_w - running_w(shard)) * seconds)


def running_w(shard: Shard) -> float:
    """Return the watts that one device draws in any step, whatever it does."""
    return max(shard.device.idle_w, shard.efficiencies.power.static * shard.device.peak_w)

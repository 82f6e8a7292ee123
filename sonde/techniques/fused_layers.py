"""Layers fused into one kernel each: what passes from operator to operator stays on the chip (SN40L's dataflow).

Intermediate bytes leave the roofline, and all kernel starts of a layer but one. Weights are read and caches read and
written as before; sums over ranks, the head and the engine's time stay as they are.
"""

from __future__ import annotations

import numpy as np

from sonde.cost.roofline import Floats, Operator
from sonde.cost.shard import Shard
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique

#: kinds of operators that run inside a layer's kernel
INSIDE = ("gemm", "experts", "elementwise", "attention-prefill", "attention-decode")


class Fused(Parameters):
    """Nothing to choose: every layer is one kernel."""


def shard(shard: Shard, fused: Fused) -> Shard:
    """Return the shard as it is. Raises InputError where its device has no memory to keep intermediates in."""
    del fused
    if shard.device.on_chip is None:
        raise InputError(
            "techniques.fused-layers", shard.device.name, "needs memory on the chip that software places data in",
            "what passes between operators would go through device memory as before",
        )  # fmt: skip
    return shard


def operators(shard: Shard, found: list[Operator], fused: Fused) -> list[Operator]:
    """Return the operators with no bytes between them, and one kernel start for all that run in as many layers."""
    del fused
    done, started = [], set[float]()
    for operator in found:
        if operator.kind not in INSIDE or operator.name in ("embedding", "head"):
            done.append(operator)
            continue
        first = operator.layers not in started and operator.launches > 0
        if first:
            started.add(operator.layers)
        done.append(operator._replace(bytes=kept(shard, operator), cast=0.0, launches=1.0 if first else 0.0))
    return done


def kept(shard: Shard, operator: Operator) -> Floats | float:
    """Return the bytes of an operator that still go through device memory: weights, and caches."""
    if operator.kind == "elementwise":
        return operator.bytes / 2 if operator.name.endswith("cache write") else 0.0 * operator.bytes
    if operator.kind == "attention-prefill":
        return 0.0 * operator.bytes
    if operator.kind != "gemm":
        return operator.bytes
    rows = np.asarray(operator.rows, dtype=np.float64)
    inputs = operator.flops / (2.0 * np.maximum(rows, 1e-9)) / operator.columns
    between = rows * (inputs * shard.activation_bytes + operator.columns * max(shard.activation_bytes, 2.0))
    return np.maximum(operator.bytes - between, 0.0)


TECHNIQUE = Technique(
    title="every layer as one kernel: intermediates stay on the chip",
    source="Prabhakar et al., SambaNova SN40L, MICRO 2024, arXiv 2405.07518",
    parameters=Fused,
    cannot={
        "nano-batches": "a layer that is one kernel has no operators left to overlap",
        "two-microbatches": "a layer that is one kernel has no operators left to overlap",
    },
    shard=shard,
    operators=operators,
)

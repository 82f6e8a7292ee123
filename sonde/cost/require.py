"""What a platform must have for a latency: the cost model turned round, by search and not by a formula of its own.

Step times fall where a device gains compute, bandwidth or links, and nothing rises, so that bisection finds the
least of each. GenZ (arXiv 2406.01698) asks this of platforms for use cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sonde.catalogue.device import Device, Link, MemoryTier
from sonde.catalogue.efficiencies import Efficiencies, efficiencies
from sonde.catalogue.model import Model
from sonde.cost.explain import step_rows
from sonde.cost.memory import fit
from sonde.cost.shard import shard
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError
from sonde.units import show

AMPLE, LEAST, HALVINGS = 1e9, 1e-9, 60


class Target(NamedTuple):
    """A prompt of `prompt` tokens answered within `ttft_s`, and `batch` sequences at `context` tokens within
    `tpot_s` a step. None of the two times: not asked for."""

    prompt: int
    context: int
    batch: int
    ttft_s: float | None
    tpot_s: float | None


class Needs(NamedTuple):
    """The least that each device of a replica must have, all else being ample; SI.

    together    what compute, bandwidth and links of the device as it is must all be multiplied by (1: it just does)
    """

    flops: float
    bandwidth: float
    memory_bytes: float
    link_bandwidth: float
    together: float


class _Scale(NamedTuple):
    compute: float = AMPLE
    memory: float = AMPLE
    links: float = AMPLE


def require(
    model: Model, device: Device, replica: Replica, target: Target, *, reached: Efficiencies | None = None
) -> Needs:
    """Return the least platform for `target`, of the form of `device`: its precisions, latencies and efficiencies.

    Raises InputError where nothing is asked for, CannotError where no platform of this form could be fast enough.
    """
    if target.ttft_s is None and target.tpot_s is None:
        raise InputError("--ttft, --tpot", None, "needs at least one of them", "any platform would do")
    if target.prompt < 1 or target.context < 1 or target.batch < 1:
        raise InputError("target", tuple(target[:3]), "needs a prompt, a context and a batch of at least 1")
    held = reached or efficiencies(device)

    def enough(scale: _Scale) -> bool:
        return all(spent <= limit for spent, limit in _times(model, scaled(device, *scale), replica, target, held))

    if not enough(_Scale()):
        worst = max(
            _times(model, scaled(device, AMPLE, AMPLE, AMPLE), replica, target, held), key=lambda x: x[0] / x[1]
        )
        raise CannotError(
            f"no platform of this form would do: latencies and starts of kernels alone take {show(worst[0], 'time')} "
            f"of {show(worst[1], 'time')}"
        )
    arithmetic = shard(model, device, replica, held).product
    compute, memory, links, all_of = (
        _least(lambda x, shape=shape: enough(shape(x)))  # type: ignore[misc]
        for shape in (
            lambda x: _Scale(compute=x), lambda x: _Scale(memory=x), lambda x: _Scale(links=x),
            lambda x: _Scale(x, x, x),
        )
    )  # fmt: skip
    link = device.node if replica.devices <= device.node_devices else device.fabric
    return Needs(
        device.flops[arithmetic] * compute,
        device.memory[0].bandwidth * memory,
        _least_memory(model, device, replica, target),
        link.bandwidth * links if replica.devices > 1 else 0.0,
        all_of,
    )


def scaled(device: Device, compute: float = 1.0, memory: float = 1.0, links: float = 1.0) -> Device:
    """Return a device with so many times the arithmetic, memory bandwidth and link bandwidth; latencies stay."""
    first, *rest = device.memory

    def link(old: Link) -> Link:
        return Link(old.bandwidth * links, old.latency_s)

    return replace(
        device,
        flops={name: flops * compute for name, flops in device.flops.items()},
        memory=(MemoryTier(first.name, first.bytes, first.bandwidth * memory), *rest),
        node=link(device.node),
        fabric=link(device.fabric),
    )


def _times(
    model: Model, device: Device, replica: Replica, target: Target, held: Efficiencies
) -> list[tuple[float, float]]:
    """Return (seconds of a step, its limit) of what is asked for."""
    part = shard(model, device, replica, held)
    found = []
    if target.ttft_s is not None:
        found.append((sum(row.seconds for row in step_rows(part, target.prompt, 0, 0)), target.ttft_s))
    if target.tpot_s is not None:
        found.append((sum(row.seconds for row in step_rows(part, 0, target.batch, target.context)), target.tpot_s))
    return found


def _least(holds: Callable[[float], bool], low: float = LEAST, high: float = AMPLE) -> float:
    """Return the least factor between `low` and `high` that holds, to nine digits; `holds` must be monotone."""
    if holds(low):
        return low
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
        if high / low < 1 + 1e-9:
            break
    return high


def _least_memory(model: Model, device: Device, replica: Replica, target: Target) -> float:
    """Return the bytes of memory, per device, in which weights and the caches of the whole batch fit."""

    def holds(size: float) -> bool:
        first, *rest = device.memory
        sized = replace(device, memory=(MemoryTier(first.name, size, first.bandwidth), *rest))
        found = fit(model, sized, replica)
        return found.fits and (not found.kv_tokens or found.kv_tokens >= target.batch * target.context)

    return _least(holds, low=1e6, high=1e18)

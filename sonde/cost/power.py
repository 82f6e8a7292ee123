"""What an operator draws, and how a cap on power slows it: joules and seconds on one device.

A device at full clock draws `static` in any step and, on top, shares of its peak power by how much of its arithmetic,
memory and links is in use (the form of GenZ, arXiv 2406.01698; the constants are rows of `catalogue/data/power.csv`);
never more than its peak. Under a cap its clock falls to a share c until what it draws fits:

    idle + (static - idle)·c^v + (E_chip·c^(v-1) + E_rest)/seconds(c) <= cap

where arithmetic takes 1/c times as long, and memory, links and the starts of kernels as long as before. What general
cores execute beside a product (widening and scaling narrow numbers) counts as arithmetic at their peak. Power that
follows the clock to the power v = 3 is dynamic power of CMOS with a voltage that follows the clock. Where the slowest
clock draws too much still, work pauses in between. The device is taken to hold every operator to its cap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sonde.cost.roofline import Bound, Floats, Operator, bound, together
from sonde.cost.shard import Shard
from sonde.deployment.check import power_cap_w

#: halvings of the range in which a clock is looked for
_HALVINGS = 24


class Spent(NamedTuple):
    """Seconds that an operator takes (all layers), and joules of one device above what any step draws anyway."""

    seconds: Floats
    joules: Floats


def spent(shard: Shard, operator: Operator) -> Spent:
    """Return the time and the energy of `operator`, under the replica's cap on power if it has one."""
    took = bound(shard, operator)
    joules = activity_joules(shard, operator, took.seconds)
    if shard.replica.power_cap is None or operator.kind == "engine":
        return Spent(took.seconds, joules)
    clock, pause, drawn = _throttled(shard, took, joules, _on_chip(shard, operator))
    return Spent(_slowed(took, clock, pause).seconds, drawn)


def held(shard: Shard, operator: Operator) -> Bound:
    """Return the seconds of `operator` by cause, as `bound` does, under the replica's cap on power if it has one."""
    took = bound(shard, operator)
    if shard.replica.power_cap is None or operator.kind == "engine":
        return took
    joules = activity_joules(shard, operator, took.seconds)
    clock, pause, _ = _throttled(shard, took, joules, _on_chip(shard, operator))
    return _slowed(took, clock, pause)


def _slowed(took: Bound, clock: Floats, pause: Floats) -> Bound:
    cores = took.cores / clock
    return took._replace(compute=took.compute / clock, other=took.other + (cores - took.cores) + pause, cores=cores)


def activity_joules(shard: Shard, operator: Operator, seconds: Floats) -> Floats:
    """Return the joules of one device's work of `seconds` at full clock, above what any step draws anyway.

    Power is linear in use, so the energy of work is the weighted sum of the times it would take at each peak.
    """
    drawn = np.asarray(operator.layers * shard.device.peak_w * sum(_full(shard, operator)), dtype=np.float64)
    return np.minimum(drawn, (shard.device.peak_w - _static_w(shard)) * seconds)


def running_w(shard: Shard) -> float:
    """Return the watts that one device draws in any step, whatever is in it."""
    return min(_static_w(shard), power_cap_w(shard.device, shard.replica))


def _static_w(shard: Shard) -> float:
    return max(shard.device.idle_w, shard.efficiencies.power.static * shard.device.peak_w)


def _full(shard: Shard, operator: Operator) -> tuple[Floats | float, Floats | float, Floats | float]:
    """Return the seconds of one layer's work at the peaks of arithmetic, memory and links, each by its share."""
    device, shares = shard.device, shard.efficiencies.power
    return (
        shares.compute * (operator.flops / device.flops.get(operator.precision, 1.0) + operator.cores_s),
        shares.memory * operator.bytes / device.memory[0].bandwidth,
        shares.network * operator.sent / device.node.bandwidth,
    )


def _on_chip(shard: Shard, operator: Operator) -> Floats:
    """Return the share of an operator's joules that follows the voltage of the chip."""
    compute, memory, network = _full(shard, operator)
    chip = compute + memory * (1.0 - shard.efficiencies.power.dram)
    whole = np.asarray(compute + memory + network, dtype=np.float64)
    return np.asarray(chip / np.where(whole > 0.0, whole, 1.0), dtype=np.float64)


def _throttled(shard: Shard, took: Bound, joules: Floats, on_chip: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the clock that keeps work to the cap, the pauses where the slowest does not (s), and its joules.

    took, joules   of the work at the fastest clock;  on_chip: the share of its joules that follows the voltage
    """
    idle = shard.device.idle_w
    room = power_cap_w(shard.device, shard.replica) - idle
    power, static = shard.efficiencies.power, _static_w(shard) - idle
    chip, rest = joules * on_chip, joules * (1.0 - on_chip)

    def at(clock: Floats) -> tuple[Floats, Floats]:
        """Return seconds, and joules above those of an idle device."""
        seconds = (
            together(took.compute / clock, took.memory, took.blend) + took.other + took.cores * (1.0 / clock - 1.0)
        )
        return seconds, static * clock**power.voltage * seconds + chip * clock ** (power.voltage - 1.0) + rest

    fast = np.ones(joules.shape)
    seconds, drawn = at(fast)
    slow = np.where(drawn <= room * seconds * (1.0 + 1e-12), fast, power.slowest)
    if not (slow == fast).all():
        for _ in range(_HALVINGS):
            middle = (slow + fast) / 2.0
            seconds, drawn = at(middle)
            fits = drawn <= room * seconds
            slow, fast = np.where(fits, middle, slow), np.where(fits, fast, middle)
        seconds, drawn = at(slow)
    pause = np.maximum(drawn / room * (1.0 - 1e-12) - seconds, 0.0)
    return slow, pause, drawn + (idle - running_w(shard)) * (seconds + pause)

"""A layer's stages in nano-batches on one device, event by event: who runs when, on which share, and how fast.

At most one stage of each kind runs at a time, in a fixed order. A stage of memory or links runs on the share R that
it was started with, and reaches P(R) of its speed; products get what is left. What runs at once shares the bandwidth
of the memory: where more than all of it is asked for, everyone who moves bytes is slowed in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sonde.catalogue.interference import KINDS, Interference
from sonde.techniques.layer import Stage

#: of a stage with less than this share of its time left, nothing is left
ROUNDING = 1e-12
#: layers that are run through event by event
SHOWN = 8


class Order(NamedTuple):
    """When stages start, in periods of one layer: [nano-batch][stage]. Stages of one kind run in this order."""

    starts: tuple[tuple[float, ...], ...]


class Span(NamedTuple):
    """A stage that ran: of which layer and nano-batch, its kind, and from when to when (s)."""

    layer: int
    nano: int
    stage: str
    kind: str
    begin: float
    end: float


class Device(NamedTuple):
    """What a device does with several stages at once: P(R), and the share R that stages of memory and links get."""

    interference: Interference
    shares: Mapping[str, float]  # by name of the stage, or by kind


def timeline(nanos: Sequence[Sequence[Stage]], order: Order, device: Device, layers: int) -> list[Span]:
    """Return every stage that runs in `layers` equal layers, in order of its end.

    nanos   the stages of one layer for each nano-batch, as long as they take alone. A nano-batch's stage waits for
            the one before it, the first one for the last one of the layer before.
    """
    waiting = queues(nanos, order, layers)
    done = [-1] * len(nanos)  # stages that every nano-batch has behind it, over all layers
    running: dict[str, tuple[int, int, int, float, float]] = {}
    now, spans, known = 0.0, list[Span](), dict[tuple[tuple[int, int], ...], list[float]]()
    while running or any(waiting.values()):
        for kind, queue in waiting.items():
            if kind not in running and queue:
                layer, nano, stage = queue[-1]
                if done[nano] == layer * len(nanos[nano]) + stage - 1:
                    queue.pop()
                    running[kind] = (layer, nano, stage, nanos[nano][stage].seconds, now)
        together = tuple((nano, stage) for _, nano, stage, _, _ in running.values())
        if together not in known:  # a layer has few sets of stages that run at once, and meets them again and again
            known[together] = _speeds([nanos[nano][stage] for nano, stage in together], device)
        speeds = known[together]
        step = min(left / speed for (*_, left, _), speed in zip(running.values(), speeds, strict=True) if speed > 0)
        now += step
        for kind, speed in zip(list(running), speeds, strict=True):
            layer, nano, stage, left, begin = running[kind]
            left -= step * speed
            if left > ROUNDING * nanos[nano][stage].seconds:
                running[kind] = (layer, nano, stage, left, begin)
                continue
            del running[kind]
            done[nano] = layer * len(nanos[nano]) + stage
            spans.append(Span(layer, nano, nanos[nano][stage].name, kind, begin, now))
    return spans


def makespan(nanos: Sequence[Sequence[Stage]], order: Order, device: Device, layers: int) -> float:
    """Return the seconds of `layers` equal layers: eight as they run, those between them at the pace of the middle.

    The first ones fill the device and the last one leaves it; from the second to the sixth all are alike.
    """
    shown = min(layers, SHOWN)
    ends = [0.0] * shown
    for span in timeline(nanos, order, device, shown):
        ends[span.layer] = max(ends[span.layer], span.end)
    return ends[-1] + ((layers - shown) * (ends[5] - ends[1]) / 4.0 if layers > shown else 0.0)


def queues(nanos: Sequence[Sequence[Stage]], order: Order, layers: int) -> dict[str, list[tuple[int, int, int]]]:
    """Return (layer, nano-batch, stage) of what runs on every kind of unit, the first one last."""
    found: dict[str, list[tuple[float, int, int, int]]] = {kind: [] for kind in KINDS}
    for nano, chain in enumerate(nanos):
        for i, stage in enumerate(chain):
            start = order.starts[nano][i]
            found[stage.kind] += [(layer + start, layer, nano, i) for layer in range(layers)]
    return {kind: [key[1:] for key in sorted(keys, reverse=True)] for kind, keys in found.items()}


def _speeds(running: Sequence[Stage], device: Device) -> list[float]:
    """Return the speed of every running stage over its speed alone on the whole device."""
    given = [0.0 if one.kind == "compute" else _share(one, device) for one in running]
    rest = max(1.0 - sum(given), 0.0)
    speeds = [
        device.interference.speed(one.kind, rest if one.kind == "compute" else share)
        for one, share in zip(running, given, strict=True)
    ]
    asked = sum(speed * one.bandwidth for speed, one in zip(speeds, running, strict=True))
    if asked <= 1.0:
        return speeds
    return [speed / asked if one.bandwidth else speed for speed, one in zip(speeds, running, strict=True)]


def _share(stage: Stage, device: Device) -> float:
    return device.shares.get(stage.name, device.shares.get(stage.kind, 1.0))

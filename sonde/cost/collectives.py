"""Collectives as latency and bandwidth (alpha-beta), inside a node and across the fabric."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.curves import OperatorEfficiency
from sonde.catalogue.device import Link
from sonde.cost.roofline import Floats, Operator
from sonde.cost.shard import Shard

#: ranks of the largest groups whose collectives were measured
MEASURED_RANKS = 8.0


def all_reduce(shard: Shard, name: str, layers: float, ranks: int, size: Floats) -> Operator:
    """Return the sum of `size` bytes over `ranks` devices: 2·(N-1)/N·size sent by each.

    Across nodes: reduce-scatter inside, all-reduce of a part between nodes, all-gather inside.
    """
    inside = min(ranks, shard.device.node_devices)
    outside = math.ceil(ranks / inside)
    sent = 2.0 * (inside - 1) / inside * size
    seconds = _alpha_beta(shard, shard.device.node, inside, 1.0, sent)
    if outside > 1:
        part = 2.0 * (outside - 1) / outside * size / inside
        seconds = seconds + _alpha_beta(shard, shard.device.fabric, outside, 2.0 * math.log2(outside), part)
        sent = sent + part
    return Operator(name, "collective", layers, sent=sent, link_s=seconds)


def exchange(
    shard: Shard, name: str, layers: float, ranks: int, sent: tuple[Floats, Floats], startup_s: float | None = None
) -> Operator:
    """Return an exchange in which each of `ranks` devices sends bytes within its node and to others, at once.

    `startup_s` takes the place of what the links' latency and their ranks cost before the first byte.
    """
    near, far = sent
    inside = min(ranks, shard.device.node_devices)
    seconds = _exchanged(shard, shard.device.node, inside, near, startup_s)
    if ranks > inside:
        seconds = np.maximum(seconds, _exchanged(shard, shard.device.fabric, ranks, far, startup_s))
    return Operator(name, "collective", layers, sent=near + far, link_s=seconds)


def _exchanged(shard: Shard, link: Link, ranks: int, sent: Floats, startup_s: float | None) -> NDArray[np.float64]:
    taken = _alpha_beta(shard, link, ranks, 1.0, sent, "all-to-all")
    if startup_s is None or ranks < 2:
        return taken
    return startup_s + (taken - _alpha_beta(shard, link, ranks, 1.0, np.zeros(1), "all-to-all"))


def all_gather(shard: Shard, name: str, layers: float, ranks: int, size: Floats) -> Operator:
    """Return the gathering of `size` bytes in all, of which every one of `ranks` devices holds an equal part."""
    sent = size * (ranks - 1) / ranks
    seconds = _alpha_beta(shard, shard.link(ranks), ranks, 1.0, sent, "all-gather")
    return Operator(name, "collective", layers, sent=sent, link_s=seconds)


def point_to_point(shard: Shard, name: str, hops: float, size: Floats) -> Operator:
    """Return the hand-over of `size` bytes from a device of one pipeline stage to one of the next."""
    link = shard.link(shard.replica.devices)
    return Operator(name, "collective", hops, sent=size, link_s=_alpha_beta(shard, link, 2, 1.0, size))


def message_seconds(
    curve: OperatorEfficiency, link: Link, ranks: Floats | float, rounds: float, sent: Floats, *, near: bool
) -> NDArray[np.float64]:
    """Return overhead + rounds·latency + further ranks + sent/(bandwidth·share) in s, for two ranks or more.

    Inside a node (`near`) every rank reads every other at once, so that one round is enough whatever their number,
    as measured all-reduces of small messages show, at a share of the link's latency; across nodes a tree takes
    log2 of them each way. Ranks beyond two add a time for every doubling, and crowd the links of a node by a power
    of their number, as far as it was measured.
    """
    alpha: Floats | float = curve.overhead_s + rounds * link.latency_s * (curve.latency if near else 1.0)
    share: Floats | float = curve.memory
    if near:
        alpha = alpha + curve.hop_s * np.log2(np.asarray(ranks) / 2.0)
        share = share * (np.minimum(ranks, MEASURED_RANKS) / 2.0) ** -curve.crowding
    seconds: NDArray[np.float64] = alpha + np.asarray(sent, dtype=np.float64) / (link.bandwidth * share)
    return seconds


def _alpha_beta(
    shard: Shard, link: Link, ranks: int, rounds: float, sent: Floats, curve: str = "collective"
) -> NDArray[np.float64]:
    """Return the seconds of a message; nothing where there is one rank."""
    if ranks < 2:
        return np.zeros_like(np.asarray(sent, dtype=np.float64))
    near = link is shard.device.node
    return message_seconds(shard.efficiencies.of(curve), link, float(ranks), rounds, sent, near=near)

"""Collectives as latency and bandwidth (alpha-beta), inside a node and across the fabric."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.device import Link
from sonde.cost.roofline import Floats, Operator
from sonde.cost.shard import Shard


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


def all_to_all(shard: Shard, name: str, layers: float, ranks: int, size: Floats) -> Operator:
    """Return the exchange in which each of `ranks` devices spreads `size` bytes evenly over all of them."""
    inside = min(ranks, shard.device.node_devices)
    near = size * (inside - 1) / ranks
    seconds = _alpha_beta(shard, shard.device.node, inside, 1.0, near)
    far = size * (ranks - inside) / ranks
    if ranks > inside:
        seconds = np.maximum(seconds, _alpha_beta(shard, shard.device.fabric, ranks, 1.0, far))
    return Operator(name, "collective", layers, sent=near + far, link_s=seconds)


def all_gather(shard: Shard, name: str, layers: float, ranks: int, size: Floats) -> Operator:
    """Return the gathering of `size` bytes in all, of which every one of `ranks` devices holds an equal part."""
    sent = size * (ranks - 1) / ranks
    return Operator(
        name, "collective", layers, sent=sent, link_s=_alpha_beta(shard, shard.link(ranks), ranks, 1.0, sent)
    )


def point_to_point(shard: Shard, name: str, hops: float, size: Floats) -> Operator:
    """Return the hand-over of `size` bytes from a device of one pipeline stage to one of the next."""
    link = shard.link(shard.replica.devices)
    return Operator(name, "collective", hops, sent=size, link_s=_alpha_beta(shard, link, 2, 1.0, size))


def _alpha_beta(shard: Shard, link: Link, ranks: int, rounds: float, sent: Floats) -> NDArray[np.float64]:
    """Return overhead + rounds·latency + sent/(bandwidth·efficiency) in s; nothing where there is one rank.

    Inside a node every rank reads every other at once, so that one round is enough whatever their number, as
    measured all-reduces of small messages show; across nodes a tree takes log2 of them each way.
    """
    if ranks < 2:
        return np.zeros_like(np.asarray(sent, dtype=np.float64))
    reached = shard.efficiencies.collective
    alpha = reached.overhead_s + rounds * link.latency_s
    seconds: NDArray[np.float64] = alpha + np.asarray(sent, dtype=np.float64) / (link.bandwidth * reached.memory)
    return seconds

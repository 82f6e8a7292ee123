"""Mixtures of experts: how many distinct experts a step touches, how evenly, and what their ranks exchange."""

from __future__ import annotations

import math

import numpy as np

from sonde.catalogue.model import FeedForward
from sonde.cost.collectives import all_reduce, exchange
from sonde.cost.placement import busiest, fullest, nodes_met
from sonde.cost.roofline import Floats, Operator
from sonde.cost.shard import Shard

#: bytes moved for every number of a token's hidden and inner state to deal it out to its experts and to gather it:
#: three in 16 bits, read or written
NUMBERS_MOVED = 6.0


def distinct_experts(experts: int, top_k: int, tokens: Floats) -> Floats:
    """Return the expected number of distinct experts that `tokens` tokens touch: E·(1 - (1 - k/E)^n).

    Every token draws its `top_k` experts evenly and independently of the other tokens.
    """
    touched: Floats = (
        experts * -np.expm1(tokens * math.log1p(-top_k / experts))
        if top_k < experts
        else (np.where(tokens > 0, float(experts), 0.0))
    )
    return touched


def busiest_load(forward: FeedForward, ranks: int, tokens: Floats) -> Floats:
    """Return the (token, expert) pairs that the busiest of `ranks` expert-parallel ranks computes.

    The mean m = n·k/ranks and the expected excess of the largest of `ranks` even draws, √(2·m·ln ranks); at
    most every pair that could land there.
    """
    mean = tokens * forward.top_k / ranks
    if ranks == 1:
        return mean
    most = tokens * min(forward.top_k, math.ceil(forward.experts / ranks))
    load: Floats = np.minimum(mean + np.sqrt(2.0 * mean * math.log(ranks)), most)
    return load


def expert_operators(shard: Shard, forward: FeedForward, rows: Floats, tokens: Floats) -> list[Operator]:
    """Return the routed experts of one device: their products, and what the ranks exchange for them.

    rows      tokens of this device's attention rank
    tokens    tokens of all attention ranks: all of them meet the experts
    """
    model, replica = shard.model, shard.replica
    ranks, split = replica.expert_parallel, shard.expert_split
    if shard.placement is None:
        load = busiest_load(forward, ranks, tokens)
        touched = distinct_experts(forward.experts, forward.top_k, tokens) / ranks
    else:
        load, touched = busiest(shard.placement, tokens), fullest(shard.placement, tokens)
    weights = sum(matrix.parameters for matrix in forward.expert_matrices) / split
    columns = forward.expert_matrices[-1].inputs / split
    flops = 2.0 * load * weights
    found = [
        Operator(
            "experts", "experts", forward.layers, shard.expert_product, flops, touched * weights * shard.expert_bytes,
            load / np.maximum(touched, 1e-9), curve=f"experts/{shard.expert_form}", columns=columns,
            cast=load * NUMBERS_MOVED * (model.hidden + columns),
        )
    ]  # fmt: skip
    token_bytes = model.hidden * shard.activation_bytes
    if replica.data_parallel == 1:
        if shard.tensor > 1:
            found.append(all_reduce(shard, "experts all-reduce", forward.layers, shard.tensor, rows * token_bytes))
        return found
    if ranks == 1:
        found.append(all_reduce(shard, "experts all-reduce", forward.layers, shard.group, tokens * token_bytes))
        return found
    there = shard.exchange.dispatch or shard.activation_bytes
    back = shard.exchange.combine or max(shard.activation_bytes, 2.0)
    return [
        *found,
        _travel(shard, forward, "experts dispatch", rows, there),
        _travel(shard, forward, "experts combine", rows, back),
    ]


def _travel(shard: Shard, forward: FeedForward, name: str, rows: Floats, number: float) -> Operator:
    """Return the exchange of `rows` tokens of a device, `number` bytes a number of their hidden state.

    Without a limit on nodes, every expert of a token is sent a copy of its own. With one, a copy travels to each
    node once and is dealt out inside it, which costs links of the node and not the fabric.
    """
    ranks, nodes = shard.replica.expert_parallel, shard.expert_nodes
    one = np.ceil(rows / shard.tensor) * shard.model.hidden * number
    copies = min(forward.top_k, ranks)
    inside = min(ranks, shard.device.node_devices)
    if shard.exchange.nodes and nodes > 1:
        met = nodes_met(forward.experts, forward.top_k, nodes, shard.exchange.nodes)
        sent = (one * copies * (inside - 1) / inside, one * met * (nodes - 1) / nodes)
    else:
        sent = (one * copies * (inside - 1) / ranks, one * copies * (ranks - inside) / ranks)
    return exchange(shard, name, forward.layers, ranks, sent, shard.exchange.startup_s)

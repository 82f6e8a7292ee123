"""Mixtures of experts: how many distinct experts a step touches, how evenly, and what their ranks exchange."""

from __future__ import annotations

import math

import numpy as np

from sonde.catalogue.model import FeedForward
from sonde.cost.collectives import all_reduce, all_to_all
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
    load = busiest_load(forward, ranks, tokens)
    touched = distinct_experts(forward.experts, forward.top_k, tokens) / ranks
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
    sent = np.ceil(rows / shard.tensor) * min(forward.top_k, ranks) * model.hidden
    dispatch = all_to_all(shard, "experts dispatch", forward.layers, ranks, sent * shard.activation_bytes)
    combine = all_to_all(shard, "experts combine", forward.layers, ranks, sent * max(shard.activation_bytes, 2.0))
    return [*found, dispatch, combine]

"""A step, operator by operator: what each takes, and what it waits for. The rows add up to the step table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sonde.catalogue.device import Device
from sonde.catalogue.model import Model
from sonde.cost.operators import (
    batch_operators,
    engine_operators,
    gather_operators,
    head_operators,
    pair_operators,
    read_operators,
    table_window,
    token_operators,
)
from sonde.cost.power import held, running_w, spent
from sonde.cost.roofline import Bound, Operator
from sonde.cost.served import served
from sonde.cost.shard import Shard, shard
from sonde.deployment.tree import Replica
from sonde.errors import InputError


class Row(NamedTuple):
    """One operator of a step. FLOP, bytes and joules are of all devices; `bound` is what its time goes to.

    bound   "compute", "memory", "links", "starts" (of kernels) or "engine"
    """

    operator: str
    seconds: float
    bound: str
    flops: float
    bytes: float
    joules: float


def explain(model: Model, device: Device, replica: Replica, prompt: int, batch: int, context: int = 0) -> list[Row]:
    """Return the rows of a step with one prompt of `prompt` tokens and `batch` sequences decoding at `context` tokens.

    Their seconds and joules add up to those of the step table, for steps of as many tokens as it holds. Raises
    InputError where the step is empty or the parallelism impossible.
    """
    return step_rows(shard(model, device, replica, served(device, replica)), prompt, batch, context)


def step_rows(part: Shard, prompt: int, batch: int, context: int) -> list[Row]:
    """Return the rows of `explain` for a replica that is cut already, with efficiencies and techniques of your own."""
    if prompt < 0 or batch < 0 or prompt + batch < 1:
        raise InputError("explain", (prompt, batch), "needs a prompt or a batch of at least 1 token")
    replica = part.replica
    mine = -(-batch // part.lanes)
    everywhere = float(replica.devices)

    decoded = part.queries * batch
    rows = _token_rows(part, prompt + decoded, decoded)
    sampled = np.array([max(part.queries * mine, 1.0)])
    rows += [_row(part, operator, 1.0, everywhere) for operator in _left(part, head_operators(part, sampled))]
    ranks = replica.data_parallel if part.sequence_parallel else 1
    if part.sequence_parallel and prompt:
        shared = _left(part, gather_operators(part, np.array([float(prompt)])))
        rows += [_row(part, operator, 1.0, everywhere) for operator in shared]
    window = table_window(part)
    for windowed, pairs, read in (
        (False, _pairs(prompt, 0), float(batch * context)),
        (True, _pairs(prompt, window), float(batch * min(context, window))),
    ):
        if prompt:
            rows += [
                _row(part, operator, pairs / ranks, pairs * part.tensor)
                for operator in _left(part, pair_operators(part, windowed=windowed))
            ]
        if batch:
            rows += [
                _row(part, operator, read * mine / batch, read * part.tensor)
                for operator in _left(part, read_operators(part, windowed=windowed))
            ]
    if batch:
        decoding = _left(part, batch_operators(part, np.array([float(mine)]), np.array([float(batch)])))
        rows += [_row(part, operator, 1.0, everywhere) for operator in decoding]
    return rows + [_row(part, operator, 1.0, 0.0) for operator in _left(part, engine_operators(part))]


def _left(part: Shard, operators: list[Operator]) -> list[Operator]:
    """Return operators as techniques leave them."""
    for edit in part.edits:
        operators = edit(part, operators)
    return operators


def _token_rows(part: Shard, tokens: int, batch: int) -> list[Row]:
    """Return the rows of what follows tokens: prompts pass one rank and every stage, decodes are spread over them."""
    stages, everywhere = part.replica.pipeline_parallel, float(part.replica.devices)

    def rows(count: int, *, lone: bool) -> list[Row]:
        micro = np.array([float(count if lone else -(-count // stages))])
        return [
            _row(part, operator, 1.0, everywhere)
            for operator in _left(part, token_operators(part, micro, lone=lone))
            if not _is_head(operator)
        ]

    shared = rows(tokens, lone=False)
    if part.lanes == 1 or part.sequence_parallel:
        return shared
    seconds = np.array([row.seconds for row in rows(tokens, lone=True)])
    if batch:
        seconds += [row.seconds for row in rows(batch, lone=False)]
        seconds -= [row.seconds for row in rows(batch, lone=True)]
    return [
        row._replace(seconds=float(taken), joules=row.joules + (taken - row.seconds) * running_w(part) * everywhere)
        for row, taken in zip(shared, seconds, strict=True)
    ]


def _pairs(prompt: int, window: int) -> float:
    """Return the (query, key) pairs of a prompt to the half-token rule; a key beyond `window` is not read."""
    near = min(prompt, window) if window else prompt
    return near * near / 2 + float((prompt - near) * window)


def _is_head(operator: Operator) -> bool:
    return operator.name.startswith("head")


def _row(part: Shard, operator: Operator, time: float, work: float) -> Row:
    """Return the row of an operator that takes `time` times as long, and does `work` times the work on one device."""
    taken, active = (float(np.ravel(value)[0]) for value in spent(part, operator))
    seconds, active = taken * time, active * work
    joules = running_w(part) * part.replica.devices * seconds + active
    return Row(
        operator.name,
        seconds,
        _cause(operator, held(part, operator)),
        float(np.ravel(operator.flops)[0]) * operator.layers * work,
        float(np.ravel(operator.bytes)[0]) * operator.layers * work,
        joules,
    )


def _cause(operator: Operator, spent: Bound) -> str:
    if operator.kind == "engine":
        return "engine"
    if operator.kind == "collective":
        return "links"
    compute, memory, other, cores = (float(np.ravel(part)[0]) for part in (*spent[:3], spent.cores))
    compute, other = compute + cores, other - cores
    if other > max(compute, memory):
        return "starts"
    return "compute" if compute > memory else "memory"

"""A replica, compiled: from model, device and choices to the step table that the simulator runs."""

from __future__ import annotations

import numpy as np

from sonde.catalogue.device import Device
from sonde.catalogue.efficiencies import Efficiencies
from sonde.catalogue.model import Model
from sonde.cost.memory import kv_memory
from sonde.cost.money import hourly_cost
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
from sonde.cost.power import running_w, spent
from sonde.cost.roofline import Floats, Operator
from sonde.cost.served import client_of, doubt_of, served
from sonde.cost.shard import Shard, shard
from sonde.cost.table import Client, Coefficients, Engine, StepTable
from sonde.deployment.tree import Replica

#: entries of the table over tokens: at least, and at most (a longer step follows the slope)
LEAST_TOKENS, MOST_TOKENS = 8192, 16384


def compile_replica(
    model: Model,
    device: Device,
    replica: Replica,
    *,
    reached: Efficiencies | None = None,
    purchase: str = "on-demand",
    usd_per_device_hour: float | None = None,
) -> Engine:
    """Return the engine of one replica: step table (s, J), memory for caches (bytes), watts when idle, dollars.

    `reached` replaces the catalogue's efficiencies under the replica's engine, and with it what that engine adds
    for its clients. Raises InputError where the parallelism does not divide the model, CannotError where it does
    not fit the memory (with what would).
    """
    part = shard(model, device, replica, reached or served(device, replica))
    engine = compile_shard(part, purchase=purchase, usd_per_device_hour=usd_per_device_hour)
    return engine if reached is None else engine._replace(client=Client())


def compile_shard(part: Shard, *, purchase: str = "on-demand", usd_per_device_hour: float | None = None) -> Engine:
    """Return the engine of a replica that is cut over its devices as `part` says. Raises CannotError as above."""
    replica, device = part.replica, part.device
    memory = kv_memory(part)
    batching = replica.batching
    return Engine(
        step_table(part), memory, batching.policy, batching.max_batch, batching.token_budget, batching.preemption,
        device.idle_w * replica.devices,
        hourly_cost(device, replica, purchase=purchase, usd_per_device_hour=usd_per_device_hour),
        replica.devices, client_of(device, replica), doubt_of(device, replica, part.model.name),
    )  # fmt: skip


def step_table(part: Shard) -> StepTable:
    """Return the time and energy of a replica's steps, exact at every whole number of tokens and sequences."""
    seconds, joules = _tables(part)
    drawn = running_w(part) * part.replica.devices
    return StepTable(seconds, _drawn(seconds, joules, drawn), table_window(part))


def _drawn(seconds: Coefficients, work: Coefficients, watts: float) -> Coefficients:
    """Return the joules of a step: `watts` for as long as it takes, and those of its work."""
    return Coefficients(
        watts * seconds.fixed + work.fixed,
        watts * seconds.linear + work.linear,
        watts * seconds.slope + work.slope,
        watts * seconds.prefill + work.prefill,
        watts * seconds.prefill_window + work.prefill_window,
        watts * seconds.decode + work.decode,
        watts * seconds.read + work.read,
        watts * seconds.read_window + work.read_window,
    )


def _tables(part: Shard) -> tuple[Coefficients, Coefficients]:
    """Return the time of a step, and the joules of its work over all devices."""
    stages, most = part.replica.pipeline_parallel, part.replica.batching.max_batch
    asked = part.queries * np.arange(most + 1)
    last = max(min(MOST_TOKENS, max(LEAST_TOKENS, part.replica.batching.token_budget, most)), int(asked[-1]))
    micro = np.arange(-(-last // stages) + 1, dtype=np.float64)
    linear = [_spread(values, last, stages) for values in summed(part, token_operators(part, micro), len(micro))]
    spread, work = linear
    if part.sequence_parallel:
        gathered = summed(part, gather_operators(part, micro), len(micro))
        linear = [a + _spread(b, last, stages) for a, b in zip(linear, gathered, strict=True)]
    elif part.lanes > 1:  # a prompt is on one rank and passes every stage; only decodes are spread
        whole = np.arange(last + 1, dtype=np.float64)
        linear[0] = _spread(summed(part, token_operators(part, whole, lone=True), last + 1)[0], last, 1)

    batch = np.arange(most + 1, dtype=np.float64)
    mine = np.ceil(batch / part.lanes)
    decode = [a + b for a, b in zip(summed(part, batch_operators(part, mine, batch), most + 1), _head(part, mine),
                                    strict=True)]  # fmt: skip
    decode[0] += spread[asked] - linear[0][: most + 1]
    decode[1] += work[asked] - linear[1][: most + 1]
    for table in decode:
        table[0] = 0.0

    share = np.concatenate(([0.0], mine[1:] / batch[1:]))
    reads = [summed(part, read_operators(part, windowed=windowed), 1) for windowed in (False, True)]
    pairs = [summed(part, pair_operators(part, windowed=windowed), 1) for windowed in (False, True)]
    fixed = summed(part, engine_operators(part), 1)
    period = part.lanes * 16

    def coefficients(quantity: int, ranks: float, prompts: float, reading: Floats) -> Coefficients:
        line = linear[quantity] * ranks
        slope = float((line[last] - line[last - period]) / period)
        return Coefficients(
            float(fixed[quantity][0]), line, slope,
            float(pairs[0][quantity][0] * prompts), float(pairs[1][quantity][0] * prompts),
            decode[quantity] * ranks, reads[0][quantity][0] * reading, reads[1][quantity][0] * reading,
        )  # fmt: skip

    everywhere = float(part.replica.devices)
    tensor = float(part.tensor)
    return (
        coefficients(0, 1.0, 1.0 / part.replica.data_parallel if part.sequence_parallel else 1.0, share),
        coefficients(1, everywhere, tensor, np.where(batch > 0, tensor, 0.0)),
    )


def summed(part: Shard, operators: list[Operator], size: int) -> tuple[Floats, Floats]:
    """Return seconds and joules of the work on one device, summed over operators as techniques leave them: [size]."""
    seconds, joules = np.zeros(size), np.zeros(size)
    for edit in part.edits:
        operators = edit(part, operators)
    for operator in operators:
        took, drawn = spent(part, operator)
        seconds += took
        joules += drawn
    return seconds, joules


def _head(part: Shard, rows: Floats) -> tuple[Floats, Floats]:
    """Return what the head costs for `rows` sequences beyond the one row that every step's tokens pay for."""
    at = summed(part, head_operators(part, np.maximum(part.queries * rows, 1.0)), len(rows))
    one = summed(part, head_operators(part, np.ones(1)), 1)
    return at[0] - one[0][0], at[1] - one[1][0]


def _spread(micro: Floats, last: int, stages: int) -> Floats:
    """Return the table over tokens [last + 1] from that over the tokens of a microbatch; a step of none is free."""
    micro[0] = 0.0
    if stages == 1:
        return micro
    return micro[-(-np.arange(last + 1) // stages)]

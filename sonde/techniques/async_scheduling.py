"""Asynchronous scheduling: the next batch is formed while this one runs, before it is known which sequences end."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sonde.cost.power import running_w
from sonde.cost.shard import Shard
from sonde.cost.table import Coefficients, Engine
from sonde.errors import InputError
from sonde.techniques.retime import retimed
from sonde.techniques.technique import Parameters, Technique


class Ahead(Parameters):
    """How often a token is wasted.

    output   tokens that a sequence makes in the mean; at its end one more is computed, which nobody reads
    """

    output: float = Field(default=256.0, ge=1)


def engine(engine: Engine, part: Shard, ahead: Ahead) -> Engine:
    """Return the engine whose steps take as long as the device or the scheduler, whichever is longer.

    Hidden is the time that the engine adds once a step, per token and per sequence; what it adds per layer launches
    kernels and stays. Raises InputError in a pipeline, whose stages are scheduled side by side already.
    """
    if part.replica.pipeline_parallel > 1:
        raise InputError(
            "replica.pipeline_parallel", part.replica.pipeline_parallel, "must be 1 under async-scheduling",
            "the batches of a pipeline are formed while others run already",
        )  # fmt: skip
    time = _hidden(engine.table.time, part, ahead)
    return engine._replace(table=retimed(engine.table, time, running_w(part) * part.replica.devices))


def _hidden(table: Coefficients, part: Shard, ahead: Ahead) -> Coefficients:
    adds = part.efficiencies.engine
    tokens = np.arange(len(table.linear), dtype=np.float64)
    host = adds.step_s + adds.token_s * tokens
    device = table.fixed + table.linear - host
    fixed = table.fixed - adds.step_s
    linear = np.maximum(device, host) - fixed
    linear[0] = 0.0
    slope = table.slope - adds.token_s if device[-1] >= host[-1] else adds.token_s

    batch = np.arange(len(table.decode))
    at = np.minimum(batch, len(tokens) - 1)
    slack = np.maximum(device[at] - host[at], 0.0)
    wasted = np.interp(batch * (1.0 + 1.0 / ahead.output), tokens, linear) - linear[at]
    decode = table.decode - np.minimum(adds.sequence_s * batch, slack) + wasted
    more = 1.0 + 1.0 / ahead.output
    return table._replace(
        fixed=fixed, linear=linear, slope=slope, decode=decode, read=table.read * more,
        read_window=table.read_window * more,
    )  # fmt: skip


TECHNIQUE = Technique(
    title="the next batch is formed while this one runs, at one wasted token a sequence",
    source="Zhu et al., NanoFlow, OSDI 2025, arXiv 2408.12757",
    parameters=Ahead,
    engine=engine,
)

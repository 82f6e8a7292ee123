"""A pipeline whose stages hand over without waiting, so that several batches are in it at once (EnergonAI).

Every batch in flight is an engine of its own: a step takes it through all stages, and it has its share of the memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from pydantic import Field

from sonde.cost.collectives import point_to_point
from sonde.cost.compile import step_table
from sonde.cost.power import running_w
from sonde.cost.roofline import bound
from sonde.cost.shard import Shard
from sonde.cost.table import Coefficients, Engine
from sonde.deployment.tree import Deployment, Pool, Replica
from sonde.errors import InputError
from sonde.techniques.retime import plus
from sonde.techniques.technique import Parameters, Technique


class InFlight(Parameters):
    """How many batches are in the pipeline.

    in_flight   batches at once, a divisor of the stages; as many as stages where it is not given; 1 is the blocking
                pipeline: one batch, and all stages but one idle
    """

    in_flight: int | None = Field(default=None, ge=1)


def deployment(deployment: Deployment, flight: InFlight) -> Deployment:
    """Return the deployment with a replica for every batch in flight: `engine` gives each its share of the devices.

    Raises InputError where a pool has no stages to fill, or they are no multiple of the batches.
    """
    sites = [
        site.model_copy(update={"pools": tuple(_lanes(pool, flight) for pool in site.pools)})
        for site in deployment.sites
    ]
    return deployment.model_copy(update={"sites": tuple(sites)})


def engine(engine: Engine, part: Shard, flight: InFlight) -> Engine:
    """Return the engine of one batch in flight: a step passes all stages undivided, hand-overs included.

    Batches are taken to be alike, so that none waits for another; `sonde reproduce energonai` tries the real thing.
    """
    stages, lanes = part.replica.pipeline_parallel, batches(part.replica, flight)
    whole = part.replica.model_copy(update={"pipeline_parallel": 1})
    table = step_table(replace(part, replica=whole))
    time = _handed_over(table.time, part)
    watts = running_w(part) * whole.devices
    energy = plus(plus(table.energy, table.time, -watts), time, watts * stages / lanes)
    most = math.ceil(engine.max_batch / lanes)
    memory = engine.memory
    return engine._replace(
        table=table._replace(time=_cut(time, most), energy=_cut(energy, most)),
        memory=memory._replace(
            capacity_bytes=memory.capacity_bytes // lanes, swap_bytes_per_s=memory.swap_bytes_per_s / lanes
        ),
        max_batch=most,
        idle_w=engine.idle_w / lanes,
        usd_per_hour=engine.usd_per_hour / lanes,
        devices=engine.devices // lanes,
    )


def batches(replica: Replica, flight: InFlight) -> int:
    """Return how many batches are in flight. Raises InputError where the pipeline cannot be filled so."""
    stages = replica.pipeline_parallel
    if stages < 2:
        raise InputError("replica.pipeline_parallel", stages, "must be at least 2 under non-blocking-pipeline")
    lanes = flight.in_flight or stages
    if stages % lanes:
        allowed = ", ".join(str(n) for n in range(1, stages + 1) if stages % n == 0)
        raise InputError(
            "techniques.non-blocking-pipeline.in_flight", lanes, f"must divide the {stages} stages: {allowed}",
            "a batch more than stages would wait, and its memory would hold caches that nobody works on",
        )  # fmt: skip
    return lanes


def _lanes(pool: Pool, flight: InFlight) -> Pool:
    if flight.pools and pool.name not in flight.pools:
        return pool
    return pool.model_copy(update={"replicas": pool.replicas * batches(pool.replica, flight)})


def _handed_over(table: Coefficients, part: Shard) -> Coefficients:
    """Return the table with the hand-overs from stage to stage, and the engine's time on every further stage."""
    stages = part.replica.pipeline_parallel
    tokens = np.arange(len(table.linear), dtype=np.float64)
    hidden = tokens * part.model.hidden * part.activation_bytes
    hops = bound(part, point_to_point(part, "pipeline hand-over", stages, hidden)).seconds
    linear = table.linear + hops
    linear[0] = 0.0
    fixed = table.fixed + (stages - 1) * part.efficiencies.engine.step_s
    return table._replace(fixed=fixed, linear=linear, slope=table.slope + float(hops[-1] - hops[-2]))


def _cut(table: Coefficients, most: int) -> Coefficients:
    end = most + 1
    return table._replace(decode=table.decode[:end], read=table.read[:end], read_window=table.read_window[:end])


TECHNIQUE = Technique(
    title="stages hand over without waiting, so that as many batches as stages are in the pipeline",
    source="Du et al., EnergonAI, 2022, arXiv 2209.02341",
    parameters=InFlight,
    deployment=deployment,
    engine=engine,
)

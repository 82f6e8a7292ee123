"""Live migration: running requests move to where memory is free, and go on decoding while they are copied (Llumnix)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sonde.deployment.network import Bandwidth, Bytes, Link, Migration, Seconds
from sonde.deployment.node import quantity
from sonde.deployment.tree import Deployment, Routing
from sonde.techniques.technique import Parameters, Technique


class Moves(Parameters):
    """When memory is looked at, what counts as little and as much of it, and the link that caches move over.

    bandwidth   of the link of each replica
    latency     before the first byte of a cache arrives
    interval    time between two looks at memory
    low, high   steps that the memory of a replica still lasts its batch: below `low` it sends, above `high` it takes
    headroom    memory that is kept free beside requests of the most urgent priority
    dispatch    whether new requests, too, are sent where memory lasts longest
    """

    bandwidth: Bandwidth = 8e9
    latency: Seconds = 1e-3
    interval: Annotated[float, quantity("time"), Field(gt=0)] = 0.2
    low: float = 30.0
    high: float = 60.0
    headroom: Bytes = 0.0
    dispatch: bool = True


def deployment(deployment: Deployment, moves: Moves) -> Deployment:
    """Return the deployment with migration between its replicas that decode, over a link of each of them."""
    link = Link(bandwidth=moves.bandwidth, latency=moves.latency)
    moving = Migration(
        link="migration", interval=moves.interval, low=moves.low, high=moves.high, headroom=moves.headroom
    )
    update = {"links": {**deployment.links, "migration": link}, "migration": moving}
    if moves.dispatch and deployment.path is None:
        update["routing"] = Routing(policy="freeness")
    return deployment.model_copy(update=update)


TECHNIQUE = Technique(
    title="running requests move to replicas with memory to spare while they go on decoding",
    source="Sun et al., Llumnix, OSDI 2024, arXiv 2406.03243",
    parameters=Moves,
    deployment=deployment,
)

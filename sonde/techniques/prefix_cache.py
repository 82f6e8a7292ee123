"""Prefix cache: blocks of prompts that were computed before are not computed again (vLLM, Mooncake, CloudMatrix384)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sonde.deployment.network import Bandwidth, Bytes, Cache, Link, Room, Seconds, Tier
from sonde.deployment.tree import Deployment, Routing
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique


class Tiers(Parameters):
    """Memory for blocks: of every replica's devices, its host and its disk, and of one pool that all share (0: none).

    device           of a replica's devices, taken off the memory for running requests
    host             of every replica's host
    host_bandwidth   at which a replica reads blocks from its host
    disk             of every replica's disk
    disk_bandwidth   at which a replica reads blocks from its disk
    pool             of one pool that all replicas share
    pool_bandwidth   at which each replica reads blocks from the pool
    latency          before the first byte of what is read from host, disk or pool
    eviction         which block is given up first: the one unused for longest, or the one worth least
    aware            requests are routed to where the least of them is left to be computed; without it routing stays as
                     it is, which loses nothing where all blocks are in the pool
    """

    device: Room = "20 %"
    host: Annotated[Bytes, Field(examples=["500 GB"])] = 0.0
    host_bandwidth: Bandwidth = 25e9
    disk: Bytes = 0.0
    disk_bandwidth: Bandwidth = 5e9
    pool: Bytes = 0.0
    pool_bandwidth: Bandwidth = 12.5e9
    latency: Seconds = 50e-6
    eviction: Literal["lru", "cost-aware"] = "lru"
    aware: bool = True


def deployment(deployment: Deployment, tiers: Tiers) -> Deployment:
    """Return the deployment with a prefix cache of the tiers that have any memory."""
    if deployment.cache is not None:
        raise InputError("techniques.prefix-cache", "cache", "is there already: one or the other")
    if tiers.pools:
        raise InputError(
            "techniques.prefix-cache.pools", list(tiers.pools), "must be left out: all that compute prompts have one",
            "requests would be routed as if every pool had one",
        )  # fmt: skip
    links, found = dict(deployment.links), [Tier(name="device", capacity=tiers.device)]
    for name, size, bandwidth in (
        ("host", tiers.host, tiers.host_bandwidth), ("disk", tiers.disk, tiers.disk_bandwidth),
        ("pool", tiers.pool, tiers.pool_bandwidth),
    ):  # fmt: skip
        if size > 0:
            links[f"{name} tier"] = Link(bandwidth=bandwidth, latency=tiers.latency)
            found.append(Tier(name=name, capacity=size, shared=name == "pool", link=f"{name} tier"))
    routing = Routing(policy="prefix") if tiers.aware else deployment.routing
    cache = Cache(tiers=tuple(found), eviction=tiers.eviction)
    return deployment.model_copy(update={"links": links, "cache": cache, "routing": routing})


TECHNIQUE = Technique(
    title="blocks of prompts that were computed before are not computed again",
    source="Qin et al., Mooncake, FAST 2025, arXiv 2407.00079; Zuo et al., CloudMatrix384, arXiv 2506.12708",
    parameters=Tiers,
    deployment=deployment,
)

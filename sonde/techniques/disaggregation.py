"""Disaggregation: prompts computed in one pool and answered in another, caches sent between them (DistServe)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sonde.catalogue.device import Link as Wire
from sonde.catalogue.devices import device
from sonde.deployment.network import Bandwidth, Seconds
from sonde.deployment.tree import Choice, Deployment, Line, Link, Path, Pool, Replica, Site
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique

PATH = "techniques.disaggregation"


class Stage(Choice):
    """Where the replicas of one pool differ from those of the pool that is split: parallelism and batching."""

    tensor_parallel: int | None = Field(default=None, ge=1)
    pipeline_parallel: int | None = Field(default=None, ge=1)
    policy: Line | None = None
    max_batch: int | None = Field(default=None, ge=1, le=65_536)
    token_budget: int | None = Field(default=None, ge=1, le=1_048_576)

    def of(self, replica: Replica) -> Replica:
        """Return the replica as this stage has it."""
        given: dict[str, Any] = {key: value for key, value in self.model_dump().items() if value is not None}
        batching = {key: given.pop(key) for key in ("policy", "max_batch", "token_budget") if key in given}
        return Replica.model_validate(
            replica.model_dump() | given | {"batching": replica.batching.model_dump() | batching}
        )


class Split(Parameters):
    """How many replicas of the pool compute prompts and how many decode, where they differ, and the link between them.

    The link is one for every replica that computes prompts. Where no bandwidth is given, its devices send side by side
    over the node's own links if both pools fit into one node, else over the fabric (of two kinds of device, the
    slower). `layer_wise` sends caches while prompts are computed.
    """

    prefill: int = Field(default=1, ge=1, le=100_000)
    decode: int = Field(default=1, ge=1, le=100_000)
    stages: dict[Literal["prefill", "decode"], Stage] = Field(default_factory=dict)
    bandwidth: Bandwidth | None = None
    latency: Seconds | None = None
    layer_wise: bool = False
    routing: Line = "least-tokens"


def deployment(deployment: Deployment, split: Split) -> Deployment:
    """Return the deployment with its one pool as two: prefill, and decode."""
    if len(deployment.pools) != 1 or deployment.path is not None:
        raise InputError(
            PATH, len(deployment.pools), "needs a deployment of one pool to split",
            "for pools that differ write two pools, `links` and a `path`",
        )  # fmt: skip
    site, (pool,) = deployment.sites[0], deployment.pools
    if pool.replicas not in (1, split.prefill + split.decode):
        raise InputError(
            f"{PATH}.prefill", split.prefill,
            f"and decode = {split.decode} must add up to the {pool.replicas} replicas of pool {pool.name!r}",
            "the deployment would become another size unnoticed",
        )  # fmt: skip
    pools = tuple(
        Pool.model_validate(
            pool.model_dump()
            | {"name": name, "replicas": count, "replica": _replica(split, name, pool.replica).model_dump()}
        )
        for name, count in (("prefill", split.prefill), ("decode", split.decode))
    )
    return deployment.model_copy(
        update={
            "sites": (Site.model_validate(site.model_dump() | {"pools": [pool.model_dump() for pool in pools]}),),
            "links": {**deployment.links, "hand-over": link(split, pools)},
            "path": Path(visits=("prefill", "hand-over", "decode"), layer_wise=split.layer_wise, routing=split.routing),
        }
    )


def _replica(split: Split, name: str, replica: Replica) -> Replica:
    stage = {str(key): value for key, value in split.stages.items()}.get(name)
    return stage.of(replica) if stage else replica


def link(split: Split, pools: tuple[Pool, ...]) -> Link:
    """Return the link of every prefill replica: as it is given, else that of the devices' own row.

    As many devices send at once as the smaller of both replicas has. Raises InputError where the row has no link.
    """
    rows = [device(pool.replica.device) for pool in pools]
    there, alike = rows[0], len({row.name for row in rows}) == 1
    both = sum(pool.replicas * pool.replica.devices for pool in pools)
    inside = alike and both <= there.node_devices and there.node.bandwidth > 0
    wire: Wire = there.node if inside else min((row.fabric for row in rows), key=lambda it: it.bandwidth)
    bandwidth = split.bandwidth or wire.bandwidth * min(pool.replica.devices for pool in pools)
    if not bandwidth > 0:
        raise InputError(
            f"{PATH}.bandwidth", split.bandwidth, f"must be given: no link between two {there.title} is known",
            "caches could not be sent",
        )  # fmt: skip
    return Link(bandwidth=bandwidth, latency=wire.latency_s if split.latency is None else split.latency)


TECHNIQUE = Technique(
    title="prompts computed in one pool and answered in another, caches sent between them",
    source="Zhong et al., DistServe, OSDI 2024, arXiv 2401.09670",
    parameters=Split,
    deployment=deployment,
)

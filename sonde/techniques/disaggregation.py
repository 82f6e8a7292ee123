"""Disaggregation: prompts computed in one pool and answered in another, caches sent between them (DistServe)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sonde.catalogue.device import Link as Wire
from sonde.catalogue.devices import device
from sonde.deployment.network import Bandwidth, Link, Path, Seconds
from sonde.deployment.node import Choice, Line
from sonde.deployment.tree import Deployment, Pool, Replica, Site
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique

PATH = "techniques.disaggregation"


class Stage(Choice):
    """Where the replicas of one pool differ from those of the pool that is split, whose own hold where none is given.

    tensor_parallel     devices that every layer is cut over
    pipeline_parallel   stages that the layers are cut into
    policy              how steps are formed: a batching policy (`sonde show policies`), or "module:function" of yours
    max_batch           sequences that run at once
    token_budget        tokens of one step
    """

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

    prefill      replicas that compute prompts
    decode       replicas that answer; both add up to the replicas of the pool, or the pool has one
    stages       where the replicas of `prefill` or of `decode` differ from those of the pool
    bandwidth    of the link of every replica that computes prompts; where it is not given, its devices send side by
                 side over the node's own links if both pools fit into one node, else over the fabric (of two kinds
                 of device, the slower)
    latency      before the first byte of a cache arrives; that of the same link where it is not given
    layer_wise   caches are sent layer by layer while prompts are computed, not when they are done
    routing      which replica decodes: a routing policy (`sonde show policies`)
    """

    prefill: int = Field(default=1, ge=1, le=100_000, examples=[2])
    decode: int = Field(default=1, ge=1, le=100_000, examples=[2])
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

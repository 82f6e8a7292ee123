"""Disaggregation: prompts computed in one pool and answered in another, caches sent between them (DistServe)."""

from __future__ import annotations

from pydantic import Field

from sonde.deployment.network import Bandwidth, Seconds
from sonde.deployment.tree import Deployment, Line, Link, Path, Pool, Site
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique


class Split(Parameters):
    """How many replicas of the pool compute prompts and how many decode, and the link between them.

    The link is one for every replica that computes prompts. `layer_wise` sends caches while prompts are computed.
    """

    prefill: int = Field(default=1, ge=1, le=100_000)
    decode: int = Field(default=1, ge=1, le=100_000)
    bandwidth: Bandwidth = 25e9
    latency: Seconds = 10e-6
    layer_wise: bool = False
    routing: Line = "least-tokens"


def deployment(deployment: Deployment, split: Split) -> Deployment:
    """Return the deployment with its one pool as two: prefill, and decode."""
    if len(deployment.pools) != 1 or deployment.path is not None:
        raise InputError(
            "techniques.disaggregation", len(deployment.pools), "needs a deployment of one pool to split",
            "for pools that differ write two pools, `links` and a `path`",
        )  # fmt: skip
    site, (pool,) = deployment.sites[0], deployment.pools
    pools = tuple(
        Pool.model_validate(pool.model_dump() | {"name": name, "replicas": count})
        for name, count in (("prefill", split.prefill), ("decode", split.decode))
    )
    return deployment.model_copy(
        update={
            "sites": (Site.model_validate(site.model_dump() | {"pools": [pool.model_dump() for pool in pools]}),),
            "links": {**deployment.links, "hand-over": Link(bandwidth=split.bandwidth, latency=split.latency)},
            "path": Path(visits=("prefill", "hand-over", "decode"), layer_wise=split.layer_wise, routing=split.routing),
        }
    )


TECHNIQUE = Technique(
    title="prompts computed in one pool and answered in another, caches sent between them",
    source="Zhong et al., DistServe, OSDI 2024, arXiv 2401.09670",
    parameters=Split,
    deployment=deployment,
)

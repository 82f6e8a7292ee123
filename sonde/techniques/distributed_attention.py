"""Distributed attention: replicas lend each other memory, and compute attention over what they hold (Infinite-LLM)."""

from __future__ import annotations

from sonde.deployment.network import Bandwidth, Bytes, Lending, Link, Seconds
from sonde.deployment.tree import Deployment
from sonde.techniques.technique import Parameters, Technique


class Loans(Parameters):
    """The link of every replica that lends or borrows, and what each keeps free for itself.

    bandwidth   of the link of each replica
    latency     of every exchange over it
    reserve     KV memory that each replica keeps for its own requests and lends to none
    """

    bandwidth: Bandwidth = 25e9
    latency: Seconds = 10e-6
    reserve: Bytes = 0.0


def deployment(deployment: Deployment, loans: Loans) -> Deployment:
    """Return the deployment with lending between its replicas that decode."""
    link = Link(bandwidth=loans.bandwidth, latency=loans.latency)
    return deployment.model_copy(
        update={
            "links": {**deployment.links, "lending": link},
            "lending": Lending(link="lending", reserve=loans.reserve),
        }
    )


TECHNIQUE = Technique(
    title="replicas short of memory keep blocks of caches in others', which compute attention over them",
    source="Lin et al., Infinite-LLM, 2024, arXiv 2401.02669",
    parameters=Loans,
    deployment=deployment,
)

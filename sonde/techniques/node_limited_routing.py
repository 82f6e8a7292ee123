"""Node-limited routing: a token's experts stand on few nodes, so that it crosses the fabric few times."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from sonde.cost.shard import Shard
from sonde.errors import InputError
from sonde.techniques.expert_dispatch import exchanged
from sonde.techniques.expert_placement import mixture
from sonde.techniques.technique import Parameters, Technique

PATH = "techniques.node-limited-routing.nodes"


class Limit(Parameters):
    """How far the experts of a token are spread. The model must have been trained so.

    nodes   how many nodes they may stand on
    """

    nodes: int = Field(default=4, ge=1, le=4096)


def shard(part: Shard, limit: Limit) -> Shard:
    """Return the share of a device that sends a token once to each node. Raises InputError where no node is spared."""
    exchanged(part, PATH)
    forward, nodes = mixture(part, PATH), part.expert_nodes
    if nodes <= limit.nodes:
        raise InputError(
            PATH, limit.nodes, f"must be below the {nodes} nodes that {forward.experts} experts stand on",
            "the limit would never hold",
        )  # fmt: skip
    if limit.nodes * (forward.experts // nodes) < forward.top_k:
        raise InputError(
            PATH,
            limit.nodes,
            f"must leave {forward.top_k} experts to choose from, at {forward.experts // nodes} a node",
        )
    return replace(part, exchange=part.exchange._replace(nodes=limit.nodes))


TECHNIQUE = Technique(
    title="a token's experts stand on few nodes: it is sent to each once and dealt out inside",
    source="DeepSeek-AI, DeepSeek-V3 Technical Report, arXiv 2412.19437, section 2.1.2; ISCA 2025, arXiv 2505.09343",
    parameters=Limit,
    shard=shard,
)

"""Expert dispatch: tokens travel to their experts in 8 bits and back in 16, by kernels with a start of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sonde.catalogue.device import PRECISION_BYTES
from sonde.cost.shard import Shard
from sonde.deployment.node import quantity
from sonde.errors import InputError
from sonde.techniques.expert_placement import mixture
from sonde.techniques.technique import Parameters, Technique

Narrow = Literal["fp32", "bf16", "fp16", "fp8", "int8"]


class Travel(Parameters):
    """How a token's hidden state travels.

    dispatch, combine   what its numbers are sent in, there and back
    startup             time before the first byte of each exchange; what the links take where it is not given
    """

    dispatch: Narrow = "fp8"
    combine: Narrow = "bf16"
    startup: Annotated[float, quantity("time", zero=True), Field(ge=0, le=1)] | None = None


def shard(part: Shard, travel: Travel) -> Shard:
    """Return the share of a device that exchanges tokens so. Raises InputError where nothing is exchanged."""
    exchanged(part, "techniques.expert-dispatch")
    sent = part.exchange._replace(
        dispatch=PRECISION_BYTES[travel.dispatch], combine=PRECISION_BYTES[travel.combine], startup_s=travel.startup
    )
    return replace(part, exchange=sent)


def exchanged(part: Shard, path: str) -> None:
    """Raise InputError where the ranks of a replica send no tokens to each other's experts."""
    mixture(part, path)
    replica = part.replica
    if replica.expert_parallel == 1 or replica.data_parallel == 1:
        raise InputError(
            path, f"expert_parallel {replica.expert_parallel}, data_parallel {replica.data_parallel}",
            "needs both above 1", "with one attention rank, or whole experts on each, sums travel and no tokens",
        )  # fmt: skip


TECHNIQUE = Technique(
    title="tokens travel to their experts in 8 bits and back in 16",
    source="DeepSeek-AI, DeepEP; Zuo et al., arXiv 2506.12708, section 4.2",
    parameters=Travel,
    shard=shard,
)

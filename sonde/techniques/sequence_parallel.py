"""Sequence parallelism: the tokens of a prompt are spread over the attention ranks, which exchange keys and values."""

from __future__ import annotations

from dataclasses import replace

from sonde.cost.shard import Shard
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique


class Ranks(Parameters):
    """It has no parameters beside the pools that it is for."""


def shard(part: Shard, ranks: Ranks) -> Shard:
    """Return the share of a device that takes its part of every prompt. Raises InputError where no ranks share one.

    Every rank computes as many queries; each gets as many pairs, as where it takes a piece from either end.
    """
    del ranks
    replica = part.replica
    if replica.data_parallel == 1:
        raise InputError("replica.data_parallel", 1, "must be above 1 for sequence-parallel", "no ranks share a prompt")
    if replica.pipeline_parallel > 1:
        raise InputError(
            "replica.pipeline_parallel", replica.pipeline_parallel, "must be 1 for sequence-parallel",
            "the stages of a pipeline hold pieces of their own",
        )  # fmt: skip
    return replace(part, sequence_parallel=True)


TECHNIQUE = Technique(
    title="the tokens of a prompt spread over the attention ranks",
    source="Zuo et al., arXiv 2506.12708, section 4.3; Jacobs et al., DeepSpeed-Ulysses, arXiv 2309.14509",
    parameters=Ranks,
    shard=shard,
)

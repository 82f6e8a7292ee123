"""Chunked prefill: prompts are cut into chunks that share steps with what is being decoded (Sarathi-Serve)."""

from __future__ import annotations

from pydantic import Field

from sonde.deployment.tree import Replica
from sonde.techniques.technique import Parameters, Technique


class Chunks(Parameters):
    """How long a step is.

    token_budget   prompt and decoded tokens of one step; the replica's own where it is not given
    """

    token_budget: int | None = Field(default=None, ge=1, le=1_048_576, examples=[1024])


def replica(replica: Replica, chunks: Chunks) -> Replica:
    """Return the replica with steps that decode whatever is running and fill up with a chunk of a prompt."""
    batching = replica.batching.model_copy(update={"policy": "chunked"})
    if chunks.token_budget is not None:
        batching = batching.model_copy(update={"token_budget": chunks.token_budget})
    return replica.model_copy(update={"batching": batching})


TECHNIQUE = Technique(
    title="prompts in chunks that share steps with decoding, so that decoding never stalls",
    source="Agrawal et al., Sarathi-Serve, OSDI 2024, arXiv 2403.02310",
    parameters=Chunks,
    replica=replica,
)

"""Speculative decoding: a small model, or a look at the text so far, guesses tokens that the next step verifies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from sonde.catalogue.model import Model
from sonde.catalogue.models import model
from sonde.cost.compile import compile_shard
from sonde.cost.memory import weight_bytes
from sonde.cost.served import served
from sonde.cost.shard import Shard
from sonde.cost.shard import shard as cut
from sonde.cost.table import Coefficients, Engine
from sonde.deployment.node import Line
from sonde.errors import CannotError, InputError
from sonde.techniques.acceptance import Floats, Guessing, tokens_a_step, yielding
from sonde.techniques.technique import Parameters, Technique

PATH = "techniques.speculative-decoding"
#: by how many entries tables of tokens may differ that are filled up to a round number
FILLING = 1024


class Draft(Parameters):
    """Who guesses, how many tokens a step, and how often they are right.

    draft             model that guesses, by name; where it is not given, the text so far is looked up, which costs
                      nothing
    acceptance        share of guesses that are right; 0.7 for a draft, and to be stated where the text is looked up
    guesses           how many a step, one after another
    tensor_parallel   devices that each run of the draft is cut over, next to each other
    """

    draft: Line | None = Field(default=None, examples=["llama-3.2-1b"])
    acceptance: float | None = Field(default=None, ge=0, le=1)
    guesses: int = Field(default=4, ge=1, le=16)
    tensor_parallel: int = Field(default=1, ge=1)


def shard(part: Shard, draft: Draft) -> Shard:
    """Return the share of a device whose sequences verify what was guessed. Raises InputError for a draft too large."""
    right(draft)
    if draft.draft is not None:
        small, large = _known(draft.draft), part.model
        if small.active_parameters >= large.active_parameters:
            raise InputError(
                f"{PATH}.draft", draft.draft, f"must be smaller than {large.name}", "guessing would be slower"
            )
        if abs(small.vocabulary - large.vocabulary) > FILLING:
            raise InputError(
                f"{PATH}.draft", draft.draft, f"must have the {large.vocabulary:,} tokens of {large.name}",
                f"it has {small.vocabulary:,}, and could not guess them",
            )  # fmt: skip
        if part.tensor % draft.tensor_parallel:
            raise InputError(
                f"{PATH}.tensor_parallel", draft.tensor_parallel, f"must divide the {part.tensor} of the replica"
            )
    return replace(part, queries=draft.guesses + 1)


def _known(name: str) -> Model:
    try:
        return model(name)
    except InputError as error:
        raise InputError(f"{PATH}.draft", error.value, error.allowed, error.consequence) from None


def right(draft: Draft) -> float:
    """Return the share of guesses that are right. Raises InputError where only the texts could tell and nobody says."""
    if draft.acceptance is None and draft.draft is None:
        raise InputError(
            f"{PATH}.acceptance", None, "must be stated, 0 to 1, where guesses come from the text so far",
            "how often they are right depends on your texts, and all that is gained on it",
        )  # fmt: skip
    return 0.7 if draft.acceptance is None else draft.acceptance


def engine(engine: Engine, part: Shard, draft: Draft) -> Engine:
    """Return the engine whose decoding steps make 1 + p + p² + ... tokens, and pay for guessing and verifying.

    The draft takes one step of its own for each guess, for the sequences of an attention rank, without the time that
    an engine spends on a step; it reads prompts as the model does, and its weights and caches lie in the same memory.
    """
    most = part.replica.batching.max_batch
    tokens = tokens_a_step(right(draft), draft.guesses)
    none: Floats = np.zeros(most + 1)
    if draft.draft is None:
        return yielding(engine, tokens, Guessing((none, none), (none, none)))
    small = _draft(part, draft, draft.draft)
    mine = np.ceil(np.arange(most + 1) / part.lanes).astype(np.int64)
    share = np.concatenate(([0.0], mine[1:] / np.arange(1, most + 1)))
    passes, copies = draft.guesses, float(part.replica.devices // draft.tensor_parallel)
    time, energy = small.table.time, small.table.energy
    host = part.efficiencies.engine.step_s
    seconds = passes * (time.fixed - host + time.linear[mine] + time.decode[mine])
    joules = passes * copies * (energy.fixed + energy.linear[mine] + energy.decode[mine])
    read = passes * time.read[mine] * share, passes * copies * energy.read[mine] * share
    seconds[0] = joules[0] = 0.0
    table = engine.table._replace(
        time=_with_prompts(engine.table.time, time, 1.0), energy=_with_prompts(engine.table.energy, energy, copies)
    )
    both = _with_memory(engine._replace(table=table), part, small)
    return yielding(both, tokens, Guessing((seconds, joules), read))


def _draft(part: Shard, draft: Draft, name: str) -> Engine:
    """Return the engine of the draft on the devices that run one copy of it."""
    replica = part.replica.model_copy(
        update={
            "model": name, "tensor_parallel": draft.tensor_parallel, "pipeline_parallel": 1, "data_parallel": 1,
            "expert_parallel": 1,
        }
    )  # fmt: skip
    found = cut(model(name), part.device, replica, served(part.device, replica))
    engine = compile_shard(found)
    return engine._replace(memory=engine.memory._replace(capacity_bytes=int(weight_bytes(found))))


def _with_prompts(table: Coefficients, small: Coefficients, copies: float) -> Coefficients:
    """Return what prompts cost where the draft reads them too."""
    length = len(table.linear)
    last = len(small.linear) - 1
    over = np.maximum(np.arange(length) - last, 0)
    linear = small.linear[np.minimum(np.arange(length), last)] + small.slope * over
    added = table.linear + copies * linear
    decode = table.decode - copies * linear[: len(table.decode)]  # what is decoded is charged by passes
    decode[0] = 0.0
    return table._replace(
        linear=added, slope=table.slope + copies * small.slope, prefill=table.prefill + copies * small.prefill,
        decode=decode,
    )  # fmt: skip


def _with_memory(engine: Engine, part: Shard, small: Engine) -> Engine:
    """Return the engine with the draft's weights on every device, and its caches beside the model's."""
    memory = engine.memory
    left = memory.capacity_bytes - small.memory.capacity_bytes * part.replica.devices
    block = memory.block_bytes + small.memory.block_bytes
    if left < block:
        raise CannotError(f"{part.model.name} leaves no room for the draft on {part.device.name}: use more devices")
    state = memory.state_bytes + small.memory.state_bytes
    return engine._replace(memory=memory._replace(capacity_bytes=left, block_bytes=block, state_bytes=state))


TECHNIQUE = Technique(
    title="a small model, or the text so far, guesses tokens that the next step verifies",
    source="Leviathan, Kalman and Matias, ICML 2023, arXiv 2211.17192; Chen et al., arXiv 2302.01318",
    parameters=Draft,
    cannot={"multi-token-prediction": "both guess the tokens that a step verifies"},
    shard=shard,
    engine=engine,
    answers=True,
    guesses=True,
)

"""Token budget from an objective: chunked prefill whose steps are as long as the time between tokens allows.

Sarathi-Serve profiles a replica and takes the largest budget whose step stays within the objective on TBT; here the
step table is that profile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from sonde.cost.memory import kv_memory
from sonde.cost.shard import Shard
from sonde.cost.table import Engine, KvMemory, StepTable, coefficients
from sonde.deployment.node import quantity
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError
from sonde.techniques.technique import Parameters, Technique
from sonde.units import show

GUESSED = "steps that yield several tokens at once are counted token by token, so that gaps look too short"


class Budget(Parameters):
    """What the budget is chosen for.

    tbt      longest time between two tokens
    context  tokens that every decoding sequence has read, and that the prompt in work has when its last chunk is run
    decodes  sequences that decode in that step; where it is not given, as many of that context as memory and batch hold
    tile     the budget is a multiple of it, since kernels compute whole tiles
    """

    tbt: Annotated[float, quantity("time"), Field(gt=0, examples=["200 ms"])]
    context: int = Field(default=4096, ge=1, le=1 << 24)
    decodes: int | None = Field(default=None, ge=0, le=8192)
    tile: int = Field(default=128, ge=1, le=8192)


def replica(replica: Replica, wanted: Budget) -> Replica:
    """Return the replica with prompts in chunks that share steps with decoding."""
    del wanted
    return replica.model_copy(update={"batching": replica.batching.model_copy(update={"policy": "chunked"})})


def engine(engine: Engine, part: Shard, wanted: Budget) -> Engine:
    """Return the engine with the largest budget whose step holds the objective, and the memory that it leaves.

    The step decodes `decodes` sequences and fills up with the last chunk of a prompt of `context` tokens. Budgets
    reach as far as the step table does. Raises InputError where no budget leaves room for a prompt.
    """
    last = len(engine.table.time.linear) - 1
    for budget in range(last - last % wanted.tile, 0, -wanted.tile):
        sized = _sized(engine, part, budget)
        if sized is None:
            continue
        decodes = decoding(sized, wanted)
        if budget > decodes and hybrid_s(sized.table, budget - decodes, decodes, wanted.context) <= wanted.tbt:
            return sized
    decodes = decoding(engine, wanted)
    alone = hybrid_s(engine.table, 0, decodes, wanted.context)
    raise InputError(
        "techniques.token-budget.tbt", show(wanted.tbt, "time"),
        f"must leave time for {wanted.tile} tokens of a prompt beside {decodes} sequences of {wanted.context:,} "
        f"tokens, whose decoding alone takes {show(alone, 'time')}",
        "prompts would wait until sequences end; allow more, or name fewer `decodes` or a smaller `tile`",
    )  # fmt: skip


def decoding(engine: Engine, wanted: Budget) -> int:
    """Return how many sequences decode in the step that the budget is chosen for."""
    held = sequences(engine.memory, wanted.context, engine.table.window)
    return min(engine.max_batch, held if wanted.decodes is None else wanted.decodes)


def sequences(memory: KvMemory, context: int, window: int) -> int:
    """Return how many sequences of `context` tokens the memory for caches holds."""
    blocks, recent = (-(-tokens // memory.block_tokens) for tokens in (context, min(context, window)))
    each = memory.block_bytes * blocks + memory.window_block_bytes * recent + memory.state_bytes
    return int(memory.capacity_bytes // each) if each else 1 << 30


def hybrid_s(table: StepTable, chunk: int, decodes: int, context: int) -> float:
    """Return the seconds of a step: the last `chunk` tokens of a prompt of `context`, beside `decodes` sequences."""
    done, time = max(context - chunk, 0), table.time
    read = min(context, table.window) * decodes
    seconds = coefficients(time, chunk, decodes, pairs(done, chunk), float(context * decodes))
    seconds += time.prefill_window * pairs(done, chunk, table.window) + float(time.read_window[decodes]) * read
    return seconds


def pairs(done: int, chunk: int, window: int | None = None) -> float:
    """Return the (query, key) pairs of a chunk that `done` tokens precede, of which a query reads the last `window`."""

    def up_to(tokens: float) -> float:
        over = tokens - window if window is not None and tokens > window else 0.0
        return (tokens * tokens - over * over) / 2

    return up_to(done + chunk) - up_to(done)


def _sized(engine: Engine, part: Shard, budget: int) -> Engine | None:
    """Return the engine with another budget, and caches in the memory that its steps leave; None: in none."""
    batching = part.replica.batching.model_copy(update={"token_budget": budget})
    other = replace(part, replica=part.replica.model_copy(update={"batching": batching}))
    try:
        gained = kv_memory(other).capacity_bytes - kv_memory(part).capacity_bytes
    except CannotError:
        return None
    memory = engine.memory._replace(capacity_bytes=engine.memory.capacity_bytes + gained)
    return engine._replace(token_budget=budget, memory=memory)


TECHNIQUE = Technique(
    title="the most tokens a step that the time between tokens allows, found from the step table",
    source="Agrawal et al., Sarathi-Serve, OSDI 2024, arXiv 2403.02310, section 4.3",
    parameters=Budget,
    cannot={
        "chunked-prefill": "it is chunked prefill already, with a budget of its own",
        "speculative-decoding": GUESSED,
        "multi-token-prediction": GUESSED,
    },
    replica=replica,
    engine=engine,
)

"""Steps that guess and verify: what a step yields by its acceptance rate, and what a token then costs.

The simulator makes one token a sequence and step. A step that verifies k guesses makes a of them on average, so its
time is shared out over a steps: what decoding costs is divided by a, what prompts cost is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Coefficients, Engine, StepTable

#: policies whose steps hold prompts beside decodes
MIXED = ("chunked", "iteration", "inflight")
Floats = NDArray[np.float64]


class Guessing(NamedTuple):
    """What making guesses adds to a step: (seconds, joules) by decoding sequences, and by cached token they read."""

    decode: tuple[Floats, Floats]
    read: tuple[Floats, Floats]


def tokens_a_step(acceptance: float, guesses: int) -> float:
    """Return the tokens that a step makes for a sequence: 1 + p + p² + ... + p^k (Leviathan et al., ICML 2023).

    Every guess is right with probability p if those before it were, and the first that is wrong is put right.
    """
    return sum(acceptance**i for i in range(guesses + 1))


def yielding(engine: Engine, tokens: float, guessing: Guessing) -> Engine:
    """Return the engine whose decoding steps make `tokens` tokens a sequence, with the cost of guessing in them.

    Exact for steps that only decode and steps that only hold prompts. Where a step holds both, tokens of a prompt
    are charged on top of a decoding step's share at the rate at which `linear` rises between B and P + B tokens; the
    true step puts `tokens` times as many of each in, so the two agree where the table is straight there. The budget
    of a step that decodes is divided by `tokens`, for such a step of the simulator is that part of a true one; a
    step of prompts alone is a true one.
    """
    table = engine.table
    time = _shared(table.time, tokens, guessing.decode[0], guessing.read[0])
    energy = _shared(table.energy, tokens, guessing.decode[1], guessing.read[1])
    mixed = engine.batching in MIXED or ":" in engine.batching
    budget = max(1, math.ceil((engine.mixed_budget or engine.token_budget) / tokens)) if mixed else 0
    client = engine.client
    return engine._replace(
        table=StepTable(time, energy, table.window), mixed_budget=budget,
        client=client._replace(polls=client.polls * tokens, polls_busy=client.polls_busy * tokens),  # true steps
    )  # fmt: skip


def _shared(table: Coefficients, tokens: float, decode: Floats, read: Floats) -> Coefficients:
    batch = len(table.decode)
    whole = table.fixed + table.linear[:batch] + table.decode + decode
    each = whole / tokens - table.fixed - table.linear[:batch]
    each[0] = 0.0
    return table._replace(decode=each, read=(table.read + read) / tokens, read_window=table.read_window / tokens)

"""The step table: all that the simulator knows of a replica's speed and energy. Numbers, no hardware.

A step with P prompt tokens (their attention work A = Σ chunk·(done + chunk/2), or A_w where a window cuts
what is read), B decoding sequences that read S tokens of KV cache (S_w where a window cuts), costs

    fixed + linear[P + B] + prefill·A + prefill_window·A_w + decode[B] + read[B]·S + read_window[B]·S_w

seconds, and joules by a second set of the same coefficients. `linear` goes on past its end by `slope`.
A_w = Σ over the chunk's tokens of min(position, window) to the same half-token rule; S counts, for each
decoding sequence, its context with the token being decoded: prompt + generated so far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Coefficients(NamedTuple):
    """One quantity (seconds or joules) of a step, as tables over tokens [T] and batch [B + 1]."""

    fixed: float
    linear: NDArray[np.float64]  # [T + 1], linear[0] = 0
    slope: float  # per token past the end of `linear`
    prefill: float  # per token pair
    prefill_window: float
    decode: NDArray[np.float64]  # [max_batch + 1], decode[0] = 0
    read: NDArray[np.float64]  # [max_batch + 1], per token of KV cache read
    read_window: NDArray[np.float64]


class StepTable(NamedTuple):
    """Time (s) and energy (J) of a step, and the window (tokens) at which A_w and S_w stop growing (0: none)."""

    time: Coefficients
    energy: Coefficients
    window: int


class KvMemory(NamedTuple):
    """KV memory of one replica: a sequence of c tokens takes

        block_bytes·⌈c/block_tokens⌉ + window_block_bytes·⌈min(c, window)/block_tokens⌉ + state_bytes

    of `capacity_bytes` (whole bytes; over all devices of the replica).
    """

    capacity_bytes: int
    block_tokens: int
    block_bytes: int
    window_block_bytes: int
    state_bytes: int
    swap_bytes_per_s: float  # to host memory and back


class Client(NamedTuple):
    """What a client waits for beside the engine, before its first token. Zeros: it sees what the engine does.

    request_s, token_s   seconds of a request, and of a token of its prompt (HTTP, tokenising)
    polls, polls_busy    decode steps until the scheduler sees it, of a replica with few requests and with many
    """

    request_s: float = 0.0
    token_s: float = 0.0
    polls: float = 0.0
    polls_busy: float = 0.0


class Doubt(NamedTuple):
    """Factors on what is predicted, between which 80 % of measurements lie. Ones: nothing is known to be off.

    ttft, tpot   on times that clients see, of `catalogue.engines.spread`
    energy       on the joules of known work in a known time, of `catalogue.power.spread`
    """

    ttft_low: float = 1.0
    ttft_high: float = 1.0
    tpot_low: float = 1.0
    tpot_high: float = 1.0
    energy_low: float = 1.0
    energy_high: float = 1.0


class Engine(NamedTuple):
    """One replica, compiled: what `cost.compile_replica` yields and `sim` runs.

    `idle_w` is drawn whenever no step runs; the energy table holds all that is drawn while one does.
    `batching` is the policy's name; the simulator looks it up. `client` is no part of the engine's own time,
    and `doubt` says how far all of this may be off. A step beside decoding holds `mixed_budget` tokens at most, where
    that is given: where steps make several tokens of a sequence, the simulator's are parts of true ones.
    """

    table: StepTable
    memory: KvMemory
    batching: str
    max_batch: int
    token_budget: int
    preemption: str
    idle_w: float
    usd_per_hour: float
    devices: int
    client: Client = Client()
    doubt: Doubt = Doubt()
    mixed_budget: int = 0


def coefficients(table: Coefficients, prompt: NDArray[np.int64] | int, batch: int, area: float, read: float) -> float:
    """Return one quantity of a step without windows: the formula above in plain words, for tests and reports."""
    tokens = int(prompt) + batch
    last = len(table.linear) - 1
    linear = table.linear[min(tokens, last)] + table.slope * max(0, tokens - last)
    return float(table.fixed + linear + table.prefill * area + table.decode[batch] + table.read[batch] * read)

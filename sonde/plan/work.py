"""What requests ask of an engine, in the units of its step table: tokens, token pairs, tokens read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.metrics import Objective
from sonde.workload.requests import Requests

Floats = NDArray[np.float64]


class Work(NamedTuple):
    """Columns of n requests, whatever the schedule: all of it must be done by somebody, at least once.

    prompt        prompt tokens
    pair          token pairs of prompt attention: Σ chunk·(done + chunk/2) is prompt²/2 however it is cut
    pair_window   the same where no token reads more than `window` tokens
    decode        output tokens but the first, which comes out of the prompt's last step
    read          tokens of KV cache that these read: Σ (prompt + j), j = 1 ... decode
    read_window   the same where none reads more than `window` tokens
    """

    prompt: Floats
    pair: Floats
    pair_window: Floats
    decode: Floats
    read: Floats
    read_window: Floats


def work(trace: Requests, window: int = 0, *, cached: bool = False) -> Work:
    """Return what each request asks, with `window` as in the step table (0: no window, nothing is cut).

    Where prompts may be `cached`, what every cache may have held when a request was sent is no work: the blocks, from
    its first on, that requests before it had, all but its last token.
    """
    whole = _whole(trace, window)
    if not cached or not len(trace.block_hash):
        return whole
    from sonde.workload.statistics import prefix_hits

    _, seen = prefix_hits(trace)
    held = np.minimum(seen * trace.block_tokens, trace.prompt_tokens - 1).astype(np.int32)
    known = _whole(trace._replace(prompt_tokens=held), window)
    return whole._replace(
        prompt=whole.prompt - known.prompt, pair=whole.pair - known.pair,
        pair_window=whole.pair_window - known.pair_window,
    )  # fmt: skip


def part(demand: Work, stage: str) -> Work:
    """Return what a stage has to do of it: "prefill" the prompts, "decode" the answers, any other all."""
    nothing = np.zeros_like(demand.prompt)
    if stage == "prefill":
        return demand._replace(decode=nothing, read=nothing, read_window=nothing)
    if stage == "decode":
        return demand._replace(prompt=nothing, pair=nothing, pair_window=nothing)
    return demand


def _whole(trace: Requests, window: int) -> Work:
    prompt = trace.prompt_tokens.astype(np.float64)
    decode = trace.output_tokens.astype(np.float64) - 1.0
    pair = prompt * prompt / 2
    read = decode * prompt + decode * (decode + 1) / 2
    if not window:
        return Work(prompt, pair, np.zeros_like(pair), decode, read, np.zeros_like(read))
    whole = np.minimum(prompt, window)
    pair_window = whole * whole / 2 + (prompt - whole) * window
    growing = np.clip(window - prompt, 0, decode)
    read_window = growing * prompt + growing * (growing + 1) / 2 + (decode - growing) * window
    return Work(prompt, pair, pair_window, decode, read, read_window)


def allowed_misses(objective: Objective, trace: Requests) -> int:
    """Return how many requests may exceed the limit while the objective still holds.

    The same rank as `Outcome.quantile`: of n values, ⌈q·n⌉ must stay within; TPOT and transfer count only
    requests of two output tokens or more.
    """
    n = trace.n if objective.metric not in ("tpot", "transfer") else int(np.count_nonzero(trace.output_tokens > 1))
    return n - max(1, int(np.ceil(objective.quantile * n))) if n else 0

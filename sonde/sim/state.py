"""The simulator's memory: one record per replica, one per request, and the arrays they point into.

Records lie together in memory, so that what one event touches is in a few cache lines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.policies.routing import PoolView

#: what never changes of an engine: scalars of its step table and its limits
ENGINE = np.dtype(
    [
        ("fixed", "f8"), ("slope", "f8"), ("prefill", "f8"), ("prefill_window", "f8"),
        ("e_fixed", "f8"), ("e_slope", "f8"), ("e_prefill", "f8"), ("e_prefill_window", "f8"),
        ("idle_w", "f8"), ("swap_s_per_byte", "f8"),
        ("capacity", "i8"), ("block_bytes", "i8"), ("window_bytes", "i8"), ("state_bytes", "i8"),
        ("block_tokens", "i8"), ("window", "i8"), ("last", "i8"), ("max_batch", "i8"), ("token_budget", "i8"),
        ("swap", "i1"), ("reserve", "i1"), ("hold", "i1"), ("own", "i1"), ("policy", "i1"),
    ],
    align=True,
)  # fmt: skip

#: rows of `World.curves`: tables over tokens (0, 4) and over the batch
LINEAR, DECODE, READ, READ_WINDOW, E_LINEAR, E_DECODE, E_READ, E_READ_WINDOW = range(8)

#: a replica: its batch, its queue, and the run of equal steps that it is in
REPLICA = np.dtype(
    [
        ("engine", "i4"),
        # the run of `n` equal steps from `clock` to `World.next`; the k-th takes x + k·y seconds
        ("clock", "f8"), ("x", "f8"), ("y", "f8"), ("ex", "f8"), ("ey", "f8"),
        ("n", "i8"), ("tokens", "i8"), ("chunk", "i8"), ("joiners", "i8"), ("decode", "i1"), ("wake", "i1"),
        # the batch: sequences decoding, of them growing in the window; places held by finished ones
        ("batch", "i8"), ("active", "i8"), ("growing", "i8"), ("kept", "i8"), ("kept_window", "i8"),
        ("steps", "i8"), ("part", "i8"), ("admitted", "i8"), ("heap", "i8"), ("stalls", "i8"),
        # the queue and memory
        ("waiting", "i8"), ("urgent", "i8"), ("queued_tokens", "i8"), ("used", "i8"), ("peak", "i8"),
        # totals
        ("all_steps", "i8"), ("busy", "f8"), ("energy", "f8"),
    ],
    align=True,
)  # fmt: skip

#: a request: links of the list it is in, progress, and what happened to it
WORK = np.dtype(
    [
        ("scheduled", "f8"), ("first", "f8"), ("finish", "f8"), ("last", "f8"), ("arrival", "f8"),
        ("end", "i8"),
        ("next", "i4"), ("prev", "i4"), ("target", "i4"), ("done", "i4"), ("made", "i4"),
        ("replica", "i4"), ("preemptions", "i4"), ("swapped", "i1"), ("priority", "i1"),
    ],
    align=True,
)  # fmt: skip

#: the run as a whole; `front` and `back` count what left and entered the ring of clients
RUN = np.dtype(
    [
        ("width", "f8"), ("back", "i8"), ("front", "i8"),
        ("closed", "i1"), ("abort", "i1"), ("fault", "i8"), ("sees_tokens", "i1"),
    ],
    align=True,
)  # fmt: skip

#: an objective as the kernel counts it: metric 0 TTFT, 1 TPOT, 2 end to end
GOAL = np.dtype([("metric", "i8"), ("limit", "f8"), ("allowed", "i8"), ("missed", "i8")], align=True)

#: why a run ended before its time: an objective is missed, or the user's routing or batching failed (at `fault`)
MISSED, BAD_ROUTING, BAD_BATCHING = 1, 2, 3

#: metrics of an objective
TTFT, TPOT, E2E = np.int64(0), np.int64(1), np.int64(2)

#: columns of the timeline
BUSY, KV, RUNNING = range(3)
SPANS = 512


#: records of one of the types above: fields are attributes, of which numpy's stubs know nothing
Record = Any


class World(NamedTuple):
    """Everything that a run reads and writes. R replicas, E engines, n requests, C priorities."""

    run: Record  # RUN [1]
    engines: Record  # ENGINE [E]
    curves: NDArray[np.float64]  # [E, 8, longest table]
    replicas: Record  # REPLICA [R]
    next: NDArray[np.float64]  # [R]: when the run of steps that a replica is in ends; inf where it is idle
    seen: PoolView  # what the router sees, [R] each
    work: Record  # WORK [n]
    prompt: NDArray[np.int32]  # [n]
    output: NDArray[np.int32]  # [n]
    session: NDArray[np.int32]  # [n]
    queues: NDArray[np.int64]  # [R, C, 3]: first waiting, last waiting, last admitted
    ends: NDArray[np.int64]  # [R, max_batch, 2]: heap of (decode steps at which something changes, request)
    phases: NDArray[np.int32]  # [R, 2, block_tokens]: sequences by when they next need a block; the windowed ones
    joining: NDArray[np.int64]  # [R, max_batch]: requests whose prompt ends with this step
    stalled: NDArray[np.float64]  # [R, max_batch + 2, 2]: (time of the last token, how many sequences)
    itl: NDArray[np.int64]  # [ITL_BINS]
    timeline: NDArray[np.float64]  # [SPANS, 3]
    goals: Record  # GOAL [objectives]
    draws: NDArray[np.float64]  # [n, 2] uniform in [0, 1), or [1, 2] where the router draws nothing
    pending: NDArray[np.float64]  # [clients or 1]: ring of moments at which a client sends again

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
        ("mixed_budget", "i8"),
        ("swap", "i1"), ("reserve", "i1"), ("hold", "i1"), ("own", "i1"), ("policy", "i1"), ("hands_over", "i1"),
        ("lends", "i1"), ("most", "i8"),  # `most`: bytes that one request may take, borrowed ones among them
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
        # lists of what comes over links: first and last to be pulled and first and last that have come; how many
        ("pull", "i8"), ("pull_last", "i8"), ("landed", "i8"), ("landed_last", "i8"),
        ("coming", "i8"), ("pulling", "i8"), ("coming_tokens", "i8"),
        # live migration: the request on its way out (-1: none), and how many are on their way in
        ("mover", "i8"), ("guests", "i8"),
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
        ("closed", "i1"), ("abort", "i1"), ("fault", "i8"), ("sees_tokens", "i1"), ("sees_cache", "i1"),
        # stations and paths: replicas of the first stage, requests that leave it now, and the next control tick
        ("first_stage", "i8"), ("leaving", "i8"), ("tick", "f8"), ("interval", "f8"), ("touches", "i8"),
        ("layers", "i8"), ("tail_tokens", "i8"), ("copies", "i8"), ("low", "f8"), ("high", "f8"), ("headroom", "i8"),
        ("migrations", "i8"), ("given_up", "i8"), ("tiers", "i8"), ("block_tokens", "i8"), ("ranked", "i1"),
        # the replica whose step ends now (-1: none does), before those after it; whether memory has come free; what
        # lending costs: seconds of blocks sent in the step formed now, of an exchange, and for each sequence in it
        ("now", "f8"), ("forming", "i8"), ("freed", "i1"), ("lends", "i1"), ("reserve", "i8"), ("sending", "f8"),
        ("lend_latency", "f8"), ("lend_rate", "f8"), ("exchange_s", "f8"), ("sequence_s", "f8"), ("loans", "i8"),
    ],
    align=True,
)  # fmt: skip

#: a link: bandwidth shared equally by at most `streams` transfers, of which each has been given `served` bytes since
#: the link was last idle; then `latency`. Lists of what waits for a stream and of what is about to land
LINK = np.dtype(
    [
        ("rate", "f8"), ("latency", "f8"), ("served", "f8"), ("at", "f8"), ("done", "f8"),
        ("bytes", "f8"), ("busy", "f8"), ("streams", "i8"), ("active", "i8"), ("transfers", "i8"),
        ("wait", "i8"), ("wait_last", "i8"), ("land", "i8"), ("land_last", "i8"),
    ],
    align=True,
)  # fmt: skip

#: what is under way with a request outside of engines: the list it is in, from which replica to which, and what for
FLOW = np.dtype(
    [
        ("bytes", "f8"), ("lands", "f8"), ("landed", "f8"),
        # when it left a batch to migrate, whether it has joined none since, and how long it was in none so, in all
        ("left", "f8"), ("away", "i1"), ("paused", "f8"),
        ("next", "i4"), ("source", "i4"), ("target", "i4"), ("tokens", "i4"), ("hit", "i4"), ("moves", "i4"),
        ("origin", "i4"),
        ("blocks", "i4", (4,)), ("kind", "i1"), ("stage", "i1"),
        # blocks of its cache that lie at another replica, whether it decodes with them, and the most that ever did
        ("lent", "i4"), ("creditor", "i4"), ("owes", "i1"), ("most_lent", "i4"),
    ],
    align=True,
)  # fmt: skip

#: kinds of transfer: nothing, a whole cache from one replica to another, blocks of a prefix from a tier; the first
#: stages of a migration, one that leaves at the next step's end, and one that is not wanted any more
NOTHING, HANDOVER, FETCH, COPY, MOVE, DROPPED = range(6)

#: a store of prefix blocks: a part of `Network.kept`, and of `Network.order` the block used longest ago and the last
STORE = np.dtype(
    [
        ("start", "i8"), ("held", "i8"), ("capacity", "i8"), ("floor", "f8"), ("evicted", "i8"),
        ("oldest", "i8"), ("newest", "i8"),
    ],
    align=True,
)  # fmt: skip

#: what a replica lends and borrows: tokens that it holds for others, and its decoding sequences with tokens elsewhere
#: and how many of those there are
LENDER = np.dtype([("guests", "i8"), ("owed", "i8"), ("debts", "i8")], align=True)

#: an objective as the kernel counts it: metric 0 TTFT, 1 TPOT, 2 end to end
GOAL = np.dtype([("metric", "i8"), ("limit", "f8"), ("allowed", "i8"), ("missed", "i8")], align=True)

#: why a run ended before its time: an objective is missed, or a policy of the user's failed (at `fault`)
MISSED, BAD_ROUTING, BAD_BATCHING, BAD_MIGRATION = 1, 2, 3, 4

#: metrics of an objective
TTFT, TPOT, E2E = np.int64(0), np.int64(1), np.int64(2)

#: columns of the timeline
BUSY, KV, RUNNING = range(3)
SPANS = 512


#: records of one of the types above: fields are attributes, of which numpy's stubs know nothing
Record = Any


class Network(NamedTuple):
    """Links and stores. L links, S stores of prefix blocks, H different blocks, T tiers, m blocks of all prompts."""

    flow: Record  # FLOW [n, or 1 where nothing leaves its replica]
    links: Record  # LINK [L]
    next: NDArray[np.float64]  # [L]: when the next event of a link is
    carried: NDArray[np.float64]  # [L, most streams, 2]: heap of (bytes served to each at which it is done, request)
    ways: NDArray[np.int64]  # [T + 2, 2]: first link, and 0 one for all, 1 one a source, 2 one a target
    leaving: NDArray[np.int64]  # [most batch + 1]: requests whose prompt has just ended where they do not decode
    stores: Record  # STORE [S]
    homes: NDArray[np.int64]  # [T, R]: the store of a tier that a replica reads and writes
    kept: NDArray[np.float64]  # [sum of capacities, 2]: (rank, block); a heap, but in any order under "lru"
    order: NDArray[np.int32]  # [sum of capacities, 2]: the one used before and the one used after, under "lru"
    place: NDArray[np.int32]  # [H, S + 1]: where in each store a block is (-1: nowhere), and how many prompts had it
    starts: NDArray[np.int64]  # [n + 1]: where the blocks of a prompt begin
    blocks: NDArray[np.int32]  # [m]
    lenders: Record  # LENDER [R]
    lent: NDArray[np.int64]  # [R, R]: tokens of decoding sequences of a replica that lie at another


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
    net: Any  # Network where replicas depend on each other, else None

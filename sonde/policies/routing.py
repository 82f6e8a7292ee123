"""Which replica takes a request: plain functions from what a router sees to the number of a replica.

Ties go to the first replica counted from `request.number`, so that equal replicas take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class PoolView(NamedTuple):
    """What a router knows of every replica, as columns, after the last step that it completed.

    queued          requests that wait
    queued_tokens   prompt tokens that are still to be computed (of waiting requests and the prompt in work)
    running         requests in the batch
    running_tokens  tokens that the decoding sequences hold in their KV cache
    kv_used         bytes of KV memory taken
    kv_capacity     bytes of KV memory
    cached_tokens   tokens at the head of this request's prompt that the replica need not compute
    head_tokens     prompt tokens of the request that is next in its queue
    urgent          whether a request of the most urgent of several priorities runs
    moving          sequences on their way to or from it
    token_bytes     bytes of KV memory that one more token of a sequence takes
    """

    queued: NDArray[np.int64]
    queued_tokens: NDArray[np.int64]
    running: NDArray[np.int64]
    running_tokens: NDArray[np.int64]
    kv_used: NDArray[np.int64]
    kv_capacity: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    head_tokens: NDArray[np.int64]
    urgent: NDArray[np.int64]
    moving: NDArray[np.int64]
    token_bytes: NDArray[np.int64]


class RequestView(NamedTuple):
    """What a router knows of a request: its number in order of sending, and so on.

    `time` counts from the first arrival. `draw` and `second_draw` are uniform in [0, 1), fixed by the seed.
    """

    number: int
    time: float
    prompt_tokens: int
    priority: int
    session: int
    draw: float
    second_draw: float


def random(view: PoolView, request: RequestView) -> int:
    """Pick any replica, each as likely as the others."""
    return int(request.draw * len(view.queued))


def round_robin(view: PoolView, request: RequestView) -> int:
    """Pick the replicas in turn."""
    return request.number % len(view.queued)


def least_outstanding(view: PoolView, request: RequestView) -> int:
    """Pick the replica with the fewest requests, queued and running."""
    n = len(view.queued)
    best = request.number % n
    for step in range(1, n):
        i = (request.number + step) % n
        if view.queued[i] + view.running[i] < view.queued[best] + view.running[best]:
            best = i
    return best


def least_tokens(view: PoolView, request: RequestView) -> int:
    """Pick the replica with the fewest tokens to compute and to keep."""
    n = len(view.queued)
    best = request.number % n
    for step in range(1, n):
        i = (request.number + step) % n
        if view.queued_tokens[i] + view.running_tokens[i] < view.queued_tokens[best] + view.running_tokens[best]:
            best = i
    return best


def power_of_two(view: PoolView, request: RequestView) -> int:
    """Draw two replicas and pick the one with fewer requests (Mitzenmacher, 2001)."""
    n = len(view.queued)
    first = int(request.draw * n)
    second = int(request.second_draw * n)
    if view.queued[second] + view.running[second] < view.queued[first] + view.running[first]:
        return second
    return first


def session(view: PoolView, request: RequestView) -> int:
    """Pick the same replica for every turn of a conversation, by hashing; requests on their own are spread."""
    key = request.session if request.session >= 0 else request.number
    return ((key * 2654435761) % 4294967296 >> 7) % len(view.queued)


def prefix(view: PoolView, request: RequestView) -> int:
    """Pick the replica with the fewest prompt tokens to compute, what it has cached of this prompt left out."""
    n = len(view.queued)
    best = request.number % n
    for step in range(1, n):
        i = (request.number + step) % n
        if view.queued_tokens[i] - view.cached_tokens[i] < view.queued_tokens[best] - view.cached_tokens[best]:
            best = i
    return best


def freeness(view: PoolView, request: RequestView) -> int:
    """Pick the replica whose memory lasts its batch for the most steps, all that waits counted in (Llumnix).

    What it lacks is not divided by the batch: the longest queue would look the least short of memory.
    """
    n = len(view.queued)
    best, most = request.number % n, -np.inf
    for step in range(n):
        i = (request.number + step) % n
        room = view.kv_capacity[i] - view.kv_used[i] - view.queued_tokens[i] * view.token_bytes[i]
        growing = max(view.running[i] + view.queued[i], 1) if room > 0 else 1
        steps = room / (view.token_bytes[i] * growing)
        if steps > most:
            best, most = i, steps
    return best


class Routing(NamedTuple):
    """A routing policy, and what it looks at that costs a little to know: tokens and KV memory, cached prefixes."""

    function: Callable[[PoolView, RequestView], int]
    sees_tokens: bool = True
    sees_cache: bool = False


POLICIES: dict[str, Routing] = {
    "random": Routing(random, sees_tokens=False),
    "round-robin": Routing(round_robin, sees_tokens=False),
    "least-outstanding": Routing(least_outstanding, sees_tokens=False),
    "least-tokens": Routing(least_tokens),
    "power-of-two": Routing(power_of_two, sees_tokens=False),
    "session": Routing(session, sees_tokens=False),
    "prefix": Routing(prefix, sees_cache=True),
    "freeness": Routing(freeness),
}

"""Which sequences move to another replica while they run: functions from what a router sees to two replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sonde.policies.routing import PoolView

#: the source of a pair that says that nothing is to move
NONE = -1


class Thresholds(NamedTuple):
    """When a replica is short of memory and when it has some to spare, in steps that its batch could still take.

    low, high   a replica below `low` sends, one above `high` receives
    headroom    bytes that are kept free beside requests of the most urgent priority
    first       the first replica that decodes
    """

    low: float
    high: float
    headroom: int
    first: int


class Pair(NamedTuple):
    """The replica to move a sequence from (NONE: nothing is to move), and the one to move it to."""

    source: int
    target: int


def defragment(view: PoolView, thresholds: Thresholds) -> Pair:
    """Pair the replica that is shortest of memory with the freest, those that move one already left out.

    A request at the head of a queue counts as if its memory were taken, so that room is made for it (Llumnix).
    """
    source, target = -1, -1
    least, most = thresholds.low, thresholds.high
    for r in range(thresholds.first, len(view.queued)):
        if view.moving[r] > 0:
            continue
        room = view.kv_capacity[r] - view.kv_used[r] - view.head_tokens[r] * view.token_bytes[r]
        if view.urgent[r] > 0:
            room -= thresholds.headroom
        growing = view.running[r] + (1 if view.queued[r] > 0 else 0)
        free = room / (view.token_bytes[r] * max(growing, 1))
        if free < least and view.running[r] > 0:
            source, least = r, free
        elif free > most:
            target, most = r, free
    if source < 0 or target < 0:
        return Pair(NONE, NONE)
    return Pair(source, target)


def balanced(view: PoolView, thresholds: Thresholds) -> Pair:
    """Pair replicas as `defragment` does, where a sequence of middling size that moves leaves the two closer together.

    How long memory lasts differs less afterwards, and still the same way round (Llumnix's `balanced`).
    """
    source, target, left, rest, there, guests = -1, -1, 0, 0, 0, 0
    least, most = thresholds.low, thresholds.high
    for r in range(thresholds.first, len(view.queued)):
        if view.moving[r] > 0:
            continue
        room = view.kv_capacity[r] - view.kv_used[r] - view.head_tokens[r] * view.token_bytes[r]
        if view.urgent[r] > 0:
            room -= thresholds.headroom
        growing = view.running[r] + (1 if view.queued[r] > 0 else 0)
        free = room / (view.token_bytes[r] * max(growing, 1))
        if free < least and view.running[r] > 0:
            source, least, left, rest = r, free, room, growing
        elif free > most:
            target, most, there, guests = r, free, room, growing
    if source < 0 or target < 0:
        return Pair(NONE, NONE)
    size = view.kv_used[source] / view.running[source]
    freed = (left + size) / (view.token_bytes[source] * max(rest - 1, 1))
    taken = (there - size) / (view.token_bytes[target] * (guests + 1))
    if not 0 < taken - freed < most - least:
        return Pair(NONE, NONE)
    return Pair(source, target)


POLICIES: dict[str, Callable[[PoolView, Thresholds], Pair]] = {"defragment": defragment, "balanced": balanced}

"""Experts in a cache: which of a layer's experts are in fast memory while tokens come, and how often they are there."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

POLICIES = ("lru", "lfu", "best")


def hits(accesses: Sequence[int] | NDArray[np.int64], room: int, policy: str) -> float:
    """Return the share of accesses that find their expert in a cache with room for so many.

    policy   "lru" drops the one that was used longest ago; "lfu" the one used least often so far, of those the one used
             longest ago; "best" the one whose next use is farthest (Belady, 1966), which no policy can beat
    """
    wanted = [int(access) for access in accesses]
    if not wanted:
        return 0.0
    if policy == "best":
        return _best(wanted, room) / len(wanted)
    held: OrderedDict[int, None] = OrderedDict()  # from the one used longest ago
    used: Counter[int] = Counter()
    found = 0
    for expert in wanted:
        used[expert] += 1
        if expert in held:
            found += 1
            held.move_to_end(expert)
            continue
        if len(held) >= room:
            gone = min(held, key=used.__getitem__) if policy == "lfu" else next(iter(held))
            del held[gone]
        held[expert] = None
    return found / len(wanted)


def _best(wanted: list[int], room: int) -> int:
    never = len(wanted)
    following = [never] * len(wanted)
    later: dict[int, int] = {}
    for i in range(len(wanted) - 1, -1, -1):
        following[i] = later.get(wanted[i], never)
        later[wanted[i]] = i
    held: dict[int, int] = {}  # expert -> its next use
    found = 0
    for i, expert in enumerate(wanted):
        if expert in held:
            found += 1
        elif len(held) >= room:
            del held[max(held, key=held.__getitem__)]
        held[expert] = following[i]
    return found

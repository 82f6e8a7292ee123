"""Which block of a prefix cache is given up first: functions from what is known of a block to its rank.

The block with the lowest rank goes. It is ranked anew whenever a prompt has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class BlockView(NamedTuple):
    """What is known of a block when a prompt has it.

    touch      how many blocks have been touched before, in this run
    depth      prompt tokens before the block
    uses       prompts that had it, this one included
    floor      the highest rank that has been given up in this store
    seconds    time that computing it again would take
    """

    touch: int
    depth: int
    uses: int
    floor: float
    seconds: float


def lru(view: BlockView) -> float:
    """Give up the block that was used longest ago."""
    return float(view.touch)


def cost_aware(view: BlockView) -> float:
    """Give up the block that saves the least time, worth less the longer it is not used (GreedyDual-Frequency)."""
    return view.floor + view.uses * view.seconds


POLICIES: dict[str, Callable[[BlockView], float]] = {"lru": lru, "cost-aware": cost_aware}

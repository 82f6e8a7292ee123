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


#: how much less a block is worth for every token before it: enough to tell blocks of one prompt apart
DEPTH = 1e-7


def lru(view: BlockView) -> float:
    """Give up the block that was used longest ago."""
    return float(view.touch)


def cost_aware(view: BlockView) -> float:
    """Give up the block that fewest prompts had, worth less the longer it is not used (GreedyDual-Frequency).

    Of blocks that as many had, the deepest goes first: nothing behind a missing block can be used, so the first block
    of a prompt is worth all of it, though a deep one takes longer to compute.
    """
    return view.floor + view.uses * (1.0 - DEPTH * view.depth)


POLICIES: dict[str, Callable[[BlockView], float]] = {"lru": lru, "cost-aware": cost_aware}

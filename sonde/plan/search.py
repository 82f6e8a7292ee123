"""The fewest replicas that hold: gallop from a guess, then bisect. The same as trying every number."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Fewest(NamedTuple):
    """`replicas` hold, and one less was tried and does not (or is below what is possible). None: none held."""

    replicas: int | None
    tried: int


def fewest(holds: Callable[[int], bool], low: int, high: int, guess: int) -> Fewest:
    """Return the fewest replicas from `low` to `high` for which `holds`, asking it as rarely as possible.

    `low` is a lower bound: one less is known not to hold. Where more replicas never hurt, this is the
    smallest number that holds; where they may, it is one that holds while one less does not, unless nothing
    held on the way up to `high`.
    """
    if low > high:
        return Fewest(None, 0)
    guess = min(max(guess, low), high)
    tried = 1
    if holds(guess):
        good, bad, step = guess, low - 1, 1
        while good > low:
            lower = max(low, good - step)
            tried += 1
            if not holds(lower):
                bad = lower
                break
            good, step = lower, 2 * step
    else:
        found = None
        bad, step = guess, 1
        while bad < high and found is None:
            upper = min(high, bad + step)
            tried += 1
            if holds(upper):
                found = upper
            else:
                bad, step = upper, 2 * step
        if found is None:
            return Fewest(None, tried)
        good = found
    while good - bad > 1:
        middle = (good + bad) // 2
        tried += 1
        if holds(middle):
            good = middle
        else:
            bad = middle
    return Fewest(good, tried)

"""Programs in triton's language; importing this needs triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

#: elements that one program works on
BLOCK = tl.constexpr(1024)


@triton.jit
def linear(out: Any, first: Any, second: Any, scale: Any, count: Any, two: tl.constexpr) -> None:
    """Write out[i] = scale·first[i], or first[i] + scale·second[i] where `two`, for the block of this program."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    held = at < count
    x = tl.load(first + at, mask=held)
    value = x + scale * tl.load(second + at, mask=held) if two else scale * x
    tl.store(out + at, value, mask=held)


@triton.jit
def walk(following: Any, place: Any, steps: Any) -> None:
    """Go `steps` loads along `following` from where `place` says, and write there where it ends."""
    at = tl.load(place)
    for _ in range(steps):
        at = tl.load(following + at)
    tl.store(place, at)

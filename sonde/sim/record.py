"""What a run writes down: gaps between tokens, the timeline, and objectives missed."""

from __future__ import annotations

import math

from sonde.metrics import ITL_BINS, ITL_LOWEST, ITL_PER_OCTAVE
from sonde.sim.jit import part
from sonde.sim.state import BUSY, KV, MISSED, RUNNING, SPANS, World


@part
def itl_bin(gap: float) -> int:
    """Return the bin of a gap between two tokens."""
    mantissa, exponent = math.frexp(gap)
    at = (exponent - 1 - ITL_LOWEST) * ITL_PER_OCTAVE + int((mantissa - 0.5) * (2 * ITL_PER_OCTAVE))
    return min(max(at, 0), ITL_BINS - 1)


@part
def bin_end(at: int) -> float:
    """Return the first gap past bin `at`."""
    octave, part = (at + 1) // ITL_PER_OCTAVE, (at + 1) % ITL_PER_OCTAVE
    return math.ldexp(0.5 + part / (2 * ITL_PER_OCTAVE), octave + ITL_LOWEST + 1)


@part
def count_gaps(w: World, r: int, first: int) -> None:
    """Count the gaps that steps `first` to the last of the run of replica `r` give its active sequences."""
    replica = w.replicas[r]
    x, y, n, active = replica.x, replica.y, replica.n, replica.active
    if first >= n:
        return
    last = itl_bin(x + (n - 1) * y)
    k = first
    while k < n:
        at = itl_bin(x + k * y)
        if at >= last:
            w.itl[last] += (n - k) * active
            return
        edge = bin_end(at)
        m = min(n, k + max(1, int((edge - (x + k * y)) / y)))
        while m > k + 1 and x + (m - 1) * y >= edge:
            m -= 1
        while m < n and x + m * y < edge:
            m += 1
        w.itl[at] += (m - k) * active
        k = m


@part
def fold(w: World) -> None:
    """Join neighbouring spans of the timeline, so that it reaches twice as far."""
    for i in range(SPANS // 2):
        for column in range(w.timeline.shape[1]):
            w.timeline[i, column] = w.timeline[2 * i, column] + w.timeline[2 * i + 1, column]
    w.timeline[SPANS // 2 :] = 0.0
    w.run[0].width *= 2


@part
def draw_timeline(w: World, r: int, kv_start: float, kv_end: float) -> None:
    """Add the run of steps that replica `r` has just ended to the timeline; KV grows evenly over it."""
    replica = w.replicas[r]
    start, end = replica.clock, w.next[r]
    while end >= w.run[0].width * SPANS:
        fold(w)
    width = w.run[0].width
    i, stop = int(start / width), int(end / width)
    slope = (kv_end - kv_start) / (end - start) if end > start else 0.0
    while i <= stop:
        a, b = max(start, i * width), min(end, (i + 1) * width)
        if b > a:
            w.timeline[i, BUSY] += b - a
            w.timeline[i, KV] += (b - a) * (kv_start + slope * ((a + b) / 2 - start))
            w.timeline[i, RUNNING] += (b - a) * replica.admitted
        i += 1


@part
def count_miss(w: World, metric: int, value: float) -> None:
    """Count `value` against every objective on `metric`, and stop the run once one can't be met any more."""
    for i in range(len(w.goals)):
        goal = w.goals[i]
        if goal.metric == metric and value > goal.limit:
            goal.missed += 1
            if goal.missed > goal.allowed:
                w.run[0].abort = MISSED

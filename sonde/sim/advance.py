"""What happens when a run of equal steps ends: tokens are made, prompts and sequences are finished."""

from __future__ import annotations

from typing import Any

from sonde.sim.batch import clear, complete, join, leave, saturate, stall
from sonde.sim.handover import leave as leave_for_decoding
from sonde.sim.jit import i64, part
from sonde.sim.lists import pop_end
from sonde.sim.memory import growth
from sonde.sim.record import count_gaps, count_miss, draw_timeline, itl_bin
from sonde.sim.state import TTFT, World
from sonde.sim.step import compose


@part
def make_tokens(w: World, r: int) -> None:
    """Count the tokens of the decode steps that replica `r` has run, and take the memory that they filled."""
    replica = w.replicas[r]
    first = 0
    if replica.stalls > 0:  # the first step ends gaps that began at different moments
        for k in range(replica.stalls):
            gap = replica.x + (replica.clock - w.stalled[r, k, 0])
            w.itl[itl_bin(gap)] += int(w.stalled[r, k, 1])
        replica.stalls = 0
        first = 1
    count_gaps(w, r, first)
    replica.used += growth(w, r, replica.steps + 1, replica.n - 1)
    replica.steps += replica.n
    replica.kept += replica.n * replica.active
    replica.kept_window += replica.n * replica.growing


@part
def end_sequences(w: World, r: int, now: float) -> None:
    """Take the sequences that have made their last token out of the batch, and note those that fill the window."""
    replica = w.replicas[r]
    while replica.heap > 0 and w.ends[r, 0, 0] <= replica.steps:
        i = w.ends[r, 0, 1]
        pop_end(w, r, i64(0))
        if w.work[i].end > replica.steps:
            saturate(w, r, i)
        else:
            leave(w, r, i, now)


@part
def end_prompt(w: World, r: int, i: int, now: float) -> bool:
    """Make the token that the prompt of request `i` ends with; return whether the request goes on to decode."""
    work = w.work[i]
    if work.made == 0:
        work.first = now
        count_miss(w, TTFT, now - work.arrival)
    else:  # it was preempted, and all its tokens were computed again
        w.itl[itl_bin(now - work.last)] += 1
    work.made += 1
    work.done = work.target
    work.last = now
    if work.made < w.output[i]:
        if w.engines[w.replicas[r].engine].hands_over:
            leave_for_decoding(w, r, i)
            return False
        join(w, r, i, i64(work.target))
        return True
    complete(w, r, i, now)
    replica = w.replicas[r]
    if w.engines[replica.engine].hold:
        replica.batch += 1
        replica.kept += work.target
        replica.kept_window += min(i64(work.target), w.engines[replica.engine].window)
    return False


@part
def finish(w: World, r: int) -> None:
    """End the run of steps that replica `r` is in, at `w.next[r]`."""
    replica = w.replicas[r]
    now = w.next[r]
    n = replica.n
    start_kv, active = replica.used, replica.active
    replica.all_steps += n
    replica.busy += now - replica.clock
    replica.energy += n * replica.ex + replica.ey * (n * (n - 1) // 2)
    replica.queued_tokens -= n * replica.tokens
    if replica.decode:
        make_tokens(w, r)
    replica.peak = max(replica.peak, replica.used)
    draw_timeline(w, r, start_kv, replica.used)
    if replica.decode:
        end_sequences(w, r, now)
    elif active > 0 and replica.stalls == 0:
        stall(w, r, replica.clock, active)
    if replica.chunk > 0:
        w.work[replica.part].done += n * replica.chunk
    joined = i64(0)
    for k in range(replica.joiners):
        joined += end_prompt(w, r, w.joining[r, k], now)
    if joined > 0 and replica.stalls > 0:
        stall(w, r, now, joined)
    if replica.active == 0 and w.engines[replica.engine].hold:
        clear(w, r)


@part
def publish(w: World, r: int) -> None:
    """Show the router how many requests replica `r` has queued and running."""
    w.seen.queued[r] = w.replicas[r].waiting + w.replicas[r].coming
    w.seen.running[r] = w.replicas[r].admitted


@part
def advance(w: World, r: int, policies: tuple[Any, ...]) -> None:
    """Go on with replica `r` by one run of steps: end the one it is in (or wake it) and form the next."""
    now = w.next[r]
    if w.replicas[r].wake:
        w.replicas[r].wake = 0
    else:
        finish(w, r)
    compose(w, r, now, policies)
    publish(w, r)

"""The next step of a replica: what is in it, what it costs, and how often it can be repeated.

What is equal from step to step is one run (`sonde.sim.runs`): nothing is approximated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sonde.policies.batching import BatchView
from sonde.sim.batch import make_room, reserved, resume
from sonde.sim.handover import pull, welcome
from sonde.sim.jit import i64, part
from sonde.sim.lend import ask_for, attend
from sonde.sim.lists import FIRST, admit, dequeue
from sonde.sim.memory import steps_that_fit
from sonde.sim.migrate import depart
from sonde.sim.runs import boundary
from sonde.sim.state import (
    BAD_BATCHING,
    DECODE,
    E_DECODE,
    E_LINEAR,
    E_READ,
    E_READ_WINDOW,
    LINEAR,
    READ,
    READ_WINDOW,
    World,
)  # fmt: skip

FOREVER = 1 << 60


@part
def window_area(done: int, chunk: int, window: int) -> float:
    """Return the attention work of `chunk` prompt tokens after `done`, each reading at most `window`."""
    inside = min(max(window - done, 0), chunk)
    return inside * (done + inside / 2) + (chunk - inside) * float(window)


@part
def take_prompt(w: World, r: int, i: int, chunk: int) -> tuple[float, float]:
    """Put the next `chunk` prompt tokens of request `i` into the step; return its attention work A and A_w."""
    replica, work = w.replicas[r], w.work[i]
    window = w.engines[replica.engine].window
    area = chunk * (work.done + chunk / 2)
    area_window = window_area(work.done, chunk, window) if window > 0 else 0.0
    replica.tokens += chunk
    if work.done + chunk == work.target:
        replica.part = -1
        w.joining[r, replica.joiners] = i
        replica.joiners += 1
    else:
        replica.part = i
        replica.chunk = chunk
    return area, area_window


@part
def take_prompts(w: World, r: int, now: float, left: int, whole: bool) -> tuple[float, float]:
    """Fill the step with up to `left` prompt tokens: the prompt in work, then the queue; return A and A_w."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    area, area_window = 0.0, 0.0
    if replica.part >= 0 and left > 0:
        i = replica.part
        rest = i64(w.work[i].target - w.work[i].done)
        chunk = rest if whole else min(rest, left)
        left -= chunk
        area, area_window = take_prompt(w, r, i, i64(chunk))
    while left > 0 and replica.waiting > 0 and replica.part < 0:
        if replica.admitted + replica.pulling >= engine.max_batch:
            break
        i = w.queues[r][replica.urgent, FIRST]
        work = w.work[i]
        need = reserved(w, engine, i)
        size = i64(work.target - work.done)
        if work.swapped or (whole and size > left and replica.tokens > 0):
            break
        if replica.used + need > engine.capacity:
            ask_for(w, r, i)
        if replica.used + need > engine.capacity:
            break
        dequeue(w, r)
        admit(w, r, i)
        replica.used += need
        if math.isnan(work.scheduled):
            work.scheduled = now
        chunk = size if whole else min(size, left)
        left -= chunk
        more, more_window = take_prompt(w, r, i, i64(chunk))
        area += more
        area_window += more_window
    return area, area_window


@part
def price(w: World, r: int, area: float, area_window: float) -> None:
    """Set the time and the energy of the step formed at replica `r`, and how they grow from step to step."""
    replica = w.replicas[r]
    e, curve = w.engines[replica.engine], w.curves[replica.engine]
    batch, active, growing = 0, 0, 0
    if replica.decode:
        batch, active, growing = replica.batch, replica.active, replica.growing
    tokens = replica.tokens + batch
    inside, past = min(tokens, e.last), max(tokens - e.last, 0)
    read, read_window = float(replica.kept + active), float(replica.kept_window + growing)
    square = float(replica.chunk * replica.chunk)
    replica.x = (
        e.fixed + (curve[LINEAR, inside] + e.slope * past) + e.prefill * area + e.prefill_window * area_window
        + curve[DECODE, batch] + curve[READ, batch] * read + curve[READ_WINDOW, batch] * read_window
    )  # fmt: skip
    replica.y = e.prefill * square + curve[READ, batch] * active + curve[READ_WINDOW, batch] * growing
    replica.ex = (
        e.e_fixed + (curve[E_LINEAR, inside] + e.e_slope * past) + e.e_prefill * area + e.e_prefill_window * area_window
        + curve[E_DECODE, batch] + curve[E_READ, batch] * read + curve[E_READ_WINDOW, batch] * read_window
    )  # fmt: skip
    replica.ey = e.e_prefill * square + curve[E_READ, batch] * active + curve[E_READ_WINDOW, batch] * growing


@part
def repeats(w: World, r: int) -> int:
    """Return how often the step formed at replica `r` can be run before the batch changes by itself."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    n = FOREVER
    if replica.chunk > 0:
        work = w.work[replica.part]
        if engine.window > 0 and work.done < engine.window:
            return 1
        n = (work.target - work.done - 1) // replica.chunk
    if replica.decode:
        n = min(n, w.ends[r, 0, 0] - replica.steps)
        n = 1 + steps_that_fit(w, r, replica.steps + 1, n - 1)
    return n


@part
def look(w: World, r: int) -> BatchView:
    """Return what the batching policy of replica `r` sees."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    budget = engine.mixed_budget if replica.active > 0 else engine.token_budget
    return BatchView(replica.active, replica.waiting, i64(replica.part >= 0), budget, engine.max_batch)


@part
def must_ask_again(w: World, r: int, before: BatchView) -> bool:
    """Return whether the batching policy may answer otherwise after this step than it did before it."""
    replica = w.replicas[r]
    if replica.joiners > 0 or (replica.active > 0 and not replica.decode):
        return True
    return w.engines[replica.engine].own > 0 and look(w, r) != before


@part
def compose(w: World, r: int, now: float, policies: tuple[Any, ...]) -> None:
    """Form the next step of replica `r` at `now`, or leave it idle."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    if replica.mover >= 0:
        depart(w, r, now)
    if replica.landed >= 0:
        welcome(w, r, now)
    view = look(w, r)
    left, decode, whole = policies[engine.policy](view)
    replica.clock, replica.tokens, replica.chunk, replica.joiners = now, 0, 0, 0
    preempted, seconds = 0, 0.0
    while True:
        out = 0
        area, area_window = 0.0, 0.0
        if decode:
            out, more = make_room(w, r, now)
            preempted += out
            seconds += more
            if out == 0:
                seconds += resume(w, r, now)
        if out == 0:
            area, area_window = take_prompts(w, r, now, left, whole)
        if left < 0:
            w.run[0].abort = BAD_BATCHING
            w.run[0].fault = r
            w.next[r] = np.inf
            return
        if replica.tokens == 0 and not decode:  # only prompts were wanted, and none can run
            left, decode = i64(0), True
        elif out > 0 and replica.active == 0:  # all that decoded was preempted: the question is a new one
            view = look(w, r)
            left, decode, whole = policies[engine.policy](view)
        else:
            break
    if replica.pull >= 0:
        pull(w, r, now)
    replica.decode = decode and replica.active > 0
    if replica.tokens == 0 and replica.batch == 0:
        w.next[r] = np.inf
        return
    price(w, r, area, area_window)
    if preempted > 0 or seconds > 0 or must_ask_again(w, r, view):
        replica.n = 1
        replica.x += seconds
        replica.ex += seconds * engine.idle_w
    else:
        replica.n = repeats(w, r)
    attend(w, r, now)
    w.next[r] = boundary(replica, replica.n)

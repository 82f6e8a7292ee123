"""Runs of equal steps: n steps of which the k-th takes x + k·y end n·x + y·n(n - 1)/2 after the first began."""

from __future__ import annotations

import math

import numpy as np

from sonde.sim.jit import part
from sonde.sim.memory import growth
from sonde.sim.state import Record, World


@part
def boundary(replica: Record, k: int) -> float:
    """Return when the k-th step of the run ends."""
    return replica.clock + (k * replica.x + replica.y * (k * (k - 1) // 2))


@part
def steps_done(replica: Record, now: float) -> int:
    """Return how many steps of the run have ended at `now`, its last moment included."""
    elapsed = now - replica.clock
    if replica.y > 0:
        b = replica.x / replica.y - 0.5
        k = int(math.sqrt(b * b + 2 * elapsed / replica.y) - b)
    else:
        k = int(elapsed / replica.x)
    k = min(max(k, 0), replica.n)
    while k > 0 and boundary(replica, k) > now:
        k -= 1
    while k < replica.n and boundary(replica, k + 1) <= now:
        k += 1
    return k


@part
def cut(w: World, r: int, now: float) -> None:
    """End the run of replica `r` with the step that is in progress at `now`."""
    replica = w.replicas[r]
    n = steps_done(replica, now) + 1
    if n < replica.n:
        replica.n = n
        w.next[r] = boundary(replica, n)


@part
def passed(w: World, r: int, now: float) -> int:
    """Return how many steps of the run of replica `r` have ended before what happens at `now`.

    Steps that end at one moment end replica by replica: those after the one that ends now have not ended yet.
    """
    replica = w.replicas[r]
    k = steps_done(replica, now)
    first = w.run[0].forming
    if first >= 0 and r > first and k > 0 and boundary(replica, k) == now:
        k -= 1
    return k


@part
def shorten(w: World, r: int, now: float) -> None:
    """End the run of replica `r`, if it is in one, with the step that is in progress at `now`, or that ends then."""
    replica = w.replicas[r]
    if w.next[r] < np.inf and replica.n > 1 and not replica.wake:
        n = passed(w, r, now) + 1
        if n < replica.n:
            replica.n = n
            w.next[r] = boundary(replica, n)


@part
def stir(w: World, r: int, now: float) -> None:
    """Let replica `r` form a step as soon as it can: at once if it is idle, else after the one in progress."""
    replica = w.replicas[r]
    if w.next[r] == np.inf:
        w.next[r] = now
        replica.wake = 1
    else:
        shorten(w, r, now)


@part
def decoded(w: World, r: int, now: float) -> int:
    """Return how many tokens each sequence of the batch of replica `r` has made since its run began."""
    replica = w.replicas[r]
    if w.next[r] == np.inf or replica.wake or not replica.decode:
        return 0
    return passed(w, r, now)


@part
def taken(w: World, r: int, now: float) -> int:
    """Return the bytes that are taken at replica `r`, those of the step in progress included."""
    replica = w.replicas[r]
    return replica.used + growth(w, r, replica.steps + 1, decoded(w, r, now))


@part
def take(w: World, r: int, size: int, now: float) -> bool:
    """Take `size` bytes at replica `r` for what comes over a link; return whether they are free."""
    replica = w.replicas[r]
    if taken(w, r, now) + size > w.engines[replica.engine].capacity:
        return False
    shorten(w, r, now)
    replica.used += size
    replica.peak = max(replica.peak, taken(w, r, now))
    return True


@part
def give(w: World, r: int, size: int, now: float) -> None:
    """Give `size` bytes back at replica `r`, and let what waits for memory there look again."""
    replica = w.replicas[r]
    replica.peak = max(replica.peak, taken(w, r, now))
    replica.used -= size
    w.run[0].freed = 1
    if replica.waiting > 0 or replica.pull >= 0:
        stir(w, r, now)

"""The batch of a replica: sequences join it, leave it, are preempted and resumed."""

from __future__ import annotations

from sonde.sim.jit import i64, part, where_connected
from sonde.sim.lend import borrow, owe, repay
from sonde.sim.lists import FIRST, NEWEST, admit, dequeue, enqueue, find_end, pop_end, push_end, release
from sonde.sim.memory import growth, kv_bytes
from sonde.sim.record import count_miss
from sonde.sim.runs import give
from sonde.sim.state import DROPPED, E2E, MOVE, NOTHING, TPOT, Record, World


@part
def cached(w: World, r: int, i: int) -> int:
    """Return the tokens that decoding request `i` holds in its cache after the last step."""
    return w.prompt[i] + w.output[i] - 1 - (w.work[i].end - w.replicas[r].steps)


@part
def reserved(w: World, engine: Record, i: int) -> int:
    """Return the bytes that must be free for request `i` to be admitted with a prompt to compute."""
    if engine.reserve:
        return kv_bytes(engine, w.prompt[i] + w.output[i] - 1)
    return kv_bytes(engine, i64(w.work[i].target))


@part
def count_in(w: World, r: int, tokens: int, sign: int) -> None:
    """Add (or take, `sign` -1) a sequence with `tokens` in its cache to the sums over the batch."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    replica.active += sign
    replica.batch += sign
    replica.kept += sign * tokens
    phase = (tokens - replica.steps) % engine.block_tokens
    w.phases[r, 0, phase] += sign
    if engine.window > 0:
        replica.kept_window += sign * min(tokens, engine.window)
        if tokens < engine.window:
            replica.growing += sign
            w.phases[r, 1, phase] += sign


@part
def join(w: World, r: int, i: int, tokens: int) -> None:
    """Let request `i`, which holds `tokens` in its cache, decode from the next step on."""
    replica, work = w.replicas[r], w.work[i]
    window = w.engines[replica.engine].window
    count_in(w, r, tokens, i64(1))
    work.done = work.target
    work.end = replica.steps + w.output[i] - work.made
    key = work.end
    if tokens < window:
        key = min(key, replica.steps + window - tokens)
    push_end(w, r, key, i)
    owe(w, r, i)


@part
def saturate(w: World, r: int, i: int) -> None:
    """Stop the growth of request `i` in the window, which it fills now."""
    replica = w.replicas[r]
    replica.growing -= 1
    w.phases[r, 1, (cached(w, r, i) - replica.steps) % w.engines[replica.engine].block_tokens] -= 1
    push_end(w, r, w.work[i].end, i)


@part
def complete(w: World, r: int, i: int, now: float) -> None:
    """Write down that request `i` is finished, and give its memory back (or keep its place, where slots are held)."""
    replica, work = w.replicas[r], w.work[i]
    engine = w.engines[replica.engine]
    work.finish = now
    work.made = w.output[i]
    repay(w, r, i)
    if not engine.hold:
        replica.used -= kv_bytes(engine, w.prompt[i] + w.output[i] - 1)
    release(w, r, i)
    if replica.mover == i:
        drop(w, r, now)
    if w.output[i] > 1:
        count_miss(w, TPOT, (now - work.first) / (w.output[i] - 1))
    count_miss(w, E2E, now - work.arrival)
    if w.run[0].closed:
        w.pending[w.run[0].back % len(w.pending)] = now
        w.run[0].back += 1


@part
def leave(w: World, r: int, i: int, now: float) -> None:
    """Take request `i`, whose last token has just been made, out of the batch."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    tokens = w.prompt[i] + w.output[i] - 1
    if engine.hold:
        replica.active -= 1
        phase = (tokens - replica.steps) % engine.block_tokens
        w.phases[r, 0, phase] -= 1
        if tokens <= engine.window:  # it never came to fill the window
            replica.growing -= 1
            w.phases[r, 1, phase] -= 1
    else:
        count_in(w, r, tokens, i64(-1))
        if tokens == engine.window:  # counted as growing until now, as it was during its last step
            replica.growing -= 1
            w.phases[r, 1, (tokens - replica.steps) % engine.block_tokens] -= 1
    complete(w, r, i, now)


@part
def clear(w: World, r: int) -> None:
    """Empty the held places of a batch whose last sequence has ended."""
    replica = w.replicas[r]
    replica.batch = 0
    replica.growing = 0
    replica.kept = 0
    replica.kept_window = 0
    replica.used = 0


@part
def stall(w: World, r: int, last: float, count: int) -> None:
    """Remember that `count` sequences made their last token at `last`, before a step that makes them none."""
    replica = w.replicas[r]
    w.stalled[r, replica.stalls, 0] = last
    w.stalled[r, replica.stalls, 1] = count
    replica.stalls += 1


@part
def last_token(w: World, r: int, i: int, now: float) -> float:
    """Return when request `i` made its last token, and take it off the stalled ones."""
    replica = w.replicas[r]
    if replica.stalls == 0:
        return now
    at = 0
    for k in range(1, replica.stalls):
        if w.stalled[r, k, 0] == w.work[i].last:
            at = k
    w.stalled[r, at, 1] -= 1
    return w.stalled[r, at, 0]


@part
def take_out(w: World, r: int, i: int, now: float) -> int:
    """Take request `i` out of what decodes at replica `r`; return the tokens that it holds in its cache."""
    work = w.work[i]
    tokens = cached(w, r, i)
    work.made = w.output[i] - (work.end - w.replicas[r].steps)
    work.last = last_token(w, r, i, now)
    pop_end(w, r, find_end(w, r, i))
    count_in(w, r, tokens, i64(-1))
    return tokens


@where_connected
def drop(w: World, r: int, now: float) -> None:
    """Give up the migration of the request that was on its way out of replica `r`: it has ended or is preempted."""
    replica = w.replicas[r]
    flow = w.net.flow[replica.mover]
    replica.mover = -1
    w.run[0].given_up += 1
    if flow.kind == MOVE:  # no copy of it is under way
        turn_away(w, flow, now)
    else:
        flow.kind = DROPPED


@part
def turn_away(w: World, flow: Record, now: float) -> None:
    """Free what was taken for a sequence that does not come after all."""
    r = i64(flow.target)
    flow.kind, flow.stage = NOTHING, 0
    w.replicas[r].pulling -= 1
    w.replicas[r].guests -= 1
    give(w, r, kv_bytes(w.engines[w.replicas[r].engine], i64(flow.tokens)), now)


@part
def preempt(w: World, r: int, now: float) -> float:
    """Put the request that came last, of the least urgent, back to the front of the queue.

    Returns the seconds that its cache takes to host memory where it is swapped, else 0.
    """
    replica, q = w.replicas[r], w.queues[r]
    engine = w.engines[replica.engine]
    c = len(q) - 1
    while q[c, NEWEST] < 0:
        c -= 1
    i = q[c, NEWEST]
    work = w.work[i]
    repay(w, r, i)
    release(w, r, i)
    if replica.mover == i:
        drop(w, r, now)
    work.preemptions += 1
    seconds = 0.0
    if i == replica.part:
        replica.part = -1
        replica.used -= kv_bytes(engine, i64(work.target))
        replica.queued_tokens += work.done
    else:
        tokens = take_out(w, r, i, now)
        size = kv_bytes(engine, tokens)
        replica.used -= size
        work.target = tokens + 1
        if engine.swap:
            work.swapped = 1
            seconds = size * engine.swap_s_per_byte
        else:
            replica.queued_tokens += work.target
    work.done = 0
    enqueue(w, r, i, True)
    return seconds


@part
def make_room(w: World, r: int, now: float) -> tuple[int, float]:
    """Take the memory that the next decode step needs, preempting until there is enough.

    Returns how many were preempted, and the seconds that swapping them out takes.
    """
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    count, seconds = 0, 0.0
    while True:
        need = growth(w, r, replica.steps, i64(1))
        if replica.used + need > engine.capacity:
            borrow(w, r, need)
        if replica.used + need <= engine.capacity:
            replica.used += need
            return count, seconds
        seconds += preempt(w, r, now)
        count += 1


@part
def resume(w: World, r: int, now: float) -> float:
    """Bring swapped requests at the head of the queue back while they fit; return the seconds that it takes."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    seconds = 0.0
    while replica.waiting > 0 and replica.admitted + replica.pulling < engine.max_batch:
        i = w.queues[r][replica.urgent, FIRST]
        work = w.work[i]
        tokens = work.target - 1
        need = kv_bytes(engine, tokens + 1)
        if not work.swapped or replica.used + need > engine.capacity:
            break
        dequeue(w, r)
        admit(w, r, i)
        if replica.stalls == 0 and replica.active > 0:
            stall(w, r, now, replica.active)
        stall(w, r, work.last, i64(1))
        work.swapped = 0
        replica.used += need
        seconds += kv_bytes(engine, tokens) * engine.swap_s_per_byte
        join(w, r, i, tokens)
    return seconds

"""Lending: blocks of a cache that lie in another replica's memory, which computes attention over them there.

A replica that is short of memory sends the oldest blocks of a sequence to the replica with the most to spare, and
they stay until the sequence ends or is preempted. From then on its steps send queries out and get partial results
back: it waits for them beside its own attention, and the steps of who lends are longer by what it reads for others.
"""

from __future__ import annotations

from sonde.sim.jit import i64, part, rare, where_connected
from sonde.sim.memory import kv_bytes
from sonde.sim.runs import shorten, stir, taken
from sonde.sim.state import E_READ, NOTHING, READ, World


@part
def first_lender(w: World) -> int:
    """Return the first of the replicas that lend to each other: those that decode."""
    first = w.run[0].first_stage
    return i64(first) if first < len(w.replicas) else i64(0)


@part
def room(w: World, c: int, keep: int) -> int:
    """Return how many blocks replica `c` could lend and keep `keep` bytes: none while requests wait behind others."""
    replica = w.replicas[c]
    engine = w.engines[replica.engine]
    if replica.waiting > 0 and replica.admitted > 0:
        return i64(0)
    return max(i64((engine.capacity - keep - taken(w, c, w.run[0].now)) // engine.block_bytes), i64(0))


@rare
def lender(w: World, r: int, keep: int) -> int:
    """Return the replica beside `r` that could lend the most blocks and keep `keep` bytes, or -1 where none has one."""
    best, most = i64(-1), i64(0)
    for c in range(first_lender(w), len(w.replicas)):
        if c != r:
            blocks = room(w, i64(c), keep)
            if blocks > most:
                best, most = i64(c), blocks
    return best


@rare
def lend(w: World, r: int, c: int, i: int, blocks: int) -> None:
    """Send the next `blocks` blocks of request `i` from replica `r` to `c`, which keeps them."""
    run, there, flow = w.run[0], w.replicas[c], w.net.flow[i]
    engine = w.engines[w.replicas[r].engine]
    tokens, size = blocks * engine.block_tokens, blocks * engine.block_bytes
    shorten(w, c, run.now)
    there.used += size
    there.peak = max(there.peak, taken(w, c, run.now))
    w.net.lenders[c].guests += tokens
    w.replicas[r].used -= size
    flow.lent += blocks
    flow.creditor = c
    flow.most_lent = max(flow.most_lent, flow.lent)
    if flow.owes:
        w.net.lenders[r].owed += tokens
        w.net.lent[r, c] += tokens
    run.sending += run.lend_latency + size / run.lend_rate
    run.loans += 1


@where_connected
def owe(w: World, r: int, i: int) -> None:
    """Let replica `r`, at which request `i` decodes from now on, ask for attention over what of it lies elsewhere."""
    flow, mine = w.net.flow[i], w.net.lenders[r]
    if flow.lent > 0:
        tokens = flow.lent * w.engines[w.replicas[r].engine].block_tokens
        flow.owes = 1
        mine.debts += 1
        mine.owed += tokens
        w.net.lent[r, flow.creditor] += tokens


@where_connected
def repay(w: World, r: int, i: int) -> None:
    """Free what request `i`, which is about to leave replica `r`, has taken elsewhere."""
    run, flow = w.run[0], w.net.flow[i]
    run.freed = 1
    if flow.lent == 0:
        return
    c = i64(flow.creditor)
    engine, there = w.engines[w.replicas[r].engine], w.replicas[c]
    tokens, size = flow.lent * engine.block_tokens, flow.lent * engine.block_bytes
    there.peak = max(there.peak, taken(w, c, run.now))
    shorten(w, c, run.now)
    there.used -= size
    w.net.lenders[c].guests -= tokens
    w.replicas[r].used += size  # all of it is taken off by who calls
    if flow.owes:
        w.net.lenders[r].debts -= 1
        w.net.lenders[r].owed -= tokens
        w.net.lent[r, c] -= tokens
    flow.lent, flow.owes = 0, 0
    if there.pull >= 0:
        stir(w, c, run.now)


@part
def longest(w: World, r: int, c: int) -> tuple[int, int]:
    """Return the decoding request of replica `r` with the most whole blocks there that `c` could take, and how many.

    Only what has blocks nowhere else counts, and what is not about to migrate.
    """
    best, most = i64(-1), i64(0)
    block = w.engines[w.replicas[r].engine].block_tokens
    steps = w.replicas[r].steps
    for k in range(w.replicas[r].heap):
        i = w.ends[r, k, 1]
        flow = w.net.flow[i]
        if flow.kind == NOTHING and (flow.lent == 0 or flow.creditor == c):
            tokens = w.prompt[i] + w.output[i] - 1 - (w.work[i].end - steps)
            blocks = i64(tokens // block - flow.lent)
            if blocks > most or (blocks == most and blocks > 0 and i < best):
                best, most = i64(i), blocks
    return best, most


@where_connected
def borrow(w: World, r: int, need: int) -> None:
    """Send blocks of replica `r` away until `need` bytes are free there, as far as others have room."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    while engine.lends and replica.used + need > engine.capacity:
        c = lender(w, r, i64(0))
        if c < 0:
            return
        i, most = longest(w, r, c)
        if i < 0:
            return
        short = (replica.used + need - engine.capacity + engine.block_bytes - 1) // engine.block_bytes
        if w.net.flow[i].lent == 0:
            w.net.flow[i].owes = 1
            w.net.lenders[r].debts += 1
        lend(w, r, c, i, i64(min(short, most, room(w, c, i64(0)))))


@where_connected
def ask_for(w: World, r: int, i: int) -> None:
    """Place the first blocks of the prompt of request `i` elsewhere, as many as do not fit replica `r`, or none."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    target = i64(w.work[i].target)
    short = replica.used + kv_bytes(engine, target) - engine.capacity
    blocks = i64((short + engine.block_bytes - 1) // max(engine.block_bytes, 1))
    if not engine.lends or blocks > target // engine.block_tokens:
        return
    keep = i64(w.run[0].reserve)
    c = lender(w, r, keep)
    if c >= 0 and room(w, c, keep) >= blocks:
        lend(w, r, c, i, blocks)


@where_connected
def attend(w: World, r: int, now: float) -> None:  # noqa: ARG001  (such parts have three arguments)
    """Add to the step formed at replica `r` what it reads for others, what it waits for, and the blocks that it sent.

    A step waits for partial results beside its own attention, for the longer of the two: once its own has grown to be
    that, the run of equal steps ends.
    """
    run, replica, mine = w.run[0], w.replicas[r], w.net.lenders[r]
    engine, curve = w.engines[replica.engine], w.curves[replica.engine]
    if run.sending > 0:
        replica.n = 1
        replica.x += run.sending
        replica.ex += run.sending * engine.idle_w
    replica.x += curve[READ, 1] * mine.guests
    if mine.debts == 0 or not replica.decode:
        return
    share, grows = 0.0, curve[READ, replica.batch] * replica.active
    for c in range(len(w.replicas)):
        if w.net.lent[r, c] > 0:
            its = w.curves[w.replicas[c].engine]
            share = max(share, its[READ, 1] * w.net.lent[r, c])
            replica.ex += its[E_READ, 1] * w.net.lent[r, c]
    own = curve[READ, replica.batch] * (replica.kept + replica.active - mine.owed)
    wait = run.exchange_s + mine.debts * run.sequence_s + share
    replica.x -= curve[READ, replica.batch] * mine.owed
    replica.ex -= curve[E_READ, replica.batch] * mine.owed
    if wait <= own:
        return
    replica.x += wait - own
    replica.y -= grows
    if grows > 0:
        n = int((wait - own) / grows) + 1
        while n > 1 and own + (n - 1) * grows > wait:
            n -= 1
        replica.n = min(replica.n, n)


@rare
def look_again(w: World, r: int, now: float) -> None:
    """Let replicas other than `r` at which requests wait look again whether there is memory for them."""
    w.run[0].freed = 0
    for c in range(first_lender(w), len(w.replicas)):
        if c != r and w.replicas[c].waiting > 0:
            stir(w, i64(c), now)

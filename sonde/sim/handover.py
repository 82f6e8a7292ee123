"""What comes to a replica over links: caches of prompts that others computed, and sequences that migrate to it.

A replica pulls what waits for it when it forms a step and has memory and a place left; the memory at the source is
free once it has come. What has come joins the batch when the next step is formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sonde.sim.batch import join, stall
from sonde.sim.jit import i64, part, rare, where_connected
from sonde.sim.links import HAND_OVER, carry, way
from sonde.sim.lists import admit, release
from sonde.sim.memory import kv_bytes
from sonde.sim.runs import give, stir
from sonde.sim.state import HANDOVER, NOTHING, World


@part
def left_to_send(w: World, i: int, source: int, now: float) -> float:
    """Return the bytes of the cache of request `i` that are still to be sent when its prompt is done.

    Sent layer by layer, they go out while later layers are computed: the last layer is left, or what the link could
    not carry in that time; nor has any link ever carried more than its bandwidth allows.
    """
    size = float(kv_bytes(w.engines[w.replicas[source].engine], i64(w.net.flow[i].tokens)))
    layers = w.run[0].layers
    if layers > 0:
        link = w.net.links[way(w, HAND_OVER, source, i64(w.net.flow[i].target))]
        could = min(link.rate * (w.work[i].first - w.work[i].scheduled), link.rate * now - link.bytes)
        left = max(size / layers, size - max(could, 0.0))
        link.bytes += size - left
        return left
    return size


@where_connected
def leave(w: World, r: int, i: int) -> None:
    """Let request `i`, whose prompt is done at replica `r`, give up its place there; it decodes elsewhere."""
    release(w, r, i)
    w.net.leaving[w.run[0].leaving] = i
    w.run[0].leaving += 1


@rare
def offer(w: World, i: int, r: int, now: float) -> None:
    """Let the cache of request `i`, whose prompt is done, wait to be pulled by replica `r`."""
    flow, replica = w.net.flow, w.replicas[r]
    flow[i].kind, flow[i].source, flow[i].target = HANDOVER, w.work[i].replica, r
    flow[i].tokens, flow[i].next = w.work[i].target, -1
    flow[i].origin = w.work[i].replica + 1
    w.work[i].replica = r
    if replica.pull < 0:
        replica.pull = i
    else:
        flow[replica.pull_last].next = i
    replica.pull_last = i
    replica.coming += 1
    replica.coming_tokens += flow[i].tokens
    if w.next[r] == np.inf:
        pull(w, r, now)
    else:
        stir(w, r, now)


@where_connected
def pull(w: World, r: int, now: float) -> None:
    """Begin to pull what waits for replica `r`, in order, as far as memory and places in the batch go."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    while replica.pull >= 0 and replica.admitted + replica.pulling < engine.max_batch:
        i = replica.pull
        flow = w.net.flow[i]
        size = kv_bytes(engine, i64(flow.tokens))
        if replica.used + size > engine.capacity:
            break
        replica.pull = i64(flow.next)
        replica.used += size
        replica.peak = max(replica.peak, replica.used)
        replica.pulling += 1
        source = i64(flow.source)
        flow.bytes = left_to_send(w, i, source, now)
        carry(w, way(w, i64(HAND_OVER), source, r), i, now)


@rare
def arrive(w: World, i: int, now: float) -> None:
    """Free the memory that request `i` left behind, and let it join the batch that it has come to."""
    flow = w.net.flow[i]
    source, r = i64(flow.source), i64(flow.target)
    give(w, source, kv_bytes(w.engines[w.replicas[source].engine], i64(flow.tokens)), now)
    replica = w.replicas[r]
    flow.landed, flow.next = now, -1
    if flow.stage > 0:  # it has migrated
        flow.stage = 0
        replica.guests -= 1
        w.run[0].migrations += 1
    if replica.landed < 0:
        replica.landed = i
    else:
        w.net.flow[replica.landed_last].next = i
    replica.landed_last = i
    stir(w, r, now)


@where_connected
def welcome(w: World, r: int, now: float) -> None:
    """Let what has come to replica `r` decode from the step on that is formed now."""
    replica: Any = w.replicas[r]
    if replica.stalls == 0 and replica.active > 0:
        stall(w, r, now, replica.active)
    while replica.landed >= 0:
        i = replica.landed
        flow = w.net.flow[i]
        replica.landed = i64(flow.next)
        replica.pulling -= 1
        replica.coming -= 1
        replica.coming_tokens -= flow.tokens
        flow.kind = NOTHING
        if flow.away:
            flow.paused += now - flow.left
            flow.away = 0
        admit(w, r, i)
        stall(w, r, w.work[i].last, i64(1))
        join(w, r, i, i64(flow.tokens))

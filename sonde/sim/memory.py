"""KV memory in blocks: what a sequence takes, and how a batch grows over the next steps."""

from __future__ import annotations

from sonde.sim.jit import part
from sonde.sim.state import Record, World


@part
def kv_bytes(engine: Record, tokens: int) -> int:
    """Return the bytes that a sequence with `tokens` in its cache takes."""
    block = engine.block_tokens
    size = (tokens + block - 1) // block * engine.block_bytes + engine.state_bytes
    if engine.window_bytes > 0:
        size += (min(tokens, engine.window) + block - 1) // block * engine.window_bytes
    return size


@part
def step_growth(w: World, r: int, steps: int) -> int:
    """Return the bytes that the batch of replica `r` takes more in the step after `steps` decode steps."""
    engine = w.engines[w.replicas[r].engine]
    phase = -steps % engine.block_tokens
    return w.phases[r, 0, phase] * engine.block_bytes + w.phases[r, 1, phase] * engine.window_bytes


@part
def growth(w: World, r: int, steps: int, n: int) -> int:
    """Return the bytes that the batch takes more in the `n` steps after `steps` decode steps."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    if engine.reserve or n <= 0:
        return 0
    cycles = n // engine.block_tokens
    total = cycles * (replica.active * engine.block_bytes + replica.growing * engine.window_bytes)
    for k in range(n - cycles * engine.block_tokens):
        total += step_growth(w, r, steps + k)
    return total


@part
def steps_that_fit(w: World, r: int, steps: int, limit: int) -> int:
    """Return how many of the `limit` steps after `steps` decode steps fit into the memory that is free."""
    replica = w.replicas[r]
    engine = w.engines[replica.engine]
    free = engine.capacity - replica.used
    cycle = replica.active * engine.block_bytes + replica.growing * engine.window_bytes
    if engine.reserve or (limit // engine.block_tokens + 1) * cycle <= free:
        return limit
    fit = free // cycle * engine.block_tokens
    free -= free // cycle * cycle
    while fit < limit:
        free -= step_growth(w, r, steps + fit)
        if free < 0:
            break
        fit += 1
    return min(fit, limit)

"""A transformer that no measurement has seen, timed, beside what the cost model says of it from the device row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sonde.calibrate.machine.clock import each
from sonde.calibrate.machine.decoder import EMPTY, Size, decoder, gated, norm, step, turned

#: its weights (88 MB in BF16) are more than the last-level cache holds, and no product of this shape is measured
HELD_OUT = Size(hidden=768, layers=6, heads=12, kv_heads=4, inner=2048, vocabulary=8192)
PROMPT, CONTEXT, BATCHES = 192, 512, (1, 8)


class Judged(NamedTuple):
    """One step of the held-out transformer: seconds measured and predicted."""

    step: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Return by which share the prediction is above what was measured."""
        return self.predicted_s / self.measured_s - 1.0


class Overheads(NamedTuple):
    """Seconds that a step costs whatever is in it, in all and for every layer: those of a decoder without work."""

    step_s: float
    layer_s: float


def judged(device: str, path: str) -> list[Judged]:
    """Return steps of the held-out transformer on `device`, predicted from the device row in the file `path`."""
    wait = torch.cuda.synchronize if device == "cuda" else None
    found = []
    for batch, new, start in [(1, PROMPT, 0), *((batch, 1, CONTEXT - 1) for batch in BATCHES)]:
        model = decoder(HELD_OUT, batch, CONTEXT, device=device)
        tokens = torch.zeros(batch, new, dtype=torch.long, device=device)
        taken = each(lambda m=model, t=tokens, s=start: step(m, t, s), repeats=10, wait=wait)  # type: ignore[misc]
        name = f"prefill of {new} tokens" if new > 1 else f"decode, batch {batch}, context {CONTEXT}"
        found.append(Judged(name, taken, predicted(path, HELD_OUT, batch, new)))
    return found


def predicted(path: str, size: Size, batch: int, new: int) -> float:
    """Return what the cost model says of a step: a prompt of `new` tokens, or one token each of `batch` sequences."""
    from sonde.catalogue.configs import read_config
    from sonde.catalogue.devices import device
    from sonde.cost.compile import compile_replica
    from sonde.cost.table import coefficients
    from sonde.deployment.tree import Replica

    replica = Replica.model_validate({"model": "held-out", "device": path, "engine": "generic"})
    model = read_config(size.config(), "held-out", "held-out", source="built in code")
    table = compile_replica(model, device(path), replica, usd_per_device_hour=0.0).table.time
    if new > 1:
        return coefficients(table, new, 0, new * new / 2, 0)
    return coefficients(table, 0, batch, 0, batch * CONTEXT)


def overheads(device: str) -> Overheads:
    """Return what decoders without work cost: the slope over layers, and what is left at none."""
    wait = torch.cuda.synchronize if device == "cuda" else None
    tokens = torch.zeros(1, 1, dtype=torch.long, device=device)
    taken = {}
    for layers in (EMPTY.layers, 3 * EMPTY.layers):
        model = decoder(EMPTY._replace(layers=layers), 1, 32, device=device)
        taken[layers] = min(each(lambda m=model: step(m, tokens, 8), seconds=0.004, repeats=8, wait=wait)  # type: ignore[misc]
                            for _ in range(3))  # fmt: skip
    few, many = taken
    layer = (taken[many] - taken[few]) / (many - few)
    return Overheads(max(taken[few] - few * layer, 0.0), layer)


class Passes(NamedTuple):
    """The parts of a layer that only move numbers, for many rows: seconds, and the bytes that the cost model counts."""

    seconds: float
    bytes: float


def passes(device: str, *, rows: int = 256, size: Size = Size(1024, 1, 8, 8, 2816, 64)) -> Passes:  # noqa: B008
    """Return the time of norms, sums, rotary embedding, cache writes and gate of one layer for `rows` tokens."""
    kind: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    x, ones = torch.ones(1, rows, size.hidden, **kind), torch.ones(size.hidden, **kind)
    both = torch.ones(1, rows, 2 * size.inner, **kind)
    q, k = (torch.ones(1, n, rows, size.head, **kind) for n in (size.heads, size.kv_heads))
    cosine, cache = torch.ones(rows, size.head, **kind), torch.ones(2, 1, size.kv_heads, rows, size.head, **kind)

    def run() -> None:
        with torch.inference_mode():
            norm(x, ones)
            turned(q, cosine, cosine)
            cache[0], cache[1] = turned(k, cosine, cosine), k
            torch.add(x, x)
            norm(x, ones)
            gated(both)
            torch.add(x, x)

    wait = torch.cuda.synchronize if device == "cuda" else None
    numbers = rows * (4 * size.hidden + 2 * 2 * size.kv_heads * size.head + 4 * size.hidden + 3 * size.inner)
    return Passes(each(run, repeats=5, wait=wait), 2.0 * numbers)

"""What it costs to start something: an operator, a parallel region, a kernel on a GPU; and to copy memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sonde.calibrate.machine.clock import Run, each, timing
from sonde.calibrate.machine.facts import cores, torch_or_none


class Start(NamedTuple):
    """Seconds to start one thing whose work is next to nothing."""

    what: str
    seconds: float


def starts() -> Iterator[Start]:
    """Yield the cost of one operator of numpy and torch, of a product, of a region of threads, of a kernel on a GPU."""
    from sonde.calibrate.machine.loops import region

    one, out = np.ones(1), np.empty(1)
    yield Start("numpy operator", each(lambda: np.add(one, one, out=out)))
    counts, fork = np.zeros(cores()), region()
    yield Start(f"numba region of {cores()} threads", each(lambda: fork(counts)))
    torch = torch_or_none()
    if torch is None:
        return
    yield from _torch_starts(torch, "cpu", None)
    if torch.cuda.is_available():
        yield from _torch_starts(torch, "cuda", torch.cuda.synchronize)


def _torch_starts(torch: Any, device: str, wait: Run | None) -> Iterator[Start]:
    name = "torch" if device == "cpu" else "CUDA"
    kind = torch.bfloat16
    x, w = torch.ones(1, 16, dtype=kind, device=device), torch.ones(16, 16, dtype=kind, device=device)
    q = torch.ones(1, 2, 1, 16, dtype=kind, device=device)
    functional = torch.nn.functional
    with torch.inference_mode():
        yield Start(f"{name} operator", each(lambda: torch.add(x, x), wait=wait))
        yield Start(f"{name} product", each(lambda: functional.linear(x, w), wait=wait))
        yield Start(f"{name} attention", each(lambda: functional.scaled_dot_product_attention(q, q, q), wait=wait))
        if wait is not None:
            yield Start(f"{name} operator and its end", each(lambda: (torch.add(x, x), wait()), repeats=5))


def memory_copy(size: int) -> float:
    """Return the bytes per second at which one block of memory is copied to another, counted once."""
    source, target = np.ones(size // 8), np.empty(size // 8)
    return size / timing(lambda: np.copyto(target, source), repeats=5, warm=1).best_s


def host_link(size: int) -> tuple[float, float]:
    """Return bytes per second and seconds of one small message from host memory to the GPU. Needs CUDA."""
    import torch

    source = torch.ones(size // 4, pin_memory=True)
    target = torch.empty(size // 4, device="cuda")
    small, there = torch.ones(1, pin_memory=True), torch.empty(1, device="cuda")
    wait = torch.cuda.synchronize
    bandwidth = size / timing(lambda: target.copy_(source, non_blocking=True), repeats=5, wait=wait).best_s
    return bandwidth, timing(lambda: there.copy_(small, non_blocking=True), repeats=50, wait=wait).best_s

"""The kernels in triton for an NVIDIA GPU: STREAM from the same description, and a pointer chase.

Imported only where torch has a CUDA device and triton is installed; `missing` says what is not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sonde.calibrate.machine.chase import LINE, WORDS, Latency, cycle
from sonde.calibrate.machine.clock import timing
from sonde.calibrate.machine.facts import torch_or_none
from sonde.calibrate.machine.stream import Arrays, Backend, Kernel


def missing() -> str:
    """Return why no GPU is measured here, or an empty string where one can be."""
    torch = torch_or_none()
    if torch is None:
        return "torch is not installed (`pip install torch`)"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU that torch can use"
    return ""


def triton_missing() -> str:
    """Return why triton's kernels are not measured here, or an empty string."""
    return missing() or ("" if importlib.util.find_spec("triton") else "triton is not installed (`pip install triton`)")


def last_cache() -> int:
    """Return the bytes of the GPU's L2 cache, by its driver. Needs CUDA."""
    import torch

    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def triton_backend() -> Backend:
    """Return the back end that runs a kernel of STREAM as one triton program per block. Needs CUDA and triton."""
    import torch

    from sonde.calibrate.machine import programs

    def run(kernel: Kernel, arrays: Arrays) -> None:
        out, first = arrays[kernel.out], arrays[kernel.first]
        second = arrays[kernel.second] if kernel.second else first
        grid = (-(-len(out) // programs.BLOCK.value),)
        programs.linear[grid](out, first, second, kernel.scale, len(out), bool(kernel.second))

    def allocate(count: int, value: float) -> Any:
        return torch.full((count,), value, dtype=torch.float64, device="cuda")

    return Backend("triton", 1, "own", allocate, run, lambda array: array.cpu().numpy(), torch.cuda.synchronize)


def chase(buffers: Sequence[int], rng: np.random.Generator, *, steps: int = 1 << 14) -> Iterator[Latency]:
    """Yield the latency of one load on the GPU for each size of buffer: one thread, each load waiting for the last.

    What a kernel costs that takes no steps is taken off. Needs CUDA and triton.
    """
    import torch

    from sonde.calibrate.machine import programs

    wait, at = torch.cuda.synchronize, torch.zeros(1, dtype=torch.int64, device="cuda")
    for size in buffers:
        following = torch.from_numpy(cycle(max(size // LINE, 2), rng)).cuda()
        at.zero_()
        programs.walk[(1,)](following, at, len(following) // WORDS)  # once through, so that caches hold what they can
        taken = [
            timing(lambda n=n, f=following: programs.walk[(1,)](f, at, n), repeats=5, wait=wait).best_s  # type: ignore[misc]
            for n in (0, steps)
        ]
        yield Latency(size, (taken[1] - taken[0]) / steps)

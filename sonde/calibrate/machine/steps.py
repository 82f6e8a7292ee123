"""The small decoder's steps: traced operator by operator, and timed over batch sizes."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sonde.calibrate.machine.clock import Run, each, timing
from sonde.calibrate.machine.decoder import Decoder, Size, decoder, step
from sonde.calibrate.machine.fusion import Chain, advice
from sonde.calibrate.machine.knee import Knee, knee
from sonde.calibrate.machine.trace import Summary, Trace, read, summary

#: what is traced: narrow, so that starting operators is most of a step at batch 1
TRACED = Size(hidden=128, layers=4, heads=4, kv_heads=4, inner=256, vocabulary=512)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXT = 64


class Steps(NamedTuple):
    """What SKIP asks of a machine, for one decoder: TKLQT at batch 1, latency over batch, the knee, what to fuse."""

    device: str
    traced: Summary
    operators: int
    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    knee: Knee
    advice: tuple[Chain, ...]
    predicted_speedup: float
    measured_speedup: float


def steps(*, device: str = "cpu", batches: Sequence[int] = BATCHES, size: Size = TRACED) -> Steps:
    """Return the trace of a decoding step and its latency over batch.

    Fusing is tried too: with norms and gates as one operator in place of what they are made of, the ratio of
    launches is the speed-up that SKIP predicts, the ratio of latencies is the one that comes out.
    """
    fused = traced(size, device=device, fused=True)
    apart = traced(size, device=device, fused=False)
    taken = sweep(size, batches, device=device)
    slow, fast = (min(latency(size, 1, device=device, fused=way) for _ in range(3)) for way in (False, True))
    return Steps(
        device, summary(fused), fused.operators, tuple(batches), taken,
        knee(batches, taken, synchronous=device == "cpu"),
        tuple(advice([kernel.name for kernel in apart.kernels])),
        len(apart.kernels) / len(fused.kernels), slow / fast,
    )  # fmt: skip


def latency(size: Size, batch: int, *, device: str = "cpu", fused: bool = True) -> float:
    """Return the seconds of one decoding step of `batch` sequences, the best of several."""
    run, wait = decoding(decoder(size, batch, CONTEXT, device=device, fused=fused), batch, device)
    return each(run, seconds=0.01, repeats=7, wait=wait)


def traced(size: Size, *, device: str = "cpu", batch: int = 1, fused: bool = True) -> Trace:
    """Return the trace of one decoding step, from torch.profiler."""
    from torch.profiler import ProfilerActivity, profile

    run, wait = decoding(decoder(size, batch, CONTEXT, device=device, fused=fused), batch, device)
    timing(run, repeats=1, warm=3, wait=wait)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with _unsaid(), profile(activities=kinds) as recorded:
        run()
        if wait is not None:
            wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(path))
        return read(path)


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep what libraries write to stderr by themselves, past Python, off the screen."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def decoding(model: Decoder, batch: int, device: str, start: int = CONTEXT - 1) -> tuple[Run, Run | None]:
    """Return a call that decodes one token of each of `batch` sequences, and what waits for its end."""
    tokens = torch.zeros(batch, 1, dtype=torch.long, device=device)
    wait: Callable[[], Any] | None = torch.cuda.synchronize if device == "cuda" else None
    return lambda: step(model, tokens, start), wait


def slowed(run: Run, seconds: float) -> Run:
    """Return `run` on a CPU that takes `seconds` longer to start each operator: what a slower core would do."""
    from time import perf_counter

    from torch.utils import _python_dispatch

    mode: Any = _python_dispatch.TorchDispatchMode

    def dispatch(_: Any, func: Any, __: Any, args: Any = (), kwargs: Any = None) -> Any:
        until = perf_counter() + seconds
        while perf_counter() < until:
            pass
        return func(*args, **(kwargs or {}))

    slower: Any = type("Slower", (mode,), {"__torch_dispatch__": dispatch})

    def slow() -> object:
        with slower():
            return run()

    return slow


def sweep(
    size: Size, batches: Sequence[int], *, device: str = "cpu", slower_s: float = 0.0, rounds: int = 3
) -> tuple[float, ...]:
    """Return the latency of a step at each batch size, on a CPU slowed by `slower_s` an operator (0: as it is).

    Batch sizes are gone through `rounds` times, so that what else runs for a moment falls on all alike.
    """
    best = [math.inf] * len(batches)
    runs = [decoding(decoder(size, batch, CONTEXT, device=device), batch, device) for batch in batches]
    for _ in range(rounds):
        for i, (run, wait) in enumerate(runs):
            call = slowed(run, slower_s) if slower_s else run
            best[i] = min(best[i], each(call, seconds=0.005, repeats=4, wait=wait))
    return tuple(best)

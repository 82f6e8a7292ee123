"""All measurements of one machine, taken one after the other: what was found, what was left out and why."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sonde.calibrate.machine import chase, gpu
from sonde.calibrate.machine.attention import Attention, decodes, prefills
from sonde.calibrate.machine.backends import backends, torch_backend
from sonde.calibrate.machine.clock import timing
from sonde.calibrate.machine.facts import Facts, facts, free_bytes, torch_or_none
from sonde.calibrate.machine.gemm import ROWS, SQUARE, Product, Shape, products
from sonde.calibrate.machine.loopback import Loopback, loopback
from sonde.calibrate.machine.starts import Start, host_link, memory_copy, starts
from sonde.calibrate.machine.storage import Disk, disk
from sonde.calibrate.machine.stream import Backend, Rate, elements, stream
from sonde.errors import CannotError

if TYPE_CHECKING:
    from sonde.calibrate.machine.judge import Judged, Overheads, Passes
    from sonde.calibrate.machine.steps import Steps

Progress = Callable[[int, int, str], None]

#: inner and outer width of the weights in products of few rows
WEIGHTS = ((2048, 2048), (1024, 4096))


class Effort(NamedTuple):
    """How much is measured: sizes and repeats of a quick and of a full run."""

    repeats: int
    a_doubling: int
    chase_steps: int
    square: tuple[int, ...]
    rows: tuple[int, ...]
    prompts: tuple[int, ...]
    caches: tuple[tuple[int, int], ...]
    disk_bytes: int
    batches: tuple[int, ...]
    everywhere: bool  # on one core and on all, first touched by one thread and by all


QUICK = Effort(
    10, 2, 1 << 17, (1024,), (1, 8, 64, 256), (512,), ((1, 1024), (8, 2048)), 128 << 20, (1, 8, 32, 128), False
)
FULL = Effort(
    10, 2, 1 << 20, (*SQUARE, 2048), ROWS, (128, 512, 1024), ((1, 16384), (8, 4096), (32, 1024)), 1 << 30,
    (1, 2, 4, 8, 16, 32, 64, 128), True,
)  # fmt: skip


@dataclass
class Measured:
    """What was found. `device` is what the row speaks of: "cpu", or "cuda" for an NVIDIA GPU."""

    facts: Facts
    device: str
    quick: bool
    date: str
    threads: int = 1
    cache_bytes: int = 0
    memory_bytes: int = 0
    stream: list[Rate] = field(default_factory=list)
    latency: list[chase.Latency] = field(default_factory=list)
    levels: tuple[chase.Level, ...] = ()
    products: list[Product] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    copy_bytes_per_s: float = 0.0
    host: tuple[float, float] = (0.0, 0.0)
    disk: Disk | None = None
    loopback: Loopback | None = None
    steps: Steps | None = None
    overheads: Overheads | None = None
    passes: Passes | None = None
    judged: list[Judged] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def effort(self) -> Effort:
        """Return how much is measured."""
        return QUICK if self.quick else FULL

    @property
    def precision(self) -> str:
        """Return the precision that a model is served in here: BF16 where torch is, FP32 where only numpy is."""
        return "bf16" if any(product.precision == "bf16" for product in self.products) else "fp32"

    def start(self, what: str, otherwise: float = 1e-6) -> float:
        """Return the seconds to start `what` of torch on the device; where that is unknown, of any operator."""
        name = f"{'CUDA' if self.device == 'cuda' else 'torch'} {what}"
        listed = {start.what: start.seconds for start in self.starts}
        return listed.get(name, listed.get("numpy operator", otherwise))


def measure(
    *, quick: bool = False, device: str | None = None, folder: Path | None = None, progress: Progress | None = None
) -> Measured:
    """Return the measurements of this machine; `device` is "cpu" or "cuda", by default a GPU where there is one.

    The disk is the one under `folder` (by default, where temporary files are). Raises CannotError where `device`
    is not there, or where memory does not hold what was written to it.
    """
    why = gpu.missing()
    if device == "cuda" and why:
        raise CannotError(f"no GPU to measure: {why}")
    wanted = device or ("cpu" if why else "cuda")
    found = Measured(facts(), wanted, quick, date.today().isoformat())
    if wanted == "cpu" and why:
        found.missing.append(("NVIDIA GPU", why))
    _busy(found)
    tasks = _tasks(folder)
    tell = progress or _silent
    for done, (name, task) in enumerate(tasks):
        tell(done, len(tasks), name)
        begin = time.perf_counter()
        task(found)
        found.seconds[name] = time.perf_counter() - begin
    tell(len(tasks), len(tasks), "done")
    return found


def _tasks(folder: Path | None) -> list[tuple[str, Callable[[Measured], None]]]:
    return [
        ("memory bandwidth (STREAM)", _stream),
        ("latency by size", _latency),
        ("starts", _starts),
        ("matrix products", _products),
        ("attention", _attention),
        ("operators of a step", _steps),
        ("disk", lambda found: _disk(found, folder or Path(tempfile.gettempdir()))),
        ("loopback", _loopback),
        ("held-out transformer", _judge),
    ]


def _silent(_done: int, _total: int, _text: str) -> None:
    """Tell no one."""


def _busy(found: Measured) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > found.facts.cores / 2:
        found.remarks.append(
            f"this machine is busy (load {load:.1f} on {found.facts.cores} cores): what is measured on it now is less "
            "than it can do"
        )
    if not found.facts.cache_known:
        found.remarks.append("the system does not say how large its caches are: 32 MiB is assumed for the last one")


def _stream(found: Measured) -> None:
    cores = found.facts.cores
    if found.device == "cuda":
        listed, missing = _gpu_backends()
        found.cache_bytes, free = gpu.last_cache(), _gpu_memory(found)
    else:
        listed, missing = backends(cores, touches=found.effort.everywhere)
        found.cache_bytes, free, found.memory_bytes = found.facts.last_cache, free_bytes(), found.facts.memory_bytes
        if found.quick:
            listed = [backend for backend in listed if backend.threads == cores or backend.name == "numpy"]
    count, remark = elements(found.cache_bytes, free)
    found.remarks += [f"STREAM: {remark}"] if remark else []
    found.missing += missing
    for backend in listed:
        found.stream += stream(backend, count, repeats=found.effort.repeats)
    if found.device == "cpu":
        found.copy_bytes_per_s = memory_copy(min(2 * found.cache_bytes, free // 8))


def _gpu_backends() -> tuple[list[Backend], list[tuple[str, str]]]:
    found, missing = [], []
    backend = torch_backend(1, device="cuda")
    if isinstance(backend, Backend):
        found.append(backend)
    if why := gpu.triton_missing():
        missing.append(("STREAM on triton", why))
    else:
        found.append(gpu.triton_backend())
    return found, missing


def _gpu_memory(found: Measured) -> int:
    import torch

    free, found.memory_bytes = torch.cuda.mem_get_info()
    found.host = host_link(256 << 20)
    return int(free)


def _latency(found: Measured) -> None:
    effort, rng = found.effort, np.random.default_rng(0)
    sizes = chase.sizes(found.cache_bytes, free_bytes(), a_doubling=effort.a_doubling)
    if found.device == "cpu":
        found.latency = list(chase.chase(sizes, rng, steps=effort.chase_steps))
    elif why := gpu.triton_missing():
        found.missing.append(("latency of the GPU's memory", why))
    else:
        found.latency = list(gpu.chase(sizes, rng))
    found.levels = chase.levels(found.latency)


def _starts(found: Measured) -> None:
    torch = torch_or_none()
    if torch is not None:
        found.threads = _threads(found)
        torch.set_num_threads(found.threads)
    else:
        found.threads = found.facts.cores
        found.missing.append(("BF16, INT8, fused attention, operators of a step", "torch is not installed"))
    found.starts = list(starts())


def _threads(found: Measured) -> int:
    """Return on how many threads products are fastest on average: all cores, or one where others use the cores too."""
    if found.device == "cuda":
        return 1
    import torch

    x, w = (torch.ones(n, 1024, dtype=torch.bfloat16) for n in (256, 1024))
    mean = {}
    for count in sorted({1, found.facts.cores}):
        torch.set_num_threads(count)
        mean[count] = timing(lambda: torch.nn.functional.linear(x, w), repeats=25, warm=5).mean_s
    chosen = min(mean, key=lambda count: mean[count])
    if chosen < found.facts.cores:
        found.remarks.append(
            f"one thread multiplied faster than {found.facts.cores}: what follows ran on one; other programs hold "
            "the cores, or they share one"
        )
    return chosen


def _products(found: Measured) -> None:
    effort, device = found.effort, found.device
    square = [Shape(n, n, n) for n in effort.square]
    few = [Shape(rows, *weights) for weights in WEIGHTS for rows in effort.rows]
    if device == "cuda":
        square, few = [Shape(4 * s.m, 4 * s.k, 4 * s.n) for s in square], [Shape(s.m, 4 * s.k, 4 * s.n) for s in few]
    for precision in ("fp64", "fp32", "bf16", "int8"):
        found.products += products(precision, square, threads=found.threads, device=device)
    cold = 2 * found.cache_bytes
    found.products += products(found.precision, few, threads=found.threads, cold_bytes=cold, device=device)
    other = {1, found.facts.cores} - {found.threads}
    if device == "cpu" and torch_or_none() is not None and effort.everywhere:
        for count in other:
            for precision in ("fp32", "bf16"):
                found.products += products(precision, square[-1:], threads=count)
        torch = torch_or_none()
        if torch is not None:
            torch.set_num_threads(found.threads)


def _attention(found: Measured) -> None:
    effort, precision = found.effort, found.precision
    found.attention = [
        *prefills(precision, effort.prompts, device=found.device),
        *decodes(precision, effort.caches, device=found.device),
    ]


def _steps(found: Measured) -> None:
    if torch_or_none() is None:
        return
    from sonde.calibrate.machine.judge import overheads, passes
    from sonde.calibrate.machine.steps import steps

    found.overheads, found.passes = overheads(found.device), passes(found.device)
    found.steps = steps(device=found.device, batches=found.effort.batches)


def _judge(found: Measured) -> None:
    if torch_or_none() is None:
        return
    from sonde.calibrate.machine.judge import judged
    from sonde.calibrate.machine.row import write

    with tempfile.TemporaryDirectory() as folder:
        row = Path(folder, "machine.csv")
        write(found, row)
        found.judged = judged(found.device, str(row))


def _disk(found: Measured, folder: Path) -> None:
    try:
        found.disk = disk(folder, found.effort.disk_bytes, np.random.default_rng(0))
    except OSError as error:
        found.missing.append(("disk", f"{folder}: {error.strerror or error}"))


def _loopback(found: Measured) -> None:
    try:
        found.loopback = loopback(found.effort.disk_bytes // 2)
    except (OSError, ValueError) as error:
        found.missing.append(("loopback", f"no TCP between two processes here: {error}"))

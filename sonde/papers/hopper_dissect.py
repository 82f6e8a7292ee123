"""The method of dissecting a chip by small measurements, on the machine that this runs on; a GPU where there is one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sonde.calibrate.machine import chase
from sonde.calibrate.machine.facts import Facts, facts, free_bytes, torch_or_none
from sonde.calibrate.machine.gemm import Product, Shape, products
from sonde.calibrate.machine.gpu import missing
from sonde.catalogue.device_files import EFFICIENCIES_SUFFIX
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most

SEEDS = 3
NARROW = Shape(1024, 1024, 1024)

CLAIMS = {
    "held-out": Claim(
        "what is measured in parts predicts a transformer that was not measured", None, "%",
        "largest error over a prompt and two decoding batches; the bar is 20 %", at_most(20.0),
        "from peaks and the catalogue's efficiencies alone: the same error", at_least(20.0),
    ),
    "levels": Claim(
        "a pointer chase shows the first level of cache where it is", None, "×",
        "end of the curve's first plateau over the size that the system states", Range(0.5, 1.5),
        "a walk in order of addresses: how much slower memory is than the first level, over the same of a random one",
        at_most(0.5),
    ),
    "narrow": Claim(
        "8-bit products are twice as fast as 16-bit ones", 2.0, "×", "INT8 over BF16 here; FP8 over FP16 on Hopper",
        Range(1.5, 2.5), "FP16 over BF16, which are as wide: the same ratio", Range(high=1.25), recalled=True,
    ),
    "dsm": Claim(
        "loads from another multiprocessor's memory take a third less time than the L2 cache", 180.0, "cycles",
        "distributed shared memory of an H100", Range(160.0, 200.0), recalled=True,
    ),
    "wgmma": Claim(
        "mma reaches about 60 % of what wgmma reaches", 60.0, "%", "tensor cores of an H100", Range(50.0, 70.0),
        recalled=True,
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim, measured now on this machine."""
    said = facts()
    progress(0, 3, "latency by size")
    levels, note = _levels(said)
    progress(1, 3, "products by precision")
    narrow = _narrow()
    progress(2, 3, "all parts, and a transformer that is none of them")
    held_out, notes = _held_out()
    hopper = f"needs instructions that only Hopper GPUs have ({missing() or 'no triton program here issues them'})"
    rows = (held_out, levels, narrow, *(CLAIMS[name].not_run(hopper) for name in ("dsm", "wgmma")))
    return Reproduction(rows, (note, *notes))


def slowdown(curve: list[chase.Latency]) -> float:
    """Return by how much a load from the largest buffer is slower than one from the smallest."""
    return curve[-1].seconds / curve[0].seconds


def _levels(said: Facts) -> tuple[Row, str]:
    claim = CLAIMS["levels"]
    stated = min((cache.bytes for cache in said.caches if cache.level == 1), default=0)
    if not stated:
        return claim.not_run("the system does not state the size of its caches"), "no caches are stated"
    sizes = chase.sizes(said.last_cache, free_bytes())
    found, ratios = [], []
    curve: list[chase.Latency] = []
    for seed in range(SEEDS):
        curve = list(chase.chase(sizes, np.random.default_rng(seed), steps=1 << 19))
        found.append(chase.levels(curve)[0].bytes / stated)
        ratios.append(slowdown(in_order([sizes[0], sizes[-1]])) / slowdown(curve))
    shown = ", ".join(f"{level.name} {1e9 * level.seconds:.3g} ns" for level in chase.levels(curve))
    why = "the paper gives cycles of the H100's levels; here the method is the claim"
    return claim.came_out(found, why, control=float(np.max(ratios))), f"Levels of the last walk: {shown}."


def in_order(sizes: list[int]) -> list[chase.Latency]:
    """Return the latency of a walk from each line to the next in memory, which a prefetcher sees through."""
    return list(chase.chase(sizes, _Straight(0), steps=1 << 19))  # type: ignore[arg-type]


class _Straight:
    """Stands for a random generator whose permutations are none."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def permutation(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the numbers below `count` as they are."""
        return np.arange(count, dtype=np.int64)


def _narrow() -> Row:
    claim = CLAIMS["narrow"]
    if torch_or_none() is None:
        return claim.not_run("needs torch: pip install 'sonde[run]'")
    why = "another chip, another 8-bit format; the claim is of width alone"
    return claim.came_out([_gain("int8") for _ in range(SEEDS)], why, control=_gain("fp16"))


def _gain(other: str) -> float:
    """Return by how much products in a precision are faster than those in BF16."""

    def rate(precision: str) -> float:
        found: list[Product] = list(products(precision, [NARROW], threads=1))
        return max((product.flops_per_s for product in found), default=float("nan"))

    return rate(other) / rate("bf16")


def _held_out() -> tuple[Row, Iterator[str]]:
    claim = CLAIMS["held-out"]
    if torch_or_none() is None:
        return claim.not_run("needs torch: pip install 'sonde[run]'"), iter(())
    from sonde.calibrate.machine.judge import Judged, judged
    from sonde.calibrate.machine.measured import measure
    from sonde.calibrate.machine.row import write

    worst, plain, found = [], [], list[Judged]()
    for _ in range(SEEDS):
        parts = measure(quick=True)
        found = parts.judged
        worst.append(100 * max(abs(one.error) for one in found))
        with tempfile.TemporaryDirectory() as folder:
            row = Path(folder, "machine.csv")
            write(parts, row)
            row.with_suffix(EFFICIENCIES_SUFFIX).unlink()
            plain.append(100 * max(abs(one.error) for one in judged(parts.device, str(row))))
    why = "the paper predicts nothing; the bar is what a measurement must be good for"
    notes = (
        f"{one.step}: {1e3 * one.measured_s:.1f} ms measured, {1e3 * one.predicted_s:.1f} ms predicted."
        for one in found
    )
    return claim.came_out(worst, why, control=float(np.min(plain))), notes


PAPER = Paper(
    "hopper-dissect", "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024, "IPDPS",
    "https://arxiv.org/abs/2402.13499", CLAIMS, reproduce, measured=True,
)  # fmt: skip

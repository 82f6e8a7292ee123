"""From measurements to what a device reaches: constants of the cost model's curves, by least squares of log time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sonde.calibrate.machine.attention import Attention
from sonde.calibrate.machine.gemm import Product


class Reached(NamedTuple):
    """Shares of peak compute and bandwidth, rows at half of it, and how far the fit is off (median of relative)."""

    compute: float
    memory: float
    half_rows: float
    error: float


def product_seconds(
    reached: Reached, found: Sequence[Product], peaks: tuple[float, float], start_s: float
) -> list[float]:
    """Return what the cost model says of products: the longer of compute and memory, and the start.

    `peaks`: FLOP/s and bytes/s.
    """
    return [
        max(
            product.shape.flops / (peaks[0] * reached.compute) * (1 + reached.half_rows / product.shape.m),
            product.shape.moved(product.precision) / (peaks[1] * reached.memory),
        )
        + start_s
        for product in found
    ]


def fit_products(found: Sequence[Product], peaks: tuple[float, float], start_s: float) -> Reached:
    """Return the constants with the least squared log error over products, by a grid over all three."""
    flops = np.array([product.shape.flops for product in found], dtype=np.float64)
    moved = np.array([product.shape.moved(product.precision) for product in found], dtype=np.float64)
    rows = np.array([product.shape.m for product in found], dtype=np.float64)
    log = np.log([product.seconds for product in found])
    memory = np.geomspace(0.02, 1.0, 60)
    moving = moved / (peaks[1] * memory[:, None])
    best, error = Reached(1.0, 1.0, 0.0, np.inf), np.inf
    for half in (0.0, *np.geomspace(0.125, 128, 31)):
        for compute in np.geomspace(0.05, 1.0, 60):
            computing = flops / (peaks[0] * compute) * (1 + half / rows)
            off = np.log(np.maximum(computing, moving) + start_s) - log
            squared = np.sum(off * off, axis=1)
            at = int(np.argmin(squared))
            if squared[at] < error:
                error = float(squared[at])
                median = float(np.median(np.abs(np.expm1(off[at]))))
                best = Reached(float(compute), float(memory[at]), float(half), median)
    return best


def fit_prefill(found: Sequence[Attention], peak: float, start_s: float) -> float:
    """Return the share of peak compute that attention in prompts reaches: the median over lengths."""
    shares = [it.flops / peak / max(it.seconds - start_s, 1e-9) for it in found if it.phase == "prefill"]
    return _share(float(np.median(shares)))


def fit_decode(found: Sequence[Attention], peaks: tuple[float, float], start_s: float) -> tuple[float, float]:
    """Return the shares of peak FLOP/s and of bytes/s that attention in decoding reaches: the medians over shapes.

    Each query has a cache of its own there, so that one of the two is a floor; where several queries share one, the
    arithmetic grows with them, and on a CPU that is what limits.
    """
    decodes = [(it, max(it.seconds - start_s, 1e-9)) for it in found if it.phase == "decode"]
    compute = float(np.median([it.flops / peaks[0] / seconds for it, seconds in decodes]))
    memory = float(np.median([it.bytes / peaks[1] / seconds for it, seconds in decodes]))
    return _share(compute), _share(memory)


def _share(value: float) -> float:
    return float(np.clip(value, 1e-3, 1.0))

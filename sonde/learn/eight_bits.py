"""Numbers of eight bits: E4M3 with a scale for a tile or for all, and logarithms in even steps (LogFMT)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: the largest number of E4M3, and the exponent below which its steps stay the same
LARGEST, LEAST = 448.0, -6
TILE = 128


def e4m3(x: Floats) -> Floats:
    """Return x rounded to the nearest number of E4M3 (ties to even), at most the largest."""
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(x), 1e-30))), LEAST)
    step = np.exp2(exponent - 3)
    found: Floats = np.clip(np.rint(x / step) * step, -LARGEST, LARGEST).astype(np.float32)
    return found


def tiled(x: Floats, rows: int = 1, columns: int = TILE) -> Floats:
    """Return x [n, m] through E4M3 with a scale for every tile of `rows` by `columns` numbers; they must divide it."""
    cut = x.reshape(x.shape[0] // rows, rows, x.shape[1] // columns, columns)
    scale = np.maximum(np.abs(cut).max(axis=(1, 3), keepdims=True), 1e-20) / LARGEST
    found: Floats = (e4m3(cut / scale) * scale).reshape(x.shape).astype(np.float32)
    return found


def whole(x: Floats) -> Floats:
    """Return x through E4M3 with one scale for all of it."""
    return tiled(x, *x.shape)


def logarithms(x: Floats, bits: int = 8) -> Floats:
    """Return x [n, m] through LogFMT: a sign, and the logarithm in 2^(bits-1) - 1 even steps from the least to the most
    of a tile of 1 by 128, over at most 2^5 octaves; one code is zero. Rounded to the nearest number and not logarithm.
    """
    cut = np.abs(x).reshape(x.shape[0], -1, TILE)
    top = np.log(np.maximum(cut.max(axis=2, keepdims=True), 1e-30))
    least = np.log(np.maximum(np.where(cut > 0, cut, np.inf).min(axis=2, keepdims=True), 1e-30))
    least = np.maximum(least, top - 32 * np.log(2.0))
    codes = 2 ** (bits - 1) - 2
    step = np.maximum((top - least) / codes, 1e-12)
    low = np.clip(np.floor((np.log(np.maximum(cut, 1e-30)) - least) / step), 0, codes)
    below, above = np.exp(least + step * low), np.exp(least + step * np.minimum(low + 1, codes))
    near = np.where(cut - below < above - cut, below, above)
    near = np.where(cut < np.exp(least) / 2, 0.0, near)
    found: Floats = (np.sign(x) * near.reshape(x.shape)).astype(np.float32)
    return found


def lost(exact: Floats, rounded: Floats) -> float:
    """Return the size of a row's error over the size of the row, on average over rows."""
    wide = exact.astype(np.float64)
    errors = np.linalg.norm(wide - rounded, axis=1) / np.maximum(np.linalg.norm(wide, axis=1), 1e-300)
    return float(errors.mean())

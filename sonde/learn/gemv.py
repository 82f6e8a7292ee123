"""A product of one row with weights of any width from 1 to 8 bits, read from their bytes and no others; its time.

The kernel runs over four inputs at a time and adds into a tile of 8·LANES outputs. Of the 8 outputs of a lane the
codes of one input are `bits` bytes, of which one or two hold a code. A code is multiplied where it lies in its byte:
the power of two that this brings is taken out of the sum.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sonde.learn.numbers import packed
from sonde.learn.packing import Tiles

LANES, GROUP = 128, 128
TILE = 8 * LANES
SIDE = 2048  # of the square matrix that is timed


class Dealt(Tiles):
    """Tiles for `product`, in signed integers of 1 to 8 bits.

    codes    u1 [tiles, inputs/4, bits, 4, LANES]: bit by bit, the outputs l, LANES + l, ... of lane l; read in order
    scales   f4 [tiles, inputs/GROUP, TILE]
    """


class Timed(NamedTuple):
    """Seconds of one product with a matrix of SIDE², by where it lies, and the bytes of the matrix."""

    beyond: float  # in memory, since caches hold others
    held: float  # in cache: what arithmetic takes
    nbytes: int


def dealt(weights: NDArray[Any], bits: int) -> Dealt:
    """Return [outputs, inputs] rounded to `bits`; outputs are filled up to a tile, inputs a multiple of GROUP."""
    outputs, inputs = weights.shape
    tiles = -(-outputs // TILE)
    whole = np.zeros((tiles * TILE, inputs), dtype=np.float32)
    whole[:outputs] = weights
    grouped = whole.reshape(tiles * TILE, -1, GROUP)
    top = max(2 ** (bits - 1) - 1, 1)
    low = 2 ** (bits - 1)
    scales = np.maximum(np.abs(grouped).max(axis=2), 1e-12) / top
    signed = np.clip(np.rint(grouped / scales[:, :, None]), -low, low - 1).reshape(tiles, 8, LANES, inputs)
    codes = (signed + low).astype(np.uint8).transpose(0, 3, 2, 1).reshape(tiles, inputs // 4, 4, LANES, 8)
    return Dealt(
        np.ascontiguousarray(packed(codes, bits).transpose(0, 1, 4, 2, 3)),
        np.ascontiguousarray(scales.reshape(tiles, TILE, -1).transpose(0, 2, 1).astype(np.float32)),
        bits,
        outputs,
    )


def product(held: Dealt, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the matrix times x [inputs]: [outputs]."""
    out = np.empty((len(held.codes), TILE), dtype=np.float32)
    _product(held.codes, held.scales, x, out, held.bits)
    return out.reshape(-1)[: held.outputs]


def timed(bits: int, beyond: int, tries: int = 3) -> Timed:
    """Return what a product takes with matrices that fill `beyond` bytes, one after the other, and with one in cache.

    `bits` from 1 to 8, or 32 for weights as they are, tile by tile too. Processor time of this thread, the best of
    `tries`; that in cache is of a tile of SIDE/8 inputs, scaled.
    """
    draws = np.random.default_rng(bits)
    weights, x = draws.standard_normal((SIDE, SIDE)).astype(np.float32), draws.standard_normal(SIDE).astype(np.float32)
    small, short = weights[:TILE, : SIDE // 8], x[: SIDE // 8]
    if bits == 32:
        count = max(1, beyond // weights.nbytes)
        wide = [tiled(weights) for _ in range(count)]
        tile, nbytes = tiled(small), weights.nbytes
        far = best(lambda: [wide_product(one, x) for one in wide], tries)
        near = best(lambda: [wide_product(tile, short) for _ in range(50)], 3 * tries)
    else:
        one = dealt(weights, bits)
        count, nbytes = max(1, beyond // one.nbytes), one.nbytes
        copies = [one._replace(codes=one.codes.copy(), scales=one.scales.copy()) for _ in range(count)]
        part = dealt(small, bits)
        far = best(lambda: [product(copy, x) for copy in copies], tries)
        near = best(lambda: [product(part, short) for _ in range(50)], 3 * tries)
    return Timed(far / count, near / 50 * weights.size / small.size, nbytes)


def bandwidth(tries: int = 5) -> float:
    """Return the bytes/s that one thread reads at: what sums a long row takes."""
    row = np.ones(16 << 20, dtype=np.float32)
    return row.nbytes / best(lambda: _sum(row), tries)


def tiled(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return weights [outputs, inputs] (whole tiles) as [tiles, inputs, TILE], in 32 bits."""
    outputs, inputs = weights.shape
    return np.ascontiguousarray(weights.reshape(outputs // TILE, TILE, inputs).transpose(0, 2, 1))


def wide_product(weights: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product of tiles in 32 bits with x [inputs]: [outputs]."""
    out = np.zeros((len(weights), TILE), dtype=np.float32)
    _wide(weights, x, out)
    return out.reshape(-1)


def best(run: Any, tries: int) -> float:
    """Return the processor seconds of this thread in the quickest of `tries` runs, after one that does not count."""
    taken = []
    for _ in range(tries + 1):
        begin = time.thread_time()
        run()
        taken.append(time.thread_time() - begin)
    return min(taken[1:])


@njit(cache=True, nogil=True, fastmath=True)
def _product(codes: Any, scales: Any, x: Any, out: Any, bits: Any) -> None:
    tiles, fours, _, _, lanes = codes.shape
    part, low = np.empty((8, lanes), np.float32), np.float32(1 << (bits - 1))
    for tile in range(tiles):
        out[tile] = 0
        for group in range(4 * fours // GROUP):
            part[:] = 0
            total = np.float32(0)
            for four in range(group * GROUP // 4, (group + 1) * GROUP // 4):
                row = x[4 * four : 4 * four + 4]
                total += row[0] + row[1] + row[2] + row[3]
                for j in range(8):
                    first, shift = (j * bits) >> 3, (j * bits) & 7
                    if shift + bits <= 8:
                        _whole(codes[tile, four, first], row, ((1 << bits) - 1) << shift, part[j])
                    else:
                        _across(codes[tile, four, first : first + 2], row, shift, bits, part[j])
            for j in range(8):
                down = np.float32(1.0 / (1 << ((j * bits) & 7)))
                for lane in range(lanes):
                    at = j * lanes + lane
                    out[tile, at] += (part[j, lane] * down - low * total) * scales[tile, group, at]


@njit(cache=True, nogil=True, fastmath=True)
def _whole(codes: Any, x: Any, mask: Any, part: Any) -> None:
    """Add four inputs' codes that lie in one byte each."""
    a, b, c, d = codes[0], codes[1], codes[2], codes[3]
    m, p, q, r, s = np.uint8(mask), x[0], x[1], x[2], x[3]
    for lane in range(len(part)):
        one = p * np.float32(np.int32(a[lane] & m)) + q * np.float32(np.int32(b[lane] & m))
        part[lane] += one + r * np.float32(np.int32(c[lane] & m)) + s * np.float32(np.int32(d[lane] & m))


@njit(cache=True, nogil=True, fastmath=True)
def _across(codes: Any, x: Any, shift: Any, bits: Any, part: Any) -> None:
    """Add four inputs' codes that lie across two bytes each."""
    m, n = np.uint8((255 << shift) & 255), np.uint8((1 << (bits - 8 + shift)) - 1)
    for i in range(0, 4, 2):
        a, b, c, d, p, q = codes[0, i], codes[1, i], codes[0, i + 1], codes[1, i + 1], x[i], x[i + 1]
        for lane in range(len(part)):
            one = np.int32(a[lane] & m) | (np.int32(b[lane] & n) << 8)
            two = np.int32(c[lane] & m) | (np.int32(d[lane] & n) << 8)
            part[lane] += p * np.float32(one) + q * np.float32(two)


@njit(cache=True, nogil=True, fastmath=True)
def _wide(weights: Any, x: Any, out: Any) -> None:
    tiles, inputs, width = weights.shape
    for tile in range(tiles):
        part = out[tile]
        for k in range(inputs):
            row, value = weights[tile, k], x[k]
            for j in range(width):
                part[j] += value * row[j]


@njit(cache=True, nogil=True, fastmath=True)
def _sum(row: Any) -> float:
    total = np.float32(0)
    for i in range(len(row)):
        total += row[i]
    return float(total)

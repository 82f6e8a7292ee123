"""Weights packed into 8 or 4 bits for good, not quantised for show: codes, one scale a group, and their product.

A group is GROUP weights of one output, next to each other in input. Codes lie so that the outputs of one tile are
neighbours: the product runs over inputs and adds into TILE sums at once, with no sum across lanes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

GROUP, TILE = 32, 128


class Tiles(NamedTuple):
    """A matrix of [outputs, inputs] in `bits`: codes, and scales of their groups, cut into whole tiles of outputs."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    outputs: int

    @property
    def nbytes(self) -> int:
        """Return the bytes that the matrix takes."""
        return self.codes.nbytes + self.scales.nbytes


class Packed(Tiles):
    """Tiles for `product`, in 8 or 4 bits.

    codes     u1 [tiles, inputs, TILE·bits/8]; of 4 bits, outputs j and j + TILE/2 of a tile share a byte
    scales    f4 [tiles, inputs/GROUP, TILE]
    """


def bytes_per_weight(bits: int) -> float:
    """Return the bytes of one packed weight with its share of the scale."""
    return bits / 8 + 4 / GROUP


def quantise(weights: NDArray[Any], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return codes [outputs, inputs] from -2^(bits-1)+1 to 2^(bits-1)-1 and scales [outputs, inputs/GROUP].

    Round to nearest; the scale is the largest size in the group over the largest code.
    """
    outputs, inputs = weights.shape
    grouped = np.asarray(weights, dtype=np.float32).reshape(outputs, inputs // GROUP, GROUP)
    top = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(grouped).max(axis=2), 1e-12) / top
    codes = np.clip(np.rint(grouped / scales[:, :, None]), -top, top)
    return codes.reshape(outputs, inputs).astype(np.int8), scales.astype(np.float32)


def dequantised(weights: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """Return the weights as they are after packing into `bits` (2 to 8): what a product with them computes."""
    codes, scales = quantise(weights, bits)
    return (codes.astype(np.float32).reshape(*scales.shape, GROUP) * scales[:, :, None]).reshape(weights.shape)


def pack(weights: NDArray[Any], bits: int) -> Packed:
    """Return [outputs, inputs] packed; outputs are filled up to a whole tile, inputs must be a multiple of GROUP."""
    outputs, inputs = weights.shape
    codes, scales = quantise(weights, bits)
    tiles = -(-outputs // TILE)
    whole = np.zeros((tiles * TILE, inputs), dtype=np.int8)
    whole[:outputs] = codes
    scale = np.zeros((tiles * TILE, inputs // GROUP), dtype=np.float32)
    scale[:outputs] = scales
    tiled = whole.reshape(tiles, TILE, inputs).transpose(0, 2, 1)
    if bits == 4:
        shifted = (tiled + 8).astype(np.uint8)
        tiled = shifted[:, :, : TILE // 2] | (shifted[:, :, TILE // 2 :] << 4)
    stored = np.ascontiguousarray(tiled).view(np.uint8)
    return Packed(stored, np.ascontiguousarray(scale.reshape(tiles, TILE, -1).transpose(0, 2, 1)), bits, outputs)


def product(packed: Packed, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the matrix times x [inputs]: [outputs], reading the packed bytes and no others."""
    out = np.empty((len(packed.codes), TILE), dtype=np.float32)
    if packed.bits == 8:
        _bytes(packed.codes.view(np.int8), packed.scales, x, out)
    else:
        _halves(packed.codes, packed.scales, x, out)
    return out.reshape(-1)[: packed.outputs]


@njit(cache=True, nogil=True, fastmath=True)
def _bytes(codes: Any, scales: Any, x: Any, out: Any) -> None:
    tiles, inputs, width = codes.shape
    total, part = np.empty(width, np.float32), np.empty(width, np.float32)
    for tile in range(tiles):
        total[:] = 0
        for group in range(inputs // GROUP):
            part[:] = 0
            for k in range(group * GROUP, (group + 1) * GROUP):
                value = x[k]
                for j in range(width):
                    part[j] += value * np.float32(codes[tile, k, j])
            for j in range(width):
                total[j] += part[j] * scales[tile, group, j]
        out[tile] = total


@njit(cache=True, nogil=True, fastmath=True)
def _halves(codes: Any, scales: Any, x: Any, out: Any) -> None:
    tiles, inputs, width = codes.shape
    low, high = np.empty(width, np.float32), np.empty(width, np.float32)
    for tile in range(tiles):
        out[tile] = 0
        for group in range(inputs // GROUP):
            low[:] = 0
            high[:] = 0
            shift = np.float32(0)
            for k in range(group * GROUP, (group + 1) * GROUP):
                value = x[k]
                shift += value
                for j in range(width):
                    code = codes[tile, k, j]
                    low[j] += value * np.float32(code & 15)
                    high[j] += value * np.float32(code >> 4)
            for j in range(width):
                out[tile, j] += (low[j] - 8 * shift) * scales[tile, group, j]
                out[tile, width + j] += (high[j] - 8 * shift) * scales[tile, group, width + j]

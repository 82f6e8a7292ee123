"""Numbers of any width from 1 to 8 bits: what a code stands for, and codes packed next to each other in bytes.

Element k begins at bit k·width, so that one of 3, 5, 6 or 7 bits may lie across two bytes; nothing is lost between.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

_NAME = re.compile(r"^(?:(u?int)([1-8])|float([3-8])_e([1-7])m([0-6]))$")


class Number(NamedTuple):
    """A type of number: "int", "uint" or "float" (a sign, exponent and mantissa; every code is finite)."""

    name: str
    kind: str
    bits: int
    exponent: int = 0
    mantissa: int = 0


class Narrow(NamedTuple):
    """A matrix [outputs, inputs] held in narrow numbers: weight = code's value · scale + offset of its group.

    data      u1, bytes of packed codes, row by row
    scales    f2 [outputs, inputs/group];  offsets: the same, of "uint" alone
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float16]
    offsets: NDArray[np.float16] | None
    number: Number
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Return the bytes that the matrix takes: those of its arrays."""
        return self.data.nbytes + self.scales.nbytes + (0 if self.offsets is None else self.offsets.nbytes)


def number(name: str) -> Number:
    """Return the type of that name: "uint3", "int6", "float6_e3m2". Raises InputError where there is none."""
    found = _NAME.match(name)
    if found is None or (found[3] and 1 + int(found[4]) + int(found[5]) != int(found[3])):
        raise InputError("number", name, "must be int1 to int8, uint1 to uint8, or float3_e1m1 to float8_e5m2")
    if found[1]:
        return Number(name, found[1], int(found[2]))
    return Number(name, "float", int(found[3]), int(found[4]), int(found[5]))


def values(it: Number) -> NDArray[np.float32]:
    """Return what each of the 2^bits codes stands for."""
    codes = np.arange(2**it.bits)
    if it.kind == "uint":
        return codes.astype(np.float32)
    if it.kind == "int":  # two's complement
        return np.where(codes < 2 ** (it.bits - 1), codes, codes - 2**it.bits).astype(np.float32)
    bias = 2 ** (it.exponent - 1) - 1
    power = (codes >> it.mantissa) & (2**it.exponent - 1)
    part = (codes & (2**it.mantissa - 1)) / 2**it.mantissa
    size = np.where(power == 0, part * 2.0 ** (1 - bias), (1 + part) * 2.0 ** (power - bias))
    return np.asarray(np.where(codes >> (it.bits - 1), -size, size), dtype=np.float32)


def encoded(x: NDArray[Any], it: Number) -> NDArray[np.uint8]:
    """Return the code of the value nearest to each number of x; beyond the ends, that of the end."""
    table = values(it)
    order = np.argsort(table, kind="stable")
    middles = (table[order][1:] + table[order][:-1]) / 2
    return order[np.searchsorted(middles, x)].astype(np.uint8)


def packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes [..., n] as bytes [..., ⌈n·bits/8⌉]; the last byte is filled up with zeros."""
    single = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(single.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def unpacked(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the `count` codes [..., count] that bytes hold."""
    single = np.unpackbits(data, axis=-1, count=count * bits, bitorder="little")
    whole = single.reshape(*data.shape[:-1], count, bits) << np.arange(bits, dtype=np.uint8)
    return np.asarray(whole.sum(axis=-1), dtype=np.uint8)


def narrowed(weights: NDArray[Any], it: Number, group: int = 32) -> Narrow:
    """Return [outputs, inputs] in narrow numbers; a scale (and of "uint" an offset) for every `group` inputs.

    Round to nearest. Raises InputError where inputs are no multiple of the group.
    """
    outputs, inputs = weights.shape
    if inputs % group:
        raise InputError("group", group, f"must divide the {inputs} inputs")
    grouped = np.asarray(weights, dtype=np.float32).reshape(outputs, -1, group)
    table = values(it)
    offsets = None
    if it.kind == "uint":
        offsets = grouped.min(axis=2).astype(np.float16)
        grouped = grouped - offsets[:, :, None].astype(np.float32)
        most = grouped.max(axis=2)
    else:
        most = np.abs(grouped).max(axis=2)
    top = float(table.max()) or float(-table.min())  # of one bit with a sign: -1 alone
    scales = np.maximum(most / top, 1e-7).astype(np.float16)
    codes = encoded(grouped / np.maximum(scales[:, :, None].astype(np.float32), 1e-7), it)
    return Narrow(packed(codes.reshape(outputs, inputs), it.bits), scales, offsets, it, (outputs, inputs))


def widened(held: Narrow) -> NDArray[np.float32]:
    """Return the matrix [outputs, inputs] that narrow numbers stand for, read from their bytes."""
    outputs, inputs = held.shape
    codes = unpacked(held.data, held.number.bits, inputs)
    found = values(held.number)[codes].reshape(outputs, held.scales.shape[1], -1) * held.scales[:, :, None]
    if held.offsets is not None:
        found = found + held.offsets[:, :, None]
    return found.reshape(outputs, inputs).astype(np.float32)

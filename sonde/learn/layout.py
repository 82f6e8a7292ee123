"""Register layouts: which thread holds which element of a tile, in which place, and how two of them compose (Tilus).

A layout maps (thread, place) to the index of an element. `spatial` gives every element to a thread of its own,
`local` all of them to one; f·g puts a whole g in the place of every element of f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.learn.numbers import packed, unpacked


@dataclass(frozen=True, eq=False)
class Layout:
    """`index` [threads, places, dimensions]: of the element, in a tile of `shape`, that a thread holds in a place."""

    shape: tuple[int, ...]
    index: NDArray[np.int64]

    @property
    def threads(self) -> int:
        """Return the number of threads."""
        return int(self.index.shape[0])

    @property
    def places(self) -> int:
        """Return how many elements each thread holds."""
        return int(self.index.shape[1])

    def __mul__(self, other: Any) -> Layout:
        """Return the composition self·other."""
        return composed(self, other) if isinstance(other, Layout) else NotImplemented

    def flat(self) -> NDArray[np.int64]:
        """Return [threads, places]: the elements by their number in row-major order."""
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(self.index, 2, 0)), self.shape), dtype=np.int64)


def spatial(*shape: int) -> Layout:
    """Return the layout that gives every element to a thread of its own, in row-major order."""
    return Layout(shape, _indices(shape)[:, None, :])


def local(*shape: int) -> Layout:
    """Return the layout that gives all elements to one thread, in row-major order."""
    return Layout(shape, _indices(shape)[None, :, :])


def composed(f: Layout, g: Layout) -> Layout:
    """Return f·g: thread t_f·T_g + t_g holds in place i_f·N_g + i_g the element index_f ⊙ shape_g + index_g.

    Raises InputError where the two differ in dimensions.
    """
    if len(f.shape) != len(g.shape):
        raise InputError("layout", g.shape, f"must have {len(f.shape)} dimensions, as {f.shape} has")
    index = f.index[:, None, :, None, :] * np.array(g.shape) + g.index[None, :, None, :, :]
    shape = tuple(a * b for a, b in zip(f.shape, g.shape, strict=True))
    return Layout(shape, index.reshape(f.threads * g.threads, f.places * g.places, len(shape)))


def bijective(layout: Layout) -> bool:
    """Return whether every element of the tile is held once, by one thread."""
    return bool(np.array_equal(np.sort(layout.flat(), axis=None), np.arange(math.prod(layout.shape))))


def dealt(codes: NDArray[np.uint8], layout: Layout, bits: int) -> NDArray[np.uint8]:
    """Return a tile's codes as bytes [threads, bytes] in which each thread's elements lie next to each other.

    A thread loads its bytes as they are, and looks at them as `places` numbers of `bits`: nothing is moved. Raises
    InputError where a thread's elements don't fill whole bytes.
    """
    if layout.places * bits % 8:
        raise InputError("layout", layout.places, f"elements of {bits} bits for each thread fill no whole bytes")
    return packed(codes.reshape(-1)[layout.flat()], bits)


def gathered(data: NDArray[np.uint8], layout: Layout, bits: int) -> NDArray[np.uint8]:
    """Return the tile's codes again, from what `dealt` made of them."""
    codes = np.empty(math.prod(layout.shape), dtype=np.uint8)
    codes[layout.flat()] = unpacked(data, bits, layout.places)
    return codes.reshape(layout.shape)


def _indices(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)

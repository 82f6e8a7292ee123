"""Measured operators as points: what each was asked to do, in seconds at the peak of its device, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """Measurements of one class of operators in one format, on one device, under one engine; columns of equal length.

    work, moved            seconds of its arithmetic at the peak, of its bytes at the peak bandwidth (of a
                           collective: of what a rank sends, at the bandwidth of the link)
    rows, columns          of a matrix product; 1 and infinite otherwise
    cast                   seconds at the peak bandwidth of the bytes moved to quantise activations
    tile_work, tile_moved  work and moved of one more cached token for every sequence (decoding attention)
    latency                seconds of the link (collectives);  ranks: devices that take part
    shape                  number that two points share if they are of the same matrices or heads
    seconds                what was measured
    """

    operator: str
    format: str
    device: str
    engine: str
    work: Floats
    moved: Floats
    rows: Floats
    columns: Floats
    cast: Floats
    tile_work: Floats
    tile_moved: Floats
    latency: Floats
    ranks: Floats
    shape: Floats
    seconds: Floats

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.seconds)

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Points:
        """Return the points that a mask or an index chooses."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in _COLUMNS})

    def thinned(self, most: int) -> Points:
        """Return at most `most` points, spread evenly over the order of the given ones."""
        if len(self) <= most:
            return self
        return self.where(np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64)))


_COLUMNS = tuple(field.name for field in fields(Points) if field.name not in ("operator", "format", "device", "engine"))


def points(key: tuple[str, str, str, str], seconds: Floats, **columns: Floats | float) -> Points:
    """Return the points of (operator, format, device, engine) with the columns given, the others neutral."""
    neutral = dict.fromkeys(_COLUMNS, 0.0) | {"rows": 1.0, "columns": np.inf, "ranks": 2.0}
    count = len(seconds)
    filled = {
        name: np.broadcast_to(np.asarray(columns.get(name, neutral[name]), dtype=np.float64), (count,)).copy()
        for name in _COLUMNS
        if name != "seconds"
    }
    operator, form, device, engine = key
    found = filled | {"seconds": np.asarray(seconds, dtype=np.float64)}
    return Points(operator, form, device, engine, *(found[name] for name in _COLUMNS))


def joined(groups: list[Points]) -> Points:
    """Return the points of several groups as one, which speaks of no single device or engine."""
    first = groups[0]
    columns = {name: np.concatenate([getattr(group, name) for group in groups]) for name in _COLUMNS}
    return Points(first.operator, first.format, "", "", **columns)

"""How quantised weights are stored on devices: blocks of codes with their scales, rows of `data/formats.csv`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from sonde.catalogue.rows import read, table
from sonde.errors import unknown


class Format(NamedTuple):
    """`weights` weights are stored in `bytes` bytes, scales and all."""

    name: str
    weights: int
    bytes: int
    source: str
    date: str

    @property
    def weight_bytes(self) -> float:
        """Return the bytes of one weight with its share of the scales."""
        return self.bytes / self.weights


def weight_format(name: str) -> Format:
    """Return the format of that name. Raises InputError where there is none."""
    if name not in formats():
        raise unknown("format", name, formats(), "format of weights")
    return formats()[name]


@cache
def formats() -> dict[str, Format]:
    """Return every format by its name."""
    rows = read(table("formats.csv"), "formats.csv", Format._fields)
    return {
        row["name"]: Format(row["name"], int(row["weights"]), int(row["bytes"]), row["source"], row["date"])
        for _, row in rows
    }

"""What a kernel keeps of its speed on a share of a device: P(R) by kind of work, rows of `data/interference.csv`.

A product keeps what it is given (P = R: that is how the share is defined). Kernels that wait for memory or links
reach most of their speed on a small share, which is what makes running them beside products worth it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from sonde.catalogue.rows import read, table
from sonde.errors import InputError, unknown

KINDS = ("compute", "memory", "network")
COLUMNS = ("profile", "kind", "share", "reached", "source", "date")


@dataclass(frozen=True)
class Interference:
    """P(R) of a device by kind: points (share R, speed P over that alone), straight between them, from 0 to 1."""

    points: Mapping[str, tuple[tuple[float, float], ...]]

    def speed(self, kind: str, share: float) -> float:
        """Return the speed of a kernel of `kind` on `share` of the device, over its speed on all of it."""
        at, reached = zip(*self.points[kind], strict=True)
        return float(np.interp(share, at, reached))


def profiles() -> tuple[str, ...]:
    """Return the names of the profiles that have rows."""
    return tuple(sorted({row["profile"] for _, row in read(table("interference.csv"), "interference.csv", COLUMNS)}))


@cache
def interference(profile: str = "gpu") -> Interference:
    """Return the profile of that name, checked. Raises InputError for an unknown name, or rows that make no curve."""
    if profile not in profiles():
        raise unknown("interference", profile, profiles(), "profile")
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for where, row in read(table("interference.csv"), "interference.csv", COLUMNS):
        if row["profile"] == profile:
            found.setdefault(row["kind"], []).append((float(row["share"]), float(row["reached"])))
            if not row["source"] or not row["date"]:
                raise InputError(where, profile, "needs a source and a date")
    return curves(found)


def curves(points: Mapping[str, list[tuple[float, float]]]) -> Interference:
    """Return P(R) from points by kind. Raises InputError where a curve does not rise from (0, 0) to (1, 1)."""
    for kind in KINDS:
        at = sorted(points.get(kind, ()))
        if len(at) < 2 or at[0] != (0.0, 0.0) or at[-1] != (1.0, 1.0):
            raise InputError(f"interference.{kind}", at, "must have points from (0, 0) to (1, 1)")
        steps = list(pairwise(at))
        if any(not math.isfinite(p + r) or q < p or s <= r for (r, p), (s, q) in steps):
            raise InputError(f"interference.{kind}", at, "must rise: more of the device is never slower")
    return Interference({kind: tuple(sorted(points[kind])) for kind in KINDS})

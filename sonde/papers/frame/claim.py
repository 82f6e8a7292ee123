"""A claim, what came out, and what that makes of the paper. The status is computed, never typed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Progress = Callable[[int, int, str], None]
Status = Literal["reproduced", "partly", "open"]


class Range(NamedTuple):
    """From `low` to `high`, both included."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        """Return whether `value` lies in it; NaN lies in none."""
        return self.low <= value <= self.high


ANYWHERE = Range()


def near(value: float, share: float) -> Range:
    """Return what differs from `value` by at most that share of it."""
    return Range(value - share * abs(value), value + share * abs(value))


def at_least(value: float) -> Range:
    """Return everything from `value` up."""
    return Range(low=value)


def at_most(value: float) -> Range:
    """Return everything up to `value`."""
    return Range(high=value)


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a paper says, and what must come out for it to count.

    value      the paper's figure in `unit`; None where it states none
    setup      on what, against what
    accept     where Sonde's figure must lie
    control    a case in which the technique must not help; `harmless` is where its figure must lie then
    recalled   whether the paper's figure is quoted from memory, and not read in the paper or its repository
    """

    text: str
    value: float | None
    unit: str
    setup: str
    accept: Range
    control: str = ""
    harmless: Range = ANYWHERE
    recalled: bool = False

    def came_out(
        self,
        ours: float | Sequence[float],
        why: str,
        *,
        control: float | Sequence[float] | None = None,
    ) -> Row:
        """Return the row of this claim. Several figures are seeds: their mean counts, their extremes are the spread."""
        values = np.atleast_1d(np.asarray(ours, dtype=np.float64))
        spread = (float(values.min()), float(values.max())) if len(values) > 1 else None
        return Row(self, float(values.mean()), None if control is None else float(np.mean(control)), spread, why)

    def not_run(self, why: str) -> Row:
        """Return the row of a claim that was not tried, which is as good as one that does not hold."""
        return Row(self, None, None, None, why)


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one claim: `ours` is None where it was not tried; `spread` is over seeds; `why` they differ."""

    claim: Claim
    ours: float | None
    control: float | None
    spread: tuple[float, float] | None
    why: str

    @property
    def holds(self) -> bool:
        """Return whether our figure is where it must be, and that of the control too."""
        if self.ours is None or not self.claim.accept.holds(self.ours):
            return False
        return not self.claim.control or (self.control is not None and self.claim.harmless.holds(self.control))

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is printed by `sonde reproduce --json`."""
        claim = self.claim
        return {
            "claim": claim.text, "setup": claim.setup, "unit": claim.unit, "paper": claim.value, "ours": self.ours,
            "accepted": _ends(claim.accept), "holds": self.holds, "control": self.control,
            "control_is": claim.control or None,
            "control_accepted": _ends(claim.harmless) if claim.control else None,
            "spread": list(self.spread) if self.spread else None, "why": self.why, "recalled": claim.recalled,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reproduction:
    """All that came of one paper."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """Return "reproduced" where every claim holds, "open" where none does, else "partly"."""
        held = [row.holds for row in self.rows]
        if held and all(held):
            return "reproduced"
        return "partly" if any(held) else "open"


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper: what it is, what it claims (the first claim is its headline), and the experiment.

    run        what `sonde reproduce` runs; it calls its argument with (done, total, what is done now)
    measured   whether the figures are times of this machine, so that they differ from run to run
    """

    id: str
    title: str
    year: int
    venue: str
    link: str
    claims: Mapping[str, Claim]
    run: Callable[[Progress], Reproduction]
    measured: bool = False

    @property
    def headline(self) -> Claim:
        """Return the claim that stands for the paper in a list."""
        return next(iter(self.claims.values()))


def _ends(ends: Range) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in ends]

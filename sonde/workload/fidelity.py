"""How like its trace the traffic is that a profile draws: the figures of both, and the error between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sonde.workload.describe import Description, describe
from sonde.workload.generate import generate
from sonde.workload.profile import Profile
from sonde.workload.profile import profile as find_profile
from sonde.workload.readers import read
from sonde.workload.requests import Requests

#: figure -> (largest error that counts as alike, whether it is relative)
LIMITS: dict[str, tuple[float, bool]] = {
    **{
        f"{column} {figure}": (0.03, True)
        for column in ("prompt", "output")
        for figure in ("mean", "p50", "p90", "p99")
    },
    "rank correlation": (0.05, False),
    "CV of gaps": (0.10, True),
}


class Error(NamedTuple):
    """One figure of a trace, the drawn value that is farthest from it over the seeds, and by how much.

    `error` is relative to the trace where `relative`, else the difference; `limit` is the most that counts as alike.
    """

    figure: str
    trace: float
    farthest: float
    error: float
    limit: float
    relative: bool

    @property
    def alike(self) -> bool:
        """Return whether the error is within the limit."""
        return abs(self.error) <= self.limit


def compare(trace: Requests, profile: Profile | str | Path, seeds: Sequence[int] = (0, 1, 2)) -> list[Error]:
    """Return the worst error over `seeds` of every figure, each draw having as many requests as the trace."""
    known = profile if isinstance(profile, Profile) else find_profile(profile)
    wanted = _figures(describe(trace))
    drawn = [_figures(describe(generate(known, count=trace.n, seed=seed))) for seed in seeds]
    rows = []
    for figure, (limit, relative) in LIMITS.items():
        scale = wanted[figure] if relative else 1.0
        errors = [(one[figure] - wanted[figure]) / scale for one in drawn]
        worst = max(range(len(errors)), key=lambda index: abs(errors[index]))
        rows.append(Error(figure, wanted[figure], drawn[worst][figure], errors[worst], limit, relative))
    return rows


def table(path: str | Path, profile: Profile | str | Path, seeds: Sequence[int] = (0, 1, 2)) -> str:
    """Return the comparison of a trace file with a profile as a table in Markdown."""
    lines = ["| figure | trace | drawn | error | limit |", "|---|---|---|---|---|"]
    for row in compare(read(path), profile, seeds):
        error = f"{100 * row.error:+.2f} %" if row.relative else f"{row.error:+.4f}"
        limit = f"{100 * row.limit:g} %" if row.relative else f"{row.limit:g}"
        lines.append(f"| {row.figure} | {row.trace:,.4g} | {row.farthest:,.4g} | {error} | {limit} |")
    return "\n".join(lines)


def _figures(found: Description) -> dict[str, float]:
    """Return the figures that have limits."""
    columns = {"prompt": found.prompt_tokens, "output": found.output_tokens}
    lengths = {f"{name} {figure}": values[figure] for name, values in columns.items() for figure in values}
    return lengths | {"rank correlation": found.rank_correlation, "CV of gaps": float(found.burstiness["cv"])}

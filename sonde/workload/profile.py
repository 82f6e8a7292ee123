"""Profiles: a trace as a few kilobytes of statistics, from which traffic like it can be drawn.

A profile says when requests arrive (`Arrivals`), how long they are (`Lengths`), and, where the trace shows it, how
they form conversations (`Sessions`) and share prefixes (`Prefix`). It holds no request of the trace.
"""

from __future__ import annotations

from datetime import date as calendar
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from sonde.errors import InputError, unknown
from sonde.workload.arrivals import Arrivals, fit_arrivals
from sonde.workload.lengths import Lengths, fit_lengths
from sonde.workload.node import Node, told
from sonde.workload.prefix import Prefix, fit_prefix
from sonde.workload.requests import Requests
from sonde.workload.sessions import Sessions, fit_sessions

__all__ = ["Profile", "dump", "fit", "load", "profile", "profile_names", "save"]

HEADER = (
    "# Statistics of {requests:,} requests over {span_s:g} s: a profile that Sonde draws traffic from (`sonde trace "
    "generate`).\n# {source}, fitted {date}. Times in s, lengths in tokens; docs/workload.md says what each key is.\n"
)
_SHIPPED = files("sonde.workload") / "data" / "profiles"


class Profile(Node):
    """The statistics of a trace of `requests` requests over `span_s`, from `source`, fitted on `date`."""

    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    requests: int = Field(ge=1)
    span_s: float = Field(gt=0, allow_inf_nan=False)
    arrivals: Arrivals
    lengths: Lengths
    sessions: Sessions | None = None
    prefix: Prefix | None = None

    def without_ticks(self) -> Profile:
        """Return the same profile with times off their grid: the grid is the log's, seldom the users'."""
        return self.model_copy(update={"arrivals": self.arrivals.model_copy(update={"tick_s": 0.0})})


def fit(requests: Requests, name: str, source: str, date: str | None = None) -> Profile:
    """Return the profile of a trace; `date` is ISO, today's where None. Raises InputError where it has no times."""
    return Profile(
        name=name,
        source=source,
        date=date or calendar.today().isoformat(),
        requests=requests.n,
        arrivals=fit_arrivals(requests, name),
        span_s=round(requests.span_s, 6),
        lengths=fit_lengths(requests),
        sessions=fit_sessions(requests),
        prefix=fit_prefix(requests),
    )


def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles that come with Sonde."""
    return tuple(sorted(item.name.removesuffix(".yaml") for item in _SHIPPED.iterdir() if item.name.endswith(".yaml")))


def profile(name_or_path: str | Path) -> Profile:
    """Return a profile of Sonde's by name, or one from a file (anything with a suffix or a slash is a path)."""
    name = str(name_or_path)
    if name in profile_names():
        return _shipped(name)
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml", ".json"} or len(path.parts) > 1 or path.is_file():
        return load(path)
    raise unknown("profile", name, profile_names(), "profile", see="sonde show profiles")


def load(path: str | Path) -> Profile:
    """Return the profile in a YAML (or JSON) file. Raises InputError with the key that is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), str(error), "must be a profile, a YAML file") from error
    return _parse(text, str(path))


def save(fitted: Profile, path: str | Path) -> None:
    """Write a profile as YAML that `load` reads back equal."""
    Path(path).write_text(text(fitted), encoding="utf-8")


dump = save


def text(fitted: Profile) -> str:
    """Return a profile as YAML: blocks for what has parts, one line for each row of numbers."""
    tree = fitted.model_dump(mode="json", exclude_none=True)
    body = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
    return HEADER.format(**tree) + body


@cache
def _shipped(name: str) -> Profile:
    return _parse((_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")


def _parse(content: str, path: str) -> Profile:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        tree = yaml.load(content, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        raise InputError(place, str(getattr(error, "problem", error)), "must be YAML") from error
    if not isinstance(tree, dict):
        raise InputError(path, str(tree)[:60], "must be a profile: keys name, source, date, arrivals, lengths")
    if "date" in tree:
        tree["date"] = str(tree["date"])
    try:
        return Profile.model_validate(tree)
    except ValidationError as error:
        raise told(error, Profile, path) from error

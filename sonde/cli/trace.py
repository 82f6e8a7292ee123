"""`sonde trace`: what is in a trace, a profile fitted from it, and traffic drawn from a profile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sonde.cli.output import emit, fields, json_option, note
from sonde.units import parse

if TYPE_CHECKING:
    from sonde.workload.requests import Requests


@click.group()
def trace() -> None:
    """Describe traces, fit profiles from them, generate traffic from profiles."""


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def describe(file: Path, as_json: bool) -> None:
    """Describe the requests of FILE: their rate, how bursty they are, their lengths and how those hang together."""
    from sonde.workload.describe import describe as summary
    from sonde.workload.readers import read

    row = summary(read(file))
    emit(row) if as_json else fields(str(file), row)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the profile goes (YAML).")
@click.option("--name", help="Name of the profile; that of FILE where absent.")
@click.option("--source", default="", help="Where the trace comes from, to be kept in the profile.")
@json_option
def fit(file: Path, out: Path, name: str | None, source: str, as_json: bool) -> None:
    """Fit a profile from FILE: derived statistics only, small enough to share, from which traffic can be drawn."""
    from sonde.workload import profile
    from sonde.workload.readers import read

    fitted = profile.fit(read(file), name or file.name.partition(".")[0], source or file.name)
    profile.save(fitted, out)
    note(f"profile: {out}")
    if as_json:
        emit(fitted.model_dump(mode="json"))


@trace.command()
@click.argument("profile")
@click.option("--out", type=click.Path(path_type=Path), help="CSV file to write; stdout where absent.")
@click.option("--rate", help='Mean rate, such as "8/s"; the profile\'s own where absent.')
@click.option("--duration", help='Length of the traffic, such as "10 min"; that of the profile where absent.')
@click.option("--requests", type=click.IntRange(1), help="At most so many requests.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all that is drawn.")
@click.option("--hashes", is_flag=True, help="Also hashes of the prompts' blocks, where the profile knows prefixes.")
@click.option(
    "--hit-rate",
    type=click.FloatRange(0, 1),
    help="Hashes such that an endless cache finds this share of prompt tokens.",
)
@json_option
def generate(
    profile: str,
    out: Path | None,
    rate: str | None,
    duration: str | None,
    requests: int | None,
    seed: int,
    hashes: bool,
    hit_rate: float | None,
    as_json: bool,
) -> None:
    """Draw traffic from PROFILE, by name or file, as CSV that every verb reads.

    With --json, stdout holds a description of what was drawn, and the traffic itself goes to --out only.
    """
    from sonde.workload import describe, generate
    from sonde.workload.prefix import with_hit_rate

    drawn = generate.generate(
        profile,
        rate=None if rate is None else parse(rate, "rate", "--rate"),
        duration_s=None if duration is None else parse(duration, "time", "--duration"),
        count=requests,
        seed=seed,
        hashes=hashes and hit_rate is None,
    )
    if hit_rate is not None:
        drawn = with_hit_rate(drawn, hit_rate, seed=seed)
    if as_json:
        emit(describe.describe(drawn))
    if out is not None or not as_json:
        _write(drawn, out)


def _write(requests: Requests, out: Path | None) -> None:
    if out is None:
        requests.to_csv(sys.stdout.buffer)
    else:
        requests.to_csv(out)
        note(f"{requests.n:,} requests: {out}")

"""`sonde trace`: what is in a trace, a profile fitted from it, and traffic drawn from a profile."""

from __future__ import annotations

from pathlib import Path

import click

from sonde.cli.output import emit, fields, json_option, note


@click.group()
def trace() -> None:
    """Describe traces, fit profiles from them, generate traffic from profiles."""


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def describe(file: Path, as_json: bool) -> None:
    """Describe the requests of FILE: rate, burstiness, lengths and how they hang together."""
    from sonde.workload import describe as summary, read

    row = summary(read(file))
    emit(row) if as_json else fields(str(file), row)

"""`sonde calibrate`: constants of the cost model from measurements, and the measurement of this machine."""

from __future__ import annotations

import click

from sonde.cli.calibrate_fit import fit, judge
from sonde.cli.calibrate_machine import machine


@click.group()
def calibrate() -> None:
    """Turn measurements into rows of the catalogue."""


for verb in (fit, judge, machine):
    calibrate.add_command(verb)

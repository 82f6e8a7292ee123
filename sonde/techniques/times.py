"""Times among the parameters of techniques: "200 us" in, seconds inside."""

from __future__ import annotations

from sonde.deployment.tree import refuse
from sonde.errors import InputError
from sonde.units import parse


def seconds(value: object) -> object:
    """Return seconds for a time in words, such as "200 us", and anything else as it is."""
    try:
        return parse(value, "time", zero=True) if isinstance(value, str) else value
    except InputError as error:
        refuse("", value, error.allowed, error.consequence)

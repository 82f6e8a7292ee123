"""A device of one's own as files: `machine.csv`, a row in the form of `devices.csv`, and what stands beside it.

    machine.csv                the row: one device, by the columns of `device_schema.csv`
    machine.sources.csv        what the row cites, in the form of `sources.csv` (optional)
    machine.efficiencies.csv   what the device reaches, in the form of `efficiencies.csv` (optional)

A scenario or a deployment calls such a device by the path of the row. `sonde calibrate machine --out machine.csv`
writes all three.
"""

from __future__ import annotations

from pathlib import Path

from sonde.errors import InputError

SOURCES_SUFFIX, EFFICIENCIES_SUFFIX = ".sources.csv", ".efficiencies.csv"

#: such a file has one row; what is longer than this is something else
LARGEST = 4 << 20


def is_path(name: str) -> bool:
    """Return whether the name of a device is the path of a file: it ends in .csv."""
    return name.strip().lower().endswith(".csv")


def read_text(path: Path, what: str) -> str:
    """Return the text of a file. Raises InputError where it cannot be read, is too long or is no text."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(what, str(path), f"has {path.stat().st_size:,} bytes: too long for rows of devices")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(what, str(path), f"cannot be read: {error}") from error

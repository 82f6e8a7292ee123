"""Places that hardware stands in: carbon and price of their electricity, and what cooling adds. Rows of `sites.csv`."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from sonde.catalogue.rows import Source, read, sources, table
from sonde.errors import InputError, unknown
from sonde.units import parse

COLUMNS = ("name", "title", "carbon_g_per_kwh", "usd_per_kwh", "pue", "source")


class Region(NamedTuple):
    """A place: grams of CO2 and dollars per kWh, and power usage effectiveness (total over what computers draw)."""

    name: str
    title: str
    carbon_g_per_kwh: float
    usd_per_kwh: float
    pue: float
    sources: tuple[Source, ...]


def region(name: str) -> Region:
    """Return the region called `name`, in any case. Raises InputError where there is none."""
    found = {row.name: row for row in regions()}
    if (key := name.strip().lower()) not in found:
        raise unknown("region", name, found, "region")
    return found[key]


@cache
def regions() -> tuple[Region, ...]:
    """Return every region of the catalogue."""
    return read_regions(table("sites.csv"), "sites.csv")


def read_regions(text: str, path: str) -> tuple[Region, ...]:
    """Return the regions in CSV text with COLUMNS. Raises InputError with "path:line column" for what is wrong."""
    found: dict[str, Region] = {}
    for where, row in read(text, path, COLUMNS):
        name = row["name"]
        if name in found:
            raise InputError(f"{where} name", name, "is there twice")
        carbon, usd, pue = (parse(row[column], "count", f"{where} {column}", zero=True) for column in COLUMNS[2:5])
        if pue < 1:
            raise InputError(f"{where} pue", row["pue"], "must be at least 1: all that computers draw")
        for key in row["source"].split():
            if key not in sources():
                raise unknown(f"{where} source", key, sources(), "source")
        cited = tuple(sources()[key] for key in row["source"].split())
        found[name] = Region(name, row["title"], carbon, usd, pue, cited)
    return tuple(found.values())

"""Tables of the catalogue as rows of text, and the schema that says what each attribute is.

A schema is a table itself (attribute, type, unit, default, status, group, description): it drives loading,
checks and the documentation, so that an attribute is described in one place.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sonde.catalogue.device import KINDS, MemoryTier
from sonde.errors import InputError, nearest, unknown
from sonde.units import parse

Row = dict[str, str]

_TIER = re.compile(r"^\s*(?P<name>\S+)\s+(?P<bytes>[\d.]+\s*\w+)\s+(?P<bandwidth>[\d.]+\s*\w+/s)\s*$")
_NAME = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One row of a schema. `unit` is a dimension of `sonde.units`; `group` names its `<group>_source` column."""

    attribute: str
    type: str
    unit: str
    default: str
    status: str
    group: str
    description: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where figures come from.

    kind   "published" (maker or paper), "derived" (arithmetic on published figures), "measured", "price" (a price
           list on that day), or "estimate", whose reasoning is `note`
    """

    key: str
    kind: str
    title: str
    publisher: str
    url: str
    date: str
    note: str


def table(name: str) -> str:
    """Return the text of a table that ships with Sonde."""
    return (files("sonde.catalogue") / "data" / name).read_text(encoding="utf-8")


def read(text: str, path: str, columns: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Yield ("path:line", row) of CSV text. Raises InputError for columns that are unknown or missing."""
    reader = csv.DictReader(io.StringIO(text))
    head = reader.fieldnames or []
    for column in head:
        if column not in columns:
            raise unknown(f"{path}:1", column, columns, "column")
    for column in columns:
        if column not in head:
            raise InputError(f"{path}:1", ",".join(head), f"lacks the column {column!r}")
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if None in row or None in row.values():
            raise InputError(where, row.get(columns[0]), f"must have {len(columns)} fields")
        yield where, {column: value.strip() for column, value in row.items()}


@cache
def schema(name: str) -> tuple[Attribute, ...]:
    """Return the schema table `name`, one attribute per column of what it describes."""
    columns = tuple(Attribute.__dataclass_fields__)
    return tuple(Attribute(**row) for _, row in read(table(name), name, columns))


@cache
def sources() -> dict[str, Source]:
    """Return every source that rows of the catalogue cite, by key."""
    return read_sources(table("sources.csv"), "sources.csv")


def read_sources(text: str, path: str) -> dict[str, Source]:
    """Return the sources in CSV text, by key. Raises InputError for columns that are unknown or missing."""
    columns = tuple(Source.__dataclass_fields__)
    return {row["key"]: Source(**row) for _, row in read(text, path, columns)}


def value(attribute: Attribute, row: Row, where: str, cited: Mapping[str, Source] | None = None) -> object:
    """Return what `row` holds for `attribute`, in SI units; None where it is empty and may be.

    Keys of sources must be among `cited`, or those of the catalogue.
    """
    text = row[attribute.attribute] or attribute.default
    path = f"{where} {attribute.attribute}"
    if not text:
        if attribute.status == "required":
            raise InputError(path, text, f"is required: {attribute.description}")
        return () if attribute.type in ("names", "tiers") else None
    if attribute.type == "sources":
        return _sources(text, sources() if cited is None else cited, path)
    return _READ[attribute.type](text, attribute.unit, path)


def _tiers(text: str, _: str, path: str) -> tuple[MemoryTier, ...]:
    found = []
    for part in text.split(";"):
        match = _TIER.match(part)
        if match is None:
            raise InputError(
                path, part.strip(), 'must be a name, a capacity and a bandwidth, as "HBM3 80 GiB 3.35 TB/s"'
            )
        size = parse(match["bytes"], "bytes", path)
        found.append(MemoryTier(match["name"], size, parse(match["bandwidth"], "bandwidth", path)))
    return tuple(found)


def _count(text: str, _: str, path: str) -> int:
    number = parse(text, "count", path)
    if number != int(number):
        raise InputError(path, text, "must be a whole number")
    return int(number)


def _name(text: str, _: str, path: str) -> str:
    if not _NAME.match(text):
        raise InputError(path, text, "must be lower-case words joined by hyphens")
    return text


def _kind(text: str, _: str, path: str) -> str:
    if text not in KINDS:
        raise InputError(path, text, f"must be one of {', '.join(KINDS)}{nearest(text, KINDS)}")
    return text


def _text(text: str, _: str, __: str) -> str:
    return text


def _sources(text: str, cited: Mapping[str, Source], path: str) -> tuple[str, ...]:
    keys = tuple(text.split())
    for key in keys:
        if key not in cited:
            raise unknown(path, key, cited, "source")
    return keys


_READ: dict[str, Callable[[str, str, str], object]] = {
    "text": _text,
    "name": _name,
    "names": lambda text, unit, path: tuple(_name(word, unit, path) for word in text.split()),
    "kind": _kind,
    "quantity": parse,
    "count": _count,
    "tiers": _tiers,
}

"""Efficiency curves over size, one row of `data/curves.csv` each: what a kernel reaches on a family of devices.

    seconds = narrow · blend(work·(1 + half_rows/rows + half_outputs/(rows·columns))/compute, moved/memory)
              + overhead_s + row_s·rows + cast/cast_share,   narrow = 1 + half_columns/columns

where `work`, `moved` and `cast` are the times at the peak of the device. A row with an engine speaks of that engine's
kernels, one without of all engines; one that names a device beats one of its family, which beats one of neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache

from sonde.catalogue.rows import read, table
from sonde.errors import InputError, unknown

#: class of operators -> the class whose curve serves where it has none of its own
CLASSES: dict[str, str] = {
    "gemm": "",
    "bmm": "gemm",
    "experts": "",
    "attention-prefill": "",
    "attention-decode": "",
    "window-prefill": "attention-prefill",
    "window-decode": "attention-decode",
    "mla-prefill": "attention-prefill",
    "mla-decode": "attention-decode",
    "sparse-prefill": "mla-prefill",
    "sparse-decode": "mla-decode",
    "indexer-prefill": "attention-prefill",
    "indexer-decode": "attention-decode",
    "linear-prefill": "attention-prefill",
    "linear-decode": "attention-decode",
    "elementwise": "",
    "collective": "",
    "all-gather": "collective",
    "all-to-all": "collective",
}

#: how operands are stored -> the format whose curve serves where it has none of its own
FORMATS: dict[str, str] = {
    "bf16": "",
    "fp16": "bf16",
    "fp32": "bf16",
    "fp8": "bf16",
    "fp8-block": "fp8",
    "int8": "fp8",
    "fp6": "fp8",
    "nvfp4": "fp8",
    "fp4": "nvfp4",
    "int4": "bf16",
    "mxfp4": "int4",
    "mxfp4-fp8": "nvfp4",
}


@dataclass(frozen=True, slots=True)
class OperatorEfficiency:
    """What a class of operators reaches, as a curve over its size.

    compute       share of peak compute that a large operator reaches
    memory        share of peak bandwidth (of collectives: of the link's, between two ranks); above one where numbers
                  come from a cache
    overhead_s    time of one kernel, whatever its size
    half_rows     rows (tokens) at which a product reaches half of `compute`; 0: at any number of rows
    half_outputs  the same in numbers written (rows times columns): fewer do not fill the device
    half_columns  columns at which a product reaches half of both shares
    row_s         time of one row beside all else (quantising its activations)
    cast          share of peak bandwidth at which activations are quantised, or dealt out to experts and gathered
    tile_tokens   keys that attention meets beside those that it needs, to fill its tiles: of decoding for a sequence,
                  of a window for a token of a prompt
    blend         power p in (compute^p + memory^p)^(1/p); 1: one after the other; 0: the longer one alone
    latency       share of the link's latency that a collective inside a node takes
    hop_s         time of a collective for every doubling of its ranks beyond two
    crowding      power by which its bandwidth falls with the ranks, from two to eight
    """

    compute: float = 1.0
    memory: float = 1.0
    overhead_s: float = 0.0
    half_rows: float = 0.0
    half_outputs: float = 0.0
    half_columns: float = 0.0
    row_s: float = 0.0
    cast: float = 1.0
    tile_tokens: float = 0.0
    blend: float = 0.0
    latency: float = 1.0
    hop_s: float = 0.0
    crowding: float = 0.0


#: constant -> lowest and highest value that make sense
RANGES: dict[str, tuple[float, float]] = {
    "compute": (1e-3, 1.0),
    "memory": (1e-3, 8.0),
    "overhead_s": (0.0, 1.0),
    "half_rows": (0.0, 1e4),
    "half_outputs": (0.0, 1e8),
    "half_columns": (0.0, 1e4),
    "row_s": (0.0, 1e-5),
    "cast": (1e-3, 1.0),
    "tile_tokens": (0.0, 1e4),
    "blend": (0.0, 16.0),
    "latency": (0.0, 10.0),
    "hop_s": (0.0, 1e-3),
    "crowding": (-2.0, 4.0),
}

CONSTANTS = tuple(field.name for field in fields(OperatorEfficiency))
COLUMNS = ("operator", "format", "device", "engine", *CONSTANTS, "points", "median_error", "source", "date")


@dataclass(frozen=True, slots=True)
class Curve:
    """One row of the table: `constants` are those it states, of the others another row speaks."""

    operator: str
    format: str
    device: str  # a device, a family, or "" for all
    engine: str  # or "" for all
    constants: tuple[tuple[str, float], ...]


def lineage(name: str, parents: dict[str, str]) -> tuple[str, ...]:
    """Return `name` and those whose curves serve in its place, nearest first."""
    found = []
    while name:
        found.append(name)
        name = parents.get(name, "")
    return tuple(found)


@cache
def family(device: str) -> str:
    """Return the family (generation of silicon) of a device, or "" where none is on record."""
    return _families().get(device, "")


@cache
def curves() -> tuple[Curve, ...]:
    """Return all curves, checked. Raises InputError for an unknown name, a value out of range or a missing source."""
    return tuple(curve(where, row) for where, row in read(table("curves.csv"), "curves.csv", COLUMNS))


def curve(where: str, row: dict[str, str]) -> Curve:
    """Return the curve of one row. Raises InputError as `curves` does, naming `where`."""
    if row["operator"] not in CLASSES:
        raise unknown(f"{where} operator", row["operator"], CLASSES, "operator")
    if row["format"] and row["format"] not in FORMATS:
        raise unknown(f"{where} format", row["format"], FORMATS, "format")
    constants = []
    for name in CONSTANTS:
        if row[name]:
            constants.append((name, _number(f"{where} {name}", row[name], RANGES[name])))
    if not row["source"] or not row["date"]:
        raise InputError(where, row["operator"], "needs a source and a date")
    return Curve(row["operator"], row["format"], row["device"], row["engine"], tuple(constants))


def _number(path: str, text: str, allowed: tuple[float, float]) -> float:
    low, high = allowed
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise InputError(path, text, f"must be between {low:g} and {high:g}")
    return value


@cache
def _families() -> dict[str, str]:
    rows = read(table("families.csv"), "families.csv", ("family", "device"))
    return {row["device"]: row["family"] for _, row in rows}

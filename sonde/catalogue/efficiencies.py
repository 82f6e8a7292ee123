"""What share of its peak a device reaches, by class of operator, and what an engine adds: rows of data.

`data/efficiencies.csv` has one row per (scope, name, operator, attribute). For a device and an engine the most
specific row wins: default < kind of device < device < engine. A fit replaces rows; no code knows a figure.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from sonde.catalogue.device import Device
from sonde.errors import InputError, unknown

#: scope -> rank: the higher one wins
SCOPES = {"default": 0, "kind": 1, "device": 2, "engine": 3}

#: (operator, attribute) -> lowest and highest value that make sense
ATTRIBUTES: dict[tuple[str, str], tuple[float, float]] = (
    {(operator, name): (1e-3, 1.0)
     for operator in ("gemm", "experts", "attention-prefill", "attention-decode", "elementwise", "collective")
     for name in ("compute", "memory")}
    | {(operator, "overhead_s"): (0.0, 1.0)
       for operator in ("gemm", "experts", "attention-prefill", "attention-decode", "elementwise", "collective")}
    | {(operator, "half_rows"): (0.0, 1e4) for operator in ("gemm", "experts")}
    | {(operator, "narrow"): (1e-3, 1.0) for operator in ("gemm", "experts")}
    | {("engine", name): (0.0, 10.0) for name in ("step_s", "layer_s", "token_s", "sequence_s")}
    | {("power", name): (0.0, 1.0) for name in ("static", "compute", "memory", "network")}
    | {("memory", "overhead_bytes"): (0.0, 1e12), ("memory", "rank_bytes"): (0.0, 1e12),
       ("memory", "usable"): (1e-3, 1.0)}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OperatorEfficiency:
    """What a class of operators reaches: share of peak compute and of peak bandwidth, and what a kernel costs.

    narrow      share of peak compute at 8 bits or fewer
    half_rows   rows (tokens) at which a matrix product reaches half of `compute`; 0: at any number of rows
    overhead_s  time of one kernel, whatever its size
    """

    compute: float
    memory: float
    overhead_s: float
    half_rows: float
    narrow: float


@dataclass(frozen=True, slots=True)
class EngineOverhead:
    """Time that the engine adds to a step: once, per layer, per token, per decoding sequence."""

    step_s: float
    layer_s: float
    token_s: float
    sequence_s: float


@dataclass(frozen=True, slots=True)
class PowerShares:
    """Shares of peak power: drawn in any step, and added at full compute, memory and network activity."""

    static: float
    compute: float
    memory: float
    network: float


@dataclass(frozen=True, slots=True)
class MemoryOverhead:
    """Device memory that holds neither weights, activations nor caches.

    usable          share of the nominal capacity that programs can allocate
    overhead_bytes  context, libraries, captured graphs, on every device
    rank_bytes      communication buffers, on every device of a group of two or more
    """

    usable: float
    overhead_bytes: float
    rank_bytes: float


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """All efficiencies of one device under one engine."""

    gemm: OperatorEfficiency
    experts: OperatorEfficiency
    attention_prefill: OperatorEfficiency
    attention_decode: OperatorEfficiency
    elementwise: OperatorEfficiency
    collective: OperatorEfficiency
    engine: EngineOverhead
    power: PowerShares
    memory: MemoryOverhead

    def of(self, kind: str) -> OperatorEfficiency:
        """Return the efficiency of a class of operators, such as "attention-decode"."""
        found: OperatorEfficiency = getattr(self, kind.replace("-", "_"))
        return found


def efficiencies(device: Device, engine: str = "default") -> Efficiencies:
    """Return what `device` reaches under `engine`: of every attribute the most specific row of the data.

    Raises InputError where no row speaks of that engine.
    """
    if engine != "default" and engine not in engines():
        raise unknown("engine", engine, engines(), "engine")
    return _resolved(device.name, device.kind, engine)


@cache
def engines() -> tuple[str, ...]:
    """Return the engines that have rows of their own."""
    return tuple(sorted({row["name"] for row in _rows() if row["scope"] == "engine"}))


@cache
def _rows() -> tuple[dict[str, str], ...]:
    text = files("sonde.catalogue").joinpath("data/efficiencies.csv").read_text("utf-8")
    rows = tuple(csv.DictReader(text.splitlines()))
    for line, row in enumerate(rows, start=2):
        _check(row, f"efficiencies.csv:{line}")
    return rows


def _check(row: dict[str, str], path: str) -> None:
    """Raise InputError unless the row names a known scope and attribute, holds a sane value, and has a source."""
    if row["scope"] not in SCOPES:
        raise unknown(f"{path}.scope", row["scope"], SCOPES, "scope")
    key = (row["operator"], row["attribute"])
    if key not in ATTRIBUTES:
        raise unknown(f"{path}.attribute", ".".join(key), [".".join(k) for k in ATTRIBUTES], "attribute")
    low, high = ATTRIBUTES[key]
    if not low <= float(row["value"]) <= high:
        raise InputError(f"{path}.value", row["value"], f"must be between {low:g} and {high:g}")
    if not row["source"] or not row["date"]:
        raise InputError(path, row, "needs a source and a date")


@cache
def _resolved(name: str, kind: str, engine: str) -> Efficiencies:
    wanted = {"default": "", "kind": kind, "device": name, "engine": engine}
    best: dict[tuple[str, str], tuple[int, float]] = {}
    for row in _rows():
        rank = SCOPES[row["scope"]]
        if row["name"] == wanted[row["scope"]]:
            key = (row["operator"], row["attribute"])
            best[key] = max(best.get(key, (-1, 0.0)), (rank, float(row["value"])))
    value = {key: number for key, (_, number) in best.items()}

    def operator(kind: str) -> OperatorEfficiency:
        return OperatorEfficiency(
            value[kind, "compute"],
            value[kind, "memory"],
            value[kind, "overhead_s"],
            value.get((kind, "half_rows"), 0.0),
            value.get((kind, "narrow"), value[kind, "compute"]),
        )

    return Efficiencies(
        operator("gemm"), operator("experts"), operator("attention-prefill"), operator("attention-decode"),
        operator("elementwise"), operator("collective"),
        EngineOverhead(*(value["engine", name] for name in ("step_s", "layer_s", "token_s", "sequence_s"))),
        PowerShares(*(value["power", name] for name in ("static", "compute", "memory", "network"))),
        MemoryOverhead(*(value["memory", name] for name in ("usable", "overhead_bytes", "rank_bytes"))),
    )  # fmt: skip

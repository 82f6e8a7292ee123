"""What share of its peak a device reaches, by class of operator, and what an engine adds: rows of data.

`data/curves.csv` holds fitted curves (`curves.py`); `data/power.csv` what a device draws (`power.py`);
`data/efficiencies.csv` other single constants, one row per (scope, name, operator, attribute). The most specific
row wins: default < curve of all devices < kind of device < curve of the family < of the device < device < curve of
the engine < engine. A fit replaces rows; no code knows a figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from sonde.catalogue.curves import (
    CLASSES,
    CONSTANTS,
    FORMATS,
    RANGES,
    OperatorEfficiency,
    curves,
    family,
    lineage,
)
from sonde.catalogue.device import Device
from sonde.catalogue.device_files import EFFICIENCIES_SUFFIX, read_text
from sonde.catalogue.power import CONSTANTS as POWER
from sonde.catalogue.power import RANGES as POWER_RANGES
from sonde.catalogue.power import Power, stated
from sonde.catalogue.rows import read
from sonde.errors import InputError, unknown

#: scope -> rank among rows of all kinds: the higher one wins
SCOPES = {"default": 0, "kind": 2, "device": 5, "engine": 10}

COLUMNS = ("scope", "name", "operator", "attribute", "value", "source", "date")

#: (operator, attribute) -> lowest and highest value that make sense
ATTRIBUTES: dict[tuple[str, str], tuple[float, float]] = (
    {(operator, name): RANGES[name] for operator in CLASSES for name in CONSTANTS}
    | {("engine", name): (0.0, 10.0) for name in ("step_s", "layer_s", "token_s", "sequence_s")}
    | {("power", name): POWER_RANGES[name] for name in POWER}
    | {("memory", "overhead_bytes"): (0.0, 1e12), ("memory", "rank_bytes"): (0.0, 1e12),
       ("memory", "usable"): (1e-3, 1.0)}
)  # fmt: skip

#: classes that have curves by format; others have one for all
_BY_FORMAT = {
    "gemm": tuple(FORMATS),
    "experts": tuple(FORMATS),
    "bmm": ("bf16", "fp8"),
} | {name: ("bf16", "fp8") for name in CLASSES if name.endswith("-decode")}


@dataclass(frozen=True, slots=True)
class EngineOverhead:
    """Time that the engine adds to a step: once, per layer, per token, per decoding sequence."""

    step_s: float
    layer_s: float
    token_s: float
    sequence_s: float


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
    """All efficiencies of one device under one engine.

    curves        "class" or "class/format" -> what it reaches
    factors       (class of operators, factor on its time): what an engine's kernels lose (or gain) beside the rest
    block_scaled  whether 8-bit products are scaled block by block, and not by tensor or row
    """

    curves: Mapping[str, OperatorEfficiency]
    engine: EngineOverhead
    power: Power
    memory: MemoryOverhead
    factors: tuple[tuple[str, float], ...] = ()
    block_scaled: bool = False

    @property
    def gemm(self) -> OperatorEfficiency:
        """Return the curve of matrix products in 16 bits."""
        return self.of("gemm/bf16")

    @property
    def experts(self) -> OperatorEfficiency:
        """Return the curve of routed experts in 16 bits."""
        return self.of("experts/bf16")

    @property
    def attention_prefill(self) -> OperatorEfficiency:
        """Return the curve of attention in prompts, without a window."""
        return self.of("attention-prefill")

    @property
    def attention_decode(self) -> OperatorEfficiency:
        """Return the curve of attention in decoding, without a window, over a cache in 16 bits."""
        return self.of("attention-decode/bf16")

    @property
    def elementwise(self) -> OperatorEfficiency:
        """Return the curve of what only moves numbers."""
        return self.of("elementwise")

    @property
    def collective(self) -> OperatorEfficiency:
        """Return the curve of sums over ranks."""
        return self.of("collective")

    def factor(self, kind: str) -> float:
        """Return by how much an engine's kernels of a class take longer than the ones measured (1: as long)."""
        return dict(self.factors).get(kind, 1.0)

    def of(self, curve: str) -> OperatorEfficiency:
        """Return the curve of a class of operators ("linear-prefill"), or of a class and a format ("gemm/fp8")."""
        kind, _, form = curve.partition("/")
        if self.block_scaled and form == "fp8" and f"{kind}/fp8-block" in self.curves:
            return self.curves[f"{kind}/fp8-block"]
        found = self.curves.get(curve)
        if found is None:
            found = self.curves[kind] if kind in self.curves else self.curves[f"{kind}/bf16"]
        return found


def efficiencies(device: Device, engine: str = "default", *, block_scaled: bool = False) -> Efficiencies:
    """Return what `device` reaches under `engine`: of every attribute the most specific row of the data.

    `block_scaled` takes 8-bit products to be scaled block by block (DeepSeek, Qwen). Raises InputError where no
    row speaks of that engine.
    """
    if engine != "default" and engine not in engines():
        raise unknown("engine", engine, engines(), "engine")
    found = _resolved(device.name, device.kind, engine, *_beside(device.path))
    return replace(found, block_scaled=True) if block_scaled else found


@cache
def engines() -> tuple[str, ...]:
    """Return the engines that have rows of their own."""
    named = {row["name"] for row in _rows() if row["scope"] == "engine"} | {curve.engine for curve in curves()}
    return tuple(sorted(named - {""}))


@cache
def _rows() -> tuple[dict[str, str], ...]:
    text = files("sonde.catalogue").joinpath("data/efficiencies.csv").read_text("utf-8")
    return read_rows(text, "efficiencies.csv")


def read_rows(text: str, path: str) -> tuple[dict[str, str], ...]:
    """Return the rows of CSV text with COLUMNS. Raises InputError for what is unknown, out of range or unsourced."""
    found = []
    for where, row in read(text, path, COLUMNS):
        _check(row, where)
        found.append(row)
    return tuple(found)


def _beside(path: str) -> tuple[str, int]:
    """Return the file of efficiencies beside that of a device, and when it was written; ("", 0): there is none."""
    if not path:
        return "", 0
    found = Path(path).expanduser().with_suffix(EFFICIENCIES_SUFFIX)
    return (str(found), found.stat().st_mtime_ns) if found.is_file() else ("", 0)


def _rows_in(path: str) -> tuple[dict[str, str], ...]:
    return read_rows(read_text(Path(path), "device"), path)


def _check(row: dict[str, str], path: str) -> None:
    """Raise InputError unless the row names a known scope and attribute, holds a sane value, and has a source."""
    if row["scope"] not in SCOPES:
        raise unknown(f"{path}.scope", row["scope"], SCOPES, "scope")
    key = (row["operator"], row["attribute"])
    if key not in ATTRIBUTES:
        raise unknown(f"{path}.attribute", ".".join(key), [".".join(k) for k in ATTRIBUTES], "attribute")
    low, high = ATTRIBUTES[key]
    try:
        held = low <= float(row["value"]) <= high
    except ValueError:
        held = False
    if not held:
        raise InputError(f"{path}.value", row["value"], f"must be between {low:g} and {high:g}")
    if not row["source"] or not row["date"]:
        raise InputError(path, row, "needs a source and a date")


class _Value(NamedTuple):
    """One constant of one row, and how specific the row is. `curved`: it is not a mere default."""

    operator: str
    format: str
    attribute: str
    value: float
    curved: bool
    rank: int


def _values(name: str, kind: str, engine: str, path: str) -> Iterator[_Value]:
    """Yield every constant that some row states for this device and engine, in the catalogue or in the file `path`."""
    wanted = {"default": "", "kind": kind, "device": name, "engine": engine}
    for row in (*_rows(), *(_rows_in(path) if path else ())):
        if row["name"] == wanted[row["scope"]]:
            curved = row["scope"] != "default"
            yield _Value(row["operator"], "", row["attribute"], float(row["value"]), curved, SCOPES[row["scope"]])
    for rank, stating in stated(name, kind):
        if stating.attribute in POWER:
            yield _Value("power", "", stating.attribute, stating.value, True, rank)
    of_device = {"": 0, family(name) or name: 2, name: 3}
    of_engine = {"": 1, engine: 6}
    for curve in curves():
        if curve.device in of_device and curve.engine in of_engine:
            rank = of_device[curve.device] + of_engine[curve.engine]
            for attribute, value in curve.constants:
                yield _Value(curve.operator, curve.format, attribute, value, True, rank)


@cache
def _resolved(name: str, kind: str, engine: str, path: str = "", stamp: int = 0) -> Efficiencies:
    del stamp  # a file that has changed is read anew
    values = tuple(_values(name, kind, engine, path))
    found = {}
    for operator in CLASSES:
        for form in _BY_FORMAT.get(operator, ("",)):
            found[f"{operator}/{form}" if form else operator] = _curve(values, operator, form)
    plain: dict[tuple[str, str], tuple[int, float]] = {}
    for row in values:
        key = (row.operator, row.attribute)
        plain[key] = max(plain.get(key, (-1, 0.0)), (row.rank, row.value))

    def of(group: str, names: tuple[str, ...]) -> list[float]:
        return [plain[group, attribute][1] for attribute in names]

    return Efficiencies(
        found,
        EngineOverhead(*of("engine", ("step_s", "layer_s", "token_s", "sequence_s"))),
        Power(*of("power", POWER)),
        MemoryOverhead(*of("memory", ("usable", "overhead_bytes", "rank_bytes"))),
    )


def _curve(values: tuple[_Value, ...], operator: str, form: str) -> OperatorEfficiency:
    """Return the curve of a class and a format: of each constant the row of the nearest kin, then the most specific."""
    kinds = {name: -distance for distance, name in enumerate(lineage(operator, CLASSES))}
    forms = {name: -distance for distance, name in enumerate(lineage(form or "bf16", FORMATS))} | {"": 0}
    best: dict[str, tuple[tuple[bool, int, int, int], float]] = {}
    for row in values:
        if row.operator in kinds and row.format in forms:
            key = (row.curved, kinds[row.operator], forms[row.format], row.rank)
            if row.attribute not in best or key > best[row.attribute][0]:
                best[row.attribute] = (key, row.value)
    return OperatorEfficiency(**{name: value for name, (_, value) in best.items()})

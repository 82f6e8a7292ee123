"""Serving engines: how they schedule by default, what they add to a step and to the wait for a first token, and
how much longer than measured alone their kernels take when they serve.

`data/engines.csv` has one row per (engine, version, family of devices, attribute). A version is a prefix, such as
"0.19"; the row that says most wins. `data/effects.csv` holds factors on the time of classes of operators and on waits,
by family of devices, precision, model, system, or series of measurements: all that fit are multiplied.
`data/spreads.csv` says how far predictions are off, and `data/pairs.csv` which pairs of device and model these
constants were fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import NamedTuple

from sonde.catalogue.efficiencies import Efficiencies, EngineOverhead
from sonde.catalogue.rows import read, table
from sonde.errors import InputError, unknown

COLUMNS = ("engine", "version", "family", "attribute", "value", "source", "date")
EFFECTS = ("scope", "name", "operator", "factor", "source", "date")
ENDS = ("ttft_low", "ttft_high", "tpot_low", "tpot_high")
SPREADS = ("engine", "pairs", *ENDS, "source", "date")
PAIRS = ("device", "model", "rows", "source", "date")

#: attributes that are words; all others are numbers
WORDS = ("batching",)

#: classes of operators whose time an engine or a device may stretch
CLASSES = ("gemm", "experts", "attention-prefill", "attention-decode", "elementwise", "collective")

#: what an effect may belong to
SCOPES = ("family", "precision", "model", "system", "series")

#: what an effect may stretch besides classes of operators and all of them: `ttft_s`, and steps until it is seen
WAITS = ("ttft", "poll")

#: what stands in the place of a version that nobody wrote down
UNKNOWN_VERSION = "unknown"

#: clients from which an engine counts as busy
BUSY = 16


@dataclass(frozen=True, slots=True)
class ServingEngine:
    """One engine, in one version, on one family of devices: its scheduler's defaults and its constants.

    batching, token_budget, max_batch, memory_fraction   as in `deployment.tree.Batching` and `Replica`
    step_s, layer_s, sequence_s, token_s   time that it adds to a step: once, per layer, per sequence that decodes, per
                                           token
    ttft_s, ttft_token_s                   time before a request is scheduled: once, and per token of its prompt
    poll_steps      steps that a request waits until the scheduler sees it; `busy` with 16 clients or more, `ranks`
                    where attention ranks wait for each other
    ttft_factor, poll_factor               what a version changes in `ttft_s` and in `poll_steps`
    gemm ... collective                    factor on the time of a class of operators
    """

    name: str
    batching: str
    token_budget: float
    max_batch: float
    memory_fraction: float
    step_s: float
    layer_s: float
    sequence_s: float
    token_s: float
    ttft_s: float
    ttft_token_s: float
    poll_steps: float
    poll_steps_busy: float
    poll_steps_ranks: float
    ttft_factor: float
    poll_factor: float
    gemm: float
    experts: float
    attention_prefill: float
    attention_decode: float
    elementwise: float
    collective: float

    def under(self, reached: Efficiencies, effects: Mapping[str, float] | None = None) -> Efficiencies:
        """Return what a device reaches under this engine; `effects` are further factors by class of operators."""
        more = effects or {}
        factors = tuple((kind, float(getattr(self, kind.replace("-", "_"))) * more.get(kind, 1.0)) for kind in CLASSES)
        stretch = more.get("engine", 1.0)
        overhead = EngineOverhead(
            self.step_s * stretch, self.layer_s * stretch, self.token_s * stretch, self.sequence_s * stretch
        )
        return replace(reached, engine=overhead, factors=factors)

    def waiting(self, effects: Mapping[str, float]) -> ServingEngine:
        """Return these constants with requests that wait as much longer as `effects` says."""
        return replace(
            self, ttft_factor=self.ttft_factor * effects["ttft"], poll_factor=self.poll_factor * effects["poll"]
        )

    def polls(self, clients: int, ranks: int) -> float:
        """Return the steps that a request waits until the scheduler sees it."""
        steps = self.poll_steps_busy if clients >= BUSY else self.poll_steps
        return self.poll_factor * (self.poll_steps_ranks if ranks > 1 else steps)


class Spread(NamedTuple):
    """Factors on a predicted time between which 80 % of measurements lie."""

    ttft_low: float
    ttft_high: float
    tpot_low: float
    tpot_high: float


@cache
def spread(engine: str, model: str, device: str) -> Spread:
    """Return how far predictions for `model` on `device` (catalogue names) under `engine` are off.

    Narrower where the engines' constants were fitted on measurements of that pair; those of all engines where the
    engine has too few measurements or none. From residuals of rows that the fit had not seen: `validate.cross`.
    """
    seen = (device, model) in _pairs()
    rows = _spreads()
    return rows.get((engine, seen)) or rows["", seen]


def engine_names() -> tuple[str, ...]:
    """Return the engines that have rows."""
    return tuple(sorted({row["engine"] for row in _rows()}))


@cache
def serving_engine(name: str, version: str = "", family: str = "") -> ServingEngine:
    """Return the engine's constants in that version on that family. Raises InputError for an engine without rows."""
    if name not in engine_names():
        raise unknown("engine", name, engine_names(), "engine")
    best: dict[str, tuple[int, int, str]] = {}
    for row in _rows():
        if row["engine"] == name and _within(version, row["version"]) and row["family"] in ("", family):
            found = (len(row["version"]), len(row["family"]), row["value"])
            if found[:2] >= best.get(row["attribute"], (-1, -1, ""))[:2]:
                best[row["attribute"]] = found
    values: dict[str, str | float] = {}
    for field in fields(ServingEngine):
        if field.name == "name":
            continue
        if field.name not in best:
            raise InputError("engines.csv", name, f"lacks {field.name!r}")
        text = best[field.name][2]
        values[field.name] = text if field.name in WORDS else float(text)
    return ServingEngine(name, **values)  # type: ignore[arg-type]


def _within(version: str, prefix: str) -> bool:
    """Return whether a version is `prefix` or a part of it: 0.5.10 is no part of 0.5.1."""
    return version.startswith(prefix) and not (prefix[-1:].isdigit() and version[len(prefix) :][:1].isdigit())


def release(version: str) -> str:
    """Return the release that a version belongs to, without what is rebuilt of it; "unknown" where there is none."""
    return version.split(".post")[0].split("-")[0] or UNKNOWN_VERSION


def series(engine: str, version: str, model: str, device: str) -> str:
    """Return the name of the series of measurements of a model on a device under a release (no version: none)."""
    return "/".join((engine, release(version), model, device)) if version else ""


@cache
def effects(family: str, precision: str, model: str, system: str, series: str = "") -> Mapping[str, float]:
    """Return factors on the time of classes of operators and on `WAITS`, all scopes multiplied.

    "engine" is the factor on what the engine adds to a step. Those of a `series` hold what the rest leaves of its
    measurements: a release's kernels for that model and device, or speculative decoding that nobody wrote down.
    """
    found = dict.fromkeys((*CLASSES, "engine", *WAITS), 1.0)
    wanted = dict(zip(SCOPES, (family, precision, model, system, series), strict=True))
    for row in _effect_rows():
        if wanted[row["scope"]] == row["name"]:
            for kind in (*CLASSES, "engine") if row["operator"] == "all" else (row["operator"],):
                found[kind] *= float(row["factor"])
    return found


@cache
def _rows() -> tuple[dict[str, str], ...]:
    known = {field.name for field in fields(ServingEngine)}
    rows = []
    for where, row in read(table("engines.csv"), "engines.csv", COLUMNS):
        if row["attribute"] not in known:
            raise unknown(f"{where} attribute", row["attribute"], known, "attribute")
        _check_source(where, row)
        rows.append(row)
    return tuple(rows)


@cache
def _effect_rows() -> tuple[dict[str, str], ...]:
    rows = []
    for where, row in read(table("effects.csv"), "effects.csv", EFFECTS):
        if row["scope"] not in SCOPES:
            raise unknown(f"{where} scope", row["scope"], SCOPES, "scope")
        if row["operator"] not in (*CLASSES, *WAITS, "all"):
            raise unknown(f"{where} operator", row["operator"], (*CLASSES, *WAITS, "all"), "class of operators")
        _check_source(where, row)
        rows.append(row)
    return tuple(rows)


@cache
def _spreads() -> dict[tuple[str, bool], Spread]:
    found = {}
    for where, row in read(table("spreads.csv"), "spreads.csv", SPREADS):
        if row["pairs"] not in ("seen", "new"):
            raise unknown(f"{where} pairs", row["pairs"], ("seen", "new"), "kind of pair")
        _check_source(where, row)
        found[row["engine"], row["pairs"] == "seen"] = Spread(*(float(row[name]) for name in ENDS))
    return found


@cache
def _pairs() -> frozenset[tuple[str, str]]:
    found = []
    for where, row in read(table("pairs.csv"), "pairs.csv", PAIRS):
        _check_source(where, row)
        found.append((row["device"], row["model"]))
    return frozenset(found)


def _check_source(where: str, row: dict[str, str]) -> None:
    if not row["source"] or not row["date"]:
        raise InputError(where, row, "needs a source and a date")

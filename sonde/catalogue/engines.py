"""Serving engines: how they schedule by default, and what they add to a step and to the wait for a first token.

`data/engines.csv` has one row per (engine, version, attribute). A version is a prefix, such as "0.19"; the longest
that fits wins, and an empty one fits every version.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache

from sonde.catalogue.efficiencies import Efficiencies, EngineOverhead
from sonde.catalogue.rows import read, table
from sonde.errors import InputError, unknown

COLUMNS = ("engine", "version", "attribute", "value", "source", "date")

#: attributes that are words; all others are numbers
WORDS = ("batching",)

#: classes of operators whose time an engine may stretch
FACTORS = ("gemm", "experts", "attention_prefill", "attention_decode", "elementwise", "collective")


@dataclass(frozen=True, slots=True)
class ServingEngine:
    """One engine (and version): its scheduler's defaults and its constants.

    batching, token_budget, max_batch, memory_fraction   as in `deployment.tree.Batching` and `Replica`
    spare_slots        places of the batch that it leaves empty when clients are as many as places
    step_s, layer_s, sequence_s, token_s   time that it adds to a step: once, per layer, per decoding sequence, per token
    ttft_s, ttft_token_s                   time before a request is scheduled: once, and per token of its prompt
    gemm ... collective                    factor on the time of a class of operators
    ttft_low ... tpot_high                 ends of the 80 % interval, as factors on the prediction
    """

    name: str
    batching: str
    token_budget: float
    max_batch: float
    memory_fraction: float
    spare_slots: float
    step_s: float
    layer_s: float
    sequence_s: float
    token_s: float
    ttft_s: float
    ttft_token_s: float
    gemm: float
    experts: float
    attention_prefill: float
    attention_decode: float
    elementwise: float
    collective: float
    ttft_low: float
    ttft_high: float
    tpot_low: float
    tpot_high: float

    def under(self, reached: Efficiencies) -> Efficiencies:
        """Return what a device reaches under this engine."""
        factors = tuple((kind.replace("_", "-"), float(getattr(self, kind))) for kind in FACTORS)
        overhead = EngineOverhead(self.step_s, self.layer_s, self.token_s, self.sequence_s)
        return replace(reached, engine=overhead, factors=factors)


def engine_names() -> tuple[str, ...]:
    """Return the engines that have rows."""
    return tuple(sorted({row["engine"] for row in _rows()}))


@cache
def serving_engine(name: str, version: str = "") -> ServingEngine:
    """Return the engine's constants in that version. Raises InputError for an engine without rows."""
    if name not in engine_names():
        raise unknown("engine", name, engine_names(), "engine")
    best: dict[str, tuple[int, str]] = {}
    for row in _rows():
        if row["engine"] == name and version.startswith(row["version"]):
            found = len(row["version"]), row["value"]
            if found >= best.get(row["attribute"], (-1, "")):
                best[row["attribute"]] = found
    values: dict[str, str | float] = {}
    for field in fields(ServingEngine):
        if field.name == "name":
            continue
        if field.name not in best:
            raise InputError("engines.csv", name, f"lacks {field.name!r}")
        text = best[field.name][1]
        values[field.name] = text if field.name in WORDS else float(text)
    return ServingEngine(name, **values)  # type: ignore[arg-type]


@cache
def _rows() -> tuple[dict[str, str], ...]:
    known = {field.name for field in fields(ServingEngine)}
    rows = []
    for where, row in read(table("engines.csv"), "engines.csv", COLUMNS):
        if row["attribute"] not in known:
            raise unknown(f"{where} attribute", row["attribute"], known, "attribute")
        if not row["source"] or not row["date"]:
            raise InputError(where, row["attribute"], "needs a source and a date")
        rows.append(row)
    return tuple(rows)

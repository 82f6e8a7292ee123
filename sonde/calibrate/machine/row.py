"""From measurements to rows of the catalogue: the device, its sources, and what it reaches."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sonde import __version__
from sonde.calibrate.machine.fit import Reached, fit_decode, fit_prefill, fit_products
from sonde.calibrate.machine.gemm import Product
from sonde.calibrate.machine.measured import Measured
from sonde.catalogue.curves import CLASSES, lineage
from sonde.catalogue.device_files import EFFICIENCIES_SUFFIX, SOURCES_SUFFIX
from sonde.catalogue.devices import attributes, device
from sonde.catalogue.efficiencies import COLUMNS
from sonde.catalogue.rows import Source
from sonde.errors import CannotError

#: precisions that a device row has a column for
PRECISIONS = ("fp32", "bf16", "int8")

#: power cannot be measured without a meter: that of a server in the catalogue, by core
POWER_OF, POWER_CORES = "epyc-9454-2s", 96
GPU_POWER_OF = "h100-pcie"

#: starts of kernels in one layer that the cost model charges: products, and passes over numbers
PRODUCTS, PASSES = 4, 4

Rows = list[dict[str, str]]


class Tables(NamedTuple):
    """The three tables of a machine, as rows of text, and the fit of its products."""

    device: Rows
    sources: Rows
    efficiencies: Rows
    reached: Reached


def tables(found: Measured) -> Tables:
    """Return the rows that describe the machine measured."""
    bandwidth = peak_bandwidth(found)
    flops = {name: peak for name in PRECISIONS if (peak := peak_flops(found.products, name))}
    row = {attribute.attribute: "" for attribute in attributes()} | _identity(found) | _power(found)
    row |= {name: f"{peak:.0f} FLOP/s" for name, peak in flops.items()}
    link = found.loopback
    fabric = (link.bytes_per_s, link.latency_s) if link else (bandwidth, 1e-5)
    host = found.host if found.device == "cuda" else (found.copy_bytes_per_s, _memory_latency(found))
    row |= {
        "memory": f"memory {found.memory_bytes} B {bandwidth:.0f} B/s",
        "node_devices": "1",
        "fabric_bandwidth": f"{fabric[0]:.0f} B/s", "fabric_latency": f"{1e9 * fabric[1]:.3f} ns",
        "host_bandwidth": f"{host[0]:.0f} B/s", "host_latency": f"{1e9 * host[1]:.3f} ns",
        "spec_source": "measured", "link_source": "measured", "power_source": "power-by-core",
    }  # fmt: skip
    reached = _fit(found, flops, bandwidth)
    return Tables([row], _sources(found), _efficiencies(found, row["name"], reached, flops, bandwidth), reached)


def peak_bandwidth(found: Measured) -> float:
    """Return the highest rate at which memory was read or written: by STREAM, by cold products or by attention."""
    rates = [rate.bytes_per_s for rate in found.stream]
    rates += [product.bytes_per_s for product in found.products if product.cold]
    rates += [it.bytes / it.seconds for it in found.attention if it.bytes > 2 * found.cache_bytes]
    return max(rates)


def peak_flops(products: Sequence[Product], precision: str) -> float:
    """Return the highest FLOP/s of any product in a precision, 0 where there is none."""
    return max((product.flops_per_s for product in products if product.precision == precision), default=0.0)


def write(found: Measured, path: Path) -> list[Path]:
    """Write the tables of a machine: the row to `path`, the others beside it. Return the files.

    Raises CannotError where they cannot be written.
    """
    rows = tables(found)
    parts = (
        (path, rows.device),
        (path.with_suffix(SOURCES_SUFFIX), rows.sources),
        (path.with_suffix(EFFICIENCIES_SUFFIX), rows.efficiencies),
    )
    for file, content in parts:
        try:
            file.write_text(text(content), encoding="utf-8")
        except OSError as error:
            raise CannotError(f"{file}: {error.strerror}; the row of this machine could not be written") from error
    return [file for file, _ in parts]


def text(rows: Rows) -> str:
    """Return rows as CSV, their keys at the head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _identity(found: Measured) -> dict[str, str]:
    said = found.facts
    gpu = found.device == "cuda"
    words = re.findall(r"[a-z0-9]+", said.host.lower())
    return {
        "name": "-".join(["machine", *words, *(["gpu"] if gpu else [])]),
        "title": said.gpu if gpu else f"{said.cpu} ({said.cores} cores, {said.memory_bytes / 2**30:.0f} GiB)",
        "vendor": "NVIDIA" if gpu else said.vendor,
        "kind": "workstation" if gpu else "cpu",
        "note": f"measured on {found.date} by sonde {__version__}, {'quick' if found.quick else 'full'} run, "
        f"{found.threads} threads" + "".join(f"; {remark}" for remark in found.remarks),
    }  # fmt: skip


def _power(found: Measured) -> dict[str, str]:
    if found.device == "cuda":
        like, share = device(GPU_POWER_OF), 1.0
    else:
        like, share = device(POWER_OF), found.facts.cores / POWER_CORES
    return {"idle_power": f"{like.idle_w * share:.2f} W", "peak_power": f"{like.peak_w * share:.2f} W"}


def _sources(found: Measured) -> Rows:
    power = f"as {GPU_POWER_OF}" if found.device == "cuda" else f"that of {POWER_OF} by core"
    listed = (
        Source("measured", "measured", "sonde calibrate machine", "the machine itself", "", found.date,
               f"torch {found.facts.torch or 'not installed'}; best of {found.effort.repeats}"),
        Source("power-by-core", "estimate", "Power of this machine", "Sonde", "", found.date,
               f"no meter: {power}; give your own where energy matters"),
    )  # fmt: skip
    return [{name: getattr(source, name) for name in Source.__dataclass_fields__} for source in listed]


def _memory_latency(found: Measured) -> float:
    return found.levels[-1].seconds if found.levels else 1e-7


def _fit(found: Measured, flops: dict[str, float], bandwidth: float) -> Reached:
    served = [p for p in found.products if p.precision == found.precision and p.threads == found.threads]
    return fit_products(served, (flops[found.precision], bandwidth), found.start("product"))


def _efficiencies(found: Measured, name: str, reached: Reached, flops: dict[str, float], bandwidth: float) -> Rows:
    product, attention, operator = (found.start(what) for what in ("product", "attention", "operator"))
    prefill = fit_prefill(found.attention, flops[found.precision], attention)
    each, decode = fit_decode(found.attention, (flops[found.precision], bandwidth), attention)
    of: dict[str, dict[str, float]] = {
        "gemm": {"compute": reached.compute, "memory": reached.memory, "half_rows": reached.half_rows,
                 "overhead_s": product},
        "attention-prefill": {"compute": prefill, "memory": decode, "overhead_s": attention},
        "attention-decode": {"compute": each, "memory": decode, "overhead_s": attention},
        "elementwise": {"compute": 1.0, "memory": decode, "overhead_s": operator},
    }  # fmt: skip
    of["experts"] = of["gemm"]
    engine: dict[str, float] = {}
    if found.passes is not None and found.overheads is not None:
        of["elementwise"]["memory"] = min(1.0, max(1e-3, found.passes.bytes / found.passes.seconds / bandwidth))
        charged = PRODUCTS * product + PASSES * operator + attention
        engine = {
            "step_s": found.overheads.step_s, "layer_s": max(found.overheads.layer_s - charged, 0.0),
            "token_s": 0.0, "sequence_s": 0.0,
        }  # fmt: skip
    unused = {"half_outputs": 0.0, "row_s": 0.0, "tile_tokens": 0.0, "blend": 0.0}
    rows: list[tuple[str, str, float]] = []
    for operators in CLASSES:
        root = next((kind for kind in lineage(operators, CLASSES) if kind in of), "")
        if root:
            rows += [(operators, key, value) for key, value in (unused | {"half_rows": 0.0} | of[root]).items()]
    rows += [("engine", key, value) for key, value in engine.items()]
    said: dict[str, Any] = {"source": "sonde calibrate machine, on this machine", "date": found.date}
    return [
        dict(zip(COLUMNS, ("device", name, *cells[:2], f"{cells[2]:.6g}", said["source"], said["date"]), strict=True))
        for cells in rows
    ]

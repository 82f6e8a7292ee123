"""What was measured, as values for JSON and as rows for tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sonde.calibrate.machine.measured import Measured
from sonde.calibrate.machine.row import Tables
from sonde.units import show


class Sheet(NamedTuple):
    """A table: its title, its heads, its rows; the first `left` columns are text."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1


def as_json(found: Measured, rows: Tables) -> dict[str, Any]:
    """Return everything measured in SI units, the fit, and the row that is written."""
    said = found.facts
    return {
        "machine": said._asdict() | {"caches": [cache._asdict() for cache in said.caches]},
        "device": found.device, "date": found.date, "quick": found.quick, "threads": found.threads,
        "stream": [rate._asdict() for rate in found.stream],
        "latency": [point._asdict() for point in found.latency],
        "levels": [level._asdict() for level in found.levels],
        "products": [
            p._asdict() | {"shape": list(p.shape), "flops_per_s": p.flops_per_s, "bytes_per_s": p.bytes_per_s}
            for p in found.products
        ],
        "attention": [
            a._asdict() | {"flops_per_s": a.flops / a.seconds, "bytes_per_s": a.bytes / a.seconds}
            for a in found.attention
        ],
        "starts": [start._asdict() for start in found.starts],
        "copy_bytes_per_s": found.copy_bytes_per_s or None,
        "disk": found.disk._asdict() if found.disk else None,
        "loopback": found.loopback._asdict() if found.loopback else None,
        "steps": _steps(found),
        "held_out": [one._asdict() | {"error": one.error} for one in found.judged],
        "products_fit": rows.reached._asdict(),
        "missing": [{"what": what, "why": why} for what, why in found.missing],
        "remarks": found.remarks, "seconds": found.seconds,
        "row": rows.device[0], "efficiencies": rows.efficiencies, "sources": rows.sources,
    }  # fmt: skip


def sheets(found: Measured, rows: Tables) -> Iterator[Sheet]:
    """Yield the tables for a reader, in the order in which things were measured."""
    heads = ("back end", "threads, touch", "copy", "scale", "add", "triad")
    yield Sheet("Memory bandwidth (STREAM, best of its rounds)", heads, _stream(found))
    yield Sheet(
        "Latency of a load, by level that its curve shows", ("level", "up to", "latency"),
        [(level.name, "beyond" if level.bytes == float("inf") else show(level.bytes, "bytes"),
          show(level.seconds, "time")) for level in found.levels],
    )  # fmt: skip
    yield Sheet(
        "Matrix products", ("precision", "rows x inner x columns", "weights", "threads", "time", "FLOP/s", "bytes/s"),
        [(p.precision, " x ".join(map(str, p.shape)), "from memory" if p.cold else "in cache", str(p.threads),
          show(p.seconds, "time"), show(p.flops_per_s, "compute"), show(p.bytes_per_s, "bandwidth"))
         for p in found.products], 3,
    )  # fmt: skip
    yield Sheet(
        "Attention", ("phase", "precision", "sequences x queries x cached", "time", "FLOP/s", "bytes/s"),
        [(a.phase, a.precision, f"{a.batch} x {a.queries} x {a.keys}", show(a.seconds, "time"),
          show(a.flops / a.seconds, "compute"), show(a.bytes / a.seconds, "bandwidth")) for a in found.attention], 3,
    )  # fmt: skip
    yield Sheet("Starts", ("what", "time"), [(start.what, show(start.seconds, "time")) for start in found.starts])
    yield Sheet("Disk and network", ("what", "bandwidth", "latency", "how"), list(_paths(found)))
    if found.steps is not None:
        yield Sheet("A step of a small decoder", ("what", "found"), list(_step_rows(found)))
    if found.judged:
        yield Sheet(
            "A transformer that was not measured", ("step", "measured", "predicted", "error"),
            [(one.step, show(one.measured_s, "time"), show(one.predicted_s, "time"), f"{one.error:+.1%}")
             for one in found.judged],
        )  # fmt: skip
    shown = [(key, value) for key, value in rows.device[0].items() if value]
    yield Sheet("The device row", ("attribute", "value"), shown, 2)


def _stream(found: Measured) -> list[tuple[str, ...]]:
    listed: dict[tuple[str, int, str], list[str]] = {}
    for rate in found.stream:
        key = (rate.backend, rate.threads, rate.touch)
        listed.setdefault(key, []).append(show(rate.bytes_per_s, "bandwidth"))
    words = {"own": "", "one": ", one touched first"}
    return [(name, f"{threads}{words[touch]}", *cells) for (name, threads, touch), cells in listed.items()]


def _paths(found: Measured) -> Iterator[tuple[str, ...]]:
    if found.copy_bytes_per_s:
        yield "memory to memory", show(found.copy_bytes_per_s, "bandwidth"), "", ""
    if found.host[0]:
        yield "host to GPU", show(found.host[0], "bandwidth"), show(found.host[1], "time"), "pinned memory"
    if (disk := found.disk) is not None:
        yield "disk, read", show(disk.read_bytes_per_s, "bandwidth"), show(disk.latency_s, "time"), disk.how
        yield "disk, write", show(disk.write_bytes_per_s, "bandwidth"), "", "with fsync"
    if (link := found.loopback) is not None:
        yield "loopback", show(link.bytes_per_s, "bandwidth"), show(link.latency_s, "time"), "TCP, two processes"


def _step_rows(found: Measured) -> Iterator[tuple[str, str]]:
    steps = found.steps
    if steps is None:
        return
    traced = steps.traced
    yield "kernels, operators with work", f"{traced.kernels}, {steps.operators}"
    yield "launch and queue, all kernels (TKLQT)", show(traced.tklqt_s, "time")
    yield "time in kernels", show(traced.kernel_s, "time")
    yield "latency at batch 1, traced", show(traced.latency_s, "time")
    for batch, seconds in zip(steps.batches, steps.seconds, strict=True):
        yield f"latency at batch {batch}", show(seconds, "time")
    yield "bound by starting operators up to batch", f"{steps.knee.batch:.3g} (fit off by {steps.knee.error:.0%})"
    if steps.advice:
        chain = steps.advice[0]
        yield f"fuse {' + '.join(chain.kernels)}", f"{chain.times} times: {chain.launches} launches are left"
    yield (
        "fusing norms and gates: predicted, measured",
        f"{steps.predicted_speedup:.2f}x, {steps.measured_speedup:.2f}x",
    )


def _steps(found: Measured) -> dict[str, Any] | None:
    steps = found.steps
    if steps is None:
        return None
    return {
        "device": steps.device, "operators": steps.operators, "trace": steps.traced._asdict(),
        "batches": list(steps.batches), "seconds": list(steps.seconds), "knee": steps.knee._asdict(),
        "fuse": [chain._asdict() for chain in steps.advice],
        "predicted_speedup": steps.predicted_speedup, "measured_speedup": steps.measured_speedup,
    }  # fmt: skip

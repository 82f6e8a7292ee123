"""Times of operators and messages that the catalogue's curves predict, beside what was measured."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sonde.calibrate.forms import predicted
from sonde.calibrate.judge import shipped
from sonde.calibrate.measurements import READERS, SYSTEMS, from_memory
from sonde.calibrate.points import Floats, Points
from sonde.calibrate.profiles import GPUS, profile_points
from sonde.catalogue.device import Device
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.cost.collectives import message_seconds
from sonde.errors import InputError, SondeError
from sonde.validate.setting import system
from sonde.validate.write import COMPARED

#: names of files of messages between devices begin with that of their device: "h100_dgx_all_reduce.csv"
MACHINES = {"a100": "a100-sxm-80gb", "h100": "h100-sxm", "h200": "h200-sxm", "b200": "b200-sxm"}
MESSAGES = ("all_reduce", "send_recv")

#: ends of a file's name that tables of messages have
TABLES = (".csv", ".csv.gz")


class Compared(NamedTuple):
    """Times (s) of one class of operators on one device, measured and predicted, in the order of their file."""

    operator: str
    device: str
    engine: str
    measured: Floats
    predicted: Floats


class Unread(NamedTuple):
    """A file of which nothing was predicted, and why."""

    file: str
    reason: str


class Errors(NamedTuple):
    """Errors over `points` measurements, as shares of what was measured; bias is the median signed error."""

    points: int
    median: float
    mean: float
    bias: float


def compared(path: Path) -> Iterator[Compared | Unread]:
    """Yield every class of operators measured at `path`, predicted by the catalogue, and files that cannot be.

    path   a table of messages (of the form of `network/*.csv`), or a folder that holds such tables,
           SYSTEM/OP/ENGINE/VERSION/*.parquet or GPU/MODEL/operators, itself or in folders named `network`, `operators`
           and `open_loop`. Which points say nothing of a running model: `calibrate.measurements`.
    Raises InputError where it is none of these.
    """
    if path.is_file():
        yield from _messages(path)
        return
    places = [path, *(path / name for name in ("operators", "network", "open_loop") if (path / name).is_dir())]
    found = False
    for place in places:
        for part in _folder(place):
            found = True
            yield part
    if not found:
        raise InputError(
            str(path), "no measured operators",
            f"needs SYSTEM/OP/ENGINE/VERSION/*.parquet (of {', '.join(SYSTEMS)}), GPU/MODEL/operators or tables of "
            f"{' or '.join(MESSAGES)}",
        )  # fmt: skip


def scores(found: Sequence[Compared]) -> dict[str, dict[str, Errors]]:
    """Return errors by grouping and group: "overall" first, then by class of operators, device and engine."""
    keys: dict[str, Callable[[Compared], str]] = {
        "overall": lambda _: "all points",
        "operator": lambda part: part.operator,
        "device": lambda part: part.device,
        "engine": lambda part: part.engine or "any",
        "operator on device": lambda part: f"{part.operator} on {part.device}",
    }
    table: dict[str, dict[str, Errors]] = {}
    for title, key in keys.items():
        groups: dict[str, list[Compared]] = {}
        for part in found:
            groups.setdefault(key(part), []).append(part)
        table[title] = {name: _errors(groups[name]) for name in sorted(groups)}
    return table


def write(path: Path, found: Sequence[Compared]) -> None:
    """Write one line per measurement, in order: what it is of, and its time measured and predicted, in ms."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COMPARED)
        for part in found:
            about = (part.operator, part.device, part.engine)
            both = zip((1e3 * part.measured).tolist(), (1e3 * part.predicted).tolist(), strict=True)
            lines.writerows((*about, f"{a:.6g}", f"{b:.6g}") for a, b in both)


def _errors(parts: Sequence[Compared]) -> Errors:
    share = np.concatenate([part.predicted / part.measured - 1.0 for part in parts])
    size = np.abs(share)
    return Errors(len(share), float(np.median(size)), float(size.mean()), float(np.median(share)))


def _folder(place: Path) -> Iterator[Compared | Unread]:
    for path in sorted(place.glob("*/*/*/*/*.parquet")):
        yield from _parquet(path, path.relative_to(place).parts[0])
    for path in sorted(path for path in place.iterdir() if path.name.endswith(TABLES)):
        yield from _messages(path)
    for gpu in sorted(path for path in place.iterdir() if path.is_dir() and any(path.glob("*/operators"))):
        if gpu.name not in GPUS:
            yield Unread(str(gpu), f"no such GPU in the catalogue's profiles: {', '.join(GPUS)}")
            continue
        try:
            parts = [from_memory(part, device(part.device)) for part in profile_points(place)
                     if part.device == GPUS[gpu.name]]  # fmt: skip
        except (SondeError, OSError, ValueError, KeyError, _polars_error()) as error:
            yield Unread(str(gpu), _words(error))
            continue
        yield from (_compared(part) for part in parts if len(part))


def _parquet(path: Path, name: str) -> Iterator[Compared | Unread]:
    import polars

    read, _ = READERS.get(path.stem.removesuffix("_perf"), (None, ()))
    if read is None:
        yield Unread(str(path), "its name is not that of an operator that is predicted")
        return
    try:
        on = device(SYSTEMS[name]) if name in SYSTEMS else system(name)
        engine = path.parts[-3]
        parts = list(read(polars.read_parquet(path), on, "" if engine == "nccl" else engine))
        kept = [part for part in (from_memory(part, on) for part in parts) if len(part)]
    except (SondeError, OSError, ValueError, KeyError, _polars_error()) as error:
        yield Unread(str(path), _words(error))
        return
    yield from (_compared(part) for part in kept)


def _compared(part: Points) -> Compared:
    name = f"{part.operator}/{part.format}" if part.format else part.operator
    return Compared(name, part.device, part.engine, part.seconds, predicted(part, shipped(part)))


def _messages(path: Path) -> Iterator[Compared | Unread]:
    """Yield the median times of messages in one node, and between nodes, measured and predicted."""
    import polars

    kind = next((name for name in MESSAGES if name in path.name), "")
    on = MACHINES.get(path.name.split("_")[0].lower())
    if not kind or on is None:
        known = f"a name such as h100_dgx_all_reduce.csv: one of {', '.join(MACHINES)}, and {' or '.join(MESSAGES)}"
        yield Unread(str(path), f"needs {known}")
        return
    try:
        frame = polars.read_csv(path)
        size, ranks, inside, spent = (
            frame[name].cast(float).to_numpy()
            for name in ("size", "num_workers", "devices_per_node", f"time_stats.{kind}.median")
        )
    except (OSError, ValueError, _polars_error()) as error:
        yield Unread(str(path), _words(error))
        return
    stated = (spent > 0) & (size > 0) & (ranks > 1) & (inside > 0)
    if not stated.any():
        yield Unread(str(path), "holds no message with a time, a size and two ranks or more")
    for place, kept in (("in a node", stated & (inside >= ranks)), ("between nodes", stated & (inside < ranks))):
        if kept.any():
            seconds = _message_s(device(on), kind, size[kept], ranks[kept], inside[kept])
            yield Compared(f"{kind.replace('_', '-')} {place}", on, "nccl", spent[kept] / 1e3, seconds)


def _message_s(on: Device, kind: str, size: Floats, ranks: Floats, inside: Floats) -> Floats:
    """Return the seconds of messages of `size` bytes over `ranks`, `inside` of them in every node."""
    curve = efficiencies(on).of("collective")
    near = np.minimum(inside, ranks)
    if kind == "send_recv":
        apart = message_seconds(curve, on.fabric, 2.0, 1.0, size, near=False)
        return np.where(near >= 2, message_seconds(curve, on.node, 2.0, 1.0, size, near=True), apart)
    nodes, among = ranks / near, np.maximum(near, 2.0)
    within = message_seconds(curve, on.node, among, 1.0, 2.0 * (near - 1.0) / near * size, near=True)
    rounds = 2.0 * np.log2(np.maximum(nodes, 2.0))
    part = 2.0 * (nodes - 1.0) / nodes * size / near
    across = curve.overhead_s + rounds * on.fabric.latency_s + part / (on.fabric.bandwidth * curve.memory)
    return np.where(near > 1, within, 0.0) + np.where(nodes > 1, across, 0.0)


def _polars_error() -> type[Exception]:
    import polars

    return polars.exceptions.PolarsError


def _words(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

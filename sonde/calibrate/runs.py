"""Whole runs of a model whose power, or whose times under a cap on power, were measured; columns.

A run is one batch of prompts and the tokens that follow them. `steps/*.csv` as Mutinifni/splitwise-sim publishes them
(MIT) is read: powers are shares of the device's peak, times are in ms.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonde.calibrate.points import Floats
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import Efficiencies, efficiencies
from sonde.catalogue.models import model
from sonde.cost.operators import batch_operators, head_operators, pair_operators, read_operators, token_operators
from sonde.cost.power import spent
from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard, shard
from sonde.deployment.tree import Replica
from sonde.errors import InputError, unknown

KEYS = ("model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size")
VALUES = ("peak_power", "average_power", "prompt_time", "token_time", "e2e_time")

#: names in the files -> (device, its cap); capped rows are of half the power: Splitwise (ISCA 2024), from 700 to 350 W
HARDWARE: dict[str, tuple[str, str | None]] = {
    "a100-80gb": ("a100-sxm-80gb", None),
    "h100-80gb": ("h100-sxm", None),
    "h100-80gb-pcap": ("h100-sxm", "50 %"),
}

#: what models of the catalogue are called in the files
MODELS = {"llama2-70b": "llama-2-70b"}


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one model on `ranks` devices of one kind, columns of equal length; repeats are one run, their medians.

    power_cap   of a device, or None
    length, batch, tokens        of a prompt; sequences; tokens after the prompt of each
    prompt_s, token_s, whole_s   seconds of all prompts, of one token, of the run
    average, highest             power of a device over its peak: the run's mean, and the highest seen (0: not measured)
    """

    model: str
    device: str
    ranks: int
    power_cap: str | None
    length: Floats
    batch: Floats
    tokens: Floats
    prompt_s: Floats
    token_s: Floats
    whole_s: Floats
    average: Floats
    highest: Floats

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.average)

    def where(self, chosen: NDArray[np.bool_]) -> Runs:
        """Return the runs that a mask chooses."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in _COLUMNS})

    def part(self, *, reached: Efficiencies | None = None, power_cap: str | None = None) -> Shard:
        """Return what one device holds and computes, in 16 bits, with constants or a cap of your own."""
        replica = Replica(model=self.model, device=self.device, tensor_parallel=self.ranks, power_cap=power_cap)
        where = device(self.device)
        return shard(model(self.model), where, replica, reached or efficiencies(where))


_COLUMNS = tuple(field.name for field in fields(Runs) if field.name not in ("model", "device", "ranks", "power_cap"))


def runs(folder: str | Path) -> list[Runs]:
    """Return the runs in `steps/*.csv` below `folder`, by model, device, ranks and cap, in order.

    Raises InputError where a file lacks a column, or names a model or hardware that is not known.
    """
    import polars as pl

    found = []
    for path in sorted((Path(folder) / "steps").glob("*.csv")):
        frame = pl.read_csv(path)
        for column in (*KEYS, *VALUES):
            if column not in frame.columns:
                raise InputError(str(path), ", ".join(frame.columns), f"lacks the column {column!r}")
        medians = frame.group_by(KEYS).agg(pl.col(VALUES).median()).sort(KEYS)
        for (name, hardware, ranks), group in medians.group_by(KEYS[:3], maintain_order=True):
            if hardware not in HARDWARE:
                raise unknown(f"{path} hardware", str(hardware), HARDWARE, "hardware")
            where, cap = HARDWARE[str(hardware)]
            columns = {key: group[key].cast(pl.Float64).to_numpy() for key in (*KEYS[3:], *VALUES)}
            found.append(_runs(MODELS.get(str(name), str(name)), where, int(str(ranks)), cap, columns))
    return found


def _runs(name: str, where: str, ranks: int, cap: str | None, columns: dict[str, Floats]) -> Runs:
    length, batch, tokens = (columns[key] for key in KEYS[3:])
    prompt_s, token_s, whole_s = (columns[key] / 1e3 for key in ("prompt_time", "token_time", "e2e_time"))
    average, highest = columns["average_power"], columns["peak_power"]
    return Runs(name, where, ranks, cap, length, batch, tokens, prompt_s, token_s, whole_s, average, highest)


def prompt_use(of: Runs, part: Shard) -> Floats:
    """Return the share of the prompts' time that arithmetic, memory and links would take at their peaks: [n, 3]."""
    return _use(part, _prompts(of, part)) / of.prompt_s[:, None]


def token_use(of: Runs, part: Shard) -> Floats:
    """Return the same of one token's step, in the middle of the run: [n, 3]."""
    return _use(part, _tokens(of, part)) / of.token_s[:, None]


def prompt_seconds(of: Runs, part: Shard) -> Floats:
    """Return the seconds that the prompts of every run take by the cost model."""
    return _seconds(part, _prompts(of, part))


def token_seconds(of: Runs, part: Shard) -> Floats:
    """Return the seconds that one token's step takes by the cost model, in the middle of every run."""
    return _seconds(part, _tokens(of, part))


def _prompts(of: Runs, part: Shard) -> list[tuple[Operator, Floats]]:
    """Return the operators of a step of all prompts, each with how many times it is run."""
    once = np.ones(len(of))
    found = [(operator, once) for operator in token_operators(part, of.length * of.batch)]
    pairs = of.batch * of.length**2 / 2
    return found + [(operator, pairs) for operator in pair_operators(part, windowed=False)] + _heads(of, part)


def _tokens(of: Runs, part: Shard) -> list[tuple[Operator, Floats]]:
    """Return the operators of a step in which every sequence decodes one token."""
    once = np.ones(len(of))
    found = [(operator, once) for operator in token_operators(part, of.batch)]
    found += [(operator, once) for operator in batch_operators(part, of.batch, of.batch)]
    read = of.batch * (of.length + of.tokens / 2)
    return found + [(operator, read) for operator in read_operators(part, windowed=False)] + _heads(of, part)


def _heads(of: Runs, part: Shard) -> list[tuple[Operator, Floats]]:
    """Return the head for a row of every sequence, in place of the one that `token_operators` holds."""
    once = np.ones(len(of))
    return [(operator, once) for operator in head_operators(part, of.batch)] + [
        (operator, -once) for operator in head_operators(part, np.ones(1))
    ]


def _seconds(part: Shard, operators: list[tuple[Operator, Floats]]) -> Floats:
    found = np.zeros(len(operators[0][1]))
    for operator, times in operators:
        found += spent(part, operator).seconds * times
    return found


def _use(part: Shard, operators: list[tuple[Operator, Floats]]) -> Floats:
    """Return seconds at the peaks of arithmetic, memory and links, summed over operators: [n, 3]."""
    found = np.zeros((len(operators[0][1]), 3))
    for operator, times in operators:
        peak = part.device.flops.get(operator.precision, np.inf)
        for at, amount in enumerate(
            (operator.flops / peak, operator.bytes / part.device.memory[0].bandwidth,
             operator.sent / part.device.node.bandwidth)
        ):  # fmt: skip
            found[:, at] += operator.layers * times * amount
    return found

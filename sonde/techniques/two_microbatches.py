"""Two microbatches: while one is in attention, the other is at its experts, and a layer takes the longer of the two.

A step of two halves takes, over L layers, (2 - 1/L)·slot + (A + E)/L where A and E are the attention and the expert
stream of one half over all layers (the first attention and the last experts have nothing beside them), and the slot is
what neither stream nor the device as a whole can undercut:

    slot = max(A, E, all arithmetic of both, all memory traffic of both)

The last two are left out of most accounts: two streams do not read memory twice as fast. With `share`, arithmetic
is parted instead: the attention stream has that share of the cores to itself, the experts the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sonde.cost.operators import batch_operators, read_operators, table_window, title, token_operators
from sonde.cost.power import held, running_w, spent
from sonde.cost.roofline import Floats, Operator, together
from sonde.cost.shard import Shard
from sonde.cost.table import Coefficients, Engine
from sonde.errors import InputError
from sonde.techniques.expert_placement import mixture
from sonde.techniques.technique import Parameters, Technique

#: contexts, as shares of the stated one, between which the table is exact at best and off by half its bend at worst
CONTEXTS = np.linspace(0.5, 1.5, 9)


class Halves(Parameters):
    """How a batch is halved.

    context   cached tokens of a decoding sequence around which the table is fitted, from half to one and a half of it
    share     of the cores that the attention stream has to itself; where it is not given, both streams share all of
              them
    least     tokens of a device from which a step is halved; where it is not given, wherever two halves, whose weights
              are read twice, take less than the whole
    """

    context: int = Field(default=4096, ge=1, le=10_000_000)
    share: float | None = Field(default=None, gt=0, lt=1)
    least: int | None = Field(default=None, ge=0, le=1 << 20)


class Stream(NamedTuple):
    """One stream of one microbatch over all layers: its own time, arithmetic and memory time in it (s), and joules."""

    seconds: Floats
    compute: Floats
    memory: Floats
    joules: Floats

    def plus(self, other: Stream) -> Stream:
        """Return both one after the other."""
        return Stream(*(a + b for a, b in zip(self, other, strict=True)))


def engine(engine: Engine, part: Shard, halves: Halves) -> Engine:
    """Return the engine whose steps run as two halves. Raises InputError where there is nothing to overlap.

    Exact for steps of prompts alone whose attention is short, and on the safe side for longer ones, whose pairs are
    taken not to be hidden; within half the bend of max() over the range of contexts for steps that decode alone.
    """
    mixture(part, "techniques.two-microbatches")
    if part.replica.pipeline_parallel > 1:
        raise InputError(
            "replica.pipeline_parallel", part.replica.pipeline_parallel, "must be 1 under two-microbatches",
            "the stages of a pipeline hold microbatches of their own",
        )  # fmt: skip
    if part.replica.power_cap is not None:
        raise InputError(
            "replica.power_cap", part.replica.power_cap, "must not be set under two-microbatches",
            "two streams draw more than either, and no cap is modelled for that",
        )  # fmt: skip
    time, energy = engine.table.time, engine.table.energy
    saved = prompts(part, halves, len(time.linear))
    period = min(16 * part.lanes, len(saved) - 1)
    slope = time.slope - float(saved[-1] - saved[-1 - period]) / period
    fast = _decoding(time._replace(linear=time.linear - saved, slope=slope), time, part, halves)
    return engine._replace(table=engine.table._replace(time=fast, energy=_energy(energy, time, fast, part)))


def prompts(part: Shard, halves: Halves, size: int) -> Floats:
    """Return the seconds that halving saves of a step of so many prompt tokens, their pairs left out: [size]."""
    count = np.arange(size, dtype=np.float64)
    lone = part.lanes > 1 and not part.sequence_parallel
    whole = streams(part, token_operators(part, count, lone=lone), size)
    half = streams(part, token_operators(part, count / 2, lone=lone), size, halves.share)
    saved: Floats = whole[0].seconds + whole[1].seconds - overlapped(*half, part.model.layers, halves.share)
    saved = np.where(_halved(halves, count if lone else count / part.lanes, saved), saved, 0.0)
    saved[0] = 0.0
    return saved


def _halved(halves: Halves, tokens: Floats, saved: Floats) -> NDArray[np.bool_]:
    """Return whether steps of so many tokens a device are halved."""
    return saved > 0.0 if halves.least is None else tokens >= halves.least


def saving(part: Shard, halves: Halves, contexts: Floats) -> Floats:
    """Return the seconds that halving saves of a step that decodes, by batch and context: [max_batch + 1, contexts]."""
    most = part.replica.batching.max_batch
    batch = np.arange(most + 1, dtype=np.float64)
    whole, half = _decode_streams(part, batch, None), _decode_streams(part, batch / 2, halves.share)
    found = np.zeros((most + 1, len(contexts)))
    for j, context in enumerate(contexts.tolist()):
        read = _read_stream(part, context, np.ceil(batch / part.lanes), None)
        read_half = _read_stream(part, context, np.ceil(batch / 2 / part.lanes), halves.share)
        both = overlapped(half[0].plus(read_half), half[1], part.model.layers, halves.share)
        found[:, j] = whole[0].seconds + whole[1].seconds + read.seconds - both
    found[0] = 0.0
    return found


def overlapped(attention: Stream, experts: Stream, layers: int, share: float | None) -> Floats:
    """Return the seconds of two halves of which each has these streams."""
    slot = np.maximum(attention.seconds, experts.seconds)
    slot = np.maximum(slot, attention.memory + experts.memory)
    if share is None:
        slot = np.maximum(slot, attention.compute + experts.compute)
    found: Floats = (2.0 - 1.0 / layers) * slot + (attention.seconds + experts.seconds) / layers
    return found


def streams(part: Shard, operators: list[Operator], size: int, share: float | None = None) -> tuple[Stream, Stream]:
    """Return the attention and the expert stream among operators; what is in neither (head, embedding) is left out."""
    for edit in part.edits:
        operators = edit(part, operators)
    mixers = tuple(f"{title(mixer)} " for mixer in part.model.mixers)
    cores = (share, 1.0 - share) if share else (1.0, 1.0)
    return (
        _stream(part, [one for one in operators if one.name.startswith(mixers)], size, cores[0]),
        _stream(
            part, [one for one in operators if one.name.startswith(("mlp ", "shared ", "experts"))], size, cores[1]
        ),
    )


def _stream(part: Shard, operators: list[Operator], size: int, cores: float) -> Stream:
    total = Stream(np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size))
    for operator in operators:
        took = held(part, operator)
        compute = took.compute / cores
        seconds = together(compute, took.memory, took.blend) + took.other
        total = total.plus(Stream(seconds, took.compute, took.memory, spent(part, operator).joules))
    return total


def _decode_streams(part: Shard, batch: Floats, share: float | None) -> tuple[Stream, Stream]:
    mine = np.ceil(batch / part.lanes)
    operators = token_operators(part, part.queries * batch) + batch_operators(part, mine, batch)
    return streams(part, operators, len(batch), share)


def _read_stream(part: Shard, context: float, mine: Floats, share: float | None) -> Stream:
    """Return the reading of the caches of `mine` sequences of one rank, each of `context` tokens."""
    found = Stream(*(np.zeros(len(mine)) for _ in range(4)))
    for windowed in (False, True):
        one = streams(part, read_operators(part, windowed=windowed), 1, share)[0]
        reach = min(context, float(table_window(part))) if windowed else context
        found = found.plus(Stream(*(part_[0] * reach * mine for part_ in one)))
    return found


def _decoding(table: Coefficients, plain: Coefficients, part: Shard, halves: Halves) -> Coefficients:
    """Return the table whose decoding steps are fitted to those of two halves: a line in the context for each batch."""
    most = part.replica.batching.max_batch
    batch = np.arange(most + 1, dtype=np.float64)[:, None]
    contexts = np.maximum(1.0, CONTEXTS * halves.context)
    window = float(table_window(part))
    reads = plain.read[:, None] * batch * contexts
    reads = reads + plain.read_window[:, None] * batch * np.minimum(contexts, window)
    alone = (plain.fixed + plain.linear[: most + 1] + plain.decode)[:, None] + reads
    saved = saving(part, halves, contexts)
    halved = _halved(halves, part.queries * batch[:, 0] / part.lanes, saved[:, len(contexts) // 2])
    saved = np.where(halved[:, None], saved, 0.0)
    took = alone - saved
    rise = reads[:, -1] - reads[:, 0]
    share = np.where(rise > 0.0, (took[:, -1] - took[:, 0]) / np.where(rise > 0.0, rise, 1.0), 1.0)
    rest = took - share[:, None] * reads
    level = (rest.max(axis=1) + rest.min(axis=1)) / 2.0
    decode = level - table.fixed - table.linear[: most + 1]
    decode[0] = 0.0
    return table._replace(decode=decode, read=plain.read * share, read_window=plain.read_window * share)


def _energy(energy: Coefficients, time: Coefficients, fast: Coefficients, part: Shard) -> Coefficients:
    """Return the joules of steps that take another time and, where they are halved, read weights twice."""
    watts = running_w(part) * part.replica.devices
    most = part.replica.batching.max_batch
    twice = _read_twice(part, len(time.linear))
    line = np.where(np.isclose(fast.linear, time.linear, rtol=1e-9), 0.0, twice)
    before, after = (it.linear[: most + 1] + it.decode for it in (time, fast))
    decoded = np.where(np.isclose(before, after, rtol=1e-9), 0.0, twice[part.queries * np.arange(most + 1)])
    decode = energy.decode + watts * (fast.decode - time.decode) + decoded - line[: most + 1]
    decode[0] = 0.0
    return energy._replace(
        linear=energy.linear + watts * (fast.linear - time.linear) + line,
        slope=energy.slope + watts * (fast.slope - time.slope),
        decode=decode,
        read=energy.read + watts * (fast.read - time.read),
        read_window=energy.read_window + watts * (fast.read_window - time.read_window),
    )


def _read_twice(part: Shard, size: int) -> Floats:
    """Return the joules, over all devices, by which the work of two halves of so many tokens exceeds the whole's."""
    count = np.arange(size, dtype=np.float64)
    whole, half = (streams(part, token_operators(part, tokens), size) for tokens in (count, count / 2))
    more: Floats = 2.0 * (half[0].joules + half[1].joules) - whole[0].joules - whole[1].joules
    more[0] = 0.0
    return np.maximum(more, 0.0) * part.replica.devices


TECHNIQUE = Technique(
    title="two halves of a batch, one in attention while the other is at its experts: the longer of the two counts",
    source="DeepSeek-AI, arXiv 2412.19437, section 3.4; Zuo et al., arXiv 2506.12708, section 4.2",
    parameters=Halves,
    cannot={"nano-batches": "both cut the batch and overlap its parts"},
    engine=engine,
)

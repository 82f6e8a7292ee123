"""Padding elimination: prompts of a batch are packed for everything but attention (EnergonAI's DRCE).

Sonde's engines never pad. This is for those of fixed shapes, which bring every prompt of a batch to its longest: as
they are (`linear: false`), and with padding dropped before matrix products and put back for attention.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from sonde.cost.power import held, running_w
from sonde.cost.roofline import Floats, Operator
from sonde.cost.shard import Shard
from sonde.cost.table import Coefficients, Engine
from sonde.deployment.node import refuse
from sonde.techniques.retime import retimed
from sonde.techniques.technique import Parameters, Technique


class Padding(Parameters):
    """How full batches of prompts are, and what is done about it.

    fill         Σ length / (prompts · longest), the mean over batches
    fill_pairs   Σ length² / (prompts · longest²), from fill² to fill; fill² where it is not given, the most padding
    linear       whether padding is dropped before matrix products; false: the padded engine itself
    """

    fill: float = Field(gt=0, le=1, examples=[0.6])
    fill_pairs: float | None = Field(default=None, gt=0, le=1)
    linear: bool = True

    @model_validator(mode="after")
    def _pairs_are_of_lengths(self) -> Padding:
        if self.fill_pairs is not None and not self.fill**2 <= self.fill_pairs <= self.fill:
            refuse(
                "fill_pairs", self.fill_pairs, f"must be from fill² = {self.fill**2:g} to fill = {self.fill:g}",
                "no lengths have such squares",
            )  # fmt: skip
        return self


def engine(engine: Engine, part: Shard, padding: Padding) -> Engine:
    """Return the engine that pads prompts: attention always, products too unless they are packed.

    Decoding is never padded. Packing moves the hidden state of every token twice a layer, out and back.
    """
    table = engine.table
    watts = running_w(part) * part.replica.devices
    times = [_padded(quantity, padding) for quantity in (table.time, table.energy)]
    padded = table._replace(time=times[0], energy=times[1])
    if padding.linear and padding.fill < 1.0:
        tokens = np.arange(len(table.time.linear), dtype=np.float64)
        moved = repacking(part, tokens)
        time = padded.time._replace(
            linear=padded.time.linear + moved, slope=padded.time.slope + float(moved[-1] - moved[-2])
        )
        padded = retimed(padded, time, watts)
    return engine._replace(table=padded)


def repacking(part: Shard, tokens: Floats) -> Floats:
    """Return the seconds that packing and padding again take for so many tokens in all layers; none for none."""
    moved = 4.0 * tokens * part.model.hidden * part.activation_bytes  # read and written, twice
    found = held(part, Operator("repacking", "elementwise", part.model.layers, bytes=moved, launches=2)).seconds
    found[tokens == 0] = 0.0
    return found


def _padded(table: Coefficients, padding: Padding) -> Coefficients:
    pairs = padding.fill**2 if padding.fill_pairs is None else padding.fill_pairs
    found = table._replace(prefill=table.prefill / pairs, prefill_window=table.prefill_window / pairs)
    if padding.linear:
        return found
    last = len(table.linear) - 1
    at = np.arange(last + 1) / padding.fill
    linear = np.interp(at, np.arange(last + 1), table.linear) + table.slope * np.maximum(at - last, 0.0)
    batch = np.minimum(np.arange(len(table.decode)), last)
    decode = table.decode + table.linear[batch] - linear[batch]
    return found._replace(linear=linear, slope=table.slope / padding.fill, decode=decode)


TECHNIQUE = Technique(
    title="prompts of a batch are packed for matrix products, where the engine pads them to the longest",
    source="Du et al., EnergonAI (DRCE), 2022, arXiv 2209.02341",
    parameters=Padding,
    engine=engine,
)

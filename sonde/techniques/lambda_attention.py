"""Attention to the first tokens and a window of the last: caches that stop growing (Λ-shaped; AccLLM, StreamingLLM)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from sonde.catalogue.efficiencies import Efficiencies
from sonde.catalogue.model import Mixer
from sonde.cost.shard import Shard
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique


class Reach(Parameters):
    """Which tokens of a sequence are kept.

    sinks    first tokens, that are kept for good
    window   last tokens
    """

    sinks: int = Field(default=4, ge=0, le=1_048_576)
    window: int = Field(default=1020, ge=1, le=1_048_576)


def shard(part: Shard, reach: Reach) -> Shard:
    """Return the share of a device whose attention reads, and caches, `sinks + window` tokens at most.

    Positions are those within the cache, so that none is beyond what the model was trained on. Raises InputError
    for a model that has no cache of keys and values that grows beyond that.
    """
    kept = reach.sinks + reach.window
    cut = tuple(_cut(mixer, kept) for mixer in part.model.mixers)
    if cut == part.model.mixers:
        raise InputError(
            "techniques.lambda-attention", kept,
            f"changes nothing: {part.model.name} has no attention whose keys and values grow beyond so many tokens",
        )  # fmt: skip
    own = any(mixer.window and mixer is new for mixer, new in zip(part.model.mixers, cut, strict=True))
    reached = part.efficiencies if own else _plain(part.efficiencies)
    return replace(part, model=replace(part.model, mixers=cut), efficiencies=reached)


def _plain(reached: Efficiencies) -> Efficiencies:
    """Return efficiencies by which windows are read as caches of that length are: what is kept lies together.

    Not for models with windows of their own, whose kernels have been measured.
    """
    plain = {name: name.replace("window-", "attention-", 1) for name in reached.curves if name.startswith("window-")}
    return replace(reached, curves={**reached.curves, **{name: reached.of(other) for name, other in plain.items()}})


def _cut(mixer: Mixer, kept: int) -> Mixer:
    if mixer.kind != "attention" or (mixer.window and mixer.window <= kept):
        return mixer
    return replace(mixer, window=kept, cache_saturates=True)


TECHNIQUE = Technique(
    title="attention to the first tokens and a window of the last, so that caches stop growing",
    source="Liang et al., AccLLM, 2025, arXiv 2505.03745; Xiao et al., StreamingLLM, ICLR 2024",
    parameters=Reach,
    shard=shard,
)

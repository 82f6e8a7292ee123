"""Expert placement: measured popularity of experts, copies of the hot ones, and which rank holds which (EPLB)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from sonde.catalogue.model import FeedForward
from sonde.cost.placement import Floats, placed, popularity, zipf
from sonde.cost.shard import Shard
from sonde.deployment.node import Line
from sonde.deployment.tree import Replica
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique

PATH = "techniques.expert-placement"


class Places(Parameters):
    """How often experts are met, and where they stand.

    zipf        loads fall with an expert's rank as rank^-zipf; 0: all are met alike
    loads       file of measured loads in place of that, one number a line, in the order of the experts
    seed        which expert has which rank of `zipf`
    planned     file of the loads that the placement was made for, where they are not those that are served
    redundant   copies beside the first of each expert, in all, given to those whose copies are busiest
    balanced    the busiest copy first to the rank of least load; else in order, as they are numbered
    """

    zipf: float = Field(default=0.0, ge=0, le=4, examples=[0.8])
    loads: Line | None = None
    seed: int = Field(default=0, ge=0)
    planned: Line | None = None
    redundant: int = Field(default=0, ge=0, le=65_536, examples=[32])
    balanced: bool = True


def replica(replica: Replica, places: Places) -> Replica:
    """Return the replica with its copies of experts."""
    return replica.model_copy(update={"redundant_experts": places.redundant})


def shard(part: Shard, places: Places) -> Shard:
    """Return the share of a device whose step waits for the busiest rank. Raises InputError where counts can't be."""
    forward, ranks = mixture(part, "techniques.expert-placement"), part.replica.expert_parallel
    if ranks == 1:
        raise InputError("replica.expert_parallel", 1, "must be above 1 for expert-placement", "there is one place")
    total = forward.experts + places.redundant
    if places.redundant and total % ranks:
        more = places.redundant + -total % ranks
        raise InputError(
            f"{PATH}.redundant", places.redundant,
            f"must make {forward.experts} experts a multiple of {ranks} ranks, as {more} does",
            "some ranks would hold a copy more than others",
        )  # fmt: skip
    if places.redundant > forward.experts * (ranks - 1):
        raise InputError(
            f"{PATH}.redundant", places.redundant, f"must be at most {forward.experts * (ranks - 1)}",
            "every rank would hold every expert already",
        )  # fmt: skip
    shares = popularity(_loads(places, places.loads, forward), forward.top_k)
    planned = shares
    if places.planned is not None:
        planned = popularity(_loads(places, places.planned, forward), forward.top_k)
    stand = placed(planned, ranks, places.redundant, balanced=places.balanced)
    return replace(part, placement=stand.under(shares))


def mixture(part: Shard, path: str) -> FeedForward:
    """Return the layers with experts of a model. Raises InputError where it has none, or several kinds of them."""
    found = [forward for forward in part.model.feedforwards if forward.experts]
    if not found:
        raise InputError(path, part.model.name, "needs a model with experts", "there is nothing that it would change")
    if len({(forward.experts, forward.top_k) for forward in found}) > 1:
        raise InputError(path, part.model.name, "needs layers that all have as many experts")
    return found[0]


def _loads(places: Places, path: str | None, forward: FeedForward) -> Floats | list[float]:
    if path is None:
        return zipf(forward.experts, places.zipf, places.seed)
    found = read_loads(path)
    if len(found) != forward.experts:
        raise InputError(f"{PATH}.loads", path, f"must hold {forward.experts} loads, and holds {len(found)}")
    return found


def read_loads(path: str) -> list[float]:
    """Return the loads in a file, one a line. Raises InputError for what is no number from 0 up, and for all zeros."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{PATH}.loads", path, "must be a file of one number a line", str(error)) from None
    found = []
    for number, text in enumerate(lines, 1):
        try:
            load = float(text)
        except ValueError:
            load = -1.0
        if not 0.0 <= load < 1e30:
            raise InputError(f"{path}:{number}", text, "must be a number from 0 up: how often that expert was met")
        found.append(load)
    if not any(found):
        raise InputError(f"{PATH}.loads", path, "must hold a load above 0", "no expert would be met")
    return found


TECHNIQUE = Technique(
    title="hot experts in copies, the busiest first to the rank with least to do; steps wait for the busiest rank",
    source="DeepSeek-AI, EPLB and DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.4",
    parameters=Places,
    replica=replica,
    shard=shard,
)

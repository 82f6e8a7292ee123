"""Nodes of the tree for what lies between replicas: links, the path of a request, prefix caches, live migration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sonde.deployment.node import Choice, Line, quantity, quantity_or_share, refuse, repeated

Seconds = Annotated[float, quantity("time", zero=True), Field(ge=0)]
Bytes = Annotated[float, quantity("bytes", zero=True), Field(ge=0)]


#: bytes/s below which somebody forgot a unit
SLOWEST = 1000


def _with_a_unit(value: float) -> float:
    if 0 < value < SLOWEST:
        refuse(
            "", value, f'must be at least {SLOWEST:,} bytes/s, with its unit, such as "{value:g} GB/s"',
            "plain numbers are bytes/s: a cache would travel for years",
        )  # fmt: skip
    return value


Bandwidth = Annotated[float, quantity("bandwidth"), Field(gt=0), AfterValidator(_with_a_unit)]


def share(text: str) -> float:
    """Return 0.2 for "20 %"."""
    return float(text.removesuffix("%")) / 100


def _below_all(value: float | str) -> float | str:
    if isinstance(value, str) and share(value) >= 1:
        refuse("", value, "must be below 100 %", "no memory would be left for requests")
    return value


#: bytes, or "20 %" of the KV memory of a replica
Room = Annotated[
    Annotated[float, Field(ge=0)] | Annotated[str, Field(pattern=r"^[\d.]+ %$")],
    quantity_or_share("bytes", "a replica's KV memory", zero=True),
    AfterValidator(_below_all),
]


class Link(Choice):
    """Bandwidth that transfers share equally, `streams` of them at once; `per`: one for all, or one per replica."""

    bandwidth: Bandwidth
    latency: Seconds = 10e-6
    streams: int = Field(default=16, ge=1, le=4096)
    per: Literal["all", "source", "target"] = "source"


class Path(Choice):
    """The way of a request: a pool that computes prompts, a link, and a pool that decodes, by name.

    layer_wise  caches are sent layer by layer while the prompt is computed, not when it is done
    routing     policy that picks the replica which decodes
    """

    visits: tuple[Line, ...] = Field(min_length=1)
    layer_wise: bool = False
    routing: Line = "least-tokens"


class Tier(Choice):
    """Where blocks of prompts are kept: so many bytes for every replica, or for all of them where `shared`.

    The first tier is device memory, taken off that for running requests: bytes, or a share of it such as "20 %"; the
    others are read over a link.
    """

    name: Line
    capacity: Room
    shared: bool = False
    link: Line | None = None


class Cache(Choice):
    """A prefix cache: tiers from the nearest on, and which block is given up first ("lru" or "cost-aware")."""

    tiers: tuple[Tier, ...] = Field(min_length=1, max_length=4)
    eviction: Literal["lru", "cost-aware"] = "lru"

    @model_validator(mode="after")
    def _only_the_first_tier_is_at_hand(self) -> Self:
        for name in repeated(tier.name for tier in self.tiers):
            refuse("tiers", name, "two tiers have this name")
        first, *more = self.tiers
        if first.link is not None or first.shared:
            refuse("tiers", first.name, "the first tier is device memory: it has no link and is not shared")
        for tier in more:
            if isinstance(tier.capacity, str):
                refuse(
                    "tiers", tier.name, 'needs bytes, such as "512 GiB": only the first tier is a share of a replica'
                )
            if tier.link is None:
                refuse("tiers", tier.name, "needs a `link` to be read over", "it would be as fast as device memory")
        return self


class Migration(Choice):
    """Live migration of running requests: a policy, asked every `interval`, and what it goes by.

    policy       "defragment", "balanced", or "module:function" of your own
    low, high    steps that the memory of a replica still lasts its batch: below `low` it sends, above `high` it takes
    headroom     memory that is kept free beside requests of the most urgent priority
    tail_tokens  so few tokens are left to copy when a sequence stops; stages: copies at most until it does
    """

    link: Line
    policy: Line = "defragment"
    interval: Annotated[float, quantity("time"), Field(gt=0)] = 0.2
    low: float = 30.0
    high: float = 60.0
    headroom: Bytes = 0.0
    tail_tokens: int = Field(default=16, ge=0, le=100_000)
    stages: int = Field(default=3, ge=1, le=100)


class Lending(Choice):
    """Memory lent between replicas that decode, with attention over it: over which link, and what each keeps free."""

    link: Line
    reserve: Bytes = 0.0

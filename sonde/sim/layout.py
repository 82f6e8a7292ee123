"""A deployment's paths, caches and migration as the simulator takes them."""

from __future__ import annotations

from collections.abc import Sequence

from sonde.catalogue.model import Model
from sonde.catalogue.models import model
from sonde.cost.table import Engine
from sonde.deployment.network import Link, Tier, share
from sonde.deployment.tree import Deployment
from sonde.errors import InputError
from sonde.sim.network import ALONE, CacheSpec, Connected, LendingSpec, LinkSpec, MigrationSpec, Paths, TierSpec
from sonde.sim.world import Fleet
from sonde.units import show

_SCOPE = {"all": "shared", "source": "source", "target": "target"}


def connected(deployment: Deployment, engines: Sequence[tuple[Engine, int]]) -> Fleet | Connected:
    """Return the fleet as `sonde.sim.engine.run` takes it: as it is where replicas do not depend on each other.

    `deployment` is as `sonde.techniques.compose.arranged` leaves it, and checked. Raises InputError where the first
    tier of a cache leaves no memory for requests.
    """
    paths = paths_of(deployment)
    if paths == ALONE:
        return engines
    if paths.cache is not None and deployment.cache is not None:
        first, sees = deployment.cache.tiers[0], paths.prefill or len(engines)
        held = [_held(first, engine) if k < sees else 0 for k, (engine, _) in enumerate(engines)]
        engines = [(_without(engine, bytes_, first), n) for bytes_, (engine, n) in zip(held, engines, strict=True)]
        tiers = (paths.cache.tiers[0]._replace(by_entry=tuple(held)), *paths.cache.tiers[1:])
        paths = paths._replace(cache=paths.cache._replace(tiers=tiers))
    return Connected(tuple(engines), paths)


def paths_of(deployment: Deployment) -> Paths:
    """Return the stages, links, cache tiers and migration of a deployment; a first tier that is a share has 0 bytes."""
    found = ALONE
    path, cache, moving = deployment.path, deployment.cache, deployment.migration
    if path is not None and len(path.visits) == 3:
        found = found._replace(
            prefill=1, hand_over=_link(deployment.links[path.visits[1]], path.visits[1]), routing=path.routing,
            layers=model(deployment.pools[0].replica.model).layers if path.layer_wise else 0,
        )  # fmt: skip
    if cache is not None:
        tiers = tuple(
            TierSpec(
                0 if isinstance(tier.capacity, str) else int(tier.capacity),
                tier.shared,
                _link(deployment.links[tier.link], tier.name) if tier.link else None,
                tier.name,
            )
            for tier in cache.tiers
        )
        found = found._replace(cache=CacheSpec(tiers, cache.eviction))
    if moving is not None:
        found = found._replace(
            migration=MigrationSpec(
                _link(deployment.links[moving.link], "migration"), moving.interval, moving.low, moving.high,
                int(moving.headroom), moving.tail_tokens, moving.stages, moving.policy,
            )
        )  # fmt: skip
    if deployment.lending is not None:
        size, rounds = exchanged(model(deployment.pools[-1].replica.model))
        link = _link(deployment.links[deployment.lending.link], "lending")
        found = found._replace(lending=LendingSpec(link, int(deployment.lending.reserve), size, rounds))
    return found


def exchanged(model: Model) -> tuple[int, int]:
    """Return the bytes of queries and partial results of one sequence in a step, and in how many layers they go.

    In 16 bits, of every head: a query, a partial result, its maximum and its sum.
    """
    size = rounds = 0
    for mixer in model.mixers:
        if mixer.kind in ("attention", "mla"):
            keys = mixer.cache_elements if mixer.kind == "mla" else mixer.cache_elements // (2 * mixer.kv_heads)
            size += mixer.layers * mixer.heads * (2 * keys + 2) * 2
            rounds += mixer.layers
    return size, rounds


def _link(link: Link, name: str) -> LinkSpec:
    return LinkSpec(link.bandwidth, link.latency, link.streams, _SCOPE[link.per], name)


def _held(tier: Tier, engine: Engine) -> int:
    """Return the bytes that the first tier of a cache takes of a replica."""
    if isinstance(tier.capacity, str):
        return int(share(tier.capacity) * engine.memory.capacity_bytes)
    return int(tier.capacity)


def _without(engine: Engine, held: int, tier: Tier) -> Engine:
    """Return the engine with `held` bytes less for requests, which `tier` takes."""
    left = engine.memory.capacity_bytes - held
    if left <= 0 < held:
        raise InputError(
            "cache.tiers[0]", show(held, "bytes"),
            f"tier {tier.name!r} must be below the {show(engine.memory.capacity_bytes, 'bytes')} that a replica has",
            "no memory would be left for requests",
        )  # fmt: skip
    return engine._replace(memory=engine.memory._replace(capacity_bytes=left))

"""A deployment's paths, caches and migration as the simulator takes them."""

from __future__ import annotations

from collections.abc import Sequence

from sonde.catalogue.models import model
from sonde.cost.table import Engine
from sonde.deployment.tree import Deployment, Link
from sonde.errors import InputError
from sonde.sim.network import ALONE, CacheSpec, Connected, LinkSpec, MigrationSpec, Paths, TierSpec
from sonde.sim.world import Fleet

_SCOPE = {"all": "shared", "source": "source", "target": "target"}


def connected(deployment: Deployment, engines: Sequence[tuple[Engine, int]]) -> Fleet | Connected:
    """Return the fleet as `sonde.sim.engine.run` takes it: as it is where replicas do not depend on each other.

    `deployment` is as `sonde.techniques.compose.arranged` leaves it, and checked. Raises InputError where the first
    tier of a cache leaves no memory for requests.
    """
    paths = paths_of(deployment)
    if paths == ALONE:
        return engines
    if paths.cache is not None:
        held = paths.cache.tiers[0].capacity_bytes
        sees = paths.prefill or len(engines)
        engines = [(_without(engine, held) if k < sees else engine, n) for k, (engine, n) in enumerate(engines)]
    return Connected(tuple(engines), paths)


def paths_of(deployment: Deployment) -> Paths:
    """Return the stages, links, cache tiers and migration of a deployment."""
    found = ALONE
    path, cache, moving = deployment.path, deployment.cache, deployment.migration
    if path is not None and len(path.visits) == 3:
        found = found._replace(
            prefill=1, hand_over=_link(deployment.links[path.visits[1]]), routing=path.routing,
            layers=model(deployment.pools[0].replica.model).layers if path.layer_wise else 0,
        )  # fmt: skip
    if cache is not None:
        tiers = tuple(
            TierSpec(int(tier.capacity), tier.shared, _link(deployment.links[tier.link]) if tier.link else None)
            for tier in cache.tiers
        )
        found = found._replace(cache=CacheSpec(tiers, cache.eviction))
    if moving is not None:
        found = found._replace(
            migration=MigrationSpec(
                _link(deployment.links[moving.link]), moving.interval, moving.low, moving.high, int(moving.headroom),
                moving.tail_tokens, moving.stages, moving.policy,
            )
        )  # fmt: skip
    return found


def _link(link: Link) -> LinkSpec:
    return LinkSpec(link.bandwidth, link.latency, link.streams, _SCOPE[link.per])


def _without(engine: Engine, held: int) -> Engine:
    """Return the engine with `held` bytes less for requests."""
    left = engine.memory.capacity_bytes - held
    if left <= 0:
        raise InputError(
            "cache.tiers[0].capacity", held, f"must be below the {engine.memory.capacity_bytes:,} bytes of a replica",
            "no memory would be left for requests",
        )  # fmt: skip
    return engine._replace(memory=engine.memory._replace(capacity_bytes=left))

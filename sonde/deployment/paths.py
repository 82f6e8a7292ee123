"""Whether what lies between replicas can be: paths without loops, links that are there, caches that have a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sonde.deployment.network import Migration
from sonde.deployment.node import repeated
from sonde.deployment.tree import Deployment
from sonde.errors import InputError, unknown
from sonde.units import show

if TYPE_CHECKING:
    from sonde.metrics import Objective


def check_paths(deployment: Deployment) -> None:
    """Raise InputError where a path, a cache or migration names what is not there, or cannot be walked."""
    for i, tier in enumerate(deployment.cache.tiers if deployment.cache else ()):
        if tier.link is not None:
            _known_link(deployment, tier.link, f"cache.tiers[{i}].link")
    if deployment.migration is not None:
        _check_migration(deployment, deployment.migration)
    if deployment.lending is not None:
        _known_link(deployment, deployment.lending.link, "lending.link")
        lend = deployment.pools[1:] if deployment.path and len(deployment.path.visits) == 3 else deployment.pools
        if sum(pool.replicas for pool in lend) < 2:
            raise InputError(
                "lending", sum(pool.replicas for pool in lend), "needs at least 2 replicas that decode",
                "there would be nobody to borrow from",
            )  # fmt: skip
    if deployment.path is not None:
        _check_path(deployment)


def _check_migration(deployment: Deployment, moving: Migration) -> None:
    from sonde.policies import migration

    _known_link(deployment, moving.link, "migration.link")
    if ":" not in moving.policy and moving.policy not in migration.POLICIES:
        known = [*migration.POLICIES, "module:function"]
        raise unknown("migration.policy", moving.policy, known, "policy", see="sonde show policies")
    if moving.low > moving.high:
        raise InputError(
            "migration.low", moving.low, f"may be at most high = {moving.high:g}",
            "requests would move to replicas that are shorter of memory than those they leave",
        )  # fmt: skip
    pools = [pool for pool in deployment.pools if deployment.path is None or pool.name == deployment.path.visits[-1]]
    kinds = sorted({pool.replica.kv_cache for pool in pools})
    if len(kinds) > 1:
        raise InputError(
            "migration", ", ".join(kinds), "needs one `kv_cache` precision in all pools that decode",
            "what one has cached the other could not read",
        )  # fmt: skip


def check_objectives(deployment: Deployment, objectives: Sequence[Objective]) -> None:
    """Raise InputError for an objective on a stage that a deployment's path lacks; it is as its techniques leave it."""
    goal = next((goal for goal in objectives if goal.metric == "transfer"), None)
    if goal is None:
        return
    if deployment.path is None or len(deployment.path.visits) < 3:
        raise InputError(
            "objectives.transfer", show(goal.limit_s, "time"), "needs a path with a link",
            "prompts and answers are computed in one place, and no cache is ever sent",
        )  # fmt: skip
    if deployment.migration is not None:
        raise InputError(
            "objectives.transfer", show(goal.limit_s, "time"), "cannot stand beside live migration",
            "when a cache first landed is not known of requests that have moved since",
        )  # fmt: skip


def _check_path(deployment: Deployment) -> None:
    from sonde.policies import routing

    path, pools = deployment.path, [pool.name for pool in deployment.pools]
    if path is None:
        return
    if ":" not in path.routing and path.routing not in routing.POLICIES:
        raise unknown("path.routing", path.routing, routing.POLICIES, "policy", see="sonde show policies")
    visits = path.visits
    for name in repeated(visits[::2]):
        raise InputError("path.visits", name, "is visited twice: a path has no loops", "a request would never leave it")
    for at, name in enumerate(visits):
        where = f"path.visits[{at}]"
        if at % 2:
            _known_link(deployment, name, where)
        elif name not in pools:
            raise unknown(where, name, pools, "pool")
    if len(visits) not in (1, 3):
        raise InputError(
            "path.visits",
            list(visits),
            "must be one pool, or a pool that computes prompts, a link and a pool that decodes",
        )
    missing = [name for name in pools if name not in visits]
    if missing:
        raise InputError("path.visits", list(visits), f"leaves out {', '.join(missing)}", "no request would come there")
    caches = {pool.name: pool.replica.kv_cache for pool in deployment.pools}
    if len(set(caches.values())) > 1:
        raise InputError(
            "path.visits", ", ".join(f"{name}: {held}" for name, held in caches.items()),
            "needs one `kv_cache` precision in both pools", "what one has cached the other could not read",
        )  # fmt: skip
    if list(visits[::2]) != pools:
        raise InputError("path.visits", list(visits), f"must visit pools in their order: {', '.join(pools)}")


def _known_link(deployment: Deployment, name: str, path: str) -> None:
    if name not in deployment.links:
        if not deployment.links:
            raise InputError(path, name, "is no link: `links` names none, such as {" + name + ": {bandwidth: 25 GB/s}}")
        raise unknown(path, name, deployment.links, "link")

"""Run requests through replicas: the public entrance to the kernels. Checks, words, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.errors import InputError
from sonde.metrics import Objective, Outcome
from sonde.policies import routing as routing_policies
from sonde.policies.batching import BatchView
from sonde.policies.migration import Thresholds
from sonde.policies.routing import RequestView
from sonde.sim.client import as_clients_see
from sonde.sim.clock import run_closed, run_open
from sonde.sim.functions import batcher, evictor, migrator, own_function, router
from sonde.sim.network import ALONE, Connected, Paths, check_paths
from sonde.sim.paths import run_paths
from sonde.sim.state import BAD_BATCHING, BAD_MIGRATION, BAD_ROUTING, World
from sonde.sim.world import Fleet, build, outcome, set_goals
from sonde.workload.requests import Requests
from sonde.workload.requests import requests as request_columns

#: kernels take exactly this many batching policies, so that one compilation serves every fleet
BATCHING_POLICIES = 4


def run(
    requests: Requests,
    fleet: Fleet | Connected,
    *,
    routing: str = "least-outstanding",
    clients: int | None = None,
    seed: int = 0,
    until_missed: Sequence[Objective] = (),
) -> Outcome:
    """Return what happens when `requests` meet `fleet`, a sequence of (engine, replicas), or one that is connected.

    Open loop: every request is sent at its arrival time. Closed loop (`clients` given): so many clients send
    the requests in order, each the next as soon as its last is finished, from time 0. The run stops as
    soon as one of the objectives `until_missed`, on TTFT, TPOT or end to end, can't be met any more
    (`Outcome.aborted`). The same arguments give the same bytes. Times are as clients see them (`sonde.sim.client`).
    Raises InputError on a policy that can't be used, or that leaves requests standing. Exact: equal to stepping
    one by one (docs/events.md).
    """
    if clients is not None and clients < 1:
        raise InputError("clients", clients, "must be at least 1", "no request would ever be sent")
    engines, paths = (fleet.fleet, fleet.paths) if isinstance(fleet, Connected) else (fleet, ALONE)
    check_paths(engines, paths, requests)
    names = sorted({engine.batching for engine, _ in engines})
    if len(names) > BATCHING_POLICIES:
        raise InputError("batching.policy", names, f"at most {BATCHING_POLICIES} different ones in a deployment")
    policies = tuple(batcher(name) for name in (names * BATCHING_POLICIES)[:BATCHING_POLICIES])
    routings = [routing, paths.routing] if paths.prefill else [routing]
    route = router(routing)
    draws = np.random.default_rng(seed).random((requests.n if any(map(_draws, routings)) else 1, 2))
    world = set_goals(build(requests, engines, draws, clients or 0, paths), requests, until_missed)
    looks = [known for known in map(routing_policies.POLICIES.get, routings) if known is not None]
    world.run.sees_tokens = len(looks) < len(routings) or any(known.sees_tokens for known in looks)
    world.run.sees_cache = paths.cache is not None and (len(looks) < len(routings) or looks[0].sees_cache)
    ready("paths" if paths != ALONE else "open" if clients is None else "closed")
    arrival = np.ascontiguousarray(world.work.arrival)
    start = time.perf_counter()
    if paths != ALONE:
        run_paths(world, arrival, clients or 0, _deciders(route, paths), policies)
    elif clients is None:
        run_open(world, arrival, route, policies)
    else:
        run_closed(world, clients, route, policies)
    spent = time.perf_counter() - start
    _check_policies(world, routing, names)
    _check_migration(world, paths)
    return as_clients_see(outcome(world, requests, engines, spent, paths), engines)


def _draws(routing: str) -> bool:
    """Return whether a routing policy may look at what is drawn for each request."""
    return routing in ("random", "power-of-two") or routing not in routing_policies.POLICIES


def _deciders(route: Any, paths: Paths) -> tuple[Any, Any, Any, Any]:
    evict = evictor(paths.cache.eviction if paths.cache else "lru")
    migrate = migrator(paths.migration.policy if paths.migration else "defragment")
    return route, router(paths.routing), evict, migrate


@cache
def ready(kind: str) -> None:
    """Compile the kernel of the "open" or "closed" loop or of "paths", or load it from the cache on disk."""
    zero = np.zeros(2)
    time_ = Coefficients(1.0, zero, 0.0, 0.0, 0.0, zero, zero, zero)
    engine = Engine(StepTable(time_, time_, 0), KvMemory(8, 1, 1, 0, 0, 1.0), "chunked", 1, 1, "swap", 0.0, 0.0, 1)
    asked, paths = request_columns([0.0], [1], [1]), Paths(routing="random") if kind == "paths" else ALONE
    world = build(asked, [(engine, 1)], np.zeros((1, 2)), 1, paths)
    policies = tuple(batcher("chunked") for _ in range(BATCHING_POLICIES))
    route = router("round-robin")
    if kind == "paths":
        run_paths(world, np.zeros(1), 0, _deciders(route, ALONE), policies)
    elif kind == "closed":
        run_closed(world, 1, route, policies)
    else:
        run_open(world, np.zeros(1), route, policies)


def _check_policies(world: World, routing: str, batching: Sequence[str]) -> None:
    """Raise InputError where a policy of the user's failed, with what it does when it is called again."""
    run = world.run[0]
    if run.abort == BAD_ROUTING:
        i, last = int(run.fault), len(world.replicas) - 1
        request = RequestView(
            i, float(world.work[i].arrival), int(world.prompt[i]), int(world.work[i].priority), int(world.session[i]),
            *(float(draw) for draw in world.draws[i % len(world.draws)]),
        )  # fmt: skip
        said = _said(own_function(routing, "routing.policy"), world.seen, request)
        raise InputError(
            "routing.policy", routing, f"must return a replica from 0 to {last}, and for request {i} {said}"
        )
    if run.abort == BAD_BATCHING:
        replica = world.replicas[int(run.fault)]
        name = batching[int(world.engines[replica.engine].policy)]
        engine = world.engines[replica.engine]
        view = BatchView(
            int(replica.active), int(replica.waiting), int(replica.part >= 0),
            int(engine.mixed_budget if replica.active else engine.token_budget), int(engine.max_batch),
        )  # fmt: skip
        raise InputError(
            "batching.policy",
            name,
            f"must return a Step, and for {view} {_said(own_function(name, 'batching.policy'), view)}",
        )
    if not run.abort and world.replicas.waiting.sum() > 0:
        raise InputError(
            "batching.policy", ", ".join(batching), "must admit requests that wait at an idle engine",
            f"{int(world.replicas.waiting.sum())} would never be served",
        )  # fmt: skip


def _check_migration(world: World, paths: Paths) -> None:
    """Raise InputError where a migration policy of the user's failed, with what it does when it is called again."""
    run, replicas = world.run[0], len(world.replicas)
    if run.abort == BAD_MIGRATION and paths.migration is not None:
        name, first = paths.migration.policy, int(run.first_stage) if run.first_stage < replicas else 0
        thresholds = Thresholds(float(run.low), float(run.high), int(run.headroom), first)
        said = _said(own_function(name, "migration.policy"), world.seen, thresholds)
        raise InputError(
            "migration.policy", name, f"must return two different replicas of {first} to {replicas - 1}, or -1 twice, "
            f"and {said}",
        )  # fmt: skip


def _said(function: Callable[..., object], *arguments: object) -> str:
    try:
        return f"returned {function(*arguments)!r}"
    except Exception as error:  # noqa: BLE001  (whatever the user's function raises is what to show)
        return f"raised {type(error).__name__}: {error}"

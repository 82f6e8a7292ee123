"""Run requests through replicas: the public entrance to the kernels. Checks, words, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from sonde.errors import InputError
from sonde.metrics import Objective, Outcome
from sonde.policies import routing as routing_policies
from sonde.sim.clock import run_closed, run_open
from sonde.sim.functions import batcher, router
from sonde.sim.world import Fleet, build, outcome, set_goals
from sonde.workload.requests import Requests

#: kernels take exactly this many batching policies, so that one compilation serves every fleet
BATCHING_POLICIES = 4


def run(
    requests: Requests,
    fleet: Fleet,
    *,
    routing: str = "least-outstanding",
    clients: int | None = None,
    seed: int = 0,
    until_missed: Sequence[Objective] = (),
) -> Outcome:
    """Return what happens when `requests` meet `fleet`, a sequence of (engine, replicas).

    Open loop: every request is sent at its arrival time. Closed loop (`clients` given): so many clients send
    the requests in order, each the next as soon as its last is finished, from time 0. The run stops as
    soon as one of the objectives `until_missed`, on TTFT, TPOT or end to end, can't be met any more
    (`Outcome.aborted`). The same
    arguments give the same bytes. Raises InputError on a policy that can't be used, or that leaves requests
    standing. Exact: equal to stepping one by one (docs/events.md).
    """
    if clients is not None and clients < 1:
        raise InputError("clients", clients, "must be at least 1", "no request would ever be sent")
    names = sorted({engine.batching for engine, _ in fleet})
    if len(names) > BATCHING_POLICIES:
        raise InputError("batching.policy", names, f"at most {BATCHING_POLICIES} different ones in a deployment")
    policies = tuple(batcher(name) for name in (names * BATCHING_POLICIES)[:BATCHING_POLICIES])
    route = router(routing)
    drawn = routing in ("random", "power-of-two") or routing not in routing_policies.POLICIES
    draws = np.random.default_rng(seed).random((requests.n if drawn else 1, 2))
    world = set_goals(build(requests, fleet, draws, clients or 0), requests, until_missed)
    known = routing_policies.POLICIES.get(routing)
    world.run.sees_tokens = known is None or known.sees_tokens
    start = time.perf_counter()
    if clients is None:
        run_open(world, requests.arrival_s, route, policies)
    else:
        run_closed(world, clients, route, policies)
    spent = time.perf_counter() - start
    if world.run.abort[0] == 2:
        raise InputError("routing.policy", routing, f"must return a replica from 0 to {len(world.replicas) - 1}")
    if not world.run.abort[0] and world.replicas.waiting.sum() > 0:
        raise InputError(
            "batching.policy", names, "must admit requests that wait at an idle engine", "they would never be served"
        )
    return outcome(world, requests, fleet, spent)

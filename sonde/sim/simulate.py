"""The verb: a deployment and its traffic in, what happens out. Compiles every pool, then runs the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.cost.money import carbon_g, electricity_usd
from sonde.deployment.tree import Deployment
from sonde.metrics import Objective, Outcome
from sonde.sim.ends import run_at
from sonde.sim.engine import run
from sonde.sim.layout import connected
from sonde.sim.network import Connected
from sonde.sim.world import Fleet
from sonde.techniques.compose import blaming, checked, chosen, compiled
from sonde.techniques.held import guesses
from sonde.workload.requests import Requests


def fleet(deployment: Deployment) -> Fleet:
    """Return the engines of all pools under the deployment's techniques, each with its number of replicas.

    Raises what `compile_replica` raises. `deployment` is as `sonde.techniques.compose.arranged` leaves it.
    """
    engines, techniques, path = [], chosen(deployment.techniques), deployment.path
    apart = path.visits[0] if path is not None and len(path.visits) > 1 else None
    for pool in deployment.pools:
        engine = compiled(
            model(pool.replica.model), device(pool.replica.device), pool.replica,
            [technique for technique in techniques if technique.at(pool.name, prompts=pool.name == apart)],
            purchase=pool.purchase, usd_per_device_hour=pool.usd_per_device_hour,
        )  # fmt: skip
        engines.append((engine, pool.replicas))
    return tuple(engines)


def simulate(
    deployment: Deployment,
    requests: Requests,
    *,
    clients: int | None = None,
    seed: int = 0,
    until_missed: Sequence[Objective] = (),
) -> Outcome:
    """Return what happens to `requests` on `deployment`, with its power and carbon charged where they are drawn.

    `Outcome.interval` of it simulates the same twice more, as fast and as slow as it may be. Arguments are those of
    `sonde.sim.engine.run`. Raises InputError on what the catalogue does not know, CannotError where a model does
    not fit its devices.
    """
    written, (deployment, _) = deployment, checked(deployment)
    how: dict[str, Any] = {"routing": deployment.routing.policy, "clients": clients, "seed": seed}
    with blaming(written):
        engines = connected(deployment, fleet(deployment))
        outcome = run(requests, engines, until_missed=until_missed, **how)
    return replace(charged(outcome, deployment), either=partial(both, deployment, requests, engines, how))


def both(
    deployment: Deployment, requests: Requests, engines: Fleet | Connected, how: Mapping[str, Any]
) -> tuple[Outcome, Outcome]:
    """Return what happens at the fast and at the slow end of the interval, charged; `how` as `run` takes it."""
    fast, slow = (charged(run_at(requests, engines, slow=end, **how), deployment) for end in (False, True))
    return fast, slow


def charged(outcome: Outcome, deployment: Deployment) -> Outcome:
    """Return the outcome with dollars for electricity and grams of CO2, by the site that every replica stands in.

    It is marked where a technique of the deployment makes several tokens a step.
    """
    replicas = [sum(pool.replicas for pool in site.pools) for site in deployment.sites]
    drawn = np.split(outcome.energy_j, np.cumsum(replicas)[:-1])
    sites = [(float(joules.sum()), site) for joules, site in zip(drawn, deployment.sites, strict=True)]
    return replace(
        outcome,
        bursts=guesses(chosen(deployment.techniques)),
        electricity_usd=sum(electricity_usd(joules, site.usd_per_kwh, site.pue) for joules, site in sites),
        carbon_g=sum(carbon_g(joules, site.carbon_g_per_kwh, site.pue) for joules, site in sites),
    )

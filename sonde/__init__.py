"""Sonde: what to run where, at what cost, latency and energy, found by exact simulation.

    import sonde

    result = sonde.plan("examples/chat-8b.yaml")
    result.plans[0].deployment

Nothing heavy is imported before the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonde.catalogue.device import Device
    from sonde.catalogue.model import Model
    from sonde.deployment.scenario import Scenario
    from sonde.deployment.tree import Deployment
    from sonde.metrics import Outcome
    from sonde.plan.result import PlanResult
    from sonde.workload.requests import Requests

__version__ = "0.1.0"
__all__ = ["device", "load", "model", "plan", "read_trace", "simulate"]


def load(deployment: str | Path | Mapping[str, Any]) -> Deployment:
    """Return the deployment of a YAML file or a mapping. Raises InputError naming what is wrong in it."""
    from sonde.deployment.load import load as read

    return read(deployment)


def read_trace(path: str | Path) -> Requests:
    """Return the requests of a trace file in any format that Sonde knows, as columns sorted by arrival."""
    from sonde.workload.readers import read

    return read(path)


def model(name: str) -> Model:
    """Return a model of the catalogue, or the model of a Hugging Face `config.json` at path `name`."""
    from sonde.catalogue.models import model as find

    return find(name)


def device(name: str) -> Device:
    """Return a device of the catalogue."""
    from sonde.catalogue.devices import device as find

    return find(name)


def simulate(
    deployment: Deployment | str | Path | Mapping[str, Any],
    trace: Requests | str | Path,
    *,
    clients: int | None = None,
    seed: int = 0,
) -> Outcome:
    """Return what happens to every request of `trace` on `deployment`, simulated exactly.

    With `clients`, so many clients send the requests one after the other, each as soon as its last is answered,
    and the arrival times of the trace are not used. `seed` feeds the routing policies that draw.
    """
    from sonde.deployment.tree import Deployment
    from sonde.sim.simulate import simulate as run

    tree = deployment if isinstance(deployment, Deployment) else load(deployment)
    requests = read_trace(trace) if isinstance(trace, (str, Path)) else trace
    return run(tree, requests, clients=clients, seed=seed)


def plan(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    trace: Requests | str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    top: int = 10,
) -> PlanResult:
    """Return every deployment that holds the objectives of `scenario`, the cheapest first, and why others do not.

    `trace` (columns or a file) takes the place of the scenario's workload. `progress` is called with what is done,
    what there is to do, and a few words. KeyboardInterrupt ends the search early: what was found by then is
    returned, marked `interrupted`. Of the cheapest plans of `top` kinds of fleet it is said how sure they are. Raises
    InputError on a scenario that cannot be used.
    """
    from sonde.plan import plan as search

    return search(scenario, trace=trace, progress=progress, top=top)

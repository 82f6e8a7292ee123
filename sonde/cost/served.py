"""What a device reaches while an engine serves a model on it: curves of its kernels, and what serving adds.

Which engine that is where nobody names one is said here, and nowhere else.
"""

from __future__ import annotations

from sonde.catalogue.curves import family
from sonde.catalogue.device import Device
from sonde.catalogue.efficiencies import Efficiencies, efficiencies, engines
from sonde.catalogue.engines import BUSY, ServingEngine, effects, series, serving_engine, spread
from sonde.catalogue.power import spread as power_spread
from sonde.cost.table import Client, Doubt
from sonde.deployment.tree import Replica

#: models whose 8-bit weights are published with a scale for every block
BLOCK_SCALED = ("deepseek", "glm-5", "kimi", "minimax", "qwen3")


def served(
    device: Device, replica: Replica, engine: str | None = None, version: str = "", *, block: bool = False
) -> Efficiencies:
    """Return what `device` reaches under `engine` ("generic": no engine's constants; None: as `engine_name` says).

    block   8-bit weights are scaled block by block, also where the model is not known to be published so.
    Raises InputError for an engine that the catalogue does not know.
    """
    engine = engine or engine_name(device, replica)
    if engine == "generic":
        return efficiencies(device)
    made = family(device.name)
    measured = series(engine, version, replica.model, device.name)
    more = effects(made, replica.weights, replica.model, device.name, measured)
    alone = kernels(device, engine, block=block or block_scaled(replica.model))
    return serving_engine(engine, version, made).under(alone, more)


def default_engine(device: Device) -> str:
    """Return the engine that serves on a device where nobody names one.

    "vllm" on whatever stands in data centres and on NVIDIA's GPUs in workstations; "generic", which adds nothing
    that was measured, on phones, boards, edge devices, laptops, CPUs and other makers' workstations.
    """
    here = device.kind == "datacentre" or (device.kind == "workstation" and device.vendor == "NVIDIA")
    return "vllm" if here else "generic"


def engine_name(device: Device, replica: Replica) -> str:
    """Return the engine whose constants a replica on `device` is computed with: its own, or the device's default."""
    return replica.engine or default_engine(device)


def client(constants: ServingEngine, ranks: int, clients: int | None = None) -> Client:
    """Return what a client waits for beside an engine of `ranks` attention ranks; `clients`: that many are served."""
    few, many = (constants.polls(count, ranks) if clients is None else constants.polls(clients, ranks)
                 for count in (1, BUSY))  # fmt: skip
    return Client(constants.ttft_s * constants.ttft_factor, constants.ttft_token_s, few, many)


def client_of(device: Device, replica: Replica) -> Client:
    """Return what a client of a replica on `device` waits for beside its engine (nothing, of a generic one)."""
    name = engine_name(device, replica)
    if name == "generic":
        return Client()
    made = family(device.name)
    more = effects(made, replica.weights, replica.model, device.name)
    return client(serving_engine(name, "", made).waiting(more), replica.data_parallel)


def doubt_of(device: Device, replica: Replica, model: str) -> Doubt:
    """Return how far times and joules of a model (its catalogue name) on `device` may be off."""
    return Doubt(*spread(engine_name(device, replica), model, device.name), *power_spread(device))


def kernels(device: Device, engine: str, *, block: bool) -> Efficiencies:
    """Return what operators reach that are measured alone, by the curves of that engine's kernels where it has any."""
    return efficiencies(device, engine if engine in engines() else "default", block_scaled=block)


def block_scaled(model: str) -> bool:
    """Return whether a model's 8-bit weights are published with a scale for every block."""
    return model.startswith(BLOCK_SCALED)

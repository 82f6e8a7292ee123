"""Whether a deployment or a scenario can be, by what the catalogue knows: one check a function.

What cannot be raises InputError; what can be and is probably not meant is returned as a warning, in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sonde.catalogue.device import PRECISION_BYTES, Device
from sonde.catalogue.model import Model
from sonde.deployment.paths import check_paths
from sonde.deployment.scenario import Scenario
from sonde.deployment.tree import Deployment, Pool, Replica
from sonde.errors import InputError, unknown
from sonde.units import show

Found = TypeVar("Found")

_FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def check(deployment: Deployment) -> tuple[str, ...]:
    """Return warnings, where every model, device and policy is known and parallelism and precision can be.

    Raises InputError with the path of what cannot be, and the values that could.
    """
    from sonde.policies import routing

    _known_policy(deployment.routing.policy, routing.POLICIES, "routing.policy")
    warnings: list[str] = []
    for i, site in enumerate(deployment.sites):
        for j, pool in enumerate(site.pools):
            path = f"sites[{i}].pools[{j}]"
            warnings += [f"{path}: {warning}" for warning in _check_pool(pool, path)]
            first = deployment.pools[0].replica.model
            if pool.replica.model != first:
                raise InputError(
                    f"{path}.replica.model", pool.replica.model, f"must be {first!r} as in the first pool",
                    "one router stands before all pools, so users would be answered by either model",
                )  # fmt: skip
    check_paths(deployment)
    return tuple(warnings)


def check_scenario(scenario: Scenario) -> None:
    """Raise InputError where a model, a device, its price or a policy of a scenario is not known."""
    from sonde.catalogue.devices import device
    from sonde.catalogue.models import model
    from sonde.policies import batching, routing

    found = _named(model, scenario.model, "model")
    search = scenario.search
    for i, name in enumerate(search.batching):
        _known_policy(name, batching.POLICIES, f"search.batching[{i}]")
    for i, name in enumerate(search.routing):
        _known_policy(name, routing.POLICIES, f"search.routing[{i}]")
    divisors = tensor_parallels(found, max(search.tensor_parallel or (1,)))
    if search.tensor_parallel is not None and not set(divisors) & set(search.tensor_parallel):
        allowed = f"none divides the attention heads of {found.name}: {_some(divisors)} would"
        raise InputError("search.tensor_parallel", search.tensor_parallel, allowed, "there would be no candidate")
    seen: dict[str, int] = {}
    for i, kind in enumerate(scenario.hardware):
        path = f"hardware[{i}].device"
        row = _named(device, kind.device, path)
        first = seen.setdefault(f"{row.name} {kind.purchase}", i)
        if first != i:
            raise InputError(
                path, kind.device, f"is {row.name}, as hardware[{first}] is", "add up their `max` in one entry"
            )
        if kind.price is None and not row.usd_per_hour:
            raise _unknown_cost(row, f"hardware[{i}].price")


def tensor_parallels(model: Model, most: int) -> list[int]:
    """Return the tensor parallel degrees up to `most` that divide the attention heads of a model."""
    return [degree for degree in range(1, most + 1) if _divides(model, degree)]


def _check_pool(pool: Pool, path: str) -> Iterator[str]:
    from sonde.catalogue.devices import device
    from sonde.catalogue.models import model
    from sonde.policies import batching

    replica, at = pool.replica, f"{path}.replica"
    found = _named(model, replica.model, f"{at}.model")
    row = _named(device, replica.device, f"{at}.device")
    _known_policy(replica.batching.policy, batching.POLICIES, f"{at}.batching.policy")
    _check_heads(found, replica, at)
    _check_experts(found, replica, at)
    _check_precision(row, replica, at)
    power_cap_w(row, replica, f"{at}.power_cap")
    if replica.pipeline_parallel > found.layers:
        allowed = f"may be at most the {found.layers} layers of {found.name}"
        raise InputError(f"{at}.pipeline_parallel", replica.pipeline_parallel, allowed, "a stage would hold no layer")
    if replica.tensor_parallel > row.node_devices:
        yield (
            f"tensor_parallel = {replica.tensor_parallel} crosses nodes of {row.node_devices} {row.name}: "
            "every layer waits for the network between them; pipeline_parallel would send less"
        )
    if replica.data_parallel > 1 and not any(forward.experts for forward in found.feedforwards):
        yield f"data_parallel = {replica.data_parallel} shares experts, and {found.name} has none: use replicas"
    if pool.usd_per_device_hour is None:
        yield from _price(row, pool.purchase, f"{path}.usd_per_device_hour")


def power_cap_w(device: Device, replica: Replica, path: str = "power_cap") -> float:
    """Return the watts that one device of a replica may draw: its cap, or its peak power.

    Raises InputError where a cap is above the peak, or not above what the device draws when idle.
    """
    cap = replica.power_cap
    if cap is None:
        return device.peak_w
    watts = float(cap.rstrip(" %")) / 100.0 * device.peak_w if isinstance(cap, str) else cap
    if not device.idle_w < watts <= device.peak_w:
        low = device.idle_w >= watts
        raise InputError(
            path, show(cap, "power") if isinstance(cap, float) else cap,
            f"must be above {show(device.idle_w, 'power')}, which {device.name} draws when idle, and at most "
            f"{show(device.peak_w, 'power')}, which it draws at its peak",
            "no power would be left to work with" if low else "it would change nothing",
        )  # fmt: skip
    return watts


def _check_heads(model: Model, replica: Replica, path: str) -> None:
    degree = replica.tensor_parallel
    if not _divides(model, degree):
        heads = ", ".join(f"{mixer.heads} heads ({mixer.kv_heads} of keys and values)" for mixer in model.mixers[:1])
        allowed = (
            f"must divide the attention heads of {model.name}, {heads}: {_some(tensor_parallels(model, 4 * degree))}"
        )
        raise InputError(f"{path}.tensor_parallel", degree, allowed, "a device would hold part of a head")


def _check_experts(model: Model, replica: Replica, path: str) -> None:
    degree, at = replica.expert_parallel, f"{path}.expert_parallel"
    counts = sorted({forward.experts for forward in model.feedforwards if forward.experts})
    if degree > 1 and not counts:
        raise InputError(at, degree, f"must be 1: {model.name} has no experts")
    for count in counts:
        held = count + replica.redundant_experts
        if held % degree:
            degrees = [n for n in range(1, held + 1) if held % n == 0]
            more = f" and {replica.redundant_experts} copies" if replica.redundant_experts else ""
            raise InputError(at, degree, f"must divide the {count} experts{more} of {model.name}: {_some(degrees)}")


def _check_precision(device: Device, replica: Replica, path: str) -> None:
    if not device.computes(replica.activations):
        better = [name for name in PRECISION_BYTES if device.computes(name)]
        allowed = f"{device.name} computes in {', '.join(better)}"
        consequence = (
            f"with weights in {replica.weights} and activations in one of these, weights are widened as they are read"
        )
        raise InputError(f"{path}.activations", replica.activations, allowed, consequence)


def _price(device: Device, purchase: str, path: str) -> Iterator[str]:
    if not device.usd_per_hour:
        raise _unknown_cost(device, path)
    if purchase not in device.usd_per_hour:
        dearest = max(device.usd_per_hour, key=lambda name: device.usd_per_hour[name])
        yield (
            f"{device.name} has no {purchase!r} price in the catalogue: "
            f"${device.usd_per_hour[dearest]:.2f}/h of {dearest!r} is used; give a price to compare like with like"
        )


def _unknown_cost(device: Device, path: str) -> InputError:
    return InputError(path, None, f"is needed: the catalogue has no price for {device.name}", "its cost is unknown")


def _divides(model: Model, degree: int) -> bool:
    for mixer in model.mixers:
        if mixer.kind == "indexer":
            continue
        keys = max(mixer.kv_heads, 1)
        if mixer.heads % degree or (mixer.kind == "attention" and keys % degree and degree % keys):
            return False
    return True


def _named(find: Callable[[str], Found], name: str, path: str) -> Found:
    """Return what the catalogue has under `name`; an error about it names the path in the tree."""
    try:
        return find(name)
    except InputError as error:
        if error.path not in ("model", "device"):
            raise
        raise InputError(path, error.value, error.allowed, error.consequence) from None


def _known_policy(name: str, known: Iterable[str], path: str) -> None:
    if ":" in name:
        if not _FUNCTION.match(name):
            raise InputError(path, name, 'a policy of your own must look like "module:function"')
    elif name not in set(known):
        raise unknown(path, name, known, "policy", see="sonde show policies")


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")

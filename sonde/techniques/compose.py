"""Techniques together: read, checked against each other, and applied in the order of the table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from sonde.catalogue.device import Device
from sonde.catalogue.model import Model
from sonde.cost.compile import compile_shard
from sonde.cost.roofline import Operator
from sonde.cost.served import served
from sonde.cost.shard import Shard, shard
from sonde.cost.table import Engine
from sonde.deployment.check import check
from sonde.deployment.faults import fault
from sonde.deployment.tree import Deployment, Replica, Use
from sonde.errors import InputError
from sonde.techniques.table import TECHNIQUES, technique
from sonde.techniques.technique import Chosen


def chosen(uses: Iterable[Use]) -> tuple[Chosen, ...]:
    """Return techniques with their parameters, in the order in which they are applied.

    Raises InputError for a name or a parameter that there is none of, for a technique named twice, and for two
    that cannot stand beside each other, with why.
    """
    found: dict[str, Chosen] = {}
    for i, use in enumerate(uses):
        one = _read(use, f"techniques[{i}]")
        if one.name in found:
            raise InputError(f"techniques[{i}]", one.name, "is there twice", "which of the two would count?")
        if one.parameters.pools and not one.technique.within:
            raise InputError(
                f"techniques[{i}].{one.name}.pools", list(one.parameters.pools), "must be left out",
                "it lies between all pools and changes none of their replicas",
            )  # fmt: skip
        for other in found.values():
            why = one.technique.cannot.get(other.name) or other.technique.cannot.get(one.name)
            if why:
                raise InputError(f"techniques[{i}]", one.name, f"cannot stand beside {other.name}: {why}")
        found[one.name] = one
    return tuple(found[name] for name in TECHNIQUES if name in found)


def use_name(use: Use) -> str:
    """Return the name of a technique, with parameters or without ("" where neither is there)."""
    return use if isinstance(use, str) else next(iter(use), "")


def arranged(deployment: Deployment) -> Deployment:
    """Return the deployment as its techniques leave it: their pools, links, caches and routing, and their replicas.

    Techniques stay named in it, for `compiled` to apply what they do within a replica.
    """
    techniques = chosen(deployment.techniques)
    for one in techniques:
        if one.technique.deployment is not None:
            deployment = one.technique.deployment(deployment, one.parameters)
    names = [pool.name for pool in deployment.pools]
    for one in techniques:
        for name in one.parameters.pools:
            if name not in names:
                raise InputError(
                    f"techniques.{one.name}.pools", name, f"must be of {', '.join(names)}, as techniques leave them",
                    "nothing would be changed",
                )  # fmt: skip
    sites = [
        site.model_copy(
            update={
                "pools": tuple(
                    pool.model_copy(
                        update={"replica": _replica(pool.replica, [t for t in techniques if t.at(pool.name)])}
                    )
                    for pool in site.pools
                )
            }
        )
        for site in deployment.sites
    ]
    return deployment.model_copy(update={"sites": tuple(sites)})


def checked(deployment: Deployment) -> tuple[Deployment, tuple[str, ...]]:
    """Return the deployment as `arranged` leaves it, and the warnings of `sonde.deployment.check.check` about that.

    Raises InputError with the path of what the user wrote: where a technique brought about what cannot be, it names
    that technique and, where there is one, its parameter.
    """
    with blaming(deployment):
        tree = arranged(deployment)
        return tree, check(tree)


@contextmanager
def blaming(deployment: Deployment) -> Iterator[None]:
    """Turn errors, raised within, about what techniques made of a deployment into ones about what was written in it."""
    try:
        yield
    except InputError as error:
        raise _blamed(error, deployment) from None


def _blamed(error: InputError, deployment: Deployment) -> InputError:
    """Return an error about what techniques made as one about what was written: the tree, or a technique.

    That is the first with which checks find the error, or the last that changed the part of the tree it is about.
    """
    if error.path.startswith("techniques"):
        return error
    root = re.split(r"[.\[]", error.path)[0]
    uses, found = {use_name(use): use for use in deployment.techniques}, None
    tree = deployment.model_copy(update={"techniques": ()})
    for one in (None, *chosen(deployment.techniques)):
        before, named = tree, (*tree.techniques, *([] if one is None else [uses[one.name]]))
        try:
            tree = arranged(deployment.model_copy(update={"techniques": named}))
            check(tree)
        except InputError as same:
            if (same.value, same.allowed) == (error.value, error.allowed):
                return same if one is None else _about(one, error)
            continue
        if getattr(tree, root, None) != getattr(before, root, None):
            found = one
    return error if found is None else _about(found, error)


def _about(one: Chosen, error: InputError) -> InputError:
    first, _, last = error.path.rpartition(".")
    path, known = f"techniques.{one.name}", type(one.parameters).model_fields
    if last in known:
        return InputError(f"{path}.{last}", error.value, error.allowed, error.consequence)
    about = f"{last} " if first and last.isidentifier() else ""  # of what it made, such as "tensor_parallel must ..."
    return InputError(path, error.value, about + error.allowed, error.consequence)


def compiled(
    model: Model,
    device: Device,
    replica: Replica,
    techniques: Sequence[Chosen] = (),
    *,
    purchase: str = "on-demand",
    usd_per_device_hour: float | None = None,
) -> Engine:
    """Return the engine of a replica under techniques; `replica` is as `arranged` (or `replica_under`) leaves it.

    Raises InputError and CannotError as `sonde.cost.compile_replica` does.
    """
    part = shard_under(model, device, replica, techniques)
    engine = compile_shard(part, purchase=purchase, usd_per_device_hour=usd_per_device_hour)
    for one in techniques:
        if one.technique.engine is not None:
            engine = one.technique.engine(engine, part, one.parameters)
    return engine


def shard_under(model: Model, device: Device, replica: Replica, techniques: Sequence[Chosen] = ()) -> Shard:
    """Return what one device of a replica holds and computes under techniques, with what they make of its operators.

    `sonde.cost.explain.step_rows` says what its steps take. Raises InputError as `compiled` does.
    """
    part = shard(model, device, replica, served(device, replica, replica.engine))
    for one in techniques:
        if one.technique.shard is not None:
            part = one.technique.shard(part, one.parameters)
        if one.technique.operators is not None:
            part = replace(part, edits=(*part.edits, _edit(one.technique.operators, one.parameters)))
    return part


def replica_under(replica: Replica, techniques: Sequence[Chosen]) -> Replica:
    """Return a replica with what techniques choose in it: precision, parallelism, batching."""
    return _replica(replica, techniques)


def _replica(replica: Replica, techniques: Sequence[Chosen]) -> Replica:
    for one in techniques:
        if one.technique.replica is not None:
            replica = one.technique.replica(replica, one.parameters)
    return Replica.model_validate(replica.model_dump())


def _edit(
    operators: Callable[[Shard, list[Operator], Any], list[Operator]], parameters: Any
) -> Callable[[Shard, list[Operator]], list[Operator]]:
    return lambda part, found: operators(part, found, parameters)


def _read(use: Use, path: str) -> Chosen:
    name, given = use_name(use), {} if isinstance(use, str) else next(iter(use.values()), {})
    if not isinstance(use, str) and len(use) != 1:
        raise InputError(path, use, 'must be a name, or one name with its parameters, such as {"w4a4": {group: 128}}')
    found = technique(name, path)
    try:
        parameters = found.parameters.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        said = fault(error, given, found.parameters, lambda _: "")
        raise InputError(f"{path}.{name}.{said.path}", said.value, said.allowed, said.consequence) from None
    return Chosen(name, found, parameters)

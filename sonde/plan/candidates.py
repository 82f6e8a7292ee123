"""What may be tried: every way to run one replica that the scenario allows, and why the others cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from sonde.catalogue.device import PRECISION_BYTES, Device
from sonde.catalogue.model import Model
from sonde.cost.table import Engine
from sonde.deployment.scenario import HardwareChoice, Scenario, SearchChoice
from sonde.deployment.tree import Batching, Deployment, Pool, Precision, Replica, Routing, Site
from sonde.errors import CannotError, InputError, unknown
from sonde.plan.result import Rejection
from sonde.units import parse

#: arithmetic that a device needs to compute with weights of this precision, a key of `Device.flops`
_NEEDS = {"nvfp4": "fp4", "mxfp4": "fp4"}
#: activations that go with weights; what is not here goes with bf16 (weights are expanded on the fly)
_ACTIVATIONS: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "fp8": "fp8", "int8": "int8", "nvfp4": "nvfp4"}
#: policies that never look at the token budget: the largest one sets the memory that their steps may need
_BUDGETLESS = ("static", "iteration")
_PURCHASES = ("on-demand", "spot", "owned")
#: devices that share every layer, where the scenario leaves that open: within a node
_TENSOR = (1, 2, 4, 8)
#: stages that are tried where the scenario leaves them open and nothing fits the devices of one
_PIPELINE = (2, 4)


class Hardware(NamedTuple):
    """A kind of device that may be used: its row, how many, and dollars per device-hour (NaN: not known)."""

    device: Device
    most: int
    usd_per_hour: float
    purchase: str
    priced_by_hand: bool

    @property
    def title(self) -> str:
        """Return the device's name, and how it is bought where that is not on demand."""
        return self.device.name if self.purchase == "on-demand" else f"{self.device.name} ({self.purchase})"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run a replica, compiled, and how many of them there may be."""

    hardware: Hardware
    replica: Replica
    routing: str
    engine: Engine
    most: int  # replicas
    label: str  # of one replica: "h100-sxm tp2 fp8, chunked 2048, batch 256"

    @property
    def family(self) -> tuple[object, ...]:
        """Return what the candidate shares with those that differ in batching and routing alone."""
        replica = self.replica
        return (
            self.hardware.device.name, self.hardware.purchase, self.hardware.usd_per_hour, replica.tensor_parallel,
            replica.pipeline_parallel, replica.data_parallel, replica.expert_parallel, replica.weights,
            replica.kv_cache,
        )  # fmt: skip


#: candidates with how many replicas of each: one pool each, behind one router
Fleet = tuple[tuple[Candidate, int], ...]


def deployment(fleet: Fleet) -> Deployment:
    """Return the deployment of a fleet: one site, a pool for each candidate, and the router of the first."""
    pools = [
        Pool.model_validate(
            {
                "name": "pool" if len(fleet) == 1 else f"pool-{i}",
                "replicas": replicas,
                "replica": candidate.replica,
                "purchase": candidate.hardware.purchase,
                "usd_per_device_hour": candidate.hardware.usd_per_hour if candidate.hardware.priced_by_hand else None,
            }
        )
        for i, (candidate, replicas) in enumerate(fleet, 1)
    ]
    return Deployment(sites=(Site(pools=tuple(pools)),), routing=Routing(policy=fleet[0][0].routing))


def label(fleet: Fleet) -> str:
    """Return short text such as "2 × h100-sxm tp1 fp8, chunked 2048, batch 64"."""
    return " + ".join(f"{replicas} × {candidate.label}" for candidate, replicas in fleet)


def price(fleet: Fleet) -> float:
    """Return dollars per hour of all replicas."""
    return round(sum(replicas * candidate.engine.usd_per_hour for candidate, replicas in fleet), 9)


class Candidates(NamedTuple):
    """What may be tried, what may not and why, and how many were left out for being equal to another.

    `piped` names the devices on which nothing fits one stage, so that pipelines were tried unasked.
    """

    kept: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    merged: int
    piped: tuple[str, ...] = ()


def hardware(choices: tuple[HardwareChoice, ...]) -> tuple[Hardware, ...]:
    """Return the kinds of device, priced as they are bought; NaN where that price is not known.

    Raises InputError where a device, a way to buy or a price cannot be read.
    """
    from sonde.catalogue.devices import device

    found = []
    for i, choice in enumerate(choices):
        path = f"hardware[{i}]"
        if choice.purchase not in _PURCHASES:
            raise unknown(f"{path}.purchase", choice.purchase, _PURCHASES, "way to buy")
        try:
            row = device(choice.device)
        except InputError as error:
            raise InputError(f"{path}.device", choice.device, error.allowed, error.consequence) from None
        dollars = row.usd_per_hour.get(choice.purchase, math.nan)
        if choice.price is not None:
            dollars = parse(choice.price, "price", f"{path}.price", zero=True)
        found.append(Hardware(row, choice.max, dollars, choice.purchase, choice.price is not None))
    return tuple(found)


def enumerate_candidates(model: Model, scenario: Scenario) -> Candidates:
    """Return every candidate of the scenario, each compiled once; equal engines are tried once.

    A device whose price is not known as it is bought is left out: its dollars could not be ranked with others.
    """
    kept: dict[tuple[object, ...], Candidate] = {}
    rejected: list[Rejection] = []
    merged, piped = 0, []
    for kind in hardware(scenario.hardware):
        if math.isnan(kind.usd_per_hour):
            rejected.append(_unpriced(kind))
            continue
        some, refused = _of_kind(model, scenario, kind, scenario.search.pipeline_parallel or (1,))
        full = any(item.constraint == "memory" for item in refused)
        if scenario.search.pipeline_parallel is None and full and not some:
            piped.append(kind.device.name)
            some, more = _of_kind(model, scenario, kind, _PIPELINE)
            refused += more
        for candidate in some:
            key = (*_identity(candidate.engine), candidate.routing, candidate.most)
            merged += key in kept
            kept.setdefault(key, candidate)
        rejected += refused
    return Candidates(
        tuple(kept.values()), tuple({item.label: item for item in rejected}.values()), merged, tuple(piped)
    )


def _of_kind(
    model: Model, scenario: Scenario, kind: Hardware, stages: tuple[int, ...]
) -> tuple[list[Candidate], list[Rejection]]:
    """Return what can be tried on one kind of device in so many stages, and why the rest cannot."""
    search = scenario.search
    batchings = tuple(_batchings(search))
    lightest = min(batchings, key=lambda item: (item.token_budget, item.max_batch))
    kept: list[Candidate] = []
    rejected: list[Rejection] = []
    for replica in _replicas(model, scenario.model, kind.device, search, stages):
        most = kind.most // replica.devices
        refused = _refuse(
            model, kind, replica.model_copy(update={"batching": lightest}), most, search.tensor_parallel is not None
        )
        if refused is not None:
            rejected.append(refused)
            continue
        for batching in batchings:
            full = replica.model_copy(update={"batching": batching})
            engine = _compile(model, kind, full)
            if isinstance(engine, Rejection):
                rejected.append(engine)
                continue
            for routing in search.routing:
                text = _label(kind.title, full, routing if len(search.routing) > 1 else "")
                kept.append(Candidate(kind, full, routing, engine, most, text))
    return kept, rejected


def _unpriced(kind: Hardware) -> Rejection:
    """Return why a device whose price is not known cannot be ranked by dollars."""
    known = [name for name in _PURCHASES if name in kind.device.usd_per_hour and name != kind.purchase]
    advice = " or ".join(["`price:`", *(f"`purchase: {name}`" for name in known)])
    return Rejection(kind.title, "price", f"no {kind.purchase} price is known; give {advice}")


def _replicas(
    model: Model, name: str, device: Device, search: SearchChoice, stages: tuple[int, ...]
) -> Iterator[Replica]:
    """Yield replicas, batching aside: parallelism times precisions, the smallest first.

    Each names the engine that its device is served with, for whoever runs the plan should see which that was.
    """
    from sonde.cost.served import default_engine

    serves = default_engine(device)
    shapes = [
        (tensor, data, expert, pipeline)
        for tensor, pipeline in product(search.tensor_parallel or _TENSOR, stages)
        for tensor, data, expert in _spread(model, tensor)
    ]
    for (tensor, data, expert, pipeline), (weights, cache) in product(
        dict.fromkeys(shapes), precisions(model, device, search)
    ):
        yield Replica.model_validate(
            {
                "model": name,
                "device": device.reference,
                "tensor_parallel": tensor,
                "pipeline_parallel": pipeline,
                "data_parallel": data,
                "expert_parallel": expert,
                "weights": weights,
                "activations": _activations(device, weights),
                "kv_cache": cache,
                "engine": serves,
            }
        )


def _spread(model: Model, ranks: int) -> Iterator[tuple[int, int, int]]:
    """Yield (tensor, data, expert) parallelism on `ranks` devices.

    A mixture of experts is cut by tensors, by experts under tensor-parallel attention, or by experts under
    data-parallel attention.
    """
    yield ranks, 1, 1
    if ranks > 1 and any(forward.experts for forward in model.feedforwards):
        yield ranks, 1, ranks
        yield 1, ranks, ranks


def precisions(model: Model, device: Device, search: SearchChoice) -> tuple[tuple[str, str], ...]:
    """Return the (weights, KV cache) precisions to try: those asked for, or those the device computes with.

    Left open, weights are tried as published and in every narrower precision that the device has arithmetic
    for (in 4-bit integers, expanded on the fly, on phones, boards, edge devices and laptops); an fp8 cache goes
    with weights of 8 bits or fewer where the device has fp8.
    """
    native = model.native_weights
    weights: list[str] = list(search.weights or ())
    if not weights:
        small = device.kind in ("phone", "board", "edge", "laptop")
        narrow = [name for name in ("fp8", "nvfp4") if _NEEDS.get(name, name) in device.flops]
        narrow += ["int8"] if "int8" in device.flops and "fp8" not in device.flops else []
        narrow += ["int4"] if small else []
        weights = [native, *(name for name in narrow if PRECISION_BYTES[name] < PRECISION_BYTES[native])]
    found = []
    for name in dict.fromkeys(weights):
        caches: list[str] = list(search.kv_cache or ())
        if not caches:
            caches = ["bf16"]
            if "fp8" in device.flops and (search.weights is not None or PRECISION_BYTES[name] <= 1):
                caches.append("fp8")
        found += [(name, cache) for cache in dict.fromkeys(caches)]
    return tuple(found)


def _activations(device: Device, weights: str) -> Precision:
    wanted: Precision = _ACTIVATIONS.get(weights, "bf16")
    return wanted if _NEEDS.get(wanted, wanted) in device.flops else "bf16"


def _batchings(search: SearchChoice) -> Iterator[Batching]:
    for policy in search.batching:
        budgets = (max(search.token_budget),) if policy in _BUDGETLESS else search.token_budget
        for budget, batch in product(budgets, search.max_batch):
            yield Batching(policy=policy, token_budget=budget, max_batch=batch)


def _refuse(model: Model, kind: Hardware, replica: Replica, most: int, anywhere: bool) -> Rejection | None:
    """Return why no replica of this kind can be, whatever its batching; None where it can.

    A stage leaves the node only where its degree was asked for (`anywhere`).
    """
    from sonde.cost.memory import fit

    name = _shape(kind.title, replica)
    ranks = replica.tensor_parallel * replica.data_parallel
    if most < 1:
        return Rejection(
            name, "devices", f"one replica takes {replica.devices} devices, {kind.most} are allowed (hardware.max)"
        )
    if ranks > kind.device.node_devices and not anywhere:
        text = (
            f"a stage of {ranks} devices leaves the node, which has {kind.device.node_devices} {kind.device.name}: "
            "it is tried where search.tensor_parallel lists it"
        )
        return Rejection(name, "node", text)
    if any(forward.experts % replica.expert_parallel for forward in model.feedforwards):
        return Rejection(name, "parallelism", f"{replica.expert_parallel} ranks do not divide the experts evenly")
    try:
        if fit(model, kind.device, replica).fits:
            return None
    except CannotError as error:
        return Rejection(name, "precision", str(error))
    except InputError as error:
        return Rejection(name, "parallelism", str(error))
    refused = _compile(model, kind, replica)
    return refused if isinstance(refused, Rejection) else None


def _compile(model: Model, kind: Hardware, replica: Replica) -> Engine | Rejection:
    from sonde.cost.compile import compile_replica

    try:
        return compile_replica(model, kind.device, replica, usd_per_device_hour=kind.usd_per_hour)
    except CannotError as error:
        return Rejection(_shape(kind.title, replica), "memory", str(error))
    except InputError as error:
        return Rejection(_shape(kind.title, replica), "parallelism", str(error))


def _identity(engine: Engine) -> tuple[object, ...]:
    """Return a key that two engines share only if every run of one is a run of the other."""
    tables = [
        part.tobytes() if hasattr(part, "tobytes") else part
        for quantity in (engine.table.time, engine.table.energy)
        for part in quantity
    ]
    return (*tables, engine.table.window, *engine[1:])


def _shape(device: str, replica: Replica) -> str:
    names = ("tensor", "tp"), ("pipeline", "pp"), ("data", "dp"), ("expert", "ep")
    cuts = [
        f"{short}{value}"
        for name, short in names
        if (value := getattr(replica, f"{name}_parallel")) > 1 or (short == "tp" and replica.devices == 1)
    ]
    cache = "" if replica.kv_cache == "bf16" else f" kv-{replica.kv_cache}"
    return f"{device} {' '.join(cuts)} {replica.weights}{cache}"


def _label(device: str, replica: Replica, routing: str) -> str:
    batching = replica.batching
    budget = "" if batching.policy in _BUDGETLESS else f" {batching.token_budget}"
    tail = f", {routing}" if routing else ""
    return f"{_shape(device, replica)}, {batching.policy}{budget}, batch {batching.max_batch}{tail}"

"""What may be tried: every way to run one replica that the scenario allows, and why the others cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from sonde.catalogue.device import PRECISION_BYTES, Device
from sonde.catalogue.model import Model
from sonde.cost.table import Engine
from sonde.deployment.scenario import HardwareChoice, Scenario, SearchChoice
from sonde.deployment.tree import Batching, Precision, Replica
from sonde.errors import CannotError, InputError, unknown
from sonde.plan.fleet import BUDGETLESS, Candidate, Fleet, Hardware, deployment, label, price, shape, title, wired
from sonde.plan.result import Rejection
from sonde.plan.setting import ALONE, Setting
from sonde.sim.network import Connected
from sonde.techniques.compose import compiled, replica_under
from sonde.units import parse

__all__ = [
    "Candidate", "Candidates", "Fleet", "Hardware", "deployment", "enumerate_candidates", "hardware", "label",
    "precisions", "price",
]  # fmt: skip

#: arithmetic that a device needs to compute with weights of this precision, a key of `Device.flops`
_NEEDS = {"nvfp4": "fp4", "mxfp4": "fp4"}
#: activations that go with weights; what is not here goes with bf16 (weights are expanded on the fly)
_ACTIVATIONS: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "fp8": "fp8", "int8": "int8", "nvfp4": "nvfp4"}
_PURCHASES = ("on-demand", "spot", "owned")
#: devices that share every layer, where the scenario leaves that open: within a node
_TENSOR = (1, 2, 4, 8)
#: stages that are tried where the scenario leaves them open and nothing fits the devices of one
_PIPELINE = (2, 4)


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


def enumerate_candidates(model: Model, scenario: Scenario, setting: Setting = ALONE, stage: str = "") -> Candidates:
    """Return every candidate of the scenario under a setting, each compiled once; equal engines are tried once.

    A device whose price is not known as it is bought is left out: its dollars could not be ranked with others. With
    a `stage` they do only that: one token budget is left where it decodes, one batch limit where it does not.
    """
    asked = _Asked(model, scenario, setting, stage)
    kept: dict[tuple[object, ...], Candidate] = {}
    rejected: list[Rejection] = []
    merged, piped = 0, []
    for kind in hardware(scenario.hardware):
        if math.isnan(kind.usd_per_hour):
            rejected.append(_unpriced(kind))
            continue
        some, refused = _of_kind(asked, kind, scenario.search.pipeline_parallel or (1,))
        full = any(item.constraint == "memory" for item in refused)
        if scenario.search.pipeline_parallel is None and full and not some:
            piped.append(kind.device.name)
            some, more = _of_kind(asked, kind, _PIPELINE)
            refused += more
        for candidate in some:
            key = (*_identity(candidate.engine), candidate.routing, candidate.most)
            merged += key in kept
            kept.setdefault(key, candidate)
        rejected += refused
    return Candidates(
        tuple(kept.values()), tuple({item.label: item for item in rejected}.values()), merged, tuple(piped)
    )


class _Asked(NamedTuple):
    """What is to be enumerated."""

    model: Model
    scenario: Scenario
    setting: Setting
    stage: str


def _of_kind(asked: _Asked, kind: Hardware, stages: tuple[int, ...]) -> tuple[list[Candidate], list[Rejection]]:
    """Return what can be tried on one kind of device in so many stages, and why the rest cannot."""
    search = asked.scenario.search
    batchings = tuple(_batchings(search, asked.stage))
    lightest = min(batchings, key=lambda item: (item.token_budget, item.max_batch))
    kept: list[Candidate] = []
    rejected: list[Rejection] = []
    for replica in _replicas(asked.model, asked.scenario.model, kind.device, search, stages):
        most = kind.most // replica.devices
        refused = _refuse(
            asked, kind, replica.model_copy(update={"batching": lightest}), most, search.tensor_parallel is not None
        )
        if refused is not None:
            rejected.append(refused)
            continue
        done: set[Replica] = set()
        for batching in batchings:
            full = replica.model_copy(update={"batching": batching})
            first = _candidate(asked, kind, full, most, done)
            if isinstance(first, Rejection):
                rejected.append(first)
            if not isinstance(first, Candidate):
                continue
            for routing in search.routing:
                text = f", {routing}" if len(search.routing) > 1 else ""
                kept.append(replace(first, routing=routing, label=first.label + text))
    return kept, rejected


def _candidate(
    asked: _Asked, kind: Hardware, written: Replica, most: int, done: set[Replica]
) -> Candidate | Rejection | None:
    """Return a replica under the techniques, compiled; None where it is among those that are `done`."""
    setting, stage = asked.setting, asked.stage
    replica = replica_under(written, setting.at(stage)) if setting.chosen else written
    if replica in done:
        return None
    done.add(replica)
    engine = _compile(asked, kind, replica)
    if isinstance(engine, Rejection):
        return engine
    text = title(kind.title, replica, setting.at(stage), engine.token_budget)
    found = Candidate(kind, replica, "least-outstanding", engine, most, text, written, setting, stage)
    alone = replace(found, setting=setting.alone(stage) if stage else setting)
    if not alone.setting.wires:
        return found
    try:
        engines, _ = wired(((alone, 1),))
    except InputError as error:
        if stage == "decode" and error.path.startswith("cache"):  # it sees none
            return found
        return Rejection(shape(kind.title, replica, setting.at(stage)), _constraint(error), str(error))
    if not isinstance(engines, Connected):
        return replace(found, lanes=engines[0][1])
    paths = engines.paths
    return replace(
        found, lanes=engines.fleet[0][1], cached=paths.cache is not None, lending=paths.lending is not None,
        moving=paths.migration is not None or paths.lending is not None, fewest=2 if paths.lending else 1,
    )  # fmt: skip


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


def _batchings(search: SearchChoice, stage: str) -> Iterator[Batching]:
    for policy in search.batching:
        budgets = (max(search.token_budget),) if policy in BUDGETLESS else search.token_budget
        budgets = (min(budgets),) if stage == "decode" else budgets
        for budget, batch in product(budgets, (max(search.max_batch),) if stage == "prefill" else search.max_batch):
            yield Batching(policy=policy, token_budget=budget, max_batch=batch)


def _refuse(asked: _Asked, kind: Hardware, replica: Replica, most: int, anywhere: bool) -> Rejection | None:
    """Return why no replica of this kind can be, whatever its batching; None where it can.

    A stage leaves the node only where its degree was asked for (`anywhere`).
    """
    from sonde.cost.memory import fit

    name = shape(kind.title, replica, asked.setting.at(asked.stage))
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
    if asked.setting.chosen:  # what fits, and what divides, is for them to say
        return None
    if any(forward.experts % replica.expert_parallel for forward in asked.model.feedforwards):
        return Rejection(name, "parallelism", f"{replica.expert_parallel} ranks do not divide the experts evenly")
    try:
        if fit(asked.model, kind.device, replica).fits:
            return None
    except CannotError as error:
        return Rejection(name, "precision", str(error))
    except InputError as error:
        return Rejection(name, "parallelism", str(error))
    refused = _compile(asked, kind, replica)
    return refused if isinstance(refused, Rejection) else None


def _compile(asked: _Asked, kind: Hardware, replica: Replica) -> Engine | Rejection:
    techniques = asked.setting.at(asked.stage)
    try:
        return compiled(asked.model, kind.device, replica, techniques, usd_per_device_hour=kind.usd_per_hour)
    except CannotError as error:
        return Rejection(shape(kind.title, replica, techniques), "memory", str(error))
    except InputError as error:  # what a technique refuses is what there was before it
        return Rejection(shape(kind.title, replica), _constraint(error), str(error))


def _constraint(error: InputError) -> str:
    if error.path.startswith("cache"):
        return "memory"
    return "technique" if error.path.startswith("techniques") else "parallelism"


def _identity(engine: Engine) -> tuple[object, ...]:
    """Return a key that two engines share only if every run of one is a run of the other."""
    tables = [
        part.tobytes() if hasattr(part, "tobytes") else part
        for quantity in (engine.table.time, engine.table.energy)
        for part in quantity
    ]
    return (*tables, engine.table.window, *engine[1:])

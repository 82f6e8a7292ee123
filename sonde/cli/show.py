"""`sonde show`: the rows of the catalogue, and what a model is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sonde import units
from sonde.cli.output import emit, fields, json_option, table
from sonde.errors import InputError, nearest

if TYPE_CHECKING:
    from sonde.catalogue.device import Device
    from sonde.catalogue.model import Model
    from sonde.workload.profile import Profile

Row = dict[str, Any]
PURCHASES = ("on-demand", "spot", "owned")
STEP_TOKENS = 2048  # of a prompt, and of every decoding sequence's context, in the steps shown of a model on a device
KINDS = ("models", "devices", "profiles", "policies", "techniques")


@click.command()
@click.argument("name", required=False)
@click.option("--device", help="Show what a model takes of this device's memory, and how long its steps last.")
@click.option("--weights", default="bf16", show_default=True, help="Precision of the weights on --device.")
@click.option("--tensor-parallel", default=1, show_default=True, type=click.IntRange(1), help="Devices per replica.")
@json_option
def show(name: str | None, device: str | None, weights: str, tensor_parallel: int, as_json: bool) -> None:
    """Show what Sonde knows: all of it, one kind, or one row.

    NAME is models, devices, profiles, policies or techniques, or the name of one of them, or the path of a Hugging
    Face config.json or of a device row. A model is shown with its parameters, memory and FLOPs, and with --device on
    that device; a technique with its parameters, their units and defaults, and what to write in a scenario.
    """
    if name is None or name in KINDS:
        if device is not None:
            raise InputError("--device", device, "goes with the name of one model", f"{name or 'no name'} was given")
        listings = {kind: listing(kind) for kind in KINDS if name in (None, kind)}
        emit(listings if name is None else listings[name]) if as_json else _show_listings(listings)
        return
    row = one(name)
    if device is not None:
        row |= {"on": on_device(name, device, weights, tensor_parallel)}
    if as_json:
        emit(row)
    elif "yaml" in row:
        from sonde.cli import technique

        technique.show(row)
    else:
        fields(name, row)


def listing(kind: str) -> list[Row]:
    """Return the rows of one kind, each with what a reader chooses by."""
    if kind == "models":
        from sonde.catalogue.models import model, model_names

        return [_model_line(model(name)) for name in model_names()]
    if kind == "devices":
        from sonde.catalogue.devices import device, device_names

        return [_device_line(device(name)) for name in device_names()]
    if kind == "profiles":
        from sonde.workload.profile import profile, profile_names

        return [_profile_line(profile(name)) for name in profile_names()]
    if kind == "techniques":
        from sonde.cli import technique
        from sonde.techniques.table import TECHNIQUES

        return [technique.line(name) for name in TECHNIQUES]
    from sonde.policies import batching, caching, migration, routing

    steps, choices = batching.POLICIES.items(), routing.POLICIES.items()
    return [
        *(_policy_line("batching", name, policy.function) for name, policy in steps),
        *(_policy_line("routing", name, policy.function) for name, policy in choices),
        *(_policy_line("eviction", name, policy) for name, policy in caching.POLICIES.items()),
        *(_policy_line("migration", name, policy) for name, policy in migration.POLICIES.items()),
    ]


def one(name: str) -> Row:
    """Return all that is known of one row. Raises InputError, with the nearest name, where there is none."""
    from sonde.techniques.table import TECHNIQUES

    if name in TECHNIQUES:
        from sonde.cli.technique import describe

        return describe(name)
    from sonde.catalogue.describe import describe_model
    from sonde.catalogue.device_files import is_path
    from sonde.catalogue.devices import device, device_names
    from sonde.catalogue.models import model, model_names

    if is_path(name):
        return asdict(device(name))
    for find in (lambda: dict(describe_model(model(name))), lambda: asdict(device(name))):
        try:
            return find()
        except InputError as error:
            if error.path not in ("model", "device") or name.endswith(".json"):
                raise
    known = {row["name"]: row for kind in ("profiles", "policies") for row in listing(kind)}
    if name not in known:
        close = nearest(name, [*KINDS, *device_names(), *model_names(), *known, *TECHNIQUES])
        raise InputError("NAME", name, f"no such name{close}", f"sonde show KIND lists them: {', '.join(KINDS)}")
    return known[name]


def on_device(name: str, device_name: str, weights: str, tensor_parallel: int) -> Row:
    """Return what a replica of the model takes on a device, and how long some steps last on it.

    Raises InputError for an unknown name or an impossible split; where the model does not fit, `fits` says so
    and there are no steps.
    """
    from sonde.catalogue.devices import device
    from sonde.catalogue.models import model
    from sonde.cost.compile import compile_replica
    from sonde.cost.memory import fit
    from sonde.cost.table import coefficients
    from sonde.deployment.load import load

    pool = {"replica": {"model": name, "device": device_name, "weights": weights, "tensor_parallel": tensor_parallel}}
    replica = load({"sites": [{"pools": [pool]}]}).pools[0].replica
    memory = fit(model(name), device(device_name), replica)
    parts = {"kv_cache": memory.kv_bytes} | {
        name: getattr(memory, name) for name in ("weights", "activations", "overhead", "budget", "capacity")
    }
    row: Row = {"device": device_name, "weights": weights, "tensor_parallel": tensor_parallel, "fits": memory.fits}
    row |= {"bytes": parts, "kv_tokens": memory.kv_tokens, "one_conversation": _one_conversation(name, device_name)}
    if memory.fits:
        engine = compile_replica(model(name), device(device_name), replica)
        time, tokens = engine.table.time, STEP_TOKENS
        decodes = {f"decode_{batch}": coefficients(time, 0, batch, 0, batch * tokens) for batch in (1, 64, 256)}
        row["usd_per_hour"] = engine.usd_per_hour
        row["step_s"] = {f"prefill_{tokens}": coefficients(time, tokens, 0, tokens * tokens / 2, 0)} | decodes
    return row


def _one_conversation(name: str, device_name: str) -> list[Row]:
    """Return which weights and contexts fit one device for one conversation, and how fast it answers."""
    from sonde.catalogue.devices import device
    from sonde.catalogue.models import model
    from sonde.cost.local import choices

    found = []
    for fit in choices(model(name), device(device_name)):
        row: Row = {"name": fit.weights, "fits": fit.fits, "weight_bytes": fit.weight_bytes}
        if fit.fits:
            speed = {"expected": fit.tokens_per_s, "low": fit.low, "high": fit.high}
            row |= {"context": fit.context, "memory_bytes": fit.memory_bytes, "at_context": fit.at_context,
                    "tokens_per_s": speed, "joules_per_token": fit.joules_per_token}  # fmt: skip
        found.append(row)
    return found


def _model_line(model: Model) -> Row:
    return {
        "name": model.name, "family": model.family, "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters, "context": model.context,
        "kv_bytes_per_token": model.cache_bytes_per_token(), "native_weights": model.native_weights,
    }  # fmt: skip


def _device_line(device: Device) -> Row:
    return {
        "name": device.name, "title": device.title, "kind": device.kind,
        "flops_bf16": device.flops.get("bf16") or device.flops.get("fp16"),
        "memory_bytes": device.memory[0].bytes, "bandwidth": device.memory[0].bandwidth,
        "peak_w": device.peak_w, "usd_per_hour": dict(device.usd_per_hour),
        **{purchase: device.usd_per_hour.get(purchase) for purchase in PURCHASES},
    }  # fmt: skip


def _profile_line(profile: Profile) -> Row:
    return {
        "name": profile.name, "source": profile.source, "date": profile.date, "requests": profile.requests,
        "span_s": profile.span_s, "mean_per_s": profile.requests / profile.span_s,
    }  # fmt: skip


def _policy_line(kind: str, name: str, function: Callable[..., Any]) -> Row:
    return {"name": name, "kind": kind, "does": (function.__doc__ or "").strip().partition("\n")[0]}


_COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "models": (
        ("name", "model", ""), ("family", "family", ""), ("total_parameters", "parameters", "count"),
        ("active_parameters", "active", "count"), ("context", "context", "count"),
        ("kv_bytes_per_token", "KV a token, bf16", "bytes"), ("native_weights", "weights", ""),
    ),
    "devices": (
        ("name", "device", ""), ("title", "what it is", ""), ("kind", "kind", ""), ("flops_bf16", "16-bit", "compute"),
        ("memory_bytes", "memory", "bytes"), ("bandwidth", "bandwidth", "bandwidth"), ("peak_w", "peak", "power"),
        *((purchase, purchase, "price") for purchase in PURCHASES),
    ),
    "profiles": (
        ("name", "profile", ""), ("source", "fitted from", ""), ("date", "date", ""), ("requests", "requests", "count"),
        ("span_s", "over", "time"), ("mean_per_s", "rate", "rate"),
    ),
    "policies": (("name", "policy", ""), ("kind", "kind", ""), ("does", "what it does", "")),
    "techniques": (("name", "technique", ""), ("does", "what it does", ""), ("source", "from", "")),
}  # fmt: skip


def _show_listings(listings: Mapping[str, list[Row]]) -> None:
    for kind, rows in listings.items():
        columns, title = _COLUMNS[kind], kind
        if kind == "techniques":
            title += " (sonde show NAME: parameters and defaults of one, and how to write it)"
        cells = [[_cell(row.get(key), unit) for key, _, unit in columns] for row in rows]
        table(title, [head for _, head, _ in columns], cells, left=sum(not unit for *_, unit in columns[:3]))


def _cell(value: object, unit: str) -> str:
    if value is None:
        return "-"
    return units.show(float(value), unit) if unit and isinstance(value, (int, float)) else str(value)

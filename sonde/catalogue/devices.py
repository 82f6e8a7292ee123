"""The devices of the catalogue: rows of `devices.csv`, with prices from `prices.csv` and sources for all of it.

`device_schema.csv` says what each attribute is. A new device, or a new price, is one row. A device may also be the
path of a file of one row, as `sonde calibrate machine` writes it; its sources stand beside it (`device_files.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sonde.catalogue.device import Device, Link
from sonde.catalogue.device_files import SOURCES_SUFFIX, is_path, read_text
from sonde.catalogue.rows import Attribute, Source, read, read_sources, schema, sources, table, value
from sonde.errors import InputError, listed, nearest, unknown
from sonde.units import parse

#: keys of `Device.flops`, from the widest to the narrowest
ARITHMETICS = ("fp32", "bf16", "fp16", "fp8", "int8", "fp6", "fp4", "int4")
PURCHASES = ("on-demand", "spot", "owned")
PRICE_COLUMNS = ("device", "purchase", "price", "devices", "years", "offer", "source")

#: what an owned device costs to run: its peak power, times what cooling adds, at this price (dollars per kWh)
OWNED_PUE, OWNED_USD_PER_KWH, HOURS_PER_YEAR = 1.2, 0.10, 8766.0


class Price(NamedTuple):
    """One offer: dollars per device-hour of a kind of purchase. Of owned devices, without their power."""

    purchase: str
    usd_per_hour: float
    offer: str
    source: Source


def device(name: str) -> Device:
    """Return the device called `name`, by its name or an alias, in any case, or the one in the file of that path.

    Raises InputError where there is none.
    """
    found = _by_name().get(name.strip().lower())
    if found is None and is_path(name):
        return _in_file(Path(name).expanduser(), name)
    if found is None:
        known = listed(device_names(), "sonde show devices")
        raise InputError("device", name, f"no such device{nearest(name.lower(), _by_name())}", known)
    return found


def device_names() -> list[str]:
    """Return the names of all devices, as `devices.csv` has them in order."""
    return [row.name for row in devices()]


@cache
def devices() -> tuple[Device, ...]:
    """Return every device of the catalogue, from the phone to the supernode."""
    return read_devices(table("devices.csv"), "devices.csv", prices())


@cache
def prices() -> Mapping[str, tuple[Price, ...]]:
    """Return every price of the catalogue by name of the device."""
    return read_prices(table("prices.csv"), "prices.csv")


def read_devices(
    text: str, path: str, offers: Mapping[str, tuple[Price, ...]], cited: Mapping[str, Source] | None = None
) -> tuple[Device, ...]:
    """Return the devices in CSV text that has the columns of `device_schema.csv`.

    They cite keys of `cited`, or of the catalogue's sources. Raises InputError with "path:line attribute" for what
    is missing, unknown, not positive or given twice.
    """
    attributes = schema("device_schema.csv")
    found: list[Device] = []
    taken: dict[str, str] = {}
    for where, row in read(text, path, tuple(attribute.attribute for attribute in attributes)):
        values: dict[str, Any] = {attribute.attribute: value(attribute, row, where, cited) for attribute in attributes}
        for name in (values["name"], *values["aliases"]):
            if name in taken:
                raise InputError(f"{where} name", name, f"is taken by {taken[name]}")
            taken[name] = values["name"]
        found.append(_device(values, where, offers.get(values["name"], ()), sources() if cited is None else cited))
    return tuple(found)


def read_prices(text: str, path: str) -> Mapping[str, tuple[Price, ...]]:
    """Return the prices in CSV text with PRICE_COLUMNS, by device; what is owned is divided by years and hours."""
    found: dict[str, list[Price]] = defaultdict(list)
    for where, row in read(text, path, PRICE_COLUMNS):
        purchase, count = row["purchase"], parse(row["devices"], "count", f"{where} devices")
        if purchase not in PURCHASES:
            raise unknown(f"{where} purchase", purchase, PURCHASES, "kind of purchase")
        if row["source"] not in sources():
            raise unknown(f"{where} source", row["source"], sources(), "source")
        if purchase == "owned":
            dollars = parse(row["price"], "money", f"{where} price")
            hourly = dollars / (parse(row["years"], "count", f"{where} years") * HOURS_PER_YEAR)
        else:
            hourly = parse(row["price"], "price", f"{where} price")
        found[row["device"]].append(Price(purchase, hourly / count, row["offer"], sources()[row["source"]]))
    return {name: tuple(offers) for name, offers in found.items()}


def typical(offers: tuple[Price, ...], purchase: str) -> Price | None:
    """Return the middle offer of a kind of purchase by price, the cheaper of two, or None where there is none."""
    ranked = sorted((offer for offer in offers if offer.purchase == purchase), key=lambda offer: offer.usd_per_hour)
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def describe_device(device: Device) -> dict[str, object]:
    """Return all that is known of a device, in SI units and ready for JSON, with ridge points and sources."""
    cited = dict.fromkeys(key for keys in device.sources.values() for key in keys)
    return {
        "name": device.name,
        "title": device.title,
        "vendor": device.vendor,
        "kind": device.kind,
        "aliases": list(device.aliases),
        "flops": dict(device.flops),
        "ridge_flop_per_byte": {name: device.ridge(name) for name in device.flops},
        "memory": [{"name": t.name, "bytes": t.bytes, "bytes_per_s": t.bandwidth} for t in device.memory],
        "on_chip": None if device.on_chip is None else {
            "name": device.on_chip.name, "bytes": device.on_chip.bytes, "bytes_per_s": device.on_chip.bandwidth
        },
        "node_devices": device.node_devices,
        "links": {
            name: {"bytes_per_s": link.bandwidth, "latency_s": link.latency_s}
            for name, link in (("node", device.node), ("fabric", device.fabric), ("host", device.host))
        },
        "power_w": {"idle": device.idle_w, "peak": device.peak_w},
        "usd_per_hour": dict(device.usd_per_hour),
        "offers": [
            {"purchase": p.purchase, "usd_per_hour": p.usd_per_hour, "offer": p.offer,
             "publisher": p.source.publisher, "kind": p.source.kind, "date": p.source.date}
            for p in prices().get(device.name, ())
        ],
        "status": device.status,
        "source": device.source,
        "date": device.date,
        "note": device.note,
        "sources": [
            {"key": key, "for": [group for group, keys in device.sources.items() if key in keys],
             **{name: getattr(sources()[key], name) for name in ("kind", "title", "publisher", "url", "date", "note")}}
            for key in cited
        ],
    }  # fmt: skip


@cache
def _by_name() -> Mapping[str, Device]:
    return {name: row for row in devices() for name in (row.name, *row.aliases)}


def _in_file(path: Path, name: str) -> Device:
    """Return the one device of a file; its sources are the catalogue's and those of the file beside it."""
    if not path.is_file():
        raise InputError("device", name, "no such file", "give a name of the catalogue or a file that holds one row")
    cited = dict(sources())
    beside = path.with_suffix(SOURCES_SUFFIX)
    if beside.is_file():
        cited |= read_sources(read_text(beside, "device"), str(beside))
    rows = read_devices(read_text(path, "device"), str(path), {}, cited)
    if len(rows) != 1:
        raise InputError("device", name, f"must hold one row: it has {len(rows)}", "which is meant is not known")
    return replace(rows[0], path=name)


def _device(values: Mapping[str, Any], where: str, offers: tuple[Price, ...], cited: Mapping[str, Source]) -> Device:
    flops = {name: values[name] for name in ARITHMETICS if values[name] is not None}
    if not flops:
        raise InputError(f"{where} {values['name']}", None, "needs a peak in one precision or more")
    if values["idle_power"] > values["peak_power"]:
        raise InputError(
            f"{where} idle_power", values["idle_power"], f"must not exceed {values['peak_power']} W of peak"
        )
    usual = {purchase: offer for purchase in PURCHASES if (offer := typical(offers, purchase))}
    power = values["peak_power"] / 1000 * OWNED_PUE * OWNED_USD_PER_KWH
    spec = [cited[key] for key in values["spec_source"]]
    return Device(
        name=values["name"],
        title=values["title"],
        vendor=values["vendor"],
        kind=values["kind"],
        flops=flops,
        memory=values["memory"],
        node_devices=values["node_devices"],
        node=_node(values, where),
        fabric=Link(values["fabric_bandwidth"], values["fabric_latency"]),
        host=Link(values["host_bandwidth"], values["host_latency"]),
        idle_w=values["idle_power"],
        peak_w=values["peak_power"],
        usd_per_hour={name: offer.usd_per_hour + (power if name == "owned" else 0.0) for name, offer in usual.items()},
        source=spec[0].title,
        date=spec[0].date,
        aliases=values["aliases"],
        on_chip=values["on_chip"][0] if values["on_chip"] else None,
        sources={group: values[f"{group}_source"] for group in ("spec", "link", "power")}
        | {name: (offer.source.key,) for name, offer in usual.items()},
        status="estimate" if any(source.kind == "estimate" for source in spec) else "published",
        note=values["note"] or "",
    )


def _node(values: Mapping[str, Any], where: str) -> Link:
    """Return the link inside a node; of a node with one device, that is the fabric's."""
    bandwidth, latency = values["node_bandwidth"], values["node_latency"]
    if values["node_devices"] == 1:
        return Link(bandwidth or values["fabric_bandwidth"], latency or values["fabric_latency"])
    if bandwidth is None or latency is None:
        raise InputError(
            f"{where} node_bandwidth", bandwidth, "is required, with node_latency, where a node has more devices"
        )
    return Link(bandwidth, latency)


def attributes() -> tuple[Attribute, ...]:
    """Return the schema of `devices.csv`."""
    return schema("device_schema.csv")

"""The page of the catalogue's devices, made from its tables: `python -m sonde.catalogue.document docs/devices.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from sonde.catalogue.device import Device, Link
from sonde.catalogue.devices import (
    ARITHMETICS,
    HOURS_PER_YEAR,
    OWNED_PUE,
    OWNED_USD_PER_KWH,
    PURCHASES,
    attributes,
    devices,
    prices,
    typical,
)
from sonde.catalogue.rows import sources
from sonde.catalogue.sites import regions
from sonde.units import show

HEAD = f"""# Devices

This page is made from the tables in `sonde/catalogue/data` by `python -m sonde.catalogue.document
docs/devices.md`. A new device, price or place is one row; `sonde show NAME` prints one with its sources.

- **Compute** is dense: a figure that a maker gives "with sparsity" is halved. Where a device has several rates, it
  is the one that accumulates in FP32. What a device reaches of its peak is another table (`efficiencies.csv`).
- **Memory** is given as software sees it. The first tier holds weights and KV cache; further ones are host memory
  that is reached over a coherent link.
- **Links** are in one direction per device. A node is the set of devices that the fastest link joins: 8 in most
  servers, 72 in a GB200 rack, 256 or more in a TPU pod, 384 in a CloudMatrix. The fabric joins nodes.
- **Prices** are list prices of the day that their source names. Where there are several for one kind of purchase,
  the middle one by price is used (the cheaper of two). Prices of spot devices come without a promise that the
  device stays.
- **Owned** devices cost their purchase price / (years × {HOURS_PER_YEAR:,.0f} h), plus peak power × {OWNED_PUE}
  (cooling) × ${OWNED_USD_PER_KWH:.2f}/kWh. A card's price is without its host, a server's or rack's with it, as
  `offer` in `prices.csv` says. Give `price` in a scenario or `usd_per_device_hour` in a deployment where yours
  differ.
- A device with the status *estimate* has figures of compute or memory that its maker does not publish; the note of
  the source gives the reasoning. Idle power is an estimate for nearly all.
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join((HEAD, *_devices(), *_links(), *_prices(), *_places(), *_schema(), *_sources()))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def _devices() -> list[str]:
    head = ("name", "what it is", *ARITHMETICS, "memory", "idle, peak", "status")
    rows = (
        (f"`{row.name}`", row.title, *(_tera(row, name) for name in ARITHMETICS), _memory(row),
         f"{row.idle_w:g}, {row.peak_w:g} W", row.status)
        for row in devices()
    )  # fmt: skip
    return ["## Compute, memory, power", "", "Dense TFLOP/s (TOP/s of integers).", "", *_table(head, rows)]


def _links() -> list[str]:
    head = ("name", "other names", "devices in a node", "in the node", "between nodes", "to the host", "note")
    rows = (
        (
            f"`{row.name}`",
            " ".join(row.aliases),
            str(row.node_devices),
            *map(_link, (row.node, row.fabric, row.host)),
            row.note,
        )
        for row in devices()
    )
    return ["## Links and names", "", *_table(head, rows)]


def _prices() -> list[str]:
    head = ("name", *PURCHASES, "from")
    rows = []
    for row in devices():
        used = [offer for name in PURCHASES if (offer := typical(prices().get(row.name, ()), name))]
        cells = (show(row.usd_per_hour[name], "price") if name in row.usd_per_hour else "" for name in PURCHASES)
        cited = "; ".join(f"{offer.source.publisher}, {offer.source.date}" for offer in used)
        rows.append((f"`{row.name}`", *cells, cited))
    return ["## Prices", "", *_table(head, rows)]


def _places() -> list[str]:
    head = ("name", "place", "g CO2/kWh", "$/kWh", "PUE")
    rows = (
        (f"`{row.name}`", row.title, f"{row.carbon_g_per_kwh:g}", f"{row.usd_per_kwh:g}", f"{row.pue:g}")
        for row in regions()
    )
    return ["## Places", "", *_table(head, rows)]


def _schema() -> list[str]:
    head = ("attribute", "type", "dimension", "default", "status", "description")
    rows = ((f"`{a.attribute}`", a.type, a.unit, a.default, a.status, a.description) for a in attributes())
    return ["## Columns of `devices.csv`", "", *_table(head, rows)]


def _sources() -> list[str]:
    head = ("key", "kind", "what", "date", "note")
    rows = (
        (f"`{s.key}`", s.kind, f"{s.publisher}: " + (f"[{s.title}]({s.url})" if s.url else s.title), s.date, s.note)
        for s in sources().values()
    )
    return ["## Sources", "", *_table(head, rows)]


def _link(link: Link) -> str:
    return f"{show(link.bandwidth, 'bandwidth')}, {show(link.latency_s, 'time')}"


def _tera(device: Device, name: str) -> str:
    return f"{device.flops[name] / 1e12:,.4g}" if name in device.flops else ""


def _memory(device: Device) -> str:
    tiers = device.memory if device.on_chip is None else (*device.memory, device.on_chip)
    return "; ".join(f"{t.name} {show(t.bytes, 'bytes')} at {show(t.bandwidth, 'bandwidth')}" for t in tiers)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")

"""Nodes: so many devices with a larger, slower store behind them, from which models are loaded. Rows of `nodes.csv`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sonde.catalogue.rows import read, table
from sonde.errors import unknown
from sonde.units import parse

COLUMNS = ("name", "title", "device", "devices", "store", "link_bandwidth", "links", "source", "date", "note")


@dataclass(frozen=True, slots=True)
class Node:
    """A node, one row of `nodes.csv`.

    store_bytes     memory that holds models that are not loaded: DDR, or the host's
    link_bandwidth  bytes/s from the store to the devices, over one of `links` that are alike
    """

    name: str
    title: str
    device: str
    devices: int
    store_bytes: float
    link_bandwidth: float
    links: int
    source: str
    date: str
    note: str


def node(name: str) -> Node:
    """Return the node of that name. Raises InputError, with the nearest name, where there is none."""
    found = _nodes().get(name.strip().lower())
    if found is None:
        raise unknown("node", name, node_names(), "node")
    return found


def node_names() -> list[str]:
    """Return the names of all nodes."""
    return list(_nodes())


@cache
def _nodes() -> dict[str, Node]:
    found = {}
    for where, row in read(table("nodes.csv"), "nodes.csv", COLUMNS):
        found[row["name"]] = Node(
            row["name"], row["title"], row["device"], int(row["devices"]),
            parse(row["store"], "bytes", f"{where}.store"),
            parse(row["link_bandwidth"], "bandwidth", f"{where}.link_bandwidth"),
            int(row["links"]), row["source"], row["date"], row["note"],
        )  # fmt: skip
    return found

"""What a device is, as numbers: compute by precision, memory tiers, links, power, price. All SI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: bytes of one number in each precision; block formats carry their scales (group 16 or 32)
PRECISION_BYTES: dict[str, float] = {
    "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp6": 0.78125,
    "nvfp4": 0.5625, "mxfp4": 0.53125, "int4": 0.53125,
}  # fmt: skip

#: arithmetic that computes a product of numbers in a precision without widening them
ARITHMETIC: dict[str, tuple[str, ...]] = {
    "fp32": ("fp32",), "bf16": ("bf16", "fp16"), "fp16": ("fp16", "bf16"), "fp8": ("fp8",), "int8": ("int8",),
    "fp6": ("fp6",), "nvfp4": ("fp4",), "mxfp4": ("fp4",), "int4": ("int4",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MemoryTier:
    """One level of memory that weights and caches can live in, the fastest first in a device."""

    name: str
    bytes: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Link:
    """What joins devices: bandwidth in one direction per device, and the latency of one message."""

    bandwidth: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the catalogue, one row of `devices.csv` with its prices.

    flops          peak dense FLOP/s by precision ("fp32", "bf16", "fp16", "fp8", "int8", "fp6", "fp4", "int4")
    memory         tiers, fastest first; the first one holds weights and KV cache
    node_devices   devices in one node; `node` joins them, `fabric` joins nodes, `host` is the way to host memory
    usd_per_hour   by kind of purchase: "on-demand", "spot", "owned" (amortised); may lack any of them
    on_chip        memory on the chip that software places data in, faster than all of `memory`
    sources        keys of `sources.csv` by group of attributes: "spec", "link", "power", and each kind of purchase
    status         "published" where the figures of the group "spec" are the maker's, "estimate" where some are not
    path           the file that holds the row, where that is not the catalogue
    """

    name: str
    title: str
    vendor: str
    kind: str  # one of KINDS
    flops: Mapping[str, float]
    memory: tuple[MemoryTier, ...]
    node_devices: int
    node: Link
    fabric: Link
    host: Link
    idle_w: float
    peak_w: float
    usd_per_hour: Mapping[str, float]
    source: str
    date: str
    aliases: tuple[str, ...] = ()
    on_chip: MemoryTier | None = None
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    status: str = "published"
    note: str = ""
    path: str = ""

    @property
    def reference(self) -> str:
        """Return what scenarios and deployments call the device: the path of its file, or its name."""
        return self.path or self.name

    def price(self, purchase: str = "on-demand") -> float | None:
        """Return dollars per device-hour, of `purchase` or the dearest known where that is not sold."""
        known = self.usd_per_hour
        return known.get(purchase, max(known.values(), default=None))

    def computes(self, precision: str) -> bool:
        """Return whether the device has arithmetic of this width (BF16 and FP16 stand in for each other)."""
        return any(name in self.flops for name in ARITHMETIC[precision])

    def ridge(self, arithmetic: str) -> float:
        """Return the FLOP per byte of main memory above which compute is the limit, for a key of `flops`."""
        return self.flops[arithmetic] / self.memory[0].bandwidth


#: what a device is bought as
KINDS = ("phone", "board", "edge", "laptop", "workstation", "cpu", "datacentre")

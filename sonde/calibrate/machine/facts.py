"""What the operating system says of this machine: names, cores, caches, memory. Nothing here is measured."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
NODES = Path("/sys/devices/system/node")

#: where the system does not say how large its last-level cache is
ASSUMED_CACHE = 32 << 20
_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Cache(NamedTuple):
    """A level of cache that holds data, as the system describes it."""

    level: int
    bytes: int


class Facts(NamedTuple):
    """This machine by its own account. `gpu` is the name of a CUDA device that torch can use, or empty."""

    host: str
    cpu: str
    vendor: str
    cores: int
    memory_bytes: int
    caches: tuple[Cache, ...]
    cache_known: bool
    numa_nodes: int
    gpu: str
    torch: str

    @property
    def last_cache(self) -> int:
        """Return the bytes of the last level of cache."""
        return max((cache.bytes for cache in self.caches), default=ASSUMED_CACHE)


def facts() -> Facts:
    """Return what is known of this machine; `cores` are those that this process may run on."""
    info = _read(Path("/proc/cpuinfo"))
    caches = tuple(read_caches(CACHES))
    torch = torch_or_none()
    gpu = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else ""
    return Facts(
        host=platform.node() or "machine",
        cpu=_field(info, "model name") or platform.processor() or platform.machine(),
        vendor=_field(info, "vendor_id") or platform.machine(),
        cores=cores(),
        memory_bytes=_memory("MemTotal"),
        caches=caches,
        cache_known=bool(caches),
        numa_nodes=max(1, len(list(NODES.glob("node[0-9]*")))),
        gpu=gpu,
        torch="" if torch is None else str(torch.__version__),
    )


def cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def free_bytes() -> int:
    """Return the bytes of memory that programs can still get."""
    return _memory("MemAvailable")


def torch_or_none() -> ModuleType | None:
    """Return torch where it is installed and loads, None where not."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch


def read_caches(folder: Path) -> Iterator[Cache]:
    """Yield the caches that hold data, of one core, in the form that Linux describes them in."""
    for index in sorted(folder.glob("index*")):
        size = re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size").strip())
        level = _read(index / "level").strip()
        if size and level.isdigit() and _read(index / "type").strip() in ("Data", "Unified"):
            yield Cache(int(level), int(size[1]) * _SIZES.get(size[2], 1))


def _memory(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""

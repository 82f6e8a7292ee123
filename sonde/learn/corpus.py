"""Text to learn from that every machine has: the source of Python's own standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: packages that are text enough, and there in every build of Python
PACKAGES = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing",
            "unittest", "urllib", "xml")  # fmt: skip


def standard_library() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the bytes to train on and those to judge on: every tenth file, by name, is kept from training."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for name in PACKAGES for file in (root / name).glob("*.py"))
    kept = files[5::10]
    return _bytes([file for file in files if file not in kept]), _bytes(kept)


def _bytes(files: list[Path]) -> NDArray[np.uint8]:
    return np.frombuffer(b"\n".join(file.read_bytes() for file in files), dtype=np.uint8)

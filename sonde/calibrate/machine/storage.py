"""The disk under a folder: bandwidth of long reads and writes, latency of short reads, past the page cache.

Reads go past the cache where the file system lets them (O_DIRECT); where not, the cache is told to forget the file
first, and the result says so. What a virtual machine's host keeps in its own memory cannot be seen from here.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

CHUNK = 4 << 20
PAGE = 4096


class Disk(NamedTuple):
    """What the disk reached: bytes/s written and flushed (fsync), bytes/s read, seconds of one read of 4 KiB."""

    write_bytes_per_s: float
    read_bytes_per_s: float
    latency_s: float
    file_bytes: int
    how: str


def disk(folder: Path, size: int, rng: np.random.Generator, *, reads: int = 500) -> Disk:
    """Return what the disk under `folder` reaches with a file of `size` bytes, which is gone afterwards.

    The latency is the median of `reads` reads at random places. Raises OSError where the folder cannot be written.
    """
    size = max(size // CHUNK, 1) * CHUNK
    with tempfile.NamedTemporaryFile(dir=folder, prefix="sonde-disk-") as file:
        block = rng.bytes(CHUNK)  # random, or a file system that compresses would write less
        begin = time.perf_counter()
        for _ in range(size // CHUNK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - begin
        handle, direct = _open(file.name)
        try:
            forgotten = direct or _forget(handle)
            read = _read_all(handle, size)
            if not direct:
                _forget(handle)
            offsets = rng.integers(0, size // PAGE, reads) * PAGE
            latency = float(np.median([_read_page(handle, int(at)) for at in offsets]))
        finally:
            os.close(handle)
    how = "O_DIRECT" if direct else "page cache told to forget" if forgotten else "through the page cache: not the disk"
    return Disk(size / written, size / read, latency, size, how)


def _open(name: str) -> tuple[int, bool]:
    """Return an open file, and whether its reads go past the page cache."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            handle = os.open(name, os.O_RDONLY | direct)
            os.preadv(handle, [mmap.mmap(-1, PAGE)], 0)
        except OSError:
            pass
        else:
            return handle, True
    return os.open(name, os.O_RDONLY), False


def _forget(handle: int) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _read_all(handle: int, size: int) -> float:
    """Return the seconds of reading the file from end to end, into memory that is aligned as O_DIRECT needs it."""
    buffer = mmap.mmap(-1, CHUNK)
    begin, at = time.perf_counter(), 0
    while at < size:
        at += os.preadv(handle, [buffer], at)
    return time.perf_counter() - begin


def _read_page(handle: int, at: int) -> float:
    buffer = mmap.mmap(-1, PAGE)
    begin = time.perf_counter()
    os.preadv(handle, [buffer], at)
    return time.perf_counter() - begin

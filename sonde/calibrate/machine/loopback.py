"""TCP from one process of this machine to another: bandwidth, and the latency of a small message.

`python -m sonde.calibrate.machine.loopback` is the other process: it prints its port, then serves one caller.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import NamedTuple

CHUNK = 1 << 20
SMALL = 64
WAIT_S = 20.0


class Loopback(NamedTuple):
    """Bytes per second one way, and seconds of one small message one way (half of a round trip)."""

    bytes_per_s: float
    latency_s: float


def loopback(size: int, *, rounds: int = 500) -> Loopback:
    """Return what TCP over the loopback reaches: `size` bytes one way, the median of `rounds` round trips halved."""
    other = subprocess.Popen(
        [sys.executable, "-m", "sonde.calibrate.machine.loopback"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = other.stdout.readline() if other.stdout else ""
        with socket.create_connection(("127.0.0.1", int(line)), timeout=WAIT_S) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            latency = _round_trip(link, rounds) / 2
            return Loopback(_send(link, size), latency)
    finally:
        other.kill()
        other.communicate()


def serve() -> None:
    """Serve one caller: small messages come back at once; of long ones, after a length, one byte at their end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.write(1, f"{server.getsockname()[1]}\n".encode())  # the port, for the process that started this one
        link, _ = server.accept()
    with link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(CHUNK)
        while _fill(link, memoryview(buffer)[:SMALL]):
            left = int.from_bytes(buffer[:8], "little")
            while left:
                got = link.recv_into(buffer, min(left, CHUNK))
                if not got:
                    return
                left -= got
            link.sendall(bytes(buffer[:SMALL]))


def _round_trip(link: socket.socket, rounds: int) -> float:
    message, back = bytes(SMALL), memoryview(bytearray(SMALL))
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        link.sendall(message)
        _fill(link, back)
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[rounds // 2]


def _send(link: socket.socket, size: int) -> float:
    """Return bytes per second, the best of three messages of `size` bytes, each until its end is confirmed."""
    block, back, best = bytes(CHUNK), memoryview(bytearray(SMALL)), 0.0
    size = max(size // CHUNK, 1) * CHUNK
    for _ in range(3):
        begin = time.perf_counter()
        link.sendall(size.to_bytes(8, "little") + bytes(SMALL - 8))
        for _ in range(size // CHUNK):
            link.sendall(block)
        _fill(link, back)
        best = max(best, size / (time.perf_counter() - begin))
    return best


def _fill(link: socket.socket, view: memoryview) -> bool:
    """Return whether `view` could be filled before the other side hung up."""
    at = 0
    while at < len(view):
        got = link.recv_into(view[at:])
        if not got:
            return False
        at += got
    return True


if __name__ == "__main__":
    serve()

"""A decoder run for real: the memory that its process gains, and how fast it writes. Needs torch; memory, Linux.

`measured` starts a fresh process (`python -m sonde.learn.footprint`), so that only this decoder is in its memory.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from sonde.errors import CannotError
from sonde.learn import packing
from sonde.learn.decoder import Block, Cache, Decoder, Shape, pack_block
from sonde.learn.study import one_thread

#: tokens that there is cache for, tokens that are written and timed
ROOM, WRITTEN = 512, 40
#: one thread, and memory given back as soon as it is free
ALONE = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
SIDE = 1536  # of the square matrices that products are measured on
BEYOND = 100 << 20  # bytes of weights that caches do not hold
STREAMED = 16 << 20  # numbers in each of the two arrays that bandwidth is measured on: 64 MiB


class Footprint(NamedTuple):
    """Bytes that the process gained (NaN where that cannot be read), and tokens/s: the best of all."""

    rss_bytes: float
    tokens_per_s: float


class Machine(NamedTuple):
    """One core of this machine, as measured on other shapes than the decoder's.

    bandwidth   bytes/s read by a dot product of long rows
    flops       by bits: FLOP/s of a product with one row whose weights lie in cache
    reached     by bits: share of the bandwidth that such products reach over more weights than caches hold
    layer_s     what a layer takes beside its work
    """

    bandwidth: float
    flops: dict[int, float]
    reached: dict[int, float]
    layer_s: float


def measured(shape: Shape, bits: int) -> Footprint:
    """Return the footprint of a decoder with weights of `bits` (32, 8, 4) in a process of its own, on one thread."""
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "footprint.json"
        command = [sys.executable, "-m", __name__, json.dumps([*shape, bits]), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ALONE)
        if done.returncode:
            raise CannotError(f"the decoder could not be run: {done.stderr.strip().splitlines()[-1:]}")
        return Footprint(*json.loads(answer.read_text(encoding="utf-8")))


def machine() -> Machine:
    """Return what one core of this machine does, by the kernels that the decoder runs on."""
    with one_thread():
        return _machine()


def _machine() -> Machine:
    one, two = torch.ones(STREAMED), torch.ones(STREAMED)
    bandwidth = 2 * one.nbytes / best(lambda: torch.dot(one, two), 20)
    flops, reached = {}, {}
    for bits in (32, 8, 4):
        size = SIDE**2 * (4.0 if bits == 32 else packing.bytes_per_weight(bits))
        count = math.ceil(BEYOND / size)
        flops[bits] = 2 * SIDE**2 / best(_products(bits, 1), 50)
        reached[bits] = min(size * count / best(_products(bits, count), 20) / bandwidth, 1.0)
    tiny = [1 / rate(Decoder(Shape(layers, 64, 4, 64)).eval()) for layers in (2, 10)]
    return Machine(bandwidth, flops, reached, (tiny[1] - tiny[0]) / 8)


def better(one: Machine, two: Machine) -> Machine:
    """Return the best of two measurements of the same machine, since what else runs on it only slows it down."""
    bandwidth = max(one.bandwidth, two.bandwidth)
    far = {bits: max(m.bandwidth * m.reached[bits] for m in (one, two)) for bits in one.reached}
    return Machine(
        bandwidth,
        {bits: max(one.flops[bits], two.flops[bits]) for bits in one.flops},
        {bits: rate / bandwidth for bits, rate in far.items()},
        min(one.layer_s, two.layer_s),
    )


def _products(bits: int, count: int) -> Callable[[], object]:
    """Return what multiplies one row with `count` matrices, one after the other."""
    x = torch.randn(1, SIDE)
    if bits == 32:
        wide = [torch.randn(SIDE, SIDE) for _ in range(count)]
        return lambda: [torch.nn.functional.linear(x, weights) for weights in wide]
    packed, row = packing.pack(np.random.default_rng(0).standard_normal((SIDE, SIDE)), bits), x.reshape(-1).numpy()
    copies = [packed._replace(codes=packed.codes.copy(), scales=packed.scales.copy()) for _ in range(count)]
    return lambda: [packing.product(one, row) for one in copies]


def best(run: Callable[[], object], tries: int = 10) -> float:
    """Return the seconds of the quickest of `tries` runs, after two that do not count: of this thread's processor
    time, which what else runs on the machine does not lengthen but by the bandwidth that it takes."""
    taken = []
    for _ in range(tries + 2):
        begin = time.thread_time()
        run()
        taken.append(time.thread_time() - begin)
    return min(taken[2:])


def rate(model: Decoder, written: int = WRITTEN, cache: Cache | None = None) -> float:
    """Return tokens/s of one answer: the best step of `written`, after four that do not count."""
    cache = cache or Cache(model.shape, ROOM)
    token = torch.tensor([[65]])

    def step() -> None:
        nonlocal token
        token = model(token, cache)[:, -1:].argmax(-1)

    with one_thread(), torch.inference_mode():
        for _ in range(2):
            step()
        return 1 / best(step, written)


def rss() -> float:
    """Return the bytes of memory that this process holds; NaN where the system does not say."""
    path = Path("/proc/self/statm")
    return float(int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")) if path.exists() else float("nan")


def run(shape: Shape, bits: int) -> Footprint:
    """Return the footprint of a decoder in this process."""
    torch.set_num_threads(1)
    small = Decoder(shape._replace(layers=1, hidden=64, heads=4, inner=64)).eval()
    rate(small if bits == 32 else small.pack(bits), 4)  # what torch and the kernels take is there before
    before = rss()
    torch.manual_seed(0)
    model = Decoder(shape._replace(layers=0)).eval()
    model.shape = shape
    for _ in range(shape.layers):  # one block at a time, so that never two copies of all weights are there
        block = Block(shape).eval()
        if bits < 32:
            pack_block(block, bits)
        model.blocks.append(block)
    cache = Cache(shape, ROOM)
    tokens = rate(model, cache=cache)
    return Footprint(rss() - before, tokens)


if __name__ == "__main__":
    *sizes, width = json.loads(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(run(Shape(*sizes), width)), encoding="utf-8")

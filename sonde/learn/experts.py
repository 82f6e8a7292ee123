"""A small composition of experts for real: decoders on disk, a few of them in memory, and one more for every miss.

An expert is one file of weights, mapped; loading it copies it into a slot whose decoder reads its weights there. The
files are in the system's page cache, so that the slower tier is mapped memory and not the disk.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonde.learn.decoder import Decoder, Shape
from sonde.learn.study import one_thread

SHAPE = Shape(layers=3, hidden=384, heads=4, inner=1024)
EXPERTS, RESIDENT, REQUESTS = 20, 4, 60
#: files that the bandwidth of loading is measured on, between requests, and the numbers in each: not an expert's
PROBES, PROBE = 6, 8_000_000


class Run(NamedTuple):
    """What came of a run. Seconds are medians of this thread's processor time.

    switch_s, predicted_s   of loading an expert: measured, and its bytes over the bandwidth measured on other files
    kept_s                  of reaching an expert that is loaded
    loads                   how many requests waited for a load
    right                   whether every answer was that of the expert itself, to the last bit
    """

    bytes: int
    switch_s: float
    predicted_s: float
    kept_s: float
    loads: int
    right: bool


class Slots:
    """Room for a few experts: flat weights, each with a decoder that reads them there; the least recently used goes."""

    def __init__(self, shape: Shape, count: int) -> None:
        self.decoders = [Decoder(shape).eval() for _ in range(count)]
        self.weights = [_flattened(decoder) for decoder in self.decoders]
        self.held: OrderedDict[int, int] = OrderedDict()

    def reach(self, expert: int, path: Path) -> tuple[Decoder, bool]:
        """Return the decoder of an expert, and whether it had to be loaded."""
        if expert in self.held:
            self.held.move_to_end(expert)
            return self.decoders[self.held[expert]], False
        free = len(self.held)
        slot = free if free < len(self.decoders) else self.held.popitem(last=False)[1]
        load(path, self.weights[slot])
        self.held[expert] = slot
        return self.decoders[slot], True


def load(path: Path, into: Tensor) -> None:
    """Copy a file of weights, mapped anew, into memory."""
    mapped = np.memmap(path, dtype=np.float32, mode="c")
    into.copy_(torch.from_numpy(mapped))


def ran(asked: NDArray[np.int64], seed: int) -> Run:
    """Return what comes of requests for experts (numbers below EXPERTS), each of which is asked one token.

    Experts 0 to RESIDENT - 1 are loaded at first, the lowest used last, as `sonde.cost.switching.misses` takes it.
    """
    torch.manual_seed(seed)
    with TemporaryDirectory() as folder, one_thread(), torch.inference_mode():
        paths = [Path(folder) / f"{i}.bin" for i in range(EXPERTS)]
        prompt = torch.randint(SHAPE.vocabulary, (1, 8))
        expected = [_made(path, prompt) for path in paths]
        probes = _Probes(Path(folder))
        slots = Slots(SHAPE, RESIDENT)
        for expert in range(RESIDENT - 1, -1, -1):
            slots.reach(expert, paths[expert])
        taken, right = {True: list[float](), False: list[float]()}, True
        for expert in asked.tolist():
            probes.load()
            begin = time.thread_time()
            decoder, loaded = slots.reach(expert, paths[expert])
            taken[loaded].append(time.thread_time() - begin)
            right &= torch.equal(decoder(prompt), expected[expert])
    size = slots.weights[0].nbytes
    switch, kept = (float(np.median(taken[loaded])) if taken[loaded] else 0.0 for loaded in (True, False))
    return Run(size, switch, size / probes.bandwidth, kept, len(taken[True]), right)


def _flattened(decoder: Decoder) -> Tensor:
    """Return one tensor that holds all weights of a decoder, which reads them there from now on."""
    flat = torch.cat([weights.detach().flatten() for weights in decoder.parameters()])
    begin = 0
    for weights in decoder.parameters():
        weights.data = flat[begin : begin + weights.numel()].view(weights.shape)
        begin += weights.numel()
    return flat


def _made(path: Path, prompt: Tensor) -> Tensor:
    """Write an expert to its file, and return what it answers."""
    decoder = Decoder(SHAPE).eval()
    _flattened(decoder).numpy().tofile(path)
    answer: Tensor = decoder(prompt)
    return answer


class _Probes:
    """Files of another size, loaded in turn into buffers in turn: caches hold no more of them than of experts."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / f"probe{i}.bin" for i in range(PROBES)]
        self.buffers = [torch.rand(PROBE) for _ in range(RESIDENT)]
        for path in self.paths:
            self.buffers[0].numpy().tofile(path)
        self.taken: list[float] = []

    def load(self) -> None:
        """Load the next one, and note how long that took."""
        turn = len(self.taken)
        begin = time.thread_time()
        load(self.paths[turn % PROBES], self.buffers[turn % RESIDENT])
        self.taken.append(time.thread_time() - begin)

    @property
    def bandwidth(self) -> float:
        """Return bytes/s, by the median."""
        return 4 * PROBE / float(np.median(self.taken))

"""Matrix products by shape, precision and threads: FLOP/s of y[m, n] = x[m, k]·w[n, k]ᵀ, as a layer computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from sonde.calibrate.machine.clock import Run, each
from sonde.calibrate.machine.facts import torch_or_none

#: bytes of a number of each precision that is measured
BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
SQUARE = (256, 512, 1024)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Shape(NamedTuple):
    """Rows of x, numbers in a row, columns of the result."""

    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """Return the FLOP of the product: a multiplication and an addition for each of m·k·n."""
        return 2 * self.m * self.k * self.n

    def moved(self, precision: str) -> int:
        """Return the bytes of both factors and of the result (of int8, four bytes a number)."""
        size = BYTES[precision]
        out = 4 if precision == "int8" else size
        return size * (self.m * self.k + self.k * self.n) + out * self.m * self.n


class Product(NamedTuple):
    """What one product reached. `cold`: its weights came from memory, since others were used in between."""

    engine: str
    precision: str
    threads: int
    shape: Shape
    seconds: float
    cold: bool

    @property
    def flops_per_s(self) -> float:
        """Return FLOP/s."""
        return self.shape.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Return bytes moved per second."""
        return self.shape.moved(self.precision) / self.seconds


def products(
    precision: str, shapes: Sequence[Shape], *, threads: int, cold_bytes: int = 0, device: str = "cpu"
) -> Iterator[Product]:
    """Yield the best time of each product on `threads` threads; nothing where neither torch nor numpy can.

    `cold_bytes`: weights are taken in turn from matrices of so many bytes in all, as the layers of a model are,
    so that none is found in cache.
    """
    torch = torch_or_none()
    make = _torch_product if torch is not None else _numpy_product
    if torch is not None and device == "cpu":
        torch.set_num_threads(threads)
    for shape in shapes:
        copies = max(1, -(-cold_bytes // (shape.k * shape.n * BYTES[precision])))
        run = make(precision, shape, copies, device)
        if run is None:
            return
        wait = torch.cuda.synchronize if torch is not None and device == "cuda" else None
        seconds = each(run, wait=wait)
        yield Product("torch" if torch is not None else "numpy", precision, threads, shape, seconds, copies > 1)


def multiplied(precision: str, x: Any, w: Any) -> Any:
    """Return x·wᵀ as `products` times it, from numpy arrays, as a numpy array of the precision's own results."""
    torch = torch_or_none()
    if torch is None:
        return x @ w.T
    if precision == "int8":
        return torch._int_mm(torch.from_numpy(x), torch.from_numpy(w).t()).numpy()
    kind = getattr(torch, _KINDS[precision])
    return torch.nn.functional.linear(torch.from_numpy(x).to(kind), torch.from_numpy(w).to(kind)).double().numpy()


_KINDS = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _torch_product(precision: str, shape: Shape, copies: int, device: str) -> Run | None:
    torch = torch_or_none()
    if torch is None:
        return None
    m, k, n = shape
    if precision == "int8":
        x = torch.ones((m, k), dtype=torch.int8, device=device)
        weights = [torch.ones((n, k), dtype=torch.int8, device=device).t() for _ in range(copies)]
        multiply: Callable[[Any, Any], Any] = torch._int_mm
    else:
        kind = getattr(torch, _KINDS[precision])
        x = torch.ones((m, k), dtype=kind, device=device)
        weights = [torch.ones((n, k), dtype=kind, device=device) for _ in range(copies)]
        multiply = torch.nn.functional.linear
    try:
        multiply(x, weights[0])
    except RuntimeError:  # torch has no such product for this precision and shape
        return None
    return _in_turn(lambda w: multiply(x, w), weights)


def _numpy_product(precision: str, shape: Shape, copies: int, device: str) -> Run | None:
    if precision not in ("fp64", "fp32") or device != "cpu":
        return None
    kind = np.float64 if precision == "fp64" else np.float32
    x = np.ones((shape.m, shape.k), kind)
    weights = [np.ones((shape.n, shape.k), kind) for _ in range(copies)]
    out = np.empty((shape.m, shape.n), kind)
    return _in_turn(lambda w: np.matmul(x, w.T, out=out), weights)


def _in_turn(call: Callable[[Any], object], weights: list[Any]) -> Run:
    turn = cycle(weights)
    return lambda: call(next(turn))

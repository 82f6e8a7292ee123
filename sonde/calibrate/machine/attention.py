"""Attention of a prompt and of decoding, at shapes that a served model has. torch's fused kernel, or numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sonde.calibrate.machine.clock import Run, each
from sonde.calibrate.machine.facts import torch_or_none
from sonde.calibrate.machine.gemm import BYTES

HEADS, WIDTH = 8, 64


class Attention(NamedTuple):
    """What attention reached: `queries` new tokens of each of `batch` sequences over `keys` cached ones."""

    engine: str
    phase: str  # "prefill" (causal) or "decode"
    precision: str
    batch: int
    queries: int
    keys: int
    seconds: float

    @property
    def flops(self) -> float:
        """Return the FLOP: two products of head width for every head and (query, key) pair that is seen."""
        pairs = self.queries * self.queries / 2 if self.phase == "prefill" else self.queries * self.keys
        return 4.0 * self.batch * HEADS * WIDTH * pairs

    @property
    def bytes(self) -> float:
        """Return the bytes of keys and values that are read once."""
        return 2.0 * self.batch * self.keys * HEADS * WIDTH * BYTES[self.precision]


def prefills(precision: str, lengths: Sequence[int], *, device: str = "cpu") -> Iterator[Attention]:
    """Yield causal attention of one prompt of each length."""
    for length in lengths:
        yield _measured("prefill", precision, 1, length, length, device)


def decodes(precision: str, shapes: Sequence[tuple[int, int]], *, device: str = "cpu") -> Iterator[Attention]:
    """Yield attention of one new token of each of `batch` sequences of `keys` cached tokens, for (batch, keys)."""
    for batch, keys in shapes:
        yield _measured("decode", precision, batch, 1, keys, device)


def attended(q: Any, k: Any, v: Any, *, causal: bool) -> Any:
    """Return softmax(q·kᵀ/√d)·v of numpy arrays [batch, heads, tokens, width]; what numpy times where torch is not."""
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(q.shape[-2], k.shape[-2], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ v


def _measured(phase: str, precision: str, batch: int, queries: int, keys: int, device: str) -> Attention:
    torch = torch_or_none()
    shape = (batch, HEADS, queries, WIDTH), (batch, HEADS, keys, WIDTH)
    causal = phase == "prefill"
    wait: Run | None = None
    if torch is None:
        precision = "fp32"
        q, k, v = (np.ones(shape[i], np.float32) for i in (0, 1, 1))
        seconds = each(lambda: attended(q, k, v, causal=causal), repeats=3)
    else:
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        q, k, v = (torch.ones(shape[i], dtype=kind, device=device) for i in (0, 1, 1))
        attend = torch.nn.functional.scaled_dot_product_attention
        wait = torch.cuda.synchronize if device == "cuda" else None
        seconds = each(lambda: attend(q, k, v, is_causal=causal), repeats=5, wait=wait)
    return Attention("numpy" if torch is None else "torch", phase, precision, batch, queries, keys, seconds)

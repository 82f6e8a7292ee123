"""A block on prompts of different lengths: padded to the longest, or packed for all but attention. Needs torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.learn.corpus import standard_library
from sonde.learn.footprint import best
from sonde.learn.study import one_thread

HIDDEN, HEADS, INNER = 256, 4, 512
SHORTEST, LONGEST = 8, 256
TRIES = 4


class Block(nn.Module):
    """Causal attention and a gated feed-forward, each behind a norm; weights are drawn with `seed`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norms = nn.ModuleList([nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)])
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up = nn.Linear(HIDDEN, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def padded(self, x: Tensor) -> Tensor:
        """Return x [b, t, hidden] after the block, every row of it computed."""
        x = x + self.out(_attended(self.qkv(self.norms[0](x))))
        return x + self.forward_layer(x)

    def packed(self, rows: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return rows [Σ lengths, hidden] after the block; `places` are theirs in a batch of `shape` [b, t]."""
        wide = rows.new_zeros(shape[0] * shape[1], 3 * HIDDEN)
        wide[places] = self.qkv(self.norms[0](rows))
        mixed = _attended(wide.view(*shape, -1)).reshape(-1, HIDDEN)[places]
        rows = rows + self.out(mixed)
        return rows + self.forward_layer(rows)

    def forward_layer(self, x: Tensor) -> Tensor:
        """Return what the feed-forward adds to x."""
        gate, up = self.up(self.norms[1](x)).chunk(2, dim=-1)
        y: Tensor = self.down(functional.silu(gate) * up)
        return y


class Compared(NamedTuple):
    """A batch run both ways: its fill, times packed over padded, and how far outputs are apart at most.

    fill         Σ length / (prompts · longest)
    forward      of the feed-forward alone;  block: of the whole block, with packing and padding again
    difference   largest, of outputs of about 1 in size
    """

    fill: float
    forward: float
    block: float
    difference: float


def compared(seed: int, prompts: int, *, even: bool = False) -> Compared:
    """Return what packing brings on `prompts` paragraphs of real text, drawn with `seed`; `even`: all of one length."""
    lengths = np.full(prompts, LONGEST) if even else paragraphs(seed, prompts)
    most = int(lengths.max())
    block = Block(seed).eval()
    draws = torch.Generator().manual_seed(seed)
    places = torch.cat([i * most + torch.arange(int(length)) for i, length in enumerate(lengths)])
    x = torch.zeros(prompts * most, HIDDEN)
    x[places] = torch.randn(len(places), HIDDEN, generator=draws)
    x = x.view(prompts, most, HIDDEN)
    rows = x.reshape(-1, HIDDEN)[places]
    with torch.inference_mode(), one_thread():
        difference = block.padded(x).reshape(-1, HIDDEN)[places] - block.packed(rows, places, (prompts, most))
        forward = best(lambda: block.forward_layer(rows), TRIES) / best(lambda: block.forward_layer(x), TRIES)
        packed = best(lambda: block.packed(rows, places, (prompts, most)), TRIES)
        whole = packed / best(lambda: block.padded(x), TRIES)
    return Compared(float(lengths.mean() / most), forward, whole, float(difference.abs().max()))


def paragraphs(seed: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the lengths in bytes of `count` paragraphs of the standard library's source, from 8 to 256."""
    text = standard_library()[0].tobytes()
    lengths = [min(len(paragraph), LONGEST) for paragraph in text.split(b"\n\n") if len(paragraph) >= SHORTEST]
    return np.random.default_rng(seed).choice(np.array(lengths, dtype=np.int64), count, replace=False)


def _attended(qkv: Tensor) -> Tensor:
    """Return causal attention over [b, t, 3·hidden]: padding stands behind what is real, and is never read by it."""
    b, t, _ = qkv.shape
    q, k, v = qkv.view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, HIDDEN)

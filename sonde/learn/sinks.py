"""Attention to the first tokens and a window of the last, and caches in few bits, on a decoder. Needs torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sonde.learn.decoder import Block, Decoder, angles, batch, turned
from sonde.learn.study import one_thread, texts

ROWS = 24


class Reach(NamedTuple):
    """Tokens that attention reads: the first `sinks` and the last `window`, the one that asks with them."""

    sinks: int
    window: int


class Kept(NamedTuple):
    """What a decoder keeps of what it has read: all (None) or a reach; in `bits` of a number, 32 as computed."""

    reach: Reach | None = None
    bits: int = 32


def losses(model: Decoder, length: int, kept: Kept, seed: int = 7) -> Tensor:
    """Return the mean loss (nats a byte) at each of `length` positions, of held-out rows of that length."""
    rows = batch(texts()[1], ROWS, length, torch.Generator().manual_seed(seed))
    with one_thread(), torch.no_grad():
        logits = logits_of(model, rows[:, :-1], kept)
        found = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    means: Tensor = found.mean(dim=0)
    return means


def by_length(model: Decoder, lengths: tuple[int, int], kept: Kept) -> tuple[Tensor, Tensor]:
    """Return losses of a short reading and of a long one, by position, over the same last bytes.

    The short rows are the ends of the long ones, so that what is guessed at the end is the same.
    """
    short, long = lengths
    rows = batch(texts()[1], ROWS, long, torch.Generator().manual_seed(7))
    with one_thread(), torch.no_grad():
        found = [
            functional.cross_entropy(
                logits_of(model, part[:, :-1], kept).transpose(1, 2), part[:, 1:], reduction="none"
            ).mean(dim=0)
            for part in (rows[:, -short - 1 :], rows)
        ]
    return found[0], found[1]


def logits_of(model: Decoder, tokens: Tensor, kept: Kept) -> Tensor:
    """Return logits [b, t, vocabulary] of a decoder that keeps only so much."""
    x = model.embedding(tokens)
    for block in model.blocks:
        x = _block(block, x, kept)  # type: ignore[arg-type]
    found: Tensor = model.head(model.norm(x))
    return found


def rounded(x: Tensor, bits: int, dim: int) -> Tensor:
    """Return x as 2^bits levels from the least to the largest number along `dim` hold it."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    near: Tensor = low + step * torch.round((x - low) / step)
    return near


def _block(block: Block, x: Tensor, kept: Kept) -> Tensor:
    b, t, hidden = x.shape
    q, k, v = block.qkv(block.norms[0](x)).view(b, t, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
    if kept.bits < 32:  # keys by channel over 32 tokens, before they are turned; values by token
        k = torch.cat([rounded(part, kept.bits, 2) for part in k.split(32, dim=2)], dim=2)
        v = rounded(v, kept.bits, 3)
    x = x + block.out(_attended(q, k, v, kept.reach).transpose(1, 2).reshape(b, t, hidden))
    gate, up = block.up(block.norms[1](x)).chunk(2, dim=-1)
    y: Tensor = x + block.down(functional.silu(gate) * up)
    return y


def _attended(q: Tensor, k: Tensor, v: Tensor, reach: Reach | None) -> Tensor:
    """Return what every token reads. Positions are those within the cache: a sink is never further than its end."""
    t, dim = q.shape[2:]
    at, turn = torch.arange(t), angles(0, t, dim)
    keys = turned(k, turn)
    scores = turned(q, turn) @ keys.transpose(-1, -2)
    seen = at[:, None] >= at[None, :]
    if reach is not None:
        ends = torch.clamp(at, max=reach.sinks + reach.window - 1)
        sinks = turned(q, turn[ends]) @ keys[:, :, : reach.sinks].transpose(-1, -2)
        scores = torch.cat((sinks, scores[..., reach.sinks :]), dim=-1)
        seen = seen & ((at[:, None] - at[None, :] < reach.window) | (at[None, :] < reach.sinks))
    scores = (scores / dim**0.5).masked_fill(~seen, float("-inf"))
    mixed: Tensor = scores.softmax(-1) @ v
    return mixed

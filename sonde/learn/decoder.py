"""A small decoder in torch, of the form that `config.json` calls Llama: trained on bytes, run a token at a time.

The same weights run in fp32, or packed into 8 or 4 bits (`packing`); `config` is what Sonde's catalogue reads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.learn import packing

#: the matrices of a block
MATRICES = ("qkv", "out", "up", "down")


class Shape(NamedTuple):
    """Sizes of a decoder. `repeats`: every block runs so often before the next (MobileLLM's block-wise sharing)."""

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int = 256
    repeats: int = 1

    def config(self) -> dict[str, Any]:
        """Return the decoder as a Hugging Face config (of what is stored: `repeats` is not in it)."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": self.layers,
            "hidden_size": self.hidden, "num_attention_heads": self.heads, "num_key_value_heads": self.heads,
            "intermediate_size": self.inner, "vocab_size": self.vocabulary, "max_position_embeddings": 4096,
            "tie_word_embeddings": False, "torch_dtype": "float32",
        }  # fmt: skip


class Cache:
    """Keys and values of what one sequence has seen: room for `length` tokens in every layer that runs."""

    def __init__(self, shape: Shape, length: int) -> None:
        runs, dim = shape.layers * shape.repeats, shape.hidden // shape.heads
        self.keys = torch.empty(runs, shape.heads, length, dim).fill_(0.0)  # touched, as an engine's is
        self.values = torch.empty_like(self.keys).fill_(0.0)
        self.used = 0


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed; it takes one token at a time."""

    def __init__(self, weights: Tensor, bits: int) -> None:
        super().__init__()
        self.packed = packing.pack(weights.detach().numpy(), bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the packed weights, of one row."""
        return torch.from_numpy(packing.product(self.packed, x.reshape(-1).numpy())).view(*x.shape[:-1], -1)


class Block(nn.Module):
    """Attention and a gated feed-forward, each behind a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.heads = shape.heads
        self.norms = nn.ModuleList([nn.RMSNorm(hidden), nn.RMSNorm(hidden)])
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.up = nn.Linear(hidden, 2 * shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, hidden, bias=False)

    def forward(self, x: Tensor, turn: Tensor, cache: Cache | None = None, run: int = 0) -> Tensor:
        """Return x [b, t, hidden] after the block; with a cache, attention reads what it holds as well."""
        b, t, hidden = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = turned(q, turn), turned(k, turn)
        if cache is not None:
            end = cache.used + t
            cache.keys[run, :, cache.used : end], cache.values[run, :, cache.used : end] = k[0], v[0]
            k, v = cache.keys[run, :, :end][None], cache.values[run, :, :end][None]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, hidden))
        y: Tensor = x + self.feed(self.norms[1](x))
        return y

    def feed(self, x: Tensor) -> Tensor:
        """Return what the gated feed-forward makes of x [b, t, hidden]."""
        gate, up = self.up(x).chunk(2, dim=-1)
        y: Tensor = self.down(functional.silu(gate) * up)
        return y


class Decoder(nn.Module):
    """Token table, blocks, head. Drawn by torch's generator: seed it first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = nn.RMSNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        for weights in self.parameters():
            if weights.dim() > 1:
                nn.init.normal_(weights, std=0.02)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Return logits [b, t, vocabulary] of tokens [b, t]; a cache must be of one sequence, and is added to."""
        start = cache.used if cache else 0
        turn = angles(start, tokens.shape[1], self.shape.hidden // self.shape.heads)
        x = self.embedding(tokens)
        run = 0
        for block in self.blocks:
            for _ in range(self.shape.repeats):
                x = block(x, turn, cache, run)
                run += 1
        if cache:
            cache.used += tokens.shape[1]
        logits: Tensor = self.head(self.norm(x))
        return logits

    def pack(self, bits: int) -> Decoder:
        """Give every block's matrices packed weights in place of their own, and return the decoder."""
        for block in self.blocks:
            pack_block(block, bits)
        return self

    def round(self, bits: int) -> Decoder:
        """Round every block's weights as packing into `bits` does, and return the decoder: it still takes batches."""
        with torch.no_grad():
            for block in self.blocks:
                for name in MATRICES:
                    weights = getattr(block, name).weight
                    weights.copy_(torch.from_numpy(packing.dequantised(weights.numpy(), bits)))
        return self


def pack_block(block: nn.Module, bits: int) -> None:
    """Give a block's matrices packed weights in place of their own."""
    for name in MATRICES:
        setattr(block, name, PackedLinear(getattr(block, name).weight, bits))


def loss(model: Decoder, rows: Tensor) -> Tensor:
    """Return the mean cross entropy (nats a byte) of rows [b, t + 1] of bytes, each predicted from those before."""
    logits = model(rows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def train(model: Decoder, text: Tensor, steps: int, seed: int, *, rows: int = 16, length: int = 128) -> None:
    """Train on random rows of `text` (bytes), by AdamW with a warm-up and a cosine."""
    draws = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(steps):
        share = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * share
        optimiser.zero_grad()
        loss(model, batch(text, rows, length, draws)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def batch(text: Tensor, rows: int, length: int, draws: torch.Generator) -> Tensor:
    """Return rows [rows, length + 1] of `text` from places that `draws` gives."""
    starts = torch.randint(len(text) - length - 1, (rows,), generator=draws)
    return text[starts[:, None] + torch.arange(length + 1)].long()


def angles(start: int, count: int, dim: int) -> Tensor:
    """Return by how much the pairs of a head of `dim` are turned at `count` positions from `start`: [count, dim/2]."""
    at = torch.arange(start, start + count, dtype=torch.float32)
    return torch.outer(at, 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim))


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Return x with pairs of its last axis turned by their position (RoPE)."""
    one, two = x.chunk(2, dim=-1)
    cos, sin = turn.cos(), turn.sin()
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)

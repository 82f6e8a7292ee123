"""A small decoder in torch, built in code with random weights: what traces and predictions are judged on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6


class Size(NamedTuple):
    """A decoder's dimensions, as a config.json has them; `head` numbers to a head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @property
    def head(self) -> int:
        """Return the width of one head."""
        return self.hidden // self.heads

    def config(self) -> dict[str, Any]:
        """Return the config.json of this decoder, in the form of the Llama family."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "head_dim": self.head,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.inner, "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        }  # fmt: skip


#: a decoder whose every operator has next to no work: what is left is the cost of starting them
EMPTY = Size(hidden=16, layers=8, heads=2, kv_heads=2, inner=32, vocabulary=64)


class Layer(NamedTuple):
    """The weights of one layer: [outputs, inputs] each."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    norm_1: Tensor
    norm_2: Tensor


class Decoder(NamedTuple):
    """Weights, and the caches of keys and values: [layers, 2, batch, kv_heads, tokens, head]."""

    size: Size
    table: Tensor
    layers: tuple[Layer, ...]
    cache: Tensor
    cosine: Tensor
    sine: Tensor
    fused: bool


def decoder(size: Size, batch: int, tokens: int, *, device: str = "cpu", fused: bool = True) -> Decoder:
    """Return a decoder in BF16 with caches of `tokens` for each of `batch` sequences.

    Its weights are the same whatever `fused` is: where not, a norm is five operators and the gate three.
    """
    generator = torch.Generator(device=device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        values: Tensor = torch.randn(*shape, generator=generator, device=device) / shape[-1] ** 0.5
        return values.to(torch.bfloat16)

    ones = torch.ones(size.hidden, dtype=torch.bfloat16, device=device)
    heads = size.heads + 2 * size.kv_heads
    layers = tuple(
        Layer(
            drawn(heads * size.head, size.hidden), drawn(size.hidden, size.heads * size.head),
            drawn(2 * size.inner, size.hidden), drawn(size.hidden, size.inner), ones, ones,
        )
        for _ in range(size.layers)
    )  # fmt: skip
    angle = torch.arange(tokens, device=device)[:, None] * 10000.0 ** (
        -torch.arange(0, size.head, 2, device=device) / size.head
    )
    cache = torch.zeros(size.layers, 2, batch, size.kv_heads, tokens, size.head, dtype=torch.bfloat16, device=device)
    cosine, sine = (torch.cat((f(angle), f(angle)), -1).to(torch.bfloat16) for f in (torch.cos, torch.sin))
    return Decoder(size, drawn(size.vocabulary, size.hidden), layers, cache, cosine, sine, fused)


@torch.inference_mode()
def step(model: Decoder, tokens: Tensor, start: int) -> Tensor:
    """Return the logits [batch, vocabulary] after `tokens` [batch, new], which stand at `start` and what follows.

    Their keys and values are in the caches afterwards.
    """
    x = functional.embedding(tokens, model.table)
    for number, layer in enumerate(model.layers):
        x = x + _attention(model, number, layer, norm(x, layer.norm_1, fused=model.fused), start)
        x = x + functional.linear(gated(functional.linear(norm(x, layer.norm_2, fused=model.fused), layer.gate_up),
                                        fused=model.fused), layer.down)  # fmt: skip
    return functional.linear(norm(x[:, -1], model.layers[0].norm_1, fused=model.fused), model.table)


def norm(x: Tensor, weight: Tensor, *, fused: bool = True) -> Tensor:
    """Return the root-mean-square norm of x, as one operator or as what it is made of."""
    if fused:
        return functional.rms_norm(x, (x.shape[-1],), weight, EPSILON)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight


def gated(x: Tensor, *, fused: bool = True) -> Tensor:
    """Return silu(gate)·up of the two halves of x, silu as one operator or as what it is made of."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up if fused else gate * torch.sigmoid(gate) * up


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x [.., tokens, head] turned by its position (rotary embedding)."""
    half = x.shape[-1] // 2
    return x * cosine + torch.cat((-x[..., half:], x[..., :half]), -1) * sine


def _attention(model: Decoder, number: int, layer: Layer, x: Tensor, start: int) -> Tensor:
    size, (batch, new, _) = model.size, x.shape
    heads = (size.heads, size.kv_heads, size.kv_heads)
    parts = functional.linear(x, layer.qkv).view(batch, new, sum(heads), size.head).transpose(1, 2)
    q, k, v = torch.split(parts, list(heads), 1)
    end = start + new
    cosine, sine = model.cosine[start:end], model.sine[start:end]
    cache = model.cache[number]
    cache[0, :, :, start:end] = turned(k, cosine, sine)
    cache[1, :, :, start:end] = v
    seen = functional.scaled_dot_product_attention(
        turned(q, cosine, sine), cache[0, :, :, :end], cache[1, :, :, :end], is_causal=new > 1,
        enable_gqa=size.heads != size.kv_heads,
    )  # fmt: skip
    return functional.linear(seen.transpose(1, 2).reshape(batch, new, -1), layer.out)

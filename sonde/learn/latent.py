"""Latent attention (MLA) for real, twice: keys and values expanded for every head, and absorbed into the queries.

The expanded form keeps a key and a value of every head for each token; the absorbed one keeps one latent and one key
with positions, and moves the expanding matrices to the queries and the output (DeepSeek-V2, arXiv 2405.04434).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Sizes(NamedTuple):
    """Sizes of a layer: `rank` numbers of a latent, `turned` numbers with positions, `dim` of a head without."""

    hidden: int = 256
    heads: int = 8
    dim: int = 32
    turned: int = 16
    rank: int = 64


class Layer(NamedTuple):
    """Weights of a layer.

    queries [heads, dim + turned, hidden], down [rank + turned, hidden], keys and values [heads, dim, rank],
    out [hidden, heads·dim]
    """

    sizes: Sizes
    queries: Floats
    down: Floats
    keys: Floats
    values: Floats
    out: Floats


class Attended(NamedTuple):
    """The output for the last token, and the bytes that its decoding read from the cache."""

    output: Floats
    cached: int


def layer(seed: int, sizes: Sizes = Sizes()) -> Layer:  # noqa: B008  (a frozen default)
    """Return a layer with weights drawn by `seed`, scaled so that outputs are as large as inputs."""
    draws = np.random.default_rng(seed)
    s = sizes

    def drawn(*shape: int) -> Floats:
        found: Floats = (draws.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return found

    return Layer(
        s, drawn(s.heads, s.dim + s.turned, s.hidden), drawn(s.rank + s.turned, s.hidden),
        drawn(s.heads, s.dim, s.rank), drawn(s.heads, s.dim, s.rank), drawn(s.hidden, s.heads * s.dim),
    )  # fmt: skip


def expanded(weights: Layer, tokens: Floats) -> Attended:
    """Return the attention of the last of `tokens` [n, hidden] over all, from cached keys and values of every head."""
    s = weights.sizes
    latent, positions = _latents(weights, tokens)
    keys = np.einsum("hdr,nr->hnd", weights.keys, latent)
    keys = np.concatenate((keys, np.broadcast_to(positions, (s.heads, *positions.shape))), axis=2)
    values = np.einsum("hdr,nr->hnd", weights.values, latent)
    shares = _shares(np.einsum("hd,hnd->hn", _query(weights, tokens), keys), s)
    mixed = np.einsum("hn,hnd->hd", shares, values)
    return Attended(weights.out @ mixed.ravel(), keys.nbytes + values.nbytes)


def absorbed(weights: Layer, tokens: Floats, *, positions_count: bool = True) -> Attended:
    """Return the same from cached latents alone: queries meet latents, and what is mixed is expanded once at the end.

    positions_count   whether the key with positions takes part; without it the result is another one
    """
    s = weights.sizes
    latent, positions = _latents(weights, tokens)
    query = _query(weights, tokens)
    scores = np.einsum("hd,hdr,nr->hn", query[:, : s.dim], weights.keys, latent, optimize=True)
    if positions_count:
        scores = scores + query[:, s.dim :] @ positions.T
    mixed = _shares(scores, s) @ latent
    return Attended(
        weights.out @ np.einsum("hdr,hr->hd", weights.values, mixed).ravel(), latent.nbytes + positions.nbytes
    )


def _latents(weights: Layer, tokens: Floats) -> tuple[Floats, Floats]:
    found = tokens @ weights.down.T
    rank = weights.sizes.rank
    return np.ascontiguousarray(found[:, :rank]), _turned(found[:, rank:], np.arange(len(tokens)))


def _query(weights: Layer, tokens: Floats) -> Floats:
    dim = weights.sizes.dim
    query = weights.queries @ tokens[-1]
    turned = _turned(query[:, dim:], np.full(len(query), len(tokens) - 1))
    return np.concatenate((query[:, :dim], turned), axis=1)


def _shares(scores: Floats, sizes: Sizes) -> Floats:
    scaled = scores / np.sqrt(np.float32(sizes.dim + sizes.turned))
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found


def _turned(x: Floats, at: NDArray[np.int64]) -> Floats:
    """Return x with pairs of its last axis turned by position (RoPE)."""
    half = x.shape[-1] // 2
    angle = np.outer(at, 10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    one, two = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Floats = np.concatenate((one * cos - two * sin, one * sin + two * cos), axis=1)
    return turned

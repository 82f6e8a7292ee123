"""A decoder that learns fast enough to lose something when it is rounded: larger weights at the start. Needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sonde.learn.decoder import Decoder, Shape, batch, loss
from sonde.learn.study import one_thread, texts

#: two shapes that learn in seconds on one core, the second in blocks of 16 channels
LEAN, BROAD = Shape(2, 64, 2, 192), Shape(2, 128, 4, 256)
ROWS, LENGTH, RATE = 8, 64, 5e-3


def pupil(shape: Shape, seed: int, steps: int, outliers: Iterable[int] = (), gain: float = 16.0) -> Decoder:
    """Return a decoder after `steps` steps on the standard library's text.

    `outliers` are channels that begin with `gain` times the others' norm, as a few channels of large models come to
    have: what they carry, and the weights that read them, are learnt.
    """
    torch.manual_seed(seed)
    model = Decoder(shape)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                nn.init.normal_(weights, std=weights.shape[1] ** -0.5)
        for block in model.blocks:
            for norm in block.norms:  # type: ignore[union-attr]
                norm.weight[list(outliers)] = gain
    fit(model, model.parameters(), steps, seed)
    return model.eval()


def fit(model: nn.Module, weights: Iterable[Tensor], steps: int, seed: int, rate: float = RATE) -> None:
    """Train some of a decoder's weights on random rows of the text, by AdamW with a warm-up and a cosine."""
    held, text, draws = list(weights), texts()[0], torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(held, lr=rate, weight_decay=0.1, betas=(0.9, 0.95))
    with one_thread():
        for step in range(steps):
            share = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.zero_grad()
            loss(model, batch(text, ROWS, LENGTH, draws)).backward()  # type: ignore[arg-type,no-untyped-call]
            nn.utils.clip_grad_norm_(held, 1.0)
            optimiser.step()

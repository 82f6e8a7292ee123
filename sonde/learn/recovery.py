"""Weights in 2 bits, two of four dropped: what that costs a decoder, and what learning brings back. Needs torch.

Recovery learns two thin matrices beside each frozen one; their product is added before rounding, so that nothing but
the narrow weights is left in the end.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.learn.decoder import MATRICES, Decoder
from sonde.learn.numbers import narrowed, number, widened
from sonde.learn.pupil import fit
from sonde.learn.sinks import rounded

GROUP, RANK = 64, 8


class Squeeze(NamedTuple):
    """What is done to weights: held in `bits` (32: as they are), and two of four dropped or not."""

    bits: int = 32
    pruned: bool = False


class Recovering(nn.Module):
    """A linear layer whose frozen weights, with a thin product learnt beside them, are squeezed as they are used."""

    def __init__(self, weights: Tensor, squeeze: Squeeze) -> None:
        super().__init__()
        self.frozen, self.squeeze = weights.detach(), squeeze
        self.kept = largest_two(self.frozen) if squeeze.pruned else torch.ones_like(self.frozen)
        outputs, inputs = weights.shape
        self.thin = nn.Parameter(torch.randn(RANK, inputs) * inputs**-0.5)
        self.wide = nn.Parameter(torch.zeros(outputs, RANK))

    def whole(self) -> Tensor:
        """Return the weights before rounding."""
        return (self.frozen + self.wide @ self.thin) * self.kept

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with squeezed weights; the gradient is that of the weights before rounding."""
        weights = self.whole()
        if self.squeeze.bits < 32:
            grouped = weights.view(len(weights), -1, min(GROUP, weights.shape[1]))
            near = rounded(grouped, self.squeeze.bits, 2).flatten(1) * self.kept
            weights = weights + (near - weights).detach()
        return functional.linear(x, weights)


def squeezed(model: Decoder, squeeze: Squeeze, seed: int = 0, steps: int = 0) -> tuple[Decoder, float]:
    """Return a decoder that computes with squeezed weights, read from their bytes, and the bytes of each weight.

    `steps` of recovery are learnt first. A dropped weight takes none, and an index of one bit each of every four.
    """
    model = copy.deepcopy(model)
    layers = []
    for block in model.blocks:
        for name in MATRICES:
            layers.append(Recovering(getattr(block, name).weight, squeeze))
            setattr(block, name, layers[-1])
    if steps:
        fit(model, [weights for layer in layers for weights in layer.parameters()], steps, seed)
    size = count = 0.0
    for block in model.blocks:
        for name in MATRICES:
            layer = getattr(block, name)
            weights, bytes_ = _stored(layer.whole().detach(), layer.kept, squeeze)
            plain = nn.Linear(weights.shape[1], weights.shape[0], bias=False)
            plain.weight = nn.Parameter(weights)
            setattr(block, name, plain)
            size, count = size + bytes_, count + weights.numel()
    return model.eval(), size / count


def largest_two(weights: Tensor) -> Tensor:
    """Return 1 where a weight is of the two largest of its four neighbours in input, and 0 elsewhere."""
    fours = weights.abs().view(len(weights), -1, 4)
    kept = torch.zeros_like(fours).scatter_(2, fours.topk(2, dim=2).indices, 1.0)
    return kept.flatten(1)


def _stored(weights: Tensor, kept: Tensor, squeeze: Squeeze) -> tuple[Tensor, float]:
    index = weights.numel() / 8 if squeeze.pruned else 0.0
    if squeeze.bits == 32:
        return weights, 4.0 * float(kept.sum()) + index
    group = min(GROUP, weights.shape[1])
    if not squeeze.pruned:
        held = narrowed(weights.numpy(), number(f"uint{squeeze.bits}"), group)
        return torch.from_numpy(widened(held)), float(held.nbytes)
    places = kept.bool()
    dense = weights[places].view(weights.shape[0], -1)
    held = narrowed(dense.numpy(), number(f"uint{squeeze.bits}"), group // 2)
    found = torch.zeros_like(weights)
    found[places] = torch.from_numpy(widened(held)).flatten()
    return found, float(held.nbytes) + index

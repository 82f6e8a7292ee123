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
from sonde.learn.pupil import LEAN, fit, pupil
from sonde.learn.sinks import Kept, Reach, by_length, losses, rounded
from sonde.learn.study import judged

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


class Narrowed(NamedTuple):
    """One decoder, narrower: shares of its loss that each way adds, bytes a weight, and losses by length.

    near, far               at the length it learnt from and at a longer one, of the same last bytes: all attended to
    near_ends, far_ends     the same, of attention that ends
    """

    added: dict[str, float]
    weight_bytes: dict[str, float]
    near: float
    far: float
    near_ends: float
    far_ends: float


def narrowed_decoder(seed: int, steps: tuple[int, int], lengths: tuple[int, int], reach: tuple[int, int]) -> Narrowed:
    """Return what becomes of a decoder that learnt for `steps[0]` and, squeezed, for `steps[1]` more."""
    plain = pupil(LEAN, seed, steps[0])
    base = judged(plain)
    ways = {
        "four": (Squeeze(4), 0), "two": (Squeeze(2), 0), "half": (Squeeze(32, pruned=True), 0),
        "pruned": (Squeeze(2, pruned=True), 0), "pruned, learnt": (Squeeze(2, pruned=True), steps[1]),
        "learnt": (Squeeze(), steps[1]),
    }  # fmt: skip
    added, sizes = {}, {}
    for name, (squeeze, again) in ways.items():
        model, sizes[name] = squeezed(plain, squeeze, seed + 1, again)
        added[name] = judged(model) / base - 1
    kept = {bits: float(losses(plain, lengths[0], Kept(None, bits)).mean()) for bits in (32, 8, 4)}
    added |= {f"kv{bits}": kept[bits] / kept[32] - 1 for bits in (8, 4)}
    last = lengths[0] // 4
    ends = [
        [float(part[-last:].mean()) for part in by_length(plain, lengths, Kept(it))] for it in (None, Reach(*reach))
    ]
    return Narrowed(added, sizes, *ends[0], *ends[1])

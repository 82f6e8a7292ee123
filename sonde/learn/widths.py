"""What weights of every width cost a small decoder, held in so many bytes and read from them. Needs torch."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch

from sonde.learn.decoder import MATRICES, Decoder
from sonde.learn.numbers import narrowed, number, widened
from sonde.learn.pupil import LEAN, pupil
from sonde.learn.study import judged


class Held(NamedTuple):
    """A decoder's blocks in narrow numbers: loss over that in 32 bits, and bytes a weight, scales and all."""

    loss: float
    weight_bytes: float


def held_in(model: Decoder, name: str, group: int = 32) -> tuple[Decoder, int]:
    """Return a copy of the decoder that computes with what the bytes of its packed weights say, and those bytes."""
    model, it, size = copy.deepcopy(model), number(name), 0
    with torch.no_grad():
        for block in model.blocks:
            for matrix in MATRICES:
                weights = getattr(block, matrix).weight
                packed = narrowed(weights.numpy(), it, group)
                size += packed.nbytes
                weights.copy_(torch.from_numpy(widened(packed)))
    return model, size


def widths(seed: int, steps: int, names: Iterable[str]) -> dict[str, Held]:
    """Return what every type of number costs a decoder that was trained for `steps`."""
    model = pupil(LEAN, seed, steps)
    before = judged(model)
    count = sum(getattr(block, matrix).weight.numel() for block in model.blocks for matrix in MATRICES)
    found = {}
    for name in names:
        narrow, size = held_in(model, name)
        found[name] = Held(judged(narrow) / before, size / count)
    return found

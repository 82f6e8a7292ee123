"""Small experiments on decoders that are trained here, each the same for the same seed. Needs torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sonde.learn.corpus import standard_library
from sonde.learn.decoder import Decoder, Shape, batch, loss, train

#: small enough to be trained in seconds on one core
SMALL = Shape(layers=2, hidden=96, heads=4, inner=256)
ROWS, LENGTH, JUDGED = 8, 96, 48


def texts() -> tuple[Tensor, Tensor]:
    """Return the bytes to train on and those kept from training."""
    train_on, kept = standard_library()
    return torch.from_numpy(train_on.copy()), torch.from_numpy(kept.copy())


def trained(shape: Shape, seed: int, steps: int) -> Decoder:
    """Return a decoder after `steps` steps of training on the standard library's text."""
    torch.manual_seed(seed)
    model = Decoder(shape)
    with one_thread():
        train(model, texts()[0], steps, seed, rows=ROWS, length=LENGTH)
    return model.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread while the block runs: products this small lose by more, and times repeat."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judged(model: Decoder) -> float:
    """Return the loss (nats a byte) on the same held-out rows whatever the decoder."""
    rows = batch(texts()[1], JUDGED, LENGTH, torch.Generator().manual_seed(7))
    with one_thread(), torch.no_grad():
        return float(loss(model, rows))


def rounding_costs(seed: int, steps: int) -> dict[int, float]:
    """Return by how much the loss rises, as a share, when the blocks' weights are rounded to 8, 4, 3 and 2 bits."""
    model = trained(SMALL, seed, steps)
    before = judged(model)
    return {bits: judged(copy.deepcopy(model).round(bits)) / before - 1 for bits in (8, 4, 3, 2)}


class Sharing(NamedTuple):
    """What running every block twice brings: loss (nats a byte) and accuracy (share of bytes) with and without."""

    before: float
    loss_once: float
    loss_twice: float
    right_once: float
    right_twice: float


def sharing(seed: int, steps: int) -> Sharing:
    """Return what a decoder learns whose blocks run twice, and one of the same stored weights whose blocks run once."""
    torch.manual_seed(seed)
    before = judged(Decoder(SMALL))
    once, twice = (trained(SMALL._replace(repeats=repeats), seed, steps) for repeats in (1, 2))
    return Sharing(before, judged(once), judged(twice), accuracy(once), accuracy(twice))


def accuracy(model: Decoder) -> float:
    """Return the share of held-out bytes that are guessed right, each from those before it."""
    rows = batch(texts()[1], JUDGED, LENGTH, torch.Generator().manual_seed(7))
    with one_thread(), torch.no_grad():
        return float((model(rows[:, :-1]).argmax(-1) == rows[:, 1:]).float().mean())

"""Fine-grained mixed precision (COMET's FMPQ) on a decoder: outlier channels gathered into few blocks. Needs torch.

Activations are held in 4 bits but for blocks of channels with outliers, which are held in 8. A permutation of the
channels, done once to the weights, brings outliers together; products are those of whole numbers.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sonde.learn.decoder import MATRICES, Decoder, batch
from sonde.learn.pupil import BROAD, pupil
from sonde.learn.sinks import Kept, losses
from sonde.learn.study import judged, one_thread, texts

BLOCK = 16
#: a channel is an outlier if it reaches so many times the median channel's largest number
OUTLIER = 4.0
Peaks = dict[tuple[int, str], Tensor]


class Integers(nn.Module):
    """A linear layer of whole numbers: 4-bit weights with a scale for every block of inputs and output.

    eight      [blocks], whether a block's activations are in 8 bits, and not in 4
    by_token   whether a token's activations have one scale, and not one for each block
    """

    def __init__(self, weights: Tensor, eight: Tensor, *, by_token: bool = False) -> None:
        super().__init__()
        self.eight, self.by_token = eight, by_token
        self.codes, self.scales = _coded(weights.detach().view(len(weights), -1, BLOCK), torch.tensor(7.0))
        self.checked = self.equal = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the product. Sums of a block stay below 2^24, where 32-bit floats hold whole numbers exactly."""
        tops = torch.where(self.eight, 127.0, 7.0)
        codes, scales = _coded(x.reshape(-1, x.shape[-1] // BLOCK, BLOCK), tops[:, None], by_token=self.by_token)
        left, right = codes.transpose(0, 1), self.codes.permute(1, 2, 0)
        sums = left @ right  # [blocks, rows, outputs]
        self._check(left[:, :4], right, sums[:, :4])
        found: Tensor = (sums * scales.permute(1, 0, 2) * self.scales.permute(1, 2, 0)).sum(0)
        return found.view(*x.shape[:-1], -1)

    def _check(self, left: Tensor, right: Tensor, sums: Tensor) -> None:
        """Hold some rows' sums against those of 32-bit integers."""
        whole = torch.stack([a.int() @ b.int() for a, b in zip(left, right, strict=True)])
        self.checked += whole.numel()
        self.equal += int((whole == sums.int()).sum())


class Mixed(NamedTuple):
    """A decoder in whole numbers: itself, the share of its products' work in 4 bits, and blocks by bits."""

    model: Decoder
    four: float
    blocks: dict[int, int]

    def exact(self) -> float:
        """Return the share of checked sums that are those of 32-bit integers."""
        layers = [layer for layer in self.model.modules() if isinstance(layer, Integers)]
        return sum(layer.equal for layer in layers) / max(sum(layer.checked for layer in layers), 1)


def peaks(model: Decoder, rows: int = 8, length: int = 96) -> Peaks:
    """Return the largest size that every channel into every matrix reaches, on text that the decoder learnt from."""
    found: Peaks = {}
    hooks = []
    for i, block in enumerate(model.blocks):
        for name in MATRICES:

            def seen(_: nn.Module, given: tuple[Tensor], key: tuple[int, str] = (i, name)) -> None:
                most = given[0].abs().flatten(0, -2).amax(0)
                found[key] = torch.maximum(found[key], most) if key in found else most

            hooks.append(getattr(block, name).register_forward_pre_hook(seen))
    with one_thread(), torch.no_grad():
        model(batch(texts()[0], rows, length, torch.Generator().manual_seed(11))[:, :-1])
    for hook in hooks:
        hook.remove()
    return found


def permuted(model: Decoder, found: Peaks) -> Decoder:
    """Return a decoder of the same function whose channels lie by their peaks, outliers next to each other.

    Three permutations, all done to weights once: of the hidden channels, in every matrix that reads or writes them;
    of each block's inner channels; of the channels of every head's values.
    """
    model = copy.deepcopy(model)
    hidden = torch.stack([found[i, name] for i in range(len(model.blocks)) for name in ("qkv", "up")])
    order = (hidden / hidden.median(dim=1, keepdim=True).values).amax(0).argsort(descending=True)
    with torch.no_grad():
        for matrix in (model.embedding, model.head):
            matrix.weight.copy_(matrix.weight[:, order])
        model.norm.weight.copy_(model.norm.weight[order])
        for i, block in enumerate(model.blocks):
            for norm in block.norms:  # type: ignore[union-attr]
                norm.weight.copy_(norm.weight[order])
            _permute_block(block, order, found, i)
    return model


def _permute_block(block: nn.Module, order: Tensor, found: Peaks, i: int) -> None:
    qkv, out, up, down = (getattr(block, name).weight for name in MATRICES)
    inner = found[i, "down"].argsort(descending=True)
    heads = found[i, "out"].view(block.heads, -1)  # type: ignore[call-overload]
    within = heads.argsort(dim=1, descending=True)
    values = (within + torch.arange(len(heads))[:, None] * heads.shape[1]).flatten()
    width = out.shape[1]
    rows = torch.cat((torch.arange(2 * width), 2 * width + values))
    qkv.copy_(qkv[rows][:, order])
    out.copy_(out[order][:, values])
    up.copy_(up[torch.cat((inner, inner + len(inner)))][:, order])
    down.copy_(down[order][:, inner])


def naive(model: Decoder) -> Mixed:
    """Return the decoder in whole numbers of 4 bits, activations with one scale for each token: W4A4 as it comes."""
    return _in_integers(model, None, 4, by_token=True)


def mixed(model: Decoder, found: Peaks) -> Mixed:
    """Return the decoder in whole numbers, activations in 8 bits where a block has outliers by these peaks."""
    return _in_integers(model, found, 4)


def eight_bits(model: Decoder) -> Mixed:
    """Return the decoder in whole numbers, all activations in 8 bits: W4A8."""
    return _in_integers(model, None, 8)


def _in_integers(model: Decoder, found: Peaks | None, bits: int, *, by_token: bool = False) -> Mixed:
    model, work, four, blocks = copy.deepcopy(model), 0.0, 0.0, {4: 0, 8: 0}
    for i, block in enumerate(model.blocks):
        for name in MATRICES:
            weights = getattr(block, name).weight
            count = weights.shape[1] // BLOCK
            wide = torch.full((count,), bits == 8) if found is None else _with_outliers(found[i, name])
            setattr(block, name, Integers(weights, wide, by_token=by_token))
            each = weights.numel() / count
            work, four = work + weights.numel(), four + each * int((~wide).sum())
            blocks[8] += int(wide.sum())
            blocks[4] += int((~wide).sum())
    return Mixed(model, four / work, blocks)


def _with_outliers(most: Tensor) -> Tensor:
    return (most > OUTLIER * most.median()).view(-1, BLOCK).any(1)


def _coded(x: Tensor, top: Tensor, *, by_token: bool = False) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -top to top of x [rows, blocks, BLOCK], and the scale of every block, or of a row."""
    most = x.abs().amax((-2, -1), keepdim=True) if by_token else x.abs().amax(-1, keepdim=True)
    scales = (most.clamp_min(1e-8) / top).expand(*x.shape[:-1], 1)
    return torch.round(x / scales), scales


class Tried(NamedTuple):
    """One decoder in whole numbers: nats that each way adds, shares of work in 4 bits, and what must not change.

    moved   largest change of a logit by the permutation, over the largest logit
    exact   share of checked sums that are those of 32-bit integers
    """

    added: dict[str, float]
    four: float
    four_before: float
    blocks: dict[int, int]
    moved: float
    exact: float


def tried(seed: int, steps: int, outliers: tuple[int, ...]) -> Tried:
    """Return what becomes of a decoder with trained outlier channels under every way to hold its numbers."""
    plain = pupil(BROAD, seed, steps, outliers)
    found = peaks(plain)
    sorted_ = permuted(plain, found)
    gathered = mixed(sorted_, peaks(sorted_))
    before = mixed(plain, found)
    ways = {"naive": naive(plain), "eight": eight_bits(plain), "unsorted": before, "mixed": gathered}
    base = judged(plain)
    added = {name: judged(way.model) - base for name, way in ways.items()}
    whole = float(losses(plain, 128, Kept()).mean())
    for bits in (4, 8):
        added[f"kv{bits}"] = float(losses(plain, 128, Kept(None, bits)).mean()) - whole
    rows = batch(texts()[1], 4, 96, torch.Generator().manual_seed(3))[:, :-1]
    with torch.no_grad():
        one, two = plain(rows), sorted_(rows)
    moved = float((one - two).abs().max() / one.abs().max())
    return Tried(added, gathered.four, before.four, gathered.blocks, moved, gathered.exact())

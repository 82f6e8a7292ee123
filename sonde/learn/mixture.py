"""A small mixture of experts, trained on bytes here, whose routing is real: what it chose, skipped, lost, merged.

Every block of the decoder routes each token to the `top_k` of its experts that score highest, weighted by softmax over
those. Needs torch.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sonde.learn import packing
from sonde.learn.decoder import Block, Decoder, Shape, batch
from sonde.learn.study import one_thread, texts

SHAPE = Shape(layers=2, hidden=64, heads=4, inner=64)
STEPS = 320
EXPERTS, TOP_K = 16, 2
ROWS, LENGTH, JUDGED = 8, 96, 32
#: weight of the loss that keeps experts in use (Fedus et al., Switch Transformers, JMLR 2022)
BALANCE = 1e-2
RATE = 5e-3  # of learning


class Gate(NamedTuple):
    """How a token's experts are picked from those that score highest.

    skip      the second is left out where its probability is below so many times the first's (adaptive gating)
    dropped   share of tokens, drawn at random, whose second is left out whatever it scores
    allowed   experts that may be picked, [experts]; all where it is not given
    """

    skip: float = 0.0
    dropped: float = 0.0
    allowed: tuple[bool, ...] = ()


class Experts(Block):
    """Attention, and experts in the feed-forward's place. `chosen`: what a recorded run picked, [tokens, top_k]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        del self.up, self.down
        self.router = nn.Linear(shape.hidden, EXPERTS, bias=False)
        self.ups = nn.Parameter(torch.empty(EXPERTS, 2 * shape.inner, shape.hidden).normal_(std=0.05))
        self.downs = nn.Parameter(torch.empty(EXPERTS, shape.hidden, shape.inner).normal_(std=0.05))
        self.gate, self.draws = Gate(), torch.Generator().manual_seed(0)
        self.balance = torch.zeros(())
        self.chosen: list[Tensor] | None = None
        self.computed = 0

    def feed(self, x: Tensor) -> Tensor:
        """Return what a token's experts make of it, weighted, for x [..., hidden]."""
        tokens = x.reshape(-1, x.shape[-1])
        weights, picked = self.routed(tokens)
        rows, slots = weights.nonzero(as_tuple=True)  # one entry a computed (token, expert) pair
        experts, order = picked[rows, slots].sort(stable=True)
        rows, slots = rows[order], slots[order]
        self.computed += len(rows)
        dealt = torch.split(tokens[rows], torch.bincount(experts, minlength=EXPERTS).tolist())
        made = []
        for mine, up, down in zip(dealt, self.ups.unbind(), self.downs.unbind(), strict=True):
            gate, value = (mine @ up.T).chunk(2, dim=-1)
            made.append((functional.silu(gate) * value) @ down.T)
        out = torch.zeros_like(tokens).index_add(0, rows, weights[rows, slots][:, None] * torch.cat(made))
        return out.view_as(x)

    def routed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and numbers of each token's experts, [tokens, top_k]; a weight of 0 is not computed."""
        scores = self.router(tokens)
        if self.gate.allowed:
            scores = scores.masked_fill(~torch.tensor(self.gate.allowed), -math.inf)
        chances = scores.softmax(dim=-1)
        top, picked = chances.topk(TOP_K, dim=-1)
        if self.training:
            used = functional.one_hot(picked, EXPERTS).float().mean(dim=(0, 1))
            self.balance = EXPERTS * (used * chances.mean(dim=0)).sum()
        out = top[:, 1] < self.gate.skip * top[:, 0]
        out = out | (torch.rand(len(tokens), generator=self.draws) < self.gate.dropped)
        top = torch.stack((top[:, 0], top[:, 1].masked_fill(out, 0.0)), dim=1)
        if self.chosen is not None:
            self.chosen.append(picked)
        return top / top.sum(dim=1, keepdim=True), picked


def mixture(seed: int, steps: int = STEPS) -> Decoder:
    """Return a mixture of experts after `steps` steps of training on the standard library's text."""
    torch.manual_seed(seed)
    model = untrained().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.95))
    draws, text = torch.Generator().manual_seed(seed), texts()[0]
    with one_thread():
        for step in range(steps):
            share = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = RATE * share
            optimiser.zero_grad()
            rows = batch(text, ROWS, LENGTH, draws)
            wrong = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            whole = wrong + BALANCE * sum(block.balance for block in blocks(model))
            whole.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    for block in blocks(model):
        block.balance = torch.zeros(())
    return model.eval()


def untrained() -> Decoder:
    """Return a mixture as it is drawn by torch's generator."""
    model = Decoder(SHAPE)
    model.blocks = nn.ModuleList([Experts(SHAPE) for _ in range(SHAPE.layers)])
    return model.eval()


def blocks(model: Decoder) -> list[Experts]:
    """Return the blocks of a mixture."""
    return [block for block in model.blocks if isinstance(block, Experts)]


class Judged(NamedTuple):
    """Bits a byte on held-out text, and (token, expert) pairs computed for a token and layer."""

    bits: float
    pairs: float


def judged(model: Decoder, gate: Gate | list[Gate] = Gate()) -> Judged:  # noqa: B008  (a frozen default)
    """Return what the mixture costs and loses on the same held-out rows under a gate, or one gate a block."""
    rows = batch(texts()[1], JUDGED, LENGTH, torch.Generator().manual_seed(7))
    gates = gate if isinstance(gate, list) else [gate] * len(blocks(model))
    for block, its in zip(blocks(model), gates, strict=True):
        block.gate, block.computed, block.draws = its, 0, torch.Generator().manual_seed(1)
    with one_thread(), torch.no_grad():
        wrong = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    pairs = sum(block.computed for block in blocks(model)) / (rows.shape[0] * LENGTH * len(gates))
    return Judged(float(wrong) / math.log(2), pairs)


def traced(model: Decoder, rows: int, length: int, seed: int) -> NDArray[np.int64]:
    """Return the experts that rows of held-out text were routed to: [blocks, rows, length, top_k]."""
    text = batch(texts()[1], rows, length, torch.Generator().manual_seed(seed))
    for block in blocks(model):
        block.gate, block.chosen = Gate(), []
    with one_thread(), torch.no_grad():
        model(text[:, :-1])
    found = np.stack([torch.cat(block.chosen or []).numpy() for block in blocks(model)])
    for block in blocks(model):
        block.chosen = None
    return found.reshape(len(found), rows, length, TOP_K)


def foreseen(model: Decoder, rows: int, length: int, seed: int) -> tuple[float, float]:
    """Return the share of experts that a layer's router picks before its attention has run, and that of its usual ones.

    The first is what can be fetched while attention runs; the second fetches the `top_k` that a layer picks most.
    """
    text = batch(texts()[1], rows, length, torch.Generator().manual_seed(seed))
    early: list[Tensor] = []

    def look(block: Experts, inputs: tuple[Any, ...]) -> None:
        early.append(block.routed(block.norms[1](inputs[0]).flatten(0, 1))[1])

    hooks = [block.register_forward_pre_hook(look) for block in blocks(model)]
    with one_thread(), torch.no_grad():
        model(text[:, :-1])
    for hook in hooks:
        hook.remove()
    late = traced(model, rows, length, seed).reshape(len(early), -1, TOP_K)
    right, usual = [], []
    for first, layer in zip(early, late, strict=True):
        common = np.argsort(np.bincount(layer.ravel(), minlength=EXPERTS))[-TOP_K:]
        right.append(np.mean([np.isin(a, b) for a, b in zip(layer, first.numpy(), strict=True)]))
        usual.append(np.isin(layer, common).mean())
    return float(np.mean(right)), float(np.mean(usual))


def without(trace: NDArray[np.int64], count: int, *, most_used: bool) -> list[Gate]:
    """Return gates that leave out `count` experts of each block: those that a trace met most, or least."""
    found = []
    for layer in trace:
        order = np.argsort(np.bincount(layer.ravel(), minlength=EXPERTS), kind="stable")
        gone = order[-count:] if most_used else order[:count]
        found.append(Gate(allowed=tuple(expert not in gone for expert in range(EXPERTS))))
    return found


def merged(model: Decoder, trace: NDArray[np.int64], count: int, *, alike: bool) -> Decoder:
    """Return the mixture with its `count` least used experts put into others, weighted by use; their places share one.

    alike   into the expert whose router row points most the same way; else into the one that points least so
    """
    model = copy.deepcopy(model)
    for block, layer in zip(blocks(model), trace, strict=True):
        used = np.bincount(layer.ravel(), minlength=EXPERTS) + 1.0
        order = np.argsort(used, kind="stable")
        kept = order[count:]
        rows = functional.normalize(block.router.weight.detach(), dim=1)
        angles = (rows @ rows.T).numpy()
        into = {gone: int(kept[np.argmax(angles[gone, kept] if alike else -angles[gone, kept])])
                for gone in order[:count].tolist()}  # fmt: skip
        with torch.no_grad():
            for gone, to in into.items():
                share = float(used[gone] / (used[gone] + used[to]))
                used[to] += used[gone]
                for weights in (block.ups, block.downs):
                    weights[to] = weights[to] * (1 - share) + weights[gone] * share
            for gone, to in into.items():
                for weights in (block.ups, block.downs):
                    weights[gone] = weights[to]
    return model


def rounded(model: Decoder, bits: NDArray[np.int64]) -> Decoder:
    """Return the mixture with expert e of block l rounded to bits[l, e] bits, in groups as packing makes them."""
    model = copy.deepcopy(model)
    for block, its in zip(blocks(model), bits, strict=True):
        with torch.no_grad():
            for weights in (block.ups, block.downs):
                for expert, width in enumerate(its.tolist()):
                    weights[expert] = torch.from_numpy(packing.dequantised(weights[expert].numpy(), width))
    return model

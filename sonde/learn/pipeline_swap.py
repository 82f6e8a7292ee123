"""Layers whose weights live elsewhere, fetched over a link while others run: how long the network waits. Needs torch.

The link is a process that copies from one piece of shared memory to another, no faster than its bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, multiprocessing

from sonde.learn.pipeline import shared, wait, workers


class Swapped(NamedTuple):
    """Steps with layers that are fetched.

    wait_s    waited for a fetched layer, the median once the first step has gone by
    layer_s   that a layer took, the median;  fetch_s: that a fetch took, the median
    same      whether the outputs are those of a network that holds all layers
    """

    wait_s: float
    layer_s: float
    fetch_s: float
    same: bool


class Network(NamedTuple):
    """Square layers, of which the last one of `every` is fetched `ahead` layers before its turn in `fetch_s`."""

    layers: int
    hidden: int
    rows: int
    every: int
    ahead: int
    fetch_s: float

    @property
    def lent(self) -> list[int]:
        """Return the layers that live elsewhere."""
        return list(range(self.every - 1, self.layers, self.every))

    @property
    def buffers(self) -> int:
        """Return the places for fetched layers."""
        return 1 + self.ahead // self.every


def run(networks: Sequence[Network], steps: int) -> list[Swapped]:
    """Return how long `steps` passes of each network wait. Raises CannotError where the link does not answer."""
    context = multiprocessing.get_context("spawn")
    ready = context.Semaphore(0)
    jobs = [_job(context, network, steps) for network in networks]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with workers([(link, (jobs, ready))]), torch.inference_mode():
            wait(ready)
            return [_swapped(network, job, steps) for network, job in zip(networks, jobs, strict=True)]
    finally:
        torch.set_num_threads(threads)


class Fetches(NamedTuple):
    """What the link does for one network: layers `away` to places `here`, the seconds that each took, signals."""

    away: Tensor
    here: Tensor
    took: Tensor
    fetch_s: float
    asked: Any
    come: Any


def link(jobs: Sequence[Fetches], ready: Any) -> None:
    """Bring layers one after the other, each as soon as it is asked for, in `fetch_s` each."""
    torch.set_num_threads(1)
    ready.release()
    for away, here, took, fetch_s, asked, come in jobs:
        for i in range(len(took)):
            wait(asked)
            begin = time.perf_counter()
            here[i % len(here)] = away[i % len(away)]
            time.sleep(max(fetch_s - (time.perf_counter() - begin), 0.0))
            took[i] = time.perf_counter() - begin
            come.release()


def _weights(network: Network) -> tuple[Tensor, Tensor]:
    """Return the weights of all layers, and the input."""
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(network.layers, network.hidden, network.hidden, generator=draws) / network.hidden**0.5
    return weights, torch.randn(network.rows, network.hidden, generator=draws)


def _job(context: Any, network: Network, steps: int) -> Fetches:
    away = shared(_weights(network)[0][network.lent].clone())
    here = shared(torch.zeros(network.buffers, network.hidden, network.hidden))
    took = shared(torch.zeros(steps * len(away), dtype=torch.float64))
    return Fetches(away, here, took, network.fetch_s, context.Semaphore(0), context.Semaphore(0))


def _swapped(network: Network, job: Fetches, steps: int) -> Swapped:
    weights, x = _weights(network)
    held = weights.clone()
    held[network.lent] = 0.0  # they are elsewhere
    waits, layers, out = _pass(network, held, job.here, x, (steps, job.asked, job.come))
    first = len(network.lent)
    return Swapped(
        float(np.median(waits[first:])), float(np.median(layers)), float(np.median(job.took[first:].numpy())),
        bool(torch.equal(out, _whole(weights, x))),
    )  # fmt: skip


def _pass(
    network: Network, weights: Tensor, here: Tensor, x: Tensor, run: tuple[int, Any, Any]
) -> tuple[list[float], list[float], Tensor]:
    """Return what every fetched layer was waited for, what every layer took, and the output of the last step."""
    steps, asked, come = run
    waits, layers = list[float](), list[float]()
    lent = [step * network.layers + layer for step in range(steps) for layer in network.lent]
    sent, y = 0, x
    for at in range(steps * network.layers):
        layer = at % network.layers
        y = x if layer == 0 else y
        while sent < len(lent) and lent[sent] - network.ahead <= at and sent - len(waits) < network.buffers:
            asked.release()
            sent += 1
        matrix = weights[layer]
        if layer in network.lent:
            begin = time.perf_counter()
            wait(come)
            matrix = here[len(waits) % len(here)]
            waits.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        y = torch.tanh(y @ matrix)
        layers.append(time.perf_counter() - begin)
    return waits, layers, y


def _whole(weights: Tensor, x: Tensor) -> Tensor:
    for matrix in weights:
        x = torch.tanh(x @ matrix)
    return x

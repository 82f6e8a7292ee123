"""Device memory of a replica: what weights, activations and the engine take, and what is left for caches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from sonde.catalogue.device import PRECISION_BYTES, Device
from sonde.catalogue.efficiencies import Efficiencies, efficiencies
from sonde.catalogue.model import Mixer, Model
from sonde.cost.operators import table_window
from sonde.cost.shard import Shard, held, shard
from sonde.cost.table import KvMemory
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, SondeError
from sonde.units import show


class MemoryReport(NamedTuple):
    """Bytes on the fullest device of a replica, and the tokens of cache in the whole replica.

    budget       what the engine may use: nominal capacity · usable share · memory_fraction
    kv_bytes     budget - weights - activations - overhead; below zero where it does not fit
    kv_tokens    cached tokens of long sequences that all devices hold together
    """

    capacity: float
    budget: float
    weights: float
    activations: float
    overhead: float
    kv_bytes: float
    kv_tokens: int
    fits: bool


@dataclass(frozen=True, slots=True)
class _CacheBytes:
    """Bytes of one token (growing, windowed) and of one sequence (state), over the devices that hold a sequence."""

    token: float
    window_token: float
    state: float


def fit(model: Model, device: Device, replica: Replica, *, reached: Efficiencies | None = None) -> MemoryReport:
    """Return what the memory of one device goes to. Raises InputError where the parallelism is impossible."""
    return report(shard(model, device, replica, reached or efficiencies(device)))


def report(part: Shard) -> MemoryReport:
    """Return what the memory of one device goes to, of a replica that is cut already."""
    memory = part.efficiencies.memory
    capacity = part.device.memory[0].bytes
    budget = capacity * memory.usable * part.replica.memory_fraction
    overhead = memory.overhead_bytes + (memory.rank_bytes if part.replica.devices > 1 else 0.0)
    weights, activations = weight_bytes(part), activation_bytes(part)
    left = budget - weights - activations - overhead
    cache = _cache_bytes(part)
    whole = left * part.replica.devices * _even_stages(part)
    per_token = cache.token or cache.window_token
    tokens = int(max(whole, 0.0) / per_token) if per_token else 0
    enough = left > 0 and (not per_token or tokens >= part.replica.block_tokens)
    return MemoryReport(capacity, budget, weights, activations, overhead, left, tokens, enough)


def weight_bytes(part: Shard) -> float:
    """Return the bytes of weights on the fullest device: its stage's layers, and its share of the token tables."""
    model, replica = part.model, part.replica
    layers = 0.0
    for mixer in model.mixers:
        share = sum(matrix.parameters * held(part, matrix, mixer) for matrix in mixer.matrices)
        layers += mixer.layers * (share * part.weight_bytes + mixer.vectors * part.table_bytes)
    for forward in model.feedforwards:
        share = sum(matrix.parameters * held(part, matrix) for matrix in forward.matrices)
        layers += forward.layers * (share * part.weight_bytes + forward.vectors * part.table_bytes)
        if forward.experts:
            here = part.held_experts(forward)
            expert = sum(matrix.parameters for matrix in forward.expert_matrices) / part.expert_split
            vectors = forward.expert_vectors / part.expert_split * part.table_bytes
            layers += forward.layers * here * (expert * part.expert_bytes + vectors)
    table = model.embedding_parameters / part.tensor * part.table_bytes
    whole = replica.pipeline_parallel == 1
    tables = 2 * table if whole and not model.tied_embeddings else table
    other = (model.other_parameters + model.vectors) * part.table_bytes
    return layers / (replica.pipeline_parallel * _even_stages(part)) + tables + other


def activation_bytes(part: Shard) -> float:
    """Return the peak of what a step of `token_budget` tokens holds besides weights and caches.

    Residual and two copies of the hidden state, the widest inner layer in and out, and the logits of every
    sequence in 32 bits, twice (before and after the sampler's scaling).
    """
    model, replica = part.model, part.replica
    rows = replica.batching.token_budget  # a prompt is on one rank and passes every stage
    if part.sequence_parallel:
        rows = math.ceil(rows / replica.data_parallel)
    widest = 0.0
    for forward in model.feedforwards:
        inner = sum(m.outputs * held(part, m) for m in forward.matrices if m.split != "row")
        routed = sum(m.outputs for m in forward.expert_matrices if m.split != "row") / part.expert_split
        widest = max(widest, inner + routed * forward.top_k * replica.data_parallel / replica.expert_parallel)
    for mixer in model.mixers:
        widest = max(widest, sum(m.outputs * held(part, m, mixer) for m in mixer.matrices if m.split != "row"))
    layer = rows * (3 * model.hidden + 1.5 * widest) * max(part.activation_bytes, 2.0)
    logits = min(rows, math.ceil(replica.batching.max_batch / part.lanes)) * model.vocabulary * 4.0 * 2.0
    return layer + logits


def kv_memory(part: Shard) -> KvMemory:
    """Return the memory for caches of a whole replica. Raises CannotError where the weights do not fit."""
    found = report(part)
    if not found.fits:
        raise CannotError(_does_not_fit(part, found))
    cache = _cache_bytes(part)
    block = part.replica.block_tokens
    return KvMemory(
        int(found.kv_bytes * part.replica.devices * _even_stages(part)),
        block,
        math.ceil(cache.token * block),
        math.ceil(cache.window_token * block),
        math.ceil(cache.state),
        part.device.host.bandwidth * part.replica.devices,
    )


def _cache_bytes(part: Shard) -> _CacheBytes:
    token = window = state = 0.0
    for mixer in part.model.mixers:
        kept = mixer.layers * mixer.cache_elements * part.cache_share(mixer) * part.tensor * part.kv_bytes
        if mixer.window and mixer.cache_saturates:
            window += kept * _window_scale(part, mixer)
        else:
            token += kept
        state += mixer.layers * mixer.state_bytes * part.head_share(mixer) * part.tensor
    return _CacheBytes(token, window, state)


def _window_scale(part: Shard, mixer: Mixer) -> float:
    return mixer.window / table_window(part)


def _even_stages(part: Shard) -> float:
    """Return the layers of a mean pipeline stage over those of the largest."""
    mean = part.model.layers / part.replica.pipeline_parallel
    return mean / math.ceil(mean)


def _does_not_fit(part: Shard, found: MemoryReport) -> str:
    model, device, replica = part.model, part.device, part.replica
    text = (
        f"{model.name} does not fit {device.name}: a device needs {show(found.weights, 'bytes')} for weights, "
        f"{show(found.activations, 'bytes')} for activations and {show(found.overhead, 'bytes')} for the engine, "
        f"and has {show(found.budget, 'bytes')}"
    )
    would = [name for name, change in _changes(replica) if _fits(part, replica.model_copy(update=change))]
    return f"{text}; what would fit: {', '.join(would[:3])}" if would else f"{text}; nothing tried would fit"


def _changes(replica: Replica) -> list[tuple[str, dict[str, object]]]:
    """Return what to try where a replica does not fit: more devices, then fewer bytes a weight, then both."""
    ranks = [replica.tensor_parallel * 2**i for i in range(1, 7) if replica.tensor_parallel * 2**i <= 64]
    expert = replica.expert_parallel > 1
    more: list[tuple[str, dict[str, object]]] = [
        (f"tensor_parallel {n}", {"tensor_parallel": n} | ({"expert_parallel": n} if expert else {})) for n in ranks[:3]
    ]
    less: list[tuple[str, dict[str, object]]] = [
        (f"weights {name}", {"weights": name})
        for name in ("fp8", "int4")
        if PRECISION_BYTES[name] < PRECISION_BYTES[replica.weights]
    ]
    both = [(f"{a} with {b}", x | y) for a, x in more for b, y in less]
    staged: list[tuple[str, dict[str, object]]] = [
        (f"pipeline_parallel {n}", {"pipeline_parallel": n}) for n in (2, 4, 8)
    ]
    return more[:1] + less[:1] + more[1:] + less[1:] + both + staged


def _fits(part: Shard, replica: Replica) -> bool:
    try:
        return fit(part.model, part.device, replica, reached=part.efficiencies).fits
    except SondeError:
        return False

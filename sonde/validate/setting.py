"""What a measured row ran on, in the catalogue's words: model, device, replica, engine, and the lengths drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sonde.catalogue.curves import family
from sonde.catalogue.device import PRECISION_BYTES, Device
from sonde.catalogue.devices import device, device_names
from sonde.catalogue.engines import UNKNOWN_VERSION, ServingEngine, effects, engine_names, series, serving_engine
from sonde.catalogue.model import Model
from sonde.catalogue.models import model
from sonde.cost.served import block_scaled
from sonde.cost.table import Engine
from sonde.deployment.tree import Batching, Replica
from sonde.errors import InputError, unknown
from sonde.validate.rows import Row
from sonde.workload.requests import Requests, requests

#: names of precisions in tables of measurements -> (weights, activations, KV cache)
PRECISIONS = {
    "": ("bf16", "bf16", "bf16"), "bf16": ("bf16", "bf16", "bf16"), "bfloat16": ("bf16", "bf16", "bf16"),
    "fp16": ("bf16", "bf16", "bf16"), "float16": ("bf16", "bf16", "bf16"),
    "fp8": ("fp8", "fp8", "fp8"), "fp8_block": ("fp8", "fp8", "fp8"), "fp8_static": ("fp8", "fp8", "fp8"),
    "fp4": ("nvfp4", "nvfp4", "fp8"), "nvfp4": ("nvfp4", "nvfp4", "fp8"),
    "mxfp4": ("mxfp4", "bf16", "bf16"), "w4a16_mxfp4": ("mxfp4", "bf16", "bf16"),
    "w4a8_mxfp4_mxfp8": ("mxfp4", "fp8", "fp8"),
    "int4": ("int4", "bf16", "bf16"), "int4_wo": ("int4", "bf16", "bf16"),
    "int8": ("int8", "int8", "bf16"), "int8_wo": ("int8", "bf16", "bf16"), "sq": ("int8", "int8", "bf16"),
    "int4_awq": ("int4", "bf16", "bf16"), "w4afp8": ("int4", "fp8", "fp8"), "fp8_ootb": ("fp8", "fp8", "fp8"),
    "auto": ("bf16", "bf16", "bf16"), "none": ("bf16", "bf16", "bf16"), "nan": ("bf16", "bf16", "bf16"),
}  # fmt: skip

#: benchmarks of these nominal lengths draw each length evenly from 0.8 to 1 of the nominal one; others keep to it
DRAWN_LENGTHS = (1024, 8192)
SHORTEST = 0.8

#: engines that keep the cache of 8-bit weights in 16 bits on Hopper, as they do unless told otherwise. On Blackwell
#: their published settings ask for 8 bits, and so TensorRT-LLM's checkpoints do everywhere.
WIDE_CACHE = ("vllm", "sglang")

#: devices that one engine's tensor ranks span at most, and those of a tray of a rack
NODE, TRAY = 8, 4

#: requests sent by every client, as benchmarks do; at least, and at most in all
ROUNDS, FEWEST, MOST = 10, 32, 6000


class Setting(NamedTuple):
    """A row in the catalogue's words. `note` says what had to be read otherwise than it stands.

    replicas   more than 1 where a dense model has data ranks, or a table gives the devices of a whole deployment
    """

    row: Row
    model: Model
    device: Device
    replica: Replica
    engine: ServingEngine
    replicas: int
    block_scaled: bool
    note: str


def setting(row: Row) -> Setting:
    """Return what the row ran on. Raises InputError on what the catalogue does not know or cannot be."""
    if row.engine not in engine_names():
        raise unknown("backend", row.engine, engine_names(), "engine")
    found, hardware = model(row.model), system(row.system)
    version, made = row.version or UNKNOWN_VERSION, family(hardware.name)
    weights, activations, cache = _precisions(row, found, made)
    measured = series(row.engine, version, found.name, hardware.name)
    engine = serving_engine(row.engine, version, made).waiting(
        effects(made, weights, found.name, hardware.name, measured)
    )
    tensor, data, expert, replicas, note = _parallelism(row, found, hardware)
    batching = Batching(policy=engine.batching, max_batch=int(engine.max_batch), token_budget=int(engine.token_budget))
    replica = Replica.model_validate(
        {
            "model": found.name, "device": hardware.name, "tensor_parallel": tensor,
            "data_parallel": data,
            "pipeline_parallel": row.pipeline, "expert_parallel": expert, "weights": weights,
            "activations": activations, "kv_cache": cache, "memory_fraction": engine.memory_fraction,
            "batching": batching,
        }
    )  # fmt: skip
    return Setting(row, found, hardware, replica, engine, replicas, _block_scaled(row, found), note)


def system(name: str) -> Device:
    """Return the device of a system's name as tables of measurements write it, such as "h100_sxm" or "RTX4090"."""
    plain = name.strip().lower().replace("_", "-")
    squeezed = plain.replace("-", "")
    for known in device_names():
        if known.replace("-", "") == squeezed:
            return device(known)
    return device(plain)


def lengths(row: Row, seed: int = 0) -> Requests:
    """Return the requests that the clients of `row` send, in order: `ROUNDS` each."""
    n = min(max(ROUNDS * row.concurrency, FEWEST), max(MOST, 2 * row.concurrency))
    if (row.isl in DRAWN_LENGTHS and row.osl in DRAWN_LENGTHS) or row.engine != "sglang":
        random = np.random.default_rng([seed, row.isl, row.osl])
        prompt = random.integers(max(int(SHORTEST * row.isl), 1), row.isl + 1, n)
        output = random.integers(max(int(SHORTEST * row.osl), 1), row.osl + 1, n)
    else:
        prompt, output = np.full(n, row.isl), np.full(n, row.osl)
    return requests(np.zeros(n), prompt, output)


def roomier(chosen: Setting, engine: Engine) -> Engine:
    """Return the engine of one replica of a whole deployment, whose experts are spread over the devices of all."""
    experts = sum(ff.layers * ff.experts * sum(m.parameters for m in ff.expert_matrices)
                  for ff in chosen.model.feedforwards)  # fmt: skip
    elsewhere = experts * PRECISION_BYTES[chosen.replica.weights] * (1.0 - 1.0 / chosen.replicas)
    held = engine.memory.capacity_bytes + int(elsewhere)
    return engine._replace(memory=engine.memory._replace(capacity_bytes=held))


def _precisions(row: Row, found: Model, made: str) -> tuple[str, str, str]:
    if found.name.startswith("gpt-oss"):  # published in MXFP4 alone, whatever a table says
        return PRECISIONS["mxfp4"]
    for column, name in (("precision", row.precision), ("moe_quant_mode", row.experts_precision)):
        if name not in PRECISIONS:
            raise unknown(column, name, PRECISIONS, "precision")
    weights, activations, cache = PRECISIONS[row.precision]
    return weights, activations, "bf16" if row.engine in WIDE_CACHE and made == "hopper" else cache


def _block_scaled(row: Row, found: Model) -> bool:
    """Return whether 8-bit weights are scaled block by block: said of the row, or published so."""
    return "block" in row.precision + row.experts_precision or block_scaled(found.name)


def _parallelism(row: Row, found: Model, hardware: Device) -> tuple[int, int, int, int, str]:
    """Return tensor, data and expert parallelism, replicas, and what was read otherwise than it stands.

    More tensor ranks than 8 of a mixture of experts are several replicas in a rack, or where they do not divide its
    heads: tables of rack-scale systems give the devices of a whole deployment. A dense model's ranks share nothing.
    """
    heads = min((mixer.heads for mixer in found.mixers if mixer.kind != "indexer"), default=1)
    if not any(ff.experts for ff in found.feedforwards):
        return row.tensor, 1, 1, row.data, ""
    rack = hardware.node_devices > NODE
    if row.data == 1 and row.tensor > NODE and (rack or heads % row.tensor):
        ranks = max(size for size in range(1, TRAY + 1) if row.tensor % size == 0 and heads % size == 0)
        count = row.tensor // ranks
        note = f"{row.tensor} ranks for {heads} heads: read as {count} replicas of {ranks}"
        return ranks, 1, ranks, count, note
    if row.tensor * row.data % row.expert:
        raise InputError("moe_ep_size", row.expert, f"must divide tensor × data ranks = {row.tensor * row.data}")
    return row.tensor, row.data, row.expert, 1, ""

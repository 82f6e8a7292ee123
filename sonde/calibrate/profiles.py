"""Reads operator profiles of one GPU and model: open_loop/GPU/MODEL/operators/tpN of casys-kaist/LLMServingSim.

`dense.csv` holds products, norms and activations by tokens, `per_sequence.csv` the head by sequences, `attention.csv`
one kernel by prompt and decoding tokens, of which those are read that do one or the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from sonde.calibrate.points import Floats, Points, points
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.cost.operators import NORM_TRAFFIC
from sonde.cost.shard import Kernel, Shard, kernels, shard
from sonde.deployment.tree import Replica

if TYPE_CHECKING:
    import polars

#: folder of a GPU -> device of the catalogue
GPUS = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000"}

#: longest context (tokens) whose cache a second-level cache may hold: below it, few sequences are left out
SMALL = 64


def profile_points(folder: Path) -> Iterator[Points]:
    """Yield the points of every profile below `folder` (GPU/MODEL/operators) of a GPU that the catalogue knows."""
    import polars

    for gpu, name in sorted(GPUS.items()):
        for place in sorted((folder / gpu).glob("*/operators")):
            meta = yaml.safe_load((place / "meta.yaml").read_text("utf-8"))
            for ranks in sorted(place.glob("tp*")):
                part = _part(name, str(meta["model"]), int(ranks.name[2:]))
                yield from _dense(polars.read_csv(ranks / "dense.csv"), part)
                yield from _head(polars.read_csv(ranks / "per_sequence.csv"), part)
                yield from _attention(polars.read_csv(ranks / "attention.csv"), part)


def _part(name: str, published: str, ranks: int) -> Shard:
    on, of = device(name), model(published.rsplit("/", 1)[-1].lower())
    return shard(of, on, Replica(model=of.name, device=name, tensor_parallel=ranks), efficiencies(on))


def _columns(frame: polars.DataFrame, *names: str) -> list[Floats]:
    return [frame[name].cast(float).to_numpy() for name in names]


def _dense(frame: polars.DataFrame, part: Shard) -> Iterator[Points]:
    import polars

    mixer, forward = part.model.mixers[0], part.model.feedforwards[0]
    attention, inner = list(kernels(part, mixer.matrices, mixer)), list(kernels(part, forward.matrices))
    products = dict(zip(("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), [*attention, *inner], strict=True))
    for layer, kernel in products.items():
        tokens, micro = _columns(frame.filter(polars.col("layer") == layer).sort("tokens"), "tokens", "time_us")
        yield _product(part, kernel, tokens, micro * 1e-6)
    widths = {"layernorm": NORM_TRAFFIC * part.model.hidden, "act_fn": inner[0].outputs + inner[1].inputs}
    for layer, width in widths.items():
        tokens, micro = _columns(frame.filter(polars.col("layer") == layer).sort("tokens"), "tokens", "time_us")
        bandwidth = part.device.memory[0].bandwidth
        yield points(
            ("elementwise", "", part.device.name, "vllm"), micro * 1e-6, moved=tokens * width * 2.0 / bandwidth,
            shape=width,
        )  # fmt: skip


def _head(frame: polars.DataFrame, part: Shard) -> Iterator[Points]:
    import polars

    columns = part.model.vocabulary / part.tensor
    kernel = Kernel("head", part.model.hidden, columns, columns * part.model.hidden, row=False)
    chosen = frame.filter(polars.col("layer") == "lm_head").sort("sequences")
    rows, micro = _columns(chosen, "sequences", "time_us")
    yield _product(part, kernel, rows, micro * 1e-6)


def _product(part: Shard, kernel: Kernel, rows: Floats, seconds: Floats) -> Points:
    moved = kernel.weights * 2.0 + rows * (kernel.inputs + kernel.outputs) * 2.0
    return points(
        ("gemm", "bf16", part.device.name, "vllm"), seconds, rows=rows, columns=kernel.outputs,
        work=2.0 * rows * kernel.weights / part.device.flops["bf16"], moved=moved / part.device.memory[0].bandwidth,
        shape=kernel.weights,
    )  # fmt: skip


def _attention(frame: polars.DataFrame, part: Shard) -> Iterator[Points]:
    import polars

    mixer, on = part.model.mixers[0], part.device
    share, bandwidth = part.cache_share(mixer) * mixer.cache_elements * 2.0, on.memory[0].bandwidth
    pair = mixer.prefill_flops * part.head_share(mixer)
    prompts = frame.filter((polars.col("n_decode") == 0) & (polars.col("prefill_chunk") >= SMALL))
    chunk, before, micro = _columns(
        prompts.sort("kv_prefill", "prefill_chunk"), "prefill_chunk", "kv_prefill", "time_us"
    )
    yield points(
        ("attention-prefill", "", on.name, "vllm"), micro * 1e-6, shape=before,
        work=pair * chunk * (before + chunk / 2.0) / on.flops["bf16"], moved=chunk * (pair + share) / bandwidth,
    )  # fmt: skip
    decoding = frame.filter((polars.col("prefill_chunk") == 0) & (polars.col("kv_decode") >= SMALL))
    batch, read, micro = _columns(decoding.sort("n_decode", "kv_decode"), "n_decode", "kv_decode", "time_us")
    tile_work = mixer.decode_flops * part.head_share(mixer) * batch / on.flops["bf16"]
    tile_moved = share * batch / bandwidth
    yield points(
        ("attention-decode", "bf16", on.name, "vllm"), micro * 1e-6, work=tile_work * read, moved=tile_moved * read,
        tile_work=tile_work, tile_moved=tile_moved, shape=batch,
    )  # fmt: skip

"""Reads folders of operator measurements: SYSTEM/OP/ENGINE/VERSION/*.parquet of ai-dynamo/aiconfigurator.

Left out are points that say nothing of a kernel in a running model:

- products of fewer than 128 columns or inputs, or of more than 16,384 rows;
- prompts of fewer than 64 tokens in attention, contexts of fewer than 64 in decoding;
- bytes that lie in the second-level cache when they are read again and again, which a running model's do not: of
  decoding attention, and of everything on devices where products show it, between 2 MiB, where the kernel's start
  hides it, and somewhat more than the cache; and whatever was read faster than memory can be;
- experts of fewer than 128 inner columns;
- experts over several ranks, for what the busiest rank got is not stated; routing in groups, which leaves half
  of the experts alone; skewed routing of few tokens, for which experts it meets is not stated;
- groups whose small products wait for the host, whatever their size: more than 40 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sonde.calibrate.points import Floats, Points, points
from sonde.catalogue.curves import CLASSES, family
from sonde.catalogue.device import PRECISION_BYTES, Device
from sonde.catalogue.devices import device
from sonde.cost.shard import arithmetic
from sonde.errors import InputError

if TYPE_CHECKING:
    import polars

#: folder of a system -> device of the catalogue
SYSTEMS = {
    "a100_sxm": "a100-sxm-80gb",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}

#: name in the files -> (format of the curve, precision of weights, of activations)
FORMATS = {
    "bfloat16": ("bf16", "bf16", "bf16"),
    "fp8": ("fp8", "fp8", "fp8"),
    "fp8_block": ("fp8-block", "fp8", "fp8"),
    "nvfp4": ("nvfp4", "nvfp4", "nvfp4"),
    "int4_wo": ("int4", "int4", "bf16"),
    "w4a16_mxfp4": ("mxfp4", "mxfp4", "bf16"),
    "w4a8_mxfp4_mxfp8": ("mxfp4-fp8", "mxfp4", "fp8"),
}

HOST_BOUND_S = 40e-6

#: family -> bytes below which repeated reads may come from the second-level cache
CACHED = {"ampere": 2.0**26, "hopper": 2.0**26, "blackwell": 2.0**27, "ada": 2.0**27, "blackwell-rtx": 2.0**27.5}

#: classes whose bytes are read once, and were measured by reading them again and again
CACHE_READERS = {name for name in CLASSES if name.endswith("-decode")} | {"bmm"}

COLLECTIVES = ("collective", "all-gather", "all-to-all")

#: families whose matrix products were measured out of that cache too
PRODUCTS = ("gemm", "experts")
WARM_FAMILIES = ("ada", "blackwell-rtx")


def operator_points(folder: Path, operators: tuple[str, ...] = ()) -> Iterator[Points]:
    """Yield the points of every file below `folder` that holds one of these classes of operators (none: any).

    Raises InputError where no system that the catalogue knows is there.
    """
    systems = [name for name in sorted(SYSTEMS) if (folder / name).is_dir()]
    if not systems:
        raise InputError("folder", str(folder), f"needs a folder for one of {', '.join(sorted(SYSTEMS))}")
    import polars

    for system in systems:
        on = device(SYSTEMS[system])
        for path in sorted((folder / system).glob("*/*/*/*.parquet")):
            read, classes = READERS.get(path.stem.removesuffix("_perf"), (None, ()))
            if read is None or (operators and not set(operators) & set(classes)):
                continue
            engine = path.parts[-3]
            for found in read(polars.read_parquet(path), on, "" if engine == "nccl" else engine):
                kept = from_memory(found, on)
                if len(kept):
                    yield kept


def from_memory(found: Points, on: Device) -> Points:
    """Return the points that were read from memory, or wait for nothing but the kernel's start."""
    if found.operator in COLLECTIVES or found.operator == "elementwise":  # what is read was written just before
        return found
    return found.where(_cold(found, on))


def _cold(found: Points, on: Device) -> NDArray[np.bool_]:
    kept = found.moved <= found.seconds
    of = family(on.name)
    if found.operator in CACHE_READERS or (of in WARM_FAMILIES and found.operator in PRODUCTS):
        size = found.moved * on.memory[0].bandwidth
        kept &= (size < 2.0**21) | (size > CACHED.get(of, 2.0**26))
    return kept


def _numbers(frame: polars.DataFrame, *names: str) -> list[Floats]:
    return [frame[name].cast(float).to_numpy() for name in names]


def _shape(*columns: Floats) -> Floats:
    """Return a number for every distinct combination of the columns, the same on every run."""
    found = np.zeros(len(columns[0]))
    for column in columns:
        found = found * 8191.0 + np.asarray(column, dtype=np.float64)
    return np.mod(found, 1e15)


def _peak(on: Device, weights: str, activations: str) -> float:
    return on.flops[arithmetic(on, weights, activations)]


def _gemm(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    import polars

    frame = frame.filter((polars.col("n") >= 128) & (polars.col("k") >= 128) & (polars.col("m") <= 16384))
    frame = frame.group_by("gemm_dtype", "m", "n", "k").agg(polars.col("latency").median()).sort("n", "k", "m")
    for name, (form, weights, activations) in FORMATS.items():
        rows, columns, inputs, spent = _numbers(
            frame.filter(polars.col("gemm_dtype") == name), "m", "n", "k", "latency"
        )
        bandwidth, narrow = on.memory[0].bandwidth, PRECISION_BYTES[activations]
        moved = columns * inputs * PRECISION_BYTES[weights] + rows * (inputs * narrow + columns * 2.0)
        small = rows * columns * inputs < 2e9
        if small.any() and np.median(spent[small]) > HOST_BOUND_S * 1e3:
            continue
        yield points(
            ("gemm", form, on.name, engine), spent / 1e3, rows=rows, columns=columns,
            work=2.0 * rows * columns * inputs / _peak(on, weights, activations), moved=moved / bandwidth,
            cast=rows * inputs * (2.0 + narrow) / bandwidth if narrow < 2.0 else 0.0, shape=_shape(columns, inputs),
        )  # fmt: skip


def _bmm(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    """Yield the batched products by which decoding absorbs the expansion of latents: 128 by 512 for every head."""
    import polars

    for name in ("bfloat16", "fp8"):
        form, weights, activations = FORMATS[name]
        rows, heads, spent = _numbers(
            frame.filter(polars.col("bmm_dtype") == name), "num_tokens", "num_heads", "latency"
        )
        narrow, bandwidth = PRECISION_BYTES[activations], on.memory[0].bandwidth
        moved = heads * 128 * 512 * PRECISION_BYTES[weights] + rows * heads * (128 + 512) * (narrow + 2.0) / 2.0
        yield points(
            ("bmm", form, on.name, engine), spent / 1e3, rows=rows, columns=heads * 320.0,
            work=2.0 * rows * heads * 128 * 512 / _peak(on, weights, activations), moved=moved / bandwidth,
            cast=rows * heads * 320.0 * (2.0 + narrow) / bandwidth if narrow < 2.0 else 0.0, shape=_shape(heads),
        )  # fmt: skip


def _experts(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    import polars

    grouped = (polars.col("num_experts") == 256) & (polars.col("hidden_size") == 7168) & (polars.col("topk") == 8)
    met = polars.col("num_tokens") * polars.col("topk") >= 32 * polars.col("num_experts")
    frame = frame.filter(
        (polars.col("moe_ep_size") == 1) & ~grouped & ((polars.col("distribution") == "balanced") | met)
    ).filter(polars.col("inter_size") >= 128 * polars.col("moe_tp_size"))
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size")
    for name, (form, weights, activations) in FORMATS.items():
        chosen = frame.filter(polars.col("moe_dtype") == name)
        chosen = chosen.group_by(*names, "distribution").agg(polars.col("latency").median())
        chosen = chosen.sort(*names[1:], "distribution", "num_tokens")
        tokens, hidden, inner, top, count, ranks, spent = _numbers(chosen, *names, "latency")
        load, inner = tokens * top, inner / ranks
        touched = np.minimum(load, count)  # balanced tokens meet as many experts as they can
        parameters = 3.0 * hidden * inner
        bandwidth = on.memory[0].bandwidth
        yield points(
            ("experts", form, on.name, engine), spent / 1e3, rows=load / touched, columns=inner,
            work=2.0 * load * parameters / _peak(on, weights, activations),
            moved=touched * parameters * PRECISION_BYTES[weights] / bandwidth,
            cast=load * 6.0 * (hidden + inner) / bandwidth, shape=_shape(hidden, inner, count, top),
        )  # fmt: skip


def _heads(frame: polars.DataFrame) -> polars.DataFrame:
    import polars

    own = polars.when(polars.col("num_key_value_heads") == 0).then(polars.col("num_heads"))
    return frame.filter(polars.col("head_dim") <= 256).with_columns(
        own.otherwise(polars.col("num_key_value_heads")).alias("kv")
    )


def _prompts(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    import polars

    frame = _heads(frame).filter((polars.col("isl") >= 64) & (polars.col("attn_dtype") == "bfloat16"))
    frame = frame.filter(polars.col("kv_cache_dtype") == "bfloat16")
    frame = frame.sort("window_size", "num_heads", "kv", "head_dim", "batch_size", "isl")
    for windowed in (False, True):
        chosen = frame.filter((polars.col("window_size") > 0) == windowed)
        batch, length, heads, kv, dim, window, spent = _numbers(
            chosen, "batch_size", "isl", "num_heads", "kv", "head_dim", "window_size", "latency"
        )
        near = np.minimum(length, window) if windowed else length
        pairs = near**2 / 2.0 + (length - near) * window
        yield points(
            ("window-prefill" if windowed else "attention-prefill", "", on.name, engine), spent / 1e3,
            work=4.0 * heads * dim * batch * pairs / _peak(on, "bf16", "bf16"),
            moved=4.0 * (heads + kv) * dim * batch * length / on.memory[0].bandwidth,
            tile_work=4.0 * heads * dim * batch * length / _peak(on, "bf16", "bf16"),
            shape=_shape(heads, kv, dim, window),
        )  # fmt: skip


def _decoding(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    import polars

    frame = _heads(frame).filter(polars.col("step") >= 63)
    frame = frame.sort("window_size", "num_heads", "kv", "head_dim", "batch_size", "step")
    for windowed in (False, True):
        for stored, form, wide in (("bfloat16", "bf16", 2.0), ("fp8", "fp8", 1.0)):
            chosen = frame.filter(
                ((polars.col("window_size") > 0) == windowed) & (polars.col("kv_cache_dtype") == stored)
            )
            batch, step, heads, kv, dim, window, spent = _numbers(
                chosen, "batch_size", "step", "num_heads", "kv", "head_dim", "window_size", "latency"
            )
            read = np.minimum(step + 1.0, window) if windowed else step + 1.0
            tile_work = 4.0 * heads * dim * batch / _peak(on, "bf16", "bf16")
            tile_moved = 2.0 * kv * dim * wide * batch / on.memory[0].bandwidth
            found = points(
                ("window-decode" if windowed else "attention-decode", form, on.name, engine), spent / 1e3,
                work=tile_work * read, moved=tile_moved * read, tile_work=tile_work, tile_moved=tile_moved,
                shape=_shape(heads, kv, dim, window),
            )  # fmt: skip
            yield found


def _latent_prompts(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    import polars

    frame = frame.filter((polars.col("isl") >= 64) & (polars.col("kv_cache_dtype") == "bfloat16"))
    frame = frame.group_by("num_heads", "batch_size", "isl").agg(polars.col("latency").median())
    frame = frame.sort("num_heads", "batch_size", "isl")
    heads, batch, length, spent = _numbers(frame, "num_heads", "batch_size", "isl", "latency")
    flops = 2.0 * heads * (192 + 128)
    yield points(
        ("mla-prefill", "", on.name, engine), spent / 1e3, shape=_shape(heads),
        work=flops * batch * length**2 / 2.0 / _peak(on, "bf16", "bf16"),
        moved=2.0 * flops * batch * length / on.memory[0].bandwidth,
    )  # fmt: skip


def _latent_decoding(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    import polars

    for stored, form, wide in (("bfloat16", "bf16", 2.0), ("fp8", "fp8", 1.0)):
        chosen = frame.filter((polars.col("kv_cache_dtype") == stored) & (polars.col("step") >= 63))
        chosen = chosen.group_by("num_heads", "batch_size", "step").agg(polars.col("latency").median())
        chosen = chosen.sort("num_heads", "batch_size", "step")
        heads, batch, step, spent = _numbers(chosen, "num_heads", "batch_size", "step", "latency")
        tile_work = 2.0 * heads * (576 + 512) * batch / _peak(on, "bf16", "bf16")
        tile_moved = 576.0 * wide * batch / on.memory[0].bandwidth
        found = points(
            ("mla-decode", form, on.name, engine), spent / 1e3, shape=_shape(heads), tile_work=tile_work,
            tile_moved=tile_moved, work=tile_work * (step + 1.0), moved=tile_moved * (step + 1.0),
        )  # fmt: skip
        yield found


def _sparse(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    """Yield attention over the 2,048 latents picked for every query: in prompts, absorbed as in decoding."""
    import polars

    frame = frame.filter((polars.col("isl") * polars.col("batch_size") >= 64) & (polars.col("isl") > 1))
    frame = frame.sort("batch_size", "isl", "step")
    heads, batch, length, step, spent = _numbers(frame, "num_heads", "batch_size", "isl", "step", "latency")
    flops = 2.0 * heads * (576 + 512)
    yield points(
        ("sparse-prefill", "", on.name, engine), spent / 1e3, shape=_shape(batch, length),
        work=flops * batch * _picked(length, step, 2048.0) / _peak(on, "bf16", "bf16"),
        moved=flops * batch * length / on.memory[0].bandwidth,
    )  # fmt: skip


def _picked(length: Floats, step: Floats, window: float) -> Floats:
    """Return the pairs of `length` queries after `step` tokens, of which each meets at most `window` keys."""
    far: Floats = window * (np.maximum(step + length - window, 0.0) - np.maximum(step - window, 0.0))
    near: Floats = (np.minimum(step + length, window) ** 2 - np.minimum(step, window) ** 2) / 2.0
    return far + near


def _indexer(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    """Yield the scores of queries (heads of 128 numbers, in 8 bits) against all keys before them."""
    import polars

    frame = frame.filter((polars.col("isl") > 1) & (polars.col("compress_ratio") == 1)).sort(
        "batch_size", "isl", "step"
    )
    heads, batch, length, step, spent = _numbers(frame, "num_heads", "batch_size", "isl", "step", "latency")
    pairs = batch * length * (step + length / 2.0)
    heads = heads / 2.0  # of the indexer: half of those of attention in the model measured
    yield points(
        ("indexer-prefill", "", on.name, engine), spent / 1e3, shape=_shape(batch, length),
        work=2.0 * heads * 128.0 * pairs / _peak(on, "bf16", "bf16"),
        moved=(2.0 * heads * 128.0 + 128.0) * batch * length / on.memory[0].bandwidth,
    )  # fmt: skip


def _recurrent(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    """Yield gated delta nets: the convolution and the rule of one shape, one after the other."""
    import polars

    shape = ["num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim", "batch_size", "seq_len"]
    both = frame.group_by("phase", *shape, "kernel_source").agg(polars.col("latency").median())
    both = both.group_by("phase", *shape).agg(polars.col("latency").sum(), polars.len()).sort("phase", *shape)
    both = both.filter(polars.col("len") == 2)
    for phase in ("context", "generation"):
        chosen = both.filter(polars.col("phase") == phase)
        if phase == "context":
            chosen = chosen.filter(polars.col("seq_len") >= 64)
        keys, values, dk, dv, batch, length, spent = _numbers(chosen, *shape, "latency")
        columns = 2.0 * keys * dk + 2.0 * values * dv
        if phase == "context":
            yield points(
                ("linear-prefill", "", on.name, engine), spent / 1e3, shape=_shape(keys, values),
                work=7.0 * values * dk * dv * batch * length / _peak(on, "bf16", "bf16"),
                moved=4.0 * columns * batch * length / on.memory[0].bandwidth,
            )  # fmt: skip
        else:
            state = 4.0 * values * dk * dv + 2.0 * 3.0 * (2.0 * keys * dk + values * dv)
            yield points(
                ("linear-decode", "", on.name, engine), spent / 1e3, shape=_shape(keys, values),
                moved=2.0 * state * batch / on.memory[0].bandwidth,
            )  # fmt: skip


def _messages(frame: polars.DataFrame, on: Device, engine: str) -> Iterator[Points]:
    """Yield collectives. `message_size` counts numbers, and not bytes: see docs/calibration.md."""
    import polars

    kinds = {"all_reduce": "collective", "all_gather": "all-gather", "alltoall": "all-to-all"}
    captured = (
        [name for name in frame.get_column("backend").unique() if name.endswith("graph")]
        if ("backend" in frame.columns)
        else []
    )
    if captured:
        frame = frame.filter(polars.col("backend").is_in(captured))
    stored = "nccl_dtype" if "nccl_dtype" in frame.columns else "allreduce_dtype"
    wide = polars.when(polars.col(stored) == "int8").then(1.0).otherwise(2.0)
    frame = frame.with_columns(wide.alias("wide")).sort("op_name", "num_gpus", "wide", "message_size")
    for name, operator in kinds.items():
        chosen = frame.filter((polars.col("op_name") == name) & (polars.col("num_gpus") <= on.node_devices))
        ranks, size, each, spent = _numbers(chosen, "num_gpus", "message_size", "wide", "latency")
        rounds = 2.0 if name == "all_reduce" else 1.0
        if name == "all_reduce" and not engine:
            continue  # engines sum by kernels of their own where messages are small, and by NCCL where they are large
        yield points(
            (operator, "", on.name, engine), spent / 1e3, ranks=ranks, latency=on.node.latency_s, shape=ranks,
            moved=rounds * (ranks - 1.0) / ranks * size * each / on.node.bandwidth,
        )  # fmt: skip


Reader = Callable[["polars.DataFrame", Device, str], Iterator[Points]]

#: name of a file -> its reader, and the classes that it may yield
READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "gemm": (_gemm, ("gemm",)),
    "mla_bmm": (_bmm, ("bmm",)),
    "moe": (_experts, ("experts",)),
    "context_attention": (_prompts, ("attention-prefill", "window-prefill")),
    "generation_attention": (_decoding, ("attention-decode", "window-decode")),
    "context_mla": (_latent_prompts, ("mla-prefill",)),
    "generation_mla": (_latent_decoding, ("mla-decode",)),
    "glm5_dsa_attn_module": (_sparse, ("sparse-prefill",)),
    "glm5_mqa_logits_module": (_indexer, ("indexer-prefill",)),
    "gdn": (_recurrent, ("linear-prefill", "linear-decode")),
    "custom_allreduce": (_messages, ("collective",)),
    "nccl": (_messages, ("all-gather", "all-to-all")),
}

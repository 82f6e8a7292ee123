"""The operators of one step on one device: products, attention, feed-forward, head, collectives, engine.

Four lists, one per axis of the step table: what a step costs by its tokens, by its decoding sequences, by the
(query, key) pairs of its prompts, and by the cached tokens that its decoding sequences read. Every list holds
all layers of the model: in a pipeline, one microbatch passes all stages.
"""

from __future__ import annotations

import numpy as np

from sonde.catalogue.model import FeedForward, Mixer
from sonde.cost.collectives import all_gather, all_reduce, point_to_point
from sonde.cost.experts import expert_operators
from sonde.cost.roofline import Floats, Operator, bound
from sonde.cost.shard import Kernel, Shard, kernels

#: numbers moved per hidden unit by a norm with its residual: both read and both written
NORM_TRAFFIC = 4.0


def token_operators(shard: Shard, tokens: Floats, *, lone: bool = False) -> list[Operator]:
    """Return the operators whose cost follows the tokens of one microbatch (prompt and decoded alike).

    An attention rank takes ⌈tokens/data_parallel⌉ of them, or all of them where they are those of a `lone` prompt;
    one row of the head is included.
    """
    model, replica = shard.model, shard.replica
    rows = tokens if lone else np.ceil(tokens / replica.data_parallel)
    hidden = rows * model.hidden * shard.activation_bytes
    found = [Operator("embedding", "elementwise", 1, bytes=2 * hidden)]
    for mixer in model.mixers:
        found += _mixer(shard, mixer, rows)
    for forward in model.feedforwards:
        found += _feedforward(shard, forward, rows, tokens)
    if shard.tensor > 1:
        found.append(all_reduce(shard, "embedding all-reduce", 1, shard.tensor, hidden))
    if replica.pipeline_parallel > 1:
        found.append(point_to_point(shard, "pipeline hand-over", replica.pipeline_parallel, hidden))
    found += head_operators(shard, np.ones(1))
    if shard.efficiencies.engine.token_s:
        found.append(Operator("engine, tokens", "engine", 1, host_s=shard.efficiencies.engine.token_s * tokens))
    return found


def gather_operators(shard: Shard, tokens: Floats) -> list[Operator]:
    """Return what the attention ranks that share a prompt exchange: keys and values of all its `tokens`."""
    return [
        all_gather(
            shard, f"{title(mixer)} gather", mixer.layers, shard.replica.data_parallel,
            tokens * (mixer.cache_elements * shard.cache_share(mixer) * shard.kv_bytes),
        )
        for mixer in shard.model.mixers
        if mixer.kind != "linear"
    ]  # fmt: skip


def batch_operators(shard: Shard, sequences: Floats, batch: Floats) -> list[Operator]:
    """Return the operators whose cost follows the decoding sequences: `sequences` of one rank, `batch` of all."""
    found = []
    for mixer in shard.model.mixers:
        if mixer.kind == "linear":
            moved = 2.0 * mixer.state_bytes * shard.head_share(mixer) * sequences  # read and written
            found.append(
                Operator(f"{title(mixer)} state", "attention-decode", mixer.layers, bytes=moved, curve="linear-decode")
            )
        else:
            found.append(_start(shard, mixer, sequences))
    if shard.efficiencies.engine.sequence_s:
        found.append(Operator("engine, sequences", "engine", 1, host_s=shard.efficiencies.engine.sequence_s * batch))
    return found


def head_operators(shard: Shard, rows: Floats) -> list[Operator]:
    """Return the head for `rows` tokens that are sampled from: the product with the token table, and its gathering."""
    model = shard.model
    columns = model.vocabulary / shard.tensor
    weights = columns * model.hidden
    moved = weights * shard.table_bytes + rows * (model.hidden + columns) * 2.0
    flops = 2.0 * rows * weights
    found = [Operator("head", "gemm", 1, _table_precision(shard), flops, moved, rows, columns=columns)]
    if shard.tensor > 1:
        found.append(all_gather(shard, "head all-gather", 1, shard.tensor, rows * model.vocabulary * 2.0))
    return found


def engine_operators(shard: Shard) -> list[Operator]:
    """Return what every step costs whatever is in it: the engine's time per step (on each stage) and per layer."""
    engine = shard.efficiencies.engine
    seconds = engine.step_s * shard.replica.pipeline_parallel + engine.layer_s * shard.model.layers
    return [Operator("engine, step", "engine", 1, host_s=seconds)]


def pair_operators(shard: Shard, *, windowed: bool) -> list[Operator]:
    """Return attention in prompts, per (query, key) pair; `windowed`: of the mixers with a window, or the others.

    The pairs of a mixer whose window is not the table's are scaled by the ratio of the two.
    """
    return [
        Operator(
            f"{title(mixer)} prefill", "attention-prefill", mixer.layers, shard.attention,
            flops=mixer.prefill_flops * shard.head_share(mixer) * _scale(shard, mixer), launches=0,
            curve=f"{attention_class(mixer)}-prefill",
        )
        for mixer in shard.model.mixers
        if mixer.kind != "linear" and bool(mixer.window) == windowed
    ]  # fmt: skip


def read_operators(shard: Shard, *, windowed: bool) -> list[Operator]:
    """Return attention in decoding, per cached token read; `windowed` as in `pair_operators`."""
    return [
        _read(shard, mixer, _scale(shard, mixer))
        for mixer in shard.model.mixers
        if mixer.kind != "linear" and bool(mixer.window) == windowed
    ]


def attention_class(mixer: Mixer) -> str:
    """Return the class of curves that a mixer's kernels follow, less its phase: "attention", "window", "mla", ..."""
    if mixer.window and mixer.kind in ("attention", "mla"):
        return "window" if mixer.kind == "attention" and mixer.cache_saturates else "sparse"
    return mixer.kind


def table_window(shard: Shard) -> int:
    """Return the one window of the step table: that of the mixers that cost most when it is full (0: none has one)."""
    full: dict[int, float] = {}
    for mixer in shard.model.mixers:
        if mixer.window:
            cost = mixer.layers * mixer.window * mixer.decode_flops
            full[mixer.window] = full.get(mixer.window, 0.0) + cost
    return max(full, key=lambda window: (full[window], window), default=0)


def title(mixer: Mixer) -> str:
    """Return the name of a mixer in tables: its kind, and its window."""
    return f"{mixer.kind} {mixer.window}" if mixer.window else mixer.kind


def product(shard: Shard, kernel: Kernel, layers: float, rows: Floats, name: str) -> Operator:
    """Return a matrix product of `rows` tokens with the weights that one device holds."""
    narrow = shard.activation_bytes
    moved = kernel.weights * shard.weight_bytes + rows * (kernel.inputs * narrow + kernel.outputs * max(narrow, 2.0))
    return Operator(
        name, "gemm", layers, shard.product, rows * (2.0 * kernel.weights), moved, rows,
        curve=f"{'bmm' if absorbed(kernel) else 'gemm'}/{shard.form}", columns=kernel.outputs,
        cast=rows * (kernel.inputs * (2.0 + narrow)) if narrow < 2.0 else 0.0,
    )  # fmt: skip


def absorbed(kernel: Kernel) -> bool:
    """Return whether a product expands latents head by head, which decoding does within attention, in batches."""
    return kernel.name == "kv_up"


def _mixer(shard: Shard, mixer: Mixer, rows: Floats) -> list[Operator]:
    name, layers = title(mixer), mixer.layers
    found: list[Operator] = []
    summed = False
    for kernel in kernels(shard, mixer.matrices, mixer):
        found.append(product(shard, kernel, layers, rows, f"{name} {kernel.name}"))
        summed |= kernel.row
    hidden = rows * shard.model.hidden * shard.activation_bytes
    if summed and shard.tensor > 1:
        found.append(all_reduce(shard, f"{name} all-reduce", layers, shard.tensor, hidden))
    if mixer.kind != "indexer":
        found.append(Operator(f"{name} norm", "elementwise", layers, bytes=NORM_TRAFFIC * hidden))
    found.append(_scan(shard, mixer, rows))
    if mixer.kind != "linear":
        written = mixer.cache_elements * shard.cache_share(mixer) * shard.kv_bytes * rows
        found.append(Operator(f"{name} cache write", "elementwise", layers, bytes=2 * written))
    return found


def _scan(shard: Shard, mixer: Mixer, rows: Floats) -> Operator:
    """Return what a mixer's kernel does once for every token: reading queries, keys and values and writing outputs.

    Of a recurrence it is all. 2 bytes of each of a head's queries and outputs are as many as its FLOP per pair are
    (4·dim), and so are the keys and values that latents are expanded to in a prompt.
    """
    kind = attention_class(mixer)
    flops: Floats | float = 0.0
    if kind == "linear":
        flops = mixer.token_flops * shard.head_share(mixer) * rows
        moved = 4.0 * sum(m.outputs for m in mixer.matrices if m.split == "column") * shard.head_share(mixer)
    elif kind == "mla":
        moved = 2.0 * mixer.prefill_flops * shard.head_share(mixer)
    else:
        moved = mixer.prefill_flops * shard.head_share(mixer)
        moved += mixer.cache_elements * shard.cache_share(mixer) * shard.kv_bytes
        tile = shard.efficiencies.of(f"{kind}-prefill").tile_tokens
        flops = tile * mixer.prefill_flops * shard.head_share(mixer) * rows
    name = "recurrence" if kind == "linear" else "tokens"
    return Operator(
        f"{title(mixer)} {name}", "attention-prefill", mixer.layers, shard.attention, flops, moved * rows,
        curve=f"{kind}-prefill",
    )  # fmt: skip


def _read(shard: Shard, mixer: Mixer, scale: float) -> Operator:
    """Return the decoding attention of a mixer over one cached token, `scale` times: read once for all queries."""
    return Operator(
        f"{title(mixer)} decode", "attention-decode", mixer.layers, shard.attention,
        flops=mixer.decode_flops * shard.head_share(mixer) * scale * shard.queries,
        bytes=mixer.cache_elements * shard.cache_share(mixer) * shard.kv_bytes * scale, launches=0,
        curve=_decode(shard, mixer),
    )  # fmt: skip


def _start(shard: Shard, mixer: Mixer, sequences: Floats) -> Operator:
    """Return what decoding attention costs beside the cached tokens that it must read.

    Its kernel, beyond the one for prompts that every step pays, and the part of a tile that every sequence reads
    and does not need, beyond what `_scan` charges to each of its tokens.
    """
    curve = shard.efficiencies.of(_decode(shard, mixer))
    prompts = shard.efficiencies.of(f"{attention_class(mixer)}-prefill")
    tile = _each(shard, _read(shard, mixer, curve.tile_tokens))
    token = _each(shard, _scan(shard, mixer, np.ones(1))._replace(launches=0))
    each = max(tile - token, 0.0)
    kernel = max(curve.overhead_s - prompts.overhead_s, 0.0)
    return Operator(
        f"{title(mixer)} decode start", "attention-decode", mixer.layers, host_s=kernel + each * sequences, launches=0
    )


def _each(shard: Shard, operator: Operator) -> float:
    """Return the seconds of one layer of an operator, as measured kernels take, not as the engine's do."""
    spent = bound(shard, operator).seconds / (operator.layers * shard.efficiencies.factor(operator.kind))
    return float(np.ravel(spent)[0])


def _decode(shard: Shard, mixer: Mixer) -> str:
    return f"{attention_class(mixer)}-decode/{'fp8' if shard.kv_bytes < 2.0 else 'bf16'}"


def _feedforward(shard: Shard, forward: FeedForward, rows: Floats, tokens: Floats) -> list[Operator]:
    name = "shared" if forward.experts else "mlp"
    found: list[Operator] = []
    summed, inner = False, 0.0
    for kernel in kernels(shard, forward.matrices):
        found.append(product(shard, kernel, forward.layers, rows, f"{name} {kernel.name}"))
        summed |= kernel.row
        inner += kernel.inputs if kernel.row else kernel.outputs
    hidden = rows * shard.model.hidden * shard.activation_bytes
    moved = NORM_TRAFFIC * hidden + rows * inner * shard.activation_bytes
    found.append(Operator(f"{name} norm, activation", "elementwise", forward.layers, bytes=moved, launches=2))
    alone = forward.experts and shard.replica.data_parallel == 1  # one sum serves shared and routed experts
    if summed and shard.tensor > 1 and not alone:
        found.append(all_reduce(shard, f"{name} all-reduce", forward.layers, shard.tensor, hidden))
    if forward.experts:
        found += expert_operators(shard, forward, rows, tokens)
    return found


def _scale(shard: Shard, mixer: Mixer) -> float:
    return mixer.window / table_window(shard) if mixer.window else 1.0


def _table_precision(shard: Shard) -> str:
    """Return the arithmetic of the head: tables stay in 16 bits when layers are quantised."""
    return "fp32" if shard.table_bytes == 4.0 else shard.attention

"""Facts of a catalogue row, ready for JSON: what `sonde show` prints."""

from __future__ import annotations

from sonde.catalogue.device import PRECISION_BYTES
from sonde.catalogue.model import Mixer, Model

#: precisions that caches are kept in
CACHE_PRECISIONS = ("bf16", "fp8", "int8", "nvfp4")


def describe_model(model: Model, context: int | None = None) -> dict[str, object]:
    """Return a model's size, memory and FLOP, at `context` tokens (by default 4,096 or its context, the less).

    Bytes and FLOP are of the whole model, not of one device. `kv_bytes_per_token` has the part that grows
    with every token ("growing") and the part of layers with a window, which stops at it ("window").
    """
    at = min(model.context, 4096) if context is None else context
    return {
        "name": model.name,
        "family": model.family,
        "parameters": {"total": model.total_parameters, "active": model.active_parameters},
        "context": model.context,
        "layers": model.layers,
        "hidden": model.hidden,
        "vocabulary": model.vocabulary,
        "native_weights": model.native_weights,
        "weight_bytes": {name: round(model.weight_bytes(name)) for name in PRECISION_BYTES},
        "kv_bytes_per_token": {
            name: {"growing": model.cache_bytes_per_token(name), "window": model.window_bytes_per_token(name)}
            for name in CACHE_PRECISIONS
        },
        "state_bytes_per_sequence": round(model.state_bytes),
        "flops_per_token": {
            "context": at,
            "prefill": round(prefill_flops(model, at) / at),
            "decode": round(decode_flops(model, at)),
        },
        "mixers": [_mixer(mixer) for mixer in model.mixers],
        "feedforwards": [
            {
                "kind": "mixture" if ff.experts else "dense",
                "layers": ff.layers,
                "experts": ff.experts,
                "experts_per_token": ff.top_k,
            }
            for ff in model.feedforwards
        ],
        "source": model.source,
        "date": model.date,
    }


def _mixer(mixer: Mixer) -> dict[str, object]:
    return {
        "kind": mixer.kind,
        "layers": mixer.layers,
        "heads": mixer.heads,
        "kv_heads": mixer.kv_heads,
        "window": mixer.window,
        "cache_elements": mixer.cache_elements,
        "state_elements": mixer.state_elements,
    }


def prefill_flops(model: Model, tokens: int) -> float:
    """Return FLOP to read a prompt of `tokens` tokens from an empty cache; the head runs for the last alone."""
    pairs = [mixer.layers * mixer.prefill_flops * causal_pairs(tokens, mixer.window) for mixer in model.mixers]
    return tokens * _token_flops(model) + 2.0 * model.embedding_parameters + sum(pairs)


def decode_flops(model: Model, context: int) -> float:
    """Return FLOP to decode one token that sees `context` tokens, itself among them."""
    pairs = [
        mixer.layers * mixer.decode_flops * (min(context, mixer.window) if mixer.window else context)
        for mixer in model.mixers
    ]
    return _token_flops(model) + 2.0 * model.embedding_parameters + sum(pairs)


def causal_pairs(tokens: int, window: int = 0) -> int:
    """Return the (query, key) pairs of a prompt where a query sees itself and what precedes it, in the window."""
    full = min(tokens, window) if window else tokens
    return full * (full + 1) // 2 + (tokens - full) * window


def _token_flops(model: Model) -> float:
    """Return FLOP per token that do not depend on the context: the layers' matrices and recurrences."""
    mixers = sum(
        mixer.layers * (2.0 * sum(m.parameters for m in mixer.matrices) + mixer.token_flops) for mixer in model.mixers
    )
    forwards = sum(
        2.0
        * ff.layers
        * (sum(m.parameters for m in ff.matrices) + ff.top_k * sum(m.parameters for m in ff.expert_matrices))
        for ff in model.feedforwards
    )
    return mixers + forwards

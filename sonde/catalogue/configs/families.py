"""The table of architectures: which readers their layers take, and what their configs leave out.

    settings   what the architecture fixes and no config says: norms, biases, which layers have a window
    defaults   values of config fields where the config lacks them, as the publisher's code has them
    extras     weights beside the layers and the token tables: final norms, position tables

Settings: qk_norm "head" (one vector per head dim) or "full"; bias, qkv_bias, output_bias;
gated feed-forward; mixer_norms and forward_norms (how many), norm_parts (2 with bias, 0 without weights);
sinks; router_bias; shared_gate; delta_rule; windowed(fields, layer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sonde.catalogue.configs import attention, feedforward, linear
from sonde.catalogue.configs.attention import Mixers, grouped, latent
from sonde.catalogue.configs.feedforward import Forwards, dense, mixture, no_forward
from sonde.catalogue.configs.fields import Fields

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: how its mixers and its feed-forwards are read, layer by layer."""

    mixers: Callable[[Fields, int], Mixers] = grouped
    forwards: Callable[[Fields, int], Forwards] = dense
    settings: Settings = field(default_factory=dict)
    defaults: Settings = field(default_factory=dict)
    extras: Callable[[Fields, int], int] | None = None


def _always(_f: Fields, _layer: int) -> bool:
    return True


def _qwen_window(f: Fields, layer: int) -> bool:
    return f.flag("use_sliding_window") and layer >= f.count("max_window_layers", default=0, least=0)


def _alternating(_f: Fields, layer: int) -> bool:
    return layer % 2 == 0


def _all_but_every(f: Fields, layer: int) -> bool:
    return (layer + 1) % f.count("sliding_window_pattern", "_sliding_window_pattern", default=6) != 0


def _pattern(f: Fields, layer: int) -> bool:
    return bool(f.at("hybrid_layer_pattern", layer))


def _rope_layers(f: Fields, layer: int) -> bool:
    listed = f.get("no_rope_layers")
    return bool(f.at("no_rope_layers", layer)) if listed else (layer + 1) % f.count("no_rope_layer_interval") != 0


def _position_table(f: Fields, hidden: int) -> int:
    """Return the weights of a learnt table of positions (OPT keeps two rows more)."""
    return (f.count("max_position_embeddings", "n_positions") + int(f.setting("more_positions", 0))) * hidden


def _embedding_norm(_f: Fields, hidden: int) -> int:
    return 2 * hidden


def _head_bias(f: Fields, _hidden: int) -> int:
    return f.count("vocab_size")


def _per_layer_inputs(f: Fields, _hidden: int) -> int:
    """Refuse what Gemma's phone models have: token tables per layer and layers that share a cache."""
    for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if f.count(name, default=0, least=0):
            raise f.error(name, f.get(name), "must be 0", "per-layer tables and shared caches are not counted yet")
    return 0


def by_layer_type(linear_kind: Callable[[Fields, int], Mixers]) -> Callable[[Fields, int], Mixers]:
    """Return a reader of hybrids that say per layer, or by an interval, where attention is."""

    def read(f: Fields, layer: int) -> Mixers:
        kind = f.at("layer_types", layer)
        if kind is None:
            every = f.count("full_attention_interval")
            kind = "full_attention" if (layer + 1) % every == 0 else "linear_attention"
        return linear_kind(f, layer) if kind in ("linear_attention", "mamba") else grouped(f, layer)

    return read


def _kimi_hybrid(f: Fields, layer: int) -> Mixers:
    recurrent = layer + 1 in f.part("linear_attn_config").items("kda_layers")
    return linear.kimi_delta(f, layer) if recurrent else latent(f, layer)


def _lightning_hybrid(f: Fields, layer: int) -> Mixers:
    if f.get("layer_types") is not None:
        return by_layer_type(linear.lightning)(f, layer)
    if f.get("attn_type_list") is None:
        raise f.missing("attn_type_list", "layer_types")
    return grouped(f, layer) if f.at("attn_type_list", layer) else linear.lightning(f, layer)


_BLOCKS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def blocks(f: Fields) -> list[str]:
    """Return what each block of a Nemotron-H model is: "mamba", "attention", "moe" or "mlp"."""
    pattern = f.get("hybrid_override_pattern", default="")
    if not isinstance(pattern, str):
        raise f.error("hybrid_override_pattern", pattern, f"must be text of {', '.join(_BLOCKS)}")
    found = [_BLOCKS.get(letter, letter) for letter in pattern] or f.items("layers_block_type")
    if not found:
        raise f.missing("hybrid_override_pattern", "layers_block_type")
    for i, kind in enumerate(found):
        if kind not in _BLOCKS.values():
            raise f.error(f"hybrid_override_pattern[{i}]", kind, f"must be one of {', '.join(_BLOCKS)}")
    return found


def _block_mixer(f: Fields, layer: int) -> Mixers:
    kind = blocks(f)[layer]
    if kind == "mamba":
        return linear.mamba2(f, layer)
    return grouped(f, layer) if kind == "attention" else ()


def _block_forward(f: Fields, layer: int) -> Forwards:
    kind = blocks(f)[layer]
    if kind == "moe":
        return mixture(f, layer)
    return dense(f, layer) if kind == "mlp" else no_forward(f, layer)


def _falcon_norms(f: Fields) -> int:
    return 1 if f.flag("new_decoder_architecture") or not f.flag("parallel_attn", default=True) else 0


_TIED = {"tie_word_embeddings": True}
_HEAD_NORM = {"qk_norm": "head"}
_GEMMA = {"mixer_norms": 2, "forward_norms": 2}
_CLASSIC = {"norm_parts": 2, "gated": False, "bias": True, "four_times": True}
_SPARSE_DEEPSEEK = {"router_bias": True}
_QWEN_HYBRID = {"attn_output_gate": True, "full_attention_interval": 4}
_DELTA = {"qk_norm": "head", "delta_rule": True, "shared_gate": True}

#: model_type -> family
FAMILIES: dict[str, Family] = {
    # dense, as Llama made common
    "llama": Family(),
    "mistral": Family(settings={"windowed": _always}),
    "granite": Family(),
    "mimo": Family(settings={"output_bias": False}),
    "qwen2": Family(settings={"qkv_bias": True, "windowed": _qwen_window}),
    "qwen3": Family(settings={**_HEAD_NORM, "windowed": _qwen_window}),
    "qwen3_vl": Family(settings=_HEAD_NORM),
    "phi3": Family(settings={"windowed": _always}),
    "glm": Family(settings={"output_bias": False}),
    "glm4": Family(settings={**_GEMMA, "output_bias": False}),
    "qwen2_5_vl": Family(settings={"qkv_bias": True, "windowed": _qwen_window}),
    "smollm3": Family(defaults=_TIED),
    "seed_oss": Family(settings={"output_bias": False}),
    "cohere": Family(settings={"forward_norms": 0}, defaults=_TIED),
    "cohere2": Family(
        settings={"forward_norms": 0, "windowed": _all_but_every}, defaults={**_TIED, "sliding_window_pattern": 4}
    ),
    "olmo": Family(settings={"norm_parts": 0}),
    "olmo2": Family(settings={"qk_norm": "full"}),
    "nemotron-nas": Family(attention.searched, feedforward.searched_forward),
    "gemma": Family(defaults={**_TIED, "head_dim": 256}),
    "gemma2": Family(settings={**_GEMMA, "windowed": _alternating}, defaults={**_TIED, "head_dim": 256}),
    "gemma3": Family(
        settings={**_GEMMA, **_HEAD_NORM, "windowed": _all_but_every},
        defaults={**_TIED, "head_dim": 256, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
                  "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "gemma4": Family(
        forwards=mixture, settings={**_GEMMA, **_HEAD_NORM, "dense_beside": True}, defaults=_TIED,
        extras=_per_layer_inputs,
    ),
    # dense, before Llama
    "opt": Family(settings={**_CLASSIC, "more_positions": 2}, defaults=_TIED, extras=_position_table),
    "gpt2": Family(settings=_CLASSIC, defaults=_TIED, extras=_position_table),
    "gpt_neox": Family(settings=_CLASSIC),
    "bloom": Family(settings=_CLASSIC, defaults=_TIED, extras=_embedding_norm),
    "falcon": Family(
        settings={"norm_parts": 2, "gated": False, "four_times": True, "forward_norms": _falcon_norms},
        defaults={**_TIED, "max_position_embeddings": 2048},
    ),
    "phi": Family(settings={**_CLASSIC, "forward_norms": 0}, extras=_head_bias),
    "starcoder2": Family(settings={**_CLASSIC, "windowed": _always}, defaults=_TIED),
    # mixtures of experts
    "mixtral": Family(forwards=mixture, settings={"windowed": _always}),
    "phimoe": Family(
        forwards=mixture, settings={"norm_parts": 2, "windowed": _always}, defaults={"attention_bias": True},
        extras=_head_bias,
    ),
    "qwen2_moe": Family(forwards=mixture, settings={"qkv_bias": True, "shared_gate": True}),
    "qwen3_moe": Family(forwards=mixture, settings=_HEAD_NORM),
    "qwen3_vl_moe": Family(forwards=mixture, settings=_HEAD_NORM),
    "olmoe": Family(forwards=mixture, settings={"qk_norm": "full"}),
    "granitemoe": Family(forwards=mixture, defaults=_TIED),
    "dots1": Family(forwards=mixture, settings={**_HEAD_NORM, "router_bias": True}),
    "bailing_moe_v2": Family(forwards=mixture, settings={**_HEAD_NORM, "router_bias": True}),
    "ernie4_5_moe": Family(forwards=mixture, settings={"router_bias": True}, defaults=_TIED),
    "glm4_moe": Family(forwards=mixture, settings={**_HEAD_NORM, "router_bias": True, "output_bias": False},
                       defaults={"use_qk_norm": False}),
    "gpt_oss": Family(
        forwards=mixture,
        settings={"bias": True, "sinks": True, "router_bias": True, "windowed": _alternating},
    ),
    "llama4": Family(
        forwards=mixture, settings={"shared_like_routed": True, "windowed": _rope_layers, "no_qk_norm": True},
        defaults={"no_rope_layer_interval": 4},
    ),
    "minimax_m2": Family(forwards=mixture, settings={"router_bias": True, "qk_norm": "full"}),
    "minimax_m3": Family(forwards=mixture, settings={"router_bias": True, "qk_norm": "head"}),
    "mimo_v2_flash": Family(forwards=mixture, settings={"router_bias": True, "windowed": _pattern}),
    "step3p7": Family(forwards=mixture, settings={"router_bias": True}),
    # latent and sparse attention
    "deepseek_v2": Family(latent, mixture),
    "deepseek_v3": Family(latent, mixture, settings=_SPARSE_DEEPSEEK),
    "deepseek_v32": Family(latent, mixture, settings=_SPARSE_DEEPSEEK),
    "glm4_moe_lite": Family(latent, mixture, settings=_SPARSE_DEEPSEEK),
    "kimi_k2": Family(latent, mixture, settings=_SPARSE_DEEPSEEK),
    "glm_moe_dsa": Family(latent, mixture, settings=_SPARSE_DEEPSEEK),
    "deepseek_v4": Family(attention.compressed, mixture, settings=_SPARSE_DEEPSEEK),
    # linear attention and hybrids
    "qwen3_next": Family(by_layer_type(linear.gated_delta), mixture, settings=_DELTA, defaults=_QWEN_HYBRID),
    "qwen3_5": Family(by_layer_type(linear.gated_delta), dense, settings=_DELTA, defaults=_QWEN_HYBRID),
    "qwen3_5_moe": Family(by_layer_type(linear.gated_delta), mixture, settings=_DELTA, defaults=_QWEN_HYBRID),
    "granitemoehybrid": Family(by_layer_type(linear.mamba2), mixture, defaults=_TIED),
    "kimi_linear": Family(_kimi_hybrid, mixture, settings={**_SPARSE_DEEPSEEK, "delta_rule": True}),
    "minimax_text_01": Family(_lightning_hybrid, mixture),
    "nemotron_h": Family(_block_mixer, _block_forward, settings={"gated": False, "router_bias": True}),
}  # fmt: skip

#: other names that configs use -> model_type of the table
ALIASES: dict[str, str] = {
    "gemma3_text": "gemma3", "gemma4_text": "gemma4", "llama4_text": "llama4", "minimax_m1": "minimax_text_01",
    "minimax": "minimax_text_01", "deepseek_ref": "deepseek_v4", "refinedweb": "falcon", "refinedwebmodel": "falcon",
    "olmo3": "olmo2",
}  # fmt: skip

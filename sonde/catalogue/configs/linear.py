"""Linear recurrences: a state of fixed size per sequence in place of a cache that grows.

FLOP per token are those of the recurrence: what it takes to decay, update and read the state once. The
state of the recurrence is kept in fp32 unless the config says otherwise, that of the convolution in bf16.
"""

from __future__ import annotations

from sonde.catalogue.configs.attention import Mixers, norms
from sonde.catalogue.configs.fields import Fields
from sonde.catalogue.model import Matrix, Mixer

#: FLOP per element of the state and token: decay (1), outer product and add (2), read (2); the delta rule
#: reads the state once more to find what to correct (2)
UPDATE_FLOPS, DELTA_FLOPS = 5.0, 7.0


def _linear(
    f: Fields, heads: tuple[int, int], matrices: tuple[Matrix, ...], state: int, convolution: int, vectors: int
) -> Mixer:
    """Return a mixer with `state` numbers of recurrence and `convolution` of convolution window."""
    half = f.get("mamba_ssm_cache_dtype", "mamba_ssm_dtype", default="float32") in ("bfloat16", "float16")
    delta = f.setting("delta_rule", False)
    hidden = f.count("hidden_size")
    return Mixer(
        kind="linear",
        layers=1,
        heads=heads[0],
        kv_heads=heads[1],
        matrices=matrices,
        state_elements=state + convolution,
        state_bytes=state * (2.0 if half else 4.0) + convolution * 2.0,
        token_flops=state * (DELTA_FLOPS if delta else UPDATE_FLOPS),
        vectors=vectors + norms(f, hidden, "mixer_norms"),
    )


def mamba2(f: Fields, _layer: int) -> Mixers:
    """Return a Mamba-2 layer: heads·head_dim·state_size numbers of state (Dao and Gu 2024)."""
    hidden = f.count("hidden_size")
    heads, dim = f.count("mamba_num_heads", "mamba_n_heads"), f.count("mamba_head_dim", "mamba_d_head")
    size, groups = f.count("ssm_state_size", "mamba_d_state"), f.count("n_groups", "mamba_n_groups")
    kernel = f.count("conv_kernel", "mamba_d_conv")
    f.divides(groups, heads, "n_groups", "mamba_num_heads")
    inner, convolved = heads * dim, heads * dim + 2 * groups * size
    into = inner + convolved + heads
    bias = (into + hidden) if f.flag("use_bias", "mamba_proj_bias") else 0
    vectors = convolved * (kernel + f.flag("use_conv_bias", "mamba_conv_bias", default=True)) + 3 * heads + inner + bias
    matrices = (Matrix("in", hidden, into, "column"), Matrix("out", inner, hidden, "row"))
    return (_linear(f, (heads, groups), matrices, inner * size, convolved * (kernel - 1), vectors),)


def gated_delta(f: Fields, _layer: int) -> Mixers:
    """Return a gated delta net (Yang et al. 2024) as Qwen3-Next and Qwen3.5 have it."""
    hidden = f.count("hidden_size")
    key_heads, value_heads = f.count("linear_num_key_heads"), f.count("linear_num_value_heads")
    key_dim, value_dim = f.count("linear_key_head_dim"), f.count("linear_value_head_dim")
    f.divides(key_heads, value_heads, "linear_num_key_heads", "linear_num_value_heads")
    values = value_heads * value_dim
    convolved, kernel = 2 * key_heads * key_dim + values, f.count("linear_conv_kernel_dim")
    matrices = (
        Matrix("in", hidden, convolved + values, "column"),
        Matrix("decay", hidden, 2 * value_heads, "column"),
        Matrix("out", values, hidden, "row"),
    )
    vectors = convolved * kernel + 2 * value_heads + value_dim
    state = value_heads * key_dim * value_dim
    return (_linear(f, (value_heads, key_heads), matrices, state, convolved * (kernel - 1), vectors),)


def kimi_delta(f: Fields, _layer: int) -> Mixers:
    """Return Kimi delta attention: a delta net whose state decays per channel (Kimi Linear 2025)."""
    hidden, c = f.count("hidden_size"), f.part("linear_attn_config")
    heads, dim, kernel = c.count("num_heads"), c.count("head_dim"), c.count("short_conv_kernel_size")
    width = heads * dim
    full_gate = c.flag("use_full_rank_gate")
    gate = (
        (Matrix("gate", hidden, width, "column"),)
        if full_gate
        else (Matrix("gate_down", hidden, dim, "none"), Matrix("gate_up", dim, width, "column"))
    )
    matrices = (
        Matrix("qkv", hidden, 3 * width, "column"),
        Matrix("decay_down", hidden, dim, "none"),
        Matrix("decay_up", dim, width, "column"),
        Matrix("beta", hidden, heads, "column"),
        *gate,
        Matrix("o", width, hidden, "row"),
    )
    vectors = 3 * width * kernel + heads + width + dim
    return (_linear(f, (heads, heads), matrices, width * dim, 3 * width * (kernel - 1), vectors),)


def lightning(f: Fields, _layer: int) -> Mixers:
    """Return lightning attention (MiniMax-01): linear attention with a fixed decay per head."""
    hidden, heads, dim = f.count("hidden_size"), f.count("num_attention_heads"), f.count("head_dim")
    width = heads * dim
    matrices = (
        Matrix("qkv", hidden, 3 * width, "column"),
        Matrix("gate", hidden, width, "column"),
        Matrix("o", width, hidden, "row"),
    )
    return (_linear(f, (heads, heads), matrices, width * dim, 0, width),)

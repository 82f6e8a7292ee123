"""Feed-forward layers: dense, gated or not, and mixtures of experts with shared experts and latent spaces.

Every reader takes the fields and a layer's number and returns the feed-forwards of that one layer.
"""

from __future__ import annotations

from sonde.catalogue.configs.attention import norms
from sonde.catalogue.configs.fields import Fields
from sonde.catalogue.model import FeedForward, Matrix

Forwards = tuple[FeedForward, ...]


def expand(hidden: int, inner: int, *, gated: bool = True) -> tuple[Matrix, Matrix]:
    """Return the two products of a feed-forward: into `inner` (twice where gated) and back."""
    return (
        Matrix("gate_up" if gated else "up", hidden, (2 if gated else 1) * inner, "column"),
        Matrix("down", inner, hidden, "row"),
    )


def _hidden(f: Fields) -> int:
    return f.count("hidden_size", "n_embd", "n_embed", "d_model")


def dense(f: Fields, _layer: int) -> Forwards:
    """Return a dense feed-forward; `intermediate_size` is 4·hidden where a family leaves it out."""
    hidden = _hidden(f)
    default = 4 * hidden if f.setting("four_times") else None
    inner = f.count("dense_intermediate_size", "intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner",
                  "ffn_hidden_size", default=default)  # fmt: skip
    gated = bool(f.setting("gated", True))
    bias = f.flag("mlp_bias") or f.setting("bias")
    vectors = ((2 if gated else 1) * inner + hidden) if bias else 0
    return (FeedForward(1, expand(hidden, inner, gated=gated), vectors=vectors + norms(f, hidden, "forward_norms")),)


def no_forward(_f: Fields, _layer: int) -> Forwards:
    """Return no feed-forward: it is a layer of its own, or left out."""
    return ()


def mixture(f: Fields, layer: int) -> Forwards:
    """Return a mixture of experts, or the dense feed-forward of a layer that has none."""
    if not _is_mixture(f, layer):
        return dense(f, layer)
    hidden = _hidden(f)
    experts = f.count("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    top_k = f.count("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_k",
                  default=f.setting("top_k"))  # fmt: skip
    if top_k > experts:
        raise f.error("num_experts_per_tok", top_k, f"must be at most the {experts} experts")
    inner = f.count("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", "ffn_dim")
    latent = f.count("routed_expert_hidden_size", "moe_latent_size", default=0, least=0)
    gated = bool(f.setting("gated", True))
    matrices: tuple[Matrix, ...] = (Matrix("router", hidden, experts, "none"),)
    vectors = norms(f, hidden, "forward_norms") + (experts if f.setting("router_bias") else 0)
    shared = _shared_width(f, inner)
    if shared:
        matrices += expand(hidden, shared, gated=gated)
        vectors += hidden if f.setting("shared_gate") else 0
    if latent:
        matrices += (Matrix("latent_down", hidden, latent, "none"), Matrix("latent_up", latent, hidden, "none"))
        vectors += latent if f.flag("latent_moe_use_norm") else 0
    if f.setting("dense_beside"):
        matrices += dense(f, layer)[0].matrices
        vectors += hidden * f.count("extra_norms", default=3)
    return (
        FeedForward(
            layers=1,
            matrices=matrices,
            experts=experts,
            top_k=top_k,
            expert_matrices=expand(latent or hidden, inner, gated=gated),
            vectors=vectors,
            expert_vectors=((2 if gated else 1) * inner + (latent or hidden)) if f.setting("bias") else 0,
        ),
    )


def _shared_width(f: Fields, inner: int) -> int:
    """Return the inner width of all shared experts together."""
    if f.setting("shared_like_routed"):
        return inner
    count = f.count("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", default=0, least=0)
    each = f.count("moe_shared_expert_intermediate_size", "share_expert_dim", default=inner)
    alone = f.count("shared_expert_intermediate_size", "shared_intermediate_size", default=0, least=0)
    return alone or count * each


def _is_mixture(f: Fields, layer: int) -> bool:
    """Return whether a layer is a mixture, from whichever of the many fields the config says it with."""
    if f.get("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts") is None:
        if f.get("enable_moe_block") is False:
            return False
        raise f.missing("num_experts", "num_local_experts", "n_routed_experts")
    if f.get("mlp_layer_types") is not None:
        return bool(f.at("mlp_layer_types", layer) == "sparse")
    frequency = f.get("moe_layer_freq")
    if isinstance(frequency, list):
        return bool(f.at("moe_layer_freq", layer))
    if layer in f.items("mlp_only_layers"):
        return False
    step = f.count("interleave_moe_layer_step", "decoder_sparse_step", default=0, least=0)
    if step:
        return (layer + 1) % step == 0
    first = f.count("first_k_dense_replace", "moe_layer_start_index", default=0, least=0)
    return layer >= first and layer % f.count("moe_layer_freq", "moe_layer_interval", default=1) == 0


def searched_forward(f: Fields, layer: int) -> Forwards:
    """Return the feed-forward that architecture search left in this layer (DeciLM): none, or dense."""
    found = f.entry("block_configs", layer).part("ffn")
    if found.flag("no_op"):
        return ()
    if found.flag("replace_with_linear"):
        raise found.error("replace_with_linear", True, "is not supported")
    hidden = _hidden(f)
    inner = int(2 * found.number("ffn_mult") * hidden / 3)
    inner = -(-inner // 256) * 256
    return (FeedForward(1, expand(hidden, inner), vectors=norms(f, hidden, "forward_norms")),)

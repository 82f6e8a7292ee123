"""Weights that a text token does not run: vision towers and what projects their output into the text model."""

from __future__ import annotations

from collections.abc import Callable

from sonde.catalogue.configs.fields import Fields


def _encoder(depth: int, hidden: int, inner: int, *, matrices: int = 2, biased: bool = True, norms: int = 2) -> int:
    """Return the weights of `depth` encoder layers with an MLP of `matrices` matrices."""
    weights = 4 * hidden * hidden + matrices * hidden * inner
    biases = (4 * hidden + (matrices - 1) * inner + hidden) if biased else 0
    return depth * (weights + biases + norms * hidden * (2 if biased else 1))


def qwen_tower(v: Fields, text_hidden: int) -> int:
    """Return the weights of the vision tower of Qwen3-VL and Qwen3.5."""
    hidden, merge = v.count("hidden_size"), v.count("spatial_merge_size") ** 2
    patch = v.count("in_channels", default=3) * v.count("temporal_patch_size", default=1) * v.count("patch_size") ** 2
    merged = merge * hidden
    merger = merged * merged + merged + (merged + 1) * v.count("out_hidden_size", default=text_hidden)
    deep = len(v.items("deepstack_visual_indexes"))
    return (
        _encoder(v.count("depth"), hidden, v.count("intermediate_size"))
        + (patch + 1) * hidden
        + v.count("num_position_embeddings", default=0, least=0) * hidden
        + merger * (1 + deep) + 2 * hidden + 2 * merged * deep
    )  # fmt: skip


def qwen2_tower(v: Fields, text_hidden: int) -> int:
    """Return the weights of the vision tower of Qwen2.5-VL: a gated MLP with biases, norms without."""
    hidden, merge, depth = v.count("hidden_size"), v.count("spatial_merge_size") ** 2, v.count("depth")
    patch = 3 * v.count("temporal_patch_size") * v.count("patch_size") ** 2
    merged = merge * hidden
    merger = merged * merged + merged + (merged + 1) * v.count("out_hidden_size", default=text_hidden) + hidden
    layers = _encoder(depth, hidden, v.count("intermediate_size"), matrices=3) - depth * 2 * hidden
    return layers + patch * hidden + merger


def moon_tower(v: Fields, text_hidden: int) -> int:
    """Return the weights of the vision tower of Kimi K2.5 and K3 (MoonViT)."""
    hidden, depth = v.count("vt_hidden_size"), v.count("vt_num_hidden_layers")
    merged = 4 * v.count("mm_hidden_size", default=hidden)
    positions = v.count("init_pos_emb_height") * v.count("init_pos_emb_width")
    wide = v.count("qkv_hidden_size", default=hidden) - hidden
    projector = merged * (merged + 1) + (merged + 1) * text_hidden
    patches = (3 * v.count("patch_size") ** 2 + 1) * hidden
    encoder = _encoder(depth, hidden, v.count("vt_intermediate_size")) + depth * 4 * hidden * wide
    return encoder + positions * hidden + patches + projector


def gemma_tower(v: Fields, text_hidden: int) -> int:
    """Return the weights of the vision tower of Gemma 4 (gated MLP), or of Gemma 3 (SigLIP)."""
    hidden, depth, inner = v.count("hidden_size"), v.count("num_hidden_layers"), v.count("intermediate_size")
    patch = 3 * v.count("patch_size") ** 2
    if v.get("position_embedding_size") is not None:
        positions = 2 * v.count("position_embedding_size") * hidden
        encoder = _encoder(depth, hidden, inner, matrices=3, biased=False, norms=4)
        return encoder + positions + patch * hidden + hidden * text_hidden
    positions = (v.count("image_size", default=896) // v.count("patch_size")) ** 2 * hidden
    encoder = _encoder(depth, hidden, inner)
    return encoder + positions + (patch + 1) * hidden + 2 * hidden + hidden * text_hidden + hidden


def llama4_tower(v: Fields, text_hidden: int) -> int:
    """Return the weights of the vision tower of Llama 4, of the published sizes where the config is silent."""
    hidden, depth = v.count("hidden_size", default=1408), v.count("num_hidden_layers", default=34)
    inner, out = v.count("intermediate_size", default=5632), v.count("projector_output_dim", default=4096)
    patch, size = v.count("patch_size", default=14), v.count("image_size", default=336)
    positions = ((size // patch) ** 2 + 1) * hidden
    adapter = inner * out + out * out + out * text_hidden
    embed = 3 * patch * patch * hidden + hidden + 4 * hidden
    return _encoder(depth, hidden, inner) + positions + adapter + embed


#: model_type of the whole -> reader of its `vision_config`
TOWERS: dict[str, Callable[[Fields, int], int]] = {
    "qwen3_vl": qwen_tower, "qwen3_vl_moe": qwen_tower, "qwen3_5": qwen_tower, "qwen3_5_moe": qwen_tower,
    "qwen2_5_vl": qwen2_tower,
    "kimi_k25": moon_tower, "kimi_k3": moon_tower, "gemma3": gemma_tower, "gemma4": gemma_tower,
    "llama4": llama4_tower,
}  # fmt: skip

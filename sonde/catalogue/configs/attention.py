"""Attention: grouped-query with or without a window, latent (MLA), sparse (an indexer picks keys), compressed.

Every reader takes the fields and a layer's number and returns the mixers of that one layer. FLOP per
(query, key) pair are 2 per multiply-add, over all heads: 2·heads·(key dim + value dim).
"""

from __future__ import annotations

from dataclasses import replace

from sonde.catalogue.configs.fields import Fields
from sonde.catalogue.model import Matrix, Mixer

Mixers = tuple[Mixer, ...]

#: names that configs use for a layer's kind of attention -> whether a window cuts what it reads
WINDOWED = {
    "sliding_attention": True, "chunked_attention": True, "sliding": True, "local": True,
    "full_attention": False, "full": False, "global": False, "attention": False,
    "deepseek_sparse_attention": False,
}  # fmt: skip


def grouped(f: Fields, layer: int) -> Mixers:
    """Return grouped-query attention: multi-head where all heads have keys, multi-query where one has."""
    hidden = f.count("hidden_size", "n_embd", "n_embed", "d_model")
    windowed = is_windowed(f, layer)
    heads, kv_heads, key_dim, value_dim = _heads(f, hidden, windowed)
    shared_kv = f.flag("attention_k_eq_v") and not windowed
    query = heads * key_dim * (2 if f.flag("attn_output_gate") else 1)
    key_value = kv_heads * key_dim + (0 if shared_kv else kv_heads * value_dim)
    window = _window(f) if windowed else 0
    attention = Mixer(
        kind="attention",
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        matrices=(
            Matrix("q", hidden, query, "column"),
            Matrix("kv", hidden, key_value, "column"),
            Matrix("o", heads * value_dim, hidden, "row"),
        ),
        cache_elements=kv_heads * (key_dim + value_dim),
        prefill_flops=2.0 * heads * (key_dim + value_dim),
        decode_flops=2.0 * heads * (key_dim + value_dim),
        window=window,
        cache_saturates=window > 0,
        vectors=_vectors(f, hidden, query + key_value, (heads, kv_heads, key_dim)),
    )
    if f.get("sparse_attention_config"):
        sparse = f.part("sparse_attention_config")
        if sparse.flag("use_sparse_attention", default=True) and sparse.at("sparse_attention_freq", layer):
            return _block_sparse(f, attention, hidden)
    return (attention,)


def _heads(f: Fields, hidden: int, windowed: bool) -> tuple[int, int, int, int]:
    """Return (query heads, key/value heads, key dim, value dim) of a layer that is windowed or not."""
    prefix = "swa_" if windowed and f.get("swa_num_attention_heads") else ""
    heads = f.count(f"{prefix}num_attention_heads", "n_head")
    wide = () if windowed else ("num_global_key_value_heads",)
    kv_heads = f.count(*wide, f"{prefix}num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    if f.flag("multi_query") and not f.flag("new_decoder_architecture"):
        kv_heads = 1
    wide = () if windowed else ("global_head_dim",)
    key_dim = f.count(*wide, f"{prefix}head_dim", "attention_head_dim", "kv_channels", default=0, least=0)
    key_dim = key_dim or f.divides(heads, hidden, "num_attention_heads", "hidden_size")
    f.divides(kv_heads, heads, "num_key_value_heads", "num_attention_heads")
    value_dim = f.count(f"{prefix}v_head_dim", default=key_dim)
    return heads, kv_heads, key_dim, value_dim


def _vectors(f: Fields, hidden: int, qkv: int, shape: tuple[int, int, int]) -> int:
    """Return the weights beside the matrices: biases, norms of queries and keys, sinks, the layer's norms."""
    heads, kv_heads, key_dim = shape
    bias = f.setting("bias") or f.flag("attention_bias", "use_bias", "bias", "qkv_bias")
    count = qkv if bias or f.setting("qkv_bias") else 0
    count += hidden if bias and f.setting("output_bias", True) else 0
    norm = f.setting("qk_norm") or f.get("qk_norm_type")
    norm = norm if f.flag("use_qk_norm", default=True) and not f.setting("no_qk_norm") else None
    if norm in ("head", "per_head"):
        count += 2 * key_dim
    elif norm in ("full", "per_layer"):
        count += (heads + kv_heads) * key_dim
    count += heads if f.setting("sinks") else 0
    return count + norms(f, hidden, "mixer_norms")


def norms(f: Fields, hidden: int, which: str) -> int:
    """Return the weights of the norms around one half of a layer ("mixer_norms" or "forward_norms")."""
    count = f.setting(which, 1)
    return int(count(f) if callable(count) else count) * int(f.setting("norm_parts", 1)) * hidden


def is_windowed(f: Fields, layer: int) -> bool:
    """Return whether a window cuts what this layer reads, from the config's list or the family's rule."""
    kind = f.at("layer_types", layer)
    if kind is None:
        rule = f.setting("windowed")
        return bool(rule(f, layer)) if rule else False
    if str(kind) not in WINDOWED:
        raise f.error(f"layer_types[{layer}]", kind, f"is no kind of attention; known: {', '.join(sorted(WINDOWED))}")
    return WINDOWED[str(kind)] and _window(f) > 0


def _window(f: Fields) -> int:
    """Return the window in tokens, 0 where it is off or no shorter than the context."""
    window = f.count("sliding_window", "attention_chunk_size", "sliding_window_size", default=0, least=0)
    context = f.count("max_position_embeddings", "n_positions", "max_seq_len", default=0, least=0)
    return 0 if context and window >= context else window


def _block_sparse(f: Fields, attention: Mixer, hidden: int) -> Mixers:
    """Return attention that reads the best blocks of keys, and the indexer that finds them (MiniMax-M3)."""
    s = f.part("sparse_attention_config")
    heads, dim = s.count("sparse_num_index_heads"), s.count("sparse_index_dim")
    top = s.count("sparse_topk_blocks") * s.count("sparse_block_size")
    indexer = Mixer(
        kind="indexer", layers=1, heads=heads, kv_heads=1,
        matrices=(Matrix("index_q", hidden, heads * dim), Matrix("index_k", hidden, dim, "none")),
        cache_elements=dim, prefill_flops=2.0 * heads * dim, decode_flops=2.0 * heads * dim, vectors=2 * dim,
    )  # fmt: skip
    return (replace(attention, window=top, cache_saturates=False), indexer)


def latent(f: Fields, layer: int) -> Mixers:
    """Return multi-head latent attention (DeepSeek-V2), with its indexer where the config has one (DSA).

    A prompt is attended to with full heads; decoding absorbs the up-projections and reads the latent. Sparse
    attention reads the latent in both, for every query picks its own keys.
    """
    hidden, heads = f.count("hidden_size"), f.count("num_attention_heads")
    rank, rope = f.count("kv_lora_rank"), f.count("qk_rope_head_dim")
    nope, value = f.count("qk_nope_head_dim"), f.count("v_head_dim")
    q_rank = f.count("q_lora_rank", default=0, least=0)
    queries = heads * (nope + rope)
    down = Matrix("q_kv_down", hidden, q_rank + rank + rope, "none")
    into = (
        (down, Matrix("q_up", q_rank, queries, "column"))
        if q_rank
        else (Matrix("q", hidden, queries, "column"), Matrix("kv_down", hidden, rank + rope, "none"))
    )
    gate = (Matrix("gate", hidden, heads * value, "column"),) if f.flag("mla_use_output_gate") else ()
    out = (Matrix("kv_up", rank, heads * (nope + value), "column"), Matrix("o", heads * value, hidden, "row"))
    top = f.count("index_topk", default=0, least=0)
    absorbed = 2.0 * heads * (2 * rank + rope)
    attention = Mixer(
        kind="mla",
        layers=1,
        heads=heads,
        kv_heads=1,
        matrices=into + gate + out,
        cache_elements=rank + rope,
        prefill_flops=absorbed if top else 2.0 * heads * (nope + rope + value),
        decode_flops=absorbed,
        window=top,
        vectors=q_rank + rank + norms(f, hidden, "mixer_norms"),
    )
    if not top or f.at("indexer_types", layer) == "shared":
        return (attention,)
    return (attention, _indexer(f, hidden, q_rank))


def _indexer(f: Fields, hidden: int, q_rank: int, ratio: int = 1) -> Mixer:
    """Return the lightning indexer of DeepSeek: many small heads score one shared key per `ratio` tokens."""
    heads, dim = f.count("index_n_heads"), f.count("index_head_dim")
    keys = Matrix("index_k", hidden, dim if ratio == 1 else 4 * dim, "none")
    return Mixer(
        kind="indexer",
        layers=1,
        heads=heads,
        kv_heads=1,
        matrices=(
            Matrix("index_q", q_rank or hidden, heads * dim, "none"),
            keys,
            Matrix("index_weights", hidden, heads, "none"),
        ),
        cache_elements=dim // ratio,
        prefill_flops=2.0 * heads * dim / ratio,
        decode_flops=2.0 * heads * dim / ratio,
        vectors=2 * dim if ratio == 1 else dim + 2 * ratio * dim,
    )


def compressed(f: Fields, layer: int) -> Mixers:
    """Return DeepSeek-V4 attention: a window of raw keys beside keys that stand for `ratio` tokens each.

    A ratio of 0 has the window alone; the smallest ratio has an indexer that picks `index_topk` of the
    compressed keys; others read all of them. Key and value are one vector, shared by all heads.
    """
    hidden, heads, dim = f.count("hidden_size"), f.count("num_attention_heads"), f.count("head_dim")
    q_rank, o_rank, groups = f.count("q_lora_rank"), f.count("o_lora_rank"), f.count("o_groups")
    per_group = f.divides(groups, heads * dim, "o_groups", "num_attention_heads * head_dim")
    streams = f.count("hc_mult", default=1)
    mixes = Matrix("connections", streams * hidden, (2 + streams) * streams, "none")
    recent = Mixer(
        kind="attention",
        layers=1,
        heads=heads,
        kv_heads=1,
        matrices=(
            Matrix("q_kv_down", hidden, q_rank + dim, "none"),
            Matrix("q_up", q_rank, heads * dim, "column"),
            Matrix("o_down", per_group, groups * o_rank, "column"),
            Matrix("o_up", groups * o_rank, hidden, "row"),
            mixes,
        ),
        cache_elements=dim,
        prefill_flops=4.0 * heads * dim,
        decode_flops=4.0 * heads * dim,
        window=f.count("sliding_window"),
        cache_saturates=True,
        vectors=q_rank + dim + heads + norms(f, hidden, "mixer_norms"),
    )
    ratio = f.at("compress_ratios", layer)
    if not isinstance(ratio, int) or ratio < 0:
        raise f.error(f"compress_ratios[{layer}]", ratio, "must be 0 or the number of tokens that share a key")
    if ratio == 0:
        return (recent,)
    picks = ratio == min(r for r in f.items("compress_ratios") if isinstance(r, int) and r > 0)
    overlap = 2 if picks else 1
    far = Mixer(
        kind="attention",
        layers=1,
        heads=heads,
        kv_heads=1,
        matrices=(Matrix("compress", hidden, 2 * overlap * dim, "none"),),
        cache_elements=f.divides(ratio, dim, f"compress_ratios[{layer}]", "head_dim"),
        prefill_flops=4.0 * heads * dim / ratio,
        decode_flops=4.0 * heads * dim / ratio,
        window=f.count("index_topk") * ratio if picks else 0,
        vectors=dim + ratio * overlap * dim,
    )
    return (recent, far, _indexer(f, hidden, q_rank, ratio)) if picks else (recent, far)


def searched(f: Fields, layer: int) -> Mixers:
    """Return the attention that architecture search left in this layer (DeciLM): none, or grouped-query."""
    found = f.entry("block_configs", layer).part("attention")
    if found.flag("no_op"):
        return ()
    if found.flag("replace_with_linear"):
        raise found.error("replace_with_linear", True, "is not supported")
    heads = f.count("num_attention_heads")
    group = found.count("n_heads_in_group")
    kv_heads = found.divides(group, heads, "n_heads_in_group", "num_attention_heads")
    return grouped(Fields({**f.data, "num_key_value_heads": kv_heads}, f.settings, f.path), layer)

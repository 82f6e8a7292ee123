"""Models and devices built by hand for the tests of the cost model."""

from __future__ import annotations

from sonde.catalogue.device import Device, Link, MemoryTier
from sonde.catalogue.model import FeedForward, Matrix, Mixer, Model


def gqa(layers: int, hidden: int, heads: int, kv_heads: int, dim: int, window: int = 0) -> Mixer:
    """Return grouped-query attention as the four matrices that publishers name."""
    return Mixer(
        "attention", layers, heads, kv_heads,
        (
            Matrix("q", hidden, heads * dim), Matrix("k", hidden, kv_heads * dim),
            Matrix("v", hidden, kv_heads * dim), Matrix("o", heads * dim, hidden, "row"),
        ),
        cache_elements=2 * kv_heads * dim, prefill_flops=4.0 * heads * dim, decode_flops=4.0 * heads * dim,
        window=window, cache_saturates=window > 0,
    )  # fmt: skip


def swiglu(hidden: int, inner: int) -> tuple[Matrix, ...]:
    return (Matrix("gate", hidden, inner), Matrix("up", hidden, inner), Matrix("down", inner, hidden, "row"))


def dense(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, inner: int, vocabulary: int, *, tied: bool = False
) -> Model:
    return Model(
        name, "dense", layers, hidden, vocabulary, 131072, (gqa(layers, hidden, heads, kv_heads, hidden // heads),),
        (FeedForward(layers, swiglu(hidden, inner)),), tied, "bf16", 0, "by hand", "2026-11-24",
    )  # fmt: skip


def opt(name: str, layers: int, hidden: int, heads: int) -> Model:
    """Return an OPT: a ReLU feed-forward of 4·hidden, no grouped heads, tied tables, learned positions."""
    forward = FeedForward(layers, (Matrix("up", hidden, 4 * hidden), Matrix("down", 4 * hidden, hidden, "row")))
    return Model(
        name, "opt", layers, hidden, 50272, 2048, (gqa(layers, hidden, heads, heads, hidden // heads),),
        (forward,), True, "fp16", 2050 * hidden, "by hand", "2026-11-24",
    )  # fmt: skip


def mixture(name: str, layers: int, hidden: int, heads: int, kv_heads: int, *, experts: int, top_k: int, inner: int,
            shared: int = 0, vocabulary: int = 32000) -> Model:  # fmt: skip
    always = (Matrix("router", hidden, experts, "none"), *(swiglu(hidden, shared) if shared else ()))
    return Model(
        name, "moe", layers, hidden, vocabulary, 32768, (gqa(layers, hidden, heads, kv_heads, 128),),
        (FeedForward(layers, always, experts, top_k, swiglu(hidden, inner)),),
        False, "bf16", 0, "by hand", "2026-11-24",
    )  # fmt: skip


def latent(name: str = "latent", layers: int = 4, hidden: int = 7168, heads: int = 128) -> Model:
    """Return a small stack of DeepSeek-V3's layers: latent attention, one dense layer, the rest experts."""
    mixer = Mixer(
        "mla", layers, heads, 1,
        (
            Matrix("q_a", hidden, 1536, "none"), Matrix("kv_a", hidden, 576, "none"),
            Matrix("q_b", 1536, heads * 192), Matrix("kv_b", 512, heads * 256),
            Matrix("o", heads * 128, hidden, "row"),
        ),
        cache_elements=576, prefill_flops=2.0 * heads * (192 + 128), decode_flops=2.0 * heads * (576 + 512),
    )  # fmt: skip
    always = (Matrix("router", hidden, 256, "none"), *swiglu(hidden, 2048))
    return Model(
        name, "deepseek", layers, hidden, 129280, 163840, (mixer,),
        (FeedForward(1, swiglu(hidden, 18432)), FeedForward(layers - 1, always, 256, 8, swiglu(hidden, 2048))),
        False, "fp8", 0, "by hand", "2026-11-24",
    )  # fmt: skip


def device(
    name: str, flops: dict[str, float], memory: float, bandwidth: float, *,
    kind: str = "datacentre", node: float = 300e9, peak_w: float = 400.0, price: float = 2.0,
) -> Device:  # fmt: skip
    return Device(
        name, name, "nvidia", kind, flops, (MemoryTier("hbm", memory, bandwidth),), 8, Link(node, 1e-6),
        Link(25e9, 5e-6), Link(25e9, 5e-6), 60.0, peak_w, {"on-demand": price}, "by hand", "2026-11-24",
    )  # fmt: skip


LLAMA_8B = dense("llama-3.1-8b", 32, 4096, 32, 8, 14336, 128256)
LLAMA_70B = dense("llama-3.1-70b", 80, 8192, 64, 8, 28672, 128256)
YI_34B = dense("yi-34b", 60, 7168, 56, 8, 20480, 64000)
OPT_13B = opt("opt-13b", 40, 5120, 40)
OPT_66B = opt("opt-66b", 64, 9216, 72)
MIXTRAL = mixture("mixtral-8x7b", 32, 4096, 32, 8, experts=8, top_k=2, inner=14336)

A100 = device("a100-sxm-80gb", {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12, "int8": 624e12}, 80 * 2**30, 2.039e12)
H100 = device("h100-sxm", {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12, "fp8": 1979e12}, 80 * 2**30, 3.35e12,
              node=450e9, peak_w=700.0)  # fmt: skip
RTX_4090 = device("rtx-4090", {"fp32": 82.6e12, "bf16": 165e12, "fp16": 165e12, "fp8": 330e12}, 24 * 2**30, 1.008e12,
                  kind="workstation", node=25e9, peak_w=450.0)  # fmt: skip

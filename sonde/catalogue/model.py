"""What a model is, as numbers: the layers that a step runs through, and what each keeps per token.

A model is a bag of layers: how many there are of each kind, not in which order, for the time of a step
is the sum over them. `configs.py` reads a Hugging Face `config.json` into this form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sonde.catalogue.device import PRECISION_BYTES

Split = Literal["column", "row", "none"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix [inputs, outputs]: a token costs 2·inputs·outputs FLOP.

    `split` says how tensor parallelism cuts it: by columns, by rows (its result is then summed over the
    ranks by an all-reduce), or not at all (every rank holds and computes the whole).
    """

    name: str
    inputs: int
    outputs: int
    split: Split = "column"

    @property
    def parameters(self) -> int:
        """Return the number of weights."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Mixer:
    """`layers` identical token mixers: attention of some kind, or a linear recurrence.

    kind              "attention" (MHA, GQA, MQA), "mla" (latent), "indexer" (picks keys for sparse
                      attention), "linear" (Mamba-2, gated delta net, lightning: a state, no growing cache)
    cache_elements    numbers kept per token and layer (GQA: 2·kv_heads·head_dim; MLA: kv_lora_rank + rope_dim)
    state_elements    numbers kept per sequence and layer whatever its length (linear)
    prefill_flops     FLOP per (query token, key token) pair in a prompt
    decode_flops      the same where one token is decoded (MLA absorbs its projections, so it differs)
    window            tokens read at most by one query: 0 is all of them; a window (sliding) or top-k (sparse)
    cache_saturates   whether the cache stops growing at `window` as well (sliding: yes; top-k: no)
    state_bytes       bytes that the state takes (recurrences are kept in fp32, convolutions in bf16)
    token_flops       FLOP per token and layer beside matrices and pairs (linear: decay, update and read the state)
    vectors           weights that are in no matrix: norms, biases, convolutions
    """

    kind: Literal["attention", "mla", "indexer", "linear"]
    layers: int
    heads: int
    kv_heads: int
    matrices: tuple[Matrix, ...]
    cache_elements: int = 0
    state_elements: int = 0
    prefill_flops: float = 0.0
    decode_flops: float = 0.0
    window: int = 0
    cache_saturates: bool = False
    state_bytes: float = 0.0
    token_flops: float = 0.0
    vectors: int = 0


@dataclass(frozen=True, slots=True)
class FeedForward:
    """`layers` identical feed-forward layers, dense (`experts` is 0) or a mixture of experts.

    `matrices` are those of the dense layer, or of everything that each token passes in a mixture (shared
    experts, router); `expert_matrices` are those of one routed expert, of which `top_k` of `experts` serve
    each token. `vectors` and `expert_vectors` (of one expert) are weights in no matrix: norms, biases.
    """

    layers: int
    matrices: tuple[Matrix, ...]
    experts: int = 0
    top_k: int = 0
    expert_matrices: tuple[Matrix, ...] = ()
    vectors: int = 0
    expert_vectors: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the catalogue. `other_parameters` are held but not run by text (vision tower).

    `guessing_layers` are published beside `layers`, which they are no part of: they guess the tokens after the next
    (multi-token prediction).
    """

    name: str
    family: str
    layers: int
    hidden: int
    vocabulary: int
    context: int
    mixers: tuple[Mixer, ...]
    feedforwards: tuple[FeedForward, ...]
    tied_embeddings: bool
    native_weights: str  # precision that the weights are published in: "bf16", "fp8", "nvfp4", "mxfp4", ...
    other_parameters: int
    source: str
    date: str
    vectors: int = 0  # weights that text runs beside layers and token tables: final norm, table of positions
    guessing_layers: int = 0

    @property
    def embedding_parameters(self) -> int:
        """Return the weights of the token table (held once more by the head unless tied)."""
        return self.vocabulary * self.hidden

    @property
    def total_parameters(self) -> int:
        """Return all weights, as publishers count them: embeddings, every expert, other towers."""
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return tables + self.vectors + self.other_parameters + sum(self._layer_parameters(all_experts=True))

    @property
    def active_parameters(self) -> int:
        """Return the weights that one text token meets, embeddings and head included as publishers do."""
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return tables + self.vectors + sum(self._layer_parameters(all_experts=False))

    @property
    def expert_parameters(self) -> int:
        """Return the weights in the matrices of all routed experts."""
        return sum(ff.layers * ff.experts * sum(m.parameters for m in ff.expert_matrices) for ff in self.feedforwards)

    @property
    def matrix_parameters(self) -> int:
        """Return the weights in the matrices of the layers, of experts and others."""
        mixers = sum(mixer.layers * sum(m.parameters for m in mixer.matrices) for mixer in self.mixers)
        forwards = sum(ff.layers * sum(m.parameters for m in ff.matrices) for ff in self.feedforwards)
        return mixers + forwards + self.expert_parameters

    def weight_bytes(self, precision: str) -> float:
        """Return bytes of all weights where the matrices of the layers are in `precision`.

        Token tables, norms and towers stay in bf16 where `precision` is narrower, as publishers leave them; so
        does everything but the experts in MXFP4, which is published for experts alone.
        """
        narrow, rest = PRECISION_BYTES[precision], max(PRECISION_BYTES[precision], PRECISION_BYTES["bf16"])
        mixed = precision == "mxfp4" and self.expert_parameters > 0
        narrowed = self.expert_parameters if mixed else self.matrix_parameters
        return narrow * narrowed + rest * (self.total_parameters - narrowed)

    def cache_bytes_per_token(self, precision: str = "bf16") -> float:
        """Return bytes of KV cache that one more token adds for good, over all layers."""
        return PRECISION_BYTES[precision] * sum(
            mixer.layers * mixer.cache_elements for mixer in self.mixers if not mixer.cache_saturates
        )

    def window_bytes_per_token(self, precision: str = "bf16") -> float:
        """Return bytes of KV cache per token that layers with a window keep, up to that window, over all layers."""
        return PRECISION_BYTES[precision] * sum(
            mixer.layers * mixer.cache_elements for mixer in self.mixers if mixer.cache_saturates
        )

    @property
    def state_bytes(self) -> float:
        """Return bytes of state per sequence, whatever its length, over all layers."""
        return sum(mixer.layers * mixer.state_bytes for mixer in self.mixers)

    def _layer_parameters(self, *, all_experts: bool) -> list[int]:
        mixers = [mixer.layers * (mixer.vectors + sum(m.parameters for m in mixer.matrices)) for mixer in self.mixers]
        forwards = [
            ff.layers
            * (
                ff.vectors
                + sum(m.parameters for m in ff.matrices)
                + (ff.experts if all_experts else ff.top_k)
                * (ff.expert_vectors + sum(m.parameters for m in ff.expert_matrices))
            )
            for ff in self.feedforwards
        ]
        return mixers + forwards

"""The techniques that there are, in the order in which they are applied: one line and one file each.

First what changes the layout, then what data is held in, then how operators run, then what a step yields.
"""

from __future__ import annotations

import importlib

from sonde.errors import unknown
from sonde.techniques.technique import Technique

#: name -> module of this folder, which holds it as TECHNIQUE
TECHNIQUES: dict[str, str] = {
    "disaggregation": "disaggregation",
    "prefix-cache": "prefix_cache",
    "live-migration": "live_migration",
    "distributed-attention": "distributed_attention",
    "chunked-prefill": "chunked_prefill",
    "non-blocking-pipeline": "non_blocking_pipeline",
    "power-cap": "power_cap",
    "sequence-parallel": "sequence_parallel",
    "expert-placement": "expert_placement",
    "expert-dispatch": "expert_dispatch",
    "node-limited-routing": "node_limited_routing",
    "lambda-attention": "lambda_attention",
    "low-bit-weights": "low_bit_weights",
    "w4a8": "w4a8",
    "w4a4": "w4a4",
    "w2a8kv4": "w2a8kv4",
    "pruning": "pruning",
    "fused-layers": "fused_layers",
    "two-microbatches": "two_microbatches",
    "peer-memory": "peer_memory",
    "nano-batches": "nano_batches",
    "padding-elimination": "padding_elimination",
    "async-scheduling": "async_scheduling",
    "multi-token-prediction": "multi_token_prediction",
    "speculative-decoding": "speculative_decoding",
    "token-budget": "token_budget",
}


def technique(name: str, path: str = "techniques") -> Technique:  # type: ignore[type-arg]
    """Return the technique of that name. Raises InputError, with the nearest name, where there is none."""
    if name not in TECHNIQUES:
        raise unknown(path, name, TECHNIQUES, "technique", see="sonde show techniques")
    found: Technique = importlib.import_module(f"sonde.techniques.{TECHNIQUES[name]}").TECHNIQUE  # type: ignore[type-arg]
    return found

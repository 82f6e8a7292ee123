"""Memory: what is held where, against counts by hand and against what real engines report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cost_models import A100, H100, LLAMA_8B, LLAMA_70B, MIXTRAL, OPT_13B, OPT_66B, RTX_4090, gqa, latent

from sonde.catalogue.model import Model
from sonde.cost.compile import compile_replica
from sonde.cost.memory import fit
from sonde.deployment.tree import Batching, Replica
from sonde.errors import CannotError

OPEN_LOOP = Path(__file__).parents[1].parent / "shared" / "data" / "open_loop"


def choose(model: Model, **change: object) -> Replica:
    return Replica.model_validate({"model": model.name, "device": "any"} | change)


def test_weights_of_a_dense_model_are_cut_evenly() -> None:
    whole = fit(LLAMA_8B, H100, choose(LLAMA_8B)).weights
    assert whole == 2 * LLAMA_8B.total_parameters
    assert fit(LLAMA_8B, H100, choose(LLAMA_8B, tensor_parallel=8)).weights == pytest.approx(whole / 8)


def test_key_value_heads_fewer_than_the_ranks_are_held_again_by_each() -> None:
    sixteen = fit(LLAMA_70B, H100, choose(LLAMA_70B, tensor_parallel=16))
    even = 2 * LLAMA_70B.total_parameters / 16
    repeated = 80 * 2 * 8192 * 8 * 128 * (1 / 8 - 1 / 16) * 2
    assert sixteen.weights == pytest.approx(even + repeated)
    blocks = [
        compile_replica(LLAMA_70B, H100, choose(LLAMA_70B, tensor_parallel=n)).memory.block_bytes for n in (4, 8, 16)
    ]
    assert blocks == [80 * 2 * 8 * 128 * 2 * 16] * 2 + [80 * 2 * 8 * 128 * 2 * 16 * 2]


def test_latent_caches_are_held_by_every_rank() -> None:
    model = latent()
    for ranks in (1, 8):
        replica = choose(model, tensor_parallel=ranks, weights="fp8", activations="fp8")
        assert compile_replica(model, H100, replica).memory.block_bytes == 4 * 576 * 2 * 16 * ranks


def test_experts_are_spread_over_their_ranks_and_attention_is_not() -> None:
    spread = choose(MIXTRAL, data_parallel=4, expert_parallel=4)
    split = choose(MIXTRAL, data_parallel=4)
    assert fit(MIXTRAL, H100, spread).weights == pytest.approx(fit(MIXTRAL, H100, split).weights)
    expert = 3 * 4096 * 14336
    whole = 2 * MIXTRAL.total_parameters
    assert fit(MIXTRAL, H100, spread).weights == pytest.approx(whole - 2 * 32 * 6 * expert)


def test_tables_stay_in_sixteen_bits_when_layers_are_quantised() -> None:
    small = fit(LLAMA_8B, H100, choose(LLAMA_8B, weights="int4")).weights
    tables = 2 * LLAMA_8B.embedding_parameters
    assert small == pytest.approx(2 * tables + (LLAMA_8B.total_parameters - tables) * 0.53125)


def test_the_fullest_stage_of_a_pipeline_counts() -> None:
    layers = 2 * (LLAMA_8B.total_parameters - 2 * LLAMA_8B.embedding_parameters)
    table = 2 * LLAMA_8B.embedding_parameters
    assert fit(LLAMA_8B, H100, choose(LLAMA_8B, pipeline_parallel=4)).weights == pytest.approx(layers / 4 + table)
    assert fit(LLAMA_8B, H100, choose(LLAMA_8B, pipeline_parallel=3)).weights == pytest.approx(layers * 11 / 32 + table)


def test_windowed_caches_are_counted_apart() -> None:
    model = replace(LLAMA_8B, mixers=(gqa(8, 4096, 32, 8, 128), gqa(24, 4096, 32, 8, 128, window=1024)))
    memory = compile_replica(model, H100, choose(model)).memory
    assert memory.block_bytes == 8 * 2048 * 2 * 16
    assert memory.window_block_bytes == 24 * 2048 * 2 * 16


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(CannotError) as error:
        compile_replica(LLAMA_70B, RTX_4090, choose(LLAMA_70B))
    text = str(error.value)
    assert "131 GiB for weights" in text
    assert "tensor_parallel 8" in text
    assert not fit(LLAMA_70B, RTX_4090, choose(LLAMA_70B)).fits
    assert fit(LLAMA_70B, RTX_4090, choose(LLAMA_70B, tensor_parallel=8)).fits


def test_capacity_of_opt_on_a100_is_what_distserve_states() -> None:
    """Tokens of KV cache that LLMServe/DistServe (Apache-2.0) gives for its A100-80G runs.

    The share of memory it may use is not stated with them: 0.95 is taken for all four.
    """
    stated = {(OPT_13B, 1): 66_144, (OPT_13B, 2): 163_008, (OPT_13B, 4): 356_736, (OPT_66B, 2): 11_600}
    for (model, ranks), tokens in stated.items():
        replica = choose(
            model, tensor_parallel=ranks, memory_fraction=0.95, batching=Batching(max_batch=256, token_budget=2048)
        )
        assert fit(model, A100, replica).kv_tokens == pytest.approx(tokens, rel=0.10)


@pytest.mark.data
def test_capacity_of_llama_on_a_4090_is_what_vllm_reports() -> None:
    meta = OPEN_LOOP / "RTX4090" / "Llama-3.1-8B" / "meta.json"
    if not meta.exists():
        pytest.skip(f"measurements are not there: {meta}")
    found = json.loads(meta.read_text())
    settings = found["engine_kwargs"]
    batching = Batching(max_batch=settings["max_num_seqs"], token_budget=settings["max_num_batched_tokens"])
    replica = choose(LLAMA_8B, memory_fraction=found["kv_cache"]["gpu_memory_utilization"], batching=batching)
    assert fit(LLAMA_8B, RTX_4090, replica).kv_tokens == pytest.approx(found["kv_cache"]["num_kv_tokens"], rel=0.10)


def test_a_step_holds_three_hidden_states_the_widest_layer_and_the_logits_twice() -> None:
    replica = choose(LLAMA_8B, batching=Batching(token_budget=1000, max_batch=10))
    layer = 1000 * (3 * 4096 + 1.5 * 2 * 14336) * 2
    logits = 10 * LLAMA_8B.vocabulary * 4 * 2
    assert fit(LLAMA_8B, H100, replica).activations == pytest.approx(layer + logits)


def test_every_device_of_a_replica_swaps_over_its_own_way_to_the_host() -> None:
    one, four = (compile_replica(LLAMA_8B, H100, choose(LLAMA_8B, tensor_parallel=n)).memory for n in (1, 4))
    assert one.swap_bytes_per_s == H100.host.bandwidth
    assert four.swap_bytes_per_s == 4 * one.swap_bytes_per_s

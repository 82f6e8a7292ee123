"""The cost model against its naive twin, and what must hold of any cost model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cost_models import (
    A100,
    H100,
    LLAMA_8B,
    LLAMA_70B,
    MIXTRAL,
    RTX_4090,
    dense,
    gqa,
    latent,
    mixture,
)
from cost_twin import Twin
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.device import Device, Link, MemoryTier
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.model import Model
from sonde.cost.collectives import all_reduce
from sonde.cost.compile import compile_replica, step_table
from sonde.cost.experts import busiest_load, distinct_experts
from sonde.cost.explain import explain
from sonde.cost.money import carbon_g, electricity_usd, hourly_cost
from sonde.cost.shard import arithmetic, shard
from sonde.cost.table import Coefficients, StepTable, coefficients
from sonde.deployment.tree import Batching, Replica
from sonde.errors import CannotError, InputError

SMALL = Batching(max_batch=96, token_budget=512)


def choose(model: Model, device: Device = H100, **change: object) -> Replica:
    values = {"model": model.name, "device": device.name, "engine": "generic", "batching": SMALL} | change
    return Replica.model_validate(values)


def table(model: Model, device: Device, replica: Replica) -> StepTable:
    return step_table(shard(model, device, replica, efficiencies(device)))


def seconds(model: Model, device: Device, replica: Replica, step: tuple[int, int, int]) -> float:
    prompt, batch, context = step
    return coefficients(table(model, device, replica).time, prompt, batch, prompt**2 / 2, batch * context)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Model, Device, Replica]:
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4]))
    tensor = draw(st.sampled_from([n for n in (1, 2, 4, 8) if heads % n == 0]))
    hidden = 128 * draw(st.integers(2, 40))
    layers = draw(st.integers(2, 6))
    change: dict[str, object] = {"tensor_parallel": tensor, "pipeline_parallel": draw(st.sampled_from([1, 2]))}
    if draw(st.booleans()):
        experts = draw(st.sampled_from([8, 16, 64]))
        model = mixture(
            "drawn", layers, hidden, heads, kv_heads, experts=experts, top_k=draw(st.sampled_from([1, 2, 6, 8])),
            inner=64 * draw(st.integers(1, 40)), shared=draw(st.sampled_from([0, 1024])),
        )  # fmt: skip
        data = draw(st.sampled_from([1, 2, 4]))
        ranks = [n for n in (1, 2, 4, 8, 16, 32) if tensor * data % n == 0 and n <= experts]
        change |= {"data_parallel": data, "expert_parallel": draw(st.sampled_from(ranks))}
    else:
        model = dense("drawn", layers, hidden, heads, kv_heads, 128 * draw(st.integers(2, 80)), 32000)
    change["weights"], change["activations"] = draw(
        st.sampled_from([("bf16", "bf16"), ("fp8", "bf16"), ("int4", "bf16"), ("fp8", "fp8"), ("int8", "int8")])
    )
    change["kv_cache"] = draw(st.sampled_from(["bf16", "fp8"]))
    return model, draw(st.sampled_from([A100, H100, RTX_4090])), choose(model, **change)


@settings(max_examples=60, deadline=None)
@given(
    cases(), st.integers(0, 8000), st.integers(0, 96), st.integers(1, 5000), st.sampled_from(["default", "distserve"])
)
def test_tables_equal_the_naive_twin(
    case: tuple[Model, Device, Replica], prompt: int, batch: int, context: int, engine: str
) -> None:
    model, device, replica = case
    prompt = max(prompt, 0 if batch else 1)
    reached = efficiencies(device, engine)
    made = step_table(shard(model, device, replica, reached)).time
    area, read = prompt**2 / 2, float(batch * context)
    expected = Twin(model, device, replica, reached).step(prompt, area, batch, read)
    assert coefficients(made, prompt, batch, area, read) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 4000), st.integers(0, 96), st.integers(0, 5000))
def test_explained_rows_add_up_to_the_table(
    case: tuple[Model, Device, Replica], prompt: int, batch: int, context: int
) -> None:
    model, device, replica = case
    prompt = max(prompt, 0 if batch else 1)
    rows = explain(model, device, replica, prompt, batch, context)
    made = table(model, device, replica)
    area, read = prompt**2 / 2, float(batch * context)
    for quantity, got in ((made.time, sum(r.seconds for r in rows)), (made.energy, sum(r.joules for r in rows))):
        assert got == pytest.approx(coefficients(quantity, prompt, batch, area, read), rel=1e-12)


def test_explained_rows_add_up_with_windows_and_states() -> None:
    window = replace(LLAMA_8B, mixers=(gqa(16, 4096, 32, 8, 128), gqa(12, 4096, 32, 8, 128, window=1000)))
    linear = replace(
        window.mixers[0], kind="linear", layers=4, cache_elements=0, prefill_flops=0.0, decode_flops=0.0,
        state_elements=524288, state_bytes=2097152.0, token_flops=2.6e6,
    )  # fmt: skip
    model = replace(window, mixers=(*window.mixers, linear))
    replica = choose(model, tensor_parallel=2)
    made = table(model, H100, replica)
    for prompt, batch, context in ((0, 5, 700), (0, 64, 3000), (300, 0, 0), (2500, 9, 1200)):
        near = min(prompt, 1000)
        by_hand = coefficients(made.time, prompt, batch, prompt**2 / 2, batch * context)
        by_hand += made.time.prefill_window * (near**2 / 2 + (prompt - near) * 1000)
        by_hand += made.time.read_window[batch] * batch * min(context, 1000)
        rows = explain(model, H100, replica, prompt, batch, context)
        assert sum(row.seconds for row in rows) == pytest.approx(by_hand, rel=1e-12)
    assert made.window == 1000
    assert compile_replica(model, H100, replica).memory.state_bytes == 4 * 2097152


@settings(max_examples=30, deadline=None)
@given(cases())
def test_more_tokens_sequences_and_context_never_take_less(case: tuple[Model, Device, Replica]) -> None:
    made = table(*case)
    for quantity in (made.time, made.energy):
        assert quantity.linear[0] == 0
        assert (np.diff(quantity.linear) >= -1e-12 * quantity.linear[-1]).all()
        assert quantity.decode[0] == 0
        alone = quantity.decode + quantity.linear[: len(quantity.decode)]  # a step that decodes and nothing else
        assert (np.diff(alone) >= -1e-12 * alone[-1]).all()
        assert quantity.slope > 0
        assert quantity.prefill > 0
        batch = np.arange(1, len(quantity.read))
        assert (quantity.read[1:] > 0).all()
        assert (quantity.read[1:] <= quantity.read[1] * (1 + 1e-12)).all()
        assert (np.diff(quantity.read[1:] * batch) >= -1e-18).all()


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 3000), st.integers(1, 96), st.integers(1, 5000), st.floats(1.0, 10.0))
def test_a_better_device_is_never_slower(
    case: tuple[Model, Device, Replica], prompt: int, batch: int, context: int, factor: float
) -> None:
    model, device, replica = case
    step = (prompt, batch, context)
    before = seconds(model, device, replica, step)
    memory = (MemoryTier("hbm", device.memory[0].bytes, device.memory[0].bandwidth * factor),)
    flops = {name: peak * factor for name, peak in device.flops.items()}
    link = Link(device.node.bandwidth * factor, device.node.latency_s / factor)
    for better in (replace(device, memory=memory), replace(device, flops=flops), replace(device, node=link)):
        assert seconds(model, better, replica, step) <= before * (1 + 1e-12)


def test_fewer_bits_never_move_more_bytes_nor_take_longer_where_memory_binds() -> None:
    order = ("fp32", "bf16", "fp8", "int4")
    for model in (LLAMA_8B, MIXTRAL, latent()):
        moved, spent = [], []
        for name in order:
            replica = choose(model, weights=name)
            moved.append(sum(row.bytes for row in explain(model, H100, replica, 0, 4, 1000)))
            spent.append(seconds(model, H100, replica, (0, 4, 1000)))
        assert moved == sorted(moved, reverse=True)
        assert spent == sorted(spent, reverse=True)
        caches = [seconds(model, H100, choose(model, kv_cache=name), (0, 64, 4000)) for name in ("bf16", "fp8", "int4")]
        assert caches == sorted(caches, reverse=True)


def test_weights_alone_in_few_bits_save_bytes_and_no_compute() -> None:
    prompt = (8000, 0, 0)
    full = seconds(LLAMA_8B, H100, choose(LLAMA_8B), prompt)
    assert seconds(LLAMA_8B, H100, choose(LLAMA_8B, weights="int4"), prompt) == pytest.approx(full, rel=0.01)
    both = seconds(LLAMA_8B, H100, choose(LLAMA_8B, weights="fp8", activations="fp8"), prompt)
    assert both < 0.9 * full


@pytest.mark.parametrize(
    ("weights", "activations", "expected"),
    [("bf16", "bf16", "bf16"), ("fp8", "bf16", "bf16"), ("fp8", "fp8", "fp8"), ("nvfp4", "nvfp4", "fp8"),
     ("nvfp4", "fp8", "fp8"), ("int4", "int8", "bf16"), ("fp32", "bf16", "fp32"), ("fp16", "fp16", "fp16")],
)  # fmt: skip
def test_arithmetic_is_the_wider_operand_or_the_next_that_the_device_has(
    weights: str, activations: str, expected: str
) -> None:
    assert arithmetic(H100, weights, activations) == expected


def test_a_device_without_any_arithmetic_for_a_precision_is_refused() -> None:
    npu = replace(H100, flops={"int8": 4e13})
    with pytest.raises(CannotError, match="no arithmetic for bf16"):
        compile_replica(LLAMA_8B, npu, choose(LLAMA_8B, npu))


def test_distinct_experts_are_the_expectation_of_a_drawing() -> None:
    rng = np.random.default_rng(7)
    for experts, top_k, tokens in ((8, 2, 3), (64, 6, 10), (256, 8, 40)):
        drawn = [
            len({int(e) for _ in range(tokens) for e in rng.choice(experts, top_k, replace=False)}) for _ in range(800)
        ]
        assert float(distinct_experts(experts, top_k, np.array([float(tokens)]))[0]) == pytest.approx(
            float(np.mean(drawn)), rel=0.02
        )
    assert distinct_experts(4, 4, np.array([0.0, 1.0, 9.0])).tolist() == [0.0, 4.0, 4.0]


def test_the_busiest_rank_is_near_the_expectation_of_a_drawing() -> None:
    rng = np.random.default_rng(11)
    forward = MIXTRAL.feedforwards[0]
    forward = replace(forward, experts=64, top_k=4)
    for ranks, tokens in ((4, 200), (8, 1000), (16, 4000)):
        each = 64 // ranks
        drawn = []
        for _ in range(60):
            chosen = rng.random((tokens, 64)).argpartition(4, axis=1)[:, :4] // each
            drawn.append(np.bincount(chosen.ravel(), minlength=ranks).max())
        got = float(busiest_load(forward, ranks, np.array([float(tokens)]))[0])
        assert got == pytest.approx(float(np.mean(drawn)), rel=0.12)
        assert got >= tokens * 4 / ranks


def test_a_pipeline_runs_microbatches_of_the_batch_and_whole_prompts_through_all_layers() -> None:
    flat, staged = choose(LLAMA_70B, tensor_parallel=4), choose(LLAMA_70B, tensor_parallel=4, pipeline_parallel=2)
    one = table(LLAMA_70B, H100, flat).time
    two = table(LLAMA_70B, H100, staged).time
    assert (two.linear[1:] >= one.linear[1:]).all()  # a prompt passes every stage, one after the other
    assert two.linear[4000] == pytest.approx(one.linear[4000], rel=0.02)  # but for the hand-overs
    assert two.prefill == pytest.approx(one.prefill)
    alone = two.linear[: len(two.decode)] + two.decode
    assert alone[7] == pytest.approx(alone[8], rel=1e-3)
    assert alone[64] < one.linear[64] + one.decode[64]
    assert two.read[1] == pytest.approx(one.read[1])
    assert two.read[8] == pytest.approx(one.read[8] / 2)


def test_steps_past_the_table_go_on_by_its_last_slope() -> None:
    made = table(LLAMA_8B, H100, choose(LLAMA_8B)).time
    last = len(made.linear) - 1
    longer = table(LLAMA_8B, H100, choose(LLAMA_8B, batching=Batching(token_budget=16000))).time
    assert len(longer.linear) == 16001
    assert coefficients(made, 16000, 0, 0, 0) == pytest.approx(coefficients(longer, 16000, 0, 0, 0), rel=1e-3)
    assert last == 8192
    huge = table(LLAMA_8B, H100, choose(LLAMA_8B, batching=Batching(token_budget=1_000_000))).time
    assert len(huge.linear) == 16385


def test_energy_lies_between_a_running_device_at_rest_and_at_its_peak() -> None:
    for model, change in ((LLAMA_8B, {}), (LLAMA_70B, {"tensor_parallel": 4}), (MIXTRAL, {"tensor_parallel": 4})):
        replica = choose(model, **change)
        made = table(model, H100, replica)
        for step in ((0, 1, 500), (0, 96, 2000), (4000, 0, 0), (512, 64, 1000)):
            prompt, batch, context = step
            parts = (prompt, batch, prompt**2 / 2, batch * context)
            watts = coefficients(made.energy, *parts) / coefficients(made.time, *parts) / replica.devices
            assert 0.28 * 700 <= watts <= 700


def test_money() -> None:
    replica = choose(LLAMA_70B, tensor_parallel=4)
    assert hourly_cost(H100, replica) == 8.0
    assert hourly_cost(H100, replica, usd_per_device_hour=3.5) == 14.0
    assert hourly_cost(replace(H100, usd_per_hour={}), replica) == 0.0
    assert electricity_usd(3.6e6, 0.25, 1.2) == pytest.approx(0.3)
    assert carbon_g(7.2e6, 400, 1.5) == pytest.approx(1200)
    with pytest.raises(InputError, match="usd_per_device_hour"):
        hourly_cost(H100, replica, usd_per_device_hour=math.nan)


@pytest.mark.parametrize(
    ("model", "change", "text"),
    [
        (LLAMA_8B, {"tensor_parallel": 3}, "must divide the 32 heads"),
        (dense("odd", 2, 768, 12, 4, 2048, 1000), {"tensor_parallel": 6}, "4 key-value heads"),
        (LLAMA_8B, {"pipeline_parallel": 33}, "at most the 32 layers"),
        (LLAMA_8B, {"tensor_parallel": 2, "expert_parallel": 2}, "has no experts"),
        (LLAMA_8B, {"data_parallel": 2}, "has no experts"),
        (MIXTRAL, {"tensor_parallel": 16, "expert_parallel": 16}, "at most the 8 experts"),
    ],
)
def test_impossible_parallelism_is_refused_with_the_reason(model: Model, change: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        compile_replica(model, H100, choose(model, **change))


def test_an_empty_step_cannot_be_explained() -> None:
    with pytest.raises(InputError, match="at least 1 token"):
        explain(LLAMA_8B, H100, choose(LLAMA_8B), 0, 0)


def test_the_engine_carries_what_the_simulator_needs() -> None:
    batching = Batching(policy="prefill-first", max_batch=32, token_budget=4096, preemption="swap")
    engine = compile_replica(LLAMA_70B, H100, choose(LLAMA_70B, tensor_parallel=4, batching=batching), purchase="spot")
    assert (engine.batching, engine.max_batch, engine.token_budget) == ("prefill-first", 32, 4096)
    assert (engine.preemption, engine.devices, engine.idle_w, engine.usd_per_hour) == ("swap", 4, 240.0, 8.0)
    for quantity in (engine.table.time, engine.table.energy):
        assert isinstance(quantity, Coefficients)
        assert len(quantity.decode) == len(quantity.read) == len(quantity.read_window) == 33
        for column in (quantity.linear, quantity.decode, quantity.read, quantity.read_window):
            assert column.dtype == np.float64
            assert column.flags.c_contiguous


def test_an_all_reduce_across_nodes_sends_a_share_of_the_message_over_the_fabric() -> None:
    part = shard(LLAMA_70B, H100, choose(LLAMA_70B, tensor_parallel=16), efficiencies(H100))
    small, large = np.array([1e6]), np.array([1e9])
    sums = [all_reduce(part, "sum", 1, 16, size) for size in (small, large)]
    near = 2 * 7 / 8 * (1e9 - 1e6)  # inside a node of 8
    far = 2 * 1 / 2 * (1e9 - 1e6) / 8  # between two nodes, each device with its eighth
    assert sums[1].sent[0] - sums[0].sent[0] == pytest.approx(near + far)
    inside = shard(LLAMA_70B, H100, choose(LLAMA_70B, tensor_parallel=8), efficiencies(H100))
    grown = [float(all_reduce(inside, "sum", 1, 8, size).link_s[0]) for size in (small, large)]
    fabric = (sums[1].link_s[0] - sums[0].link_s[0]) - (grown[1] - grown[0])
    assert fabric == pytest.approx(far / H100.fabric.bandwidth / efficiencies(H100).collective.memory, rel=0.01)


def test_a_device_never_draws_more_than_its_peak() -> None:
    greedy = efficiencies(H100)
    greedy = replace(greedy, power=replace(greedy.power, compute=50.0, memory=50.0))
    replica = choose(LLAMA_8B)
    made = step_table(shard(LLAMA_8B, H100, replica, greedy))
    step = (2000, 32, 32 * 700.0)
    watts = coefficients(made.energy, step[0], step[1], 2e6, step[2]) / coefficients(
        made.time, step[0], step[1], 2e6, step[2]
    )
    assert watts <= H100.peak_w * (1 + 1e-9)
    assert watts > 0.9 * H100.peak_w

"""Narrow weights, activations and caches: bytes, arithmetic and general cores against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.device import Device
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.cost.explain import step_rows
from sonde.cost.memory import weight_bytes
from sonde.cost.operators import product, read_operators, token_operators
from sonde.cost.power import activity_joules, running_w
from sonde.cost.power import held as held_to_cap
from sonde.cost.roofline import bound
from sonde.cost.shard import Kernel, Shard, shard
from sonde.cost.table import Engine
from sonde.deployment.load import load
from sonde.deployment.tree import Batching, Replica
from sonde.errors import InputError
from sonde.sim.simulate import simulate
from sonde.techniques import low_bit_weights, tiles
from sonde.techniques.compose import chosen, compiled
from sonde.workload.requests import requests

LLAMA, A100, H100, L40S, U280 = "llama-2-7b", "a100-sxm-80gb", "h100-sxm", "l40s", "alveo-u280"
LAYERS = 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # weights of Llama-2-7B in matrices of layers


def part_of(where: str, *techniques: Any, name: str = LLAMA, **choices: Any) -> Shard:
    """Return a replica's share as techniques leave it, operators too."""
    replica = Replica(model=name, device=where, **choices)
    part = shard(model(name), device(where), replica, efficiencies(device(where)))
    for one in chosen(techniques):
        if one.technique.shard:
            part = one.technique.shard(part, one.parameters)
    return part


def edited(part: Shard, operators: list[Any], *techniques: Any) -> list[Any]:
    for one in chosen(techniques):
        if one.technique.operators:
            operators = one.technique.operators(part, operators, one.parameters)
    return operators


def engine_of(where: str, *techniques: Any, name: str = LLAMA, **choices: Any) -> Engine:
    replica = Replica(model=name, device=where, batching=Batching(max_batch=64), **choices)
    return compiled(model(name), device(where), replica, chosen(techniques))


def seconds(where: str, rows: int, *techniques: Any, side: int = 4096) -> float:
    """Return the seconds of a square product of `rows` rows."""
    part = part_of(where, *techniques)
    kernel = Kernel("x", side, side, side * side, False)
    (found,) = edited(part, [product(part, kernel, 1, np.array([float(rows)]), "x")], *techniques)
    return float(bound(part, found).seconds[0])


# ---- weights of any width


@pytest.mark.parametrize(
    ("number", "bits"),
    [("uint1", 1), ("int3", 3), ("uint4", 4), ("int8", 8), ("float3_e1m1", 3), ("float6_e3m2", 6), ("float8_e5m2", 8)],
)
def test_a_number_is_as_wide_as_its_name_says(number: str, bits: int) -> None:
    assert low_bit_weights.width(number) == bits


@pytest.mark.parametrize("number", ["int0", "int9", "uint16", "float2_e1m0", "float6_e4m2", "float4", "e2m1", ""])
def test_numbers_that_there_are_none_of_are_refused(number: str) -> None:
    with pytest.raises(InputError, match="low-bit-weights"):
        chosen([{"low-bit-weights": {"number": number}}])


@given(bits=st.integers(1, 8), group=st.sampled_from([32, 64, 128, 256]))
def test_weights_take_their_bits_and_their_share_of_a_scale(bits: int, group: int) -> None:
    before = part_of(H100)
    after = part_of(H100, {"low-bit-weights": {"number": f"uint{bits}", "group": group}})
    assert weight_bytes(before) - weight_bytes(after) == pytest.approx(LAYERS * (2 - bits / 8 - 2 / group))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_lone_row_gains_what_its_bytes_shrink_by(bits: int) -> None:
    """On an L40S, whose general cores widen 22.9 T weights/s and whose memory brings 0.7 TB/s, memory is the limit."""
    use = {"low-bit-weights": {"number": f"uint{bits}"}}
    part, plain = part_of(L40S, use), part_of(L40S)
    side = 16384
    curve = plain.efficiencies.of("gemm/bf16")
    gained = (seconds(L40S, 1, side=side) - curve.overhead_s) / (seconds(L40S, 1, use, side=side) - curve.overhead_s)
    assert gained == pytest.approx(2 / part.weight_bytes, rel=0.03)  # activations and arithmetic


def test_general_cores_stop_the_gain_on_an_a100() -> None:
    """2 bits: 2.0 TB/s · 0.8 / 0.266 B are more weights a second than 19.5 TFLOP/s / 2 / 2 instructions widen."""
    times = {
        bits: seconds(A100, 1, {"low-bit-weights": {"number": f"uint{bits}"}}, side=16384) for bits in (8, 4, 2, 1)
    }
    assert times[8] > times[4] > times[2]
    assert times[1] == pytest.approx(times[2], rel=0.01)
    start = efficiencies(device(A100)).of("gemm/bf16").overhead_s
    assert times[1] - start == pytest.approx(16384**2 * 2 / (19.5e12 / 2), rel=0.01)
    free = seconds(A100, 1, {"low-bit-weights": {"number": "uint1", "instructions": 0}}, side=16384)
    assert free < 0.7 * times[1]


def test_prompts_gain_nothing_from_narrow_weights() -> None:
    """Many rows are bound by arithmetic, which is that of 16 bits; widening runs beside it, once a tile."""
    wide, narrow = seconds(H100, 8192), seconds(H100, 8192, "low-bit-weights")
    assert narrow == pytest.approx(wide, rel=0.03)


def test_more_tiles_widen_more() -> None:
    slow = {"low-bit-weights": {"instructions": 100}}
    one, two = seconds(A100, tiles.TILE_ROWS, slow), seconds(A100, tiles.TILE_ROWS + 1, slow)
    start = efficiencies(device(A100)).of("gemm/bf16").overhead_s
    assert (two - start) / (one - start) == pytest.approx(2, rel=0.01)


# ---- integers


def test_apex4_a_group_of_128_loses_on_an_a100_and_wins_on_a_3090() -> None:
    """Fitted on the first, predicted on the second (APEX4: 0.43 to 0.47 and 2.0 to 2.5)."""
    use = {"w4a4": {"four": 1.0, "group": 128}}
    assert 0.43 <= seconds(A100, 4096) / seconds(A100, 4096, use) <= 0.47
    assert 2.0 <= seconds("rtx-3090", 4096) / seconds("rtx-3090", 4096, use) <= 2.5


@settings(max_examples=20)
@given(rows=st.integers(1, 8192), group=st.sampled_from([32, 64, 128, 256]))
def test_what_scaling_takes_is_results_by_groups(rows: int, group: int) -> None:
    """Against a count by hand: rows · outputs · inputs/group · instructions over the general cores' rate."""

    def use(instructions: float) -> dict[str, Any]:
        return {"w4a4": {"group": group, "dequantisation": instructions}}

    count = rows * 4096 * (4096 / group)
    assert seconds(A100, rows, use(10)) - seconds(A100, rows, use(0)) == pytest.approx(
        10 * count / (19.5e12 / 2), rel=1e-6
    )


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 8192), instructions=st.floats(0.1, 100), where=st.sampled_from([A100, H100, L40S]))
def test_what_scaling_draws_is_arithmetic_at_the_peak_of_general_cores(
    rows: int, instructions: float, where: str
) -> None:
    """Against a count by hand: results · groups · instructions, each at its share of the peak power."""

    def drawn(count: float) -> tuple[float, float, float]:
        use = {"w4a4": {"dequantisation": count, "conversion": 0, "cache_bits": 16}}
        part = part_of(where, use)
        kernel = Kernel("x", 4096, 4096, 4096**2, False)
        (found,) = edited(part, [product(part, kernel, 1, np.array([float(rows)]), "x")], use)
        taken = bound(part, found).seconds
        most = (device(where).peak_w - running_w(part)) * float(taken[0])
        return float(activity_joules(part, found, taken)[0]), most, part.efficiencies.power.compute

    free, _, share = drawn(0)
    joules, most, _ = drawn(instructions)
    scaling = rows * 4096 * (4096 / 128) * instructions / (device(where).flops["fp32"] / 2)
    assert joules == pytest.approx(min(free + share * device(where).peak_w * scaling, most), rel=1e-6)
    assert joules > free


@pytest.mark.parametrize("where", [A100, H100])
@pytest.mark.parametrize(
    "technique", ["w4a4", "w4a8", {"w4a8": {"folded": False}}, "w2a8kv4", {"low-bit-weights": {"number": "uint2"}}]
)
def test_steps_draw_power_for_what_general_cores_do(where: str, technique: Any) -> None:
    name = technique if isinstance(technique, str) else next(iter(technique))
    given_ = {} if isinstance(technique, str) else technique[name]
    idle = {"instructions": 0} if name == "low-bit-weights" else dict.fromkeys(
        ("dequantisation", "conversion", "cache_reading"), 0
    )  # fmt: skip
    free, busy = (engine_of(where, {name: given_ | more}) for more in (idle, {}))
    part = part_of(where, technique)
    for n in (1, 64, 2048):
        joules, seconds_ = busy.table.energy.linear[n], busy.table.time.linear[n]
        assert joules > free.table.energy.linear[n] or name != "w4a4"  # a full device draws its peak, whatever it does
        assert joules >= free.table.energy.linear[n] * (1 - 1e-9)
        assert running_w(part) <= joules / seconds_ <= device(where).peak_w * (1 + 1e-9)


def test_scaling_slows_with_the_clock() -> None:
    """Where a cap halves the clock, what general cores do takes twice as long, and the device draws the cap."""
    use = {"w4a4": {"four": 1.0}}

    def product_of(cap: str | None) -> Any:
        part = part_of(A100, use, **({"power_cap": cap} if cap else {}))
        kernel = Kernel("x", 4096, 4096, 4096**2, False)
        (found,) = edited(part, [product(part, kernel, 1, np.array([4096.0]), "x")], use)
        return held_to_cap(part, found)

    fast, slow = product_of(None), product_of("250 W")
    clock = float(np.ravel(fast.compute)[0] / np.ravel(slow.compute)[0])
    assert 0.15 < clock < 0.9
    assert float(np.ravel(slow.cores)[0]) == pytest.approx(float(np.ravel(fast.cores)[0]) / clock)
    assert float(slow.seconds[0]) > float(fast.seconds[0])


def test_a_group_is_no_longer_than_the_inputs() -> None:
    times = [seconds(A100, 512, {"w4a8": {"group": group, "folded": False}}) for group in (4096, 65536)]
    assert times[0] == pytest.approx(times[1], rel=0.01)  # but for the bytes of scales


@pytest.mark.parametrize(("where", "measured"), [(A100, 1.2), (L40S, 1.4)])
def test_qserve_w4a8kv4_gains_as_measured(where: str, measured: float) -> None:
    """Tokens/s of Llama-3-8B, 1,024 tokens in and 512 out, saturated, over the best of TensorRT-LLM's precisions."""

    def rate(precision: str, *uses: Any) -> float:
        tree = load({
            "sites": [{"pools": [{"replica": {
                "model": "llama-3-8b", "device": where, "engine": "trtllm", "weights": precision,
                "activations": precision, "kv_cache": precision,
            }}]}],
            "techniques": list(uses),
        })  # fmt: skip
        return 1 / float(simulate(tree, requests([0.0] * 256, [1024] * 256, [512] * 256)).finish_s.max())

    best = max(rate("fp16"), rate("int8"), rate("fp16", "low-bit-weights"))
    assert rate("fp16", {"w4a8": {"cache_bits": 4}}) / best == pytest.approx(measured, rel=0.1)


def test_half_the_groups_in_eight_bits_take_three_quarters_of_the_arithmetic() -> None:
    """Without general cores: work of 4 bits is half that of 8 on an A100, and the same where there is none."""

    def time(where: str, four: float) -> float:
        free = {"four": four, "dequantisation": 0, "conversion": 0, "cache_reading": 0, "cache_bits": 16}
        part = part_of(where, {"w4a4": free})
        kernel = Kernel("x", 4096, 4096, 4096**2, False)
        (found,) = edited(part, [product(part, kernel, 1, np.array([8192.0]), "x")], {"w4a4": free})
        return float(np.ravel(bound(part, found).compute)[0])

    assert time(A100, 0.5) / time(A100, 0.0) == pytest.approx(0.75)
    assert time(A100, 1.0) / time(A100, 0.0) == pytest.approx(0.5)
    assert time(H100, 1.0) == pytest.approx(time(H100, 0.0))  # no 4-bit arithmetic


def test_w4a8_is_w4a4_with_no_group_in_four_bits() -> None:
    mixed = {"w4a4": {"four": 0.0, "cache_bits": 16}}
    for rows in (1, 100, 5000):
        assert seconds(A100, rows, {"w4a8": {"folded": False, "conversion": 0.5}}) == seconds(A100, rows, mixed)


def test_folded_scales_leave_one_scaling_a_result() -> None:
    def use(instructions: float, **more: bool) -> dict[str, Any]:
        return {"w4a8": {"dequantisation": instructions, **more}}

    added = seconds(A100, 1024, use(20)) - seconds(A100, 1024, use(0))
    assert added == pytest.approx(20 * 1024 * 4096 / (19.5e12 / 2), rel=1e-6)
    by_group = seconds(A100, 1024, use(20, folded=False)) - seconds(A100, 1024, use(0, folded=False))
    assert by_group / added == pytest.approx(4096 / 128, rel=1e-6)
    assert seconds(A100, 4096, "w4a8") < seconds(A100, 4096)  # QServe's prompts gain on an A100, where COMET's lose


def test_caches_in_four_bits_hold_almost_four_times_the_tokens() -> None:
    wide, narrow = engine_of(A100, "w4a8"), engine_of(A100, {"w4a8": {"cache_bits": 4}})
    assert wide.memory.capacity_bytes == narrow.memory.capacity_bytes
    assert wide.memory.block_bytes / narrow.memory.block_bytes == pytest.approx(2 / (0.5 + 4 / 128))


def test_a_cache_that_is_widened_slower_than_it_is_read_takes_as_long_as_widening() -> None:
    uses = [{"w4a8": {"cache_bits": 4, "cache_reading": reading}} for reading in (0, 100)]
    found = []
    for use in uses:
        part = part_of(A100, use)
        (read,) = edited(part, read_operators(part, windowed=False), use)
        found.append(float(np.ravel(bound(part, read).seconds)[0]))
    numbers = 2 * 32 * 4096
    assert found[1] == pytest.approx(100 * numbers / (19.5e12 / 2), rel=1e-6)
    assert found[0] < found[1]


def test_two_bits_take_half_of_four_and_attention_is_of_integers() -> None:
    part = part_of(U280, "w2a8kv4", memory_fraction=1.0)
    assert part.weight_bytes == 0.25 + 2 / 128
    assert part.attention == "int8"
    (read,) = read_operators(part, windowed=False)
    assert read.precision == "int8"


def test_packed_multipliers_halve_the_arithmetic() -> None:
    free = {"dequantisation": 0, "conversion": 0, "cache_reading": 0}
    one, two = (seconds(U280, 2048, {"w2a8kv4": free | {"packing": packing}}) for packing in (1, 2))
    assert one / two == pytest.approx(2, rel=0.1)


# ---- 2:4, and attention that ends


def test_pruning_halves_arithmetic_and_adds_an_index() -> None:
    part = part_of(A100, "pruning")
    assert part.weight_bytes == 2.0 / 2 + 4 / 32
    rows = np.array([1000.0])
    for one in zip(token_operators(part, rows), edited(part, token_operators(part, rows), "pruning"), strict=True):
        assert one[1].flops == pytest.approx(one[0].flops / (2 if tiles.is_product(one[0]) else 1))
    assert seconds(A100, 8192) / seconds(A100, 8192, "pruning") == pytest.approx(2, rel=0.1)


def test_pruning_of_two_bits_saves_no_bytes() -> None:
    """An index of 4 bits for four weights is what two weights of 2 bits took; scales are halved."""
    narrow, pruned = part_of(A100, "w2a8kv4"), part_of(A100, "w2a8kv4", "pruning")
    assert narrow.weight_bytes - pruned.weight_bytes == pytest.approx(2 / 128 / 2)
    tight = part_of(A100, "w2a8kv4", {"pruning": {"index_bits": 3}})
    assert narrow.weight_bytes - tight.weight_bytes == pytest.approx(2 / 128 / 2 + 1 / 32)


@settings(max_examples=10, deadline=None)
@given(sinks=st.integers(0, 64), window=st.integers(1, 4000))
def test_attention_that_ends_bounds_caches_and_reading(sinks: int, window: int) -> None:
    use = {"lambda-attention": {"sinks": sinks, "window": window}}
    engine = engine_of(A100, use)
    assert engine.table.window == sinks + window
    assert engine.memory.block_bytes == 0
    assert engine.memory.window_block_bytes == engine_of(A100).memory.block_bytes
    assert not engine.table.time.read.any()
    assert engine.table.time.read_window[1] > 0


def test_within_the_reach_attention_that_ends_changes_nothing() -> None:
    """Steps of decoding below the window take what they took."""
    plain, ends = (engine_of(A100, *uses).table.time for uses in ((), ("lambda-attention",)))
    assert ends.read_window[8] == pytest.approx(plain.read[8])
    assert ends.prefill_window == pytest.approx(plain.prefill)
    assert ends.decode[8] == pytest.approx(plain.decode[8])
    assert ends.linear[512] == pytest.approx(plain.linear[512])


def test_a_simulated_request_holds_no_more_than_the_reach() -> None:
    replica = {"model": LLAMA, "device": A100, "block_tokens": 16}
    peaks = {}
    for name, uses in (("plain", []), ("ends", [{"lambda-attention": {"sinks": 16, "window": 240}}])):
        tree = load({"sites": [{"pools": [{"replica": replica}]}], "techniques": uses})
        peaks[name] = float(simulate(tree, requests([0.0], [2000], [100])).peak_kv_bytes[0])
    assert peaks["ends"] == 256 * 2 * 32 * 4096 * 2
    assert peaks["plain"] == math.ceil(2099 / 16) * 16 * 2 * 32 * 4096 * 2


@settings(max_examples=20)
@given(bits=st.integers(1, 7), rows=st.integers(1, 4096), where=st.sampled_from([A100, H100, L40S, "rtx-3090"]))
def test_fewer_bits_never_take_longer(bits: int, rows: int, where: str) -> None:
    narrow, wide = (seconds(where, rows, {"low-bit-weights": {"number": f"int{n}"}}) for n in (bits, bits + 1))
    assert narrow <= wide * (1 + 1e-9)


def test_reading_no_longer_grows_once_the_window_is_full() -> None:
    part, plain = part_of(A100, "lambda-attention"), part_of(A100)
    short, long, longer = (sum(row.seconds for row in step_rows(part, 0, 8, n)) for n in (512, 1024, 16384))
    assert short < long == longer
    assert sum(row.seconds for row in step_rows(plain, 0, 8, 16384)) > longer


# ---- together, and what makes no sense


def test_techniques_reach_the_engine_in_one_order() -> None:
    names = ["pruning", "w2a8kv4", "lambda-attention"]
    ways = [engine_of(A100, *order) for order in (names, names[::-1])]
    assert np.array_equal(ways[0].table.time.linear, ways[1].table.time.linear)
    assert ways[0].memory == ways[1].memory
    plain = engine_of(A100)
    assert ways[0].table.time.linear[1] < plain.table.time.linear[1]
    assert ways[0].memory.capacity_bytes > plain.memory.capacity_bytes


def test_experts_become_narrow_too() -> None:
    name = "mixtral-8x7b"
    part = part_of(H100, "low-bit-weights", name=name, tensor_parallel=2)
    assert part.expert_bytes == part.weight_bytes == 0.5 + 2 / 128
    plain, narrow = (engine_of(H100, *uses, name=name, tensor_parallel=2) for uses in ((), ("low-bit-weights",)))
    assert narrow.table.time.linear[1] < 0.6 * plain.table.time.linear[1]


@pytest.mark.parametrize(
    ("where", "techniques", "choices", "says"),
    [
        (H100, ["low-bit-weights", "w4a4"], {}, "cannot stand beside"),
        (A100, ["w4a8", "w2a8kv4"], {}, "cannot stand beside"),
        (A100, [{"w4a4": {"four": 1.5}}], {}, "at most 1"),
        (A100, ["low-bit-weights"], {"activations": "int8"}, "16 bits or more"),
        (A100, [{"low-bit-weights": {"number": "uint8"}}], {"weights": "int4"}, "bytes a weight"),
        ("sn40l", ["w4a4"], {}, "integer products"),
        ("tpu-v5e", ["w4a8"], {}, "FP32 peak"),
        (A100, [{"w4a8": {"cache_bits": 8}}], {"kv_cache": "int8"}, "without it"),
        (A100, [{"pruning": {"index_bits": 8, "speedup": 1.0}}, "w2a8kv4"], {}, "saves nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(where: str, techniques: list[Any], choices: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        edited(part := part_of(where, *techniques, **choices), token_operators(part, np.ones(1)), *techniques)


def test_attention_that_ends_already_is_refused() -> None:
    with pytest.raises(InputError, match="changes nothing"):
        part_of(H100, "lambda-attention", name="deepseek-v3", tensor_parallel=8, weights="fp8")


def test_a_data_path_needs_no_general_cores() -> None:
    free = {"dequantisation": 0, "conversion": 0, "cache_reading": 0}
    assert seconds("tpu-v5e", 64, {"w4a8": free}) < seconds("tpu-v5e", 64)


def test_the_u280_is_what_its_makers_say() -> None:
    card: Device = device("u280")
    assert card.memory[0].bandwidth == 460e9
    assert card.memory[0].bytes == 8 * 2**30

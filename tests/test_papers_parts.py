"""What papers are tried with: requirements by search, the fit calculator, formats of weights, packed products."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.devices import device
from sonde.catalogue.formats import formats, weight_format
from sonde.catalogue.models import model
from sonde.cost.explain import step_rows
from sonde.cost.local import choices, decode_s, part_of
from sonde.cost.require import Target, require, scaled
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError
from sonde.learn import packing
from sonde.learn.corpus import standard_library
from sonde.papers.melt import RUNTIME, file_bytes

MELT = Path(__file__).parents[1].parent / "shared" / "data" / "devices" / "melt_model_specs.csv"
LLAMA, H100 = "llama-3.1-8b", "h100-sxm"
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'sonde[run]'"
)


def needs(target: Target, ranks: int = 1) -> Any:
    return require(model(LLAMA), device(H100), Replica(model=LLAMA, device=H100, tensor_parallel=ranks), target)


@settings(deadline=None, max_examples=8)
@given(tpot=st.floats(0.004, 0.1), batch=st.integers(1, 64))
def test_what_is_required_is_just_enough(tpot: float, batch: int) -> None:
    """A device scaled to what was found holds the target; one with a thousandth less does not."""
    found = needs(Target(1024, 2048, batch, None, tpot))
    for factor, holds in ((1.0001, True), (0.999, False)):
        part = part_time(factor * found.together, batch)
        assert (part <= tpot) == holds


def part_time(factor: float, batch: int) -> float:
    from sonde.catalogue.efficiencies import efficiencies
    from sonde.cost.shard import shard

    at = shard(model(LLAMA), scaled(device(H100), factor, factor, factor), Replica(model=LLAMA, device=H100),
               efficiencies(device(H100)))  # fmt: skip
    return sum(row.seconds for row in step_rows(at, 0, batch, 2048))


def test_requirements_grow_with_what_is_asked() -> None:
    slow, fast = needs(Target(2048, 4096, 8, 0.4, 0.02)), needs(Target(2048, 4096, 8, 0.2, 0.01))
    assert fast.flops > slow.flops
    assert fast.bandwidth > slow.bandwidth
    assert fast.memory_bytes == slow.memory_bytes
    assert needs(Target(2048, 4096, 64, 0.4, 0.02)).memory_bytes > slow.memory_bytes
    assert slow.link_bandwidth == 0.0
    assert needs(Target(2048, 4096, 8, 0.4, 0.02), ranks=4).link_bandwidth > 0.0


def test_what_no_platform_could_do_is_refused() -> None:
    with pytest.raises(CannotError, match="no platform"):
        needs(Target(2048, 4096, 1, None, 1e-6))
    with pytest.raises(InputError, match="at least one"):
        needs(Target(2048, 4096, 1, None, None))
    with pytest.raises(InputError):
        needs(Target(0, 4096, 1, None, 0.01))


def test_the_verb_says_what_is_required(sonde_cli: Callable[..., Any]) -> None:
    found = sonde_cli("require", LLAMA, "--tpot", "10 ms", "--json").json()
    assert found["bandwidth"] == pytest.approx(needs(Target(2048, 4096, 1, None, 0.01)).bandwidth)
    assert "bandwidth" in sonde_cli("require", LLAMA, "--ttft", "300ms", "--tpot", "10ms").out
    assert sonde_cli("require", LLAMA).code == 2
    assert sonde_cli("require", LLAMA, "--tpot", "1 us").code == 1
    assert sonde_cli("require", LLAMA, "--tpot", "ten").code == 2


def test_formats_hold_their_scales() -> None:
    assert weight_format("q4_0").weight_bytes * 8 == 4.5
    assert weight_format("fp16").weight_bytes == 2.0
    assert weight_format("int4").weight_bytes == packing.bytes_per_weight(4)
    assert all(it.source and it.date for it in formats().values())
    with pytest.raises(InputError, match="q4_0"):
        weight_format("q4-0")


def test_narrower_weights_fit_more_and_write_faster() -> None:
    wide, half, quarter = choices(model("llama-3.2-3b"), device("raspberry-pi-5"))
    assert wide.weight_bytes > half.weight_bytes > quarter.weight_bytes
    assert wide.context < half.context < quarter.context
    assert wide.tokens_per_s < half.tokens_per_s < quarter.tokens_per_s
    for fit in (wide, half, quarter):
        assert fit.fits
        assert fit.low < fit.tokens_per_s < fit.high
        assert fit.joules_per_token > 0
    assert not choices(model("llama-3.1-8b"), device("raspberry-pi-5"))[0].fits


def test_no_answer_beats_the_bandwidth() -> None:
    for name in ("raspberry-pi-5", "snapdragon-8-gen-3", "jetson-agx-orin-64gb", H100):
        where = device(name)
        for fit in choices(model("llama-3.2-3b"), where):
            table = model("llama-3.2-3b").embedding_parameters * 2.0
            assert fit.high < where.memory[0].bandwidth / (fit.weight_bytes - table)


def test_speed_is_stated_where_a_model_is_shown_on_a_device(sonde_cli: Callable[..., Any]) -> None:
    found = sonde_cli("show", "llama-3.2-3b", "--device", "raspberry-pi-5", "--json").json()["on"]["one_conversation"]
    assert [row["name"] for row in found] == ["fp16", "q8_0", "q4_0"]
    assert found[2]["tokens_per_s"]["low"] < found[2]["tokens_per_s"]["high"]


def test_a_step_of_one_conversation_is_quicker_at_a_larger_share() -> None:
    part = part_of(model("llama-3.2-3b"), device("raspberry-pi-5"), "q4_0")
    assert decode_s(part, 1024, 0.8)[0] < decode_s(part, 1024, 0.4)[0]
    assert decode_s(part, 4096, 0.8)[0] > decode_s(part, 1024, 0.8)[0]


@pytest.mark.data
def test_files_and_memory_are_those_of_melt() -> None:
    """Sizes follow from llama.cpp's blocks to 1 %; peak memory is the file and 2.5 GB in every row that states it."""
    if not MELT.exists():
        pytest.skip(f"{MELT} is not there")
    names = {"Mistral-7b-v0.1": "mistral-7b", "Llama-2-7b": "llama-2-7b", "Llama-2-13b": "llama-2-13b",
             "TinyLlama-1.1B-v0.5": "tinyllama-1.1b"}  # fmt: skip
    tried = 0
    for row in csv.DictReader(MELT.read_text(encoding="utf-8").splitlines()):
        if row["max_ram"] != "None":
            assert float(row["max_ram"]) - float(row["size"]) == pytest.approx(RUNTIME / 1e9, abs=0.011)
        if row["model"] in names and row["quantization"] in ("q4_0", "q4_k", "q3_k"):
            size = file_bytes(model(names[row["model"]]), row["quantization"]) / 1e9
            assert size == pytest.approx(float(row["size"]), rel=0.01), row
            tried += 1
    assert tried == 10


@settings(deadline=None, max_examples=12)
@given(
    outputs=st.integers(1, 300), groups=st.integers(1, 6), bits=st.sampled_from([8, 4]), seed=st.integers(0, 2**32 - 1)
)
def test_packed_products_are_those_of_the_weights_they_hold(outputs: int, groups: int, bits: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    weights = draws.standard_normal((outputs, groups * packing.GROUP)).astype(np.float32)
    x = draws.standard_normal(weights.shape[1]).astype(np.float32)
    packed = packing.pack(weights, bits)
    held = packing.dequantised(weights, bits)
    assert np.allclose(packing.product(packed, x), held @ x, atol=1e-3)
    step = np.abs(weights).reshape(outputs, groups, -1).max(axis=2) / (2 ** (bits - 1) - 1)
    assert (np.abs(held - weights).reshape(outputs, groups, -1).max(axis=2) <= step / 2 + 1e-6).all()
    whole = math.ceil(outputs / packing.TILE) * packing.TILE
    assert packed.nbytes == pytest.approx(whole * weights.shape[1] * packing.bytes_per_weight(bits))


def test_the_corpus_is_source_text_and_what_is_kept_is_not_trained_on() -> None:
    text, kept = standard_library()
    assert len(text) > 10**6
    assert len(kept) > 10**5
    assert b"import " in text.tobytes()
    assert kept[:2000].tobytes() not in text.tobytes()


@needs_torch
def test_a_token_at_a_time_is_all_at_once() -> None:
    """The cache changes no logit; packed weights change them by what rounding does; blocks that run twice as well."""
    import torch

    from sonde.learn.decoder import Cache, Decoder, Shape

    for repeats in (1, 2):
        shape = Shape(2, 64, 4, 96, repeats=repeats)
        torch.manual_seed(0)
        decoder = Decoder(shape).eval()
        tokens = torch.randint(256, (1, 12))
        with torch.inference_mode():
            whole = decoder(tokens)
            cache = Cache(shape, 12)
            single = torch.cat([decoder(tokens[:, i : i + 1], cache) for i in range(12)], dim=1)
            assert torch.allclose(whole, single, atol=1e-5)
            rounded = decoder.round(4)(tokens)
            cache = Cache(shape, 12)
            decoder.pack(4)
            packed = torch.cat([decoder(tokens[:, i : i + 1], cache) for i in range(12)], dim=1)
            assert torch.allclose(rounded, packed, atol=1e-4)
            assert not torch.allclose(whole, rounded, atol=1e-4)


@needs_torch
def test_a_decoder_is_the_model_that_its_config_describes() -> None:
    from sonde.catalogue.configs import read_config
    from sonde.learn.decoder import Decoder, Shape

    shape = Shape(3, 64, 4, 96)
    assert read_config(shape.config(), "decoder").total_parameters == sum(
        weights.numel() for weights in Decoder(shape).parameters()
    )


@needs_torch
def test_training_lowers_the_loss_and_repeats() -> None:
    from sonde.learn.study import SMALL, judged, trained

    before, after, again = (judged(trained(SMALL, 0, steps)) for steps in (1, 25, 25))
    assert after < 0.85 * before
    assert after == pytest.approx(again, rel=1e-4)

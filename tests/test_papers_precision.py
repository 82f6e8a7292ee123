"""COMET, AccLLM and Tilus: their parts on small decoders, held to slow twins, and what their claims come to."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.papers import accllm, comet, tilus
from sonde.papers.frame import Reproduction, Row, shelf

torch = pytest.importorskip("torch", reason="needs torch: pip install 'sonde[run]'")

from sonde.learn import channels, recovery, sinks, widths  # noqa: E402
from sonde.learn.decoder import MATRICES, Decoder, Shape, angles, turned  # noqa: E402
from sonde.learn.pupil import pupil  # noqa: E402
from sonde.learn.sinks import Kept, Reach  # noqa: E402
from sonde.learn.study import judged  # noqa: E402

TINY = Shape(2, 32, 2, 48)


def drawn(seed: int = 0, shape: Shape = TINY, gain: float = 1.0, loud: tuple[int, ...] = ()) -> Decoder:
    """Return a decoder of random weights large enough to make every channel and position count."""
    torch.manual_seed(seed)
    model = Decoder(shape).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.copy_(torch.randn_like(weights) * 2.0 * weights.shape[1] ** -0.5)
            else:
                weights.copy_(0.5 + torch.rand_like(weights))
        for block in model.blocks:
            for norm in block.norms:
                norm.weight[list(loud)] *= gain
    return model


def tokens(count: int, seed: int = 0) -> Any:
    return torch.randint(256, (1, count), generator=torch.Generator().manual_seed(seed))


# ---- attention that ends


def one_by_one(model: Decoder, ids: Any, reach: Reach) -> Any:
    """The slow twin: a cache of keys as they were before they were turned, in which what is neither sink nor recent
    is dropped; every key is turned anew to its place in the cache."""
    caches: list[list[tuple[Any, Any]]] = [[] for _ in model.blocks]
    found = []
    for position in range(ids.shape[1]):
        x = model.embedding(ids[:, position : position + 1])
        for block, cache in zip(model.blocks, caches, strict=True):
            q, k, v = block.qkv(block.norms[0](x)).view(1, 1, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            cache.append((k, v))
            if len(cache) > reach.sinks + reach.window:
                del cache[reach.sinks]
            keys = torch.cat([it[0] for it in cache], dim=2)
            turn = angles(0, len(cache), q.shape[-1])
            scores = turned(q, turn[-1:]) @ turned(keys, turn).transpose(-1, -2) / q.shape[-1] ** 0.5
            mixed = scores.softmax(-1) @ torch.cat([it[1] for it in cache], dim=2)
            x = x + block.out(mixed.transpose(1, 2).reshape(1, 1, -1))
            gate, up = block.up(block.norms[1](x)).chunk(2, dim=-1)
            x = x + block.down(torch.nn.functional.silu(gate) * up)
        found.append(model.head(model.norm(x)))
    return torch.cat(found, dim=1)


@settings(deadline=None, max_examples=12)
@given(at_first=st.integers(0, 4), window=st.integers(1, 9), length=st.integers(2, 30), seed=st.integers(0, 99))
def test_attention_that_ends_is_that_of_a_cache_that_drops(at_first: int, window: int, length: int, seed: int) -> None:
    model, ids, reach = drawn(seed), tokens(length, seed), Reach(at_first, window)
    with torch.no_grad():
        whole = sinks.logits_of(model, ids, Kept(reach))
        assert torch.allclose(whole, one_by_one(model, ids, reach), atol=2e-3)


def test_a_reach_that_holds_everything_changes_nothing() -> None:
    model, ids = drawn(), tokens(20)
    with torch.no_grad():
        plain = model(ids)
        assert torch.allclose(sinks.logits_of(model, ids, Kept()), plain, atol=1e-4)
        assert torch.allclose(sinks.logits_of(model, ids, Kept(Reach(4, 16))), plain, atol=1e-4)
        assert not torch.allclose(sinks.logits_of(model, ids, Kept(Reach(4, 8))), plain, atol=1e-2)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_cached_numbers_have_as_many_levels_as_their_bits_allow(bits: int, seed: int) -> None:
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(seed))
    near = sinks.rounded(x, bits, 1)
    assert all(len(row.unique()) <= 2**bits for row in near)
    step = (x.amax(1) - x.amin(1)) / (2**bits - 1)
    assert ((near - x).abs().amax(1) <= step / 2 * 1.001).all()


def test_fewer_bits_of_a_cache_change_more() -> None:
    model, ids = drawn(), tokens(64)
    with torch.no_grad():
        plain = model(ids)
        errors = [float((sinks.logits_of(model, ids, Kept(None, bits)) - plain).abs().mean()) for bits in (8, 4, 2)]
    assert errors[0] < 0.2 * errors[1] < 0.2 * errors[2]


# ---- channels


def test_a_permutation_changes_no_logit_and_gathers_outliers() -> None:
    loud = (1, 18)  # in two blocks of 16
    model = drawn(gain=32.0, loud=loud)
    found = channels.peaks(model)
    gathered = channels.permuted(model, found)
    ids = tokens(40)
    with torch.no_grad():
        one, two = model.double()(ids), gathered.double()(ids)
    assert torch.allclose(one, two, rtol=1e-9, atol=1e-9)
    assert not torch.equal(model.blocks[0].qkv.weight, gathered.blocks[0].qkv.weight)
    model, gathered = model.float(), gathered.float()
    scattered, together = channels.mixed(model, found), channels.mixed(gathered, channels.peaks(gathered))
    assert together.four > scattered.four
    assert scattered.blocks[8] > together.blocks[8] > 0
    norms = [block.qkv(torch.eye(32)[i]).norm() for block in gathered.blocks for i in range(2)]
    assert all(torch.isfinite(norm) for norm in norms)
    assert set(gathered.blocks[0].norms[0].weight.argsort(descending=True)[:2].tolist()) == {0, 1}


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), outputs=st.integers(1, 9), seed=st.integers(0, 2**31 - 1))
def test_integer_layers_are_sums_of_whole_numbers_times_scales(rows: int, blocks: int, outputs: int, seed: int) -> None:
    """Against numpy, element by element in 64-bit integers."""
    draws = np.random.default_rng(seed)
    weights = draws.standard_normal((outputs, blocks * 16)).astype(np.float32)
    x = draws.standard_normal((rows, blocks * 16)).astype(np.float32)
    eight = draws.integers(0, 2, blocks).astype(bool)
    layer = channels.Integers(torch.from_numpy(weights), torch.from_numpy(eight))
    found = layer(torch.from_numpy(x)).numpy()
    wanted = np.zeros((rows, outputs))
    for b in range(blocks):
        w, a = weights[:, 16 * b : 16 * b + 16], x[:, 16 * b : 16 * b + 16]
        sw = np.abs(w).max(axis=1, keepdims=True) / np.float32(7)
        sa = np.abs(a).max(axis=1, keepdims=True) / np.float32(127 if eight[b] else 7)
        whole = np.rint(a / sa).astype(np.int64) @ np.rint(w / sw).astype(np.int64).T
        wanted += whole * (sa * sw.T)
    assert np.allclose(found, wanted, atol=1e-4)
    assert layer.equal == layer.checked == blocks * min(rows, 4) * outputs


def test_an_outlier_takes_the_levels_of_its_token_or_of_its_block_alone() -> None:
    weights = torch.eye(32)
    x = torch.ones(1, 32)
    x[0, 0] = 100.0
    none = torch.zeros(2, dtype=torch.bool)
    by_token = channels.Integers(weights, none, by_token=True)(x)
    by_block = channels.Integers(weights, none)(x)
    assert (by_token[0, 1:] == 0).all()
    assert (by_block[0, 1:16] == 0).all()
    assert torch.allclose(by_block[0, 16:], x[0, 16:])
    in_eight = channels.Integers(weights, ~none)(x)
    assert torch.allclose(in_eight[0, 1:16], x[0, 1:16], atol=0.5)


# ---- 2:4, 2 bits, recovery, widths


@given(outputs=st.integers(1, 6), fours=st.integers(1, 6), seed=st.integers(0, 99))
def test_two_of_every_four_are_kept_and_they_are_the_largest(outputs: int, fours: int, seed: int) -> None:
    weights = torch.randn(outputs, 4 * fours, generator=torch.Generator().manual_seed(seed))
    kept = recovery.largest_two(weights).view(-1, 4).bool()
    assert (kept.sum(1) == 2).all()
    sizes = weights.view(-1, 4).abs()
    assert (sizes[kept].view(-1, 2).amin(1) >= sizes[~kept].view(-1, 2).amax(1)).all()


def test_squeezed_decoders_hold_what_their_bytes_say() -> None:
    shape = Shape(1, 64, 2, 64)
    for squeeze, wanted in (
        (recovery.Squeeze(2), 2 / 8 + 4 / 64),
        (recovery.Squeeze(4), 4 / 8 + 4 / 64),
        (recovery.Squeeze(2, pruned=True), 2 / 16 + 4 / 64 + 1 / 8),
        (recovery.Squeeze(32, pruned=True), 4 / 2 + 1 / 8),
    ):
        model, size = recovery.squeezed(drawn(shape=shape), squeeze)
        assert size == pytest.approx(wanted)
        for name in MATRICES:
            weights = getattr(model.blocks[0], name).weight
            if squeeze.pruned:
                assert ((weights.view(-1, 4) != 0).sum(1) <= 2).all()
            if squeeze.bits < 32:
                assert all(len(group.unique()) <= 2**squeeze.bits + 1 for group in weights.view(-1, 64))


def test_what_is_not_squeezed_is_the_same() -> None:
    model, ids = drawn(shape=Shape(1, 64, 2, 64)), tokens(12)
    same, size = recovery.squeezed(model, recovery.Squeeze())
    assert size == 4.0
    with torch.no_grad():
        assert torch.allclose(model(ids), same(ids), atol=1e-5)


def test_learning_with_narrow_weights_takes_loss_back() -> None:
    model = pupil(Shape(1, 64, 2, 64), 0, 40)
    squeeze = recovery.Squeeze(2, pruned=True)
    before, first = recovery.squeezed(model, squeeze)
    after, second = recovery.squeezed(model, squeeze, 1, 20)
    assert first == second  # nothing is left of what was learnt but the narrow weights
    assert judged(model) < judged(after) < judged(before)


def test_widths_count_their_bytes_and_err_less_with_more_bits() -> None:
    model, ids = drawn(shape=Shape(1, 64, 2, 64)), tokens(20)
    with torch.no_grad():
        plain = model(ids)
        errors = []
        for bits in (8, 6, 5, 4, 3, 2, 1):
            narrow, size = widths.held_in(model, f"uint{bits}")
            count = 64 * 64 * (3 + 1 + 2 + 1)
            assert size == count * bits // 8 + count // 32 * 4
            errors.append(float((narrow(ids) - plain).abs().mean()))
    assert errors == sorted(errors)


# ---- the papers


def row(found: Reproduction, paper: Any, name: str) -> Row:
    return next(it for it in found.rows if it.claim is paper.CLAIMS[name])


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is simulated is tried alone: it needs no torch, and says what does."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))


def test_comet_on_the_card(no_torch: None) -> None:
    found = shelf.reproduce("comet")
    held = {name for name in comet.CLAIMS if row(found, comet, name).holds}
    assert held == {"batch", "a100", "rtx3090", "schedule"}
    assert row(found, comet, "kernel").ours == pytest.approx(1.37, rel=0.05)
    assert row(found, comet, "rtx3090").ours == pytest.approx(2.42, rel=0.05)
    assert "sonde[run]" in row(found, comet, "fmpq").why


@given(st.lists(st.floats(0.1, 5.0), min_size=1, max_size=60), st.integers(1, 12))
def test_no_schedule_beats_the_mean_and_turns_are_no_faster(times: list[float], units: int) -> None:
    whole = np.array(times)
    turns, free = (comet.scheduled(whole, units, turns=it) for it in (True, False))
    least = max(whole.max(), whole.sum() / units)
    assert least <= free * (1 + 1e-9)
    assert free <= whole.sum() / units + whole.max() + 1e-9
    assert least <= turns * (1 + 1e-9)
    if units == 1:
        assert turns == pytest.approx(free)


def test_comets_gain_is_gone_where_sums_are_many() -> None:
    gains = [comet.gain(comet.A100, rows, "w4a4") for rows in (1, 16, 256, 4096)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1 > gains[2]


def test_accllm_on_the_card(no_torch: None) -> None:
    found = shelf.reproduce("accllm")
    held = {name for name in accllm.CLAIMS if row(found, accllm, name).holds}
    assert held == {"long", "speed", "compute"}
    assert row(found, accllm, "throughput").ours == pytest.approx(2.10, rel=0.05)
    assert all(name in found.notes[0] for name in accllm.AFTER)


def test_accllm_ratio_is_that_of_bytes() -> None:
    """By hand: weights, the head's table and the cache that is read, over one bandwidth; all else is small."""
    layers, head = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 2.0 * 32000 * 4096
    cached = 2 * 32 * 4096
    middle = accllm.CONTEXT - 512
    before = layers * (0.5 + 2 / 128) + head + cached * (1 + 4 / 128) * middle
    after = layers * (0.125 + 1 / 128 + 1 / 8) + head + cached * (0.5 + 4 / 128) * 1024
    asked = (accllm.CONTEXT - 1024, 1024)
    ratio = accllm.speed(accllm.AFTER, *asked) / accllm.speed(accllm.BEFORE, *asked)
    assert ratio == pytest.approx(before / after, rel=0.1)


def test_tilus_simulated_and_measured(no_torch: None) -> None:
    found = shelf.reproduce("tilus")
    for name in ("decode", "odd", "limit"):
        assert row(found, tilus, name).holds
    for name in ("measured", "below", "form"):  # times of this machine: only that they are there
        ours = row(found, tilus, name).ours
        assert ours is not None
        assert math.isfinite(ours)
    assert "GPU" in row(found, tilus, "triton").why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "claims"),
    [
        (comet, {"four", "fmpq", "naive", "exact", "kv4"}),
        (accllm, {"index", "flat", "cache", "broken", "recovered"}),
        (tilus, {"bits", "six", "three"}),
    ],
    ids=["comet", "accllm", "tilus"],
)
def test_what_is_learnt_comes_out(name: Any, claims: set[str]) -> None:
    rows = {it.claim.text: it for it in name._learnt()}
    assert {key for key in claims if rows[name.CLAIMS[key].text].holds} == claims

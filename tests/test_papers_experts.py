"""What papers on experts are tried with: caches against twins, a mixture against plain loops, CloudMatrix's points."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.learn import eight_bits, latent
from sonde.learn.expert_cache import hits
from sonde.papers import cloudmatrix
from sonde.papers.frame import shelf

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'sonde[run]'"
)
TRACE = st.lists(st.integers(0, 5), min_size=1, max_size=40)


# --- caches of experts


def naive_hits(trace, room, policy):
    """Return hits by looking back at the whole past for every access."""
    held, found = set(), 0
    for i, expert in enumerate(trace):
        past = trace[:i]
        if expert in held:
            found += 1
            continue
        if len(held) == room:
            last = {other: max(j for j, seen in enumerate(past) if seen == other) for other in held}
            rank = {other: (past.count(other) if policy == "lfu" else 0, last[other]) for other in held}
            held.remove(min(held, key=rank.__getitem__))
        held.add(expert)
    return found / len(trace)


@given(TRACE, st.integers(1, 6), st.sampled_from(["lru", "lfu"]))
def test_a_cache_is_its_naive_twin(trace, room, policy):
    assert hits(trace, room, policy) == naive_hits(trace, room, policy)


@given(TRACE, st.integers(1, 6))
def test_no_policy_beats_the_best(trace, room):
    best = hits(trace, room, "best")
    assert best >= max(hits(trace, room, policy) for policy in ("lru", "lfu"))
    assert hits(trace, 6, "best") == hits(trace, 6, "lru") == (len(trace) - len(set(trace))) / len(trace)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 3))
def test_the_best_is_the_best_of_all_choices(trace, room):
    """Try everything that could be dropped at every miss."""

    def most(i, held):
        if i == len(trace):
            return 0
        if trace[i] in held:
            return 1 + most(i + 1, held)
        if len(held) < room:
            return most(i + 1, held | {trace[i]})
        return max(most(i + 1, (held - {gone}) | {trace[i]}) for gone in held)

    assert hits(trace, room, "best") * len(trace) == pytest.approx(most(0, frozenset()))


def test_an_empty_trace_hits_nothing():
    assert hits([], 2, "lru") == 0.0


# --- a mixture that is trained here


@pytest.fixture(scope="module")
def mixture():
    from sonde.learn import mixture

    return mixture, mixture.mixture(0, 4)


@needs_torch
def test_experts_compute_what_plain_loops_over_tokens_do(mixture):
    import torch
    from torch.nn import functional

    made, model = mixture
    block = made.blocks(model)[0]
    block.gate = made.Gate(skip=0.9)
    x = torch.randn(2, 5, made.SHAPE.hidden, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.computed = 0
        fast = block.feed(x).flatten(0, 1)
        pairs = 0
        for token, out in zip(x.flatten(0, 1), fast, strict=True):
            top, picked = block.router(token).softmax(-1).topk(2)
            keep = 2 if top[1] >= 0.9 * top[0] else 1
            pairs += keep
            slow = torch.zeros_like(token)
            for weight, expert in zip(top[:keep] / top[:keep].sum(), picked[:keep].tolist(), strict=True):
                gate, up = (block.ups[expert] @ token).chunk(2)
                slow += weight * (block.downs[expert] @ (functional.silu(gate) * up))
            assert torch.allclose(out, slow, atol=1e-5)
    assert block.computed == pairs < 20


@needs_torch
def test_a_gate_changes_what_it_says_and_nothing_else(mixture):
    made, model = mixture
    base = made.judged(model)
    assert base.pairs == made.TOP_K
    assert made.judged(model, made.Gate(allowed=(True,) * made.EXPERTS)) == base
    assert made.judged(model, made.Gate(skip=1.0)).pairs < made.TOP_K
    assert made.judged(model, made.Gate(dropped=1.0)).pairs == 1.0
    trace = made.traced(model, 4, 32, seed=1)
    assert trace.shape == (made.SHAPE.layers, 4, 32, made.TOP_K)
    assert (trace[..., 0] != trace[..., 1]).all()
    for gate, layer in zip(made.without(trace, 4, most_used=True), trace, strict=True):
        used = np.bincount(layer.ravel(), minlength=made.EXPERTS)
        assert sum(gate.allowed) == made.EXPERTS - 4
        assert used[[not kept for kept in gate.allowed]].min() >= used[list(gate.allowed)].max()
    assert made.judged(model) == base  # nothing of it stayed


@needs_torch
def test_all_is_foreseen_where_attention_adds_nothing(mixture):
    import copy

    made, model = mixture
    idle = copy.deepcopy(model)
    for block in made.blocks(idle):
        block.out.weight.data.zero_()
    assert made.foreseen(idle, 4, 32, seed=1)[0] == 1.0
    right, usual = made.foreseen(model, 4, 32, seed=1)
    assert 0.0 <= usual <= 1.0
    assert 0.0 <= right < 1.0


@needs_torch
def test_merging_and_rounding_leave_the_mixture_as_it_was(mixture):
    import torch

    made, model = mixture
    before = [block.ups.clone() for block in made.blocks(model)]
    trace = made.traced(model, 4, 32, seed=1)
    joined = made.merged(model, trace, 4, alike=True)
    coarse = made.rounded(model, np.full((made.SHAPE.layers, made.EXPERTS), 2))
    for block, old, merged, rounded in zip(
        made.blocks(model), before, made.blocks(joined), made.blocks(coarse), strict=True
    ):
        assert torch.equal(block.ups, old)
        same = sum(torch.equal(a, b) for a, b in itertools.combinations(merged.ups, 2))
        assert same >= 4
        assert 0.0 < (rounded.ups - old).abs().mean() < old.abs().mean()


@needs_torch
@pytest.mark.slow
def test_the_survey_comes_out_on_a_trained_mixture():
    rows = {row.claim.text: row for row in shelf.reproduce("moe-survey").rows}
    for text, row in rows.items():
        if not text.startswith(("the same by use", "bits added by merging", "experts that a layer's router")):
            assert row.holds, (text, row.ours, row.control, row.spread)


def test_without_torch_the_survey_says_what_it_needs(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == "torch" else real(found, *rest)
    )
    rows = shelf.reproduce("moe-survey").rows
    assert all(row.ours is None and "sonde[run]" in row.why for row in rows)


# --- DeepSeek-V3's attention and numbers


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 1000))
def test_absorbed_attention_is_expanded_attention(tokens, heads, seed):
    weights = latent.layer(seed, latent.Sizes(heads=heads))
    x = np.random.default_rng(seed).standard_normal((tokens, 256)).astype(np.float32)
    full, small = latent.expanded(weights, x), latent.absorbed(weights, x)
    assert np.allclose(full.output, small.output, atol=1e-4 * np.abs(full.output).max())
    assert full.cached == 4 * tokens * heads * (32 + 16 + 32)
    assert small.cached == 4 * tokens * (64 + 16)


@needs_torch
@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=64))
def test_rounding_to_e4m3_is_torchs(numbers):
    import torch

    x = np.array(numbers, dtype=np.float32)
    theirs = torch.from_numpy(x).to(torch.float8_e4m3fn).float().numpy()
    assert (eight_bits.e4m3(x) == theirs).all()


@given(st.floats(1e-3, 1e3))
def test_scales_make_tiles_alike(scale):
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    assert eight_bits.lost(x * scale, eight_bits.tiled(x * np.float32(scale))) == pytest.approx(
        eight_bits.lost(x, eight_bits.tiled(x)), rel=0.1
    )
    assert eight_bits.lost(x, eight_bits.logarithms(x)) < eight_bits.lost(x, eight_bits.logarithms(x, bits=6))
    assert (np.sign(eight_bits.logarithms(x)) == np.sign(x)).all()


def test_a_logarithm_keeps_the_ends_of_a_tile():
    x = np.geomspace(1e-3, 1e3, 128, dtype=np.float32)[None]
    found = eight_bits.logarithms(x)
    assert found[0, [0, -1]] == pytest.approx([1e-3, 1e3], rel=1e-4)
    assert found == pytest.approx(x, rel=0.07)


# --- CloudMatrix384


def test_three_points_come_from_one_set_of_parameters():
    for point in cloudmatrix.POINTS:
        tpot = 1e3 * cloudmatrix.decode(point.batch)
        assert tpot == pytest.approx(point.tpot, rel=0.1)
        assert 1e3 * point.batch / tpot == pytest.approx(point.rate, rel=0.1)


def test_each_technique_is_taken_away_from_the_same_deployment():
    whole = cloudmatrix.decode(24)
    assert cloudmatrix.decode(24, multi_token_prediction=None) > 1.1 * whole
    assert cloudmatrix.decode(24, multi_token_prediction={"acceptance": 0.0}) > 1.5 * whole
    assert cloudmatrix.decode(24, expert_dispatch={"startup": "200 us"}) > whole
    assert cloudmatrix.decode(24, cloudmatrix.PREFILL) > 1.5 * whole  # experts over a tenth of the devices


def test_prompts_gain_by_halves_and_lose_by_skew():
    whole = cloudmatrix.prefill()
    assert cloudmatrix.prefill(two_microbatches=None) < whole
    assert cloudmatrix.prefill(expert_placement={"zipf": 0.5, "balanced": False}) < 0.95 * whole
    assert cloudmatrix.prefill(1024, sequence_parallel=None) < 0.5 * cloudmatrix.prefill(1024)


@needs_torch
@pytest.mark.slow
def test_two_processes_write_what_one_does():
    from sonde.learn.handover import OUTPUT, handed_over

    found = handed_over()
    assert found.handed == found.alone
    assert len(found.alone) == OUTPUT
    assert len(set(found.alone)) > 5
    assert found.spoiled != found.alone
    assert min(found.first_s, found.again_s, found.reused_s) > 0.0


@needs_torch
def test_blocks_are_found_by_all_that_comes_before_them():
    import torch

    from sonde.learn.handover import BLOCK, OUTPUT, PROMPT, Kept

    kept, prompt = Kept(), torch.arange(PROMPT) % 251
    first, cached = kept.of(prompt)
    assert (cached, len(first)) == (0, PROMPT + OUTPUT)
    other = prompt.clone()
    other[3 * BLOCK + 5] += 1
    second, cached = kept.of(other)
    assert cached == 3 * BLOCK
    assert (second[:cached] == first[:cached]).all()
    assert not set(second[cached:].tolist()) & set(first.tolist())
    again, cached = kept.of(prompt)
    assert cached == PROMPT - BLOCK  # the last block is computed, for the token after it
    assert (again[:cached] == first[:cached]).all()

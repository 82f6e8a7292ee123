"""What Infinite-LLM is tried with: merged parts against plain attention, processes against one, and the ledger."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.learn.attention_ledger import Manager, Owner, played
from sonde.papers import infinite_llm

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'sonde[run]'"
)


@needs_torch
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_merged_parts_are_plain_attention(sizes, seed):
    import torch

    from sonde.learn.attention_split import merged, partial

    draws = torch.Generator().manual_seed(seed)
    n, t = sum(sizes), min(3, sizes[-1])
    q = 4 * torch.randn(2, t, 8, generator=draws, dtype=torch.float64)
    k, v = (torch.randn(2, n, 8, generator=draws, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(t, n, dtype=torch.bool).tril(n - t)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = [
        partial(q, k[:, end - size : end], v[:, end - size : end], size - t + 1 if end == n else None)
        for end, size in zip(ends, sizes, strict=True)
    ]
    assert torch.allclose(merged(parts), plain, atol=1e-12)


@needs_torch
def test_three_processes_say_what_one_says_and_send_no_cache():
    import torch

    from sonde.learn.attention_split import SHAPE, decoder, split, whole

    model = decoder(3)
    tokens = torch.randint(256, (200,), generator=torch.Generator().manual_seed(5))
    found = split(model, tokens, 192, 3)
    assert found.logits is not None
    assert float((found.logits - whole(model, tokens, 192)).abs().max()) <= 1e-5
    per_token = SHAPE.layers * (2 * SHAPE.hidden + 2 * SHAPE.heads) * 4
    assert found.sent == 8 * 2 * per_token  # queries to two processes, and what they return
    assert found.before == 64 * per_token + 64 * 2 * per_token


def test_nothing_is_lent_twice_however_old_the_ledger():
    for seed in range(10):
        for every in (1, 7, 100):
            found = played(seed, 1500, ask_owner=True, every=every)
            assert found.twice == 0
            assert found.lent > 0
            assert found.reclaimed > 0
    assert played(0, 1500, ask_owner=False, every=40).twice > 0


def test_an_owner_has_a_block_back_when_it_is_released_and_not_before():
    owner, ledger = Owner(0, 2), Manager(2)
    ledger.heartbeat(owner)
    assert ledger.lender(1) == 0
    assert owner.grant(1, 3) == [0, 1]
    assert ledger.lender(1) == 0, "the ledger is old"
    assert owner.grant(1, 1) == []
    assert owner.reclaim(1) == [(0, 1)]
    assert owner.grant(0, 1) == []
    with pytest.raises(ValueError, match="is held by 1"):
        owner.release(0, 0)
    owner.release(1, 0)
    assert owner.grant(0, 1) == [0]


def test_lending_serves_twice_the_context():
    alone, lending = (infinite_llm.deployment(2, 1, reserve) for reserve in (None, "0 GiB"))
    assert infinite_llm.longest(lending) >= 1.99 * infinite_llm.longest(alone)

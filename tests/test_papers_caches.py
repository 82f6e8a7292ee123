"""CloudMatrix's context cache: reuse gains what it saves, nothing where there is none, and any instance reads it."""

from __future__ import annotations

import pytest

from sonde.deployment.tree import Deployment
from sonde.papers import cloudmatrix
from sonde.papers.cloudmatrix import UB, VPC


def test_reuse_gains_throughput_and_first_tokens_and_none_of_it_gains_nothing() -> None:
    plain, cache = cloudmatrix.cached(0.9, None, tokens=1024), cloudmatrix.cached(0.9, UB, tokens=1024)
    half = cloudmatrix.cached(0.5, UB, tokens=1024)
    assert 2.0 < cache[0] / plain[0] < 1 / (1 - 0.9)
    assert 1.3 < half[0] / plain[0] < 1 / (1 - 0.5)
    assert cache[1] < half[1] < plain[1]
    new = [cloudmatrix.cached(0.0, used, tokens=1024) for used in (None, UB, VPC)]
    assert new[0] == new[1] == new[2]
    assert new[0] == plain, "without a cache it does not matter what was there before"


def test_a_network_matters_once_it_is_slower_than_what_is_computed() -> None:
    over_ub = cloudmatrix.cached(0.9, UB)
    assert cloudmatrix.cached(0.9, VPC)[0] == pytest.approx(over_ub[0], rel=0.02)
    slow = cloudmatrix.cached(0.9, VPC | {"pool_bandwidth": 20e9})
    per_prompt = 0.9 * cloudmatrix.CONTEXT * cloudmatrix.KV_BYTES / 20e9
    assert slow[0] == pytest.approx(cloudmatrix.CONTEXT / per_prompt / cloudmatrix.PREFILL, rel=0.03)


def test_the_model_keeps_as_many_bytes_of_a_token_as_the_control_counts() -> None:
    from sonde.sim.simulate import fleet
    from sonde.techniques.compose import arranged

    tree: Deployment = cloudmatrix._tree(cloudmatrix._prefill(None), cloudmatrix.PREFILL, {"policy": "prefill-first"})
    memory = fleet(arranged(tree))[0][0].memory
    assert memory.block_bytes / memory.block_tokens == cloudmatrix.KV_BYTES


def test_what_comes_out_is_told_with_its_controls() -> None:
    rows = cloudmatrix._caching()
    assert set(rows) == {"reuse", "ttft", "plane", "anywhere"}
    for key, row in rows.items():
        assert row.ours is not None
        assert row.spread is not None, "three seeds"
        assert row.claim.harmless.holds(row.control), key
        assert row.why
    assert rows["anywhere"].holds
    assert rows["reuse"].ours > 2.28, "steps that stay full keep nothing that does not shrink"
    assert not rows["reuse"].holds
    assert not rows["plane"].holds

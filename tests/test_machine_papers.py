"""The papers that measure: what they compute from measurements, and what they say where something is not here."""

from __future__ import annotations

import numpy as np
import pytest

from sonde.calibrate.machine.chase import Latency
from sonde.calibrate.machine.facts import Cache, facts
from sonde.calibrate.machine.stream import KERNELS, Rate
from sonde.papers import hopper_dissect, hpx_stream, skip
from sonde.papers.frame.shelf import paper

MINE = ("hpx-stream", "hopper-dissect", "skip")


@pytest.mark.parametrize("name", MINE)
def test_every_claim_has_a_bar_that_something_fails(name: str) -> None:
    found = paper(name)
    assert found.measured
    for claim in found.claims.values():
        assert np.isfinite([claim.accept.low, claim.accept.high]).any()
        assert not claim.came_out(float("nan"), "").holds
        if claim.control:
            assert np.isfinite([claim.harmless.low, claim.harmless.high]).any()
            inside = claim.accept.low if np.isfinite(claim.accept.low) else claim.accept.high
            assert not claim.came_out(inside, "").holds, "a claim with a control does not hold without it"


def rates(backend: str, *values: float, threads: int = 1) -> list[Rate]:
    return [Rate(backend, threads, "own", k.name, v, v, 1, 0.0) for k, v in zip(KERNELS, values, strict=True)]


def test_the_share_of_native_is_that_of_the_worst_kernel_on_its_best_threads() -> None:
    listed = rates("numba", 10, 10, 10, 10) + rates("numba", 20, 20, 20, 9, threads=2) + rates("torch", 5, 5, 5, 12)
    listed += rates(hpx_stream.NATIVE, 20, 20, 20, 10) + rates(hpx_stream.NATIVE, 1, 1, 1, 15, threads=2)
    assert hpx_stream.share(listed, {"numba", "torch"}) == pytest.approx(100 * 12 / 15)
    assert hpx_stream.share(listed, {"numba"}) == pytest.approx(100 * 10 / 15)
    assert hpx_stream.share(rates("numba", 1, 1, 1, 1), {"numba"}) == 0.0, "nothing to compare with"


def test_first_touch_is_judged_on_several_nodes_alone() -> None:
    own = Rate("numba", 2, "own", "triad", 30.0, 30.0, 1, 0.0)
    rounds = [[own, own._replace(touch="one", bytes_per_s=20.0), own._replace(threads=1, bytes_per_s=99.0)]]
    alone = facts()._replace(numa_nodes=1)
    assert hpx_stream._touch(rounds, alone).ours is None
    row = hpx_stream._touch(rounds, alone._replace(numa_nodes=2))
    assert row.ours == pytest.approx(1.5)
    assert row.holds


def test_a_walk_in_order_visits_every_line_too() -> None:
    sizes = [4096, 1 << 16]
    assert [point.bytes for point in hopper_dissect.in_order(sizes)] == sizes
    assert hopper_dissect.slowdown([Latency(1, 2e-9), Latency(2, 1e-9), Latency(3, 8e-9)]) == pytest.approx(4.0)


def test_levels_need_a_system_that_states_them() -> None:
    row, _ = hopper_dissect._levels(facts()._replace(caches=(Cache(3, 1 << 20),)))
    assert row.ours is None
    assert "does not state" in row.why


def test_without_torch_what_needs_it_is_not_run_and_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonde.papers.skip.torch_or_none", lambda: None)
    found = skip.reproduce(lambda *_: None)
    tried = {row.claim.setup: row.ours for row in found.rows if row.ours is not None}
    assert len(tried) == len(skip.PREFILL)
    assert all("predicted" in setup for setup in tried)
    assert all("torch" in row.why for row in found.rows if row.ours is None)


def test_gains_in_prefill_are_those_of_the_cost_model() -> None:
    from sonde.catalogue.devices import device

    for other in skip.PREFILL:
        row = skip._prefill(other)
        assert row.ours is not None
        peaks = device("gh200").flops["bf16"] / device(other).flops["bf16"]
        assert 0.5 * peaks < row.ours < 2 * peaks, "a long prompt is bound by compute"

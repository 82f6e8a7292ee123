"""What DistServe is tried with: its published steps as a table, traffic, goodput, the crossing, two real processes."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest

from sonde.catalogue.distserve_steps import KV_TOKENS, LARGE, MEASURED
from sonde.cost.table import coefficients
from sonde.papers import distserve
from sonde.papers.frame import shelf
from sonde.plan.disaggregate import holds_at, most_rate

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs torch: pip install 'sonde[run]'"
)
SMALL = distserve.CHAT._replace(requests=800)


@pytest.mark.parametrize(("name", "ranks"), list(MEASURED))
def test_steps_are_the_published_ones(name, ranks):
    setting = next(it for it in distserve.SETTINGS if it.model == name)
    made = distserve.published(setting, ranks, "prefill-first", 2048)
    (a, b, c), *lines = MEASURED[name, ranks]
    for lengths in ((1,), (700,), (2000,), (512, 512, 700)):
        total, squares = sum(lengths), sum(n * n for n in lengths)
        ours = coefficients(made.table.time, total, 0, squares / 2, 0.0)
        assert 1e3 * ours == pytest.approx(a + b * total + c * squares)
    for batch in (1, 8, 94, 95, 200, 256):
        base, per_token, each = lines[batch >= LARGE]
        ours = coefficients(made.table.time, 0, batch, 0.0, batch * 900.0)
        assert 1e3 * ours == pytest.approx(base + per_token * batch * 900 + each * batch)
    held = made.memory.capacity_bytes // made.memory.block_bytes * made.memory.block_tokens
    assert held == KV_TOKENS.get((name, ranks), held)


def test_a_cache_has_the_bytes_of_the_model():
    memory = distserve.published(distserve.CHAT, 1, "chunked", 512).memory
    assert memory.block_bytes / memory.block_tokens == 2 * 40 * 5120 * 2


def test_traffic_has_the_lengths_that_are_stated():
    asked = distserve.drawn(distserve.CHAT, 0)
    assert asked.n == distserve.CHAT.requests
    assert (asked.prompt_tokens + asked.output_tokens).max() <= distserve.CONTEXT
    assert asked.prompt_tokens.mean() == pytest.approx(655, rel=0.03)
    assert asked.output_tokens.mean() == pytest.approx(204, rel=0.03)
    assert (distserve.drawn(distserve.CHAT, 1).prompt_tokens != asked.prompt_tokens).any()
    assert (distserve.drawn(distserve.lone(distserve.CHAT), 0).output_tokens == 1).all()


def test_only_where_phases_run_differs():
    one, two = (distserve.published(distserve.CHAT, 2, policy, 2048) for policy in ("prefill-first", "chunked"))
    assert (one.table.time.linear == two.table.time.linear).all()
    assert (one.table.time.decode == two.table.time.decode).all()
    assert one.memory == two.memory


def test_goodput_is_where_the_goal_begins_to_fail():
    asked, goal = distserve.drawn(SMALL, 0), SMALL.goal()
    found = distserve.colocated(SMALL, asked, goal, distserve.published, "prefill-first")
    fleet = [(distserve.published(SMALL, 2, "prefill-first", 2048), distserve.GPUS // 2)]
    assert found[2] * distserve.GPUS == most_rate(asked, goal, fleet, float(distserve.GPUS))
    assert not holds_at(asked, goal, fleet, found[2] * distserve.GPUS * 1.03)


def test_a_slow_link_makes_it_worse_and_a_free_one_hardly_better():
    asked, goal = distserve.drawn(SMALL, 0), SMALL.goal()
    fast, _ = distserve.apart(SMALL, asked, goal)
    slow, _ = distserve.apart(SMALL, asked, goal, link=distserve.ETHERNET)
    free, _ = distserve.apart(SMALL, asked, goal, link=distserve.FABRIC._replace(bytes_per_s=1e30))
    assert slow < 0.5 * fast
    assert 0.97 * fast <= free <= 1.05 * fast


@pytest.mark.parametrize(
    ("gains", "point"),
    [
        ([0.8, 1.2, 1.3], math.sqrt(0.1 * 0.05)),
        ([1.1, 1.2, 1.3], 0.1),
        ([1.1, 0.9, 1.1], math.sqrt(0.05 * 0.02)),
        ([1.1, 0.9, 0.8], math.nan),
    ],
)
def test_the_crossing_is_the_last_one(gains, point):
    assert distserve.crossing((0.1, 0.05, 0.02), np.array(gains)) == pytest.approx(point, nan_ok=True)


@needs_torch
def test_two_processes_write_what_one_writes():
    from sonde.learn.handover_serving import measured

    found = measured((3,))
    assert found.differ == 0
    assert found.lost > 0
    assert found.tokens == 8 * 48 + 6 * 4
    assert min(found.whole + found.chunked + found.apart + list(found.quiet)) > 0


def test_without_torch_it_says_what_it_needs(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == "torch" else real(found, *rest)
    )
    rows, _ = distserve._real()
    assert [row.ours for row in rows] == [None, None]
    assert all("sonde[run]" in row.why for row in rows)


@pytest.mark.slow
@needs_torch
def test_it_comes_out():
    """Times of this machine are only asked to be there; all else holds, or fails, as it did."""
    rows, claims = shelf.reproduce("distserve").rows, shelf.paper("distserve").claims
    fails = {key for key, claim in claims.items() for row in rows if row.claim is claim and not row.holds}
    assert fails - {"stall"} == {"rate", "tighter", "example"}
    assert len(rows) == len(claims)
    assert all(row.why for row in rows)

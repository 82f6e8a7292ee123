"""What Llumnix is tried with: traffic, replicas, dispatch beside urgent requests, sequences moved between processes."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sonde.papers import llumnix
from sonde.policies.routing import PoolView, RequestView

TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="needs torch: pip install 'sonde[run]'")


@pytest.mark.parametrize("mean", [128, 256, 512])
def test_lengths_are_a_power_law_with_that_mean(mean):
    found = llumnix.lengths(mean)
    assert found.mean() == pytest.approx(mean, rel=0.02)
    assert found.min() == llumnix.LEAST
    assert np.median(found) < mean / 3
    assert mean * 8 < found.max() <= llumnix.MOST


def test_seeds_draw_the_order_and_the_gaps():
    load = llumnix.Load(20.0, 128, 4.0)
    one, two = (llumnix.traffic(load, seed) for seed in (0, 1))
    assert sorted(one.prompt_tokens) == sorted(two.prompt_tokens)
    assert (one.prompt_tokens != two.prompt_tokens).any()
    gaps = np.diff(one.arrival_s)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(4.0, rel=0.15)
    assert (one.prompt_tokens + one.output_tokens).max() <= llumnix.MOST


def test_a_replica_holds_as_much_as_the_papers():
    memory = llumnix.engine().memory
    assert memory.capacity_bytes // memory.block_bytes * memory.block_tokens == llumnix.TOKENS


def test_only_what_is_not_urgent_stays_away_from_what_is():
    zero, ones = np.zeros(2, np.int64), np.ones(2, np.int64)
    view = PoolView(
        zero, zero, 4 * ones, zero, np.array([1000, 3000]), 13_600 * ones, zero, zero, np.array([1, 0]), zero, ones
    )
    asked = RequestView(0, 0.0, 10, 1, -1, 0.5, 0.5)
    assert llumnix.aside(view, asked) == 1
    assert llumnix.aside(view, asked._replace(priority=0)) == 0


def test_migration_takes_preemptions_away_and_changes_nothing_where_there_is_room():
    busy = llumnix.traffic(llumnix.BUSY, 0)
    alone, moved = (llumnix.served(way, busy) for way in (llumnix.FREE, llumnix.LLUMNIX))
    assert alone.preemptions.sum() > 20
    assert moved.preemptions.sum() < 0.2 * alone.preemptions.sum()
    light = llumnix.traffic(llumnix.LIGHT, 0)
    alone, moved = (llumnix.served(way, light) for way in (llumnix.FREE, llumnix.LLUMNIX))
    assert moved.travel.migrations == 0
    np.testing.assert_array_equal(alone.finish_s, moved.finish_s)


@needs_torch
def test_a_text_is_the_same_wherever_it_is_written():
    from sonde.learn.migration_study import Work, pool

    prompt = np.random.default_rng(0).integers(0, 256, 80).tolist()
    with pool(2, 16, 0) as workers:
        stay, live, stop, anew, lost = (
            workers.serve([Work(prompt, 30, worker=0, move=way and (way, 4))])[0]
            for way in (None, "live", "stop", "recompute", "lost")
        )
        full = workers.serve([Work(prompt, 30, worker=0, move=("live", 4)), Work(prompt[:40], 200, worker=1)])
    assert not stay.moved
    assert stay.tokens == live.tokens == stop.tokens == anew.tokens != lost.tokens
    assert len(live.moved) == len(stop.moved) == len(anew.moved) == 1
    assert live.moved[0] >= stop.moved[0] >= 4
    assert full[0].tokens == stay.tokens
    assert len(full[1].tokens) == 200

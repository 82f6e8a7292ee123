"""What Sarathi-Serve and SN40L are tried with: traffic, capacity by search, compositions, experts run here."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sonde.papers import sarathi, sn40l
from sonde.papers.frame import shelf

TORCH = importlib.util.find_spec("torch") is not None
YI = sarathi.SETTINGS[0]


@pytest.mark.parametrize("name", sarathi.DATA)
def test_traffic_has_the_lengths_that_are_stated(name):
    lengths = sarathi.DATA[name]
    prompt, output, arrival = sarathi.drawn(lengths, 0)
    assert len(prompt) == len(output) == len(arrival) == sarathi.REQUESTS
    assert (prompt + output).max() <= lengths.most
    assert np.median(prompt) == pytest.approx(lengths.prompt[0], rel=0.12)  # cutting at the most takes long ones away
    assert np.median(output) == pytest.approx(lengths.output[0], rel=0.08)
    assert np.diff(arrival).mean() == pytest.approx(1.0, rel=0.07)
    assert (sarathi.drawn(lengths, 0)[0] == prompt).all()
    assert (sarathi.drawn(lengths, 1)[0] != prompt).any()


@pytest.mark.parametrize("way", [0, 1, 2])
def test_capacity_is_where_an_objective_begins_to_fail(way):
    lengths = sarathi.DATA["openchat_sharegpt4"]
    made, traffic = sarathi.engines(YI, lengths.most)[way], sarathi.drawn(lengths, 3)
    most = sarathi.capacity(made, traffic, YI.tbt)

    def holds(rate):
        outcome = sarathi.served(made, traffic, rate)
        waited = np.sort(outcome.scheduled_s - outcome.arrival_s)[len(outcome.arrival_s) // 2]
        return outcome.quantile("itl", 0.99) <= YI.tbt and waited <= sarathi.MEDIAN_WAIT_S + 1e-6

    assert holds(most)
    assert not holds(most * 1.021)
    assert [holds(share * most) for share in (0.3, 0.6, 0.9)] == [True] * 3


def test_only_the_way_of_forming_steps_differs():
    whole, orca, chunks = sarathi.engines(YI, 8192)
    assert [made.batching for made in (whole, orca, chunks)] == ["prefill-first", "iteration", "chunked"]
    for n in (1, 100, 4000):
        assert whole.table.time.linear[n] == orca.table.time.linear[n] == chunks.table.time.linear[n]
    assert whole.table.time.prefill == chunks.table.time.prefill
    assert chunks.token_budget % 128 == 0


def test_an_objective_that_never_holds_is_no_capacity():
    traffic = sarathi.drawn(sarathi.DATA["openchat_sharegpt4"], 0)
    assert sarathi.capacity(sarathi.engines(YI, 8192)[0], traffic, 1e-4) == 0.0


def test_compositions_come_out_by_popularity_and_node():
    alike, skewed = (sn40l.asked(150, "sn40l-node", alpha) for alpha in (0.0, 1.2))
    assert skewed.miss_rate < alike.miss_rate
    assert alike.miss_rate == pytest.approx(1 - alike.resident / 150, abs=0.01)
    assert sn40l.asked(150, "dgx-a100").switch_s / alike.switch_s == pytest.approx(1e12 / 32e9)


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="needs torch: pip install 'sonde[run]'")
@pytest.mark.parametrize("name", ["sarathi", "sn40l"])
def test_it_comes_out(name):
    """Times of this machine are only asked to be there; all else holds, or fails, as it did."""
    rows = shelf.reproduce(name).rows
    measured = {"gap", "kept", "real"}
    claims = shelf.paper(name).claims
    fails = {key for key, claim in claims.items() for row in rows if row.claim is claim and not row.holds}
    assert fails - measured == {
        "sarathi": {"falcon", "budget_relaxed", "overhead_long"}, "sn40l": {"fused_decode"},
    }[name]  # fmt: skip
    assert all(row.why for row in rows)
    assert len(rows) == len(claims)


@pytest.mark.skipif(not TORCH, reason="needs torch: pip install 'sonde[run]'")
def test_experts_run_for_real_load_as_the_simulated_cache_does():
    from sonde.cost.switching import misses
    from sonde.learn.experts import EXPERTS, RESIDENT, ran

    asked = np.random.default_rng(5).integers(0, EXPERTS, 12)
    run = ran(asked, 5)
    assert run.right
    assert run.loads == misses(asked, RESIDENT).sum()
    assert run.kept_s < run.switch_s


@pytest.mark.parametrize("name", ["sarathi", "sn40l"])
def test_without_torch_they_say_what_they_need(name, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == "torch" else real(found, *rest)
    )
    module = {"sarathi": sarathi, "sn40l": sn40l}[name]
    for row in module._real():
        assert row.ours is None
        assert "sonde[run]" in row.why

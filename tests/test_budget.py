"""The token budget that a time between tokens allows: the largest, with the memory it leaves, and kept in a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.cost.compile import compile_replica
from sonde.deployment.load import load
from sonde.deployment.tree import Batching, Replica
from sonde.errors import CannotError, InputError
from sonde.metrics import itl_edges
from sonde.sim.engine import run
from sonde.sim.simulate import fleet, simulate
from sonde.techniques.compose import arranged, chosen, compiled, replica_under
from sonde.techniques.token_budget import hybrid_s, pairs, sequences
from sonde.workload.generate import poisson

LLAMA, A100 = "llama-3.1-8b", "a100-sxm-80gb"


def replica(name=LLAMA, budget=2048, batch=64, **more):
    return Replica(model=name, device=A100, batching=Batching(max_batch=batch, token_budget=budget), **more)


def found(name=LLAMA, **parameters):
    uses = chosen([{"token-budget": parameters}])
    return compiled(model(name), device(A100), replica_under(replica(name), uses), uses)


def naive(name, tbt, context, decodes, tile):
    """Compile a replica for every budget, build its step word for word, and keep the last that holds."""
    best = None
    for budget in range(tile, 8193, tile):
        try:
            engine = compile_replica(model(name), device(A100), replica(name, budget))
        except CannotError:
            continue
        b = min(64, decodes if decodes is not None else sequences(engine.memory, context, engine.table.window))
        chunk = budget - b
        if chunk <= 0:
            continue
        time, window = engine.table.time, engine.table.window
        done = max(context - chunk, 0)
        positions = done + np.arange(chunk) + 0.5
        seconds = (
            time.fixed + time.linear[budget] + time.prefill * positions.sum()
            + time.decode[b] + time.read[b] * b * context + time.read_window[b] * b * min(window, context)
        )  # fmt: skip
        if window:
            seconds += time.prefill_window * np.minimum(positions, window).sum()
        if seconds <= tbt:
            best = engine
    return best


@settings(deadline=None, max_examples=6)
@given(
    name=st.sampled_from([LLAMA, "mistral-7b"]), tbt=st.floats(0.03, 0.6), context=st.sampled_from([1000, 4096, 9000]),
    decodes=st.sampled_from([None, 0, 40]), tile=st.sampled_from([512, 640]),
)  # fmt: skip
def test_the_budget_is_the_largest_that_holds(name, tbt, context, decodes, tile):
    best = naive(name, tbt, context, decodes, tile)
    wanted = {"tbt": tbt, "context": context, "decodes": decodes, "tile": tile}
    if best is None:
        with pytest.raises(InputError, match="decoding alone takes"):
            found(name, **wanted)
        return
    engine = found(name, **wanted)
    assert engine.token_budget == best.token_budget
    assert engine.memory == best.memory


@given(done=st.integers(0, 300), chunk=st.integers(0, 200), window=st.integers(1, 250))
def test_pairs_are_counted_token_by_token(done, chunk, window):
    positions = done + np.arange(chunk) + 0.5
    assert pairs(done, chunk) == pytest.approx(positions.sum())
    # the token at the window's edge counts as half read by both rules
    assert pairs(done, chunk, window) == pytest.approx(np.minimum(positions, window).sum(), abs=0.2)


def test_a_longer_time_between_tokens_allows_a_larger_budget():
    budgets = [found(tbt=f"{ms} ms", decodes=32).token_budget for ms in (60, 120, 240)]
    assert budgets == sorted(set(budgets))
    assert all(budget % 128 == 0 for budget in budgets)


def test_gaps_stay_within_the_time_in_a_run_and_do_not_without():
    """Prompts of 4,000 tokens arrive among sequences that decode: every gap is one step, and every step holds."""
    requests = poisson(2.0, 300, 4000, 90)
    pool = {"replica": {"model": LLAMA, "device": A100, "batching": {"max_batch": 64}}}
    tree = load({"sites": [{"pools": [pool]}]})
    limit = 0.08
    with_budget = tree.model_copy(update={"techniques": ({"token-budget": {"tbt": "80 ms", "context": 4100}},)})
    held, open_ = simulate(with_budget, requests), simulate(tree, requests)
    assert longest(held) <= limit * 1.012  # gaps are counted in bins of 1 %
    assert longest(open_) > 1.5 * limit
    assert held.completed == open_.completed == 300


def longest(outcome):
    return itl_edges()[np.nonzero(outcome.itl_counts)[0][-1]]


def test_the_policy_becomes_chunked_and_the_engine_is_what_runs():
    pool = {"replica": {"model": LLAMA, "device": A100, "batching": {"policy": "prefill-first"}}}
    tree = arranged(load({"sites": [{"pools": [pool]}], "techniques": [{"token-budget": {"tbt": 0.1}}]}))
    assert tree.pools[0].replica.batching.policy == "chunked"
    ((engine, _),) = fleet(tree)
    assert engine.token_budget != 2048
    assert hybrid_s(engine.table, engine.token_budget - 8, 8, 4096) <= 0.1
    assert run(poisson(1.0, 20, 100, 10), [(engine, 1)]).completed == 20


@pytest.mark.parametrize(
    ("use", "path"),
    [
        ({"token-budget": {"tbt": "0 ms"}}, "techniques[0].token-budget.tbt"),
        ({"token-budget": {"tbt": "3 GB"}}, "techniques[0].token-budget.tbt"),
        ({"token-budget": {"tbt": -1.0}}, "techniques[0].token-budget.tbt"),
        ({"token-budget": {"tbt": 0.1, "tile": 0}}, "techniques[0].token-budget.tile"),
        ({"token-budget": {}}, "techniques[0].token-budget.tbt"),
        ("token-budget", "techniques[0].token-budget.tbt"),
    ],
)
def test_what_cannot_be_is_refused(use, path):
    with pytest.raises(InputError) as caught:
        chosen([use])
    assert caught.value.path == path


@pytest.mark.parametrize("other", ["chunked-prefill", "speculative-decoding", "multi-token-prediction"])
def test_what_it_cannot_stand_beside_is_refused_with_why(other):
    with pytest.raises(InputError, match="cannot stand beside"):
        chosen([other, {"token-budget": {"tbt": 0.1}}])

"""Lending by hand: what a step takes where a part of a cache lies elsewhere, what is refused, and what users write."""

from __future__ import annotations

import numpy as np
import pytest

from sonde.catalogue.models import model
from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.deployment.load import load
from sonde.errors import InputError
from sonde.sim.engine import run
from sonde.sim.layout import exchanged
from sonde.sim.network import Connected, LendingSpec, LinkSpec, Paths
from sonde.sim.simulate import simulate
from sonde.workload.requests import requests

READ = 0.25
LINK = LinkSpec(1024.0, 0.5)


def engine(capacity: int, *, window: int = 0, preemption: str = "recompute", block: int = 2) -> Engine:
    """Return an engine whose steps take 1 s and a quarter more for each token read; a token takes a byte."""
    zero = np.zeros(9)
    time = Coefficients(1.0, zero, 0.0, 0.0, 0.0, zero, zero + READ, zero)
    memory = KvMemory(capacity, block, block, 1 if window else 0, 0, 1.0)
    return Engine(StepTable(time, time, window), memory, "chunked", 8, 64, preemption, 0.0, 0.0, 1)


def connected(*capacities: int, reserve: int = 0, rounds: int = 1) -> Connected:
    spec = LendingSpec(LINK, reserve, 512, rounds)
    return Connected([(engine(capacity), 1) for capacity in capacities], Paths(lending=spec))


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_step_waits_for_the_longer_of_its_own_attention_and_the_exchange(rounds):
    """A prompt of 12 tokens where 8 fit: 4 lie elsewhere, and two more with every second token."""
    outcome = run(requests([0.0], [12], [5]), connected(8, 64, rounds=rounds))
    lent, before = [6, 6, 8, 8], 4
    first = now = 1.0 + 0.5 + 4 / 1024  # the prompt, and two blocks on the link
    for made, there in enumerate(lent, 2):
        read = 12 + made - 1 - there
        moved = (0.5 + (there - before) / 1024) if there > before else 0.0
        exchange = 2 * rounds * 0.5 + 512 / 1024 + READ * there
        now += 1.0 + max(READ * read, exchange) + moved
        before = there
    assert outcome.first_token_s[0] == pytest.approx(first)
    assert outcome.finish_s[0] == pytest.approx(now)
    assert outcome.travel is not None
    assert outcome.travel.borrowed_tokens[0] == 8
    assert outcome.travel.loans == 3


def test_who_lends_reads_for_others_in_each_of_its_steps():
    asked = requests([0.0, 0.0], [12, 4], [1, 9])
    alone = run(requests([0.0], [4], [9]), [(engine(64), 1)])
    both = run(asked, connected(8, 64), routing="round-robin")
    assert both.first_token_s[1] > alone.first_token_s[0] or both.finish_s[1] > alone.finish_s[0]
    assert both.finish_s[0] < both.finish_s[1]


def test_what_fits_no_replica_but_two_is_served_and_what_fits_no_two_is_refused():
    outcome = run(requests([0.0, 0.0, 0.0], [4, 12, 30], [2, 2, 2]), connected(8, 8))
    assert np.isfinite(outcome.finish_s).tolist() == [True, True, False]
    kept = run(requests([0.0], [12], [2]), connected(8, 8, reserve=8))
    assert kept.replica[0] == -1


@pytest.mark.parametrize(
    ("engines", "said"),
    [
        ([engine(8)], "needs at least 2 replicas"),
        ([engine(8), engine(8, block=4)], "blocks of one size"),
        ([engine(8, window=4), engine(8, window=4)], "without windows"),
        ([engine(8, preemption="swap"), engine(8)], "must be recompute"),
    ],
)
def test_what_cannot_lend_is_refused(engines, said):
    fleet = Connected([(one, 1) for one in engines], Paths(lending=LendingSpec(LINK)))
    with pytest.raises(InputError, match=said):
        run(requests([0.0], [2], [2]), fleet)


def test_a_link_without_bandwidth_is_refused():
    fleet = Connected([(engine(8), 2)], Paths(lending=LendingSpec(LinkSpec(0.0))))
    with pytest.raises(InputError, match="bandwidth above 0"):
        run(requests([0.0], [2], [2]), fleet)


TEXT = """
sites:
  - pools:
      - replicas: {replicas}
        replica: {{ model: llama-2-7b, device: a100-sxm-80gb }}
{more}
"""


def test_the_technique_and_the_keys_that_it_writes_are_the_same():
    asked = requests(np.zeros(3), [90_000, 20_000, 60_000], [40, 40, 40])
    by_name = load(TEXT.format(replicas=2, more="techniques: [distributed-attention: { bandwidth: 50 GB/s }]"))
    by_hand = load(
        TEXT.format(replicas=2, more="links: { a: { bandwidth: 50 GB/s } }\nlending: { link: a, reserve: 0 B }")
    )
    one, two, none = (simulate(it, asked) for it in (by_name, by_hand, load(TEXT.format(replicas=2, more=""))))
    np.testing.assert_array_equal(one.finish_s, two.finish_s)
    assert one.travel is not None
    assert one.travel.loans > 0
    assert not np.array_equal(one.finish_s, none.finish_s)


def test_a_link_that_is_not_there_and_a_replica_alone_are_refused():
    asked = requests([0.0], [8], [8])
    with pytest.raises(InputError, match=r"lending\.link"):
        simulate(load(TEXT.format(replicas=2, more="lending: { link: b }")), asked)
    with pytest.raises(InputError, match="needs at least 2 replicas"):
        simulate(load(TEXT.format(replicas=1, more="techniques: [distributed-attention]")), asked)


def test_what_is_exchanged_is_queries_and_partial_results():
    size, rounds = exchanged(model("llama-2-7b"))
    assert rounds == 32
    assert size == 32 * (2 * 4096 + 2 * 32) * 2

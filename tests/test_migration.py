"""Live migration in the simulator: what a sequence's move costs, in closed form; policies; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.cost.table import Coefficients, Engine, KvMemory, StepTable
from sonde.deployment.check import check
from sonde.deployment.load import load
from sonde.errors import InputError
from sonde.policies import migration, routing
from sonde.policies.migration import Pair, Thresholds
from sonde.sim.engine import run
from sonde.sim.network import Connected, LinkSpec, MigrationSpec, Paths
from sonde.workload.requests import requests

STEP, BYTES = 1.0, 4  # seconds of any step; bytes of a token's cache
WAIT, RATE = 0.125, 2.0**20


def engine(tokens=10_000, batch=8):
    """An engine whose every step takes a second, prompts in one step, one token a block."""
    zero = np.zeros(batch + 1)
    time = Coefficients(STEP, np.zeros(2), 0.0, 0.0, 0.0, zero, zero, zero)
    memory = KvMemory(tokens * BYTES, 1, BYTES, 0, 0, 1.0)
    return Engine(StepTable(time, time, 0), memory, "prefill-first", batch, 100_000, "recompute", 0.0, 1.0, 1)


def moved(prompt, output=64, *, spec=None, more=()):
    """A request alone at the first of two replicas that has to leave it: one that is full is sent there as well."""
    rows = [(0.0, prompt, output), *more]
    paths = Paths(migration=spec or MigrationSpec(LinkSpec(RATE, WAIT), interval_s=8.5, low=1e9, high=-1.0))
    return run(requests(*zip(*rows, strict=True)), Connected([(engine(), 2)], paths), routing="round-robin")


def once(**more):
    """Migration that moves what runs at the first replica whenever it is looked at, and never anything back."""
    return MigrationSpec(LinkSpec(RATE, WAIT), interval_s=8.5, low=1e9, high=1e9, policy=f"{__name__}:away", **more)


def away(view, thresholds):
    """Send from the first replica to the second (a policy of a user's own)."""
    if view.running[0] > 0 and view.moving[0] == 0:
        return 0, 1
    return -1, -1


def nowhere(view, thresholds):
    """Name a replica that there is not."""
    return 0, len(view.queued)


def itself(view, thresholds):
    """Move nothing, from a replica to itself."""
    return Pair(0, 0)


def fails(view, thresholds):
    """Fail where anything runs."""
    found = np.zeros(1)
    return int(found[view.running[0]]), -1


def answers(view, thresholds):
    """Return what is no pair."""
    return 1


def total_s(output, downtime):
    """Seconds from arrival to the last token: a prompt's step, the other tokens, and the pause."""
    return STEP * output + downtime


@pytest.mark.parametrize("prompt", [16, 256, 4096])
def test_downtime_is_the_rest_over_the_link_and_the_wait_for_a_step(prompt):
    """Asked at 8.5 s, the copy takes less than a step after its latency: two tokens at most are left to send."""
    outcome = moved(prompt, spec=once())
    first = 8.5 + (prompt + 7) * BYTES / RATE + WAIT  # in the ninth step: seven tokens decoded so far are cached
    leaves = np.ceil(first)
    left = prompt + int(leaves) - 1 - (prompt + 7)
    pause = left * BYTES / RATE + WAIT
    assert outcome.travel.moves.tolist() == [1]
    assert outcome.travel.landed_s[0] == leaves + pause
    assert outcome.finish_s[0] == total_s(64, pause)
    assert outcome.travel.paused_s[0] == pause
    assert outcome.summary()["paused_s"] == {"mean": pause, "max": pause}
    assert outcome.travel.links["bytes"].sum() == (prompt + 7 + left) * BYTES
    assert outcome.travel.links["transfers"].sum() == 2


def test_downtime_is_flat_in_the_length_of_the_sequence_where_a_whole_copy_grows():
    lengths = [128, 1024, 8192]
    pauses = [moved(n, spec=once()).finish_s[0] - total_s(64, 0.0) for n in lengths]
    assert max(pauses) - min(pauses) <= BYTES / RATE * 2
    slow = once()._replace(link=LinkSpec(4096.0, WAIT))
    grow = [moved(n, spec=slow._replace(copies=1)).finish_s[0] - total_s(64, 0.0) for n in lengths]
    assert max(grow) <= WAIT + 10 * BYTES / 4096  # what is copied while it decodes pauses nothing


def test_stages_go_on_until_little_is_left_or_none_may_follow():
    """A link that carries four tokens a second beside one that is made: 16, then 4, then 1 left."""
    slow = LinkSpec(4.0 * BYTES, 0.0)
    for copies, tail, transfers in ((1, 0, 2), (2, 0, 3), (3, 0, 4), (9, 4, 3), (9, 16, 2)):
        spec = once(copies=copies, tail_tokens=tail)._replace(link=slow)
        outcome = moved(57, 64, spec=spec)
        assert outcome.travel.links["transfers"].sum() == transfers, (copies, tail)
        assert outcome.travel.moves.tolist() == [1]


def test_a_sequence_that_ends_meanwhile_is_given_up_and_its_memory_freed():
    spec = once()._replace(link=LinkSpec(4.0 * BYTES, 0.0))
    outcome = moved(100, 12, spec=spec, more=[(200.0, 9_980, 20)])
    assert outcome.travel.given_up == 1
    assert outcome.travel.moves.sum() == 0
    assert outcome.finish_s[0] == total_s(12, 0.0)
    assert outcome.finish_s[1] == 200.0 + total_s(20, 0.0)  # the other replica has all of its memory again
    assert outcome.replica.tolist() == [0, 1]


def test_nothing_moves_to_where_there_is_no_memory():
    outcome = moved(5_000, 64, spec=once(), more=[(0.0, 9_000, 64)])
    assert outcome.travel.moves.sum() == 0
    assert outcome.finish_s.tolist() == [64.0, 64.0]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_every_token_is_made_once_wherever_it_is(data):
    """Gaps between tokens are as many as tokens, whatever moves; what moved less often than it stopped is given up."""
    n = data.draw(st.integers(2, 24))
    rows = [
        (float(i) * data.draw(st.integers(0, 3)), data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60)))
        for i in range(n)
    ]
    arrival, prompt, output = (list(column) for column in zip(*sorted(rows), strict=True))
    link = LinkSpec(2.0 ** data.draw(st.integers(3, 12)), 0.25)
    policy = data.draw(st.sampled_from(list(migration.POLICIES)))
    spec = MigrationSpec(link, 0.5, 20.0, data.draw(st.sampled_from([5.0, 40.0])), 0, 4, 3, policy)
    fleet = Connected([(engine(tokens=160), 3)], Paths(migration=spec))
    outcome = run(requests(arrival, prompt, output), fleet, routing="round-robin")
    assert outcome.completed == n
    assert outcome.itl_counts.sum() == sum(output) - n
    assert outcome.travel.migrations == outcome.travel.moves.sum()
    assert (outcome.peak_kv_bytes <= outcome.kv_capacity_bytes).all()


# policies


def view(*replicas):
    """Columns of (queued, running, tokens used, tokens at the head of the queue, moving, urgent), 100 tokens each."""
    queued, running, used, head, moving, urgent = (np.array(c, np.int64) for c in zip(*replicas, strict=True))
    n, ones = np.zeros_like(queued), np.ones_like(queued)
    return routing.PoolView(queued, head, running, used, used, 100 * ones, n, head, urgent, moving, ones)


IDLE, BUSY = (0, 1, 10, 0, 0, 0), (0, 4, 96, 0, 0, 0)
LIMITS = Thresholds(10.0, 20.0, 50, 0)


def test_the_shortest_of_memory_sends_to_the_freest():
    assert migration.defragment(view(IDLE, BUSY, (0, 2, 20, 0, 0, 0)), LIMITS) == (1, 0)
    assert migration.defragment(view(IDLE, (0, 4, 60, 0, 0, 0)), LIMITS) == (-1, -1)  # 10 steps: not below
    assert migration.defragment(view(BUSY, BUSY), LIMITS) == (-1, -1)
    assert migration.defragment(view((0, 1, 10, 0, 1, 0), BUSY), LIMITS) == (-1, -1)


def test_what_waits_counts_as_if_its_memory_were_taken():
    waits = (1, 3, 40, 55, 0, 0)
    assert migration.defragment(view(IDLE, (0, 3, 40, 0, 0, 0)), LIMITS) == (-1, -1)
    assert migration.defragment(view(IDLE, waits), LIMITS) == (1, 0)


def test_room_is_made_beside_what_is_urgent():
    assert migration.defragment(view(IDLE, (0, 4, 40, 0, 0, 0)), LIMITS) == (-1, -1)
    assert migration.defragment(view(IDLE, (0, 4, 40, 0, 0, 1)), LIMITS) == (1, 0)
    assert migration.defragment(view((0, 2, 50, 0, 0, 1), (0, 4, 40, 0, 0, 1)), LIMITS) == (-1, -1)


def test_balanced_moves_nothing_that_would_turn_the_difference_round():
    assert migration.balanced(view(IDLE, BUSY), LIMITS) == (1, 0)
    lone = (0, 1, 96, 0, 0, 0)  # all that runs there, and as much again as the other holds
    assert migration.defragment(view(IDLE, lone), LIMITS) == (1, 0)
    assert migration.balanced(view(IDLE, lone), LIMITS) == (-1, -1)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 6), st.integers(0, 100), st.integers(0, 60), st.integers(0, 1),
            st.integers(0, 1),
        ),
        min_size=1, max_size=6,
    ),
    first=st.integers(0, 2),
)  # fmt: skip
def test_policies_name_two_replicas_that_decode_or_none(rows, first):
    for policy in migration.POLICIES.values():
        source, target = policy(view(*rows), LIMITS._replace(first=first))
        if source == migration.NONE:
            assert target == migration.NONE
            continue
        assert source != target
        assert min(source, target) >= first
        assert rows[source][1] > 0
        assert rows[source][4] == rows[target][4] == 0


def test_new_requests_go_where_memory_lasts_longest_and_a_lack_is_not_shared_out():
    request = routing.RequestView(0, 0.0, 10, 0, -1, 0.5, 0.5)
    assert routing.freeness(view(BUSY, IDLE), request) == 1
    long_queue, short_queue = (9, 4, 96, 300, 0, 0), (1, 4, 96, 60, 0, 0)
    assert routing.freeness(view(long_queue, short_queue), request) == 1


# a policy of the user's own


def test_a_policy_of_ones_own_is_asked():
    assert moved(64, spec=once()).travel.moves.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "returned (0, 2)"), ("itself", "Pair(source=0, target=0)"), ("fails", "raised IndexError"),
        ("answers", "must return a Pair"), ("nothing", "can't be imported"),
    ],
)  # fmt: skip
def test_a_policy_of_ones_own_that_cannot_be_used_is_an_error(name, says):
    spec = once()._replace(policy=f"{__name__}:{name}")
    with pytest.raises(InputError) as caught:
        moved(64, spec=spec)
    assert caught.value.path == "migration.policy"
    assert says in str(caught.value)


# what is refused before anything runs

REPLICA = {"model": "llama-3.1-8b", "device": "h100-sxm"}


def tree(pools=None, **moving):
    pools = pools or [{"name": "pool", "replicas": 2, "replica": REPLICA}]
    return {"sites": [{"pools": pools}], "links": {"wire": {"bandwidth": "8 GB/s"}}, "migration": moving}


@pytest.mark.parametrize(
    ("moving", "path", "says"),
    [
        ({"link": "wire", "policy": "defragmant"}, "migration.policy", "defragment"),
        ({"link": "wire", "low": 61}, "migration.low", "at most high = 60"),
        ({"link": "wire", "low": float("nan")}, "migration.low", "finite"),
        ({"link": "wires"}, "migration.link", "wire"),
        ({}, "migration.link", ""),
        ({"link": "wire", "interval": "0 s"}, "migration.interval", ""),
        ({"link": "wire", "headroom": "-1 GB"}, "migration.headroom", ""),
        ({"link": "wire", "stages": 0}, "migration.stages", ""),
        ({"link": "wire", "tail_tokens": -1}, "migration.tail_tokens", ""),
        ({"link": "wire", "tail": 16}, "migration.tail", "tail_tokens"),
    ],
)
def test_what_cannot_migrate_is_refused(moving, path, says):
    with pytest.raises(InputError) as caught:
        check(load(tree(**moving)))
    assert caught.value.path == path
    assert says in str(caught.value)


def test_caches_of_two_precisions_cannot_be_moved():
    pools = [
        {"name": "a", "replica": REPLICA},
        {"name": "b", "replica": {**REPLICA, "kv_cache": "fp8"}},
    ]
    with pytest.raises(InputError, match="kv_cache"):
        check(load(tree(pools, link="wire")))
    check(load(tree([{**pools[0], "replicas": 2}], link="wire", policy="balanced")))

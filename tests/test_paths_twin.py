"""Hand-over, links, prefix caches and migration against the naive stepper, to the last bit."""

from __future__ import annotations

import os

import drawn
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from reference_paths import PathStepper

from sonde.policies import migration, routing
from sonde.sim.engine import run
from sonde.sim.network import SCOPES, CacheSpec, Connected, LendingSpec, LinkSpec, MigrationSpec, Paths, TierSpec

EXAMPLES = int(os.environ.get("SONDE_TWIN_EXAMPLES", "0"))
ALL = ("static", "iteration", "prefill-first", "chunked", "inflight", "chunks-first")
MOVING = ("prefill-first", "chunked", "chunks-first")
#: the slowest link (log2 bytes/s) where replicas are looked at every few steps: a transfer of seconds would be looked
#: at some hundred thousand times
BRISK = 8
EASY = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@st.composite
def links(draw, slowest=2, scopes=SCOPES):
    """Links whose times are exact however they are counted: at most two share a power of two."""
    return LinkSpec(
        2.0 ** draw(st.integers(slowest, 14)),
        draw(drawn.ticks(0, 200)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from(scopes)),
    )


@st.composite
def caches(draw, slowest):
    device = TierSpec(draw(st.integers(0, 40)))
    more = [
        TierSpec(draw(st.integers(0, 90)), draw(st.booleans()), draw(links(slowest)))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return CacheSpec((device, *more), draw(st.sampled_from(["lru", "cost-aware"])))


@st.composite
def migrations(draw):
    return MigrationSpec(
        draw(links(BRISK)), draw(drawn.ticks(20, 400)), draw(st.sampled_from([1.0, 4.0, 64.0])),
        draw(st.sampled_from([0.0, 2.0])), draw(st.integers(0, 20)), draw(st.integers(0, 3)), draw(st.integers(1, 3)),
        draw(st.sampled_from(list(migration.POLICIES))),
    )  # fmt: skip


@st.composite
def lendings(draw, slowest):
    return LendingSpec(
        draw(links(slowest)), draw(st.sampled_from([0, 0, 8, 30])), draw(st.integers(0, 40)), draw(st.integers(1, 3))
    )


def alike(fleet):
    """Return engines that can hold each other's blocks: of one size, without windows, computed again when preempted."""
    memory = fleet[0][0].memory
    size = max(memory.block_bytes, 1)
    return [
        (
            engine._replace(
                preemption="recompute",
                table=engine.table._replace(
                    window=0,
                    time=engine.table.time._replace(prefill_window=0.0, read_window=0 * engine.table.time.read),
                    energy=engine.table.energy._replace(prefill_window=0.0, read_window=0 * engine.table.time.read),
                ),
                memory=engine.memory._replace(
                    block_tokens=memory.block_tokens, block_bytes=size, window_block_bytes=0,
                    capacity_bytes=max(engine.memory.capacity_bytes // 2, 2 * size + engine.memory.state_bytes),
                ),
            ),
            count,
        )
        for engine, count in fleet
    ]  # fmt: skip


def brisk(fleet):
    """Return engines that swap within some hundred steps."""
    return [
        (e._replace(memory=e.memory._replace(swap_bytes_per_s=max(e.memory.swap_bytes_per_s, 2.0**BRISK))), n)
        for e, n in fleet
    ]


def hashed(draw, requests):
    """Give prompts blocks of a few tokens, of which the first ones are often the same."""
    tokens = draw(st.integers(1, 4))
    counts = requests.prompt_tokens // tokens
    kinds = draw(st.lists(st.integers(0, 2), min_size=requests.n, max_size=requests.n))
    known: dict[tuple[int, ...], int] = {}
    blocks = []
    for kind, count in zip(kinds, counts, strict=True):
        for j in range(count):
            blocks.append(known.setdefault((kind % (1 + j), *([kind] if j > 2 else []), j), len(known)))
    return requests._replace(
        block_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        block_hash=np.array(blocks, np.int64), block_tokens=tokens,
    )  # fmt: skip


def engines(draw, policies):
    return draw(st.lists(st.tuples(drawn.engines(policies), st.integers(1, 2)), min_size=1, max_size=2))


@st.composite
def cases(draw, hand_over=False, cache=False, migration=False, lending=False):
    requests = draw(drawn.workloads(most=18))
    slowest = BRISK if migration else 2
    policies = MOVING if hand_over or migration or lending else ALL
    fleet = engines(draw, policies)
    if lending and not hand_over and sum(count for _, count in fleet) < 2:
        fleet = [(fleet[0][0], 2)]
    fleet = alike(fleet) if lending and not hand_over else fleet
    paths = Paths(routing=draw(st.sampled_from(["least-tokens", "least-outstanding", "round-robin", "freeness"])))
    if hand_over:
        more = engines(draw, policies)
        if lending and sum(count for _, count in more) < 2:
            more = [(more[0][0], 2)]
        more = alike(more) if lending else more
        paths = paths._replace(
            prefill=len(fleet), hand_over=draw(links(slowest)), layers=draw(st.sampled_from([0, 0, 1, 4]))
        )
        fleet = [*fleet, *more]
    if cache:
        requests = hashed(draw, requests)
        paths = paths._replace(cache=draw(caches(slowest)))
    if migration:
        fleet = brisk(fleet)
        paths = paths._replace(migration=draw(migrations()))
    if lending:
        paths = paths._replace(lending=draw(lendings(slowest)))
    first = draw(st.sampled_from(["least-outstanding", "least-tokens", "prefix", "freeness"]))
    return requests, fleet, paths, first, draw(st.sampled_from([None, None, 1, 3, 6]))


def compare(case):
    requests, fleet, paths, first, clients = case
    slow = PathStepper(requests, fleet, routing.POLICIES[first].function, paths).run(clients)
    fast = run(requests, Connected(fleet, paths), routing=first, clients=clients)
    travel = fast.travel
    got = {
        "arrival": fast.arrival_s, "replica": fast.replica, "scheduled": fast.scheduled_s,
        "first": fast.first_token_s, "finish": fast.finish_s, "preemptions": fast.preemptions,
        "hit": travel.cached_tokens, "landed": travel.landed_s, "moves": travel.moves,
        "paused": travel.paused_s,
    }  # fmt: skip
    for name, column in got.items():
        np.testing.assert_array_equal(column, [getattr(s, name) for s in slow.sequences], err_msg=name)
    for name, column in (("steps", fast.steps), ("busy", fast.busy_s), ("peak", fast.peak_kv_bytes)):
        np.testing.assert_array_equal(column, [getattr(r, name) for r in slow.replicas], err_msg=name)
    np.testing.assert_array_equal(fast.itl_counts, slow.itl_counts())
    if paths.lending is not None:
        lent = [s.most_lent * fleet[-1][0].memory.block_tokens for s in slow.sequences]
        np.testing.assert_array_equal(travel.borrowed_tokens, lent)
        assert travel.loans == slow.loans
        idle = np.array([r.engine.idle_w for r in slow.replicas])
        end = np.nanmax(fast.finish_s) if np.isfinite(fast.finish_s).any() else fast.arrival_s.min()
        rest = np.maximum(end - fast.arrival_s.min() - fast.busy_s, 0.0)
        np.testing.assert_allclose(fast.energy_j, [r.energy for r in slow.replicas] + idle * rest, rtol=1e-12)
    return fast


@pytest.mark.parametrize(
    "kinds",
    [
        ("hand_over",),
        ("cache",),
        ("migration",),
        ("hand_over", "cache"),
        ("hand_over", "cache", "migration"),
        ("lending",),
        ("hand_over", "lending"),
        ("lending", "cache"),
        ("lending", "migration"),
    ],
    ids=", ".join,
)
@settings(max_examples=EXAMPLES or 120, **EASY)
@given(data=st.data())
def test_equals_stepping_one_by_one(kinds, data):
    compare(data.draw(cases(**dict.fromkeys(kinds, True))))


def longer(case, out):
    """Return how many requests ended that no memory could have held alone."""
    engine = case[1][0][0]
    tokens = case[0].prompt_tokens + case[0].output_tokens - 1
    blocks = -(-tokens // engine.memory.block_tokens)
    alone = blocks * engine.memory.block_bytes + engine.memory.state_bytes <= max(out.kv_capacity_bytes)
    return int((~alone & np.isfinite(out.finish_s)).sum())


@pytest.mark.parametrize(
    ("kinds", "reached"),
    [
        (("hand_over",), lambda case, out: np.isfinite(out.travel.landed_s).sum() > 6 and out.preemptions.sum() > 1),
        (("hand_over",), lambda case, out: case[2].hand_over.streams == 1 and out.travel.landed_s.max() > 0),
        (("cache",), lambda case, out: (out.travel.cached_tokens > 0).sum() > 4 and out.travel.evicted > 3),
        (("cache",), lambda case, out: out.travel.links.size > 1 and (out.travel.links["transfers"] > 1).sum() > 1),
        (("migration",), lambda case, out: out.travel.moves.sum() > 1),
        (("migration",), lambda case, out: out.travel.given_up > 1 and out.travel.moves.sum() > 0),
        (("lending",), lambda case, out: out.travel.loans > 4 and out.preemptions.sum() > 1),
        (("lending",), lambda case, out: (out.peak_kv_bytes > 0).all() and longer(case, out) > 1),
        (("hand_over", "lending"), lambda case, out: out.travel.loans > 1 and out.completed > 4),
        (("hand_over", "migration"), lambda case, out: out.travel.moves.sum() > 0 and out.completed > 4),
    ],
)
def test_drawn_cases_reach_what_is_rare(kinds, reached):
    """What is compared holds preemption after hand-over, links in use, evictions, migrations and those given up."""

    def holds(case):
        out = run(case[0], Connected(case[1], case[2]), routing=case[3], clients=case[4])
        return out.completed > 0 and bool(reached(case, out))

    find(
        cases(**dict.fromkeys(kinds, True)),
        holds,
        settings=settings(max_examples=3000, derandomize=True, phases=[Phase.generate], **EASY),
    )

"""Llumnix: requests are sent where memory lasts longest, and move to other replicas while they run.

Sixteen simulated replicas of a 7B model with 13,600 tokens of cache each, one traffic, four ways to place requests. A
real part moves sequences between processes here (`sonde.learn.migration`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.cost.table import Engine
from sonde.deployment.tree import Batching, Replica
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.policies.routing import PoolView, RequestView
from sonde.sim.engine import run
from sonde.sim.network import Connected, LinkSpec, MigrationSpec, Paths
from sonde.techniques.compose import compiled
from sonde.workload.requests import Requests, requests

MODEL, DEVICE, REPLICAS = "llama-2-7b", "a10g", 16  # its A10 has the same memory and bandwidth
TOKENS, BLOCK, MOST = 13_600, 16, 6144
SEEDS, REQUESTS, LEAST = (0, 1, 2), 10_000, 8
#: tokens that an instance with an urgent request may hold
TARGET = 1600
#: as AlibabaPAI/llumnix (Apache-2.0) has them: three blocks a sequence, looked at every 50 ms, one block left, 3 stages
MOVING = MigrationSpec(LinkSpec(8e9, 1e-3, scope="source"), 0.05, 3.0 * BLOCK, 3.0 * BLOCK, 0, BLOCK, 3)
CRAWLING = MOVING._replace(link=LinkSpec(1e6, 1e-3, scope="source"))


class Load(NamedTuple):
    """Requests/s, the mean of prompts and of outputs (tokens), and the variation of gaps between arrivals."""

    rate: float
    mean: int
    variation: float
    most: int = MOST


class Way(NamedTuple):
    """A way to place requests: where new ones go, and whether they move later."""

    routing: str
    migration: MigrationSpec | None = None


TURNS, AWARE, FREE = Way("round-robin"), Way("least-tokens"), Way("freeness")
LLUMNIX = Way("freeness", MOVING)
LIGHT, BUSY = Load(2.0, 128, 1.0), Load(28.0, 128, 1.0)
#: where memory runs short: short, middling and long texts, steady and in bursts
FULL = (Load(34.0, 128, 1.0), Load(11.0, 256, 1.0), Load(4.4, 512, 1.0), Load(11.0, 256, 4.0))
BURSTS = Load(25.0, 128, 4.0)
ALL_SHORT = Load(100.0, 32, 1.0, 64)

CLAIMS = {
    "turns": Claim(
        "p99 TTFT, round-robin over Llumnix", 15.0, "×", "16 × 7B on A10, mean 128 tokens, 28 requests/s; an order of "
        "magnitude or more", at_least(10.0), "2 requests/s: the same ratio", at_most(1.1), recalled=True,
    ),
    "dispatch": Claim(
        "of that, dispatch alone: p99 TTFT, round-robin over dispatch by freeness", None, "×", "the same; bar is ours",
        at_least(10.0), "what migration adds there: dispatch alone over both", Range(0.8, 1.25),
    ),
    "aware": Claim(
        "p99 TTFT, load-aware over Llumnix: an order of magnitude", 10.0, "×", "the best of four loads at which memory "
        "runs short", at_least(10.0), "2 requests/s: the same ratio", at_most(1.1),
    ),
    "moved": Claim(
        "p99 TTFT, dispatch alone over both", None, "×", "the best of those loads; the bar is ours", at_least(2.0),
        "requests of 64 tokens at most, 100 a second: the same ratio", Range(0.999, 1.001),
    ),
    "preempted": Claim(
        "preemptions left by migration, of those with dispatch alone", 0.0, "", "28 requests/s", at_most(0.1),
        "moved over a link of 1 MB/s", at_least(0.5), recalled=True,
    ),
    "tpot": Claim(
        "p99 TPOT, load-aware over Llumnix", None, "×", "28 requests/s; the bar is ours", at_least(1.3),
        "2 requests/s: the same ratio", at_most(1.3),
    ),
    "urgent": Claim(
        "latency of urgent requests, without over with headroom", 1.5, "×", "10 % urgent, bursts (CV 4), mean",
        near(1.5, 0.2), "2 requests/s", at_most(1.1),
    ),
    "fleet": Claim(
        "instances saved at the same p99 TTFT (5 s), against load-aware", 36.0, "%", "mean 512, 4.4 requests/s, CV 1; "
        "the fewest instances for the whole run", near(36.0, 0.3),
        "2 requests/s of mean 128: the same", at_most(10.0),
    ),
    "same": Claim(
        "texts that differ where they move between processes, of 27", 0.0, "", "a decoder served here; live, stopped "
        "and copied, computed anew; three lengths", at_most(0.0), "of 3 whose first stage is lost", at_least(2.0),
    ),
    "flat": Claim(
        "pause of a text of 2,048 tokens over one of 128, moved live", 1.0, "×", "shortest of 2, over loopback",
        at_most(3.0), "computed anew: the same ratio", at_least(4.0), recalled=True,
    ),
    "pause": Claim(
        "pause of a text of 2,048 tokens, computed anew over moved live", None, "×", "the same; the bar is ours",
        at_least(10.0), "stopped and copied whole over live, of 128 tokens", at_most(5.0),
    ),
    "room": Claim(
        "wait of a large request between two half-full workers, without over with migration", None, "×",
        "the simulator's policies in two processes; the bar is ours", at_least(2.0), "a small request", at_most(2.0),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: sixteen replicas simulated, and two processes here."""
    steps = (("busy and light", _busy), ("memory runs short", _short), ("urgent requests", _urgent),
             ("fewer instances", _fleet), ("sequences moved here", _real))  # fmt: skip
    rows: list[Row] = []
    notes: list[str] = []
    for i, (text, part) in enumerate(steps):
        progress(i, len(steps), text)
        more, said = part()
        rows += more
        notes += said
    return Reproduction(tuple(rows), tuple(notes))


def engine() -> Engine:
    """Return the 7B model on a 24 GB card, prompts first as in vLLM 0, with as many tokens of cache as the paper's."""
    batching = Batching(policy="prefill-first", max_batch=256, token_budget=MOST)
    made = compiled(model(MODEL), device(DEVICE), Replica(model=MODEL, device=DEVICE, batching=batching), [])
    return made._replace(memory=made.memory._replace(capacity_bytes=TOKENS // BLOCK * made.memory.block_bytes))


def lengths(mean: float, most: int = MOST) -> NDArray[np.int64]:
    """Return the quantiles of a power law from `LEAST` to `most` tokens with that mean, one a request."""
    tokens = np.arange(LEAST, most + 1, dtype=np.float64)
    low, high = 0.0, 8.0
    while high - low > 1e-9:
        power = (low + high) / 2
        share = tokens**-power / (tokens**-power).sum()
        low, high = (power, high) if (share * tokens).sum() > mean else (low, power)
    at = np.searchsorted(np.cumsum(share), (np.arange(REQUESTS) + 0.5) / REQUESTS)
    return np.asarray(tokens[np.minimum(at, len(tokens) - 1)], dtype=np.int64)


def traffic(load: Load, seed: int, urgent: NDArray[np.bool_] | None = None) -> Requests:
    """Return requests with those lengths in an order that `seed` draws, and gaps of a Gamma distribution."""
    draws = np.random.default_rng(seed)
    shape = load.variation**-2
    arrival = np.cumsum(draws.gamma(shape, 1 / shape, REQUESTS)) / load.rate
    prompt, output = (draws.permutation(lengths(load.mean, load.most)) for _ in range(2))
    prompt = np.minimum(prompt, MOST - LEAST)
    priority = None if urgent is None else np.where(urgent, 0, 1)
    return requests(arrival, prompt, np.minimum(output, MOST - prompt), priority=priority)


def served(way: Way, asked: Requests, replicas: int = REPLICAS) -> Outcome:
    """Return what happens to the requests."""
    fleet = ((engine(), replicas),)
    paths = Paths(migration=way.migration)
    return run(asked, fleet if way.migration is None else Connected(fleet, paths), routing=way.routing)


def ttft(outcome: Outcome) -> float:
    """Return the p99 TTFT (s)."""
    return outcome.quantile("ttft", 0.99)


def tpot(outcome: Outcome) -> float:
    """Return the p99 TPOT (s)."""
    return outcome.quantile("tpot", 0.99)


def ratios(load: Load, one: Way, two: Way, of: Callable[[Outcome], float] = ttft) -> list[float]:
    """Return, for each seed, a figure of one way over that of the other."""
    return [of(served(one, traffic(load, seed))) / of(served(two, traffic(load, seed))) for seed in SEEDS]


def _busy() -> tuple[list[Row], list[str]]:
    runs = {way: [served(way, traffic(BUSY, seed)) for seed in SEEDS] for way in (TURNS, AWARE, FREE, LLUMNIX)}
    slow = [served(Way("freeness", CRAWLING), traffic(BUSY, seed)) for seed in SEEDS]

    def over(one: Way, two: Way, of: Callable[[Outcome], float] = ttft) -> list[float]:
        return [of(a) / of(b) for a, b in zip(runs[one], runs[two], strict=True)]

    def left(outcomes: Sequence[Outcome]) -> list[float]:
        return [_preempted(b) / max(_preempted(a), 1) for a, b in zip(runs[FREE], outcomes, strict=True)]

    seconds = ", ".join(f"{np.mean([ttft(run) for run in found]):.2f}" for found in runs.values())
    counts = ", ".join(f"{np.mean([_preempted(run) for run in found]):.0f}" for found in runs.values())
    note = (
        f"28 requests/s, round-robin, load-aware, dispatch alone, with migration: p99 TTFT {seconds} s; "
        f"{counts} preemptions."
    )
    return [
        CLAIMS["turns"].came_out(
            over(TURNS, LLUMNIX), "a replica that takes turns meets several long texts at once and queues for minutes",
            control=ratios(LIGHT, TURNS, LLUMNIX),
        ),
        CLAIMS["dispatch"].came_out(
            over(TURNS, FREE), "against round-robin, all of it is where requests are sent at first",
            control=over(FREE, LLUMNIX),
        ),
        CLAIMS["preempted"].came_out(
            left(runs[LLUMNIX]), "what is left is where no replica has memory to spare", control=left(slow)
        ),
        CLAIMS["tpot"].came_out(
            over(AWARE, LLUMNIX, tpot), "fewest tokens is not fewest sequences, and a preemption is a gap",
            control=ratios(LIGHT, AWARE, LLUMNIX, tpot),
        ),
    ], [note]  # fmt: skip


def _preempted(outcome: Outcome) -> int:
    return int(outcome.preemptions.sum())


def _short() -> tuple[list[Row], list[str]]:
    aware, alone, notes = [], [], []
    for load in FULL:
        runs = [[ttft(served(way, traffic(load, seed))) for seed in SEEDS] for way in (AWARE, FREE, LLUMNIX)]
        aware.append([a / b for a, b in zip(runs[0], runs[2], strict=True)])
        alone.append([a / b for a, b in zip(runs[1], runs[2], strict=True)])
        means = ", ".join(f"{np.mean(found):.1f}" for found in runs)
        notes.append(
            f"mean {load.mean}, {load.rate:g} requests/s, CV {load.variation:g}: p99 TTFT {means} s load-aware, "
            "dispatch alone, with migration."
        )
    best = FULL[int(np.argmax([np.mean(found) for found in aware]))]
    why = (
        f"mean {best.mean}, {best.rate:g} requests/s; with less load a load-aware router has a p99 TTFT as short, and "
        "with more every way has queues of minutes"
    )
    return [
        CLAIMS["aware"].came_out(max(aware, key=np.mean), why, control=ratios(LIGHT, AWARE, LLUMNIX)),
        CLAIMS["moved"].came_out(
            max(alone, key=np.mean), "free memory in many places makes room in one of them for what waits",
            control=ratios(ALL_SHORT, FREE, LLUMNIX),
        ),
    ], notes  # fmt: skip


def aside(view: PoolView, request: RequestView) -> int:
    """Pick the freest replica; one with an urgent request counts as full beyond its target load, but to urgent ones."""
    n = len(view.queued)
    best, most = request.number % n, -np.inf
    for step in range(n):
        i = (request.number + step) % n
        room = view.kv_capacity[i] - view.kv_used[i] - view.queued_tokens[i] * view.token_bytes[i]
        if view.urgent[i] > 0 and request.priority > 0:
            room -= view.kv_capacity[i] - TARGET * view.token_bytes[i]
        growing = max(view.running[i] + view.queued[i], 1) if room > 0 else 1
        steps = room / (view.token_bytes[i] * growing)
        if steps > most:
            best, most = i, steps
    return best


def _urgent() -> tuple[list[Row], list[str]]:
    memory = engine().memory
    headroom = memory.capacity_bytes - TARGET * memory.block_bytes // BLOCK
    way = Way(f"{__name__}:aside", MOVING._replace(headroom_bytes=headroom))
    gains, others = [], []
    for load in (BURSTS, LIGHT):
        for seed in SEEDS:
            urgent = np.random.default_rng(seed + 100).random(REQUESTS) < 0.1
            before, after = served(LLUMNIX, traffic(load, seed)), served(way, traffic(load, seed, urgent))
            whole = (before.finish_s - before.arrival_s, after.finish_s - after.arrival_s)
            gains.append(float(whole[0][urgent].mean() / whole[1][urgent].mean()))
            others.append(float(whole[1][~urgent].mean() / whole[0][~urgent].mean()))
    n = len(SEEDS)
    usual, alone = (served(LLUMNIX, traffic(load, 0)).quantile("tpot", 0.5) for load in (BURSTS, LIGHT))
    why = (
        f"with hardly anything beside them requests decode {usual / alone:.2f} times as fast on this card, and "
        f"headroom makes no more of it; the others take {100 * (np.mean(others[:n]) - 1):.0f} % longer"
    )
    return [CLAIMS["urgent"].came_out(gains[:n], why, control=gains[n:])], []


def fewest(way: Way, load: Load, seed: int, limit_s: float = 5.0) -> int:
    """Return the fewest instances whose p99 TTFT is within the limit, for the whole run."""
    low, high = 1, 2 * REPLICAS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if ttft(served(way, traffic(load, seed), middle)) <= limit_s else (middle + 1, high)
    return low


def _fleet() -> tuple[list[Row], list[str]]:
    counts = [(fewest(AWARE, FULL[2], seed), fewest(LLUMNIX, FULL[2], seed)) for seed in SEEDS]
    light = [(fewest(AWARE, LIGHT, seed), fewest(LLUMNIX, LIGHT, seed)) for seed in SEEDS]
    saved, none = ([100 * (1 - b / a) for a, b in found] for found in (counts, light))
    said = ", ".join(f"{a} and {b}" for a, b in counts)
    why = f"its fleet grows and shrinks with the load, ours is fixed: {said} instances"
    return [CLAIMS["fleet"].came_out(saved, why, control=none)], []


def _real() -> tuple[list[Row], list[str]]:
    names = ("same", "flat", "pause", "room")
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[name].not_run("needs torch: pip install 'sonde[run]'") for name in names], []
    from sonde.learn.migration_study import pauses, rooms

    found = pauses(0)
    *large, little = rooms(SEEDS)
    ways = zip(("live", "stopped and copied", "computed anew"), (found.live, found.stop, found.recompute), strict=True)
    said = "; ".join(f"{name} {', '.join(f'{1e3 * s:.1f}' for s in times)} ms" for name, times in ways)
    return [
        CLAIMS["same"].came_out(
            float(found.differ + sum(run.differ for run in large)), "the cache comes whole, and draws hang on places",
            control=float(found.wrong),
        ),
        CLAIMS["flat"].came_out(
            _over(found.live[-1], found.live[0]), "what is left for the last stage is a block, whatever the length",
            control=_over(found.recompute[-1], found.recompute[0]),
        ),
        CLAIMS["pause"].came_out(
            _over(found.recompute[-1], found.live[-1]), "a prompt is computed, or a block is sent",
            control=_over(found.stop[0], found.live[0]),
        ),
        CLAIMS["room"].came_out(
            [run.without / run.migrating for run in large],
            f"{sum(run.moves for run in large)} moves in {len(large)} runs",
            control=little.without / little.migrating,
        ),
    ], [f"Pauses at 128, 512 and 2,048 tokens: {said}."]  # fmt: skip


def _over(one: float, two: float) -> float:
    """Return one pause over another, of at least a tenth of a millisecond each."""
    return max(one, 1e-4) / max(two, 1e-4)


PAPER = Paper(
    "llumnix", "Llumnix: Dynamic Scheduling for Large Language Model Serving",
    2024, "OSDI", "https://arxiv.org/abs/2406.03243", CLAIMS, reproduce, measured=True,
)  # fmt: skip

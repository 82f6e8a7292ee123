"""DistServe: prompts computed on some GPUs and answers on others, each phase with the replicas that suit it.

Goodput is the most requests/s of a GPU at which 90 % meet both TTFT and TPOT. Steps are those that DistServe's
repository ships for its engine on A100, and Sonde's own beside them; only where phases run differs. Two processes of a
small decoder served here hand their caches over for real.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.devices import device
from sonde.catalogue.distserve_steps import KV_TOKENS, LARGE, MEASURED
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.cost.compile import compile_shard
from sonde.cost.shard import shard
from sonde.cost.table import Client, Coefficients, Engine, StepTable
from sonde.deployment.tree import Batching, Replica
from sonde.metrics import Objective, Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.plan.disaggregate import (
    Goal,
    Option,
    Phase,
    decodes,
    goodput,
    most_rate,
    prefills,
    whole,
)
from sonde.sim.engine import run
from sonde.sim.network import LinkSpec, Paths
from sonde.workload.requests import Requests, requests, scale_rate

A100, GPUS, SHARE, BATCH, CONTEXT = "a100-sxm-80gb", 16, 0.9, 256, 2048
SEEDS = (0, 1, 2)
CHUNKS, BATCHED = (512, 1024, 2048), (512, 2048)  # token budgets of chunked steps, and of steps of whole prompts
#: 200 Gb/s of every replica that sends; and one of 25 Gb/s for all, as between the paper's nodes
FABRIC = LinkSpec(25e9, 24e-6, 16, "source")
ETHERNET = LinkSpec(25e9 / 8, 24e-6, 16, "shared")


class Setting(NamedTuple):
    """A model, its ranks (the first are those of the paper's baseline), traffic and objectives (s).

    prompt, output   medians and 90th percentiles of tokens
    """

    name: str
    model: str
    ranks: tuple[int, ...]
    prompt: tuple[float, float]
    output: tuple[float, float]
    ttft: float
    tpot: float
    requests: int

    def goal(self, scale: float = 1.0) -> Goal:
        """Return the objectives, all times scaled: met together by 90 %."""
        limits = Objective("ttft", SHARE, self.ttft * scale), Objective("tpot", SHARE, self.tpot * scale)
        return Goal(limits, SHARE)


CHAT = Setting("13B, chat", "opt-13b", (1, 2, 4), (600, 1500), (150, 440), 0.25, 0.1, 5000)
SETTINGS = (
    CHAT,
    Setting("66B, code", "opt-66b", (4, 2, 8), (150, 280), (80, 180), 0.125, 0.2, 3000),
    Setting("66B, summaries", "opt-66b", (4, 2, 8), (1750, 1900), (80, 150), 15.0, 0.15, 3000),
)
#: objectives of chat under which a token must come sooner than a prompt of 75 tokens takes beside it
TIGHT = CHAT._replace(name="13B, 400 and 25 ms", ttft=0.4, tpot=0.025)
#: what DistServe's repository searches for as an example
SMALL, SMALL_GPUS = CHAT._replace(name="13B, 200 and 100 ms", ttft=0.2, tpot=0.1), 4
TPOTS = (0.1, 0.06, 0.04, TIGHT.tpot)
SCALES = (2.0, 1.0, 0.5, 0.4)
LOOSE = 2.0


class Ways(NamedTuple):
    """Goodput (requests/s of a GPU) each way of serving, and the placement of the last.

    baseline   whole prompts first, on as many ranks as the paper's baseline
    together   the same on the ranks that are best; chunked: prompts in chunks, ranks and budget that are best
    apart      prompts and answers on replicas of their own
    """

    baseline: float
    together: float
    chunked: float
    apart: float
    layout: str

    @property
    def gain(self) -> float:
        """Return what apart brings over the best of all others."""
        return self.apart / max(self.together, self.chunked)


CLAIMS = {
    "rate": Claim(
        "goodput of a GPU, phases apart over colocated on the paper's ranks", 4.48, "×",
        "the best of OPT-13B chat, 66B code and 66B summaries on 16 A100", near(4.48, 0.3),
        "answers of one token, which no prompt delays: the same ratio", at_most(1.05), recalled=True,
    ),
    "tighter": Claim(
        "objectives that hold at one rate, colocated over phases apart", 10.2, "×",
        "the best of the same three, half of their goodput apart", near(10.2, 0.3),
        "answers of one token: the same ratio", at_most(1.05), recalled=True,
    ),
    "best": Claim(
        "goodput of a GPU, phases apart over colocated on the best ranks", None, "×",
        "OPT-13B, 400 ms to the first token, 25 ms to the others; the bar is ours", at_least(1.3),
        "answers of one token: the same ratio", at_most(1.05),
    ),
    "chunked": Claim(
        "goodput of a GPU, phases apart over chunks of the best size on the best ranks", None, "×",
        "as above; the bar is ours", at_least(1.1), "250 and 100 ms, twice as long: the same ratio", at_most(1.05),
    ),
    "crossing": Claim(
        "time between tokens below which phases apart beat all else", None, "ms",
        "OPT-13B, 400 ms to the first token; the bar is ours: below the paper's objective of 100 ms",
        Range(25.0, 90.0),
    ),
    "phases": Claim(
        "goodput of a GPU, replicas by phase over as many of one kind for both", None, "×", "as above; the bar is ours",
        at_least(1.05),
    ),
    "slow": Claim(
        "goodput apart over 25 Gb/s between all, over that with 200 Gb/s of every replica", None, "×",
        "as above; the bar is ours: it must get worse", at_most(0.5),
        "a link that takes no time: the same ratio", at_most(1.05),
    ),
    "example": Claim(
        "goodput of a GPU on up to 4 GPUs", 1.56, "/s", "OPT-13B, 200 and 100 ms, as the repository's example",
        near(1.56, 0.3),
    ),
    "own": Claim(
        "what phases apart bring with Sonde's step times, over that with DistServe's", None, "×",
        "goodput over colocated on the best ranks, 400 and 25 ms; the bar is ours", near(1.0, 0.25),
    ),
    "same": Claim(
        "tokens that differ where prompts and answers are two processes", None, "",
        "a decoder served here, caches copied between them, 42 requests", at_most(0.0),
        "a quarter of every long cache lost on the way: tokens that differ", at_least(1.0),
    ),
    "stall": Claim(
        "p99 TPOT of readers while long prompts arrive, one process over two", None, "×",
        "the same decoder, two cores either way; the bar is ours", at_least(1.05),
        "no prompts arrive: the same ratio", at_most(1.0),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: goodput on the simulator, stalls and tokens of two real processes."""
    rows, notes = list[Row](), list[str]()
    for i, part in enumerate((_headline, _tight, _links, _curve, _real)):
        progress(i, 5, ("three applications", "tight objectives", "links", "objectives", "two processes")[i])
        found, said = part()
        rows += found
        notes += said
    order = {claim: k for k, claim in enumerate(CLAIMS.values())}
    return Reproduction(tuple(sorted(rows, key=lambda row: order[row.claim])), tuple(notes))


# --- replicas


def published(setting: Setting, ranks: int, policy: str, budget: int) -> Engine:
    """Return a replica whose steps are those of DistServe's repository.

    A step of prompts takes a + b·tokens + c·Σl², one of answers a + b·contexts + c·batch; one of both the latter and
    the products and attention of its prompt tokens, whose weights are read anyway.
    """
    (a, b, c), small, large = MEASURED[setting.model, ranks]
    tokens, batch = np.arange(8 * CONTEXT + 1), np.arange(BATCH + 1)
    linear = np.where(tokens > 0, a + b * tokens, 0.0) / 1e3
    lines = np.where(batch < LARGE, np.array(small)[:, None], np.array(large)[:, None]) / 1e3
    answers = np.where(batch > 0, lines[0] + lines[2] * batch - linear[batch], 0.0)
    zero = np.zeros(BATCH + 1)
    time = Coefficients(0.0, linear, b / 1e3, 2 * c / 1e3, 0.0, answers, lines[1], zero)
    energy = Coefficients(0.0, np.zeros(2), 0.0, 0.0, 0.0, zero, zero, zero)
    mine = own(setting, ranks, policy, budget)
    room = KV_TOKENS.get((setting.model, ranks))
    memory = mine.memory
    if room is not None:
        memory = memory._replace(capacity_bytes=room // memory.block_tokens * memory.block_bytes)
    return mine._replace(table=StepTable(time, energy, 0), memory=memory)


def own(setting: Setting, ranks: int, policy: str, budget: int) -> Engine:
    """Return a replica whose steps are those of Sonde's cost model, with the efficiencies of DistServe's engine."""
    where = device(A100)
    replica = Replica(
        model=setting.model, device=A100, tensor_parallel=ranks, weights="fp16", activations="fp16", kv_cache="fp16",
        memory_fraction=0.95, batching=Batching(policy=policy, max_batch=BATCH, token_budget=budget),
    )  # fmt: skip
    made = compile_shard(shard(model(setting.model), where, replica, efficiencies(where, "distserve")))
    return made._replace(client=Client())  # what clients of today's engines wait for beside them is not DistServe's


Maker = Callable[[Setting, int, str, int], Engine]


def drawn(setting: Setting, seed: int) -> Requests:
    """Return traffic at 1/s: log-normal lengths by their quantiles, within the model's context, and Poisson."""
    draws = np.random.default_rng(seed)

    def column(median: float, high: float) -> NDArray[np.int64]:
        spread = math.log(high / median) / 1.2815515655446004
        found = np.rint(median * np.exp(spread * draws.standard_normal(8 * setting.requests)))
        return np.asarray(np.maximum(found, 1.0), dtype=np.int64)

    prompt, output = column(*setting.prompt), column(*setting.output)
    kept = prompt + output <= CONTEXT
    arrival = np.cumsum(draws.exponential(size=setting.requests))
    return requests(arrival, prompt[kept][: setting.requests], output[kept][: setting.requests])


# --- goodput


def colocated(setting: Setting, asked: Requests, goal: Goal, make: Maker, policy: str) -> dict[int, float]:
    """Return the goodput of a GPU where every replica does both, by ranks, with the best of the token budgets."""
    found = {}
    for ranks in setting.ranks:
        budgets = CHUNKS if policy == "chunked" else CHUNKS[-1:]
        fleets = [[(make(setting, ranks, policy, budget), GPUS // ranks)] for budget in budgets]
        found[ranks] = max(most_rate(asked, goal, fleet, float(GPUS)) for fleet in fleets) / GPUS
    return found


def phases(setting: Setting, asked: Requests, goal: Goal, make: Maker) -> tuple[list[Phase], list[Phase]]:
    """Return what each replica can do for prompts alone, and for answers alone."""
    first = [
        Option(make(setting, ranks, "prefill-first", budget), label=f"TP{ranks}")
        for ranks in setting.ranks
        for budget in BATCHED
    ]
    second = [Option(make(setting, ranks, "prefill-first", CHUNKS[-1]), label=f"TP{ranks}") for ranks in setting.ranks]
    return prefills(asked, goal, first), decodes(asked, goal, second)


def compared(
    setting: Setting, seed: int, make: Maker = published, scale: float = 1.0, *, cut: bool = True
) -> Ways:  # fmt: skip
    """Return the goodput of every way of serving the same traffic on the same GPUs; in chunks where `cut` asks."""
    asked, goal = drawn(setting, seed), setting.goal(scale)
    whole_first = colocated(setting, asked, goal, make, "prefill-first")
    chunks = colocated(setting, asked, goal, make, "chunked") if cut else {0: math.nan}
    rate, layout = apart(setting, asked, goal, make)
    return Ways(whole_first[setting.ranks[0]], max(whole_first.values()), max(chunks.values()), rate, layout)


def apart(
    setting: Setting, asked: Requests, goal: Goal, make: Maker = published, link: LinkSpec = FABRIC, gpus: int = GPUS
) -> tuple[float, str]:
    """Return the goodput of a GPU with phases apart, the link charged, and where they are."""
    found = goodput(asked, goal, phases(setting, asked, goal, make), Paths(hand_over=link), gpus)
    if found is None:
        return 0.0, "none"
    layout = f"{found.prefills} × {found.prefill.label} and {found.decodes} × {found.decode.label}"
    return found.rate / gpus, layout


def over_seeds(setting: Setting, make: Maker = published, scale: float = 1.0, *, cut: bool = True) -> list[Ways]:
    """Return `compared` for every seed, side by side."""
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        return list(pool.map(lambda seed: compared(setting, seed, make, scale, cut=cut), SEEDS))


def needed(setting: Setting, seed: int, ways: Ways) -> float:
    """Return how much tighter objectives phases apart hold than the baseline, at half of their goodput apart.

    The scale of the objectives that a run holds is that which 90 % of its requests need; the least of all placements.
    """
    asked = scale_rate(drawn(setting, seed), 0.5 * ways.apart * GPUS)
    replicas = {ranks: published(setting, ranks, "prefill-first", CHUNKS[-1]) for ranks in setting.ranks}
    base = setting.ranks[0]
    together = _scale(setting, run(asked, [(replicas[base], GPUS // base)], routing="least-tokens"))
    scales = [
        _scale(setting, run(asked, whole(replicas[a], n, replicas[b], (GPUS - n * a) // b, Paths(hand_over=FABRIC))))
        for a in setting.ranks
        for b in setting.ranks
        for n in range(1, (GPUS - b) // a + 1)
    ]
    return together / min(scales)


def _scale(setting: Setting, outcome: Outcome) -> float:
    times = np.maximum(outcome.ttft_s / setting.ttft, outcome.tpot_s / setting.tpot)
    times = np.where(np.isnan(times), np.inf, times)
    return float(np.quantile(times, SHARE, method="inverted_cdf"))


def lone(setting: Setting) -> Setting:
    """Return the setting with answers of one token."""
    return setting._replace(output=(1.0, 1.0))


def line(name: str, ways: Sequence[Ways]) -> str:
    """Return the goodputs of some seeds in words."""
    base, together, chunked, found = np.mean([it[:4] for it in ways], axis=0)
    chunks = "" if math.isnan(chunked) else f"{chunked:.2f} in chunks, "
    return (
        f"{name}: {together:.2f} requests/s of a GPU with whole prompts first ({base:.2f} on the baseline's ranks), "
        f"{chunks}{found:.2f} apart ({ways[0].layout})."
    )


# --- claims


def _headline() -> tuple[list[Row], list[str]]:
    found = {setting: over_seeds(setting) for setting in SETTINGS}
    rate = {setting: [it.apart / it.baseline for it in ways] for setting, ways in found.items()}
    tight = {
        setting: [needed(setting, seed, it) for seed, it in zip(SEEDS, ways, strict=True)]
        for setting, ways in found.items()
    }
    best, tightest = (max(SETTINGS, key=lambda it: float(np.mean(of[it]))) for of in (rate, tight))
    alone = {setting: over_seeds(lone(setting), cut=False) for setting in {best, tightest}}
    why = (
        f"{best.name}; the paper's baseline is another engine, here it is the same one with the same steps; on the "
        f"best ranks {np.mean([it.apart / it.together for it in found[best]]):.2f}×"
    )
    rows = [
        CLAIMS["rate"].came_out(rate[best], why, control=[it.apart / it.baseline for it in alone[best]]),
        CLAIMS["tighter"].came_out(
            tight[tightest],
            f"{tightest.name}; as above, and what the control brings comes of other ranks, not of phases",
            control=[needed(lone(tightest), seed, it) for seed, it in zip(SEEDS, alone[tightest], strict=True)],
        ),
    ]  # fmt: skip
    return rows, [line(setting.name, ways) for setting, ways in found.items()]


def _tight() -> tuple[list[Row], list[str]]:
    """Return what phases apart bring where a token must come sooner than a prompt takes."""
    ways, alone, loose = over_seeds(TIGHT), over_seeds(lone(TIGHT), cut=False), over_seeds(CHAT, scale=LOOSE)
    mine = over_seeds(TIGHT, own, cut=False)
    gain = [it.apart / it.together for it in ways]
    why = "a prompt's step is longer than 25 ms, so that colocated replicas must be mostly idle, or cut finely"
    rows = [
        CLAIMS["best"].came_out(gain, why, control=[it.apart / it.together for it in alone]),
        CLAIMS["chunked"].came_out(
            [it.apart / it.chunked for it in ways],
            "chunks lengthen every step by what they compute; where there is time for that, they use GPUs better",
            control=[it.apart / it.chunked for it in loose],
        ),
        CLAIMS["own"].came_out(
            [it.apart / it.together / theirs for it, theirs in zip(mine, gain, strict=True)],
            f"{np.mean([it.apart / it.together for it in mine]):.2f}× against {np.mean(gain):.2f}×; the efficiencies "
            "were fitted on these very steps",
        ),
        CLAIMS["phases"].came_out(
            [it.apart / alike(TIGHT, seed) for seed, it in zip(SEEDS, ways, strict=True)],
            "prompts need less of a GPU than answers do, and fewer ranks",
        ),
    ]
    notes = [line(TIGHT.name, ways), line(f"{TIGHT.name}, Sonde's steps", mine), line("500 and 200 ms", loose)]
    return rows, notes


def alike(setting: Setting, seed: int) -> float:
    """Return the goodput of a GPU with as many replicas for prompts as for answers, all of the same ranks."""
    asked, goal = drawn(setting, seed), setting.goal()
    rates = []
    for ranks in setting.ranks:
        made, pairs = published(setting, ranks, "prefill-first", CHUNKS[-1]), GPUS // 2 // ranks
        rates.append(most_rate(asked, goal, whole(made, pairs, made, pairs, Paths(hand_over=FABRIC)), float(GPUS)))
    return max(rates) / GPUS


def _links() -> tuple[list[Row], list[str]]:
    slow, free, example, where = [], [], [], ""
    for seed in SEEDS:
        asked, goal = drawn(TIGHT, seed), TIGHT.goal()
        fast = apart(TIGHT, asked, goal)[0]
        slow.append(apart(TIGHT, asked, goal, link=ETHERNET)[0] / fast)
        free.append(apart(TIGHT, asked, goal, link=FABRIC._replace(bytes_per_s=1e30, latency_s=0.0))[0] / fast)
        rate, where = apart(SMALL, drawn(SMALL, seed), SMALL.goal(), gpus=SMALL_GPUS)
        example.append(rate)
    size = own(CHAT, 1, "chunked", 512).memory
    each = drawn(CHAT, 0).prompt_tokens.mean() * size.block_bytes / size.block_tokens
    return [
        CLAIMS["slow"].came_out(
            slow, f"a cache is {each / 1e6:.0f} MB on average, of which 25 Gb/s carry {25e9 / 8 / each:.1f} a second",
            control=free,
        ),
        CLAIMS["example"].came_out(
            example,
            f"{where}, the repository's is 1 × TP2 and 1 × TP1; its traffic is ShareGPT's, ours is drawn (655 and 204 "
            "tokens on average), and no host time is added to the published steps",
        ),
    ], []  # fmt: skip


def _curve() -> tuple[list[Row], list[str]]:
    """Return where phases apart begin to pay as the time between tokens shrinks, and both objectives scaled."""
    gains = np.array([[it.gain for it in over_seeds(TIGHT._replace(tpot=tpot))] for tpot in TPOTS])
    points = [crossing(TPOTS, gains[:, k]) * 1e3 for k in range(len(SEEDS))]
    text = ", ".join(f"{1e3 * tpot:.0f} ms {row.mean():.2f}×" for tpot, row in zip(TPOTS, gains, strict=True))
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        scaled = list(pool.map(lambda scale: compared(CHAT, 0, published, scale), SCALES))
    curve = ", ".join(
        f"{scale:g}: {it.together:.2f} / {it.chunked:.2f} / {it.apart:.2f}"
        for scale, it in zip(SCALES, scaled, strict=True)
    )
    row = CLAIMS["crossing"].came_out(points, f"apart over the best of all else, by TPOT: {text}")
    return [row], [f"{CHAT.name}, objectives scaled (whole / chunked / apart, requests/s of a GPU): {curve}."]


def crossing(limits: Sequence[float], gains: NDArray[np.float64]) -> float:
    """Return the limit, between two of those that fall, from which on gains stay above 1 (NaN where none do)."""
    above = np.flatnonzero(gains <= 1)
    last = int(above[-1]) if len(above) else -1
    if last < 0:
        return float(limits[0])
    if last == len(limits) - 1:
        return math.nan
    share = (1 - gains[last]) / (gains[last + 1] - gains[last])
    return float(math.exp(math.log(limits[last]) * (1 - share) + math.log(limits[last + 1]) * share))


def _real() -> tuple[list[Row], list[str]]:
    keys = ("same", "stall")
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[key].not_run("needs torch: pip install 'sonde[run]'") for key in keys], []
    from sonde.learn.handover_serving import measured

    found = measured(SEEDS)
    gain, chunked = (
        [one / two for one, two in zip(times, found.apart, strict=True)] for times in (found.whole, found.chunked)
    )
    why = (
        f"{1e3 * np.mean(found.whole):.1f} ms against {1e3 * np.mean(found.apart):.1f} ms of a processor, one process "
        f"credited with a perfect second core; in chunks {np.mean(chunked):.2f}×"
    )
    return [
        CLAIMS["same"].came_out(found.differ, f"{found.tokens} tokens, compared one by one", control=found.lost),
        CLAIMS["stall"].came_out(gain, why, control=found.quiet[0] / found.quiet[1]),
    ], []


PAPER = Paper(
    "distserve", "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized LLM Serving",
    2024, "OSDI", "https://arxiv.org/abs/2401.09670", CLAIMS, reproduce,
)  # fmt: skip

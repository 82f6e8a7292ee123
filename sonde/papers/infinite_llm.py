"""Infinite-LLM: caches in the memory of several instances, each of which computes attention over what it holds.

Exactness and bytes are those of real processes; the ledger is played with drawn demands; throughput and the longest
context are those of simulated replicas with and without lending.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from sonde.deployment.tree import Deployment
from sonde.errors import InputError
from sonde.learn.attention_ledger import played
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most
from sonde.sim.engine import run
from sonde.sim.layout import connected
from sonde.sim.network import Connected
from sonde.sim.simulate import fleet
from sonde.sim.world import Fleet
from sonde.techniques.compose import arranged
from sonde.workload.requests import Requests, requests

MODEL, GPU, GPUS = "llama-2-7b", "a100-sxm-80gb", 8
SEEDS, REQUESTS, CLIENTS = (0, 1, 2), 600, 64
SHARES = (0.1, 0.3)  # of long requests
RESERVE = "30 GiB"  # kept free by each replica where prompts ask for it
CONTEXT, DECODED, BUDGET = 2048, 16, 20 << 20  # tokens, tokens, and bytes that one process may take

CLAIMS = {
    "throughput": Claim(
        "tokens/s with lending over without, on the same instances", 1.03, "×",
        "Llama-2-7B on 8 A100, a tenth of requests of 20,000 to 90,000 tokens; the paper has 1.03 to 2.4",
        Range(1.03, 2.4), "all requests short: the same ratio", Range(0.98, 1.02), recalled=True,
    ),
    "grows": Claim(
        "the same ratio with three tenths of long requests over that with one tenth", None, "×",
        "it grows with the long tail", at_least(1.0), "none long over none long: seeds apart", Range(0.98, 1.02),
    ),
    "layouts": Claim(
        "tokens/s with lending over the best of layouts without", 1.03, "×",
        "the same traffic on 8 instances of 1, 4 of 2, and 2 of 4 GPUs", at_least(1.03), recalled=True,
    ),
    "context": Claim(
        "longest request that is served with lending over without", 2.0, "×",
        "8 instances, one creditor a request; the paper has 2 to 19", Range(2.0, 19.0),
        "all memory kept in reserve: the same ratio", at_most(1.0), recalled=True,
    ),
    "exact": Claim(
        "largest difference of a logit, cache in three processes to cache in one", 0.0, "",
        f"a decoder of 4 layers, {CONTEXT:,} tokens and {DECODED} more; the bar is ours", at_most(1e-5),
        "the last process does not ask the first", at_least(1e-3),
    ),
    "room": Claim(
        "cache that three limited processes hold over what one held when its memory ended", None, "×",
        f"each may take {BUDGET >> 20} MiB; the bar is ours", at_least(1.5),
    ),
    "bytes": Claim(
        "bytes sent for a decoded token over the cache that lies elsewhere", None, "",
        "queries and partial results, never the cache; the bar is ours", at_most(0.01),
    ),
    "ledger": Claim(
        "blocks lent twice in 4,000 steps", 0.0, "", "4 owners, a ledger 40 steps old, owners that ask blocks back",
        at_most(0.0), "debtors that trust the ledger and do not ask the owner", at_least(1.0),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: simulated replicas, a played ledger, and processes started here."""
    progress(0, 3, "throughput")
    rows = _throughput()
    progress(1, 3, "longest context")
    rows += [_context(), _ledger()]
    progress(2, 3, "attention in three processes")
    rows += _real()
    return Reproduction(
        tuple(rows),
        (
            "Prompts are computed by their own replica, whatever lies elsewhere; blocks are sent once, when they are "
            "lent; all that a request borrows lies at one creditor.",
        ),
    )


def deployment(replicas: int, ranks: int, reserve: str | None = None) -> Deployment:
    """Return the model on so many replicas of so many GPUs, with lending where a reserve is given."""
    batching = {"policy": "chunked", "max_batch": 256, "token_budget": 2048}
    replica = {"model": MODEL, "device": GPU, "tensor_parallel": ranks, "batching": batching}
    return Deployment.model_validate(
        {
            "sites": [{"pools": [{"replicas": replicas, "replica": replica}]}],
            "techniques": [{"distributed-attention": {"reserve": reserve}}] if reserve else [],
        }
    )


def traffic(share: float, seed: int) -> Requests:
    """Return requests of which a share is long in and out; the others are log-normal, about 200 and 300 tokens."""
    draws = np.random.default_rng(seed)
    prompt = np.rint(200 * np.exp(0.8 * draws.standard_normal(REQUESTS))).clip(4, 2000).astype(np.int64)
    output = np.rint(300 * np.exp(0.7 * draws.standard_normal(REQUESTS))).clip(4, 1500).astype(np.int64)
    long = draws.random(REQUESTS) < share
    prompt[long] = draws.integers(20_000, 90_000, long.sum())
    output[long] = draws.integers(1500, 3000, long.sum())
    return requests(np.zeros(REQUESTS), prompt, output)


def built(where: Deployment) -> Fleet | Connected:
    """Return the replicas of a deployment under its techniques, compiled once for many runs."""
    where = arranged(where)
    return connected(where, fleet(where))


def rate(replicas: Fleet | Connected, share: float, seed: int) -> float:
    """Return output tokens/s of what ends between 15 % and 80 % of a closed loop, when all clients are at work."""
    outcome: Outcome = run(traffic(share, seed), replicas, clients=CLIENTS)
    ends = outcome.finish_s
    first, last = np.quantile(ends, [0.15, 0.8], method="lower")
    inside = (ends >= first) & (ends < last)
    return float(outcome.requests.output_tokens[inside].sum() / (last - first))


def _throughput() -> list[Row]:
    alone, lending = built(deployment(GPUS, 1)), built(deployment(GPUS, 1, RESERVE))
    layouts = [built(deployment(GPUS // ranks, ranks)) for ranks in (2, 4)]
    plain = {share: np.array([rate(alone, share, seed) for seed in SEEDS]) for share in (0.0, *SHARES)}
    lent = {share: np.array([rate(lending, share, seed) for seed in SEEDS]) for share in (0.0, *SHARES)}
    gain = {share: lent[share] / plain[share] for share in plain}
    best = np.array([
        max(plain[SHARES[0]][k], *(rate(layout, SHARES[0], seed) for layout in layouts))
        for k, seed in enumerate(SEEDS)
    ])  # fmt: skip
    why = "memory that is lent lets in more long prompts at once, of which more are preempted and computed again"
    return [
        CLAIMS["throughput"].came_out(list(gain[SHARES[0]]), why, control=list(gain[0.0])),
        CLAIMS["grows"].came_out(
            list(gain[SHARES[1]] / gain[SHARES[0]]),
            "where most memory is taken by long requests everywhere, nobody has any to lend",
            control=float(gain[0.0].max() / gain[0.0].min()),
        ),
        CLAIMS["layouts"].came_out(
            list(lent[SHARES[0]] / best),
            "inside a node, tensor parallelism holds weights once, pools memory and halves prompts' time; the paper's "
            "long contexts need instances that span nodes",
        ),
    ]


def longest(where: Deployment) -> int:
    """Return the longest request (tokens) that is served, by bisection over runs of one request."""
    replicas = built(where)
    low, high = 1 << 16, 1 << 20

    def fits(tokens: int) -> bool:
        outcome = run(requests(np.zeros(1), np.array([tokens - 1]), np.array([2])), replicas)
        return bool(np.isfinite(outcome.finish_s[0]))

    while high - low > 16:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _context() -> Row:
    alone = longest(deployment(GPUS, 1))
    ours = longest(deployment(GPUS, 1, "1 GiB"))
    none = longest(deployment(GPUS, 1, "80 GiB"))
    bare = longest(deployment(GPUS, 1, "0 GiB"))
    why = f"{alone:,} tokens alone, {bare:,} with a creditor, {ours:,} where it keeps 1 GiB"
    return CLAIMS["context"].came_out(round(bare / alone, 3), why, control=round(none / alone, 3))


def _ledger() -> Row:
    asked = [played(seed, 4000, ask_owner=True, every=40) for seed in SEEDS]
    trusting = [played(seed, 4000, ask_owner=False, every=40) for seed in SEEDS]
    why = (
        f"only owners grant: {sum(it.refused for it in asked)} of "
        f"{sum(it.lent + it.refused for it in asked)} wishes found the ledger too old"
    )
    return CLAIMS["ledger"].came_out([it.twice for it in asked], why, control=[it.twice for it in trusting])


def _real() -> list[Row]:
    names = ("exact", "room", "bytes")
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[name].not_run("needs torch: pip install 'sonde[run]'") for name in names]
    import torch

    from sonde.learn.attention_split import decoder, split, whole

    model = decoder(0)
    tokens = torch.randint(256, (CONTEXT + DECODED,), generator=torch.Generator().manual_seed(1))
    one = whole(model, tokens, CONTEXT)
    three = split(model, tokens, CONTEXT, 3, BUDGET)
    deaf = split(model, tokens, CONTEXT, 3, deaf=True)
    limited = split(model, tokens, CONTEXT, 1, BUDGET)
    if three.logits is None or deaf.logits is None:
        raise InputError("budget", BUDGET, "must hold a third of the context", "nothing could be compared")
    off, wrong = (float((found - one).abs().max()) for found in (three.logits, deaf.logits))
    elsewhere = three.cache * 2 / 3
    held = limited.cache if limited.logits is None else three.cache
    return [
        CLAIMS["exact"].came_out(off, "sums in another order, in 32 bits", control=wrong),
        CLAIMS["room"].came_out(
            three.cache / held, "the limit is the system's (RLIMIT_AS), torch's own memory beside it"
        ),
        CLAIMS["bytes"].came_out(
            three.sent / DECODED / elsewhere,
            f"{three.sent // DECODED:,} bytes a token over 4 layers, to two processes, of {elsewhere / 1e6:.0f} MB",
        ),
    ]


PAPER = Paper(
    id="infinite-llm",
    title="Infinite-LLM: Efficient LLM Service for Long Context with DistAttention and Distributed KVCache",
    year=2024,
    venue="arXiv",
    link="https://arxiv.org/abs/2401.02669",
    claims=CLAIMS,
    run=reproduce,
)

"""AccLLM: pruned 2-bit weights, caches in 4 bits and attention that ends, on an FPGA; what each of the four brings.

The FPGA is simulated from its bandwidth and its multipliers: it does in its data path what general cores do elsewhere.
What the four do to a language model is tried on a decoder trained here.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from sonde.deployment.tree import Batching, Deployment, Pool, Replica, Site
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.simulate import simulate
from sonde.techniques.compose import chosen
from sonde.workload.requests import requests

MODEL, CARD, CONTEXT = "llama-2-7b", "alveo-u280", 4096
SEEDS, STEPS, AGAIN = range(3), 300, 100
TRAINED, LONG = 64, 256  # tokens that a decoder learns from at a time, and that it reads then
SINKS, WINDOW = 4, 60
Techniques = dict[str, dict[str, Any]]

#: what a data path does costs no instruction
PATH = {"dequantisation": 0, "conversion": 0, "cache_reading": 0}
BEFORE: Techniques = {"w4a8": PATH | {"cache_bits": 8}}
AFTER: Techniques = {
    "w2a8kv4": PATH | {"packing": 2},
    "pruning": {},
    "lambda-attention": {"sinks": 4, "window": 1020},
}

CLAIMS = {
    "throughput": Claim(
        "tokens/s over W4A8KV8 without pruning, all tokens attended to", 2.98, "×",
        "Llama-2-7B on U280, one request of 3,072 + 1,024 tokens; FlightLLM is the paper's baseline",
        near(2.98, 0.2), "of attention that ends alone, on contexts within its window", Range(0.99, 1.01),
    ),
    "energy": Claim(
        "tokens a joule over the same", 4.07, "×", "the same request", near(4.07, 0.2),
        "of attention that ends alone, on contexts within its window", Range(0.99, 1.01),
    ),
    "long": Claim(
        "the first ratio at 10,240 tokens, over that at 128", None, "×", "9,216 + 1,024 and 64 + 64 tokens",
        at_least(1.4), "the same where all tokens are attended to", at_most(1.3),
    ),
    "speed": Claim(
        "tokens/s", 164.0, "/s", "the same request", near(164.0, 0.25), "without any of it", at_most(110.0),
        recalled=True,
    ),
    "compute": Claim(
        "time of a prompt without pruning over with", 2.0, "×", "1,024 tokens, W2A8KV4 both", Range(1.6, 2.0),
        "the same ratio of a further token's time", Range(0.95, 1.1), recalled=True,
    ),
    "index": Claim(
        "bytes of 2-bit weights pruned over not", None, "×", "a decoder's packed bytes, counted", Range(0.95, 1.05),
        "the same of weights in 32 bits", Range(0.5, 0.55),
    ),
    "flat": Claim(
        "loss at four times the length it learnt from, over that at its length: attention that ends", None, "×",
        f"a decoder trained here on {TRAINED} bytes at a time, the same held-out bytes", at_most(1.02),
        "attention to all tokens: the same ratio", at_least(1.05),
    ),
    "cache": Claim(
        "loss that caches in 4 bits add", None, "%", "the same decoder", at_most(1.0), "in 8 bits", at_most(0.1)
    ),
    "broken": Claim(
        "loss that 2-bit pruned weights add before they are learnt with", None, "%", "the same decoder", at_least(5.0),
        "4-bit weights, not pruned", at_most(2.0),
    ),
    "recovered": Claim(
        "share of that which learning with them takes back", None, "%", "100 steps of two thin matrices, merged",
        at_least(50.0), "loss that the same steps take from weights as they are, in percent", at_most(3.0),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: the card, factor by factor, and a decoder trained here."""
    progress(0, 2, "the card, factor by factor")
    served, notes = _served()
    progress(1, 2, "a decoder, narrower")
    return Reproduction((*served, *_learnt()), tuple(notes))


def answered(techniques: Techniques, prompt: int, output: int) -> Outcome:
    """Return what happens to one request on the card under techniques."""
    replica = Replica(
        model=MODEL, device=CARD, engine="generic", weights="fp16", activations="fp16", kv_cache="fp16",
        memory_fraction=1.0, batching=Batching(max_batch=1, token_budget=256),
    )  # fmt: skip
    uses = tuple({name: given} for name, given in techniques.items())
    chosen(uses)
    tree = Deployment(sites=(Site(pools=(Pool(replica=replica),)),), techniques=uses)
    return simulate(tree, requests([0.0], [prompt], [output]))


def speed(techniques: Techniques, prompt: int, output: int) -> float:
    """Return tokens/s of one request once its prompt is read."""
    return 1.0 / float(answered(techniques, prompt, output).tpot_s[0])


def without(name: str) -> Techniques:
    """Return the techniques less one; without its narrow numbers, those of before."""
    rest = {other: given for other, given in AFTER.items() if other != name}
    return BEFORE | rest if name == "w2a8kv4" else rest


def alone(name: str) -> Techniques:
    """Return one technique beside what was there before, or in its place."""
    return {name: AFTER[name]} if name == "w2a8kv4" else BEFORE | {name: AFTER[name]}


def _served() -> tuple[list[Row], list[str]]:
    asked = (CONTEXT - 1024, 1024)
    before, after = answered(BEFORE, *asked), answered(AFTER, *asked)
    rates = [1.0 / float(it.tpot_s[0]) for it in (before, after)]
    ratio = rates[1] / rates[0]
    joules = float(before.energy_j.sum() / after.energy_j.sum())
    ends = answered(alone("lambda-attention"), 64, 64), answered(BEFORE, 64, 64)
    harmless = float(ends[1].tpot_s[0] / ends[0].tpot_s[0])
    saved = float(ends[1].energy_j.sum() / ends[0].energy_j.sum())
    parts = {name: (speed(alone(name), *asked) / rates[0], rates[1] / speed(without(name), *asked)) for name in AFTER}
    lengths = ((64, 64), asked, (6144, 1024), (9216, 1024))
    gains = {sum(it): speed(AFTER, *it) / speed(BEFORE, *it) for it in lengths}
    full = {sum(it): speed(without("lambda-attention"), *it) / speed(BEFORE, *it) for it in (lengths[0], lengths[-1])}
    pair: tuple[Techniques, Techniques] = (alone("w2a8kv4"), alone("w2a8kv4") | {"pruning": {}})
    prompts = [float(answered(it, 1024, 1).ttft_s[0]) for it in pair]
    steps = [speed(it, 64, 64) for it in pair]
    told = "; ".join(f"{name} {one:.2f} × alone, {last:.2f} × last" for name, (one, last) in parts.items())
    short, far = min(gains), max(gains)
    rows = [
        CLAIMS["throughput"].came_out(
            ratio,
            f"by bytes: the head's table does not shrink. FlightLLM's 55 tokens/s [recalled] are fewer than the "
            f"{rates[0]:.0f} that its bytes allow here: the rest of the claim is how well the card is used",
            control=harmless,
        ),
        CLAIMS["energy"].came_out(
            joules, "a card draws most of its power whatever it does, so that energy follows time", control=saved
        ),
        CLAIMS["long"].came_out(
            gains[far] / gains[short],
            ", ".join(f"{gain:.2f} at {tokens:,} tokens" for tokens, gain in gains.items()),
            control=full[far] / full[short],
        ),
        CLAIMS["speed"].came_out(rates[1], "460 GB/s, of which products reach 74 %", control=rates[0]),
        CLAIMS["compute"].came_out(
            prompts[0] / prompts[1],
            "attention and the head are not pruned", control=steps[1] / steps[0],
        ),
    ]  # fmt: skip
    return rows, [f"What each brings, one request of {CONTEXT:,} tokens: {told}."]


def _learnt() -> list[Row]:
    names = ("index", "flat", "cache", "broken", "recovered")
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[name].not_run("needs torch: pip install 'sonde[run]'") for name in names]
    from sonde.learn.recovery import Narrowed, narrowed_decoder

    found: list[Narrowed] = []
    for seed in SEEDS:
        found.append(narrowed_decoder(seed, (STEPS, AGAIN), (TRAINED, LONG), (SINKS, WINDOW)))
    sizes = found[0].weight_bytes

    def added(name: str) -> list[float]:
        return [100 * it.added[name] for it in found]

    back = [100 * (1 - it.added["pruned, learnt"] / it.added["pruned"]) for it in found]
    dense = ", ".join(f"{it.far / it.near:.3f}" for it in found)
    return [
        CLAIMS["index"].came_out(
            sizes["pruned"] / sizes["two"],
            "an index of 4 bits for four weights is what two of 2 bits took", control=sizes["half"] / 4.0,
        ),
        CLAIMS["flat"].came_out(
            [it.far_ends / it.near_ends for it in found],
            f"{SINKS} sinks and {WINDOW} tokens; attention to all of them by seed: {dense}",
            control=[it.far / it.near for it in found],
        ),
        CLAIMS["cache"].came_out(added("kv4"), "keys by channel, values by token", control=added("kv8")),
        CLAIMS["broken"].came_out(
            added("pruned"),
            f"2 bits alone add {np.mean(added('two')):.1f} %, pruning alone {np.mean(added('half')):.1f} %",
            control=added("four"),
        ),
        CLAIMS["recovered"].came_out(
            back, f"{np.mean(added('pruned, learnt')):.1f} % are left", control=[-one for one in added("learnt")]
        ),
    ]  # fmt: skip


PAPER = Paper(
    "accllm", "AccLLM: Accelerating Long-Context LLM Inference Via Algorithm-Hardware Co-Design",
    2025, "arXiv", "https://arxiv.org/abs/2505.03745", CLAIMS, reproduce,
)  # fmt: skip

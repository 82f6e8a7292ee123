"""Sarathi-Serve: chunks of prompts that share steps with decoding, of a size that the time between tokens allows.

Capacity is searched on the simulator, the same engine and traffic with each way of forming steps. The gaps between
tokens that a long prompt makes are measured on a small decoder served here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.cost.compile import compile_shard
from sonde.cost.shard import shard
from sonde.cost.table import Engine, coefficients
from sonde.deployment.tree import Batching, Replica, Use
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.engine import run
from sonde.techniques.compose import chosen, replica_under
from sonde.workload.requests import Requests, requests

A100 = "a100-sxm-80gb"
SEEDS, REQUESTS = (0, 1, 2), 2048
Ints = NDArray[np.int64]


class Setting(NamedTuple):
    """A model on so many A100, and the objective on the time between tokens (s)."""

    model: str
    ranks: int
    name: str
    tbt: float


class Lengths(NamedTuple):
    """Medians and 90th percentiles of prompts and outputs (tokens), and the most that both may be together."""

    prompt: tuple[float, float]
    output: tuple[float, float]
    most: int


SETTINGS = (
    Setting("yi-34b", 2, "strict", 0.2), Setting("yi-34b", 2, "relaxed", 1.0),
    Setting("mistral-7b", 1, "strict", 0.1), Setting("mistral-7b", 1, "relaxed", 0.5),
)  # fmt: skip
DATA = {
    "openchat_sharegpt4": Lengths((1730, 5696), (415, 834), 8192),
    "arxiv_summarization": Lengths((7059, 12985), (208, 371), 16384),
}
ONE_TOKEN = Lengths((1730, 5696), (1, 1), 8192)  # nobody is decoding while prompts are computed
#: microsoft/sarathi-serve (Apache-2.0), seconds of Yi-34B on two A100: prompts by length, decode steps by batch
PROMPTS = {128: 0.048, 512: 0.106, 1024: 0.214, 2048: 0.366, 4096: 0.758, 8192: 1.863, 16384: 4.408}
BATCHES = {1: 0.0468, 8: 0.0697, 32: 0.0879, 64: 0.128, 128: 0.189}
CONTEXT = 1024  # of the decode steps; not stated with them
MEDIAN_WAIT_S = 2.0

CLAIMS = {
    "yi": Claim(
        "most requests/s within p99 TBT, chunked over prefill-first", 3.7, "×",
        "Yi-34B on 2 A100, the best of two data sets and two objectives; median wait at most 2 s", near(3.7, 0.3),
        "answers of one token, which nothing can stall: the same ratio", at_most(1.05),
    ),
    "mistral": Claim(
        "most requests/s within p99 TBT, chunked over prefill-first", 2.6, "×",
        "Mistral-7B on 1 A100, as above", near(2.6, 0.3),
        "answers of one token, which nothing can stall: the same ratio", at_most(1.05),
    ),
    "orca": Claim(
        "most requests/s within p99 TBT, chunked over Orca (16 sequences)", None, "×",
        "Yi-34B, chat, strict; the bar is ours", at_least(1.3),
        "answers of one token: the same ratio", at_most(1.05),
    ),
    "least": Claim(
        "the least of these ratios over prefill-first: where it brings next to nothing", None, "×",
        "two models, two data sets, two objectives; the bar is ours", Range(0.9, 1.2),
        "the most of them", at_least(1.5),
    ),
    "falcon": Claim(
        "most requests/s within p99 TBT, chunked over prefill-first", 6.9, "×", "Falcon-180B, 4 × 2 A100 over Ethernet",
        near(6.9, 0.3), "answers of one token: the same ratio", at_most(1.05),
    ),
    "budget": Claim(
        "token budget found from the objective", 512, "tokens", "Yi-34B, 200 ms, 32 sequences of 4,096",
        near(512, 0.25),
        "at 1 s: the same budget", at_least(1024),
    ),
    "budget_relaxed": Claim(
        "token budget at the relaxed objective", 2048, "tokens", "Yi-34B, 1 s, 32 sequences of 4,096", near(2048, 0.25),
    ),
    "tail": Claim(
        "p99 gap between tokens, prefill-first over chunked", None, "×",
        "Yi-34B, chat, at the capacity of chunked, strict; the bar is ours", at_least(2.0),
        "their median gap, which hides the stalls", at_most(1.0),
    ),
    "free": Claim(
        "time of a step with 3 decodes beside a prompt, over the prompt alone", 217.6 / 217.2, "×",
        "Yi-34B, 1,021 + 3 tokens, 1,024 alone", near(217.6 / 217.2, 0.03),
        "one after the other: the same", at_least(1.2),
    ),
    "overhead": Claim(
        "time that chunks of 512 add to a prompt of 4,096", 19.0, "%", "Yi-34B, one request", near(19.0, 0.35),
        "chunks of 2,048", at_most(4.0),
    ),
    "overhead_long": Claim(
        "time that chunks of 512 add to a prompt of 16,384", 0.0, "%", "Yi-34B, one request", at_most(5.0),
    ),
    "steps": Claim(
        "median error of step times", None, "%", "the 12 published steps of Yi-34B on 2 A100; the bar is ours",
        at_most(12.0), "efficiencies that no engine's host time is in", at_least(20.0),
    ),
    "same": Claim(
        "largest difference of a logit, chunked to whole prompts, over the largest", 0.0, "",
        "a decoder of 4 layers served here in fp32, 9 requests; the bar is ours", at_most(1e-5),
        "chunks that do not see the ones before", at_least(0.05),
    ),
    "gap": Claim(
        "longest gap of any reader while a prompt of 1,024 arrives, whole first over chunked", None, "×",
        "8 readers of that decoder; the bar is ours", at_least(3.0), "a prompt of 16 tokens arrives", at_most(2.0),
    ),
    "kept": Claim(
        "longest gap over the objective that the budget was chosen for", None, "×",
        "the same, budget from measured steps; the bar is ours", at_most(1.25), "whole prompts first", at_least(2.0),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: capacities and steps on the simulator, gaps and logits of a real engine."""
    found: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for i, setting in enumerate(SETTINGS):
        for j, (name, lengths) in enumerate(DATA.items()):
            progress(2 * i + j, 12, f"{setting.model}, {setting.name}, {name}")
            found[setting.model, setting.name, name] = _capacities(setting, lengths)
    progress(8, 12, "controls")
    lone = {setting.model: _capacities(setting, ONE_TOKEN) for setting in SETTINGS[::2]}
    rows = [*_gains(found, lone), *_budgets(), _tail(found)]
    progress(9, 12, "steps")
    rows += _steps()
    progress(10, 12, "a decoder served here")
    return Reproduction((*rows, *_real()), tuple(_note(*key, values) for key, values in found.items()))


def engine(setting: Setting, policy: str, batch: int, budget: int, uses: tuple[Use, ...] = ()) -> Engine:
    """Return a replica of the setting under an engine of Sarathi's constants, and under techniques."""
    techniques = chosen(uses)
    batching = Batching(policy=policy, max_batch=batch, token_budget=budget)
    replica = Replica(model=setting.model, device=A100, tensor_parallel=setting.ranks, batching=batching)
    where = device(A100)
    part = shard(model(setting.model), where, replica_under(replica, techniques), efficiencies(where, "sarathi"))
    made = compile_shard(part)
    for one in techniques:
        if one.technique.engine is not None:
            made = one.technique.engine(made, part, one.parameters)
    return made


def engines(setting: Setting, context: int) -> tuple[Engine, ...]:
    """Return the same replica three ways: prefill-first, Orca's whole prompts with 16 sequences, and chunked.

    The budget of the last is the largest that holds with 32 sequences, as the paper's objectives are defined, of
    `context` tokens.
    """
    budget: Use = {"token-budget": {"tbt": setting.tbt, "decodes": 32, "context": context}}
    return (
        engine(setting, "prefill-first", 128, 16384),
        engine(setting, "iteration", 16, 16384),
        engine(setting, "chunked", 128, 2048, (budget,)),
    )


def drawn(lengths: Lengths, seed: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return prompts, outputs and arrivals at 1/s: log-normal by their quantiles, cut at the most, and Poisson."""
    draws = np.random.default_rng(seed)

    def column(median: float, high: float) -> Ints:
        spread = np.log(high / median) / 1.2815515655446004
        found = np.rint(median * np.exp(spread * draws.standard_normal(4 * REQUESTS)))
        return np.asarray(np.maximum(found, 1.0), dtype=np.int64)

    prompt, output = column(*lengths.prompt), column(*lengths.output)
    kept = prompt + output <= lengths.most
    return prompt[kept][:REQUESTS], output[kept][:REQUESTS], np.cumsum(draws.exponential(size=REQUESTS))


def served(made: Engine, traffic: tuple[Ints, Ints, NDArray[np.float64]], rate: float) -> Outcome:
    """Return what happens to the traffic at `rate`."""
    prompt, output, arrival = traffic
    asked: Requests = requests(arrival / rate, prompt, output)
    return run(asked, [(made, 1)])


def capacity(made: Engine, traffic: tuple[Ints, Ints, NDArray[np.float64]], tbt: float) -> float:
    """Return the most requests/s, to 2 %, whose p99 gap stays within `tbt` and whose median wait within 2 s."""

    def holds(rate: float) -> bool:
        outcome = served(made, traffic, rate)
        return outcome.quantile("itl", 0.99) <= tbt and float(np.median(outcome.queueing_s)) <= MEDIAN_WAIT_S

    low, high = 0.01, 0.02
    if not holds(low):
        return 0.0
    while holds(high):
        low, high = high, 2 * high
    while high / low > 1.02:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _capacities(setting: Setting, lengths: Lengths) -> NDArray[np.float64]:
    """Return capacities [way of forming steps, seed]."""
    ways = engines(setting, lengths.most)
    return np.array([[capacity(way, drawn(lengths, seed), setting.tbt) for seed in SEEDS] for way in ways])


def _gains(
    found: Mapping[tuple[str, str, str], NDArray[np.float64]], lone: Mapping[str, NDArray[np.float64]]
) -> list[Row]:
    rows = []
    for key, name in (("yi", "yi-34b"), ("mistral", "mistral-7b")):
        of = {at: values[2] / values[0] for at, values in found.items() if at[0] == name}
        most = max(of, key=lambda at: float(of[at].mean()))
        why = (
            f"the best is {most[2]}, {most[1]}; lengths are drawn by recalled quantiles, and host time is that of the "
            f"published step times of Yi-34B, by which a decode step takes half of the strict objective and not a fifth"
        )
        rows.append(CLAIMS[key].came_out(of[most], why, control=lone[name][2] / lone[name][0]))
    chat = found["yi-34b", "strict", "openchat_sharegpt4"]
    why = "its whole prompts share steps with decoding, which last as long as the prompt does"
    rows.append(CLAIMS["orca"].came_out(chat[2] / chat[1], why, control=lone["yi-34b"][2] / lone["yi-34b"][1]))
    all_ = {at: values[2] / values[0] for at, values in found.items()}
    least, most = (pick(all_, key=lambda at: float(all_[at].mean())) for pick in (min, max))
    why = f"{', '.join(least)}: short prompts under a long objective stall little"
    rows.append(CLAIMS["least"].came_out(all_[least], why, control=all_[most]))
    why = "Sonde's pipelines have no bubbles of uneven microbatches, which are what chunks of equal length avoid there"
    rows.append(CLAIMS["falcon"].not_run(why))
    return rows


def _note(name: str, objective: str, data: str, values: NDArray[np.float64]) -> str:
    means = values.mean(axis=1)
    return (
        f"{name}, {objective}, {data}: {means[0]:.3f} requests/s prefill-first, {means[1]:.3f} Orca, {means[2]:.3f} "
        f"chunked ({means[2] / means[0]:.2f}×)."
    )


def _budgets() -> list[Row]:
    strict, relaxed = (engines(setting, 4096)[2].token_budget for setting in SETTINGS[:2])
    long = engines(SETTINGS[1], 16384)[2].token_budget
    return [
        CLAIMS["budget"].came_out(strict, "the largest multiple of 128 whose step holds", control=relaxed),
        CLAIMS["budget_relaxed"].came_out(
            relaxed,
            f"the paper stops where larger chunks save little, and the objective alone allows more; with 16,384 tokens "
            f"of context, as long as summaries are, it allows {long:,}",
        ),
    ]


def _tail(found: Mapping[tuple[str, str, str], NDArray[np.float64]]) -> Row:
    setting, data = SETTINGS[0], "openchat_sharegpt4"
    whole, _, chunks = engines(setting, DATA[data].most)
    high, middle = [], []
    for seed, rate in zip(SEEDS, found[setting.model, setting.name, data][2], strict=True):
        runs = [served(way, drawn(DATA[data], seed), float(rate)) for way in (whole, chunks)]
        high.append(runs[0].quantile("itl", 0.99) / runs[1].quantile("itl", 0.99))
        middle.append(runs[0].quantile("itl", 0.5) / runs[1].quantile("itl", 0.5))
    why = "chunks make all gaps as long as the objective allows, and no longer"
    return CLAIMS["tail"].came_out(high, why, control=middle)


def _steps() -> list[Row]:
    setting = SETTINGS[0]
    made = engine(setting, "chunked", 128, 16384)
    other = _kernels_alone(setting)
    errors = [_errors(table) for table in (made, other)]
    time = made.table.time
    pure, both = (coefficients(time, n, b, n * n / 2, b * CONTEXT) for n, b in ((1024, 0), (1021, 3)))
    alone = coefficients(time, 0, 3, 0, 3 * CONTEXT)
    worst = max(errors[0])
    return [
        CLAIMS["free"].came_out(
            both / pure, "three sequences cost the host's time for them, and their weights are read anyway",
            control=(pure + alone) / pure,
        ),
        CLAIMS["overhead"].came_out(_overhead(4096, 512), "host time of every step, and prompt rows that fill no tile",
                                    control=_overhead(4096, 2048)),
        CLAIMS["overhead_long"].came_out(
            _overhead(16384, 512), "every step costs this engine 22 ms of host time, of a long prompt too; "
            "the published table has a whole prompt of 16,384 as slow as its chunks",
        ),
        CLAIMS["steps"].came_out(
            float(np.median(errors[0])),
            f"fitted on the same 12 steps with three constants; the worst is {worst:.0f} %",
            control=float(np.median(errors[1])),
        ),
    ]  # fmt: skip


def _kernels_alone(setting: Setting) -> Engine:
    """Return the engine with what kernels alone reach, and no host time of Sarathi's."""
    where = device(A100)
    replica = Replica(model=setting.model, device=A100, tensor_parallel=setting.ranks, batching=Batching(max_batch=128))
    return compile_shard(shard(model(setting.model), where, replica, efficiencies(where)))


def _errors(made: Engine) -> list[float]:
    time = made.table.time
    off = [coefficients(time, n, 0, n * n / 2, 0) / seconds - 1 for n, seconds in PROMPTS.items()]
    off += [coefficients(time, 0, b, 0, b * CONTEXT) / seconds - 1 for b, seconds in BATCHES.items()]
    return [100 * abs(error) for error in off]


def _overhead(prompt: int, chunk: int) -> float:
    """Return by how many percent a lone request's prompt takes longer in chunks than whole."""
    one = np.array([prompt], dtype=np.int64), np.array([2], dtype=np.int64), np.zeros(1)
    took = [
        float(served(engine(SETTINGS[0], "chunked", 128, budget), one, 1.0).ttft_s[0]) for budget in (chunk, prompt)
    ]
    return 100 * (took[0] / took[1] - 1)


def _real() -> list[Row]:
    names = ("same", "gap", "kept")
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[name].not_run("needs torch: pip install 'sonde[run]'") for name in names]
    from sonde.learn.serving_gaps import forgetting, measured

    runs = [measured(seed) for seed in SEEDS]
    said = " and ".join(f"{1e3 * run.whole:.0f} to {1e3 * run.chunked:.0f} ms" for run in runs)
    budgets = ", ".join(str(run.budget) for run in runs)
    return [
        CLAIMS["same"].came_out(
            [run.differs for run in runs], "fp32 sums in another order; every token is the same",
            control=[forgetting(seed) for seed in SEEDS],
        ),
        CLAIMS["gap"].came_out(
            [run.whole / run.chunked for run in runs], f"from {said}, by processor time of one core",
            control=[run.short_whole / run.short_chunked for run in runs],
        ),
        CLAIMS["kept"].came_out(
            [run.chunked / run.objective_s for run in runs],
            f"budgets of {budgets} tokens for three times a step that decodes only",
            control=[run.whole / run.objective_s for run in runs],
        ),
    ]  # fmt: skip


PAPER = Paper(
    "sarathi", "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    2024, "OSDI", "https://arxiv.org/abs/2403.02310", CLAIMS, reproduce, measured=True,
)  # fmt: skip

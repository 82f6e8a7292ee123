"""SN40L: many expert models on one node, loaded from a large store over a wide link, and layers fused into one kernel.

Loading times, misses, latencies and nodes are those of `sonde.plan.coe`: bytes over links, an exact LRU and the cost
model. A small composition of 20 experts is run here for real.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.catalogue.nodes import node
from sonde.cost.compile import compile_shard
from sonde.cost.operators import token_operators
from sonde.cost.roofline import Operator
from sonde.cost.served import served
from sonde.cost.shard import Shard, shard
from sonde.cost.switching import misses, popularity
from sonde.cost.table import coefficients
from sonde.deployment.tree import Batching, Replica
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.plan.coe import Answer, Question, compose
from sonde.techniques.compose import chosen, compiled
from sonde.techniques.fused_layers import Fused, operators

EXPERT, SN40L, A100, H100 = "llama-2-7b", "sn40l-node", "dgx-a100", "dgx-h100"
SEEDS = (0, 1, 2)
MANY, MOST, FEW = 150, 850, 24
PROMPT, OUTPUT = 128, 20

CLAIMS = {
    "switch_a100": Claim(
        "time to load an expert, DGX A100 over SN40L", 31.0, "×", "Llama-2-7B in BF16; one host link of the DGX",
        near(31.0, 0.1), "24 experts, which all stay loaded: loads a request", at_most(0.0),
    ),
    "switch_h100": Claim(
        "time to load an expert, DGX H100 over SN40L", 15.0, "×", "Llama-2-7B in BF16; one host link of the DGX",
        near(15.0, 0.1), "24 experts, which all stay loaded: loads a request", at_most(0.0),
    ),
    "links": Claim(
        "time to load an expert, DGX A100 with all 8 links at once over SN40L", None, "×",
        "every GPU loads its eighth of the model; the bar is ours", Range(3.0, 5.0), "over one link", at_least(20.0),
    ),
    "footprint": Claim(
        "nodes that hold 850 experts ready, DGX over SN40L", 19.0, "×",
        "in device memory of DGX A100 or H100; in DDR of SN40L", near(19.0, 0.1), "24 experts: the same", at_most(1.0),
    ),
    "a100": Claim(
        "time of a request, DGX A100 over SN40L", 6.6, "×", "150 experts, alike in popularity; 128 tokens in, 20 out",
        near(6.6, 0.3), "24 experts, which all stay loaded: the same", at_most(2.0), recalled=True,
    ),
    "h100": Claim(
        "time of a request, DGX H100 over SN40L", 3.7, "×", "150 experts, alike in popularity; 128 tokens in, 20 out",
        near(3.7, 0.3), "24 experts, which all stay loaded: the same", at_most(2.0), recalled=True,
    ),
    "popular": Claim(
        "requests that wait for a load, popularity of Zipf 1.2 over all alike", None, "×",
        "150 experts on SN40L; the bar is ours", at_most(0.5), "24 experts at 1.2: share that waits", at_most(0.0),
    ),
    "fused_decode": Claim(
        "time of a step, unfused over fused", 2.0, "×", "Llama-2-7B on SN40L, one sequence; the least of 2 to 13",
        Range(2.0, 13.0), "8 sequences of 400,000 tokens, whose caches are read anyway", at_most(1.1), recalled=True,
    ),
    "intensity": Claim(
        "FLOP per byte of a prompt's layers, fused over unfused", None, "×",
        "Llama-2-7B on SN40L, 2,048 tokens; the bar is ours", at_least(1.5), "one token: the same", at_most(1.05),
    ),
    "real": Claim(
        "time to load an expert, measured over predicted", None, "×",
        "20 decoders of 22 MB run here, 4 loaded; within a fifth", Range(0.8, 1.2),
        "an expert that is loaded already", at_most(0.05),
    ),
    "loads": Claim(
        "loads of that run, over those of the simulated LRU", None, "×",
        "60 requests, Zipf 0.8; answers to the last bit", Range(1.0, 1.0),
        "over those predicted without popularity, 1 - 4/20 of all", at_most(0.97),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: nodes and links of the catalogue, fused steps, and experts run here."""
    progress(0, 3, "compositions on three kinds of nodes")
    rows, notes = _compositions()
    progress(1, 3, "fused layers")
    rows += _fusion()
    progress(2, 3, "experts run here")
    return Reproduction((*rows, *_real()), tuple(notes))


def asked(experts: int, name: str, alpha: float = 0.0, seed: int = 0, prompt: int = PROMPT) -> Answer:
    """Return what comes of a composition on nodes of one kind, each expert loaded over one link."""
    return compose(Question(EXPERT, experts, alpha, prompt, OUTPUT, one_link=True, seed=seed), node(name))


def _compositions() -> tuple[list[Row], list[str]]:
    many = {name: [asked(MANY, name, seed=seed) for seed in SEEDS] for name in (SN40L, A100, H100)}
    few = {name: asked(FEW, name) for name in (SN40L, A100, H100)}
    most = {name: asked(MOST, name) for name in (SN40L, A100, H100)}
    sn40l = many[SN40L][0]
    rows = []
    for key, name in (("switch_a100", A100), ("switch_h100", H100)):
        other = many[name][0]
        why = (
            f"{sn40l.expert_bytes / 1e9:.2f} GB in {1e3 * other.switch_s:.0f} and {1e3 * sn40l.switch_s:.1f} ms, at "
            f"the links' nominal rates; the SN40L's is the paper's lower bound"
        )
        rows.append(CLAIMS[key].came_out(other.switch_s / sn40l.switch_s, why, control=few[name].miss_rate))
    wide = compose(Question(EXPERT, MANY, 0.0, PROMPT, OUTPUT), node(A100))
    why = "the headline counts one link of the eight; a replica over all GPUs may load over all of them at once"
    one_link = many[A100][0].switch_s / sn40l.switch_s
    rows.append(CLAIMS["links"].came_out(wide.switch_s / sn40l.switch_s, why, control=one_link))
    why = f"a DGX has room for {most[A100].resident} experts beside the router, caches and the engine, of nominal HBM"
    rows.append(
        CLAIMS["footprint"].came_out(
            most[A100].nodes_loaded / most[SN40L].nodes, why, control=few[A100].nodes_loaded / few[SN40L].nodes
        )
    )
    for key, name in (("a100", A100), ("h100", H100)):
        gains = [one.mean_s / two.mean_s for one, two in zip(many[name], many[SN40L], strict=True)]
        why = (
            "batches, prompts and kernels of the paper are not known here; collectives of SN40L run on estimated "
            "links, so that long prompts gain less: see below"
        )
        rows.append(CLAIMS[key].came_out(gains, why, control=few[name].mean_s / few[SN40L].mean_s))
    skewed = [asked(MANY, SN40L, 1.2, seed) for seed in SEEDS]
    shares = [one.miss_rate / two.miss_rate for one, two in zip(skewed, many[SN40L], strict=True)]
    why = f"{100 * sn40l.miss_rate:.0f} % of requests wait where all experts are alike"
    rows.append(CLAIMS["popular"].came_out(shares, why, control=asked(FEW, SN40L, 1.2).miss_rate))
    return rows, [_note(many[name][0], most[name]) for name in many] + [_long()]


def _note(many: Answer, most: Answer) -> str:
    return (
        f"{many.node}: {many.resident} of {MANY} experts loaded, {100 * many.miss_rate:.0f} % of requests wait "
        f"{1e3 * many.switch_s:.1f} ms, p50 {1e3 * many.p50_s:.0f} and p99 {1e3 * many.p99_s:.0f} ms; {MOST} experts "
        f"take {most.nodes} nodes by store, {most.nodes_loaded} by device memory."
    )


def _long() -> str:
    sn40l, a100, h100 = (asked(MANY, name, prompt=1024).mean_s for name in (SN40L, A100, H100))
    return f"With prompts of 1,024 tokens: {a100 / sn40l:.1f}× DGX A100, {h100 / sn40l:.1f}× DGX H100."


def _part(batch: int = 8) -> Shard:
    where = device(node(SN40L).device)
    replica = Replica(
        model=EXPERT, device=where.name, tensor_parallel=node(SN40L).devices, engine="generic",
        batching=Batching(max_batch=batch, token_budget=2048),
    )  # fmt: skip
    return shard(model(EXPERT), where, replica, served(where, replica))


def _fusion() -> list[Row]:
    part = _part()
    plain = compile_shard(part).table.time
    uses = chosen(["fused-layers"])
    fused = compiled(part.model, part.device, part.replica, uses).table.time

    def gain(prompt: int, batch: int, context: int) -> float:
        work = (prompt, batch, prompt * prompt / 2, batch * context)
        return coefficients(plain, *work) / coefficients(fused, *work)

    def intensities(tokens: int) -> float:
        found = token_operators(part, np.array([float(tokens)]))
        layers = [one for one in found if one.name not in ("embedding", "head")]
        return _intensity(operators(part, layers, Fused())) / _intensity(layers)

    why = (
        f"kernel starts as short as those of GPUs, and sums over 8 sockets stay apart; a prompt of 2,048 gains "
        f"{gain(2048, 0, 0):.2f}×, one of 128 {gain(128, 0, 0):.2f}×"
    )
    return [
        CLAIMS["fused_decode"].came_out(gain(0, 1, 1024), why, control=gain(0, 8, 400_000)),
        CLAIMS["intensity"].came_out(
            intensities(2048), "what is left are weights and the cache's writes", control=intensities(1)
        ),
    ]


def _intensity(found: list[Operator]) -> float:
    """Return FLOP per byte of device memory."""
    flops = sum(one.layers * float(np.ravel(one.flops)[-1]) for one in found)
    return flops / sum(one.layers * float(np.ravel(one.bytes)[-1]) for one in found)


def _real() -> list[Row]:
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[name].not_run("needs torch: pip install 'sonde[run]'") for name in ("real", "loads")]
    from sonde.learn.experts import EXPERTS, REQUESTS, RESIDENT, ran

    shares = popularity(EXPERTS, 0.8)
    drawn = [np.random.default_rng(seed).choice(EXPERTS, REQUESTS, p=shares) for seed in SEEDS]
    runs = [ran(one, seed) for one, seed in zip(drawn, SEEDS, strict=True)]
    predicted = [int(misses(one, RESIDENT).sum()) for one in drawn]
    right = all(run.right for run in runs)
    gigabytes = ", ".join(f"{run.bytes / run.predicted_s / 1e9:.1f}" for run in runs)
    return [
        CLAIMS["real"].came_out(
            [run.switch_s / run.predicted_s for run in runs],
            f"bytes over {gigabytes} GB/s, measured on mapped files of another size; medians of processor time",
            control=[run.kept_s / run.predicted_s for run in runs],
        ),
        CLAIMS["loads"].came_out(
            [run.loads / count if right else float("nan") for run, count in zip(runs, predicted, strict=True)],
            f"{', '.join(str(run.loads) for run in runs)} loads; answers are those of the experts themselves: {right}",
            control=[run.loads / (REQUESTS * (1 - RESIDENT / EXPERTS)) for run in runs],
        ),
    ]  # fmt: skip


PAPER = Paper(
    "sn40l", "SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts",
    2024, "MICRO", "https://arxiv.org/abs/2405.07518", CLAIMS, reproduce, measured=True,
)  # fmt: skip

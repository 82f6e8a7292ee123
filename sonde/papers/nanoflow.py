"""NanoFlow: parts of a batch overlap on one device, so that products, cache reads and sums over links run at once.

Simulated on its own hardware and model; and measured on two cores of this machine, whose interference table predicts
what layers in nano-batches take.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from sonde.catalogue.devices import device
from sonde.catalogue.interference import KINDS, Interference, curves
from sonde.catalogue.models import model
from sonde.cost.served import served
from sonde.cost.shard import shard
from sonde.deployment.load import load
from sonde.deployment.tree import Batching, Replica
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.simulate import simulate
from sonde.techniques.layer import Stage, sequential, stages
from sonde.techniques.nano_batches import NanoBatches, overlapped, working_point
from sonde.techniques.nano_search import SPLITS, search, shortest
from sonde.techniques.timeline import Device, makespan, queues
from sonde.workload.requests import Requests, requests

if TYPE_CHECKING:
    from sonde.learn.pipeline_corun import Kind, Pair, Rates

#: tokens/s and GPU that products alone would allow, C/(2P), as the paper has it for Llama-2-70B on A100
OPTIMUM = 1857.0
#: tokens/s and GPU of others on 8 A100 as the paper's repository states them, by prompt and output
STATED = {
    (512, 512): {"vLLM": 469, "DeepSpeed-FastGen": 490, "TensorRT-LLM": 735},
    (1024, 512): {"vLLM": 549, "DeepSpeed-FastGen": 513, "TensorRT-LLM": 817},
    (512, 1024): {"vLLM": 346, "DeepSpeed-FastGen": 372, "TensorRT-LLM": 636},
}
GPUS, DENSE, COUNT = 8, 2048, 10_000
LAYERS, TRIES, WINDOW_S = 3, 12, 0.04
#: speed of two processes over that of one below which this machine is busy with something else; how long to wait for it
FREE, PATIENCE_S = 1.6, 15.0

CLAIMS = {
    "share": Claim(
        "share of the optimum C/(2P), 1,857 tokens/s and GPU", 68.5, "%",
        "Llama-2-70B on 8 A100, 512 tokens in and 512 out, 2,048 in a step", near(68.5, 0.1),
    ),
    "gain": Claim(
        "tokens/s over those without overlap", 1.17, "×",
        "the same, lengths drawn around 512", Range(1.08, 1.26),
        "16 answers to short prompts at once, bound by memory: the same ratio", Range(0.999, 1.001), recalled=True,
    ),
    "cut": Claim(
        "tokens/s that nano-batches without overlap lose", 13.2, "%", "the same, stages one after the other",
        Range(1.0, 20.0), "with overlap: the same", at_most(0.0), recalled=True,
    ),
    "alike": Claim(
        "tokens/s over those without overlap, where half of a device does half of the work", None, "×",
        "the same with P(R) = R; there is nothing to win", Range(0.999, 1.001),
    ),
    "engine": Claim(
        "tokens/s over TensorRT-LLM's 735, as the paper's repository has it", 1.73, "×",
        "the same; the baseline is theirs and not simulated", near(1.73, 0.1),
    ),
    "predicted": Claim(
        "time of layers in nano-batches, predicted from P(R) over measured", None, "×",
        "two cores of this machine, products beside reads of a cache, order by the programme", Range(0.85, 1.15),
        "predicted as if nothing disturbed anything: the same ratio", at_most(0.85),
    ),
    "real": Claim(
        "layers without overlap over layers in nano-batches, measured", None, "×",
        "the same layers on both cores; the bar is ours", at_least(1.02),
        "layers of products only: the same ratio", at_most(1.05),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: throughput when simulated, and two cores measured."""
    progress(0, 3, "Llama-2-70B on 8 A100")
    rows, notes = _simulated()
    progress(1, 3, "two cores of this machine")
    measured, note = _measured()
    return Reproduction((*rows, *measured), (*notes, note))


def _simulated() -> tuple[list[Row], list[str]]:
    many = {lengths: _equal(*lengths) for lengths in STATED}
    one = {lengths: _rate(work) for lengths, work in many.items()}
    two = {lengths: _rate(work, _nano(lengths)) for lengths, work in many.items()}
    plain = (512, 512)
    cut = _rate(many[plain], _nano(plain, overlap=False))
    alike = _rate(many[plain], _nano(plain, interference="none"))
    drawn = [_drawn(seed) for seed in range(3)]
    gains = [_rate(work, _nano(plain)) / _rate(work) for work in drawn]
    few = requests(np.zeros(64), np.full(64, 16), np.full(64, 512))
    idle = _rate(few, _nano(plain), batch=16) / _rate(few, batch=16)
    why = (
        "P(R) is recalled and coarse, kernels are Sonde's curves, no time of an engine; and the table is exact at one "
        "mix of prompts and decodes"
    )
    rows = [
        CLAIMS["share"].came_out(100 * two[plain] / OPTIMUM, f"{two[plain]:.0f} tokens/s and GPU; {why}"),
        CLAIMS["gain"].came_out(gains, "the paper's is over its own engine without overlap", control=idle),
        CLAIMS["cut"].came_out(
            100 * (1 - cut / one[plain]),
            "two or three nano-batches of whole layers load weights again; the paper cuts some stages in four, and "
            "its smaller kernels lose more",
            control=100 * (1 - two[plain] / one[plain]),
        ),
        CLAIMS["alike"].came_out(alike / one[plain], "the search then runs no nano-batches at all"),
        CLAIMS["engine"].came_out(two[plain] / STATED[plain]["TensorRT-LLM"], "theirs is of 2024"),
    ]
    return rows, [_sensitivity(), *(
        f"{prompt} in, {output} out: Sonde {one[prompt, output]:.0f} tokens/s and GPU without overlap, "
        f"{two[prompt, output]:.0f} with; stated "
        + ", ".join(f"{name} {rate}" for name, rate in STATED[prompt, output].items())
        + "."
        for prompt, output in STATED
    )]  # fmt: skip


def _sensitivity() -> str:
    """Say what a full step takes where 80 % of the speed is reached at shares of the device around the recalled one."""
    it, where = model("llama-2-70b"), device("a100-sxm-80gb")
    replica = Replica(
        model=it.name, device=where.name, tensor_parallel=GPUS, engine="generic",
        batching=Batching(max_batch=DENSE, token_budget=DENSE),
    )  # fmt: skip
    part = shard(it, where, replica, served(where, replica))
    full = working_point(part, NanoBatches(context=768, decoding=DENSE // 2), DENSE)
    cut = [(split, [stages(part, full.share(share)) for share in split]) for split in SPLITS if len(split) == 2]
    found = []
    for at in (0.3, 0.35, 0.4):
        kept = [(0.0, 0.0), (at, 0.8), (1.0, 1.0)]
        table = curves({"compute": [(0.0, 0.0), (1.0, 1.0)], "memory": kept, "network": kept})
        took = overlapped(part, search(cut, table, it.layers), full)
        found.append(f"{sequential(part, full) / took:.2f} at {at:g}")
    return f"Layers of a full step, without overlap over with, if 80 % of speed takes a share: {', '.join(found)}."


def _nano(lengths: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Return nano-batches searched for where these lengths keep a full step: its mix, and the context in the mean."""
    prompt, output = lengths
    return {
        "nano-batches": {
            "context": prompt + output // 2, "decoding": round(DENSE * output / (prompt + output)), **more,
        }
    }  # fmt: skip


def _equal(prompt: int, output: int) -> Requests:
    return requests(np.zeros(COUNT), np.full(COUNT, prompt), np.full(COUNT, output))


def _drawn(seed: int) -> Requests:
    draws = np.random.default_rng(seed)
    lengths = draws.lognormal(np.log(512) - 0.32, 0.8, (2, COUNT)).clip(16, 4096).astype(np.int64)
    return requests(np.zeros(COUNT), lengths[0], lengths[1])


def _rate(work: Requests, *techniques: dict[str, Any], batch: int = 2048) -> float:
    """Return tokens in and out per second and GPU when all requests are there from the start."""
    replica = {
        "model": "llama-2-70b", "device": "a100-sxm-80gb", "tensor_parallel": GPUS, "engine": "generic",
        "weights": "fp16", "activations": "fp16", "kv_cache": "fp16",
        "batching": {"max_batch": batch, "token_budget": DENSE},
    }  # fmt: skip
    tree = load({"sites": [{"pools": [{"replica": replica}]}], "techniques": list(techniques)})
    outcome: Outcome = simulate(tree, work)
    return float(work.prompt_tokens.sum() + work.output_tokens.sum()) / outcome.end_s / GPUS


def _measured() -> tuple[list[Row], str]:
    claims = [CLAIMS["predicted"], CLAIMS["real"]]
    if importlib.util.find_spec("torch") is None:
        why = "needs torch: pip install 'sonde[run]'"
        return [claim.not_run(why) for claim in claims], f"Nothing was measured: it {why}."
    from sonde.learn.pipeline_corun import pair

    with pair() as two:
        before = two.free(PATIENCE_S, FREE)
        if before >= FREE:
            rates = two.best(TRIES, WINDOW_S)
            rows = _overlapped(two, rates)
        at_once = min(before, two.free(0.0, FREE))
    if at_once < FREE:
        why = f"this machine was busy: two processes computed {at_once:.2f} times as much as one"
        return [claim.not_run(why) for claim in claims], f"Nothing was measured: {why}."
    reached: dict[Kind, float] = {kind: rates.reached(kind) for kind in rates.both}
    return rows, (
        f"P(1/2) measured here, one core of two: products {reached['compute']:.2f} beside a read, reads of a cache "
        f"{reached['memory']:.2f} beside a product ({rates.both['memory'] / rates.one['memory']:.2f} times as fast on "
        f"two cores as on one alone)."
    )


def _overlapped(two: Pair, rates: Rates) -> list[Row]:
    """Run layers whose nano-batches take as long to read as the others to compute, with and without overlap."""
    from sonde.learn.pipeline_corun import PIECES
    from sonde.learn.pipeline_corun import Stage as Pieces

    reads = max(round(2 * PIECES * rates.beside["memory"] / rates.beside["compute"]), 2)
    chain = [Pieces("compute", PIECES), Pieces("memory", reads), Pieces("compute", PIECES)]
    nanos = [
        [Stage(f"{i} {one.kind}", one.kind, one.pieces / rates.both[one.kind], 0.0) for i, one in enumerate(chain)]
    ] * 2
    _, order = shortest(nanos)
    turns: dict[Kind, list[tuple[int, int, int]]] = {
        kind: queues(nanos, order, LAYERS)[kind][::-1] for kind in rates.both
    }
    measured = min(two.overlapped([chain, chain], turns) for _ in range(TRIES))
    apart = min(two.sequential(chain, 2 * LAYERS) for _ in range(TRIES))
    predicted = makespan(nanos, order, Device(_table(rates), {"memory": 0.5}), LAYERS)
    free = Interference(dict.fromkeys(KINDS, ((0.0, 0.0), (1e-3, 0.999), (1.0, 1.0))))
    undisturbed = makespan(nanos, order, Device(free, {"memory": 0.5}), LAYERS)

    products = [Pieces("compute", 2 * PIECES)]
    lone: dict[Kind, list[tuple[int, int, int]]] = {
        "compute": [(layer, nano, 0) for layer in range(LAYERS) for nano in range(2)], "memory": [],
    }  # fmt: skip
    alone = min(two.sequential(products, 2 * LAYERS) for _ in range(TRIES))
    control = alone / min(two.overlapped([products, products], lone) for _ in range(TRIES))
    both = rates.reached("compute") + rates.reached("memory")
    times = f"{1e3 * measured:.0f} ms measured, {1e3 * predicted:.0f} predicted, {1e3 * apart:.0f} without overlap"
    return [
        CLAIMS["predicted"].came_out(predicted / measured, times, control=undisturbed / measured),
        CLAIMS["real"].came_out(
            apart / measured,
            f"P(1/2) of both kinds add up to {both:.2f}: overlap pays above 1; {times}",
            control=control,
        ),
    ]


def _table(rates: Rates) -> Interference:
    """Return P(R) as measured: at half of the device, and straight on both sides."""
    points: dict[str, list[tuple[float, float]]] = {kind: [(0.0, 0.0), (1.0, 1.0)] for kind in KINDS}
    for kind in rates.both:
        points[kind].insert(1, (0.5, min(rates.reached(kind), 0.99)))
    return curves(points)


PAPER = Paper(
    "nanoflow", "NanoFlow: Towards Optimal Large Language Model Serving Throughput",
    2025, "OSDI", "https://arxiv.org/abs/2408.12757", CLAIMS, reproduce, measured=True,
)  # fmt: skip

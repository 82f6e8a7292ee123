"""GenZ: a step as a table of operators, what it is bound by, and what a platform must have for a latency.

The measurements are DistServe's: step times of its engine on A100, as the coefficients that its repository ships.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.devices import device
from sonde.catalogue.distserve_steps import MEASURED
from sonde.catalogue.efficiencies import Efficiencies, efficiencies
from sonde.catalogue.models import model
from sonde.cost.compile import step_table
from sonde.cost.explain import Row as OperatorRow
from sonde.cost.explain import explain
from sonde.cost.memory import fit
from sonde.cost.require import Needs, Target, require, scaled
from sonde.cost.shard import shard
from sonde.cost.table import coefficients
from sonde.deployment.tree import Batching, Replica
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near

A100, H100, LLAMA = "a100-sxm-80gb", "h100-sxm", "llama-3-8b"
PROMPTS = ((1, 128), (1, 512), (1, 2048), (4, 512), (8, 512), (2, 2048))
BATCHES = tuple((batch, context) for batch in (1, 4, 16, 64, 128, 256) for context in (256, 512, 1024))
#: GenZ's two efficiencies for every operator, and the engine's time a step, as read off the OPT-13B row
COMPUTE, MEMORY, STEP_S = 0.8, 0.63, 2e-3

CLAIMS = {
    "geomean": Claim(
        "largest geometric mean error over platforms", 5.82, "%",
        "steps of OPT-13B and 66B on 1 to 8 A100, efficiencies fitted on those of the same engine", at_most(5.82),
        "one formula for both phases, FLOP over peak: the same error", at_least(20.0), recalled=True,
    ),
    "fitted": Claim(
        "median error with those efficiencies", None, "%", "the same steps; the bar is ours", at_most(10.0)
    ),
    "two": Claim(
        "median error with two efficiencies for all operators", None, "%",
        "the same steps, 80 % and 63 % of peaks; the bar is ours",
        at_most(20.0),
    ),
    "prefill": Claim(
        "share of a prompt's time that is bound by compute", None, "%", "Llama-3-8B on H100, 2,048 tokens",
        at_least(80.0), "a prompt of one token: the same share", at_most(20.0),
    ),
    "decode": Claim(
        "share of a decode step's time that is bound by memory", None, "%", "Llama-3-8B on H100, one answer",
        at_least(80.0), "2,048 answers of 1 token: the same share", at_most(50.0),
    ),
    "bandwidth": Claim(
        "bandwidth needed at half the TPOT, over that at the whole", None, "×", "Llama-3-8B, one answer, 20 and 10 ms",
        near(2.0, 0.15), "compute needed for TTFT, when only TPOT is halved", Range(0.999, 1.001),
    ),
    "compute": Claim(
        "compute needed for a prompt twice as long, over that for it", None, "×",
        "Llama-3-8B, 3,000 and 6,000 in 300 ms",
        Range(2.0, 2.5), "bandwidth needed for TPOT, when only the prompt doubles", Range(0.999, 1.001),
    ),
    "memory": Claim(
        "memory needed with 32 times the answers at once, over that for one", None, "×",
        "Llama-3-8B, 4,000 tokens each", Range(1.5, 32.0),
        "bandwidth needed for TTFT, with 32 times the answers", Range(0.999, 1.001),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: errors on A100, bounds by phase, and requirements by search."""
    progress(0, 3, "steps on A100")
    errors, note = _errors()
    progress(1, 3, "bounds by operator")
    bounds = _bounds()
    progress(2, 3, "requirements")
    return Reproduction((*errors, *bounds, *_requirements()), (note, _energy()))


def _errors() -> tuple[list[Row], str]:
    fitted = {key: _ratios(*key, efficiencies(device(A100), "distserve")) for key in MEASURED}
    two = np.concatenate([_ratios(*key, _uniform()) for key in MEASURED])
    flops = {key: _ratios(*key, _compute_alone()) for key in MEASURED}
    means = {key: _geomean(ratios) for key, ratios in fitted.items()}
    worst = max(means, key=lambda key: means[key])
    points = sum(len(ratios) for ratios in fitted.values())
    why = (
        f"other hardware and engine than GenZ's, and the efficiencies are fitted on these six platforms at once "
        f"({points} steps); the worst is {worst[0]} on {worst[1]}"
    )
    signed = " ".join(f"{name}×{ranks} {means[name, ranks]:.1f} %" for name, ranks in MEASURED)
    return [
        CLAIMS["geomean"].came_out(means[worst], why, control=max(map(_geomean, flops.values()))),
        CLAIMS["fitted"].came_out(_median(np.concatenate(list(fitted.values()))), "GenZ states no figure for this"),
        CLAIMS["two"].came_out(
            _median(two),
            "GenZ states no figure for this; two efficiencies leave out kernel starts and slow links",
        ),
    ], f"Geometric mean error by platform: {signed}."


def _geomean(ratios: NDArray[np.float64]) -> float:
    """Return the geometric mean of how far, in percent, predictions are off: of the factor, either way."""
    return 100 * float(np.expm1(np.mean(np.abs(np.log(ratios)))))


def _median(ratios: NDArray[np.float64]) -> float:
    return 100 * float(np.median(np.abs(ratios - 1)))


def _ratios(name: str, ranks: int, reached: Efficiencies) -> NDArray[np.float64]:
    """Return predicted over measured seconds of every step of the grid that the caches have room for."""
    replica = Replica(
        model=name, device=A100, tensor_parallel=ranks, weights="fp16", activations="fp16", kv_cache="fp16",
        memory_fraction=0.95, batching=Batching(max_batch=256, token_budget=2048),
    )  # fmt: skip
    it, where = model(name), device(A100)
    time = step_table(shard(it, where, replica, reached)).time
    room = fit(it, where, replica).kv_tokens
    prompt, small, large = MEASURED[name, ranks]
    found = []
    for count, length in PROMPTS:
        total, squares = count * length, count * length**2
        took = prompt[0] + prompt[1] * total + prompt[2] * squares
        found.append(1e3 * coefficients(time, total, 0, squares / 2, 0) / took)
    for batch, context in BATCHES:
        if batch * context <= room:
            a, b, c = small if batch < 95 else large
            took = a + b * batch * context + c * batch
            found.append(1e3 * coefficients(time, 0, batch, 0, batch * context) / took)
    return np.array(found)


def _uniform() -> Efficiencies:
    return _all_alike(COMPUTE, MEMORY)


def _compute_alone() -> Efficiencies:
    """Return efficiencies in which memory costs next to nothing: FLOP over peak, whatever the phase."""
    return _all_alike(COMPUTE, 1e6)


def _all_alike(compute: float, memory: float) -> Efficiencies:
    found = efficiencies(device(A100))
    curves = {
        name: replace(curve, compute=compute, memory=memory, half_rows=0.0, half_outputs=0.0, row_s=0.0, blend=0.0)
        for name, curve in found.curves.items()
    }
    return replace(found, curves=curves, engine=replace(found.engine, step_s=STEP_S), factors=())


def _bounds() -> list[Row]:
    long, lone = _explained(2048, 0, 0), _explained(1, 0, 0)
    one, many = _explained(0, 1, 2048), _explained(0, 2048, 1)
    why = "GenZ shows this as rooflines, without a figure"
    return [
        CLAIMS["prefill"].came_out(_share(long, "compute"), why, control=_share(lone, "compute")),
        CLAIMS["decode"].came_out(_share(one, "memory"), why, control=_share(many, "memory")),
    ]


def _explained(prompt: int, batch: int, context: int) -> list[OperatorRow]:
    replica = Replica(model=LLAMA, device=H100, batching=Batching(max_batch=2048))
    return explain(model(LLAMA), device(H100), replica, prompt, batch, context)


def _share(rows: list[OperatorRow], bound: str) -> float:
    """Return the percentage of the time of operators (without the engine's own) that is bound so."""
    timed = [row for row in rows if row.bound != "engine"]
    return 100 * sum(row.seconds for row in timed if row.bound == bound) / sum(row.seconds for row in timed)


def _requirements() -> list[Row]:
    it, where, replica = model(LLAMA), device(H100), Replica(model=LLAMA, device=H100)

    def need(prompt: int = 3000, batch: int = 1, ttft: float | None = None, tpot: float | None = None) -> Needs:
        return require(it, where, replica, Target(prompt, 4000, batch, ttft, tpot))

    whole, half = need(ttft=0.3, tpot=0.02), need(ttft=0.3, tpot=0.01)
    short, long = need(ttft=0.3, tpot=0.02), need(prompt=6000, ttft=0.3, tpot=0.02)
    one, many = need(ttft=0.3), need(batch=32, ttft=0.3)
    back = scaled(where, memory=half.bandwidth / where.memory[0].bandwidth)
    kept = require(it, back, replica, Target(3000, 4000, 1, None, 0.01))
    why = "found by search over the whole cost model; kernel starts and the engine's time come off the target"
    return [
        CLAIMS["bandwidth"].came_out(half.bandwidth / whole.bandwidth, why, control=half.flops / whole.flops),
        CLAIMS["compute"].came_out(
            long.flops / short.flops, "above 2 by attention, which grows with the square",
            control=long.bandwidth / short.bandwidth,
        ),
        CLAIMS["memory"].came_out(
            many.memory_bytes / one.memory_bytes,
            f"weights are held once; a device with the bandwidth found needs {kept.bandwidth / half.bandwidth:.3f} "
            f"times as much when asked again",
            control=many.bandwidth / one.bandwidth,
        ),
    ]  # fmt: skip


def _energy() -> str:
    rows = _explained(0, 1, 2048)
    joules, seconds = sum(row.joules for row in rows), sum(row.seconds for row in rows)
    return f"Energy of a decode step of Llama-3-8B on H100, one answer: {joules:.2f} J in {1e3 * seconds:.2f} ms."


PAPER = Paper(
    "genz", "Demystifying Platform Requirements for Diverse LLM Inference Use Cases",
    2024, "arXiv", "https://arxiv.org/abs/2406.01698", CLAIMS, reproduce,
)  # fmt: skip

"""Tilus: kernels for weights of any width from 1 to 8 bits, loaded as bytes and widened in registers.

Its kernels are for GPUs, and none is run here. What is tried: the form of their cost, in the simulator and by the
clock on one core of this machine; and widths between powers of two, held in bytes for real.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from sonde.deployment.tree import Batching, Deployment, Pool, Replica, Site
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most
from sonde.sim.simulate import simulate
from sonde.workload.requests import requests

MODEL, SMALL_HEAD, CARD, OTHER = "gemma-2-9b", "llama-2-7b", "l40s", "a100-sxm-80gb"
WIDTHS = (8, 7, 6, 5, 4, 3, 2, 1)
BEYOND = 96 << 20  # bytes of weights, three times the last cache of this machine's kind
SEEDS, STEPS = range(3), 300
NUMBERS = ("uint8", "uint6", "uint4", "uint3", "uint2")

CLAIMS = {
    "decode": Claim(
        "tokens/s of one answer with 4-bit weights over 16-bit ones", 4.0, "×", "Gemma-2-9B on L40S, simulated",
        Range(2.5, 4.0), "a prompt of 8,192 tokens: the same ratio of its time", at_most(1.1), recalled=True,
    ),
    "odd": Claim(
        "tokens/s with 6-bit weights over 8-bit ones", 8 / 6, "×", "the same answer", Range(1.15, 8 / 6),
        "a prompt of 8,192 tokens: the same ratio of its time", at_most(1.05), recalled=True,
    ),
    "limit": Claim(
        "tokens/s with 1-bit weights over 2-bit ones, where general cores limit them", None, "×",
        "Llama-2-7B on A100, whose FP32 peak is low for its bandwidth", at_most(1.05),
        "widening that costs nothing: the same ratio", at_least(1.1),
    ),
    "measured": Claim(
        "time of a product of one row, weights in 32 bits over 8", None, "×", "96 MiB of weights, one core, measured",
        at_least(1.5), "the same weights in cache, where bytes wait for nothing", at_most(1.5),
    ),
    "below": Claim(
        "the same, weights in 8 bits over 4: bytes halve once more", 2.0, "×", "as above", at_least(1.5),
        "the same weights in cache", at_most(1.2), recalled=True,
    ),
    "form": Claim(
        "time is the longer of bytes over bandwidth and arithmetic: measured over that, where it is furthest off",
        None, "×", "1 to 8 and 32 bits, each part measured alone", Range(0.75, 1.4),
    ),
    "bits": Claim(
        "bits of a weight held in 6-bit numbers, scales and all", None, "bits", "a decoder's packed bytes, counted",
        Range(6.0, 7.0), "bits of the same decoder's weights in 8-bit numbers over those, less 9/7", Range(-0.01, 0.01),
    ),
    "six": Claim(
        "loss that 4-bit weights add, less what 6-bit ones add", None, "%", "a decoder trained here, held-out text",
        at_least(0.05), "loss that 8-bit weights add", at_most(0.2),
    ),
    "three": Claim(
        "loss that 2-bit weights add, less what 3-bit ones add", None, "%", "the same decoder", at_least(1.0),
        "loss that 8-bit weights add", at_most(0.2),
    ),
    "triton": Claim(
        "time of Triton's kernels over Tilus'", 1.75, "×", "L40S, shapes of three models, geometric mean",
        at_least(1.4), recalled=True,
    ),
    "marlin": Claim(
        "time of Marlin's kernels over Tilus'", 1.03, "×", "the same, 4 bits", at_least(1.0), recalled=True
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: simulated, measured on this core, and learnt."""
    progress(0, 3, "simulated answers")
    rows, notes = _simulated()
    progress(1, 3, "products on this core")
    measured, note = _measured()
    progress(2, 3, "a decoder in every width")
    learnt = _learnt()
    why = "no GPU kernel is run here: pip install tilus needs an NVIDIA GPU"
    lacking = [CLAIMS[name].not_run(why) for name in ("triton", "marlin")]
    return Reproduction((*rows, *measured, *learnt, *lacking), (*notes, note))


def answered(card: str, weights: dict[str, Any] | None, prompt: int = 64, output: int = 64) -> tuple[float, float]:
    """Return seconds to the first token, and of each further one, of one request on one card."""
    replica = Replica(
        model=MODEL if card == CARD else SMALL_HEAD,
        device=card,
        engine="generic",
        batching=Batching(max_batch=8, token_budget=max(prompt, 512)),
    )
    techniques = () if weights is None else ({"low-bit-weights": weights},)
    tree = Deployment(sites=(Site(pools=(Pool(replica=replica),)),), techniques=techniques)
    found = simulate(tree, requests([0.0], [prompt], [output]))
    return float(found.ttft_s[0]), float(found.tpot_s[0])


def _simulated() -> tuple[list[Row], list[str]]:
    def tpot(card: str, bits: int, **more: float) -> float:
        return answered(card, {"number": f"uint{bits}", **more})[1]

    def ttft(bits: int) -> float:
        return answered(CARD, {"number": f"uint{bits}"}, 8192, 1)[0]

    wide, prompt = answered(CARD, None)[1], answered(CARD, None, 8192, 1)[0]
    times = {bits: tpot(CARD, bits) for bits in WIDTHS}
    free = tpot(OTHER, 2, instructions=0.0) / tpot(OTHER, 1, instructions=0.0)
    head = "scales, caches, the head's table in 16 bits and the engine's own time do not shrink"
    rows = [
        CLAIMS["decode"].came_out(wide / times[4], f"4 by bytes of weights; {head}", control=prompt / ttft(4)),
        CLAIMS["odd"].came_out(times[8] / times[6], f"1.33 by bits; {head}", control=ttft(8) / ttft(6)),
        CLAIMS["limit"].came_out(
            tpot(OTHER, 2) / tpot(OTHER, 1),
            "9.75 T instructions/s widen 4.9 T weights/s at two each, and memory brings more of them in 1 or 2 bits",
            control=free,
        ),
    ]
    gains = ", ".join(f"{bits} bits {wide / times[bits]:.2f}" for bits in WIDTHS)
    return rows, [f"Tokens/s over 16-bit weights, {MODEL} on {CARD}: {gains}."]


def _measured() -> tuple[list[Row], str]:
    from sonde.learn.gemv import SIDE, bandwidth, timed

    at = bandwidth()
    times = {bits: timed(bits, BEYOND) for bits in (32, *WIDTHS)}
    ratios = {bits: it.beyond / max(it.held, it.nbytes / at) for bits, it in times.items()}
    furthest = max(ratios, key=lambda bits: abs(np.log(ratios[bits])))
    bound = [bits for bits, it in times.items() if it.held > it.nbytes / at]
    each = 1e9 / SIDE**2
    told = ", ".join(
        f"{bits} bits {it.beyond * each:.3f} ({it.held * each:.3f} in cache, {it.nbytes / at * each:.3f} by bytes)"
        for bits, it in times.items()
    )
    arithmetic = "none" if not bound else ", ".join(map(str, sorted(bound)))
    why = f"bound by arithmetic on this core: widths {arithmetic}"
    rows = [
        CLAIMS["measured"].came_out(
            times[32].beyond / times[8].beyond, f"3.9 by bytes; {why}", control=times[32].held / times[8].held
        ),
        CLAIMS["below"].came_out(
            times[8].beyond / times[4].beyond,
            f"{why}: one core reads {at / 1e9:.0f} GB/s and widens {1e-9 * SIDE**2 / times[8].held:.0f} G weights/s, "
            "where an L40S reads 864 GB/s and widens 22,900 G",
            control=times[8].held / times[4].held,
        ),
        CLAIMS["form"].came_out(ratios[furthest], f"furthest off at {furthest} bits; loads and arithmetic overlap"),
    ]
    return (
        rows,
        f"ns a weight on one core, {at / 1e9:.1f} GB/s: {told}. Widths that lie across bytes cost more to widen.",
    )


def _learnt() -> list[Row]:
    names = ("bits", "six", "three")
    if importlib.util.find_spec("torch") is None:
        return [CLAIMS[name].not_run("needs torch: pip install 'sonde[run]'") for name in names]
    from sonde.learn.widths import widths

    found = [widths(seed, STEPS, NUMBERS) for seed in SEEDS]
    added = {name: [one[name].loss - 1 for one in found] for name in NUMBERS}
    eight = [100 * abs(more) for more in added["uint8"]]
    size = {name: 8 * found[0][name].weight_bytes for name in NUMBERS}
    told = "loss added: " + ", ".join(f"{name} {100 * float(np.mean(added[name])):.2f} %" for name in NUMBERS)

    def spared(few: str, more: str) -> list[float]:
        return [100 * (a - b) for a, b in zip(added[few], added[more], strict=True)]

    return [
        CLAIMS["bits"].came_out(
            size["uint6"], "6 bits and two numbers of 16 bits for every 32 weights",
            control=size["uint8"] / size["uint6"] - 9 / 7,
        ),
        CLAIMS["six"].came_out(spared("uint4", "uint6"), told, control=eight),
        CLAIMS["three"].came_out(spared("uint2", "uint3"), told, control=eight),
    ]  # fmt: skip


PAPER = Paper(
    "tilus", "Tilus: A Tile-Level GPGPU Programming Language for Low-Precision Computation",
    2026, "ASPLOS", "https://arxiv.org/abs/2504.12984", CLAIMS, reproduce, measured=True,
)  # fmt: skip

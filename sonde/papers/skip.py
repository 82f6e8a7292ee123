"""SKIP: how long kernels wait for their launch, up to which batch a step is bound by the CPU, and what to fuse."""

from __future__ import annotations

import numpy as np

from sonde.calibrate.machine.facts import torch_or_none
from sonde.calibrate.machine.fusion import chains
from sonde.calibrate.machine.knee import Knee, knee
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, near

SEEDS = 3
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
#: what a slower CPU takes longer to start one operator
SLOWER_S = 20e-6
PROMPT, BATCH = 512, 64
#: the paper's gains in prefill over each
PREFILL = {"a100-pcie-80gb": 2.7, "h100-pcie": 1.9}
#: as deep as GPT-2
DEPTH = 12
LONG, SHORT = 256, 8

CLAIMS = {
    "knee": Claim(
        "a CPU that is slower to start kernels keeps a step CPU-bound to a larger batch", 4.0, "×",
        f"GH200 over PCIe A100, H100; here a decoder on this CPU, with {1e6 * SLOWER_S:.0f} µs more for every operator",
        at_least(2.0), "a decoder twice as wide on the CPU as it is: the same ratio", Range(high=1.0),
    ),
    **{
        f"prefill, {name}": Claim(
            "GH200 prefills faster at large batch", gain, "×",
            f"Llama-3.2-1B, {BATCH} prompts of {PROMPT}, against {name}; predicted. The paper gives 1.9 to 2.7 over "
            "both; the larger gain is taken to be that over the A100",
            near(gain, 0.2), "one prompt of 16 tokens: the same ratio", Range(high=gain),
        )
        for name, gain in PREFILL.items()
    },
    "launches": Claim(
        "waits of a step grow with its kernels, not with its work, while it is CPU-bound", None, "×",
        "TKLQT of batch 8 over that of batch 1, one decoder traced", near(1.0, 0.35),
        "twice as many layers: the same ratio", at_least(1.35),
    ),
    "chains": Claim(
        "launches left by fusing chains of 256 kernels that always follow each other", 2.7, "×",
        f"ideal speed-up, GPT-2; here a decoder of {DEPTH} layers in the operators of torch", at_least(1.5),
        "the same kernels in random order, chains of 8: the same", Range(1.0, 1.1), recalled=True,
    ),
    "fused": Claim(
        "what fusing gives is what its launches say", None, "×",
        "measured speed-up over predicted, norms and gates as one operator each, batch 1", near(1.0, 0.3),
        "the same step against itself: the same ratio", near(1.0, 0.3),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim; all but the predicted prefill is measured now, on this machine."""
    torch = torch_or_none()
    if torch is None:
        why = "needs torch: pip install 'sonde[run]'"
        rest = tuple(claim.not_run(why) for name, claim in CLAIMS.items() if not name.startswith("prefill"))
        return Reproduction((*rest, *map(_prefill, PREFILL)))
    torch.set_num_threads(1)
    progress(0, 4, "knees")
    moved, knees = _knees()
    progress(1, 4, "traces")
    rows = [moved, *map(_prefill, PREFILL), _launches()]
    progress(2, 4, "chains")
    rows.append(_chains())
    progress(3, 4, "fusing")
    rows.append(_fused())
    notes = tuple(
        f"{name}: bound by starting operators up to batch {found.batch:.3g} ({1e3 * found.flat_s:.2f} ms a step, and "
        f"{1e6 * found.slope_s:.0f} µs a sequence; fit off by {found.error:.0%})."
        for name, found in knees.items()
    )
    return Reproduction(tuple(rows), notes)


def _knees() -> tuple[Row, dict[str, Knee]]:
    from sonde.calibrate.machine.steps import TRACED, sweep

    wide = TRACED._replace(hidden=2 * TRACED.hidden, inner=2 * TRACED.inner, heads=2 * TRACED.heads,
                           kv_heads=2 * TRACED.kv_heads)  # fmt: skip
    ratios, controls, found = [], [], dict[str, Knee]()
    for _ in range(SEEDS):
        found = {
            name: knee(BATCHES, sweep(size, BATCHES, slower_s=slower), synchronous=True)
            for name, size, slower in (
                ("the CPU as it is", TRACED, 0.0), ("a slower CPU", TRACED, SLOWER_S), ("a wider decoder", wide, 0.0),
            )
        }  # fmt: skip
        plain, slow, broad = (one.batch for one in found.values())
        ratios.append(slow / plain)
        controls.append(broad / plain)
    why = "how much slower Grace is to start a kernel is not ours to choose: here it is a wait before every operator"
    return CLAIMS["knee"].came_out(ratios, why, control=controls), found


def _prefill(other: str) -> Row:
    from sonde.catalogue.devices import device
    from sonde.catalogue.models import model
    from sonde.cost.compile import compile_replica
    from sonde.cost.table import coefficients
    from sonde.deployment.tree import Replica

    def seconds(name: str, batch: int, prompt: int) -> float:
        replica = Replica.model_validate({"model": "llama-3.2-1b", "device": name, "engine": "generic"})
        table = compile_replica(model("llama-3.2-1b"), device(name), replica, usd_per_device_hour=0.0).table.time
        return coefficients(table, batch * prompt, 0, batch * prompt * prompt / 2, 0)

    def gain(batch: int, prompt: int) -> float:
        return seconds(other, batch, prompt) / seconds("gh200", batch, prompt)

    why = "predicted by the cost model with each device's efficiencies, not measured: there is no GH200 here"
    return CLAIMS[f"prefill, {other}"].came_out(gain(BATCH, PROMPT), why, control=gain(1, 16))


def _launches() -> Row:
    from sonde.calibrate.machine.steps import TRACED, traced
    from sonde.calibrate.machine.trace import summary

    def waits(layers: int, batch: int) -> float:
        size = TRACED._replace(layers=layers)
        return min(summary(traced(size, batch=batch)).tklqt_s for _ in range(5))

    one = [waits(TRACED.layers, 1) for _ in range(SEEDS)]
    more = [waits(TRACED.layers, 8) for _ in range(SEEDS)]
    deep = waits(2 * TRACED.layers, 1)
    why = (
        "on a CPU a kernel waits for dispatch alone, so that what is flat here is what is flat on a GPU below its knee"
    )
    ratios = [a / b for a, b in zip(more, one, strict=True)]
    return CLAIMS["launches"].came_out(ratios, why, control=deep / min(one))


def _chains() -> Row:
    from sonde.calibrate.machine.steps import TRACED, traced

    names = [kernel.name for kernel in traced(TRACED._replace(layers=DEPTH), fused=False).kernels]
    ideal = max((chain.speedup for chain in chains(names, LONG)), default=1.0)
    mixed = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(names))
        listed = chains([names[i] for i in order], SHORT)
        mixed.append(max((chain.speedup for chain in listed), default=1.0))
    why = f"another decoder on another back end: {len(names)} kernels a step"
    return CLAIMS["chains"].came_out(ideal, why, control=mixed)


def _fused() -> Row:
    from sonde.calibrate.machine.steps import TRACED, latency, traced

    counts = [len(traced(TRACED, fused=way).kernels) for way in (False, True)]
    predicted = counts[0] / counts[1]
    found, control = [], []
    for _ in range(SEEDS):
        apart, fused, again = (min(latency(TRACED, 1, fused=way) for _ in range(3)) for way in (False, True, True))
        found.append(apart / fused / predicted)
        control.append(fused / again)
    why = f"predicted {predicted:.2f}× from {counts[0]} kernels that become {counts[1]}"
    return CLAIMS["fused"].came_out(found, why, control=control)


PAPER = Paper(
    "skip", "Characterizing and Optimizing LLM Inference Workloads on CPU-GPU Coupled Architectures", 2025, "ISPASS",
    "https://arxiv.org/abs/2504.11750", CLAIMS, reproduce, measured=True,
)  # fmt: skip

"""On-device language models, a review: what fits a device and how fast it writes, checked on this machine.

The review has no figure of its own, so its rules are tried: the memory and the speed that the cost model predicts of a
decoder are held against a process that runs it, and block-wise weight sharing (MobileLLM) is trained.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sonde.catalogue.configs import read_config
from sonde.catalogue.curves import OperatorEfficiency
from sonde.catalogue.device import Device, Link, MemoryTier
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.cost.explain import step_rows
from sonde.cost.local import choices
from sonde.cost.memory import activation_bytes, weight_bytes
from sonde.cost.shard import Shard, shard
from sonde.deployment.tree import Batching, Replica
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most

if TYPE_CHECKING:
    from sonde.learn.decoder import Shape
    from sonde.learn.footprint import Footprint, Machine

WIDTHS = (32, 8, 4)
SEEDS, STEPS = range(3), 60
WITHIN = Range(0.75, 1.25)  # measured over predicted

CLAIMS = {
    **{
        f"memory_{bits}": Claim(
            f"memory is weights, cache, activations: measured over predicted, {bits} bits", None, "×",
            "a decoder of 103 M weights in a process of its own", WITHIN,
        )
        for bits in WIDTHS
    },
    **{
        f"speed_{bits}": Claim(
            f"tokens/s follow from bandwidth and arithmetic: measured over predicted, {bits} bits", None, "×",
            "the same decoder, on one core measured on other shapes", WITHIN,
        )
        for bits in WIDTHS
    },
    "gain": Claim(
        "8-bit weights write faster than 32-bit ones", None, "×", "tokens/s of the same decoder", at_least(1.5),
        "a decoder too small to read anything: the same ratio", at_most(1.25),
    ),
    "learns": Claim(
        "a decoder whose blocks run twice learns: its loss over that before training", None, "×",
        "0.2 M weights, 60 steps on the standard library's source", at_most(0.7),
    ),
    "sharing": Claim(
        "accuracy that running every block twice adds", 0.7, "points", "same stored weights, held-out bytes guessed",
        at_least(0.0), recalled=True,
    ),
    "latency": Claim(
        "time that running every block twice adds", 2.4, "%",
        "blocks that the last cache holds, and not the model; one answer",
        at_most(10.0), "blocks larger than it: the same", at_least(25.0), recalled=True,
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim on this machine; without torch, only what the calculator says."""
    fits = tuple(_fits())
    if importlib.util.find_spec("torch") is None:
        why = "needs torch: pip install 'sonde[run]'"
        return Reproduction(tuple(claim.not_run(why) for claim in CLAIMS.values()), fits)
    rows, note = _verified(progress)
    progress(5, 6, "training with shared blocks")
    return Reproduction((*rows, *_sharing(), _latency()), (note, *fits))


def _verified(progress: Progress) -> tuple[list[Row], str]:
    """Run the decoder at every width, between two measurements of the machine, and hold it against the prediction."""
    from sonde.learn import footprint
    from sonde.learn.decoder import Decoder, Shape

    shape, small = Shape(8, 1024, 8, 2816), Shape(4, 64, 4, 64)
    progress(0, 6, "measuring this machine")
    core = footprint.machine()
    ran = {}
    for i, bits in enumerate(WIDTHS):
        progress(1 + i, 6, f"a decoder in {bits} bits")
        tries = [footprint.measured(shape, bits) for _ in range(2)]
        ran[bits] = max(tries, key=lambda one: one.tokens_per_s)  # what else runs here only slows it down
    core = footprint.better(core, footprint.machine())
    rows = [_memory(shape, bits, ran[bits]) for bits in WIDTHS] + [
        _speed(shape, bits, ran[bits], core) for bits in WIDTHS
    ]
    held = [footprint.rate(Decoder(small).eval()), footprint.rate(Decoder(small).pack(8).eval())]
    rows.append(
        CLAIMS["gain"].came_out(
            ran[8].tokens_per_s / ran[32].tokens_per_s,
            "3.6 by bytes; what a layer costs beside its work does not shrink",
            control=held[1] / held[0],
        )
    )  # fmt: skip
    return rows, (
        f"This core, measured: {core.bandwidth / 1e9:.1f} GB/s; products of one row "
        + ", ".join(f"{core.flops[bits] / 1e9:.0f} GFLOP/s in {bits} bits" for bits in WIDTHS)
        + f"; {1e6 * core.layer_s:.0f} µs a layer beside its work. No power meter is read: energy is modelled."
    )


def _memory(shape: Shape, bits: int, ran: Footprint) -> Row:
    claim = CLAIMS[f"memory_{bits}"]
    if np.isnan(ran.rss_bytes):
        return claim.not_run("this system does not say how much memory a process holds (only Linux is read)")
    from sonde.learn.footprint import ROOM

    part = _part(shape, bits)
    cache = ROOM * part.model.cache_bytes_per_token("fp32")
    predicted = weight_bytes(part) + activation_bytes(part) + cache
    held = f"{ran.rss_bytes / 1e6:.0f} MB measured, {predicted / 1e6:.0f} MB predicted"
    return claim.came_out(ran.rss_bytes / predicted, f"{held}, of which {cache / 1e6:.0f} MB cache")


def _speed(shape: Shape, bits: int, ran: Footprint, core: Machine) -> Row:
    part = _part(shape, bits, core)
    rows = step_rows(part, 0, 1, 32)
    predicted = 1 / sum(row.seconds for row in rows)
    bound = max(rows, key=lambda row: row.seconds).bound
    why = f"{ran.tokens_per_s:.1f} tokens/s measured, {predicted:.1f} predicted, most of it bound by {bound}"
    return CLAIMS[f"speed_{bits}"].came_out(ran.tokens_per_s / predicted, why)


def _part(shape: Shape, bits: int, core: Machine | None = None) -> Shard:
    """Return the decoder on this core as Sonde's catalogue and cost model see it, its blocks' weights in `bits`."""
    from sonde.learn.packing import bytes_per_weight

    it = read_config(shape.config(), "decoder")
    flops, bandwidth = (core.flops[bits], core.bandwidth) if core else (1.0, 1.0)
    link = Link(1e9, 0.0)
    here = Device(
        "this-core", "This core", "", "cpu", {"fp32": flops}, (MemoryTier("memory", 64e9, bandwidth),), 1, link, link,
        link, 1.0, 10.0, {}, "measured here", "",
    )  # fmt: skip
    replica = Replica(
        model="decoder", device="this-core", weights="fp32", activations="fp32", kv_cache="fp32",
        batching=Batching(max_batch=1, token_budget=1),
    )  # fmt: skip
    found = efficiencies(here)
    share = core.reached[bits] if core else 1.0
    curves = {name: OperatorEfficiency(memory=share if name.startswith("gemm") else 1.0) for name in found.curves}
    engine = replace(found.engine, step_s=0.0, layer_s=core.layer_s if core else 0.0, token_s=0.0, sequence_s=0.0)
    part = shard(it, here, replica, replace(found, curves=curves, engine=engine))
    return part if bits == 32 else replace(part, weight_bytes=bytes_per_weight(bits))


def _sharing() -> list[Row]:
    from sonde.learn.study import sharing

    found = [sharing(seed, STEPS) for seed in SEEDS]
    points = [100 * (one.right_twice - one.right_once) for one in found]
    why = (
        "MobileLLM's gain is at 125 M weights after a trillion tokens; this one has begun to learn, and the deeper of "
        "two learns slower at first"
    )
    return [
        CLAIMS["learns"].came_out([one.loss_twice / one.before for one in found], "the claim is ours: training works"),
        CLAIMS["sharing"].came_out(points, why),
    ]


def _latency() -> Row:
    from sonde.learn.decoder import Decoder, Shape
    from sonde.learn.footprint import rate

    def added(layers: int, hidden: int, inner: int) -> tuple[float, float]:
        shape = Shape(layers, hidden, 8, inner)
        once, twice = (rate(Decoder(shape._replace(repeats=repeats)).eval()) for repeats in (1, 2))
        stored = sum(weights.nbytes for weights in Decoder(shape).parameters())
        return 100 * (once / twice - 1), twice / (stored / 1e6)

    held, large = added(8, 512, 1408), added(2, 1536, 4096)
    why = (
        f"on this core arithmetic and starts take as long as reading, and they are done twice: the claim is a phone's "
        f"accelerator's. {held[1]:.2f} tokens/s per stored MB in cache, {large[1]:.3f} beyond"
    )
    return CLAIMS["latency"].came_out(held[0], why, control=large[0])


def _fits() -> list[str]:
    found = []
    for name, where in (("llama-3.2-3b", "raspberry-pi-5"), ("llama-3.1-8b", "snapdragon-8-gen-3")):
        for fit in choices(model(name), device(where)):
            speed = f"{fit.tokens_per_s:.1f} tokens/s ({fit.low:.1f} to {fit.high:.1f})" if fit.fits else ""
            held = f"fits with {fit.context:,} tokens, {speed}" if fit.fits else "does not fit"
            found.append(f"Predicted, {name} {fit.weights} on {where}: {held}.")
    return found


PAPER = Paper(
    "ondevice-review", "On-Device Language Models: A Comprehensive Review",
    2024, "arXiv", "https://arxiv.org/abs/2409.00088", CLAIMS, reproduce, measured=True,
)  # fmt: skip

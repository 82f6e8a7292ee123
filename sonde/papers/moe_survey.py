"""Ways to serve mixtures of experts, on the routing of one that is trained here: a row and a table for each way.

Three mixtures of 16 experts, two a token, are trained on bytes. What they choose on text that they have not seen is the
load of a served model of as many experts, the accesses of a cache, and what is skipped, dropped, merged or rounded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.placement import busiest, placed, popularity
from sonde.deployment.load import load
from sonde.learn.expert_cache import hits
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.simulate import simulate
from sonde.workload.requests import requests

if TYPE_CHECKING:
    from sonde.learn.decoder import Decoder
    from sonde.learn.mixture import Judged

SEEDS, RANKS, COPIES, STEP = range(3), 8, 8, 16
SERVED, DEVICE = "phi-3.5-moe", "h100-sxm"  # as many experts as the mixture, as many a token
SLACK = 1.005  # bits a byte that a saving may cost, over those of the whole

CLAIMS = {
    "placed": Claim(
        "prompt tokens/s, hot experts copied and placed by load, over in order", None, "×",
        "Phi-3.5-MoE on 8 H100, loads of a trained mixture; the survey states no figure for any row",
        at_least(1.02), "experts that are met evenly: the same ratio", at_most(1.005),
    ),
    "moved": Claim(
        "the same where the placement was planned on other text", None, "×", "same model, two samples of text",
        at_least(1.02),
    ),
    "busiest": Claim(
        "pairs on the busiest rank as the cost model has them, over those counted", None, "×",
        "steps of 16 tokens from each of 128 texts, 16 experts on 8 ranks", near(1.0, 0.1),
        "even routing in place of the real one: the same ratio", at_most(0.95),
    ),
    "cache": Claim(
        "accesses that find their expert, a quarter of them in memory (LRU)", None, "%",
        "decoding one text after another",
        at_least(30.0), "the same tokens in random order", at_most(30.0),
    ),
    "frequency": Claim(
        "the same by use (LFU) over LRU", None, "×", "a quarter of experts in memory", at_least(1.0),
        "room for all experts: the same ratio", Range(0.999, 1.001),
    ),
    "foreseen": Claim(
        "experts that a layer's router picks before its attention has run", None, "%", "to be fetched meanwhile",
        at_least(50.0), "the two that a layer picks most, fetched every time", at_most(40.0),
    ),
    "gating": Claim(
        "expert FLOP saved by skipping second experts, at 0.5 % more bits", None, "%", "held-out text",
        at_least(10.0), "as many seconds skipped at random: bits added over those that gating adds", at_least(1.1),
    ),
    "pruned": Claim(
        "bits added by dropping the least used quarter of experts, over the most used", None, "×", "held-out text",
        at_most(0.9),
    ),
    "merged": Claim(
        "bits added by merging the least used quarter into those most alike, over dropping it", None, "×",
        "weights averaged by use, no training after", at_most(1.0),
    ),
    "mixed": Claim(
        "bits added with hot experts in 4 bits and cold in 2, over the other way round", None, "×",
        "half of the experts each, as many bytes", at_most(0.8),
    ),
}  # fmt: skip


class Found(NamedTuple):
    """What one mixture came to: figures and controls by claim, and tables by way, a row a setting."""

    ours: dict[str, float]
    control: dict[str, float]
    tables: dict[str, dict[str, tuple[float, float]]]


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim, over three mixtures that are trained now; needs torch."""
    if importlib.util.find_spec("torch") is None:
        why = "needs torch: pip install 'sonde[run]'"
        return Reproduction(tuple(claim.not_run(why) for claim in CLAIMS.values()))
    found = []
    for i, seed in enumerate(SEEDS):
        progress(i, len(SEEDS), f"mixture {i + 1}")
        found.append(_one(seed))
    rows = [_row(key, found) for key in CLAIMS]
    return Reproduction(tuple(rows), tuple(_tables(found)))


_WHY = {
    "placed": "a load-balancing loss in training keeps these loads within a factor of 2; public models' are wider",
    "moved": "which experts are hot is a property of the mixture and of the language, and carries over",
    "busiest": "a token's two experts differ and neighbours choose alike; the cost model draws all on their own",
    "cache": "neighbouring bytes choose alike; popularity alone, without their order, gives what the control does",
    "frequency": "counts from the start keep experts that were hot once; what is hot moves with the text",
    "foreseen": "twice what popularity gives; in a model of two layers, attention is much of a token's state",
    "gating": "weak seconds are the ones skipped",
    "pruned": "use in a trace is a fair guess of what an expert is worth; nothing is trained after",
    "merged": "averaged experts compute neither of the two functions: those who gain by it train after",
    "mixed": "by use is the right order, yet 3 bits for all, as many bytes, lose least: 3 cost next to nothing, 2 do",
}


def _row(key: str, found: Sequence[Found]) -> Row:
    controls = [one.control[key] for one in found] if CLAIMS[key].control else None
    return CLAIMS[key].came_out([one.ours[key] for one in found], _WHY[key], control=controls)


def _one(seed: int) -> Found:
    from sonde.learn.mixture import foreseen, judged, mixture, traced

    model = mixture(seed)
    base = judged(model)
    trace = traced(model, 128, 128, seed=11)
    other = traced(model, 128, 128, seed=12)
    ours: dict[str, float] = {}
    control: dict[str, float] = {}
    tables: dict[str, dict[str, tuple[float, float]]] = {}
    with TemporaryDirectory() as folder:
        _placement(trace[-1], other[-1], Path(folder), ours, control)
    _busiest(trace[-1], ours, control)
    ours["foreseen"], control["foreseen"] = (100 * share for share in foreseen(model, 32, 128, seed=13))
    tables["cache, share of experts held: LRU, best"] = _cached(trace, ours, control)
    tables["adaptive gating: pairs a token, bits"] = _gated(model, base, ours, control)
    tables["fewer experts: held, bits"] = _fewer(model, base, trace, ours)
    tables["bits of experts: mean, bits a byte"] = _mixed(model, base, trace, ours)
    return Found(ours, control, tables)


def _placement(
    trace: NDArray[np.int64], other: NDArray[np.int64], folder: Path, ours: dict[str, float], control: dict[str, float]
) -> None:
    files = {}
    for name, layer in (("served", trace), ("other", other)):
        files[name] = folder / f"{name}.csv"
        files[name].write_text("\n".join(str(count) for count in _counts(layer)))
    served = {"loads": str(files["served"])}
    order = _prompt_rate(served | {"balanced": False})
    ours["placed"] = _prompt_rate(served | {"redundant": COPIES}) / order
    ours["moved"] = _prompt_rate(served | {"redundant": COPIES, "planned": str(files["other"])}) / order
    control["placed"] = _prompt_rate({"redundant": COPIES}) / _prompt_rate({"balanced": False})


def _prompt_rate(places: dict[str, Any]) -> float:
    """Return the prompt tokens/s of a replica whose experts stand so, from a simulated run."""
    replica = {"model": SERVED, "device": DEVICE, "data_parallel": RANKS, "expert_parallel": RANKS,
               "batching": {"policy": "prefill-first", "token_budget": 16_384}}  # fmt: skip
    uses = ["sequence-parallel", {"expert-placement": places}]
    tree = load({"sites": [{"pools": [{"name": "prompts", "replica": replica}]}], "techniques": uses})
    count, prompt = 128, 1024
    outcome = simulate(tree, requests([0.0] * count, [prompt] * count, [1] * count))
    return count * prompt / float(outcome.finish_s.max())


def _busiest(trace: NDArray[np.int64], ours: dict[str, float], control: dict[str, float]) -> None:
    """Count pairs on the busiest rank of steps that hold some tokens of each text, and compare."""
    stand = placed(popularity(_counts(trace).astype(np.float64), trace.shape[-1]), RANKS, balanced=False)
    rank_of = np.argsort([expert for rank in stand.experts for expert in rank]) // (trace.max() // RANKS + 1)
    steps = rank_of[trace].transpose(1, 0, 2).reshape(trace.shape[1] // STEP, -1)
    counted = np.mean([np.bincount(step, minlength=RANKS).max() for step in steps])
    tokens = np.array([float(STEP * trace.shape[0])])
    even = placed(popularity(np.ones(len(rank_of)), trace.shape[-1]), RANKS)
    ours["busiest"] = float(busiest(stand, tokens)[0] / counted)
    control["busiest"] = float(busiest(even, tokens)[0] / counted)


def _cached(
    trace: NDArray[np.int64], ours: dict[str, float], control: dict[str, float]
) -> dict[str, tuple[float, float]]:
    layers = [layer.reshape(-1, layer.shape[-1]) for layer in trace]
    experts = int(trace.max()) + 1

    def rate(room: int, policy: str) -> float:
        return float(np.mean([hits(layer.ravel(), room, policy) for layer in layers]))

    quarter = experts // 4
    draws = np.random.default_rng(0)
    ours["cache"] = 100 * rate(quarter, "lru")
    control["cache"] = 100 * float(
        np.mean([hits(draws.permutation(layer).ravel(), quarter, "lru") for layer in layers])
    )
    ours["frequency"] = rate(quarter, "lfu") / rate(quarter, "lru")
    control["frequency"] = rate(experts, "lfu") / rate(experts, "lru")
    return {f"{room}/{experts}": (rate(room, "lru"), rate(room, "best")) for room in (2, quarter, experts // 2)}


def _gated(
    model: Decoder, base: Judged, ours: dict[str, float], control: dict[str, float]
) -> dict[str, tuple[float, float]]:
    from sonde.learn.mixture import Gate, judged

    tried = {skip: judged(model, Gate(skip=skip)) for skip in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    within = [one for one in tried.values() if one.bits <= SLACK * base.bits]
    ours["gating"] = 100 * (1 - min((one.pairs for one in within), default=base.pairs) / base.pairs)
    some = tried[0.7]
    blind = judged(model, Gate(dropped=2.0 - some.pairs))
    control["gating"] = (blind.bits - base.bits) / max(some.bits - base.bits, 1e-4)
    return {"all": (base.pairs, base.bits)} | {f"below {skip:g}": (it.pairs, it.bits) for skip, it in tried.items()}


def _fewer(
    model: Decoder, base: Judged, trace: NDArray[np.int64], ours: dict[str, float]
) -> dict[str, tuple[float, float]]:
    from sonde.learn.mixture import EXPERTS, judged, merged, without

    layers = trace.reshape(len(trace), -1)
    rows = {"all": (float(EXPERTS), base.bits)}
    for gone in (2, EXPERTS // 4, EXPERTS // 2):
        rows[f"{gone} least used dropped"] = (
            float(EXPERTS - gone),
            judged(model, without(layers, gone, most_used=False)).bits,
        )
        rows[f"{gone} merged"] = (float(EXPERTS - gone), judged(merged(model, layers, gone, alike=True)).bits)
    gone = EXPERTS // 4
    most = judged(model, without(layers, gone, most_used=True)).bits
    dropped, joined = (rows[f"{gone} {how}"][1] - base.bits for how in ("least used dropped", "merged"))
    ours["pruned"] = dropped / (most - base.bits)
    ours["merged"] = joined / dropped
    return rows


def _mixed(
    model: Decoder, base: Judged, trace: NDArray[np.int64], ours: dict[str, float]
) -> dict[str, tuple[float, float]]:
    from sonde.learn.mixture import judged, rounded

    hot = np.array([_counts(layer).argsort().argsort() >= len(_counts(layer)) // 2 for layer in trace])
    widths = {
        "8": np.full(hot.shape, 8), "4": np.full(hot.shape, 4), "3": np.full(hot.shape, 3),
        "hot 4, cold 2": np.where(hot, 4, 2), "hot 2, cold 4": np.where(hot, 2, 4), "2": np.full(hot.shape, 2),
    }  # fmt: skip
    rows = {name: (float(bits.mean()), judged(rounded(model, bits)).bits) for name, bits in widths.items()}
    ours["mixed"] = (rows["hot 4, cold 2"][1] - base.bits) / (rows["hot 2, cold 4"][1] - base.bits)
    return rows


def _counts(layer: NDArray[np.int64]) -> NDArray[np.int64]:
    from sonde.learn.mixture import EXPERTS

    return np.bincount(layer.ravel(), minlength=EXPERTS)


def _tables(found: Sequence[Found]) -> list[str]:
    """Return a line for every way: its settings, with the means over mixtures of what each costs and brings."""
    lines = []
    for way, settings in found[0].tables.items():
        means = {name: np.mean([one.tables[way][name] for one in found], axis=0) for name in settings}
        lines.append(f"{way}: " + "; ".join(f"{name} {a:.3g}, {b:.4g}" for name, (a, b) in means.items()) + ".")
    return lines


PAPER = Paper(
    "moe-survey", "A Survey on Inference Optimization Techniques for Mixture of Experts Models",
    2024, "arXiv", "https://arxiv.org/abs/2412.14219", CLAIMS, reproduce,
)  # fmt: skip

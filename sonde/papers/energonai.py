"""EnergonAI: pipelines that never wait, batches without padding, and layers in the memory of a peer.

Each is tried twice: on A100s through the simulator, and for real in processes of this machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sonde.deployment.load import load
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.simulate import simulate
from sonde.workload.requests import Requests, requests

if TYPE_CHECKING:
    from sonde.learn.pipeline import Mode
    from sonde.learn.pipeline_padding import Compared

SEEDS = range(3)
STAGES, PROMPTS, LONGEST = 4, 32, 256
#: of the real pipeline: layers of a stage, their width, batches of a job, how often a job is tried
DEPTH, WIDTH, BATCHES, TRIES = 3, 512, 20, 8
ROWS = (32, 352)  # of a batch, at least and at most
#: of the real network: layers, one in how many is fetched, passes; a fetch takes so many times as long as a layer
LAYERS, EVERY, STEPS, FETCH = 12, 3, 4, 2.5
AHEAD = range(4)
#: speed of two processes over that of one below which this machine is busy with something else; how long to wait for it
FREE, PATIENCE_S = 1.6, 15.0

CLAIMS = {
    "padding": Claim(
        "time of a batch of prompts less than that of an engine that pads", 37.0, "%",
        "OPT-66B on 8 A100, 32 prompts of 16 to 256 tokens", near(37.0, 0.35),
        "all of 256 tokens: the same", Range(-2.0, 0.5), recalled=True,
    ),
    "stages": Claim(
        "prompts/s with as many batches in flight as stages, over one batch", None, "×",
        "OPT-30B in 4 stages on A100, prompts of 512 tokens", Range(3.5, 4.01),
        "one prompt at a time: its time, the same ratio", Range(0.999, 1.001),
    ),
    "peer": Claim(
        "time that prompts take longer where every fourth layer is a peer's", None, "%",
        "OPT-30B on one A100, over NVLink 3 layers ahead; the paper says a limited loss", at_most(2.0),
        "four answers instead, whose layers run faster than they come: the same", at_least(20.0),
    ),
    "caches": Claim(
        "memory for caches, over that without a peer's", None, "×", "the same; the bar is ours", at_least(1.5),
        "a peer for the last layer alone, whose place is needed to fetch it: refused, so as much", Range(1.0, 1.0),
    ),
    "waiting": Claim(
        "rows/s of two stages that do not wait for each other, over two that do", 1.10, "×",
        "two processes here, batches of 32 to 352 rows", at_least(1.03),
        "batches all alike: the same ratio", at_most(1.08), recalled=True,
    ),
    "flight": Claim(
        "rows/s of two stages that do not wait, over one batch in the pipeline", None, "×",
        "the same two processes, batches all alike; 2 if nothing is lost", Range(1.5, 2.1),
    ),
    "forward": Claim(
        "feed-forward of a packed batch over a padded one, by how full it is", None, "×",
        "paragraphs of real text here, 8 at a time; 1 if time follows tokens", Range(0.85, 1.15),
        "all of one length: time packed over padded", Range(0.9, 1.1),
    ),
    "same": Claim(
        "largest difference that packing makes to a block's outputs", None, "", "the same; outputs are about 1",
        at_most(1e-4),
    ),
    "hidden": Claim(
        "share of a fetch that is waited for, 3 layers ahead", None, "",
        "a network here, every third layer behind a link that takes 2.5 layers", at_most(0.1),
        "fetched when its turn has come: the same", Range(0.85, 1.3),
    ),
    "wait": Claim(
        "wait off its prediction by a share of the fetch, 0 to 3 layers ahead, at most", None, "",
        "the same; predicted is fetch less layers ahead", at_most(0.2),
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: simulated on A100s, and run in processes of this machine."""
    progress(0, 4, "A100s")
    rows = [_padding(), _stages(), *_peer()]
    real = [CLAIMS[name] for name in ("waiting", "flight", "forward", "same", "hidden", "wait")]
    if importlib.util.find_spec("torch") is None:
        why = "needs torch: pip install 'sonde[run]'"
        return Reproduction((*rows, *(claim.not_run(why) for claim in real)))
    progress(1, 4, "padding, here")
    packed = _packed()
    progress(2, 4, "two processes")
    return Reproduction((*rows, *_processes(progress), *packed))


def _padding() -> Row:
    def saved(lengths: NDArray[np.int64]) -> float:
        share = lengths / lengths.max()
        work = requests(np.zeros(len(lengths)), lengths, np.ones(len(lengths), np.int64))
        fill = {"fill": float(share.mean()), "fill_pairs": float((share**2).mean())}
        padded, packed = (
            _run(work, {"padding-elimination": {**fill, "linear": linear}}, tensor_parallel=8, model="opt-66b").end_s
            for linear in (False, True)
        )
        return 100 * (1 - packed / padded)

    drawn = [np.random.default_rng(seed).integers(16, LONGEST + 1, PROMPTS) for seed in SEEDS]
    fills = ", ".join(f"{lengths.mean() / lengths.max():.2f}" for lengths in drawn)
    return CLAIMS["padding"].came_out(
        [saved(lengths) for lengths in drawn],
        f"it follows how full batches are, {fills} here; the paper's lengths are not known to us, and its baseline is "
        f"FasterTransformer",
        control=saved(np.full(PROMPTS, LONGEST)),
    )


def _stages() -> Row:
    many = requests(np.zeros(512), np.full(512, 512), np.ones(512, np.int64))
    few = requests(np.arange(8) * 100.0, np.full(8, 512), np.ones(8, np.int64))

    def ran(work: Requests, lanes: int) -> Outcome:
        use = {"non-blocking-pipeline": {"in_flight": lanes}}
        return _run(work, use, pipeline_parallel=STAGES, model="opt-30b")

    lone = [ran(few, lanes).quantile("e2e", 0.5) for lanes in (1, STAGES)]
    return CLAIMS["stages"].came_out(
        ran(many, 1).end_s / ran(many, STAGES).end_s,
        "batches alike keep all stages busy; those that are not are tried below, for real",
        control=lone[0] / lone[1],
    )


def _peer() -> list[Row]:
    prompts = requests(np.zeros(64), np.full(64, 1024), np.ones(64, np.int64))
    answers = requests(np.zeros(4), np.full(4, 64), np.full(4, 256))
    lent = {"peer-memory": {"every": 4, "ahead": 3}}
    with_, without = ([_run(work, *use, model="opt-30b") for work in (prompts, answers)] for use in ([lent], []))
    longer = [100 * (a.end_s / b.end_s - 1) for a, b in zip(with_, without, strict=True)]
    host = _run(answers, {"peer-memory": {"every": 4, "ahead": 3, "link": "host"}}, model="opt-30b").end_s
    room = [outcome[0].kv_capacity_bytes[0] for outcome in (with_, without)]
    return [
        CLAIMS["peer"].came_out(
            longer[0],
            f"a step of prompts lasts longer than the fetches; answers from host memory take "
            f"{host / without[1].end_s:.0f} times as long",
            control=longer[1],
        ),
        CLAIMS["caches"].came_out(
            room[0] / room[1],
            f"{room[0] / 1e9:.1f} GB in place of {room[1] / 1e9:.1f}; the peer's memory is charged, "
            f"${with_[0].usd_per_hour:.2f} an hour in place of {without[0].usd_per_hour:.2f}",
            control=_last_layer(answers) / room[1],
        ),
    ]


def _last_layer(work: Requests) -> float:
    """Return the memory for caches where one layer is lent, which frees nothing; without it, where that is refused."""
    from sonde.errors import InputError

    try:
        found = _run(work, {"peer-memory": {"every": 48}}, model="opt-30b")
    except InputError:
        found = _run(work, model="opt-30b")
    return float(found.kv_capacity_bytes[0])


def _run(work: Requests, *techniques: dict[str, Any], **choices: Any) -> Outcome:
    """Return what happens to `work` on one replica of A100s that computes prompts whole."""
    replica = {
        "device": "a100-sxm-80gb", "engine": "generic", "weights": "fp16", "activations": "fp16", "kv_cache": "fp16",
        "batching": {"policy": "prefill-first", "max_batch": 64, "token_budget": 8192}, **choices,
    }  # fmt: skip
    return simulate(load({"sites": [{"pools": [{"replica": replica}]}], "techniques": list(techniques)}), work)


def _packed() -> list[Row]:
    from sonde.learn.pipeline_padding import compared

    found: list[Compared] = [compared(seed, 8) for seed in SEEDS]
    even = compared(0, 8, even=True)
    fills = ", ".join(f"{one.fill:.2f}" for one in found)
    blocks = ", ".join(f"{one.block:.2f}" for one in found)
    return [
        CLAIMS["forward"].came_out(
            [one.forward / one.fill for one in found],
            f"batches {fills} full; a whole block, with packing and attention on padding, takes {blocks} of the time",
            control=even.forward,
        ),
        CLAIMS["same"].came_out(
            max(one.difference for one in (*found, even)), "padding stands behind what is real, and is never read"
        ),
    ]


def _processes(progress: Progress) -> list[Row]:
    from sonde.learn.pipeline_corun import pair

    rows: list[Row] = []
    with pair() as two:
        before = two.free(PATIENCE_S, FREE)
        if before >= FREE:
            rows += _pipeline()
            progress(3, 4, "fetched layers")
            rows += _fetched()
        at_once = min(before, two.free(0.0, FREE))
    if at_once < FREE:
        why = f"this machine was busy: two processes computed {at_once:.2f} times as much as one"
        return [CLAIMS[name].not_run(why) for name in ("waiting", "flight", "hidden", "wait")]
    return rows


def _pipeline() -> list[Row]:
    import torch

    from sonde.learn.pipeline import Job, Layers, alone, run

    draws = torch.Generator().manual_seed(0)
    layers = Layers((DEPTH, DEPTH), WIDTH)
    kinds = {"alike": [sum(ROWS) // 2] * BATCHES}
    for seed in SEEDS:
        kinds[f"mixed {seed}"] = np.random.default_rng(seed).integers(ROWS[0], ROWS[1] + 1, BATCHES).tolist()
    batches = {kind: [torch.randn(n, WIDTH, generator=draws) for n in rows] for kind, rows in kinds.items()}
    modes: tuple[Mode, ...] = ("blocking", "non-blocking")
    once: list[tuple[str, Mode]] = [("alike", "one"), *((kind, mode) for kind in kinds for mode in modes)]
    keys = once * TRIES
    ran = run(layers, [Job(batches[kind], mode) for kind, mode in keys])
    best: dict[tuple[str, Mode], float] = {}
    for key, one in zip(keys, ran, strict=True):
        best[key] = max(best.get(key, 0.0), one.rows_per_s)
    truth = {kind: alone(layers, batches[kind]) for kind in kinds}
    apart = max(
        float((a - b).abs().max())
        for (kind, _), one in zip(keys, ran, strict=True)
        for a, b in zip(one.outputs, truth[kind], strict=True)
    )
    gains = {kind: best[kind, "non-blocking"] / best[kind, "blocking"] for kind in kinds}
    ideal = [_flow(rows, wait=True) / _flow(rows, wait=False) for rows in kinds.values()]
    return [
        CLAIMS["waiting"].came_out(
            [gain for kind, gain in gains.items() if kind != "alike"],
            f"{', '.join(f'{one:.2f}' for one in ideal[1:])} if time follows rows and handing over takes none; the "
            f"paper's is on GPUs against FasterTransformer. Outputs come in order, and differ by {apart:.0e} from "
            f"those of one process",
            control=gains["alike"],
        ),
        CLAIMS["flight"].came_out(
            best["alike", "non-blocking"] / best["alike", "one"],
            f"{best['alike', 'non-blocking']:.0f} rows/s in place of {best['alike', 'one']:.0f}; the first and the "
            f"last batch of {BATCHES} leave a stage idle",
        ),
    ]


def _flow(rows: Sequence[int], *, wait: bool) -> float:
    """Return when the last batch has passed two equal stages, in rows; `wait`: each one until the next takes it."""
    free = begun = done = 0.0
    for count in rows:
        made = (max(free, begun) if wait else free) + count
        free, begun = made, max(made, done)
        done = begun + count
    return done


def _fetched() -> list[Row]:
    from sonde.learn.pipeline_swap import Network, run

    still = Network(LAYERS, WIDTH, 512, EVERY, 0, 0.0)
    layer = min(one.layer_s for one in run([still] * 4, 2))
    ran = run([still._replace(ahead=a, fetch_s=FETCH * layer) for _ in range(TRIES) for a in AHEAD], STEPS)
    found = [min(ran[a :: len(AHEAD)], key=lambda one: one.layer_s) for a in AHEAD]  # the least disturbed of each
    shares = [one.wait_s / one.fetch_s for one in found]
    predicted = [max(one.fetch_s - min(a, EVERY) * one.layer_s, 0.0) / one.fetch_s
                 for a, one in zip(AHEAD, found, strict=True)]  # fmt: skip
    off = [abs(a - b) for a, b in zip(shares, predicted, strict=True)]
    waited = ", ".join(f"{share:.2f} ({said:.2f})" for share, said in zip(shares, predicted, strict=True))
    why = f"share of a fetch waited for 0 to 3 layers ahead, and predicted: {waited}"
    same = all(one.same for one in found)
    if not same:
        return [CLAIMS[name].not_run("fetched layers gave other outputs") for name in ("hidden", "wait")]
    return [
        CLAIMS["hidden"].came_out(
            shares[3], f"outputs are those of a network that holds all; {why}", control=shares[0]
        ),
        CLAIMS["wait"].came_out(max(off), why),
    ]


PAPER = Paper(
    "energonai", "EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models",
    2022, "arXiv", "https://arxiv.org/abs/2209.02341", CLAIMS, reproduce, measured=True,
)  # fmt: skip

"""DeepSeek-V3 on its hardware: what latent attention keeps, what experts send, what two tokens a step bring.

Every time is that of requests in the simulator. For the bound that the paper draws from the network alone, the
device gets arithmetic and memory without end and links without latency, so that only what is sent is left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.curves import OperatorEfficiency
from sonde.catalogue.device import Device, Link
from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import Efficiencies, efficiencies
from sonde.catalogue.model import Model
from sonde.catalogue.models import model
from sonde.cost.compile import compile_replica
from sonde.cost.explain import explain
from sonde.cost.require import scaled
from sonde.cost.table import Coefficients, Engine
from sonde.deployment.tree import Batching, Replica
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.engine import run
from sonde.workload.requests import requests

V3, QWEN, LLAMA = "deepseek-v3", "qwen2.5-72b", "llama-3.1-405b"
ENDLESS, RANKS, EACH = 1e6, 128, 64  # of the network's bound: devices, and sequences on each (two batches of 32)
TRAINED = 4096  # tokens of a training sequence
SEEDS = range(3)

CLAIMS = {
    "tpot": Claim(
        "time per token that 400 Gb/s a device allow", 14.76, "ms",
        "experts over 128 devices, two batches of 32 on each",
        near(14.76, 0.1), "a model without experts: TPOT with links 18 times as fast over TPOT",
        Range(0.99, 1.0),
    ),
    "nvl72": Claim(
        "the same with 900 GB/s a device", 0.82, "ms", "experts over 72 devices of GB200 NVL72", near(0.82, 0.1)
    ),
    "rate": Claim("tokens/s of one answer at 400 Gb/s", 67, "/s", "from that TPOT", near(67, 0.1)),
    "rate72": Claim("tokens/s of one answer on NVL72", 1200, "/s", "from that TPOT", near(1200, 0.1)),
    "v3": Claim(
        "KV cache a token, DeepSeek-V3 (MLA)", 70.272, "kB", "peak of one simulated request, bf16", near(70.272, 0.01),
        "a cache of one key-value head (MQA) in MLA's place: bytes of it over those of MLA", at_most(1.0),
    ),
    "qwen": Claim("KV cache a token, Qwen2.5-72B (GQA)", 327.68, "kB", "the same request", near(327.68, 0.01)),
    "llama": Claim("KV cache a token, Llama-3.1-405B (GQA)", 516.096, "kB", "the same request", near(516.096, 0.01)),
    "train_v3": Claim("training FLOP a token, DeepSeek-V3", 250, "GFLOP", "4,096 tokens, causal", near(250, 0.05)),
    "train_qwen": Claim("training FLOP a token, Qwen-72B dense", 394, "GFLOP", "4,096 tokens, causal", near(394, 0.05)),
    "train_llama": Claim("training FLOP a token, Llama 405B", 2448, "GFLOP", "4,096 tokens, causal", near(2448, 0.05)),
    "nodes": Claim(
        "nodes that a token is sent to with node-limited routing", 4, "", "256 experts on 8 nodes, 8 a token",
        at_most(4.0), "without the limit: nodes that a token is sent to", at_least(4.5),
    ),
    "mtp": Claim(
        "tokens/s with a second token a step, accepted in 85 %", 1.8, "×", "one answer at a time on 8 H200",
        near(1.8, 0.1), "none accepted: tokens/s over those without", at_most(1.0), recalled=True,
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim, computed from the catalogue's configs, links and devices."""
    progress(0, 4, "caches and training")
    rows = [*_caches(), *_training()]
    progress(1, 4, "the network's bound")
    network, note = _network()
    progress(2, 4, "routing")
    rows.append(_nodes())
    progress(3, 4, "two tokens a step")
    rows.append(_mtp())
    kept = {row.claim.text: row for row in [*network, *rows]}
    return Reproduction(tuple(kept[claim.text] for claim in CLAIMS.values()), (note,))


def _one_after_the_other(engine: Engine, count: int, prompt: int, output: int | list[int]) -> Outcome:
    """Return what happens to `count` requests of one length that are all sent at once."""
    outputs = [output] * count if isinstance(output, int) else output
    return run(requests([0.0] * count, [prompt] * count, outputs), ((engine, 1),))


def _cache(name: Model) -> float:
    """Return the bytes of cache a token of the longest request that one replica has served."""
    replica = Replica(model=name.name, device="b300-sxm", tensor_parallel=8, weights="fp8")
    prompt, output = 4080, 16
    outcome = _one_after_the_other(compile_replica(name, device(replica.device), replica), 1, prompt, output)
    held = float(outcome.peak_kv_bytes[0]) / (prompt + output)
    return held / _copies(name, replica.tensor_parallel)


def _copies(name: Model, ranks: int) -> float:
    """Return how many times the ranks hold a token's cache: a latent one and a lone head are held by each."""
    mixer = name.mixers[0]
    return ranks if mixer.kind == "mla" else max(1.0, ranks / mixer.kv_heads)


def _caches() -> list[Row]:
    latent = model(V3)
    lone = replace(latent.mixers[0], cache_elements=2 * 128)
    smaller = _cache(replace(latent, mixers=(lone,))) / _cache(latent)
    gap = "none: the bytes are counted in the run, from each model's published config"
    return [
        CLAIMS["v3"].came_out(_cache(latent) / 1e3, gap, control=smaller),
        CLAIMS["qwen"].came_out(_cache(model(QWEN)) / 1e3, gap),
        CLAIMS["llama"].came_out(_cache(model(LLAMA)) / 1e3, gap),
    ]


def _training() -> list[Row]:
    why = {
        "v3": "forward and twice that backward over all operators of the step, head on every token",
        "qwen": "the paper's figure is 65.7 G weights at 6 FLOP each: fewer than the 71.5 G that a token meets",
        "llama": "as above; attention and the head make up what the paper's figure has less",
    }
    found = []
    for key, name in (("v3", V3), ("qwen", QWEN), ("llama", LLAMA)):
        it = model(name)
        flops = sum(row.flops for row in explain(it, device("h100-sxm"), _alone(name), TRAINED, 0))
        flops += 2.0 * it.embedding_parameters * (TRAINED - 1)  # a step samples from one token, training from all
        found.append(CLAIMS[f"train_{key}"].came_out(3 * flops / TRAINED / 1e9, why[key]))
    return found


def _alone(name: str) -> Replica:
    return Replica(model=name, device="h100-sxm")


def _routed(name: str) -> Model:
    """Return the model with its shared expert sent over the network as one more routed one, as the paper counts."""
    found = model(name)
    forwards = tuple(replace(ff, top_k=ff.top_k + 1) if ff.experts else ff for ff in found.feedforwards)
    return replace(found, feedforwards=forwards)


def _lossless(found: Efficiencies) -> Efficiencies:
    """Return efficiencies of a device that loses nothing: peaks are reached, kernels and engine take no time."""
    curves = dict.fromkeys(found.curves, OperatorEfficiency())
    engine = replace(found.engine, step_s=0.0, layer_s=0.0, token_s=0.0, sequence_s=0.0)
    return replace(found, curves=curves, engine=engine, factors=())


def _bare(name: str, bandwidth: float, inside: int) -> Device:
    """Return a device whose only limit is what it sends."""
    link = Link(bandwidth, 0.0)
    endless = scaled(device(name), compute=ENDLESS, memory=ENDLESS)
    return replace(endless, node_devices=inside, node=link, fabric=link)


def _tpot(name: Model, where: Device, ranks: int, reached: Efficiencies) -> float:
    mixture = any(ff.experts for ff in name.feedforwards)
    batch = ranks * EACH if mixture else EACH
    replica = Replica(
        model=name.name, device=where.name, weights="fp8", activations="fp8", data_parallel=ranks if mixture else 1,
        expert_parallel=ranks if mixture else 1, batching=Batching(max_batch=batch, token_budget=16 * batch),
    )  # fmt: skip
    outcome = _one_after_the_other(compile_replica(name, where, replica, reached=reached), batch, 16, 32)
    return float(np.median(outcome.tpot_s))


def _network() -> tuple[list[Row], str]:
    ideal = _lossless(efficiencies(device("h100-sxm")))
    routed, dense = _routed(V3), model("llama-3.1-8b")
    slow, fast = _bare("h100-sxm", 50e9, 1), _bare("gb200", 900e9, 72)
    far, near_by = _tpot(routed, slow, RANKS, ideal), _tpot(routed, fast, 72, ideal)
    control = _tpot(dense, _bare("h100-sxm", 900e9, 72), 1, ideal) / _tpot(dense, slow, 1, ideal)
    real = _tpot(model(V3), device("h200-sxm"), RANKS, efficiencies(device("h200-sxm")))
    why = (
        "58 of 61 layers have experts, of 7,168 channels, and 1 in 128 of what is sent stays: the paper takes all 61, "
        "7,000 channels and sends all"
    )
    note = (
        f"With the catalogue's H200, its links' latency and what they reach, and nothing overlapped, the same batch "
        f"takes {1e3 * real:.1f} ms a token: the paper's bound leaves out computing, reading and waiting."
    )
    return [
        CLAIMS["tpot"].came_out(1e3 * far, why, control=control),
        CLAIMS["nvl72"].came_out(1e3 * near_by, why),
        CLAIMS["rate"].came_out(1 / far, why),
        CLAIMS["rate72"].came_out(1 / near_by, why),
    ], note


def _nodes() -> Row:
    """Draw every token's scores of 256 experts, and count the nodes that the chosen ones stand on."""
    limited, free = [], []
    for seed in SEEDS:
        scores = np.random.default_rng(seed).random((4096, 8, 32))
        groups = np.sort(scores, axis=2)[:, :, -2:].sum(axis=2)  # a node is as good as its two best experts
        kept = groups >= np.sort(groups, axis=1)[:, -4][:, None]
        limited.append(_visited(np.where(kept[:, :, None], scores, -1.0)))
        free.append(_visited(scores))
    why = "at most 4 by the rule, fewer where the chosen share a node; one copy for each expert would be 8"
    return CLAIMS["nodes"].came_out(limited, why, control=free)


def _visited(scores: NDArray[np.float64]) -> float:
    chosen = np.argsort(scores.reshape(len(scores), -1), axis=1)[:, -8:] // 32
    return float(np.mean([len(set(row)) for row in chosen.tolist()]))


def _mtp() -> Row:
    """Serve answers one after the other with and without a second token a step, which is accepted or not by chance."""
    replica = Replica(
        model=V3, device="h200-sxm", tensor_parallel=8, weights="fp8", engine="generic", batching=Batching(max_batch=1)
    )
    plain = compile_replica(model(V3), device("h200-sxm"), replica)
    double = plain._replace(table=plain.table._replace(time=_two_tokens(plain.table.time, model(V3).layers)))
    tokens, count = 512, 24
    base = _rate(_one_after_the_other(plain, count, 256, tokens), tokens)
    gained, none = [], []
    for seed in SEEDS:
        draws = np.random.default_rng(seed)
        steps = [_steps(tokens, draws.random(tokens) < 0.85) for _ in range(count)]
        gained.append(_rate(_one_after_the_other(double, count, 256, steps), tokens) / base)
        none.append(_rate(_one_after_the_other(double, count, 256, tokens), tokens) / base)
    why = (
        "two tokens touch up to twice the experts, whose weights one answer reads for itself alone, and the module is "
        "one more layer; the paper's figure is the tokens a step, at batches that read all experts anyway"
    )
    return CLAIMS["mtp"].came_out(gained, why, control=none)


def _steps(tokens: int, accepted: NDArray[np.bool_]) -> int:
    """Return the steps in which `tokens` tokens come, two at once where the second was accepted."""
    return int(np.searchsorted(np.cumsum(1 + accepted), tokens)) + 1


def _two_tokens(time: Coefficients, layers: int) -> Coefficients:
    """Return the times of steps that decode two tokens a sequence and run one more layer to guess the second."""
    batch = np.arange(len(time.decode))
    twice = time.linear[np.minimum(2 * batch, len(time.linear) - 1)] - time.linear[batch]
    module = (time.linear[batch] + time.decode) / layers
    return time._replace(decode=time.decode + twice + module, read=time.read * (layers + 1) / layers)


def _rate(outcome: Outcome, tokens: int) -> float:
    """Return tokens a second of an answer in the middle, as its reader sees them after the first."""
    return float(np.median((tokens - 1) / (outcome.finish_s - outcome.first_token_s)))


PAPER = Paper(
    "deepseek-v3-hw",
    "Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures",
    2025, "ISCA", "https://arxiv.org/abs/2505.09343", CLAIMS, reproduce,
)  # fmt: skip

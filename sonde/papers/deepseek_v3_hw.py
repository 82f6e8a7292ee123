"""DeepSeek-V3 on its hardware: what latent attention keeps, what experts send, what two tokens a step bring.

Every time is that of requests in the simulator; attention and numbers of eight bits are computed. For the bound that
the paper draws from the network alone, the device gets arithmetic and memory without end and links without latency,
so that only what is sent is left.
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
from sonde.cost.compile import compile_replica, compile_shard
from sonde.cost.explain import explain
from sonde.cost.require import scaled
from sonde.cost.shard import shard
from sonde.cost.table import Engine
from sonde.deployment.tree import Batching, Replica, Use
from sonde.learn import eight_bits, latent
from sonde.metrics import Outcome
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near
from sonde.sim.engine import run
from sonde.techniques import node_limited_routing
from sonde.techniques.compose import chosen, compiled
from sonde.workload.requests import requests

V3, QWEN, LLAMA = "deepseek-v3", "qwen2.5-72b", "llama-3.1-405b"
ENDLESS, RANKS, EACH = 1e6, 128, 64  # of the network's bound: devices, and sequences on each (two batches of 32)
TRAINED = 4096  # tokens of a training sequence
SEEDS = range(3)
Floats = NDArray[np.float32]

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
    "train_v2": Claim("training FLOP a token, DeepSeek-V2", 155, "GFLOP", "4,096 tokens, causal", near(155, 0.05)),
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
    "mtp_batch": Claim(
        "the same of many answers at once", 1.8, "×", "64 on each of 128 H200, experts over all of them",
        near(1.8, 0.1), "none accepted: tokens/s over those without", at_most(1.0), recalled=True,
    ),
    "fabric": Claim(
        "TPOT that the fabric allows with node-limited routing, over without", 0.5, "×",
        "64 devices on 8 nodes whose only limit is what crosses between nodes, 4 nodes a token", near(0.5, 0.2),
        "a limit of 7 nodes of 8: the same ratio, from copies that share a node alone", at_least(0.5), recalled=True,
    ),
    "absorbed": Claim(
        "largest difference of absorbed from expanded latent attention", 1e-4, "", "a layer computed both ways",
        at_most(1e-4), "absorbed without the part that holds positions", at_least(1e-2), recalled=True,
    ),
    "kept": Claim(
        "cache of all heads' keys and values over latents, in that layer", None, "×",
        "bytes of the arrays; 8 heads of 32",
        at_least(5.0), "one head of 32 (a latent of 64 and 16 with positions): the same ratio", at_most(1.01),
    ),
    "tile": Claim(
        "error of an FP8 product with a scale for all, over one for each tile", None, "×",
        "tiles of 1×128 and blocks of 128×128; tokens' sizes over five decades", at_least(1.5),
        "tokens of one size: the same ratio", Range(0.95, 1.1),
    ),
    "log": Claim(
        "error of E4M3 over that of LogFMT in as many bits", None, "×", "normal activations in tiles of 128",
        at_least(1.0), "numbers even over 32 octaves: the same ratio", at_most(1.0),
    ),
    "switches": Claim(
        "switches of a network of 8 planes for 16,384 devices", 768, "",
        "two layers of 64-port switches, built and counted",
        near(768, 1e-9), "spines of a plane that a leaf does not reach", at_most(0.0),
    ),
    "layers": Claim(
        "switches an endpoint with three layers, over planes of two", 1.71, "×",
        "64 ports; the paper's ratio is of dollars",
        near(1.71, 0.05), recalled=True,
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim, computed from the catalogue's configs, links and devices."""
    progress(0, 5, "caches and training")
    rows = [*_caches(), *_training()]
    progress(1, 5, "the network's bound")
    network, note = _network()
    progress(2, 5, "routing")
    rows += [_nodes(), _fabric()]
    progress(3, 5, "two tokens a step")
    rows += [_mtp(), _mtp_batch()]
    progress(4, 5, "numbers, attention, switches")
    rows += [*_attention(), *_eight_bits(), *_switches()]
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
        "v2": "as for V3",
        "v3": "forward and twice that backward over all operators of the step, head on every token",
        "qwen": "the paper's figure is 65.7 G weights at 6 FLOP each: fewer than the 71.5 G that a token meets",
        "llama": "as above; attention and the head make up what the paper's figure has less",
    }
    found = []
    for key, name in (("v2", "deepseek-v2"), ("v3", V3), ("qwen", QWEN), ("llama", LLAMA)):
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


def _fabric() -> Row:
    """Serve on devices whose nodes are joined without limit, so that only what crosses between them takes time."""
    base = _bare("h100-sxm", 50e9, 8)
    where = replace(base, node=Link(base.node.bandwidth * ENDLESS, 0.0))
    ideal = _lossless(efficiencies(where))

    def tpot(limit: int) -> float:
        ranks = 64
        replica = Replica(
            model=V3, device=where.name, weights="fp8", activations="fp8", data_parallel=ranks, expert_parallel=ranks,
            batching=Batching(max_batch=ranks * EACH, token_budget=16 * ranks * EACH),
        )  # fmt: skip
        part = shard(model(V3), where, replica, ideal)
        if limit:
            part = node_limited_routing.shard(part, node_limited_routing.Limit(nodes=limit))
        outcome = _one_after_the_other(compile_shard(part), ranks * EACH, 16, 32)
        return float(np.median(outcome.tpot_s))

    free = tpot(0)
    why = "chosen experts share a node now and then, and one in eight stays at home; the paper counts 4 for 8"
    return CLAIMS["fabric"].came_out(tpot(4) / free, why, control=tpot(7) / free)


def _visited(scores: NDArray[np.float64]) -> float:
    chosen = np.argsort(scores.reshape(len(scores), -1), axis=1)[:, -8:] // 32
    return float(np.mean([len(set(row)) for row in chosen.tolist()]))


def _mtp() -> Row:
    """Serve answers one after the other with and without a second token a step, which is accepted or not by chance."""
    replica = Replica(
        model=V3, device="h200-sxm", tensor_parallel=8, weights="fp8", engine="generic", batching=Batching(max_batch=1)
    )
    plain = compile_replica(model(V3), device("h200-sxm"), replica)
    guess = chosen([{"multi-token-prediction": {"acceptance": 0.0}}])  # whole steps: what they yield is drawn below
    double = compiled(model(V3), device("h200-sxm"), replica, guess)
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
        "one more layer and another pass of the head; the paper's figure is the tokens a step"
    )
    return CLAIMS["mtp"].came_out(gained, why, control=none)


def _mtp_batch() -> Row:
    """Serve the batch of the network's bound on H200 with the technique, and with guesses that are never right."""

    def rate(*uses: Use) -> float:
        replica = Replica(
            model=V3, device="h200-sxm", weights="fp8", data_parallel=RANKS, expert_parallel=RANKS,
            batching=Batching(policy="static", max_batch=RANKS * EACH),
        )  # fmt: skip
        engine = compiled(model(V3), device(replica.device), replica, chosen(("expert-dispatch", *uses)))
        return _rate(_one_after_the_other(engine, RANKS * EACH, 1024, 64), 64)

    plain = rate()
    found, never = (rate({"multi-token-prediction": {"acceptance": share}}) / plain for share in (0.85, 0.0))
    why = (
        "twice the tokens are sent to experts and computed, which at this batch is most of a step; the paper's "
        "figure is the tokens a step"
    )
    return CLAIMS["mtp_batch"].came_out(found, why, control=never)


def _steps(tokens: int, accepted: NDArray[np.bool_]) -> int:
    """Return the steps in which `tokens` tokens come, two at once where the second was accepted."""
    return int(np.searchsorted(np.cumsum(1 + accepted), tokens)) + 1


def _rate(outcome: Outcome, tokens: int) -> float:
    """Return tokens a second of an answer in the middle, as its reader sees them after the first."""
    return float(np.median((tokens - 1) / (outcome.finish_s - outcome.first_token_s)))


def _attention() -> list[Row]:
    apart, without, kept, one = [], [], [], []
    for seed in SEEDS:
        weights = latent.layer(seed)
        tokens = np.random.default_rng(seed).standard_normal((512, weights.sizes.hidden)).astype(np.float32)
        full, small = latent.expanded(weights, tokens), latent.absorbed(weights, tokens)
        size = float(np.abs(full.output).max())
        apart.append(float(np.abs(full.output - small.output).max()) / size)
        blind = latent.absorbed(weights, tokens, positions_count=False)
        without.append(float(np.abs(full.output - blind.output).max()) / size)
        kept.append(full.cached / small.cached)
        lone = latent.layer(seed, latent.Sizes(heads=1))
        one.append(latent.expanded(lone, tokens).cached / latent.absorbed(lone, tokens).cached)
    return [
        CLAIMS["absorbed"].came_out(apart, "rounding in 32 bits; the bar is ours", control=without),
        CLAIMS["kept"].came_out(kept, "the layer is small: V3's has 128 heads, and keeps 71 times less", control=one),
    ]


def _eight_bits() -> list[Row]:
    """Multiply and round numbers of eight bits, drawn by three seeds."""
    scaled_, even, logs, wide = [], [], [], []
    for seed in SEEDS:
        draws = np.random.default_rng(seed)
        x = draws.standard_normal((256, 512)).astype(np.float32)
        weights = (draws.standard_normal((512, 256)) / 22).astype(np.float32)
        decades = (x * 10.0 ** draws.uniform(0, 5, (256, 1))).astype(np.float32)
        scaled_.append(_whole_over_tiles(decades, weights))
        even.append(_whole_over_tiles(x, weights))
        octaves = (np.exp2(draws.uniform(-16, 16, x.shape)) * draws.choice((-1.0, 1.0), x.shape)).astype(np.float32)
        logs.append(_tiles_over_logarithms(x))
        wide.append(_tiles_over_logarithms(octaves))
    return [
        CLAIMS["tile"].came_out(
            scaled_, "E4M3 reaches over 18 octaves: what lies below them is lost with one scale", control=even
        ),
        CLAIMS["log"].came_out(logs, "even steps of the logarithm over what a tile holds", control=wide),
    ]


def _whole_over_tiles(x: Floats, weights: Floats) -> float:
    exact = x @ weights
    whole = eight_bits.whole(x) @ eight_bits.whole(weights)
    tiles = eight_bits.tiled(x) @ eight_bits.tiled(weights, 128, 128)
    return eight_bits.lost(exact, whole) / eight_bits.lost(exact, tiles)


def _tiles_over_logarithms(x: Floats) -> float:
    return eight_bits.lost(x, eight_bits.tiled(x)) / eight_bits.lost(x, eight_bits.logarithms(x))


def _switches() -> list[Row]:
    planes, ports = 8, 64
    plane = _two_layers(ports)
    endpoints, switches, lonely = planes * plane[0], planes * plane[1], plane[2]
    three = _three_layers(ports)
    why = "switches alone; cables and optics have prices of their own"
    return [
        CLAIMS["switches"].came_out(switches, f"{endpoints:,} endpoints, counted", control=lonely),
        CLAIMS["layers"].came_out((three[1] / three[0]) / (switches / endpoints), why),
    ]


def _two_layers(ports: int) -> tuple[int, int, int]:
    """Build a fat tree of leaves and spines; return its endpoints, its switches, and leaves that miss a spine."""
    half = ports // 2
    links = {(leaf, spine) for leaf in range(ports) for spine in range(half)}
    free = {leaf: ports - sum((leaf, spine) in links for spine in range(half)) for leaf in range(ports)}
    spines = {spine: sum((leaf, spine) in links for leaf in range(ports)) for spine in range(half)}
    lonely = sum(count != ports for count in spines.values())
    return sum(free.values()), len(free) + len(spines), lonely


def _three_layers(ports: int) -> tuple[int, int]:
    """Build a fat tree of pods (as many as ports) with leaves and spines, and a core; return endpoints and switches."""
    half = ports // 2
    leaves = [(pod, leaf) for pod in range(ports) for leaf in range(half)]
    spines = [(pod, spine) for pod in range(ports) for spine in range(half)]
    up = sum(half for _ in spines)
    return half * len(leaves), len(leaves) + len(spines) + up // ports


PAPER = Paper(
    "deepseek-v3-hw",
    "Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures",
    2025, "ISCA", "https://arxiv.org/abs/2505.09343", CLAIMS, reproduce,
)  # fmt: skip

"""MELT: what quantised models take of a phone's memory, how fast they answer, and what quantisation costs.

File sizes follow from the blocks of llama.cpp's formats and from which matrices each of its mixes keeps wider.
Accuracy is that of a decoder that is trained and rounded here; it needs torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sonde.catalogue.devices import device
from sonde.catalogue.formats import weight_format
from sonde.catalogue.model import Model
from sonde.catalogue.models import model
from sonde.cost.explain import step_rows
from sonde.cost.local import REACHED_ON_DEVICES, choices, decode_s, part_of, reaching
from sonde.cost.memory import report
from sonde.cost.shard import Shard
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least, at_most, near

LLAMA = "llama-2-7b"
PHONE, JETSON, BOARD = "snapdragon-8-gen-3", "jetson-agx-orin-64gb", "raspberry-pi-5"
#: what MELT's table adds to the file, in each of its rows and whatever the model: bytes
RUNTIME = 2.5e9
SEEDS, STEPS = range(3), 100
PHONE_WH = 18.5  # of a battery of 4,800 mAh

CLAIMS = {
    "llama-q4_0": Claim(
        "peak memory, Llama-2-7B q4_0", 6.33, "GB", "llama.cpp on a device", near(6.33, 0.1),
        "cache of 1,000 tokens: its bytes beside 4-bit weights over those beside 16-bit ones", Range(0.999, 1.001),
    ),
    "llama-q3_k": Claim("peak memory, Llama-2-7B q3_k", 5.80, "GB", "llama.cpp on a device", near(5.80, 0.1)),
    "mistral-q4_k": Claim("peak memory, Mistral-7B q4_k", 6.87, "GB", "llama.cpp on a device", near(6.87, 0.1)),
    "tinyllama-q4_0": Claim("peak memory, TinyLlama-1.1B q4_0", 3.14, "GB", "llama.cpp on a device", near(3.14, 0.1)),
    "bound": Claim(
        "share of decoding that waits for memory", None, "%", "Llama-2-7B q4_0 on a Snapdragon 8 Gen 3",
        at_least(80.0), "a prompt of 512 tokens: the same share", at_most(50.0),
    ),
    "speed": Claim(
        "decoding with 4-bit weights over 16-bit ones", None, "×", "Llama-2-7B on a Jetson AGX Orin", Range(2.0, 3.56),
        "a prompt of 512 tokens: the same ratio", Range(0.9, 1.15),
    ),
    "accuracy": Claim(
        "quantisation is not free: what rounding to 2 bits costs", None, "%",
        "rise of a small decoder's loss on held-out text; of Llama-2-7B on ARC-easy it was 1.6 points",
        at_least(0.1), "rounding to 8 bits: the same rise", Range(-0.1, 0.1),
    ),
    "sustained": Claim("answering without a pause cannot be kept up", None, "", "phones throttle", at_least(1.0)),
}  # fmt: skip
TABLE = {"llama-q4_0": (LLAMA, "q4_0"), "llama-q3_k": (LLAMA, "q3_k"), "mistral-q4_k": ("mistral-7b", "q4_k"),
         "tinyllama-q4_0": ("tinyllama-1.1b", "q4_0")}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim: memory, bounds and speed by the cost model, accuracy by training."""
    progress(0, 2, "memory and speed")
    rows = [*_memory(), _bound(), _speed()]
    progress(1, 2, "accuracy of a small decoder")
    rows.append(_accuracy())
    rows.append(
        CLAIMS["sustained"].not_run("needs temperatures over minutes of load, and no device here has a sensor to read")
    )
    return Reproduction(tuple(rows), tuple(_notes()))


def file_bytes(name: Model, mix: str) -> float:
    """Return the size of a model of Llama's form in one of llama.cpp's mixes: "q4_0", "q4_k" (_M) or "q3_k" (_M)."""
    head = weight_format("q6_k").weight_bytes
    total = name.embedding_parameters * (weight_format(mix).weight_bytes + head) + 4.0 * name.vectors
    for parameters, form in _matrices(name, mix):
        total += parameters * weight_format(form).weight_bytes
    vectors = sum(mixer.layers * mixer.vectors for mixer in name.mixers)
    return total + 4.0 * (vectors + sum(forward.layers * forward.vectors for forward in name.feedforwards))


def _matrices(name: Model, mix: str) -> Iterator[tuple[float, str]]:
    """Yield the weights of every matrix of every layer, and the format that the mix gives it."""
    for i in range(name.layers):
        for matrix in (*name.mixers[0].matrices, *name.feedforwards[0].matrices):
            if matrix.name == "kv":
                yield matrix.parameters / 2, mix
                yield matrix.parameters / 2, _kept(mix, "v", i, name.layers)
            else:
                yield matrix.parameters, _kept(mix, matrix.name, i, name.layers)


def _kept(mix: str, matrix: str, layer: int, layers: int) -> str:
    """Return the format of one matrix, as llama.cpp's `llama_tensor_get_type` has it for Llama."""
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if mix == "q4_k" and matrix in ("v", "down") and more:
        return "q6_k"
    if mix == "q3_k":
        if matrix == "v":
            return "q5_k" if layer < 2 else "q4_k"
        if matrix == "down":
            return "q5_k" if layer < layers // 16 else "q4_k"
        if matrix == "o":
            return "q4_k"
    return mix


def _memory() -> list[Row]:
    cache = [
        (found := report(part_of(model(LLAMA), device(JETSON), form))).kv_bytes / found.kv_tokens
        for form in ("q4_0", "fp16")
    ]
    rows = []
    for key, (name, mix) in TABLE.items():
        size = file_bytes(model(name), mix)
        why = (
            f"file of {size / 1e9:.2f} GB by its blocks; the paper's table adds 2.50 GB to every file, whatever model "
            f"and context: a rule, not a measurement, and taken from it"
        )
        control = cache[0] / cache[1] if CLAIMS[key].control else None
        rows.append(CLAIMS[key].came_out((size + RUNTIME) / 1e9, why, control=control))
    return rows


def _bound() -> Row:
    part = part_of(model(LLAMA), device(PHONE), "q4_0")
    reading = replace(part, efficiencies=reaching(part.efficiencies, REACHED_ON_DEVICES[1]))

    def share(part: Shard, prompt: int, batch: int) -> float:
        rows = [row for row in step_rows(part, prompt, batch, 512) if row.bound != "engine"]
        return 100 * sum(row.seconds for row in rows if row.bound == "memory") / sum(row.seconds for row in rows)

    why = "the paper shows it by operator timings, without one figure"
    return CLAIMS["bound"].came_out(share(reading, 0, 1), why, control=share(part, 512, 0))


def _speed() -> Row:
    wide, narrow = (part_of(model(LLAMA), device(JETSON), form) for form in ("fp16", "q4_0"))
    prompts = [sum(row.seconds for row in step_rows(part, 512, 0, 0)) for part in (wide, narrow)]
    gain = decode_s(wide, 512)[0] / decode_s(narrow, 512)[0]
    why = (
        "less than the 3.6 by bytes: cache, kernel starts and the engine's time do not shrink; dequantising is left out"
    )
    return CLAIMS["speed"].came_out(gain, why, control=prompts[0] / prompts[1])


def _accuracy() -> Row:
    claim = CLAIMS["accuracy"]
    if importlib.util.find_spec("torch") is None:
        return claim.not_run("needs torch: pip install 'sonde[run]'")
    from sonde.learn.study import rounding_costs

    costs = [rounding_costs(seed, STEPS) for seed in SEEDS]
    mean = {bits: 100 * float(np.mean([cost[bits] for cost in costs])) for bits in (4, 3)}
    why = (
        f"a decoder of 0.2 M weights that has just begun to learn, rounded in groups of 32; 3 bits cost "
        f"{mean[3]:.2g} %, 4 bits {mean[4]:.2g} %"
    )
    return claim.came_out([100 * cost[2] for cost in costs], why, control=[100 * cost[8] for cost in costs])


def _notes() -> Iterator[str]:
    for name, where in ((LLAMA, PHONE), ("tinyllama-1.1b", PHONE), (LLAMA, JETSON), ("tinyllama-1.1b", BOARD)):
        found = next(fit for fit in choices(model(name), device(where)) if fit.weights == "q4_0")
        answers = PHONE_WH * 3600 / (found.joules_per_token * 256)
        battery = f"; {answers:,.0f} answers of 256 tokens a battery charge" if where == PHONE else ""
        yield (
            f"Predicted, {name} q4_0 on {where}: {found.tokens_per_s:.1f} tokens/s "
            f"({found.low:.1f} to {found.high:.1f}), {found.joules_per_token:.2f} J a token (modelled){battery}."
        )


PAPER = Paper(
    "melt", "MELTing point: Mobile Evaluation of Language Transformers",
    2024, "MobiCom", "https://arxiv.org/abs/2403.12844", CLAIMS, reproduce,
)  # fmt: skip

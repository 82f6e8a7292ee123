"""The time of a step written as plain loops over layers and matrices: slow, and obviously right.

Follows the text of docs/cost.md, not the code of sonde/cost: grouped-query attention, dense layers and
experts; tensor, pipeline, data and expert parallelism.
"""

from __future__ import annotations

import math

from sonde.catalogue.device import PRECISION_BYTES, Device, Link
from sonde.catalogue.efficiencies import Efficiencies, OperatorEfficiency
from sonde.catalogue.model import FeedForward, Matrix, Mixer, Model
from sonde.deployment.tree import Replica


class Twin:
    def __init__(self, model: Model, device: Device, replica: Replica, reached: Efficiencies) -> None:
        self.model, self.device, self.replica, self.reached = model, device, replica, reached
        self.tp, self.pp = replica.tensor_parallel, replica.pipeline_parallel
        self.dp, self.ep = replica.data_parallel, replica.expert_parallel
        self.weight = PRECISION_BYTES[replica.weights]
        self.activation = PRECISION_BYTES[replica.activations]
        self.kv = PRECISION_BYTES[replica.kv_cache]
        wide = max(replica.weights, replica.activations, key=lambda name: PRECISION_BYTES[name])
        computed = wide if wide in device.flops else "bf16"
        self.peak = device.flops[computed]
        self.form = computed
        self.expert_form = "int4" if replica.weights == "int4" else computed

    def step(self, prompt: int, area: float, batch: int, read: float) -> float:
        mine = math.ceil(batch / (self.pp * self.dp))
        engine = self.reached.engine
        seconds = engine.step_s * self.pp + engine.layer_s * self.model.layers
        if self.pp * self.dp == 1:
            seconds += self.tokens(prompt + batch, prompt + batch)
        else:  # a prompt passes one rank and every stage; only decodes are spread over them
            seconds += self.tokens(prompt + batch, prompt + batch)
            if batch:
                micro = math.ceil(batch / self.pp)
                seconds += self.tokens(micro, math.ceil(micro / self.dp)) - self.tokens(batch, batch)
        seconds += self.head(max(mine, 1)) + engine.sequence_s * batch
        for mixer in self.model.mixers:
            for _ in range(mixer.layers):
                seconds += self.pairs(mixer, area)
                if batch:
                    seconds += self.decoding(mixer, mine) + self.reads(mixer, read * mine / batch)
        return seconds

    def tokens(self, micro: int, rows: int) -> float:
        width = self.model.hidden * self.activation
        seconds = self.elementwise(2 * rows * width)
        if self.tp > 1:
            seconds += self.all_reduce(self.tp, rows * width)
        for mixer in self.model.mixers:
            for _ in range(mixer.layers):
                seconds += self.attention(mixer, rows)
        for forward in self.model.feedforwards:
            for _ in range(forward.layers):
                seconds += self.feedforward(forward, rows, micro)
        for _ in range(self.pp if self.pp > 1 else 0):
            seconds += self.transfer("collective", self.link(self.tp * self.dp * self.pp), 2, rows * width)
        return seconds + self.reached.engine.token_s * micro

    def attention(self, mixer: Mixer, rows: int) -> float:
        heads = mixer.matrices
        seconds = self.products([m for m in heads if m.split == "column"], rows, mixer.kv_heads)
        seconds += self.products([m for m in heads if m.split == "row"], rows, 0)
        width = rows * self.model.hidden * self.activation
        if self.tp > 1:
            seconds += self.all_reduce(self.tp, width)
        seconds += self.elementwise(4 * width)
        seconds += self.elementwise(2 * rows * mixer.cache_elements * self.repeated(mixer) * self.kv)
        return seconds + self.reached.of("attention-prefill").overhead_s + rows * self.prompt_token(mixer)

    def repeated(self, mixer: Mixer) -> float:
        return max(1 / self.tp, 1 / mixer.kv_heads)

    def prompt_token(self, mixer: Mixer) -> float:
        moved = mixer.prefill_flops / self.tp + mixer.cache_elements * self.repeated(mixer) * self.kv
        return self.moving(self.reached.of("attention-prefill"), moved)

    def decoding(self, mixer: Mixer, mine: int) -> float:
        prompts, decode = self.reached.of("attention-prefill"), self.decode()
        one = max(self.reads(mixer, decode.tile_tokens) - self.prompt_token(mixer), 0.0)
        return max(decode.overhead_s - prompts.overhead_s, 0.0) + mine * one

    def decode(self) -> OperatorEfficiency:
        return self.reached.of("attention-decode/fp8" if self.kv < 2 else "attention-decode/bf16")

    def feedforward(self, forward: FeedForward, rows: int, tokens: int) -> float:
        seconds, inner = 0.0, 0.0
        for split in ("none", "column", "row"):
            chosen = [m for m in forward.matrices if m.split == split]
            if chosen:
                seconds += self.products(chosen, rows, 0)
            for m in chosen:
                part = 1 if split == "none" else 1 / self.tp
                inner += (m.inputs if split == "row" else m.outputs) * part
        width = rows * self.model.hidden * self.activation
        seconds += self.elementwise(4 * width + rows * inner * self.activation)
        seconds += self.reached.elementwise.overhead_s
        dense_sum = any(m.split == "row" for m in forward.matrices) and self.tp > 1
        if not forward.experts:
            return seconds + (self.all_reduce(self.tp, width) if dense_sum else 0.0)
        if self.dp > 1 and dense_sum:
            seconds += self.all_reduce(self.tp, width)
        return seconds + self.experts(forward, rows, tokens)

    def experts(self, forward: FeedForward, rows: int, tokens: int) -> float:
        split = self.tp * self.dp / self.ep
        mean = tokens * forward.top_k / self.ep
        load = mean
        if self.ep > 1:
            most = tokens * min(forward.top_k, math.ceil(forward.experts / self.ep))
            load = min(mean + math.sqrt(2 * mean * math.log(self.ep)), most)
        touched = forward.experts * (1 - (1 - forward.top_k / forward.experts) ** tokens) / self.ep
        flops = moved = 0.0
        for m in forward.expert_matrices:
            flops += 2 * load * m.inputs * m.outputs / split
            moved += touched * m.inputs * m.outputs / split * self.weight
        reached = self.reached.of(f"experts/{self.expert_form}")
        inner = forward.expert_matrices[-1].inputs / split
        seconds = self.roofline(reached, flops * (1 + reached.half_rows * touched / load), moved)
        seconds *= 1 + reached.half_columns / inner
        seconds += load * 3 * 2 * (self.model.hidden + inner) / (self.device.memory[0].bandwidth * reached.cast)
        seconds += reached.overhead_s
        width = self.model.hidden * self.activation
        if self.dp == 1:
            return seconds + (self.all_reduce(self.tp, rows * width) if self.tp > 1 else 0.0)
        if self.ep == 1:
            return seconds + self.all_reduce(self.tp * self.dp, tokens * width)
        numbers = math.ceil(rows / self.tp) * min(forward.top_k, self.ep) * self.model.hidden
        seconds += self.all_to_all(numbers * self.activation)
        return seconds + self.all_to_all(numbers * max(self.activation, 2.0))

    def head(self, rows: int) -> float:
        columns = self.model.vocabulary / self.tp
        table = max(self.weight, 2.0)
        reached = self.reached.of("gemm/bf16")
        flops = 2 * rows * columns * self.model.hidden
        flops *= 1 + reached.half_rows / rows + reached.half_outputs / (rows * columns)
        moved = columns * self.model.hidden * table + rows * (self.model.hidden + columns) * 2
        compute = flops / (self.device.flops["bf16"] * reached.compute)
        seconds = self.blend(reached, compute, self.moving(reached, moved))
        seconds += reached.overhead_s
        if self.tp > 1:
            size = rows * self.model.vocabulary * 2.0 * (self.tp - 1) / self.tp
            seconds += self.transfer("all-gather", self.link(self.tp), self.tp, size)
        return seconds

    def products(self, matrices: list[Matrix], rows: int, kv_heads: int) -> float:
        """Return the time of matrices that read the same input: one kernel."""
        weights = outputs = 0.0
        inputs = float(matrices[0].inputs)
        for m in matrices:
            share = 1.0 if m.split == "none" else 1 / self.tp
            if kv_heads and m.name in ("k", "v"):
                share = max(1 / self.tp, 1 / kv_heads)
            weights += m.inputs * m.outputs * share
            outputs += m.outputs * (1.0 if m.split == "row" else share)
        if matrices[0].split == "row":
            inputs /= self.tp
        reached = self.reached.of(f"gemm/{self.form}")
        columns = weights / inputs
        moved = weights * self.weight + rows * (inputs * self.activation + columns * max(self.activation, 2.0))
        flops = 2 * rows * weights * (1 + reached.half_rows / rows + reached.half_outputs / (rows * columns))
        seconds = self.roofline(reached, flops, moved) + reached.overhead_s + reached.row_s * rows
        if self.activation < 2:
            seconds += rows * inputs * (2.0 + self.activation) / (self.device.memory[0].bandwidth * reached.cast)
        return seconds

    def roofline(self, reached: OperatorEfficiency, flops: float, moved: float) -> float:
        return self.blend(reached, flops / (self.peak * reached.compute), self.moving(reached, moved))

    def blend(self, reached: OperatorEfficiency, compute: float, memory: float) -> float:
        power = reached.blend
        return float((compute**power + memory**power) ** (1 / power)) if power else max(compute, memory)

    def moving(self, reached: OperatorEfficiency, moved: float) -> float:
        return moved / (self.device.memory[0].bandwidth * reached.memory)

    def elementwise(self, moved: float) -> float:
        return self.moving(self.reached.elementwise, moved) + self.reached.elementwise.overhead_s

    def pairs(self, mixer: Mixer, area: float) -> float:
        peak = self.device.flops["bf16"] * self.reached.attention_prefill.compute
        return area * mixer.prefill_flops / self.tp / peak

    def reads(self, mixer: Mixer, tokens: float) -> float:
        reached = self.decode()
        repeated = max(1 / self.tp, 1 / mixer.kv_heads)
        compute = mixer.decode_flops / self.tp / (self.device.flops["bf16"] * reached.compute)
        return tokens * self.blend(reached, compute, self.moving(reached, mixer.cache_elements * repeated * self.kv))

    def link(self, ranks: int) -> Link:
        return self.device.node if ranks <= self.device.node_devices else self.device.fabric

    def transfer(self, kind: str, link: Link, ranks: int, size: float, rounds: float = 1.0) -> float:
        reached = self.reached.of(kind)
        if link is not self.device.node:
            return reached.overhead_s + rounds * link.latency_s + size / (link.bandwidth * reached.memory)
        seconds = reached.overhead_s + rounds * link.latency_s * reached.latency + reached.hop_s * math.log2(ranks / 2)
        return float(seconds + size / (link.bandwidth * reached.memory) * (min(ranks, 8) / 2) ** reached.crowding)

    def all_reduce(self, ranks: int, size: float) -> float:
        inside = min(ranks, self.device.node_devices)
        nodes = math.ceil(ranks / inside)
        sent = 2 * (inside - 1) / inside * size
        seconds = self.transfer("collective", self.device.node, inside, sent) if inside > 1 else 0.0
        if nodes > 1:
            part = 2 * (nodes - 1) / nodes * size / inside
            seconds += self.transfer("collective", self.device.fabric, nodes, part, 2 * math.log2(nodes))
        return seconds

    def all_to_all(self, size: float) -> float:
        inside = min(self.ep, self.device.node_devices)
        near = size * (inside - 1) / self.ep
        seconds = self.transfer("all-to-all", self.device.node, inside, near) if inside > 1 else 0.0
        if self.ep > inside:
            far = size * (self.ep - inside) / self.ep
            seconds = max(seconds, self.transfer("all-to-all", self.device.fabric, self.ep, far))
        return seconds

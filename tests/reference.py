"""Slow, obviously right twins of the kernels.

`Stepper` runs every step of every replica one by one, keeps every sequence as an object, and computes the
memory in use from scratch whenever it needs it. It follows docs/events.md, not the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from sonde.cost.table import Coefficients, Engine
from sonde.metrics import itl_edges
from sonde.policies import batching, routing


@dataclass(eq=False)
class Sequence:
    index: int
    prompt: int
    output: int
    priority: int
    session: int
    arrival: float = math.nan
    replica: int = -1
    scheduled: float = math.nan
    first: float = math.nan
    finish: float = math.nan
    last: float = math.nan
    made: int = 0  # tokens generated
    done: int = 0  # prompt tokens computed
    target: int = 0  # prompt tokens to compute (with those to compute again)
    cached: int = 0  # tokens in the KV cache while decoding
    swapped: bool = False
    held: bool = False  # finished, its place kept (static batching)
    preemptions: int = 0
    lent: int = 0  # blocks that lie at another replica
    creditor: Replica | None = None


@dataclass(eq=False)
class Replica:
    engine: Engine
    policy: batching.Batching
    own: bool
    queue: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)  # in order of admission; decoding, or in prefill
    held: list[Sequence] = field(default_factory=list)
    decoding: list[Sequence] = field(default_factory=list)
    prefilling: Sequence | None = None
    end: float | None = None
    wake: float | None = None
    start: float = 0.0
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    decodes: bool = False
    in_step: list[Sequence] = field(default_factory=list)
    energy_step: float = 0.0
    steps: int = 0
    busy: float = 0.0
    energy: float = 0.0
    peak: int = 0
    outside: dict[int, int] = field(default_factory=dict)  # tokens whose memory is held for what is on a link
    places: int = 0  # in the batch, held for what comes
    guests: list[Sequence] = field(default_factory=list)  # of other replicas, with blocks here
    lending: object = None

    def size(self, tokens: int) -> int:
        m, window = self.engine.memory, self.engine.table.window
        size = math.ceil(tokens / m.block_tokens) * m.block_bytes + m.state_bytes
        if m.window_block_bytes:
            size += math.ceil(min(tokens, window) / m.block_tokens) * m.window_block_bytes
        return size

    def used(self, growing: bool) -> int:
        total = 0
        for s in [*self.admitted, *self.held]:
            if self.policy.reserve_output:
                total += self.size(s.prompt + s.output - 1)
            elif s in self.decoding:
                total += self.size(s.cached + (1 if growing else 0))
            else:
                total += self.size(s.target)
        block = self.engine.memory.block_bytes
        total += block * (sum(s.lent for s in self.guests) - sum(s.lent for s in self.admitted))
        return total + sum(self.size(tokens) for tokens in self.outside.values())

    @property
    def full(self) -> bool:
        return len(self.admitted) + self.places >= self.engine.max_batch

    def cost(self, c: Coefficients, decodes: bool) -> float:
        window = self.engine.table.window
        prompt = sum(chunk for _, chunk in self.chunks)
        batch = [*self.decoding, *self.held] if decodes else []
        n = prompt + len(batch)
        last = len(c.linear) - 1
        area = sum(chunk * (s.done + chunk / 2) for s, chunk in self.chunks)
        area_window = 0.0
        if window:
            for s, chunk in self.chunks:
                inside = min(max(window - s.done, 0), chunk)
                area_window += inside * (s.done + inside / 2) + (chunk - inside) * window
        read = sum(s.cached + (0 if s.held else 1) for s in batch)
        read_window = sum(min(s.cached + (0 if s.held else 1), window) for s in batch) if window else 0
        b = len(batch)
        attention = c.read[b] * read
        if self.lending:
            attention = self.distributed(c, c.read[b], read, batch)
        return (
            c.fixed + c.linear[min(n, last)] + c.slope * max(n - last, 0)
            + c.prefill * area + c.prefill_window * area_window
            + c.decode[b] + attention + c.read_window[b] * read_window
        )  # fmt: skip

    def distributed(self, c, coefficient, read, batch):
        """Return what attention takes where tokens lie at other replicas, and theirs here."""
        block = self.engine.memory.block_tokens
        away = [s for s in batch if s.lent]
        own = coefficient * (read - sum(s.lent for s in away) * block)
        guests = sum(s.lent for s in self.guests) * block
        if c is self.engine.table.energy:
            return own + sum(s.creditor.engine.table.energy.read[1] * s.lent * block for s in away)
        if away:
            spec = self.lending
            shares = [
                other.engine.table.time.read[1] * sum(s.lent for s in away if s.creditor is other) * block
                for other in {id(s.creditor): s.creditor for s in away}.values()
            ]
            there = 2 * spec.rounds * spec.link.latency_s + len(away) * spec.exchange_bytes / spec.link.bytes_per_s
            own = max(own, there + max(shares))
        return own + c.read[1] * guests


class Stepper:
    def __init__(self, requests, fleet, route, seed=0):
        self.requests, self.route = requests, route
        self.replicas = [
            Replica(engine, batching.POLICIES.get(engine.batching) or batching.Batching(_own(engine.batching)),
                    engine.batching not in batching.POLICIES)
            for engine, count in fleet for _ in range(count)
        ]  # fmt: skip
        self.sequences = [
            Sequence(i, int(requests.prompt_tokens[i]), int(requests.output_tokens[i]),
                     int(requests.priority[i]), int(requests.session[i]))
            for i in range(requests.n)
        ]  # fmt: skip
        self.draws = np.random.default_rng(seed).random((requests.n, 2))
        self.gaps: list[float] = []
        self.finished: list[tuple[float, Sequence]] = []

    def run(self, clients=None):
        waiting = list(range(len(self.sequences)))
        pending = [0.0] * clients if clients else []
        while True:
            if clients:
                arrival = pending[0] if pending and waiting else math.inf
            else:
                arrival = float(self.requests.arrival_s[waiting[0]]) if waiting else math.inf
            ends = [r.end for r in self.replicas if r.end is not None]
            wakes = [r.wake for r in self.replicas if r.wake is not None]
            now = min([arrival, *ends, *wakes])
            if now == math.inf:
                return self
            self.now = now
            self.finished.clear()
            if now in ends:
                replica = next(r for r in self.replicas if r.end == now)
                self.end_step(replica, now)
                self.form(replica, now)
            elif now == arrival:
                if clients:
                    pending.pop(0)
                self.send(self.sequences[waiting.pop(0)], now)
            else:
                replica = next(r for r in self.replicas if r.wake == now)
                replica.wake = None
                self.form(replica, now)
            if clients:
                pending += [moment for moment, _ in self.finished]

    def send(self, s, now):
        s.arrival = now
        columns = [
            (
                len(r.queue), self.left(r), len(r.admitted), sum(x.cached for x in [*r.decoding, *r.held]),
                r.used(growing=r.end is not None and r.decodes), r.engine.memory.capacity_bytes,
            )
            for r in self.replicas
        ]  # fmt: skip
        zero = np.zeros(len(columns), np.int64)
        grows = [max(1, r.engine.memory.block_bytes // r.engine.memory.block_tokens) for r in self.replicas]
        view = routing.PoolView(
            *(np.array(c, np.int64) for c in zip(*columns, strict=True)), *[zero] * 4, np.array(grows)
        )
        d = self.draws[s.index]
        r = self.replicas[
            self.route(view, routing.RequestView(s.index, now, s.prompt, s.priority, s.session, d[0], d[1]))
        ]
        able = [r for r in self.replicas if r.size(s.prompt + s.output - 1) <= r.engine.memory.capacity_bytes]
        if not able:
            s.replica = -1
            self.finished.append((now, s))
            return
        if r not in able:
            r = min(able, key=lambda r: len(r.queue) + len(r.admitted))
        s.replica, s.target = self.replicas.index(r), s.prompt
        at = len(r.queue)
        while at > 0 and r.queue[at - 1].priority > s.priority:
            at -= 1
        r.queue.insert(at, s)
        if r.end is None and r.wake is None:
            r.wake = now

    @staticmethod
    def left(r):
        todo = sum(s.target - s.done for s in r.queue if not s.swapped)
        busy = {id(s): s for s, _ in r.chunks} | ({id(r.prefilling): r.prefilling} if r.prefilling else {})
        return todo + sum(s.target - s.done for s in busy.values())

    @staticmethod
    def ask(r):
        engine = r.engine
        budget = engine.mixed_budget if engine.mixed_budget and r.decoding else engine.token_budget
        return r.policy.function(
            batching.BatchView(len(r.decoding), len(r.queue), int(r.prefilling is not None), budget, engine.max_batch)
        )

    def form(self, r, now):
        e = r.engine
        r.chunks = []
        self.before_form(r, now)
        r.start, seconds, preempted = now, 0.0, 0
        self.sending = 0.0
        left, decode, whole = self.ask(r)
        while True:
            out = 0
            if decode:
                out, more = self.prepare_decode(r)
                preempted += out
                seconds += more
            if not out:
                self.take_prompts(r, now, left, whole, growing=decode)
            if not r.chunks and not decode:
                left, decode = 0, True
            elif out and not r.decoding:
                left, decode, whole = self.ask(r)
            else:
                break
        self.before_step(r, now, decode)
        seconds += self.sending
        r.decodes = decode and bool(r.decoding)
        r.in_step = list(r.decoding) if r.decodes else []
        if not r.chunks and not r.decoding:
            r.end = None
            return
        r.peak = max(r.peak, r.used(growing=r.decodes))
        r.end = now + (r.cost(e.table.time, r.decodes) + seconds)
        r.energy_step = r.cost(e.table.energy, r.decodes) + seconds * e.idle_w

    def before_form(self, r, now):
        pass

    def before_step(self, r, now, decode):
        pass

    def prompt_done(self, r, s, now):
        """Return whether the request stays, to decode where its prompt was computed."""
        return True

    def gone(self, r, s, now):
        pass

    def borrow(self, r):
        """Return whether blocks of a decoding sequence could be sent away."""
        return False

    def place(self, r, s, growing):
        """Return whether the head of a prompt could be placed elsewhere."""
        return False

    def prepare_decode(self, r):
        count, seconds = 0, 0.0
        while r.used(growing=True) > r.engine.memory.capacity_bytes:
            if self.borrow(r):
                continue
            seconds += self.preempt(r)
            count += 1
        while not count and r.queue and r.queue[0].swapped and not r.full:
            s = r.queue[0]
            if r.used(growing=True) + r.size(s.cached + 1) > r.engine.memory.capacity_bytes:
                break
            r.queue.pop(0)
            s.swapped = False
            r.admitted.append(s)
            r.decoding.append(s)
            seconds += r.size(s.cached) / r.engine.memory.swap_bytes_per_s
        return count, seconds

    def preempt(self, r):
        lowest = max(s.priority for s in r.admitted)
        s = [s for s in r.admitted if s.priority == lowest][-1]
        r.admitted.remove(s)
        self.gone(r, s, self.now)
        s.preemptions += 1
        seconds = 0.0
        if s is r.prefilling:
            r.prefilling = None
        else:
            r.decoding.remove(s)
            if r.engine.preemption == "swap":
                s.swapped = True
                seconds = r.size(s.cached) / r.engine.memory.swap_bytes_per_s
            s.target = s.prompt + s.made
        s.done = 0
        at = 0
        while at < len(r.queue) and r.queue[at].priority < s.priority:
            at += 1
        r.queue.insert(at, s)
        return seconds

    def take_prompts(self, r, now, left, whole, *, growing):
        if r.prefilling and left > 0:
            s = r.prefilling
            chunk = s.target - s.done if whole else min(s.target - s.done, left)
            r.chunks.append((s, chunk))
            left -= chunk
            if s.done + chunk == s.target:
                r.prefilling = None
        while left > 0 and r.queue and not r.full and r.prefilling is None:
            s = r.queue[0]
            need = r.size(s.prompt + s.output - 1) if r.policy.reserve_output else r.size(s.target)
            rest = s.target - s.done
            if s.swapped or (whole and rest > left and r.chunks):
                break
            if r.used(growing) + need > r.engine.memory.capacity_bytes and not self.place(r, s, growing):
                break
            r.queue.pop(0)
            r.admitted.append(s)
            if math.isnan(s.scheduled):
                s.scheduled = now
            chunk = rest if whole else min(rest, left)
            r.chunks.append((s, chunk))
            left -= chunk
            if chunk < rest:
                r.prefilling = s

    def end_step(self, r, now):
        r.steps += 1
        r.busy += now - r.start
        r.energy += r.energy_step
        if r.decodes:
            for s in r.in_step:
                s.cached += 1
                self.token(r, s, now)
        for s, chunk in r.chunks:
            s.done += chunk
            if s.done == s.target:
                s.cached = s.target
                self.token(r, s, now)
        r.chunks = []
        if not r.decoding:
            r.held = []

    def token(self, r, s, now):
        s.made += 1
        if s.made == 1:
            s.first = now
        else:
            self.gaps.append(now - s.last)
        s.last = now
        if s.made < s.output:
            if s not in r.decoding and self.prompt_done(r, s, now):
                r.decoding.append(s)
            return
        s.finish = now
        self.finished.append((now, s))
        r.admitted.remove(s)
        self.gone(r, s, now)
        if s in r.decoding:
            r.decoding.remove(s)
        if r.policy.hold_slots:
            s.held = True
            r.held.append(s)

    def itl_counts(self):
        edges = itl_edges()
        counts = np.zeros(len(edges) - 1, np.int64)
        for gap in self.gaps:
            counts[min(max(int(np.searchsorted(edges, gap, side="right")) - 1, 0), len(counts) - 1)] += 1
        return counts


def _own(name):
    import importlib

    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)

"""The slow twin where replicas depend on each other: links, hand-over, prefix caches and live migration.

Every transfer keeps the bytes that it has left, every cache is a plain list of blocks, and nothing is remembered that
could be looked up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from reference import Stepper
from reference_lending import Lending

from sonde.policies import caching, migration, routing


@dataclass(eq=False)
class Transfer:
    what: str  # "cache", "fetch", "copy"
    sequence: object
    source: int
    target: int
    left: float
    tier: int = 0
    dropped: bool = False


@dataclass(eq=False)
class Link:
    spec: object
    at: float = 0.0
    active: list[Transfer] = field(default_factory=list)
    waiting: list[Transfer] = field(default_factory=list)
    landing: list[tuple[float, Transfer]] = field(default_factory=list)
    carried: float = 0.0

    def settle(self, now):
        for t in self.active:
            t.left -= (now - self.at) * self.spec.bytes_per_s / len(self.active)
        self.at = now

    def first(self):
        return min(self.active, key=lambda t: (t.left, t.sequence.index))

    def done(self):
        return self.at + self.first().left * len(self.active) / self.spec.bytes_per_s if self.active else math.inf

    def next(self):
        return min([self.done(), *(moment for moment, _ in self.landing[:1])])

    def carry(self, transfer, now):
        self.settle(now)
        self.carried += transfer.left
        (self.active if len(self.active) < self.spec.streams else self.waiting).append(transfer)

    def event(self):
        """Return the transfer that has landed, if one has."""
        now = self.next()
        if self.landing and self.landing[0][0] <= now:
            return self.landing.pop(0)[1]
        self.settle(now)
        done = self.first()
        self.active.remove(done)
        if self.waiting:
            self.active.append(self.waiting.pop(0))
        self.landing.append((now + self.spec.latency_s, done))
        return None


@dataclass(eq=False)
class Store:
    capacity: int
    ranks: dict[int, float] = field(default_factory=dict)
    floor: float = 0.0

    def put(self, block, rank):
        if self.capacity == 0:
            return
        if block not in self.ranks and len(self.ranks) == self.capacity:
            lowest = min(self.ranks, key=lambda b: (self.ranks[b], b))
            self.floor = max(self.floor, self.ranks.pop(lowest))
        self.ranks[block] = rank(self.floor)


@dataclass(eq=False)
class Move:
    """A sequence on its way from one replica to another, while it still decodes."""

    sequence: object
    source: int
    target: int
    tokens: int  # whose memory is taken at the target
    stage: int = 1
    leaving: bool = False
    transfer: Transfer | None = None


class PathStepper(Lending, Stepper):
    def __init__(self, requests, fleet, route, paths, seed=0):
        super().__init__(requests, fleet, route, seed)
        self.paths = paths
        counts = [count for _, count in fleet]
        self.first_stage = sum(counts[: paths.prefill]) if paths.prefill else sum(counts)
        self.second = routing.POLICIES[paths.routing].function
        self.links: list[Link] = []
        self.hand_over = self.add(paths.hand_over)
        self.migrate = self.add(paths.migration.link if paths.migration else None)
        tiers = paths.cache.tiers if paths.cache else ()
        self.tiers = [self.add(tier.link) for tier in tiers]
        self.stores = [self.build(tier, requests.block_tokens) for tier in tiers]
        self.uses: dict[int, int] = {}
        self.touches, self.loans = 0, 0
        start = float(requests.arrival_s[0])
        self.tick = start + paths.migration.interval_s if paths.migration else math.inf
        self.began = start
        self.leaving = []
        self.moves: dict[int, Move] = {}  # by the replica that sends
        self.pulls = {id(r): [] for r in self.replicas}
        self.landed = {id(r): [] for r in self.replicas}
        for r in self.replicas[self.first_stage if paths.prefill else 0 :]:
            r.lending = paths.lending
        for s in self.sequences:
            s.hit, s.landed, s.moves, s.source = 0, math.nan, 0, -1
            s.left, s.paused = None, 0.0
            s.most_lent = 0
            s.given = float(requests.arrival_s[s.index])

    def add(self, spec):
        if spec is None:
            return None
        made = [Link(spec) for _ in range(1 if spec.scope == "shared" else len(self.replicas))]
        self.links += made
        return made

    def way(self, links, source, target):
        return links[{"shared": 0, "source": source, "target": target}[links[0].spec.scope]]

    def build(self, tier, block_tokens):
        distinct = len(set(self.requests.block_hash.tolist()))

        def store(r):
            return Store(min(tier.capacity_bytes // max(r.size(block_tokens), 1), distinct))

        shared = store(self.replicas[0])
        return [shared if tier.shared else store(r) for r in self.replicas]

    def run(self, clients=None):
        if clients:
            self.began = 0.0
        if clients and self.paths.migration:
            self.tick = self.paths.migration.interval_s
        waiting = list(self.sequences)
        pending = [0.0] * clients if clients else []
        while True:
            if clients:
                arrival = pending[0] if pending and waiting else math.inf
            else:
                arrival = float(waiting[0].given) if waiting else math.inf
            ends = [r.end for r in self.replicas if r.end is not None]
            wakes = [r.wake for r in self.replicas if r.wake is not None]
            links = [link.next() for link in self.links]
            now = min([arrival, *ends, *wakes, *links], default=math.inf)
            if now == math.inf:
                return self
            self.now = now = min(now, self.tick)
            self.finished.clear()
            before = self.could_lend()
            if now in ends:
                r = next(r for r in self.replicas if r.end == now)
                self.end_step(r, now)
                self.form(r, now)
                self.pass_on(now)
            elif now in links:
                landed = self.links[links.index(now)].event()
                if landed is not None:
                    self.land(landed, now)
            elif now == self.tick:
                self.look_at_memory(now)
                self.tick += self.paths.migration.interval_s
            elif now == arrival:
                if clients:
                    pending.pop(0)
                self.send(waiting.pop(0), now)
            else:
                r = next(r for r in self.replicas if r.wake == now)
                r.wake = None
                self.form(r, now)
                self.pass_on(now)
            if self.paths.lending and any(a > b for a, b in zip(self.could_lend(), before, strict=True)):
                for r in self.lenders():
                    if r.queue:
                        self.stir(r, now)
            if clients:
                pending += [moment for moment, _ in self.finished]

    # what a router sees

    def used(self, r):
        return r.used(growing=r.end is not None and r.decodes)

    def coming(self, r):
        """Sequences on their way to replica `r`, or waiting to set out."""
        at = self.replicas.index(r)
        return [s for s in self.sequences if getattr(s, "towards", -1) == at]

    def view(self, first, end, s=None):
        classes = int(self.requests.priority.max()) + 1
        columns = []
        for n, r in enumerate(self.replicas):
            coming = self.coming(r)
            arriving = [x for x in coming if not x.fetching]
            hit = min(self.found(n, s) * self.requests.block_tokens, s.prompt - 1) if s and n < self.first_stage else 0
            moving = (n in self.moves) + sum(1 for t in self.guests(n))
            memory = r.engine.memory
            columns.append((
                len(r.queue) + len(coming), self.left(r), len(r.admitted),
                sum(x.cached for x in [*r.decoding, *r.held]) + sum(x.cached for x in arriving), self.used(r),
                memory.capacity_bytes, hit, r.queue[0].target if r.queue else 0,
                classes > 1 and any(x.priority == 0 for x in r.admitted), moving,
                max(1, memory.block_bytes // memory.block_tokens),
            ))  # fmt: skip
        return routing.PoolView(*(np.array(c[first:end], np.int64) for c in zip(*columns, strict=True)))

    def guests(self, n):
        """What migrates to replica `n`: still decoding elsewhere, given up but not yet landed, or on its last leg."""
        still = [m for m in self.moves.values() if m.target == n]
        legs = [t for link in self.links for t in self.under_way(link) if t.target == n and t.what in ("last", "copy")]
        return still + [t for t in legs if t.what == "last" or t.dropped]

    @staticmethod
    def under_way(link):
        return [*link.active, *link.waiting, *(t for _, t in link.landing)]

    def pick(self, route, s, now, first, end):
        d = self.draws[s.index]
        view = self.view(first, end, s if self.paths.cache else None)
        r = first + route(view, routing.RequestView(s.index, now, s.prompt, s.priority, s.session, d[0], d[1]))
        if not self.fits(r, s):
            able = [n for n in range(first, end) if self.fits(n, s)]
            if not able:
                return -1
            r = min(able, key=lambda n: len(self.replicas[n].queue) + len(self.coming(self.replicas[n]))
                    + len(self.replicas[n].admitted))  # fmt: skip
        return r

    def fits(self, n, s):
        r, spec = self.replicas[n], self.paths.lending
        most = r.engine.memory.capacity_bytes
        if spec and not self.paths.prefill:
            spare = max(x.engine.memory.capacity_bytes for x in self.replicas if x is not r) - spec.reserve_bytes
            most += max(spare, 0) // r.engine.memory.block_bytes * r.engine.memory.block_bytes
        tokens = s.prompt if self.first_stage < len(self.replicas) and n < self.first_stage else s.prompt + s.output - 1
        return r.size(tokens) <= most

    # arrival, and prefix caches

    def send(self, s, now):
        s.arrival, s.fetching = now, False
        n = self.pick(self.route, s, now, 0, self.first_stage)
        last = len(self.replicas)
        if self.first_stage < last and s.output > 1:
            n = n if any(self.fits(k, s) for k in range(self.first_stage, last)) else -1
        s.replica = n
        if n < 0:
            self.finished.append((now, s))
            return
        s.target = s.prompt
        if self.tiers:
            blocks = self.blocks(s)[: self.found(n, s)]
            where = [next(t for t, stores in enumerate(self.stores) if b in stores[n].ranks) for b in blocks]
            s.hit = s.done = min(len(blocks) * self.requests.block_tokens, s.prompt - 1)
            s.to_fetch = [(t, where.count(t)) for t in range(1, len(self.tiers)) if t in where]
            if s.to_fetch:
                s.fetching, s.towards = True, n
                self.fetch(s, n, now)
                return
        self.wait(s, n, now)

    def wait(self, s, n, now):
        r = self.replicas[n]
        at = len(r.queue)
        while at > 0 and r.queue[at - 1].priority > s.priority:
            at -= 1
        r.queue.insert(at, s)
        self.stir(r, now)

    def stir(self, r, now):
        if r.end is None and r.wake is None:
            r.wake = now

    def blocks(self, s):
        start = self.requests.block_start
        return self.requests.block_hash[start[s.index] : start[s.index + 1]].tolist()

    def found(self, n, s):
        count = 0
        for b in self.blocks(s):
            if not any(b in stores[n].ranks for stores in self.stores):
                break
            count += 1
        return count

    def fetch(self, s, n, now):
        tier, count = s.to_fetch.pop(0)
        size = count * self.replicas[n].size(self.requests.block_tokens)
        self.way(self.tiers[tier], n, n).carry(Transfer("fetch", s, n, n, float(size), tier), now)

    def keep(self, n, s):
        r, tokens = self.replicas[n], self.requests.block_tokens
        blocks = self.blocks(s)
        for b in blocks:
            self.uses[b] = self.uses.get(b, 0) + 1
        function = caching.POLICIES[self.paths.cache.eviction]
        table = r.engine.table.time
        for stores in self.stores:
            if stores[n].capacity == 0:
                continue
            for j in range(len(blocks) - 1, -1, -1):
                self.touches += 1
                depth = j * tokens
                seconds = table.linear[min(tokens, len(table.linear) - 1)] + table.prefill * (
                    tokens * (depth + tokens / 2)
                )
                before = stores[n].floor  # ranked before a block is given up for it

                def rank(_, b=blocks[j], depth=depth, seconds=seconds, before=before):
                    return function(caching.BlockView(self.touches, depth, self.uses[b], before, seconds))

                stores[n].put(blocks[j], rank)

    # hand-over

    def prompt_done(self, r, s, now):
        n = self.replicas.index(r)
        if self.first_stage == len(self.replicas) or n >= self.first_stage:
            return True
        r.admitted.remove(s)
        r.outside[s.index] = s.target
        self.leaving.append(s)
        return False

    def end_step(self, r, now):
        n = self.replicas.index(r)
        if self.tiers and n < self.first_stage:
            for s, chunk in r.chunks:
                if s.done + chunk == s.target:
                    self.keep(n, s)
        super().end_step(r, now)

    def pass_on(self, now):
        for s in self.leaving:
            n = self.pick(self.second, s, now, self.first_stage, len(self.replicas))
            s.source, s.towards, s.replica = s.replica, n, n
            r = self.replicas[n]
            self.pulls[id(r)].append(s)
            if r.end is None and r.wake is None:
                self.pull(r, now)
        self.leaving = []

    def pull(self, r, now, growing=False):
        waiting, n = self.pulls[id(r)], self.replicas.index(r)
        while waiting and not r.full:
            s = waiting[0]
            if r.used(growing) + r.size(s.target) > r.engine.memory.capacity_bytes:
                break
            waiting.pop(0)
            r.outside[s.index] = s.target
            r.places += 1
            r.peak = max(r.peak, r.used(growing))
            size = float(self.replicas[s.source].size(s.target))
            link = self.way(self.hand_over, s.source, n)
            if self.paths.layers:
                rate = link.spec.bytes_per_s
                could = min(rate * (s.first - s.scheduled), rate * (now - self.began) - link.carried)
                left = max(size / self.paths.layers, size - max(could, 0.0))
                link.carried += size - left
                size = left
            link.carry(Transfer("cache", s, s.source, n, size), now)

    def land(self, t, now):
        s = t.sequence
        if t.what == "fetch":
            if s.to_fetch:
                self.fetch(s, t.target, now)
            else:
                s.towards, s.fetching = -1, False
                self.wait(s, t.target, now)
        elif t.what == "copy":
            self.copied(t, now)
        else:
            source, r = self.replicas[t.source], self.replicas[t.target]
            del source.outside[s.index]
            self.look_again(source, now)
            s.landed = now
            self.landed[id(r)].append(s)
            self.stir(r, now)

    def look_again(self, r, now):
        if r.queue or self.pulls[id(r)]:
            self.stir(r, now)

    def before_form(self, r, now):
        n = self.replicas.index(r)
        if n in self.moves and self.moves[n].leaving:
            self.depart(n, now)
        for s in self.landed[id(r)]:
            del r.outside[s.index]
            r.places -= 1
            r.admitted.append(s)
            r.decoding.append(s)
            s.towards = -1
            if s.left is not None:
                s.paused, s.left = s.paused + (now - s.left), None
        self.landed[id(r)] = []

    def before_step(self, r, now, decode):
        self.pull(r, now, growing=decode)

    # live migration

    def look_at_memory(self, now):
        m = self.paths.migration
        first = self.first_stage if self.first_stage < len(self.replicas) else 0
        view = self.view(0, len(self.replicas))
        for _ in range(first, len(self.replicas)):
            a, b = migration.POLICIES[m.policy](view, migration.Thresholds(m.low, m.high, m.headroom_bytes, first))
            if a < 0:
                break
            if a not in self.moves:
                self.begin(a, b, now)
            view.moving[a] += 1
            view.moving[b] += 1

    def begin(self, a, b, now):
        source, target = self.replicas[a], self.replicas[b]
        busy = {id(t.sequence) for link in self.links for t in self.under_way(link)}
        able = [s for s in source.decoding if id(s) not in busy and not s.lent]
        if not able or target.full:
            return
        lowest = max(s.priority for s in able)
        s = min((s for s in able if s.priority == lowest), key=lambda s: (s.cached, s.index))
        if target.size(s.prompt + s.output - 1) > target.engine.memory.capacity_bytes:
            return
        if not self.take(target, s, s.cached, now):
            return
        target.places += 1
        move = self.moves[a] = Move(s, a, b, s.cached)
        self.copy(move, float(source.size(s.cached)), now)

    def take(self, r, s, tokens, now):
        held = r.outside.pop(s.index, None)
        fits = self.used(r) + r.size(tokens) <= r.engine.memory.capacity_bytes
        if fits or held is not None:
            r.outside[s.index] = tokens if fits else held
        r.peak = max(r.peak, self.used(r))
        return fits

    def copy(self, move, size, now):
        move.transfer = Transfer("copy", move.sequence, move.source, move.target, size)
        self.way(self.migrate, move.source, move.target).carry(move.transfer, now)

    def copied(self, t, now):
        if t.dropped:
            self.turn_away(t.sequence, t.target, now)
            return
        move, m = self.moves[t.source], self.paths.migration
        move.transfer = None
        s, source = move.sequence, self.replicas[move.source]
        if s.cached - move.tokens <= m.tail_tokens or move.stage >= m.copies:
            move.leaving = True
        elif not self.take(self.replicas[move.target], s, s.cached, now):
            self.drop(move, now)
        else:
            size = float(source.size(s.cached) - source.size(move.tokens))
            move.tokens = s.cached
            move.stage += 1
            self.copy(move, size, now)

    def gone(self, r, s, now):
        n = self.replicas.index(r)
        if s.lent:
            s.creditor.guests.remove(s)
            s.lent = 0
            self.look_again(s.creditor, now)
        if n in self.moves and self.moves[n].sequence is s:
            self.drop(self.moves[n], now)

    def drop(self, move, now):
        del self.moves[move.source]
        if move.transfer is None:
            self.turn_away(move.sequence, move.target, now)
        else:
            move.transfer.dropped = True

    def turn_away(self, s, n, now):
        r = self.replicas[n]
        del r.outside[s.index]
        r.places -= 1
        self.look_again(r, now)

    def depart(self, n, now):
        move = self.moves[n]
        s, source, target = move.sequence, self.replicas[n], self.replicas[move.target]
        if not self.take(target, s, s.cached, now):
            self.drop(move, now)
            return
        source.decoding.remove(s)
        source.admitted.remove(s)
        del self.moves[n]
        source.outside[s.index] = s.cached
        s.left = now
        s.replica, s.towards, s.target, s.moves = move.target, move.target, s.cached, s.moves + 1
        size = float(source.size(s.cached) - source.size(move.tokens))
        self.way(self.migrate, n, move.target).carry(Transfer("last", s, n, move.target, size), now)

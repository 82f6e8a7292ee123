"""The slow twin of lending: blocks of a cache that lie at another replica, which attends to them."""

from __future__ import annotations


class Lending:
    """The part of a stepper that lends: mixed into `PathStepper`."""

    def lenders(self):
        return [r for r in self.replicas if r.lending]

    def could_lend(self):
        """What every replica could lend, and has for itself."""
        keep = self.paths.lending.reserve_bytes if self.paths.lending else 0
        return [self.room(r, keep) for r in self.lenders()] + [-self.used(r) for r in self.lenders()]

    def room(self, r, keep):
        if r.queue and r.admitted:
            return 0
        memory = r.engine.memory
        return max(memory.capacity_bytes - keep - self.used(r), 0) // memory.block_bytes

    def lender(self, r, keep):
        others = [x for x in self.lenders() if x is not r]
        return max(others, key=lambda x: self.room(x, keep))

    def borrow(self, r):
        if not r.lending:
            return False
        c, memory = self.lender(r, 0), r.engine.memory
        short = -(-(r.used(growing=True) - memory.capacity_bytes) // memory.block_bytes)
        busy = {id(t.sequence) for link in self.links for t in self.under_way(link)}
        busy |= {id(move.sequence) for move in self.moves.values()}
        able = [s for s in r.decoding if id(s) not in busy and (not s.lent or s.creditor is c)]
        if not able or self.room(c, 0) < 1:
            return False
        s = min(able, key=lambda s: (s.lent - s.cached // memory.block_tokens, s.index))
        blocks = min(short, s.cached // memory.block_tokens - s.lent, self.room(c, 0))
        if blocks < 1:
            return False
        self.lend(s, c, blocks)
        return True

    def place(self, r, s, growing):
        if not r.lending:
            return False
        keep = r.lending.reserve_bytes
        c, memory = self.lender(r, keep), r.engine.memory
        blocks = -(-(r.used(growing) + r.size(s.target) - memory.capacity_bytes) // memory.block_bytes)
        if blocks > s.target // memory.block_tokens or blocks > self.room(c, keep):
            return False
        self.lend(s, c, blocks)
        return True

    def lend(self, s, c, blocks):
        link = c.lending.link
        s.lent += blocks
        s.most_lent = max(s.most_lent, s.lent)
        s.creditor = c
        if s not in c.guests:
            c.guests.append(s)
        c.peak = max(c.peak, self.used(c))
        self.loans += 1
        self.sending += link.latency_s + blocks * c.engine.memory.block_bytes / link.bytes_per_s

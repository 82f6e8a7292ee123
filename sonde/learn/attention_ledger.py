"""Who lends which blocks to whom: each owner keeps the truth of its own, a manager an old copy of all of it.

A debtor asks the manager who seems to have blocks free, and then that owner for them: the manager's copy is as old as
the last heartbeat, and only the owner grants. An owner that needs blocks back asks for them, and has them when the
debtor has moved what was there (Infinite-LLM's rManager and gManager, arXiv 2401.02669).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Owner:
    """An owner of blocks, and who has each: nobody (-1), itself, or another. Only it hands its blocks out."""

    def __init__(self, number: int, blocks: int) -> None:
        self.number = number
        self.holder = [-1] * blocks
        self.wanted: set[int] = set()  # blocks that it has asked back

    @property
    def free(self) -> int:
        """Return how many blocks nobody has."""
        return self.holder.count(-1)

    def grant(self, to: int, count: int) -> list[int]:
        """Return up to `count` blocks that are `to`'s from now on: of those that are free, the first."""
        found = [block for block, has in enumerate(self.holder) if has < 0][:count]
        for block in found:
            self.holder[block] = to
        return found

    def release(self, by: int, block: int) -> None:
        """Take a block back from who has it; raises ValueError where another has."""
        if self.holder[block] != by:
            raise ValueError(f"block {block} of {self.number} is held by {self.holder[block]}, not by {by}")
        self.holder[block] = -1
        self.wanted.discard(block)

    def reclaim(self, count: int) -> list[tuple[int, int]]:
        """Ask for up to `count` blocks back that others have: (block, who has it). They stay theirs until released."""
        asked = [(block, has) for block, has in enumerate(self.holder) if has not in (-1, self.number)]
        asked = [it for it in asked if it[0] not in self.wanted][:count]
        self.wanted |= {block for block, _ in asked}
        return asked


class Manager:
    """The ledger of everyone's free blocks, as old as each owner's last heartbeat."""

    def __init__(self, owners: int) -> None:
        self.free = [0] * owners

    def heartbeat(self, owner: Owner) -> None:
        """Write down what an owner has free now."""
        self.free[owner.number] = owner.free

    def lender(self, debtor: int) -> int:
        """Return who seems to have the most blocks free, beside the debtor; -1 where nobody seems to have any."""
        others = [(-free, number) for number, free in enumerate(self.free) if number != debtor and free > 0]
        return min(others)[1] if others else -1


class Told(NamedTuple):
    """What a drawn run came to: blocks lent, given back when asked, wishes refused, and blocks that two write to."""

    lent: int
    reclaimed: int
    refused: int
    twice: int


def played(seed: int, steps: int, *, ask_owner: bool, every: int, owners: int = 4, blocks: int = 16) -> Told:
    """Return what comes of drawn demands on owners that send a heartbeat every so many steps.

    Without `ask_owner` debtors take blocks by the ledger alone, the lowest that were free when it was written: what the
    protocol is there to prevent.
    """
    game = Game(seed, owners, blocks, ask_owner)
    for step in range(steps):
        if step % every == 0:
            game.heartbeats()
        me, kind = int(game.draws.integers(owners)), game.draws.random()
        if kind < 0.45:
            game.borrow(me)
        elif kind < 0.6:
            game.take_own(me)
        elif kind < 0.8:
            game.give_back()
        else:
            game.end(me)
    return Told(game.lent, game.back, game.refused, game.twice)


class Game:
    """Owners, their manager, and who writes to which block: two writers of one are what must never be."""

    def __init__(self, seed: int, owners: int, blocks: int, ask_owner: bool) -> None:
        self.draws, self.ask_owner = np.random.default_rng(seed), ask_owner
        self.parties, self.ledger = [Owner(i, blocks) for i in range(owners)], Manager(owners)
        self.written: list[list[int]] = [[] for _ in self.parties]
        self.writers: dict[tuple[int, int], list[int]] = {}
        self.pending: list[tuple[int, int, int]] = []
        self.lent = self.back = self.refused = self.twice = 0

    def heartbeats(self) -> None:
        """Bring the ledger up to date."""
        for one in self.parties:
            self.ledger.heartbeat(one)
            self.written[one.number] = [block for block, has in enumerate(one.holder) if has < 0]

    def write(self, by: int, at: int, block: int) -> None:
        """Let `by` write to a block of `at`."""
        who = self.writers.setdefault((at, block), [])
        self.twice += bool(who)
        who.append(by)

    def free(self, by: int, at: int, block: int) -> None:
        """Let `by` write no more to a block of `at`, and say so to its owner."""
        self.writers[at, block].remove(by)
        self.parties[at].release(by, block)

    def borrow(self, me: int) -> None:
        """Let `me` borrow a few blocks of who seems to have the most."""
        at, count = self.ledger.lender(me), int(self.draws.integers(1, 5))
        if at < 0:
            return
        got = self.parties[at].grant(me, count) if self.ask_owner else self.written[at][:count]
        self.refused += not got
        self.lent += len(got)
        for block in got:
            self.parties[at].holder[block] = me
            self.write(me, at, block)

    def take_own(self, me: int) -> None:
        """Let `me` take a few of its own blocks, or ask for two back where it has none."""
        own = self.parties[me].grant(me, int(self.draws.integers(1, 4)))
        for block in own:
            self.write(me, me, block)
        if not own:
            self.pending += [(me, block, has) for block, has in self.parties[me].reclaim(2)]

    def give_back(self) -> None:
        """Let the debtor that was asked first give its block back, unless it has already."""
        if self.pending:
            at, block, has = self.pending.pop(0)
            if self.parties[at].holder[block] == has and has in self.writers[at, block]:
                self.free(has, at, block)
                self.back += 1

    def end(self, me: int) -> None:
        """Let a sequence of `me` end, and free up to five blocks that it wrote to."""
        mine = [place for place, who in self.writers.items() if me in who]
        mine = [(at, block) for at, block in mine if self.parties[at].holder[block] == me]
        for at, block in mine[: int(self.draws.integers(1, 6))]:
            self.free(me, at, block)

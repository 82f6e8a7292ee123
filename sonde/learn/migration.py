"""Workers that decode over paged caches and hand running sequences to each other over sockets, while they decode.

Each worker is a process. A migration asks for memory at the other end, copies the cache in stages while tokens go on
being made, takes the sequence out of its batch for the rest, and gives the memory back once the other has it. What
is drawn for a token depends on its sequence and place alone, so that the text is the same wherever it is written.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sonde.learn.decoder import Decoder, Shape
from sonde.learn.pipeline import PATIENCE
from sonde.learn.serving import PAGE, Pages, Span, hybrid

#: copied in stages while it decodes; stopped and copied whole; stopped and computed anew at the other end;
#: copied in stages of which the first is lost
Way = Literal["live", "stop", "recompute", "lost"]
STAGES = 3
#: columns of the board: what a router and a migration policy see of a worker, in tokens
QUEUED, HEAD, RUNNING, HELD, USED, CAPACITY, MOVING = range(7)
_FRAME = struct.Struct("!cqq")


class Move(NamedTuple):
    """Sequence `number` (-1: the shortest that runs) goes to the worker at `port` once it has `after` tokens."""

    number: int
    port: int
    way: Way
    after: int = 0


@dataclass(eq=False)
class Sequence:
    """A text at work: how many tokens of it are cached, and when (s) each token that was added was made."""

    number: int
    prompt: list[int]
    outputs: int
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)  # tokens made before each move
    cached: int = 0
    move: Move | None = None
    leaving: bool = False
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def text(self) -> list[int]:
        """Return the prompt and what has been added."""
        return [*self.prompt, *self.tokens]

    @property
    def over(self) -> bool:
        """Return whether the last token has been made."""
        return len(self.tokens) == self.outputs


def drawn(row: Tensor, number: int, place: int) -> int:
    """Return a token drawn by its probability, the same for a sequence and a place in it."""
    draws = torch.Generator().manual_seed(100_003 * number + place)
    return int(torch.multinomial(row.softmax(-1), 1, generator=draws))


class Station:
    """A worker: sequences that wait, that decode, that leave and that come."""

    def __init__(self, model: Decoder, pages: int, pipe: Any, board: Tensor) -> None:
        self.model, self.pipe, self.board, self.ended = model, pipe, board, False
        self.pages = Pages(model.shape, pages)
        self.lock = threading.Lock()
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.moving = 0
        board[CAPACITY] = pages * PAGE
        self.door = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._welcome, daemon=True).start()
        pipe.send(("port", self.door.getsockname()[1]))

    def run(self) -> None:
        """Work until the parent says that it is over, or is gone."""
        while not self.ended:
            while self.pipe.poll(0.0 if self.running or self.waiting else 0.001):
                self._hear(*self.pipe.recv())
            with self.lock:
                spans, chosen = self._schedule()
            if spans:
                self._step(spans, chosen)
            with self.lock:
                self._tell()

    def _hear(self, what: str, said: Any) -> None:
        if what == "job":
            self.waiting.append(Sequence(*said))
        elif what == "move":
            for sequence in sorted([*self.running, *self.waiting], key=lambda s: len(s.text)):
                if said.number == sequence.number or (said.number < 0 and sequence in self.running):
                    sequence.move = said
                    return
        else:
            self.ended = True

    def _schedule(self) -> tuple[list[Span], list[Sequence]]:
        """Let go what leaves; return the next step: a whole prompt that has memory, else a token of all that decode."""
        for sequence in [s for s in self.running if s.leaving]:
            self.running.remove(sequence)
            sequence.left.set()
        chosen = self.running
        if self.waiting:
            first = self.waiting[0]
            need = len(first.prompt) + first.outputs
            if first.number in self.pages.slots or self.pages.take(first.number, need):
                chosen = [self.waiting.pop(0)]
                self.running.append(chosen[0])
        chosen = list(chosen)
        return [Span(s.number, s.cached, len(s.text) - s.cached) for s in chosen], chosen

    def _step(self, spans: list[Span], chosen: list[Sequence]) -> None:
        """Compute a step: every sequence in it gets its next token."""
        rows = hybrid(self.model, self.pages, torch.tensor([t for s in chosen for t in s.text[s.cached :]]), spans)
        now = time.monotonic()
        for sequence, row in zip(chosen, rows, strict=True):
            sequence.cached = len(sequence.text)
            sequence.tokens.append(drawn(row, sequence.number, sequence.cached))
            sequence.times.append(now)
            move = sequence.move
            if sequence.over:
                self._finish(sequence)
            elif move is not None and len(sequence.tokens) >= move.after and not sequence.leaving:
                sequence.move = None
                self.moving += 1
                threading.Thread(target=self._send, args=(sequence, move), daemon=True).start()

    def _finish(self, sequence: Sequence) -> None:
        with self.lock:
            self.running.remove(sequence)
            self.pages.give(sequence.number)
        sequence.left.set()
        self.pipe.send(("done", (sequence.number, sequence.tokens, sequence.times, sequence.moved)))

    def _tell(self) -> None:
        """Write on the board what there is, for the parent to see."""
        head = len(self.waiting[0].prompt) + self.waiting[0].outputs if self.waiting else 0
        used = sum(len(pages) for pages in self.pages.held.values()) * PAGE
        held = sum(s.cached for s in self.running)
        for at, value in enumerate((len(self.waiting), head, len(self.running), held, used)):
            self.board[at] = value
        self.board[MOVING] = self.moving

    # leaving

    def _send(self, sequence: Sequence, move: Move) -> None:
        """Migrate a sequence, from a thread of its own: the worker goes on with its steps."""
        try:
            with socket.create_connection(("127.0.0.1", move.port), timeout=PATIENCE) as link, torch.inference_mode():
                link.sendall(_FRAME.pack(b"P", sequence.number, len(sequence.prompt) + sequence.outputs))
                if link.recv(1) == b"Y":
                    self._stages(link, sequence, move.way)
        finally:
            self.moving -= 1

    def _stages(self, link: socket.socket, sequence: Sequence, way: Way) -> None:
        copied, stages = 0, STAGES if way in ("live", "lost") else 0
        for stage in range(stages):
            held = sequence.cached
            if not self._copy(link, sequence, copied, held, lost=way == "lost" and stage == 0):
                break
            copied = held
            if sequence.cached - copied <= PAGE:
                break
        sequence.leaving = True
        sequence.left.wait(PATIENCE)
        if sequence.over:
            link.sendall(_FRAME.pack(b"A", sequence.number, 0))
            return
        if way != "recompute":
            self._copy(link, sequence, copied, sequence.cached)
        state = json.dumps({
            "prompt": sequence.prompt, "outputs": sequence.outputs, "tokens": sequence.tokens, "times": sequence.times,
            "moved": [*sequence.moved, len(sequence.tokens)], "cached": 0 if way == "recompute" else sequence.cached,
        }).encode()  # fmt: skip
        link.sendall(_FRAME.pack(b"S", sequence.number, len(state)) + state)
        link.recv(1)
        with self.lock:
            self.pages.give(sequence.number)

    def _copy(self, link: socket.socket, sequence: Sequence, start: int, end: int, *, lost: bool = False) -> bool:
        """Send the cache of tokens `start` to `end`; return False where the sequence has ended and it is gone."""
        with self.lock:
            slots = self.pages.slots.get(sequence.number)
        if slots is None:
            return False
        if start == end:
            return True
        at = slots[start:end]
        block = torch.stack((self.pages.keys[:, at], self.pages.values[:, at]))
        if lost:
            block.zero_()
        link.sendall(_FRAME.pack(b"C", start, end))
        link.sendall(block.numpy().data.cast("B"))
        return True

    # coming

    def _welcome(self) -> None:
        while True:
            link, _ = self.door.accept()
            threading.Thread(target=self._receive, args=(link,), daemon=True).start()

    def _receive(self, link: socket.socket) -> None:
        """Take in a sequence that comes: memory first, then its cache in stages, then itself."""
        with link, torch.inference_mode():
            link.settimeout(PATIENCE)
            _, number, tokens = _FRAME.unpack(_all(link, _FRAME.size))
            with self.lock:
                room = self.pages.take(number, tokens)
            link.sendall(b"Y" if room else b"N")
            while room:
                kind, start, end = _FRAME.unpack(_all(link, _FRAME.size))
                if kind == b"C":
                    self._keep(link, number, start, end)
                    continue
                with self.lock:
                    if kind == b"A":
                        self.pages.give(number)
                        return
                    sequence = Sequence(number, **json.loads(_all(link, end)))
                    if sequence.cached:
                        self.running.append(sequence)
                    else:
                        self.waiting.insert(0, sequence)
                link.sendall(b"K")
                return

    def _keep(self, link: socket.socket, number: int, start: int, end: int) -> None:
        """Write what comes into the pages of tokens `start` to `end`."""
        keys = self.pages.keys
        shape = (2, len(keys), end - start, *keys.shape[2:])
        size = 2 * len(keys) * (end - start) * keys[0, 0].numel() * keys.element_size()
        block = torch.frombuffer(_all(link, size), dtype=keys.dtype).view(shape)
        at = self.pages.slots[number][start:end]
        self.pages.keys[:, at], self.pages.values[:, at] = block[0], block[1]


def _all(link: socket.socket, size: int) -> bytearray:
    """Return the next `size` bytes."""
    found = bytearray(size)
    view, got = memoryview(found), 0
    while got < size:
        count = link.recv_into(view[got:])
        if count == 0:
            raise ConnectionError("the other end is gone")
        got += count
    return found


def station(shape: Shape, seed: int, pages: int, pipe: Any, board: Tensor) -> None:
    """Work in this process, with a decoder whose weights `seed` draws, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Decoder(shape).eval()
    with torch.inference_mode():
        Station(model, pages, pipe, board).run()

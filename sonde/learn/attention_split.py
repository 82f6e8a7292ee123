"""Attention over a cache that lies in several processes: queries go out, partial results come back, never the cache.

Every process has the weights and keeps keys and values of its own part of the context, which it computes itself. Where
it attends to earlier parts it sends its queries to the processes that hold them, and merges what they return: of part
j, with scores s, m_j = max s, e_j = Σ exp(s - m_j), o_j = Σ exp(s - m_j)·V; together Σ o_j·exp(m_j - m) over
Σ e_j·exp(m_j - m) (Lin et al., Infinite-LLM, arXiv 2401.02669). Memory of a process is limited by the system.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from multiprocessing.connection import wait as any_of
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, multiprocessing

from sonde.errors import CannotError
from sonde.learn.decoder import Cache, Decoder, Shape, angles, turned
from sonde.learn.pipeline import PATIENCE, workers
from sonde.learn.study import one_thread

SHAPE = Shape(layers=4, hidden=512, heads=8, inner=1024)
BLOCK = 32  # tokens that are computed at a time, and whose memory is taken at once
SHARPER = 3.0  # factor on queries and keys: as drawn, attention would look at everything alike

Part = tuple[Tensor, Tensor, Tensor]


class Split(NamedTuple):
    """What came of a context in several processes.

    logits   of the last token of the context, and of each that was decoded [1 + decoded, vocabulary]; None: no memory
    sent     bytes of queries and of partial results that went between processes for what was decoded
    before   the same for the context
    cache    bytes of keys and values of as much of the context as there was memory for
    """

    logits: Tensor | None
    sent: int
    before: int
    cache: int


def decoder(seed: int) -> Decoder:
    """Return a decoder with weights drawn by the seed, whose attention is sharper than drawn weights make it."""
    torch.manual_seed(seed)
    model = Decoder(SHAPE).eval()
    with torch.no_grad():
        for block in _blocks(model):
            block.qkv.weight[: 2 * SHAPE.hidden] *= SHARPER
    return model


def _blocks(model: Decoder) -> list[Any]:
    return list(model.blocks)


def partial(q: Tensor, keys: Tensor, values: Tensor, seen: int | None = None) -> Part:
    """Return (o [h, t, d], m [h, t], e [h, t]) of queries [h, t, d] over keys and values [h, n, d].

    `seen`: the first query sees so many of them, each that follows one more; None: all see all.
    """
    scores = q @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
    if seen is not None:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(seen)
        scores = scores.masked_fill(hidden, -torch.inf)
    m = scores.amax(-1)
    weights = (scores - m[..., None]).exp()
    return weights @ values, m, weights.sum(-1)


def merged(parts: Sequence[Part]) -> Tensor:
    """Return attention [h, t, d] over everything that the parts are of."""
    m = torch.stack([part[1] for part in parts]).amax(0)
    shares = [(part[1] - m).exp() for part in parts]
    total = sum(part[2] * share for part, share in zip(parts, shares, strict=True))
    out: Tensor = sum(part[0] * share[..., None] for part, share in zip(parts, shares, strict=True)) / total[..., None]  # type: ignore[index]
    return out


class Holder:
    """One process' part of a context: keys and values of every layer, in blocks."""

    def __init__(self, model: Decoder, earlier: Sequence[Any]) -> None:
        self.model, self.earlier = model, earlier
        self.blocks: list[Tensor] = []  # [layers, 2, heads, BLOCK, dim] each
        self.used = 0
        self.sent = 0

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        """Return logits of the last of the tokens, which begin at `start` and lie in one block."""
        heads, dim = SHAPE.heads, SHAPE.hidden // SHAPE.heads
        if self.used % BLOCK == 0:
            self.blocks.append(torch.zeros(SHAPE.layers, 2, heads, BLOCK, dim))
        turn = angles(start, len(tokens), dim)
        x = self.model.embedding(tokens)
        at = self.used % BLOCK
        for layer, block in enumerate(_blocks(self.model)):
            q, k, v = block.qkv(block.norms[0](x)).view(len(tokens), 3, heads, dim).permute(1, 2, 0, 3)
            q, k = turned(q, turn), turned(k, turn)
            self.blocks[-1][layer, 0, :, at : at + len(tokens)] = k
            self.blocks[-1][layer, 1, :, at : at + len(tokens)] = v
            mixed = self.attend(layer, q, at)
            x = x + block.out(mixed.transpose(0, 1).reshape(len(tokens), -1))
            x = x + block.feed(block.norms[1](x))
        self.used += len(tokens)
        logits: Tensor = self.model.head(self.model.norm(x[-1]))
        return logits

    def attend(self, layer: int, q: Tensor, at: int) -> Tensor:
        """Return attention of queries over all that is held here and in earlier processes."""
        for other in self.earlier:
            other.send(("part", layer, q.numpy()))
            self.sent += q.numpy().nbytes
        here = [partial(q, block[layer, 0], block[layer, 1]) for block in self.blocks[:-1]]
        last = self.blocks[-1][layer, :, :, : at + q.shape[1]]
        parts = [*here, partial(q, last[0], last[1], at + 1)]
        for other in self.earlier:
            found = [torch.from_numpy(it) for it in _heard(other)]
            self.sent += sum(it.numpy().nbytes for it in found)
            parts.append((found[0], found[1], found[2]))
        return merged(parts)

    def asked(self, layer: int, q: Tensor) -> Part:
        """Return the partial result of another process' queries over what is held here."""
        parts = [partial(q, block[layer, 0], block[layer, 1]) for block in self.blocks]
        m = torch.stack([part[1] for part in parts]).amax(0)
        shares = [(part[1] - m).exp() for part in parts]
        o = torch.stack([part[0] * share[..., None] for part, share in zip(parts, shares, strict=True)]).sum(0)
        e = torch.stack([part[2] * share for part, share in zip(parts, shares, strict=True)]).sum(0)
        return o, m, e


def serve(weights: dict[str, Tensor], parent: Any, earlier: Sequence[Any], later: Sequence[Any], budget: int) -> None:
    """Hold a part of a context in this process, which may take `budget` bytes more than it has when it is ready."""
    torch.set_num_threads(1)
    model = Decoder(SHAPE).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        Holder(model, ()).forward(torch.zeros(BLOCK, dtype=torch.long), 0)  # everything is loaded before it is limited
        if budget:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + budget
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        holder = Holder(model, earlier)
        parent.send("ready")
        while True:
            heard = any_of([parent, *later], PATIENCE)
            for connection in heard:
                _answer(connection, holder)
            if not heard:
                return


def _answer(connection: Any, holder: Holder) -> None:
    what, *given = connection.recv()
    if what == "part":
        layer, q = given
        connection.send([it.numpy() for it in holder.asked(layer, torch.from_numpy(q))])
        return
    tokens, start = given
    try:
        logits = holder.forward(torch.from_numpy(tokens), start)
    except (RuntimeError, MemoryError) as error:
        connection.send((None, str(error)))
        return
    connection.send((logits.numpy(), holder.sent))


def _heard(connection: Any) -> Any:
    if not connection.poll(PATIENCE):
        raise CannotError("a process that was started here does not answer")
    return connection.recv()


def whole(model: Decoder, tokens: Tensor, context: int) -> Tensor:
    """Return the logits of one process that holds everything: after `context` tokens, and after each one more."""
    cache = Cache(SHAPE, len(tokens))
    with one_thread(), torch.inference_mode():
        for at in range(0, context, BLOCK):
            logits = _whole_block(model, tokens[at : min(at + BLOCK, context)], cache)
        rows = [logits]
        rows += [_whole_block(model, tokens[at : at + 1], cache) for at in range(context, len(tokens))]
    return torch.stack(rows)


def _whole_block(model: Decoder, tokens: Tensor, cache: Cache) -> Tensor:
    """Return the last logits; one token at a time attends to all, several by the plain softmax with a mask."""
    if len(tokens) == 1:
        return model(tokens[None], cache)[0, -1]  # type: ignore[no-any-return]
    turn = angles(cache.used, len(tokens), SHAPE.hidden // SHAPE.heads)
    x = model.embedding(tokens)
    end = cache.used + len(tokens)
    mask = torch.ones(len(tokens), end, dtype=torch.bool).tril(cache.used)
    for layer, block in enumerate(_blocks(model)):
        q, k, v = block.qkv(block.norms[0](x)).view(len(tokens), 3, SHAPE.heads, -1).permute(1, 2, 0, 3)
        cache.keys[layer, :, cache.used : end], cache.values[layer, :, cache.used : end] = turned(k, turn), v
        keys, values = cache.keys[layer, :, :end], cache.values[layer, :, :end]
        mixed = torch.nn.functional.scaled_dot_product_attention(turned(q, turn), keys, values, attn_mask=mask)
        x = x + block.out(mixed.transpose(0, 1).reshape(len(tokens), -1))
        x = x + block.feed(block.norms[1](x))
    cache.used = end
    logits: Tensor = model.head(model.norm(x[-1]))
    return logits


def split(
    model: Decoder, tokens: Tensor, context: int, processes: int, budget: int = 0, *, deaf: bool = False
) -> Split:
    """Return what `processes` processes make of a context of which each holds a part, the last what is decoded too.

    Each may take `budget` bytes (0: any number). `deaf`: the last does not ask the first, as a control.
    Raises CannotError where one does not answer.
    """
    context_ = multiprocessing.get_context("spawn")
    pipes = {(i, j): context_.Pipe() for j in range(processes) for i in range(j)}
    parents = [context_.Pipe() for _ in range(processes)]
    jobs = [
        (serve, (
            model.state_dict(), parents[j][1], [pipes[i, j][1] for i in range(int(deaf and j == processes - 1), j)],
            [pipes[j, k][0] for k in range(j + 1, processes)], budget,
        ))
        for j in range(processes)
    ]  # fmt: skip
    size = -(-context // (processes * BLOCK)) * BLOCK
    rows: list[Tensor] = []
    sent, before = [0] * processes, 0
    with workers(jobs):
        for connection, _ in parents:
            _heard(connection)
        for at, end in _runs(context, len(tokens)):
            j = min(at // size, processes - 1)
            parents[j][0].send(("tokens", tokens[at:end].numpy(), at))
            logits, told = _heard(parents[j][0])
            if logits is None:
                return Split(None, 0, sum(sent), _bytes(at))
            sent[j] = told
            before = sum(sent) if end == context else before
            if end >= context:
                rows.append(torch.from_numpy(logits))
    return Split(torch.stack(rows), sum(sent) - before, before, _bytes(context))


def _runs(context: int, total: int) -> list[tuple[int, int]]:
    """Return from where to where tokens are computed at once: blocks of the context, then one by one."""
    blocks = [(at, min(at + BLOCK, context)) for at in range(0, context, BLOCK)]
    return blocks + [(at, at + 1) for at in range(context, total)]


def _bytes(tokens: int) -> int:
    return tokens * SHAPE.layers * 2 * SHAPE.hidden * 4

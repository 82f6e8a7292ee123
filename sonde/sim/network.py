"""A fleet whose replicas depend on each other: stages of a path, links, prefix caches and migration, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Engine, KvMemory
from sonde.errors import InputError
from sonde.policies import batching
from sonde.sim.state import FLOW, LENDER, LINK, STORE, Network, Record
from sonde.workload.requests import Requests

MOST_TIERS = 4

#: one link for all transfers, one for every replica that sends, or one for every replica that receives
SCOPES = ("shared", "source", "target")


class LinkSpec(NamedTuple):
    """A link: bandwidth (bytes/s) that at most `streams` transfers share equally, latency (s), whose it is, a name."""

    bytes_per_s: float
    latency_s: float = 0.0
    streams: int = 16
    scope: str = "shared"
    name: str = ""


class TierSpec(NamedTuple):
    """A tier of prefix blocks: bytes of one store, whether all replicas share one, and the link to fetch over.

    The first tier of a cache is device memory: what is there needs no fetching, and it has no link. `by_entry` are
    bytes of a store of each entry of the fleet, where they differ.
    """

    capacity_bytes: int
    shared: bool = False
    link: LinkSpec | None = None
    name: str = ""
    by_entry: tuple[int, ...] = ()


class CacheSpec(NamedTuple):
    """A prefix cache in tiers (at most 4), and the policy by which blocks are given up."""

    tiers: tuple[TierSpec, ...]
    eviction: str = "lru"


class MigrationSpec(NamedTuple):
    """Live migration: a policy that is asked every `interval_s`, its thresholds, the link, and the stages of a copy."""

    link: LinkSpec
    interval_s: float = 0.2
    low: float = 3.0
    high: float = 3.0
    headroom_bytes: int = 0
    tail_tokens: int = 16
    copies: int = 3
    policy: str = "defragment"


class LendingSpec(NamedTuple):
    """Lending of memory between replicas that decode: the link, and what goes over it.

    reserve_bytes   free memory that a replica keeps for itself
    exchange_bytes  queries and partial results of one sequence in one step, of all layers
    rounds          exchanges one after the other in a step, a latency there and one back each: one a layer
    """

    link: LinkSpec
    reserve_bytes: int = 0
    exchange_bytes: int = 0
    rounds: int = 1


class Paths(NamedTuple):
    """What makes of a fleet more than replicas side by side. The same as nothing where all is as by default.

    prefill     how many entries of the fleet, from the first, compute prompts only; the others decode. 0: all do both
    hand_over   the link for caches from the one to the other
    layers      of the model, sent layer by layer while the prompt is computed; 0: sent when it is done
    routing     policy that picks the replica which decodes
    """

    prefill: int = 0
    hand_over: LinkSpec | None = None
    layers: int = 0
    routing: str = "least-tokens"
    cache: CacheSpec | None = None
    migration: MigrationSpec | None = None
    lending: LendingSpec | None = None


ALONE = Paths()


class Connected(NamedTuple):
    """A fleet, a sequence of (engine, replicas), whose replicas depend on each other."""

    fleet: Sequence[tuple[Engine, int]]
    paths: Paths


def network(requests: Requests, fleet: Sequence[tuple[Engine, int]], paths: Paths) -> Network:
    """Return the links and stores of a run before its first event."""
    replicas = sum(count for _, count in fleet)
    tiers = paths.cache.tiers if paths.cache else ()
    links, ways = _links([spec for _, spec in _uses(paths)], replicas)
    dense, different = _blocks(requests) if tiers else (np.zeros(0, np.int32), 0)
    stores, homes = _stores(tiers, fleet, requests.block_tokens, different)
    return Network(
        flow=_records(requests.n, FLOW),
        links=links,
        next=np.full(len(links), np.inf),
        carried=np.zeros((len(links), max(int(links.streams.max()), 1) + 1, 2)),
        ways=ways,
        leaving=np.zeros(max(engine.max_batch for engine, _ in fleet) + 1, np.int64),
        stores=stores,
        homes=homes,
        kept=np.zeros((int(stores.capacity.sum()) + 1, 2)),
        order=np.full((int(stores.capacity.sum()) + 1, 2), -1, np.int32),
        place=_places(max(different, 1), len(stores)),
        starts=requests.block_start if tiers else np.zeros(2, np.int64),
        blocks=dense,
        lenders=_records(replicas, LENDER),
        lent=np.zeros((replicas, replicas) if paths.lending else (1, 1), np.int64),
    )


def link_names(paths: Paths, replicas: int) -> list[str]:
    """Return what each link of `network` is for: its name, or the use of it that has none."""
    found = [
        spec.name or use
        for use, spec in _uses(paths)
        if spec is not None
        for _ in range(1 if spec.scope == "shared" else replicas)
    ]
    return found or [""]


def tier_names(paths: Paths) -> list[str]:
    """Return the names of the tiers of the cache; "tier 0", "tier 1", ... for those that have none."""
    return [tier.name or f"tier {t}" for t, tier in enumerate(paths.cache.tiers if paths.cache else ())]


def _uses(paths: Paths) -> list[tuple[str, LinkSpec | None]]:
    """Return every use of a link, and the link where there is one."""
    tiers = paths.cache.tiers if paths.cache else ()
    return [
        ("hand-over", paths.hand_over),
        ("migration", paths.migration.link if paths.migration else None),
        *zip(tier_names(paths), (tier.link for tier in tiers), strict=True),
    ]


def _records(n: int, dtype: np.dtype[np.void]) -> Record:
    return np.zeros(n, dtype).view(np.recarray)


def _links(specs: Sequence[LinkSpec | None], replicas: int) -> tuple[Record, NDArray[np.int64]]:
    """Return the links, and for each use of them the first, and by which end they are told apart."""
    ways = np.zeros((len(specs), 2), np.int64)
    rows: list[LinkSpec] = []
    for way, spec in zip(ways, specs, strict=True):
        if spec is not None:
            way[:] = len(rows), SCOPES.index(spec.scope)
            rows += [spec] * (1 if spec.scope == "shared" else replicas)
    links = _records(max(len(rows), 1), LINK)
    links.wait, links.land, links.rate, links.streams = -1, -1, 1.0, 1
    for link, spec in zip(links, rows, strict=False):
        link.rate, link.latency, link.streams = spec.bytes_per_s, spec.latency_s, spec.streams
    return links, ways


def _places(blocks: int, stores: int) -> NDArray[np.int32]:
    """Return where each block is in each store: nowhere; and that no prompt has had it."""
    place = np.full((blocks, stores + 1), -1, np.int32)
    place[:, stores] = 0
    return place


def _blocks(requests: Requests) -> tuple[NDArray[np.int32], int]:
    """Return the blocks of all prompts, numbered from 0, and how many different ones there are."""
    blocks = requests.block_hash
    if len(blocks) and blocks.min() >= 0 and blocks.max() < 4 * len(blocks):  # numbered already
        return blocks.astype(np.int32), int(blocks.max()) + 1
    known, dense = np.unique(blocks, return_inverse=True)
    return dense.astype(np.int32), len(known)


def block_bytes(memory: KvMemory, tokens: int, window: int) -> int:
    """Return the bytes of `tokens` cached tokens, as the kernels count them."""
    size = -(-tokens // memory.block_tokens) * memory.block_bytes + memory.state_bytes
    if memory.window_block_bytes:
        size += -(-min(tokens, window) // memory.block_tokens) * memory.window_block_bytes
    return size


def _stores(
    tiers: Sequence[TierSpec], fleet: Sequence[tuple[Engine, int]], block_tokens: int, different: int
) -> tuple[Record, NDArray[np.int64]]:
    """Return the stores of all tiers, and for each tier and replica which one is its own."""
    engines = [(k, engine) for k, (engine, count) in enumerate(fleet) for _ in range(count)]
    homes = np.zeros((max(len(tiers), 1), len(engines)), np.int64)
    sizes: list[int] = []
    for row, tier in zip(homes, tiers, strict=False):
        for r, (k, engine) in enumerate(engines):
            if r == 0 or not tier.shared:
                one = max(block_bytes(engine.memory, block_tokens, engine.table.window), 1)
                held = tier.by_entry[k] if tier.by_entry else tier.capacity_bytes
                sizes.append(min(int(held // one), different))
            row[r] = len(sizes) - 1
    stores = _records(max(len(sizes), 1), STORE)
    stores.capacity[: len(sizes)] = sizes
    stores.oldest, stores.newest = -1, -1
    stores.start = np.cumsum(stores.capacity) - stores.capacity
    return stores, homes


def check_paths(fleet: Sequence[tuple[Engine, int]], paths: Paths, requests: Requests) -> None:
    """Raise InputError where a path can't be walked: no replica to decode, no link, batching that holds places."""
    if paths == ALONE:
        return
    if paths.prefill and not 0 < paths.prefill < len(fleet):
        raise InputError("path", paths.prefill, f"must leave pools that decode, of {len(fleet)} in all")
    if paths.prefill and paths.hand_over is None:
        raise InputError("path", None, "needs a link from the pools that compute prompts to those that decode")
    for engine, _ in fleet if paths.prefill or paths.migration or paths.lending else ():
        policy = batching.POLICIES.get(engine.batching)
        if policy is not None and (policy.reserve_output or policy.hold_slots):
            raise InputError(
                "batching.policy", engine.batching, "must admit by prompts where caches move between replicas",
                "memory for whole answers is held where prompts are computed",
            )  # fmt: skip
    if paths.cache is not None:
        if not requests.block_tokens:
            raise InputError(
                "cache", "no hashed blocks",
                "needs requests whose prompts have some: a trace that has them, or a `hit_rate`",
                "no prompt would be known again",
            )  # fmt: skip
        if not 1 <= len(paths.cache.tiers) <= MOST_TIERS:
            raise InputError("cache.tiers", len(paths.cache.tiers), f"must be 1 to {MOST_TIERS}")
    if paths.lending is not None:
        _check_lending(fleet[paths.prefill :])
    links = (paths.hand_over, paths.migration and paths.migration.link, paths.lending and paths.lending.link)
    for spec in links:
        if spec is not None and (spec.bytes_per_s <= 0 or spec.streams < 1 or spec.latency_s < 0):
            raise InputError("link", spec, "needs a bandwidth above 0, at least 1 stream and a latency of 0 or more")


def _check_lending(fleet: Sequence[tuple[Engine, int]]) -> None:
    """Raise InputError where replicas can't hold each other's blocks, or compute attention over them."""
    if sum(count for _, count in fleet) < 2:
        raise InputError("lending", 1, "needs at least 2 replicas that decode", "there would be nobody to borrow from")
    blocks = {(engine.memory.block_tokens, engine.memory.block_bytes) for engine, _ in fleet}
    if len(blocks) > 1:
        raise InputError(
            "lending", sorted(blocks), "needs blocks of one size (tokens, bytes) in all replicas that decode",
            "what one computes the other could not keep",
        )  # fmt: skip
    for engine, _ in fleet:
        if engine.table.window > 0:
            raise InputError("lending", engine.table.window, "needs a model without windows of attention")
        if engine.preemption != "recompute":
            raise InputError(
                "batching.preemption", engine.preemption, "must be recompute where replicas lend memory",
                "a sequence longer than one memory could never come back from the host's",
            )  # fmt: skip


def most_bytes(fleet: Sequence[tuple[Engine, int]], paths: Paths) -> list[int]:
    """Return the bytes that a request may take at a replica of every entry, with what it could borrow of empty others.

    Where caches are handed over, no more than its own memory: they come whole.
    """
    own = [engine.memory.capacity_bytes for engine, _ in fleet]
    if paths.lending is None or paths.prefill:
        return own
    found = []
    for k, (engine, count) in enumerate(fleet):
        others = [own[j] for j, (_, n) in enumerate(fleet) if (count if j == k else n + 1) > 1 and n > 0]
        size = engine.memory.block_bytes
        spare = max(max(others, default=0) - paths.lending.reserve_bytes, 0) // size * size
        found.append(own[k] + spare)
    return found

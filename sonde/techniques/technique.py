"""A technique: a published idea as a value. What it changes, and what it cannot stand beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard
from sonde.cost.table import Engine
from sonde.deployment.node import Choice, Line
from sonde.deployment.tree import Deployment, Replica


class Parameters(Choice):
    """What may be said of any technique.

    pools   whose replicas it changes, by name; all of them where none is named
    """

    pools: tuple[Line, ...] = ()


class Holds(NamedTuple):
    """What a technique says numbers are held in ("": as the replica says), and how its products are called: "w4a8"."""

    products: str
    weights: str
    activations: str = ""
    kv_cache: str = ""


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Technique(Generic[P]):
    """An idea, and up to five effects, each a function of what is there and of the technique's parameters.

    title       what it does, in one line
    source      where it was published
    cannot      names of techniques that it cannot stand beside -> why
    deployment  pools, links, caches, routing: (deployment, parameters) -> deployment
    replica     precision, parallelism, batching of one replica: (replica, parameters) -> replica
    shard       what one device of a replica holds and computes in: (shard, parameters) -> shard
    operators   the operators of a step, one list of them at a time: (shard, operators, parameters) -> operators
    engine      the step table, memory and limits of the compiled engine: (engine, shard, parameters) -> engine
    guesses     whether steps make several tokens of a sequence at once, so that gaps between them are not known
    holds       what it says numbers are held in, for people who read of it: (parameters) -> Holds

    answers     whether it is about decoding alone: replicas that only compute prompts go without

    An effect raises InputError where the technique makes no sense with what it is given.
    """

    title: str
    source: str
    parameters: type[P]
    cannot: Mapping[str, str] = field(default_factory=dict)
    deployment: Callable[[Deployment, P], Deployment] | None = None
    replica: Callable[[Replica, P], Replica] | None = None
    shard: Callable[[Shard, P], Shard] | None = None
    operators: Callable[[Shard, list[Operator], P], list[Operator]] | None = None
    engine: Callable[[Engine, Shard, P], Engine] | None = None
    holds: Callable[[P], Holds] | None = None
    answers: bool = False
    guesses: bool = False

    @property
    def within(self) -> bool:
        """Return whether it changes replicas, and not only what lies between them."""
        return any((self.replica, self.shard, self.operators, self.engine))


@dataclass(frozen=True)
class Chosen:
    """A technique in use: its name, itself, and its parameters, checked."""

    name: str
    technique: Technique[Any]
    parameters: Parameters

    def at(self, pool: str, *, prompts: bool = False) -> bool:
        """Return whether it changes the replicas of a pool, which may compute `prompts` alone."""
        return (not self.parameters.pools or pool in self.parameters.pools) and not (prompts and self.technique.answers)

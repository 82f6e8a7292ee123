"""What a replica holds under techniques: its numbers, in words and short, and what else they change in its tree.

A tree names techniques and keeps what was written before them, so that it can be run as it stands; people who read
it, or a label of it, want to know what is really there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sonde.deployment.tree import Deployment, Replica
from sonde.errors import InputError
from sonde.metrics import Objective
from sonde.techniques.compose import chosen, replica_under
from sonde.techniques.technique import Chosen
from sonde.units import show


class Precision(NamedTuple):
    """What numbers are held in: weights of layers, activations as they are multiplied, caches.

    short   "bf16", "fp8 kv-fp8", "w4a8 act-fp8 kv-int4": the products; `act-` what is between them, where that is not
            bf16 and a technique says what is multiplied; `kv-` the caches, where they are not in bf16
    """

    short: str
    weights: str
    activations: str
    kv_cache: str


def precision(replica: Replica, techniques: Sequence[Chosen] = ()) -> Precision:
    """Return what a replica's numbers are held in under techniques; `replica` may stand as before or after them."""
    weights, activations, cache = str(replica.weights), str(replica.activations), str(replica.kv_cache)
    products = weights
    for one in techniques:
        if one.technique.holds is None:
            continue
        found = one.technique.holds(one.parameters)
        weights, activations, cache = (
            new or was
            for new, was in zip(found[1:], (weights, activations, cache), strict=True)  # "": as it was
        )
        between = "" if replica.activations == "bf16" else f" act-{replica.activations}"
        products = f"{found.products}{between}"
    return Precision(products + ("" if cache == "bf16" else f" kv-{cache}"), weights, activations, cache)


def precisions(deployment: Deployment) -> list[dict[str, str]]:
    """Return what every pool's numbers are held in, under the deployment's techniques, as JSON has it."""
    techniques = chosen(deployment.techniques)
    found = []
    for pool in deployment.pools:
        held = precision(pool.replica, [one for one in techniques if one.at(pool.name)])
        found.append({"pool": pool.name, **{key: getattr(held, key) for key in ("weights", "activations", "kv_cache")}})
    return found


def changes(deployment: Deployment) -> list[str]:
    """Return a line for every pool in which techniques change what is written: "pool: weights bf16 -> int4, ..."."""
    techniques = chosen(deployment.techniques)
    lines = []
    for pool in deployment.pools:
        here = [one for one in techniques if one.at(pool.name)]
        if not here:
            continue
        written = dict(_flat(pool.replica.model_dump(mode="json")))
        made = dict(_flat(replica_under(pool.replica, here).model_dump(mode="json")))
        held = precision(pool.replica, here)
        made |= {key: getattr(held, key) for key in ("weights", "activations", "kv_cache")}
        words = [f"{key} {written[key]} -> {value}" for key, value in made.items() if value != written[key]]
        if words:
            lines.append(f"{pool.name}: {', '.join(words)}")
    return lines


def guesses(techniques: Iterable[Chosen]) -> bool:
    """Return whether steps make several tokens of a sequence at once, so that gaps between them are not known."""
    return any(one.technique.guesses for one in techniques)


def check_gaps(objectives: Iterable[Objective], techniques: Iterable[Chosen]) -> None:
    """Raise InputError for an objective on gaps between tokens where a technique makes several of them at once."""
    goal = next((goal for goal in objectives if goal.metric == "itl"), None)
    name = next((one.name for one in techniques if one.technique.guesses), "")
    if goal is not None and name:
        raise InputError(
            "objectives.itl", show(goal.limit_s, "time"), f"cannot stand beside {name}",
            "tokens come several at a time, and gaps between them are not known: promise tpot in its place",
        )  # fmt: skip


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value

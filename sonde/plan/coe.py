"""A composition of experts: whole models that take turns on a node, behind a router that picks one for every request.

A request passes the router (a model of the same size, always loaded), waits for its expert to be loaded from the node's
store if it is not, and is prefilled and decoded. Step times are those of the cost model; loading takes bytes over the
bandwidth of the link; which experts are loaded is simulated exactly (`sonde.cost.switching`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.catalogue.nodes import Node
from sonde.cost.memory import report
from sonde.cost.served import served
from sonde.cost.shard import Shard, shard
from sonde.cost.switching import Switched, popularity, switched
from sonde.cost.table import Engine, coefficients
from sonde.deployment.tree import Batching, Replica
from sonde.errors import CannotError, InputError
from sonde.techniques.compose import chosen, compiled

Floats = NDArray[np.float64]


class Question(NamedTuple):
    """What is asked of a composition.

    model       every expert's, and the router's
    experts     how many there are;  alpha: how popular they are (`popularity`)
    prompt      tokens of a prompt;  output: tokens of an answer
    rate        requests/s, Poisson; None: each is sent when the last is answered
    one_link    a model is loaded over one link of its node, and not over all of them
    """

    model: str
    experts: int
    alpha: float = 0.0
    prompt: int = 1024
    output: int = 20
    rate: float | None = None
    one_link: bool = False
    requests: int = 20_000
    seed: int = 0


class Answer(NamedTuple):
    """What comes of it on nodes of one kind. Seconds are means, or quantiles, over requests.

    resident      experts that are loaded at once, on one node
    nodes         nodes whose stores hold all experts;  nodes_loaded: whose device memory does
    switch_s      seconds of loading one expert
    miss_rate     share of requests that wait for that
    utilisation   share of the time that a node is busy (1 where the next request is sent when the last is answered)
    """

    node: str
    expert_bytes: float
    resident: int
    nodes: int
    nodes_loaded: int
    switch_s: float
    miss_rate: float
    router_s: float
    prefill_s: float
    decode_s: float
    mean_s: float
    p50_s: float
    p99_s: float
    utilisation: float


def compose(question: Question, node: Node) -> Answer:
    """Return what comes of a composition on as many nodes as its experts need.

    Experts are dealt out over the nodes by popularity. Raises InputError for what is out of range, CannotError where
    the router and one expert do not fit the devices' memory.
    """
    _check(question)
    part, engine = _replica(question, node)
    size = report(part).weights * node.devices
    slots = _slots(part, question)
    if slots < 2:
        raise CannotError(f"{node.name} holds {slots} of {question.model} at once: needs the router and one expert")
    nodes = math.ceil(question.experts * size / node.store_bytes)
    links = 1 if question.one_link else node.links
    switch = size / (node.link_bandwidth * links)
    router, prefill, decode = _seconds(engine, question)
    runs = _runs(
        question, nodes, min(slots - 1, math.ceil(question.experts / nodes)), switch, router + prefill + decode
    )
    latency = np.concatenate([run.finish_s - arrival for run, arrival in runs])
    missed = np.concatenate([run.missed for run, _ in runs])
    busy = missed.sum() * switch + len(missed) * (router + prefill + decode)
    end = max(float(run.finish_s[-1]) for run, _ in runs)
    p50, p99 = (float(value) for value in np.quantile(latency, (0.5, 0.99), method="inverted_cdf"))
    return Answer(
        node.name, size, min(slots - 1, question.experts), nodes, math.ceil(question.experts / (slots - 1)), switch,
        float(missed.mean()), router, prefill, decode, float(latency.mean()), p50, p99,
        1.0 if question.rate is None else float(busy / (end * len(runs))),
    )  # fmt: skip


def _runs(
    question: Question, nodes: int, resident: int, switch_s: float, service_s: float
) -> list[tuple[Switched, Floats]]:
    """Return what happened on every node, with when its requests were sent."""
    draws = np.random.default_rng(question.seed)
    asked = draws.choice(question.experts, question.requests, p=popularity(question.experts, question.alpha))
    arrival = np.zeros(question.requests)
    if question.rate is not None:
        arrival = np.cumsum(draws.exponential(1 / question.rate, question.requests))
    found = []
    for i in range(nodes):
        here = asked % nodes == i
        if here.any():
            run = switched(arrival[here], asked[here] // nodes, resident, switch_s, service_s)
            found.append((run, arrival[here] if question.rate is not None else run.start_s))
    return found


def _replica(question: Question, node: Node) -> tuple[Shard, Engine]:
    where, it = device(node.device), model(question.model)
    replica = Replica(
        model=question.model, device=node.device, tensor_parallel=node.devices, engine="generic",
        batching=Batching(max_batch=1, token_budget=question.prompt),
    )  # fmt: skip
    uses = chosen(["fused-layers"] if where.on_chip is not None else [])
    return shard(it, where, replica, served(where, replica)), compiled(it, where, replica, uses)


def _slots(part: Shard, question: Question) -> int:
    """Return how many models the devices hold beside the cache of one request."""
    found = report(part)
    tokens = question.prompt + question.output
    cache = (found.kv_bytes / found.kv_tokens) * tokens if found.kv_tokens else 0.0
    return int((found.budget - found.activations - found.overhead - cache) // found.weights)


def _seconds(engine: Engine, question: Question) -> tuple[float, float, float]:
    """Return seconds in the router (the prompt, and the token that names the expert), of the prompt, of the answer."""
    time, prompt = engine.table.time, question.prompt
    prefill = coefficients(time, prompt, 0, prompt * prompt / 2, 0)
    decode = sum(coefficients(time, 0, 1, 0, prompt + done) for done in range(1, question.output))
    return prefill, prefill, float(decode)


def _check(question: Question) -> None:
    for name in ("experts", "prompt", "output", "requests"):
        if getattr(question, name) < 1:
            raise InputError(name, getattr(question, name), "must be at least 1")
    if question.rate is not None and not question.rate > 0:
        raise InputError("rate", question.rate, "must be above zero")

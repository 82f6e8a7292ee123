"""What clients see of a run: their requests take longer than the engines' own time, before the first token.

An engine's `client` terms (`cost.table.Client`) are added to what the kernels found: to the first token and to the
last, so that TTFT and end to end grow and the time per token stays. Kernels know nothing of it: a closed loop sends
its next request when the engine is done, as it did when the terms were fitted; energy is that of the engines' own time;
and a run that stops as soon as an objective is out of reach counts the engine's own, shorter TTFT, so that it never
stops too early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sonde.catalogue.engines import BUSY
from sonde.cost.table import Client, Engine
from sonde.metrics import Outcome

Floats = NDArray[np.float64]


def as_clients_see(outcome: Outcome, fleet: Sequence[tuple[Engine, int]]) -> Outcome:
    """Return the outcome with first_token_s, finish_s and landed_s later by what the clients of every replica wait for.

    A poll lasts as long as a token of the same request takes; of requests of one token, as the mean of their replica.
    So the mean TTFT of a replica grows by polls times its mean TPOT, as `validate` fits it. A replica is busy
    (`polls_busy`) where 16 requests or more are there at a time, on average.
    """
    clients = [engine.client for engine, _ in fleet]
    if all(client == Client() for client in clients):
        return outcome
    terms = np.repeat(np.array(clients, dtype=np.float64), [count for _, count in fleet], axis=0)
    terms = np.vstack([terms, np.zeros(terms.shape[1])])  # the last row is that of requests that no replica took
    held = terms[outcome.replica]
    polls = held[:, 2]
    if any(client.polls != client.polls_busy for client in clients):
        polls = np.where(_present(outcome)[outcome.replica] >= BUSY, held[:, 3], polls)
    wait = held[:, 0] + held[:, 1] * outcome.requests.prompt_tokens + polls * _token_s(outcome)
    travel = outcome.travel and outcome.travel._replace(landed_s=outcome.travel.landed_s + wait)
    return replace(
        outcome, first_token_s=outcome.first_token_s + wait, finish_s=outcome.finish_s + wait, travel=travel
    )  # fmt: skip


def _present(outcome: Outcome) -> Floats:
    """Return the mean number of requests at every replica [r + 1], from the first that came to the last that left."""
    r = len(outcome.steps)
    taken = np.where(np.isfinite(outcome.finish_s), outcome.replica, r)
    stay = np.where(taken < r, outcome.e2e_s, 0.0)
    first, last = np.full(r + 1, np.inf), np.full(r + 1, -np.inf)
    np.minimum.at(first, taken, outcome.arrival_s)
    np.maximum.at(last, taken, np.where(taken < r, outcome.finish_s, -np.inf))
    span = np.maximum(last - first, 1e-12)
    return np.asarray(np.bincount(taken, stay, r + 1) / np.where(np.isfinite(span), span, 1.0))


def _token_s(outcome: Outcome) -> Floats:
    """Return the TPOT of every request; of those of one token, the mean of their replica (0 where it has none)."""
    own, travel = outcome.tpot_s, outcome.travel
    if travel is not None:  # the wait for a cache is no step
        gaps = np.maximum(outcome.requests.output_tokens - 1, 1)
        begun = np.fmax(outcome.first_token_s, travel.landed_s)
        own = np.where(travel.source >= 0, (outcome.finish_s - begun) / gaps, own)
    known = (outcome.requests.output_tokens > 1) & np.isfinite(own)
    r = len(outcome.steps)
    at = np.where(known, outcome.replica, r)
    count = np.bincount(at, minlength=r + 1)
    mean = np.bincount(at, np.where(known, own, 0.0), r + 1) / np.maximum(count, 1)
    return np.where(known, own, mean[outcome.replica])

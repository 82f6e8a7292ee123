"""Conversations: how many requests belong to one, how many turns it has, how long people think in between."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sonde.workload.lengths import Quantiles, fit_quantiles
from sonde.workload.node import Node
from sonde.workload.requests import Requests
from sonde.workload.statistics import turn_gaps

Floats = NDArray[np.float64]


class Sessions(Node):
    """Sessions of a trace.

    share         of requests that belong to a session
    turns         distribution of requests per session
    think_s       median of the log-normal time from the arrival of a turn to that of the next
    think_sigma   its standard deviation, of log s
    grows         whether prompts of later turns are longer, as they are where they hold the conversation so far
    """

    share: float = Field(gt=0, le=1)
    turns: Quantiles
    think_s: float = Field(gt=0, allow_inf_nan=False)
    think_sigma: float = Field(ge=0, allow_inf_nan=False)
    grows: bool


def fit_sessions(requests: Requests) -> Sessions | None:
    """Return the sessions of a trace; None where no session has two requests at different times."""
    turns, gaps, growth = turn_gaps(requests)
    thought = np.log(gaps[gaps > 0])
    if not len(thought):
        return None
    return Sessions(
        share=float(f"{np.mean(requests.session >= 0):.6g}"),
        turns=fit_quantiles(turns),
        think_s=float(f"{np.exp(thought.mean()):.6g}"),
        think_sigma=float(f"{thought.std():.6g}"),
        grows=bool(np.mean(growth > 0) > 0.5),
    )


def draw_sessions(sessions: Sessions, arrival: Floats, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return a session number for every arrival (-1: none), numbered in the order in which sessions begin.

    Sessions begin at arrivals drawn at random and go on by think times; the turns of all of them, in order of time,
    then take the arrivals one by one. So arrivals stay as they are, and think times hold except near the end, where
    turns that would come after the last arrival move up.
    """
    n = len(arrival)
    session = np.full(n, -1, np.int32)
    members = np.sort(rng.permutation(n)[: round(sessions.share * n)])
    if not len(members):
        return session
    turns = sessions.turns.at(rng.random(len(members)))
    of_turn = np.repeat(np.arange(len(members)), turns)[: len(members)]
    count = int(of_turn[-1]) + 1
    start = np.sort(rng.choice(arrival[members], count))
    think = rng.lognormal(np.log(sessions.think_s), sessions.think_sigma, len(members))
    begins = np.flatnonzero(np.diff(of_turn, prepend=-1))
    think[begins] = 0.0
    elapsed = np.cumsum(think)
    elapsed -= elapsed[begins][of_turn]
    order = np.argsort(start[of_turn] + elapsed, kind="stable")
    codes = of_turn[order]
    first = np.full(count, len(codes))
    np.minimum.at(first, codes, np.arange(len(codes)))
    rank = np.empty(count, np.int32)
    rank[np.argsort(first, kind="stable")] = np.arange(count, dtype=np.int32)
    session[members] = rank[codes]
    return session


def grown(
    session: NDArray[np.int32], prompt: NDArray[np.int32], output: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the same pairs of lengths, inside every session in the order of their prompts.

    Which lengths occur together stays as it is; only the turns of a session are put in order.
    """
    rows = np.flatnonzero(session >= 0)
    by_turn = rows[np.argsort(session[rows], kind="stable")]
    by_prompt = rows[np.lexsort((prompt[rows], session[rows]))]
    prompt, output, before = prompt.copy(), output.copy(), (prompt, output)
    prompt[by_turn], output[by_turn] = before[0][by_prompt], before[1][by_prompt]
    return prompt, output

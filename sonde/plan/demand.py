"""The requests that a scenario asks for: a trace read, or traffic generated from a profile, and checked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sonde.catalogue.model import Model
from sonde.deployment.scenario import WorkloadChoice
from sonde.errors import InputError
from sonde.units import parse, show
from sonde.workload.requests import Requests, scale_rate

DEFAULT_SPAN_S = 3600.0


class Demand(NamedTuple):
    """What a deployment is asked to serve, and what the reader should know about where it comes from."""

    requests: Requests
    notes: tuple[str, ...]


def demand(choice: WorkloadChoice, model: Model) -> Demand:
    """Return the requests of a scenario's workload.

    Raises InputError where it names no trace and no profile, or both, and where a prompt is longer than the
    model's context (naming the row).
    """
    if (choice.trace is None) == (choice.profile is None):
        both = "both trace and profile" if choice.trace else "neither trace nor profile"
        raise InputError("workload", both, "needs exactly one of trace and profile", "it is unclear what to plan for")
    found = _read(choice) if choice.trace is not None else _generate(choice)
    _check_context(found.requests, model)
    return found


def _read(choice: WorkloadChoice) -> Demand:
    from sonde.workload import read

    whole = read(choice.trace or "")
    trace = whole._replace(arrival_s=whole.arrival_s - whole.arrival_s[0])
    if choice.rate is not None:
        if trace.span_s <= 0:
            raise InputError("workload.rate", choice.rate, "needs a trace in which time passes", "nothing to scale")
        trace = scale_rate(trace, parse(choice.rate, "rate", "workload.rate") / (trace.n / trace.span_s))
    keep = trace.n if choice.requests is None else min(choice.requests, trace.n)
    if choice.duration is not None:
        span = parse(choice.duration, "time", "workload.duration")
        keep = min(keep, max(1, int(np.searchsorted(trace.arrival_s, span, side="right"))))
    notes = () if keep == trace.n else (f"The first {keep:,} of {trace.n:,} requests of the trace are used.",)
    return Demand(head(trace, keep), notes)


def head(trace: Requests, count: int) -> Requests:
    """Return the first `count` requests."""
    blocks = trace.block_start[: count + 1]
    return Requests(
        trace.arrival_s[:count], trace.prompt_tokens[:count], trace.output_tokens[:count], trace.session[:count],
        trace.priority[:count], blocks, trace.block_hash[: int(blocks[-1])], trace.block_tokens,
    )  # fmt: skip


def _generate(choice: WorkloadChoice) -> Demand:
    from sonde.workload import generate, profile

    rate = None if choice.rate is None else parse(choice.rate, "rate", "workload.rate")
    span = None if choice.duration is None else parse(choice.duration, "time", "workload.duration")
    notes: tuple[str, ...] = ()
    if span is None and choice.requests is None:
        span = DEFAULT_SPAN_S
        notes = (f"The workload gives no duration: {show(span, 'time')} of traffic is generated.",)
    made = generate(
        profile(choice.profile or ""), rate=rate, duration_s=span, requests=choice.requests, seed=choice.seed
    )
    return Demand(made, notes)


def _check_context(trace: Requests, model: Model) -> None:
    over = np.flatnonzero(trace.prompt_tokens > model.context)
    if len(over):
        row = int(over[0])
        raise InputError(
            f"workload row {row}: prompt_tokens", int(trace.prompt_tokens[row]),
            f"must be at most the {model.context:,} tokens of context of {model.name}",
            f"{len(over):,} of {trace.n:,} requests could not be served",
        )  # fmt: skip

"""The requests that a scenario asks for: a trace read, or traffic generated from a profile, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from sonde.catalogue.model import Model
from sonde.deployment.scenario import WorkloadChoice
from sonde.deployment.tree import Use
from sonde.errors import MISSING, InputError
from sonde.units import parse, show
from sonde.workload.context import LongPrompts, within
from sonde.workload.requests import Requests, scale_rate

_SAME = 0.5  # share of requests that share an instant from which the log may have made it so


class Demand(NamedTuple):
    """What a deployment is asked to serve, and what the reader should know about where it comes from."""

    requests: Requests
    notes: tuple[str, ...]


def demand(choice: WorkloadChoice | None, model: Model, *, cached: bool = False) -> Demand:
    """Return the requests of a scenario's workload, within the model's context.

    Where prompts are `cached`, generated traffic has hashed blocks too. Raises InputError where the trace cannot be
    read, where a prompt is longer than the model's context (naming the line of the file where it is known) and
    `choice` does not say to clip or drop it, and for a hit rate that these prompts do not allow.
    """
    if choice is None:
        raise InputError(
            "workload", MISSING, "needs `trace` (a file) or `profile` (a name or a file)",
            "there is nothing to serve; a trace may also be given apart (--trace)",
        )  # fmt: skip
    found = _read(choice) if choice.trace is not None else _generate(choice, hashes=cached)

    def where(row: int) -> str:
        from sonde.workload.readers import place

        return f"workload[{row}].prompt_tokens" if choice.trace is None else place(choice.trace, row)

    served, notes = within(found.requests, model.context, choice.long_prompts, where)
    if choice.hit_rate is not None:
        served = _with_hits(served, choice)
    return Demand(served, (*found.notes, *notes, *_remarks(served, cached=cached)))


def given(trace: Requests, model: Model, long_prompts: LongPrompts = "refuse", *, cached: bool = False) -> Demand:
    """Return requests that were handed over as columns, within the model's context."""
    served, notes = within(trace, model.context, long_prompts)
    return Demand(served, (*notes, *_remarks(served, cached=cached)))


def has_cache(uses: Iterable[Use]) -> bool:
    """Return whether techniques have a cache of prefixes among them."""
    return any("prefix-cache" in ((use,) if isinstance(use, str) else use) for use in uses)


def _with_hits(asked: Requests, choice: WorkloadChoice) -> Requests:
    from sonde.workload.prefix import with_hit_rate

    if choice.trace is not None and asked.block_tokens:
        raise InputError(
            "workload.hit_rate", choice.hit_rate, "must be left out: the trace has hashed blocks of its own",
            "it would be unclear which of the two counts",
        )  # fmt: skip
    return with_hit_rate(asked, choice.hit_rate or 0.0, seed=choice.seed)


def _remarks(asked: Requests, *, cached: bool) -> Iterator[str]:
    """Yield what is in the requests and not in the answer, and what the answer may rest on by accident."""
    from sonde.workload.statistics import prefix_hits, tick

    if len(asked.block_hash) and not cached:
        blocks, seen = prefix_hits(asked)
        yield (
            f"{100 * seen.sum() / blocks.sum():.0f} % of the prompts' blocks were there before: a prefix cache could "
            "save their work (`techniques: [prefix-cache]`), and none is in use."
        )
    same = float(np.mean(np.diff(asked.arrival_s) == 0)) if asked.n > 1 else 0.0
    if same > _SAME:
        grid = tick(asked.arrival_s)
        of = f"a grid of {show(grid, 'time')}" if grid else "few instants"
        yield (
            f"{100 * same:.0f} % of the requests arrive at the same instant as the one before: times lie on {of}. "
            "If that is how they were logged, they are bursts that nobody sent."
        )


def _read(choice: WorkloadChoice) -> Demand:
    from sonde.workload.readers import read

    whole = read(choice.trace or "")
    trace = whole._replace(arrival_s=whole.arrival_s - whole.arrival_s[0])
    if choice.rate is not None:
        if trace.span_s <= 0:
            raise InputError("workload.rate", choice.rate, "needs a trace in which time passes", "nothing to scale")
        trace = scale_rate(trace, parse(choice.rate, "rate", "workload.rate") / (trace.n / trace.span_s))
    keep = trace.n if choice.requests is None else min(choice.requests, trace.n)
    if choice.duration is not None:
        span = parse(choice.duration, "time", "workload.duration")
        keep = min(keep, int(np.searchsorted(trace.arrival_s, span, side="right")))
        _check_span(choice, keep, trace.n)
    notes = () if keep == trace.n else (f"The first {keep:,} of {trace.n:,} requests of the trace are used.",)
    return Demand(rows(trace, keep), notes)


def _check_span(choice: WorkloadChoice, held: int, whole: int | None = None) -> None:
    """Raise InputError for a duration in which hardly anything arrives: one request is no traffic."""
    if held < 2 and whole != held:
        of = "" if whole is None else f" of {whole:,}"
        raise InputError(
            "workload.duration", choice.duration, f"holds {held:,}{' request' if held == 1 else ' requests'}{of}",
            "no load could be seen in it; give a longer one",
        )  # fmt: skip


def rows(trace: Requests, stop: int, start: int = 0) -> Requests:
    """Return requests `start` to `stop`."""
    part, blocks = slice(start, stop), trace.block_start[start : stop + 1]
    return Requests(
        trace.arrival_s[part], trace.prompt_tokens[part], trace.output_tokens[part], trace.session[part],
        trace.priority[part], blocks - blocks[0], trace.block_hash[int(blocks[0]) : int(blocks[-1])],
        trace.block_tokens,
    )  # fmt: skip


def _generate(choice: WorkloadChoice, *, hashes: bool) -> Demand:
    from sonde.workload.generate import generate

    rate = None if choice.rate is None else parse(choice.rate, "rate", "workload.rate")
    span = None if choice.duration is None else parse(choice.duration, "time", "workload.duration")
    hashes = hashes and choice.hit_rate is None
    made = generate(
        choice.profile or "", rate=rate, duration_s=span, count=choice.requests, seed=choice.seed, hashes=hashes
    )
    if span is not None and choice.requests != 1:
        _check_span(choice, made.n)
    if span is not None or choice.requests is not None:
        return Demand(made, ())
    note = f"The workload gives no duration: {made.n:,} requests over {show(made.span_s, 'time')} are generated, "
    return Demand(made, (note + "as many as the profile was fitted from.",))

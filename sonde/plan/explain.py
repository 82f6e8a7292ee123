"""Why a fleet fails, in words: which objective, by how much, when, and what was high then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.cost.table import Engine
from sonde.metrics import Objective, Outcome
from sonde.plan.rates import alone, step_floor
from sonde.plan.work import work
from sonde.units import show

Bools = NDArray[np.bool_]
_BURST = 1.25  # times the mean from which a rate is called a burst
_FULL = 0.9  # share from which memory or a batch is called full
_LONG = 0.5  # share of the limit that a request takes on an idle replica, from which its length is the cause
_BEHIND = 0.7  # share of what replicas can prefill from which prompts are called too many


class Failure(NamedTuple):
    """What binds: the kind of constraint, the sentence, and how far off (value over limit, above 1)."""

    constraint: str
    reason: str
    ratio: float


class _When(NamedTuple):
    """A stretch of the run: [start_s, end_s), in words, and whether it is most of it."""

    start_s: float
    end_s: float
    text: str
    most: bool


def holds(outcome: Outcome, objectives: Sequence[Objective]) -> bool:
    """Return whether a complete run met every objective at its quantile."""
    return not outcome.aborted and all(outcome.quantile(o.metric, o.quantile) <= o.limit_s for o in objectives)


def explain(outcome: Outcome, objectives: Sequence[Objective], engine: Engine) -> Failure | None:
    """Return the objective that a complete run misses by most, and why; None where it holds.

    The cause is what was high while the misses cluster: memory, the batch, the lengths of those that miss, prompts
    or arrivals. How busy replicas are is no cause: an engine with one request is busy all the time.
    """
    worst: tuple[float, float, Objective] | None = None
    for item in objectives:
        value = outcome.quantile(item.metric, item.quantile)
        ratio = value / item.limit_s
        if ratio > 1 and (worst is None or ratio > worst[0]):
            worst = ratio, value, item
    if worst is None:
        return None
    ratio, value, item = worst
    missed = _missed(outcome, item)
    refused = int(np.count_nonzero(outcome.replica < 0))
    reached = show(value, "time") if np.isfinite(value) else "never"
    head = f"{item.label} {reached} against {show(item.limit_s, 'time')}: "
    if refused and not np.isfinite(value):
        return Failure("kv-memory", f"{head}{refused:,} requests do not fit the KV memory of a replica", ratio)
    when = _cluster(outcome, missed)
    kind, cause = _cause(outcome, item, missed, when, engine)
    return Failure(kind, f"{head}{cause} {when.text}", ratio)


def prefill_per_s(engine: Engine) -> float:
    """Return the prompt tokens per second that one replica takes at most, in steps that hold nothing else."""
    floor = step_floor(engine)
    tokens = np.arange(1, len(floor.tokens), dtype=np.float64)
    return 1 / max(min(float((floor.tokens[1:] / tokens).min()), floor.slope), 1e-12)


def _missed(outcome: Outcome, item: Objective) -> Bools:
    """Return which requests are beyond the limit; for ITL, whose gaps are not kept, those with a TPOT beyond it."""
    values = getattr(outcome, f"{'tpot' if item.metric == 'itl' else item.metric}_s")
    missed = np.where(np.isnan(values), np.inf, values) > item.limit_s
    if missed.any() or item.metric != "itl":
        return np.asarray(missed)
    return np.asarray(values >= np.quantile(values, 0.9))


def _cluster(outcome: Outcome, missed: Bools) -> _When:
    """Return the stretch in which misses are dense: bins around the fullest that hold at least a third of it."""
    start, span = outcome.start_s, max(outcome.requests.span_s, 1e-9)
    width = 60.0 if span >= 600 else max(span / 20, 1e-9)
    bins = max(1, int(np.ceil(span / width)))
    at = np.minimum(((outcome.arrival_s[missed] - start) / width).astype(int), bins - 1)
    counts = np.bincount(at, minlength=bins)
    top = int(counts.argmax())
    dense = counts >= max(1, counts[top] / 3)
    low = high = top
    while low > 0 and dense[low - 1]:
        low -= 1
    while high < bins - 1 and dense[high + 1]:
        high += 1
    most = float(dense.mean()) > 0.6
    if most:
        return _When(start, start + span, "all along", True)
    unit, scale = ("minute", 60.0) if span >= 600 else ("second", 1.0)
    first, last = low * width / scale, high * width / scale
    text = f"at {unit} {first:.0f}" if round(first) == round(last) else f"from {unit} {first:.0f} to {last:.0f}"
    return _When(start + low * width, start + (high + 1) * width, text, False)


class _Load(NamedTuple):
    """What was asked and what was full in a stretch: rates over the mean of the run, shares of what there is."""

    arrivals: float
    prompts: float
    prompt_rate: float
    prompt_mean: float
    arrival_rate: float
    arrival_mean: float
    prefill: float  # tokens per second that all replicas can take
    memory: float
    batch: float
    waiting: float


def _load(outcome: Outcome, when: _When, engine: Engine) -> _Load:
    requests, replicas = outcome.requests, len(outcome.steps)
    arrival = outcome.arrival_s
    span = max(requests.span_s, 1e-9)
    inside = (arrival >= when.start_s) & (arrival < when.end_s)
    length = max(min(when.end_s, outcome.start_s + span) - when.start_s, 1e-9)
    prompts, prompt_mean = float(requests.prompt_tokens[inside].sum()) / length, float(requests.prompt_tokens.sum())
    arrivals, arrival_mean = float(np.count_nonzero(inside)) / length, requests.n / span
    prompt_mean /= span
    line = outcome.timeline
    edges = np.arange(len(line.busy_s)) * line.width_s
    rows = (edges + line.width_s > when.start_s) & (edges < when.end_s)
    rows = rows if rows.any() else np.ones_like(rows)
    capacity = float(outcome.kv_capacity_bytes.sum())
    return _Load(
        arrivals / max(arrival_mean, 1e-12),
        prompts / max(prompt_mean, 1e-12),
        prompts,
        prompt_mean,
        arrivals,
        arrival_mean,
        replicas * prefill_per_s(engine),
        float(line.kv_bytes[rows].max()) / max(capacity, 1.0),
        float(line.running[rows].max()) / (engine.max_batch * replicas),
        float(line.waiting[rows].max()),
    )


def _cause(outcome: Outcome, item: Objective, missed: Bools, when: _When, engine: Engine) -> tuple[str, str]:
    """Return the constraint's kind and its words, the most certain cause first."""
    load = _load(outcome, when, engine)
    inside = (outcome.arrival_s >= when.start_s) & (outcome.arrival_s <= when.end_s)
    preempted = int(outcome.preemptions[inside].sum())
    full = float((outcome.peak_kv_bytes / np.maximum(outcome.kv_capacity_bytes, 1)).max())
    if preempted > 0.05 * np.count_nonzero(missed & inside) or (load.memory >= _FULL and load.waiting > 0):
        text = f"KV memory is full ({100 * max(full, load.memory):.0f} %, {preempted:,} preemptions)"
        return "kv-memory", text
    if load.batch >= _FULL and item.metric in ("ttft", "e2e"):
        return "batch", f"the batch limit of {engine.max_batch} is reached"
    kind = item.metric
    if text := _alone(outcome, item, missed & inside, engine):
        return kind, text
    if not when.most and load.prompts >= max(_BURST, load.arrivals * 0.9):
        rates = f"{load.prompt_rate:,.0f} tokens/s against {load.prompt_mean:,.0f} on average"
        return kind, f"prompt bursts ({rates})"
    if not when.most and load.arrivals >= _BURST:
        return kind, f"bursts of requests ({load.arrival_rate:.3g}/s against {load.arrival_mean:.3g}/s on average)"
    if load.prompt_rate >= _BEHIND * load.prefill and item.metric in ("ttft", "e2e"):
        rates = f"{load.prompt_rate:,.0f} prompt tokens/s, of {load.prefill:,.0f} that the replicas can prefill"
        return kind, f"prompts take the replicas' time ({rates})"
    return kind, _shape(outcome, item, missed, load, engine)


def _alone(outcome: Outcome, item: Objective, missed: Bools, engine: Engine) -> str:
    """Return in words that the requests that miss are too long, where an idle replica is half the limit on them."""
    if item.metric not in ("ttft", "e2e") or not missed.any():
        return ""
    demand = work(outcome.requests, engine.table.window)
    first, gap = alone(step_floor(engine), demand)
    least = float(np.median((first if item.metric == "ttft" else first + gap * demand.decode)[missed]))
    if least < _LONG * item.limit_s:
        return ""
    column, name = _lengths(outcome, item)
    tokens = float(np.median(column[missed]))
    return f"long {name} (half of those over {tokens:,.0f} tokens, {show(least, 'time')} on an idle replica)"


def _lengths(outcome: Outcome, item: Objective) -> tuple[NDArray[np.int32], str]:
    """Return the lengths that a metric depends on, and what they are of."""
    requests = outcome.requests
    return (requests.prompt_tokens, "prompts") if item.metric == "ttft" else (requests.output_tokens, "outputs")


def _shape(outcome: Outcome, item: Objective, missed: Bools, load: _Load, engine: Engine) -> str:
    """Return what sets the requests that miss apart from the others, where load alone does not explain it."""
    if item.metric in ("tpot", "itl"):
        if load.batch >= _FULL:
            return f"batches of {engine.max_batch} sequences are that slow"
        if engine.batching == "chunked":
            return f"steps of up to {engine.token_budget:,} tokens hold decodes up"
        if engine.batching == "prefill-first":
            return "prompts stop the decodes"
        return "prompts and large batches stretch the steps"
    column, name = _lengths(outcome, item)
    theirs, all_of_them = float(np.median(column[missed])), float(np.median(column))
    if theirs > 1.5 * all_of_them:
        return f"long {name} (half of those over {theirs:,.0f} tokens, of all over {all_of_them:,.0f})"
    return "requests meet on a replica"

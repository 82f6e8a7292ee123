"""WHAT HAPPENED: the outcome of a run as columns, and its summaries. One table for simulator and runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.errors import CannotError, library
from sonde.units import show
from sonde.workload.requests import Requests

if TYPE_CHECKING:
    import pandas
    import polars

Floats = NDArray[np.float64]
#: "transfer" is there only where caches travel from where prompts are computed to where answers are
Metric = Literal["ttft", "tpot", "e2e", "itl", "transfer"]
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e", "itl")
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}

#: inter-token gaps are counted in 64 bins per octave from 2^-20 s to 2^12 s, each about 1 % wide
ITL_PER_OCTAVE, ITL_LOWEST, ITL_OCTAVES = 64, -20, 32
ITL_BINS = ITL_PER_OCTAVE * ITL_OCTAVES


#: why there are no gaps between tokens where a technique guesses them
ITL_UNKNOWN = "not known: a step makes several tokens of a sequence at once, and they are counted one by one"

#: share of measurements that an interval holds, and the figures of a summary that have one beside the latencies
LEVEL = 0.8
UNCERTAIN = (
    "attainment", "tokens_per_s", "goodput_requests_per_s", "utilisation", "energy_j", "joules_per_token", "carbon_g",
    "usd", "usd_per_million_tokens", "span_s",
)  # fmt: skip


class Objective(NamedTuple):
    """`metric` at `quantile` (0.99 is p99) must stay at or below `limit_s`."""

    metric: Metric
    quantile: float
    limit_s: float

    @property
    def label(self) -> str:
        """Return the name people use, such as "p99 TTFT"."""
        name = {"e2e": "end to end", "transfer": "transfer"}.get(self.metric, self.metric.upper())
        return f"{quantile_name(self.quantile)} {name}"


class Timeline(NamedTuple):
    """What all replicas did, in `k` equal spans of `width_s` from the first arrival (sums over replicas).

    busy_s [k]      replica-seconds spent in steps
    kv_bytes [k]    mean bytes of KV cache held in blocks
    running [k]     mean number of sequences in the batches
    waiting [k]     mean number of requests not yet started
    """

    width_s: float
    busy_s: Floats
    kv_bytes: Floats
    running: Floats
    waiting: Floats


class Travel(NamedTuple):
    """What went over links, where replicas depend on each other. Per request [n]:

    source i4         the replica that computed its prompt, where another one decoded (-1: none did)
    landed_s f8       when its cache last came to the replica that decodes (NaN: it never moved)
    cached_tokens i4  tokens of its prompt that were found in a prefix cache
    moves i4          live migrations
    paused_s f8       seconds in which it was in no batch because of them, in all
    links             one record per link: name (of what it is for), bytes, transfers, busy (s)
    tiers             one record per tier of a prefix cache: name, tokens found there, bytes fetched from there, and
                      blocks evicted, of all its stores
    evicted, migrations, given_up   blocks given up by caches, migrations that came off, and that did not
    borrowed_tokens i4  the most tokens of it that lay in another replica's memory
    loans             times that blocks were sent to another replica, to stay there
    """

    source: NDArray[np.int32]
    landed_s: Floats
    cached_tokens: NDArray[np.int32]
    moves: NDArray[np.int32]
    paused_s: Floats
    links: NDArray[np.void]
    tiers: NDArray[np.void]
    evicted: int
    migrations: int
    given_up: int
    borrowed_tokens: NDArray[np.int32]
    loans: int

    def summary(self, prompt_tokens: int) -> dict[str, object]:
        """Return the figures of what went over links; shares are of so many prompt tokens."""
        of = max(prompt_tokens, 1)
        return {
            "cached_share": float(self.cached_tokens.sum()) / of,
            "transfers": int(self.links["transfers"].sum()),
            "transferred_bytes": float(self.links["bytes"].sum()),
            "evicted": self.evicted,
            "migrations": self.migrations,
            "given_up": self.given_up,
            "paused_s": {
                "mean": float(self.paused_s.sum()) / max(int(self.moves.sum()), 1),
                "max": float(self.paused_s.max(initial=0.0)),
            },
            "loans": self.loans,
            "links": {
                str(name): {
                    "bytes": float(self.links["bytes"][self.links["name"] == name].sum()),
                    "transfers": int(self.links["transfers"][self.links["name"] == name].sum()),
                }
                for name in dict.fromkeys(self.links["name"].tolist())
                if name
            },
            "tiers": {
                str(tier["name"]): {
                    "cached_share": float(tier["tokens"]) / of,
                    "bytes": float(tier["bytes"]),
                    "evicted": int(tier["evicted"]),
                }
                for tier in self.tiers
            },
        }


@dataclass(frozen=True, eq=False)
class Outcome:
    """What happened to every request, and to every replica. NaN stands for "never".

    Per request [n]: replica i4 (-1: refused, it would not fit the memory of any replica),
    scheduled_s (first step that worked on it), first_token_s, finish_s (f8), preemptions i4.
    Per replica [r]: steps i8, busy_s, energy_j (drawn by its devices, in steps and idling up to `end_s`),
    peak_kv_bytes, kv_capacity_bytes.
    itl_counts [ITL_BINS] counts the gaps between successive tokens of a request, over all requests.
    """

    requests: Requests
    replica: NDArray[np.int32]
    scheduled_s: Floats
    first_token_s: Floats
    finish_s: Floats
    preemptions: NDArray[np.int32]
    steps: NDArray[np.int64]
    busy_s: Floats
    energy_j: Floats
    peak_kv_bytes: Floats
    kv_capacity_bytes: Floats
    itl_counts: NDArray[np.int64]
    timeline: Timeline
    usd_per_hour: float
    simulation_s: float
    arrival_s: Floats  # when each request was sent: as asked for (open loop), or when a client came free
    electricity_usd: float = 0.0  # where a site pays for power apart from its devices
    carbon_g: float = 0.0  # of CO2, for all that the sites drew
    travel: Travel | None = None  # where replicas depend on each other
    aborted: bool = False  # stopped early since an objective could no longer be met: figures are partial
    either: Callable[[], tuple[Outcome, Outcome]] | None = None  # the same run at the fast end, and at the slow end
    bursts: bool = False  # steps make several tokens of a sequence at once: gaps between tokens are not known

    @cached_property
    def ends(self) -> tuple[Outcome, Outcome]:
        """Return the same run with all engines as fast, and as slow, as 80 % of measurements allow.

        Simulated when first asked for. Raises CannotError where nobody said how far off predictions may be.
        """
        if self.either is None:
            raise CannotError("no interval is known for this run: sonde.simulate and sonde.plan say how sure they are")
        fast, slow = self.either()
        return replace(fast, bursts=self.bursts), replace(slow, bursts=self.bursts)

    def interval(self, metric: Metric, q: float) -> tuple[float, float]:
        """Return the ends of the 80 % interval of quantile `q` of a metric in s. Raises CannotError as `ends`."""
        low, high = _between((self, *self.ends), metric, q)
        return low, high

    def intervals(
        self, objectives: tuple[Objective, ...] = (), ends: tuple[Outcome, Outcome] | None = None
    ) -> dict[str, object]:
        """Return [low, high] of the 80 % interval for what is uncertain in `summary`, under the same keys.

        Latencies also have the quantiles of the objectives. `ends` are taken in place of `self.ends`, which would be
        kept. Raises CannotError as `ends`.
        """
        runs = (self, *(ends or self.ends))
        found: list[dict[str, Any]] = [outcome.summary(objectives) for outcome in runs]
        out: dict[str, object] = {"level": LEVEL}
        for metric in self.metrics:
            asked = {quantile_name(item.quantile): item.quantile for item in objectives if item.metric == metric}
            out[f"{metric}_s"] = {name: _between(runs, metric, q) for name, q in (QUANTILES | asked).items()}
        for key in UNCERTAIN:
            values = [each[key] for each in found]
            out[key] = [min(values), max(values)]
        return out

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics that this run has."""
        return (*METRICS, "transfer") if self.travels else METRICS

    @property
    def completed(self) -> int:
        """Return the number of requests that finished."""
        return int(np.count_nonzero(np.isfinite(self.finish_s)))

    @property
    def end_s(self) -> float:
        """Return the moment of the last token (0 where nothing finished)."""
        return float(np.nanmax(self.finish_s)) if self.completed else 0.0

    @property
    def start_s(self) -> float:
        """Return the moment of the first arrival."""
        return float(self.arrival_s.min())

    @property
    def queueing_s(self) -> Floats:
        """Return the wait of every request before its first step."""
        return self.scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> Floats:
        """Return the time to first token of every request."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> Floats:
        """Return the time from arrival to last token of every request."""
        return self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Return (finish - first token)/(output tokens - 1) of every request; 0 where it has one token."""
        gaps = self.requests.output_tokens - 1
        return np.where(gaps > 0, (self.finish_s - self.first_token_s) / np.maximum(gaps, 1), 0.0)

    @property
    def travels(self) -> bool:
        """Return whether prompts were computed in one place and answered in another."""
        return self.travel is not None and bool((self.travel.source >= 0).any())

    @property
    def transfer_s(self) -> Floats:
        """Return the time of every request from its first token to its cache having landed where it decodes.

        0 where it has one token, or where its cache was there sooner. Raises CannotError where no cache travels.
        """
        if self.travel is None or not self.travels:
            raise CannotError("no transfer is known for this run: prompts and answers are computed in one place")
        waits = np.maximum(self.travel.landed_s - self.first_token_s, 0.0)
        return np.where(self.requests.output_tokens > 1, waits, 0.0)

    def quantile(self, metric: Metric, q: float) -> float:
        """Return quantile `q` of a metric in s: the value that a share `q` of requests does not exceed.

        TTFT, TPOT, end to end and transfer are exact order statistics, where a request that never got there counts
        as infinite; TPOT and transfer are over requests of two tokens or more; ITL is over all gaps, to 1 %, and NaN
        where tokens come in `bursts`. Raises CannotError for a transfer where there is none.
        """
        if metric == "itl":
            return math.nan if self.bursts else itl_quantile(self.itl_counts, q)
        return self._quantile(metric, q, np.ones(self.requests.n, bool))

    def _quantile(self, metric: Metric, q: float, of: NDArray[np.bool_]) -> float:
        values: Floats = getattr(self, f"{metric}_s")
        values = values[of & (self.requests.output_tokens > 1) if metric in ("tpot", "transfer") else of]
        if not len(values):
            return 0.0
        values = np.where(np.isnan(values), np.inf, values)
        rank = min(len(values) - 1, max(0, int(np.ceil(q * len(values))) - 1))
        return float(np.partition(values, rank)[rank])

    def priorities(self) -> list[dict[str, object]]:
        """Return requests, preemptions and latencies (s) by priority, the most urgent first."""
        rows = []
        for priority in np.unique(self.requests.priority):
            of = self.requests.priority == priority
            row: dict[str, object] = {
                "priority": int(priority), "requests": int(of.sum()), "preemptions": int(self.preemptions[of].sum()),
            }  # fmt: skip
            for metric in self.metrics:
                if metric != "itl":
                    row[f"{metric}_s"] = {name: self._quantile(metric, at, of) for name, at in QUANTILES.items()}
            rows.append(row)
        return rows

    def met(self, objectives: tuple[Objective, ...]) -> NDArray[np.bool_]:
        """Return for every request whether it stayed within every per-request limit (ITL has none)."""
        ok = np.isfinite(self.finish_s)
        for metric, _, limit in objectives:
            if metric != "itl":
                with np.errstate(invalid="ignore"):
                    ok &= getattr(self, f"{metric}_s") <= limit
        return ok

    def summary(self, objectives: tuple[Objective, ...] = ()) -> dict[str, object]:
        """Return the figures of `simulate --json`: latencies in s, rates, energy, dollars."""
        out: dict[str, object] = {"requests": self.requests.n, "completed": self.completed}
        for metric in self.metrics:
            out[f"{metric}_s"] = {name: self.quantile(metric, q) for name, q in QUANTILES.items()}
        if self.bursts:
            out["itl_note"] = ITL_UNKNOWN
        span = max(self.end_s - self.start_s, 1e-9)
        done = np.isfinite(self.finish_s)
        tokens = int(self.requests.output_tokens[done].sum())
        prompts = int(self.requests.prompt_tokens[done].sum())
        met = self.met(objectives)
        energy = float(self.energy_j.sum())
        usd = self.usd_per_hour * span / 3600 + self.electricity_usd
        out |= {
            "attainment": float(met.mean()),
            "tokens_per_s": tokens / span,
            "goodput_requests_per_s": float(met.sum()) / span,
            "utilisation": float(self.busy_s.sum() / (len(self.busy_s) * span)),
            "peak_kv": float((self.peak_kv_bytes / np.maximum(self.kv_capacity_bytes, 1)).max()),
            "preemptions": int(self.preemptions.sum()),
            "refused": int((self.replica < 0).sum()),
            "energy_j": energy,
            "joules_per_token": energy / max(tokens, 1),
            "carbon_g": self.carbon_g,
            "usd": usd,
            "usd_per_million_tokens": usd / max(tokens + prompts, 1) * 1e6,
            "steps": int(self.steps.sum()),
            "span_s": span,
            "simulation_s": self.simulation_s,
        }
        if self.requests.priority.any():
            out["priorities"] = self.priorities()
        if self.travel is not None:
            out |= self.travel.summary(int(self.requests.prompt_tokens[self.replica >= 0].sum()))
        return out

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return one row per request as named columns."""
        found: dict[str, NDArray[np.generic]] = {
            "arrival_s": self.arrival_s,
            "prompt_tokens": self.requests.prompt_tokens,
            "output_tokens": self.requests.output_tokens,
            "priority": self.requests.priority,
            "replica": self.replica,
            "queueing_s": self.queueing_s,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "e2e_s": self.e2e_s,
            "preemptions": self.preemptions,
        }
        if self.travel is not None:
            found |= {
                "cached_tokens": self.travel.cached_tokens,
                "moves": self.travel.moves,
                "paused_s": self.travel.paused_s,
            }
        return found

    def to_polars(self) -> polars.DataFrame:
        """Return the rows of `columns` as a polars frame."""
        import polars

        return polars.DataFrame(self.columns())

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of `columns` as a pandas frame (needs pandas installed)."""
        frame: pandas.DataFrame = library("pandas", "to_pandas()").DataFrame(self.columns())
        return frame

    def __repr__(self) -> str:
        s: dict[str, Any] = self.summary()
        lines = [
            f"Outcome of {self.requests.n:,} requests on {len(self.steps)} replicas ({self.completed:,} completed)"
        ]
        for metric, name in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end"), ("itl", "ITL")):
            if metric == "itl" and self.bursts:
                continue
            text = " / ".join(f"{1e3 * value:,.1f}" for value in s[f"{metric}_s"].values())
            lines.append(f"  {name:<11}p50 / p90 / p99   {text} ms")
        lines.append(
            f"  {s['tokens_per_s']:,.0f} output tokens/s, utilisation {100 * s['utilisation']:.0f} %, "
            f"{s['preemptions']:,} preemptions"
        )
        lines.append(
            f"  ${s['usd_per_million_tokens']:.3f} per million tokens, {s['joules_per_token']:.2f} J per output token"
            + (f", {s['carbon_g']:,.0f} g CO2 in all" if s["carbon_g"] else "")
        )
        if self.travel is not None:
            lines.append(
                f"  {100 * s['cached_share']:.0f} % of prompt tokens cached, {s['transfers']:,} transfers of "
                f"{show(s['transferred_bytes'], 'bytes')}, {s['migrations']:,} migrations"
            )
        return "\n".join(lines)


def quantile_name(q: float) -> str:
    """Return "p99" for 0.99."""
    return f"p{100 * q:g}"


def _between(runs: Sequence[Outcome], metric: Metric, q: float) -> list[float]:
    values = [outcome.quantile(metric, q) for outcome in runs]
    return [min(values), max(values)]


def itl_edges() -> Floats:
    """Return the lower edges of the ITL bins in s, and the last upper edge: [ITL_BINS + 1]."""
    step = np.arange(ITL_BINS + 1)
    octave, part = step // ITL_PER_OCTAVE, step % ITL_PER_OCTAVE
    return np.asarray(np.ldexp(0.5 + part / (2.0 * ITL_PER_OCTAVE), octave + ITL_LOWEST + 1))


def itl_quantile(counts: NDArray[np.int64], q: float) -> float:
    """Return quantile `q` of the binned gaps in s, linear inside a bin; 0 where there are none."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    cumulative = np.cumsum(counts)
    rank = q * total
    i = int(np.searchsorted(cumulative, rank))
    edges = itl_edges()
    inside = (rank - (cumulative[i] - counts[i])) / counts[i]
    return float(edges[i] + inside * (edges[i + 1] - edges[i]))

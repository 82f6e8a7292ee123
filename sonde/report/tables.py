"""Tables for the terminal, as rich renderables. They drop their least needed columns where there is no room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sonde.metrics import ITL_UNKNOWN, METRICS, QUANTILES, Objective, Outcome
from sonde.plan.result import PlanResult
from sonde.report import text
from sonde.units import show

if TYPE_CHECKING:
    from sonde.plan.ablation import Brought

GOOD, BAD, FAINT = "green", "red", "dim"
WORDS = 42  # characters that a column of words gets before others have to go


class Column(NamedTuple):
    """A column of a table: its heading and cells. Columns of the highest `rank` are dropped first; 0 stays."""

    head: str
    cells: Sequence[str | Text]
    rank: int = 0
    words: bool = False  # text, set left and folded where it is long; else a figure, set right and never folded


class Fitted:
    """A table that holds as many of its columns as the console has room for."""

    def __init__(self, title: str, columns: Sequence[Column], foot: Sequence[str] = (), strong: int = -1) -> None:
        self.title, self.columns, self.foot, self.strong = title, tuple(columns), tuple(foot), strong

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        kept = list(self.columns)
        while self._needs(kept) > options.max_width and any(column.rank for column in kept):
            kept.remove(max(reversed(kept), key=lambda column: column.rank))
        yield self._table(kept)
        for line in self.foot:
            yield Padding(Text(line, style=FAINT), (0, 0, 0, 1), expand=False)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least = self._needs([column for column in self.columns if not column.rank])
        return Measurement(min(least, options.max_width), options.max_width)

    def _needs(self, columns: Sequence[Column]) -> int:
        """Return the width that keeps figures whole and gives words `WORDS` characters or what they need."""
        width = 2
        for column in columns:
            widest = max(map(_width, [column.head, *column.cells]))
            width += 2 + (min(widest, WORDS) if column.words else widest)
        return width

    def _table(self, columns: Sequence[Column]) -> Table:
        table = Table(title=Text(self.title) if self.title else None, title_justify="left", title_style="bold",
                      box=SIMPLE_HEAD, pad_edge=False, header_style=FAINT)  # fmt: skip
        for column in columns:
            if column.words:
                table.add_column(Text(column.head), overflow="fold")
            else:
                table.add_column(Text(column.head), justify="right", no_wrap=True)
        for i, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            table.add_row(*(_as_text(cell) for cell in cells), style="bold" if i == self.strong else None)
        return table


def plan_table(result: PlanResult, top: int = 20, *, reported: bool = True) -> RenderableType:
    """Return the cheapest plan of the `top` cheapest kinds of fleet, with the bound beneath; words where none holds.

    What is left out is said to be in the report only where one is written (`reported`).
    """
    if not result.plans:
        best = f"; {result.best_failing}" if result.best_failing else ""
        return Text(f"No deployment on the hardware allowed holds every objective{best}.", style=BAD)
    plans = result.kinds[:top]
    bound = result.bound_usd_per_hour
    columns = [
        Column("#", [str(plan.rank) for plan in plans]),
        Column("deployment", [plan.label for plan in plans], words=True),
        Column("cost", [_two(show(plan.usd_per_hour, "price"), text.cost_range(plan)) for plan in plans]),
        Column("if slow", [_two(text.if_slow(plan), text.like(plan)) for plan in plans], 1),
        Column("× bound", [f"{plan.usd_per_hour / bound:.2f}" if bound > 0 else "-" for plan in plans], 4),
    ]
    limits = list(result.objectives)
    if not any(objective.metric == "e2e" for objective in limits):
        limits.append(Objective("e2e", 0.99, float("inf")))
    for i, objective in enumerate(limits):
        cells = [
            _two(text.seconds(text.objective_value(objective, plan.outcome, plan.summary)),
                 text.latency_range(objective, plan))
            for plan in plans
        ]  # fmt: skip
        columns.append(Column(_short(objective), cells, 1 if i < 2 else 2))
    million, token = "usd_per_million_tokens", "joules_per_token"
    columns += [
        Column("$/M tokens", [_two(text.usd(text.figure(plan.summary, million)), text.range_of(plan, million, "usd"))
                              for plan in plans], 5),
        Column("J/token", [_two(text.joules_each(text.figure(plan.summary, token)),
                                text.range_of(plan, token, text.EACH)) for plan in plans], 6),
        Column("peak KV", [text.percent(text.figure(plan.summary, "peak_kv")) for plan in plans], 7),
        Column("CO2/h", [text.carbon(plan.summary) for plan in plans], 8),
    ]  # fmt: skip
    return Fitted(f"Plans that hold ({len(result.plans)})", columns, _plan_foot(result, len(plans), reported), strong=0)


def brought_table(rows: Sequence[Brought], objectives: Sequence[Objective]) -> RenderableType:
    """Return what each technique brings: a row a set of techniques, with the cheapest fleet that holds under it."""
    price = {row.name: row.found.usd_per_hour for row in rows if row.found}
    limits = [item for item in objectives if item.metric in ("ttft", "tpot", "e2e")] or [Objective("e2e", 0.99, 1e9)]
    columns = [
        Column("techniques", [row.name for row in rows], words=True),
        Column(
            "cheapest fleet that holds",
            [text.fleet_words(row) for row in rows],
            words=True,
        ),
        Column("cost", [show(row.found.usd_per_hour, "price") if row.found else "-" for row in rows]),
        Column("× none", [text.times(price.get(row.name), price.get("none")) for row in rows], 2),
        Column("goodput", [show(row.goodput, "rate") if row.found else "-" for row in rows]),
        Column("per $", [text.per_dollar(row) for row in rows], 1),
    ]
    columns += [
        Column(
            _short(item),
            [
                text.seconds(text.objective_value(item, row.found.outcome, row.summary)) if row.found else "-"
                for row in rows
            ],
            3,
        )
        for item in limits
    ]
    columns.append(
        Column(
            "J/token",
            [text.joules_each(text.figure(row.summary, "joules_per_token")) if row.found else "-" for row in rows],
            4,
        )
    )
    foot = [
        "Each row is searched anew on the best plan's kind of device, in its precision. Goodput: requests/s up to "
        "which that fleet holds every objective, when the same requests come faster (of equally cheap fleets, the "
        "highest is shown); per $: requests of it for a dollar."
    ]
    return Fitted("What techniques bring", columns, foot)


def rejection_table(result: PlanResult, top: int = 10, *, reported: bool = True) -> RenderableType:
    """Return why candidates fail: a row a constraint with its count and an example, the commonest `top` of them."""
    groups = text.grouped(result.rejected)
    if not groups:
        return Text("No candidate was turned down.", style=FAINT)
    shown = list(groups.items())[:top]
    columns = [
        Column("candidates", [text.whole(len(group)) for _, group in shown]),
        Column("what binds", [text.constraint_title(constraint) for constraint, _ in shown], words=True),
        Column("for instance", [f"{group[0].label}: {group[0].reason}" for _, group in shown], words=True),
    ]
    left = len(groups) - len(shown)
    foot = [f"{left} more kinds are {_elsewhere(reported)}."] if left else []
    return Fitted(f"Why others fail ({len(result.rejected)})", columns, foot)


def outcome_table(outcome: Outcome, objectives: Sequence[Objective] = ()) -> RenderableType:
    """Return one run in figures: latencies, objectives kept and missed, rates, memory, energy, dollars."""
    summary = outcome.summary(tuple(objectives))
    names = [text.METRIC_NAMES[metric][0] for metric in METRICS]
    sure = text.intervals(outcome, objectives)
    columns = [Column("latency", names, words=True)] + [
        Column(name, [_two(text.seconds(text.latency(summary, metric, name)), text.latency_interval(sure, metric, name))
                      for metric in METRICS])
        for name in QUANTILES
    ]  # fmt: skip
    parts: list[RenderableType] = [Fitted(f"{outcome.requests.n:,} requests, {outcome.completed:,} completed", columns)]
    if objectives:
        bars = text.bars(objectives, outcome, summary, sure)
        parts.append(
            Fitted("", [
                Column("objective", [bar.objective.label for bar in bars], words=True),
                Column("reached", [Text(text.seconds(bar.value), GOOD if bar.holds else BAD) for bar in bars]),
                Column("limit", [text.seconds(bar.objective.limit_s) for bar in bars]),
                Column("", [_verdict(bar.holds) for bar in bars]),
                *([Column("if slow", [_verdict(held) for held in text.kept_if_slow(outcome, objectives)])]
                  if sure else []),
            ])
        )  # fmt: skip
    parts.append(_facts(outcome, summary, sure, judged=bool(objectives)))
    if outcome.bursts:
        parts.append(Text(f" ITL is {ITL_UNKNOWN}.", style=FAINT))
    if sure:
        parts.append(Text(" Beneath a figure, or in brackets: its 80 % interval.", style=FAINT))
    if outcome.aborted:
        parts.append(Text(" Stopped early, for an objective could no longer be met: figures are of a part.", style=BAD))
    return Group(*parts)


def rows_table(title: str, rows: Sequence[Mapping[str, object]]) -> RenderableType:
    """Return rows of any kind as a table, a column a key (of the first row, then of later ones as they come).

    Numbers are set right, with three significant digits and a fourth where it is there to see; what has no
    value is left empty. Later columns make room first, the first one always stays.
    """
    if not rows:
        return Text(f"{title}: nothing to show" if title else "nothing to show", style=FAINT)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = []
    for i, key in enumerate(keys):
        values = [row.get(key) for row in rows]
        words = any(isinstance(value, str) for value in values)
        columns.append(Column(key.replace("_", " "), [_plain(value) for value in values], i, words))
    return Fitted(title, columns)


def _two(value: str, interval: str) -> str | Text:
    """Return a figure with its interval beneath."""
    return Text.assemble(value, "\n", (interval, f"not bold {FAINT}")) if interval else value


def _elsewhere(reported: bool) -> str:
    return "in the report" if reported else "in --json and in a report"


def _plan_foot(result: PlanResult, rows: int, reported: bool) -> list[str]:
    saving = text.gap(result.plans[0], result.bound_usd_per_hour)
    lines = (
        [f"The cheapest of each kind of fleet; {len(result.plans) - rows:,} more plans are {_elsewhere(reported)}."]
        if len(result.plans) > rows
        else []
    )
    shown = [plan.doubt for plan in result.plans if plan.doubt is not None]
    if shown:
        lines.append(
            "Beneath a figure: its 80 % interval; of the cost, what the fewest replicas that hold would cost"
            + (", ∞ where no number allowed does" if any(math.isinf(doubt.usd_high) for doubt in shown) else "")
            + "."
        )
        lines.append(f"{text.slow_note(result)} {text.steady(result)}")
    if any(doubt.like for doubt in shown):
        lines.append("≈: cannot be told apart by cost from these plans, whose order could turn.")
    if result.bound_usd_per_hour > 0:
        why = f": {result.bound_reason}" if result.bound_reason else ""
        lines.append(
            f"Lower bound {show(result.bound_usd_per_hour, 'price')} (at most {text.percent(saving)} left to save){why}"
        )
    lines.append(
        f"{result.candidates:,} candidates, {result.simulations:,} simulations "
        f"of {result.requests_simulated:,} requests in {text.seconds(result.elapsed_s)}"
    )
    return lines + list(result.notes)


def _facts(outcome: Outcome, summary: Mapping[str, object], sure: Mapping[str, Any], *, judged: bool) -> RenderableType:
    number = {key: text.figure(summary, key) for key in summary}

    def within(key: str, kind: str) -> str:
        found = text.summary_interval(sure, key, kind)
        return f" ({found})" if found else ""

    million = text.usd(number["usd_per_million_tokens"]) + within("usd_per_million_tokens", "usd")
    token = text.joules_each(number["joules_per_token"]) + within("joules_per_token", text.EACH)
    rows = [
        ("throughput", f"{show(number['tokens_per_s'], 'rate')}{within('tokens_per_s', 'rate')} output tokens"),
        ("running", f"{text.running(outcome):.3g} sequences a replica, on average"),
        ("peak KV memory", text.percent(number["peak_kv"])),
        ("preemptions", text.whole(number["preemptions"])),
        ("refused", text.whole(number["refused"])),
        ("energy", f"{text.joules(number['energy_j'])}, {token} per output token"),
        ("cost", f"{show(outcome.usd_per_hour, 'price')}, {million} per million tokens"),
        ("simulated", f"{text.whole(number['steps'])} steps in {text.seconds(outcome.simulation_s)}"),
    ]  # fmt: skip
    if judged:
        goodput = show(number["goodput_requests_per_s"], "rate")
        share = text.percent(number["attainment"]) + within("attainment", "ratio")
        rows[1:1] = [("in time", f"{share} of requests, {goodput}")]
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(f" {name}", style=FAINT), Text(value))
    return grid


def _verdict(holds: bool) -> Text:
    return Text("kept", GOOD) if holds else Text("missed", BAD)


def _short(objective: Objective) -> str:
    return objective.label.replace("end to end", "e2e")


def _plain(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def _width(cell: str | Text) -> int:
    return max(line.cell_len for line in _as_text(cell).split("\n", allow_blank=True))


def _as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)

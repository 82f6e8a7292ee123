"""Figures as plain plotly JSON: {"data": [...], "layout": {...}}.

Colours are CSS variables ("var(--accent)"); the page's script puts in what they stand for in light and dark.
Text that comes from the user is escaped here, for plotly reads a little HTML in its labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.metrics import Metric, Objective, Outcome, itl_edges
from sonde.plan.result import Plan
from sonde.report.text import METRIC_NAMES, between, figure, if_slow, joules_each, latency, seconds
from sonde.units import show

Figure = dict[str, Any]
Floats = NDArray[np.float64]

#: points of a distribution: dense where the tail is
_RANKS: Floats = np.concatenate([np.linspace(0, 0.9, 181), 1 - np.geomspace(0.1, 1e-4, 61)[1:], [1.0]])
_SPANS = 240  # points of a timeline at most
_ITL_STEPS = 16  # bars of the ITL histogram in an octave: each is 4.4 % wide


def frontier(plans: Sequence[Plan], bound: float, metric: Metric, objectives: Sequence[Objective]) -> Figure:
    """Return dollars per hour against the p99 of `metric`, one point a plan, energy as colour, the bound as a line."""
    plans = sorted(plans, key=lambda plan: (plan.frontier, -plan.rank))  # what is drawn last lies on top
    x = np.array([latency(plan.summary, metric) for plan in plans])
    unit, scale = _time_unit(float(np.nanmax(x[np.isfinite(x)], initial=0.0)))
    usd = np.array([plan.usd_per_hour for plan in plans])
    energy = [figure(plan.summary, "joules_per_token") or math.nan for plan in plans]
    marks = _round_numbers(float(np.nanmin(energy)), float(np.nanmax(energy))) if np.isfinite(energy).any() else []
    edge = _staircase(x, usd)
    line = {
        "type": "scatter", "mode": "lines", "name": "frontier", "hoverinfo": "skip",
        "x": _clean(scale * x[edge]), "y": _clean(usd[edge]),
        "line": {"shape": "hv", "color": "var(--muted)", "width": 1.5},
    }  # fmt: skip
    points = {
        "type": "scatter", "mode": "markers", "name": "plans", "x": _clean(scale * x), "y": _clean(usd),
        **_intervals(plans, metric, scale),
        "hovertemplate": "%{text}<extra></extra>", "text": [_hover(plan) for plan in plans],
        "marker": {
            "size": [13 if plan.frontier else 8 for plan in plans],
            "opacity": [1.0 if plan.frontier else 0.75 for plan in plans],
            "line": {"color": "var(--panel)", "width": 1.2},
            "color": _clean(np.log10(energy)), "showscale": True,
            "colorscale": [[0, "var(--energy-0)"], [0.5, "var(--energy-1)"], [1, "var(--energy-2)"]],
            "colorbar": {
                "title": {"text": "J/token", "side": "top", "font": {"size": 11}}, "thickness": 8, "len": 0.72,
                "outlinewidth": 0, "tickfont": {"size": 11}, "xpad": 6, "ypad": 0, "tickmode": "array",
                "tickvals": [math.log10(value) for value in marks],
                "ticktext": [f"{value:,.6g}" for value in marks],
            },
        },
    }  # fmt: skip
    layout = _layout(height=400)
    layout["xaxis"] |= {"title": _title(f"p99 {_name(metric)}, {unit}"), "rangemode": "tozero"}
    layout["yaxis"] |= {"title": _title("dollars per hour"), "tickprefix": "$", "rangemode": "tozero"}
    layout["margin"] |= {"l": 56, "b": 48, "t": 16}
    level, dearest = bound, float(np.max(usd, initial=bound))
    if 0 < 15 * bound < dearest:
        layout["yaxis"] |= _log_axis(0.7 * bound, 1.3 * dearest, "$")
        level = float(np.log10(bound))
    layout["shapes"].append(_line("h", bound, "var(--good)", "dash"))
    layout["annotations"].append(
        _note(f"no plan can cost less: {show(bound, 'price')}", "var(--good)", x=0, y=level, xref="paper",
              xanchor="left", yanchor="top", xshift=4, yshift=-2)
    )  # fmt: skip
    for objective in objectives:
        if (
            objective.metric == metric
            and objective.quantile == 0.99
            and objective.limit_s <= 1.6 * np.max(x, initial=0)
        ):
            layout["shapes"].append(_line("v", scale * objective.limit_s, "var(--limit)", "dot"))
            layout["annotations"].append(
                _note("objective", "var(--limit)", x=scale * objective.limit_s, y=1, yref="paper", xanchor="right",
                      yanchor="top")
            )  # fmt: skip
    return {"data": [line, points], "layout": layout}


def distribution(outcome: Outcome, metric: Metric, objectives: Sequence[Objective]) -> Figure:
    """Return the share of requests within a time, on a log axis, with the objectives on `metric` drawn in."""
    values: Floats = getattr(outcome, f"{metric}_s")
    if metric == "tpot":
        values = values[outcome.requests.output_tokens > 1]
    done = values[np.isfinite(values) & (values > 0)]
    share = len(done) / max(len(values), 1)
    times = np.quantile(done, _RANKS) if len(done) else np.array([1e-3, 1.0])
    ranks = 100 * share * _RANKS if len(done) else np.zeros(2)
    limits = [objective.limit_s for objective in objectives if objective.metric == metric]
    low, high = min([times[2] if len(done) else times[0], *limits]) / 1.1, 1.1 * max([times[-1], *limits])
    unit, scale = _time_unit(float(times[-1]))
    data = [{
        "type": "scatter", "mode": "lines", "x": _clean(scale * np.append(times, high)),
        "y": _clean(np.append(ranks, ranks[-1])), "line": {"color": "var(--accent)", "width": 2}, "fill": "tozeroy",
        "fillcolor": "var(--wash)", "hovertemplate": f"%{{y:.1f}} % within %{{x:.3~g}} {unit}<extra></extra>",
    }]  # fmt: skip
    layout = _layout(height=250)
    layout["xaxis"] |= _log_axis(scale * low, scale * high) | {"title": _title(unit)}
    layout["yaxis"] |= {"range": [0, 104], "ticksuffix": " %", "nticks": 6}
    for objective in objectives:
        if objective.metric == metric:
            _draw_objective(data, layout, objective, scale, outcome.quantile(metric, objective.quantile))
    return {"data": data, "layout": layout}


def gaps(outcome: Outcome, objectives: Sequence[Objective]) -> Figure:
    """Return the histogram of gaps between successive tokens, on a log axis, with objectives on ITL drawn in."""
    layout = _layout(height=250)
    layout["yaxis"] |= {"ticksuffix": " %", "rangemode": "tozero", "nticks": 6}
    total = int(outcome.itl_counts.sum())
    if total == 0:
        return {"data": [], "layout": layout}
    limits = [objective.limit_s for objective in objectives if objective.metric == "itl"]
    held = np.flatnonzero(outcome.itl_counts)
    edges = itl_edges()
    first, last = (
        np.floor(np.log2(edges[held[0]]) * _ITL_STEPS) - 1,
        np.ceil(np.log2(edges[held[-1] + 1]) * _ITL_STEPS) + 1,
    )
    times = np.exp2(np.arange(first, last + 1) / _ITL_STEPS)
    shares = np.diff(np.interp(times, edges, np.append(0, np.cumsum(outcome.itl_counts)))) / total
    unit, scale = _time_unit(outcome.quantile("itl", 0.99))
    data = [{
        "type": "scatter", "mode": "lines", "x": _clean(scale * times[:-1]), "y": _clean(100 * shares),
        "fill": "tozeroy", "fillcolor": "var(--wash)", "line": {"color": "var(--accent)", "width": 1.5, "shape": "hv"},
        "hovertemplate": f"%{{y:.2f}} % of gaps from %{{x:.3~g}} {unit}<extra></extra>",
    }]  # fmt: skip
    ends = [times[0], times[-1], *limits]
    layout["xaxis"] |= _log_axis(scale * min(ends), scale * 1.05 * max(ends)) | {"title": _title(unit)}
    for objective in objectives:
        if objective.metric == "itl":
            _draw_limit(layout, objective, scale, above=True)
    return {"data": data, "layout": layout}


def load(outcome: Outcome) -> Figure:
    """Return four panels over time: arrivals, running and waiting requests, busy share, KV share."""
    line = outcome.timeline
    k = len(line.busy_s)
    step = max(1, -(-k // _SPANS))
    width = line.width_s
    starts: Floats = width * np.arange(0, k, step, dtype=np.float64)
    unit, scale = ("min", 1 / 60) if k * width >= 300 else ("s", 1.0)
    arrivals = np.histogram(outcome.arrival_s, bins=np.append(starts, k * width))[0] if k else np.empty(0)
    spans = np.diff(np.append(starts, k * width))
    replicas, capacity = len(outcome.busy_s), float(outcome.kv_capacity_bytes.sum())
    panels: list[tuple[str, list[tuple[str, str, Floats]]]] = [
        ("arrivals per second", [("arrivals", "var(--accent)", arrivals / np.maximum(spans, 1e-12))]),
        ("requests", [("running", "var(--accent)", _coarse(line.running, step)),
                      ("waiting", "var(--limit)", _coarse(line.waiting, step))]),
        ("busy, %", [("busy", "var(--accent)", 100 * _coarse(line.busy_s, step) / max(width * replicas, 1e-12))]),
        ("KV memory, %", [("KV", "var(--accent)", 100 * _coarse(line.kv_bytes, step) / max(capacity, 1.0))]),
    ]  # fmt: skip
    layout = _layout(height=520)
    layout["margin"]["t"] = 24
    del layout["yaxis"]
    data: list[Figure] = []
    for row, (title, series) in enumerate(panels):
        axis = "" if row == 0 else str(row + 1)
        bottom = 0.27 * (3 - row)
        layout[f"yaxis{axis}"] = _axis() | {"domain": [bottom, bottom + 0.155], "nticks": 4, "rangemode": "tozero"}
        if "%" in title:
            layout[f"yaxis{axis}"] |= {"range": [0, 104], "dtick": 50}
        layout["annotations"].append(
            _note(
                title,
                "var(--muted)",
                x=0,
                y=bottom + 0.16,
                xref="paper",
                yref="paper",
                xanchor="left",
                yanchor="bottom",
            )
        )
        for name, colour, values in series:
            data.append({
                "type": "scatter", "mode": "lines", "name": name, "x": _clean(scale * starts), "y": _clean(values),
                "yaxis": f"y{axis}", "line": {"color": colour, "width": 1.5, "shape": "hv"},
                "fill": "tozeroy" if len(series) == 1 else "none", "fillcolor": "var(--wash)",
                "showlegend": len(series) > 1,
                "hovertemplate": f"%{{y:.3~g}} {name} at %{{x:.3~g}} {unit}<extra></extra>",
            })  # fmt: skip
    layout["xaxis"] |= {"title": _title(f"{unit} since the start"), "anchor": "y4", "rangemode": "tozero"}
    layout |= {
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 0.69, "yanchor": "bottom"},
        "hovermode": "x", "showlegend": True,
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _name(metric: Metric) -> str:
    return "end to end" if metric == "e2e" else METRIC_NAMES[metric][0]


def _hover(plan: Plan) -> str:
    """Return what a point says when it is pointed at."""
    words = (
        f"<b>#{plan.rank} {escape(plan.label)}</b><br>{show(plan.usd_per_hour, 'price')}, {plan.devices} devices<br>"
        f"p99 TTFT {seconds(latency(plan.summary, 'ttft'))}, TPOT {seconds(latency(plan.summary, 'tpot'))}, "
        f"end to end {seconds(latency(plan.summary, 'e2e'))}<br>"
        f"{joules_each(figure(plan.summary, 'joules_per_token') or math.nan)} per token"
    )
    if plan.doubt is None:
        return words
    ends = f"p99 TTFT {between(*plan.doubt.interval('ttft'))}, TPOT {between(*plan.doubt.interval('tpot'))}"
    return f"{words}<br>80 %: {ends}; if slow, {if_slow(plan)}"


def _intervals(plans: Sequence[Plan], metric: Metric, scale: float) -> Figure:
    """Return bars to the ends of the intervals of p99 and of the price; none for a plan without."""
    p99 = [latency(plan.summary, metric) for plan in plans]
    usd = [plan.usd_per_hour for plan in plans]
    ends = [plan.doubt.interval(metric) if plan.doubt else (x, x) for plan, x in zip(plans, p99, strict=True)]
    prices = [(plan.doubt.usd_low, plan.doubt.usd_high) if plan.doubt else (y, y)
              for plan, y in zip(plans, usd, strict=True)]  # fmt: skip
    return {
        "error_x": _error_bars(scale * np.array(p99), scale * np.array(ends)),
        "error_y": _error_bars(np.array(usd), np.array(prices)),
    }


def _error_bars(values: Floats, ends: Floats) -> Figure:
    """Return bars from every value [n] to the ends of its interval [n, 2]; none to an end that is infinite."""
    low, high = ends.reshape(-1, 2).T
    up = np.where(np.isfinite(high), high - values, 0.0)
    return {
        "type": "data", "symmetric": False, "array": _clean(up), "arrayminus": _clean(values - low),
        "color": "var(--muted)", "thickness": 1, "width": 3,
    }  # fmt: skip


def _staircase(x: Floats, usd: Floats) -> NDArray[np.intp]:
    """Return the points that no other beats in both latency and dollars, by falling latency."""
    order = np.lexsort((x, usd))
    best, kept = np.inf, []
    for i in order:
        if x[i] < best:
            best = float(x[i])
            kept.append(i)
    return np.array(kept, dtype=np.intp)


def _draw_objective(data: list[Figure], layout: Figure, objective: Objective, scale: float, reached: float) -> None:
    """Draw the limit as a line, and what was reached at its quantile as a point."""
    _draw_limit(layout, objective, scale, above=reached > objective.limit_s)
    if np.isfinite(reached) and reached > 0:
        data.append({
            "type": "scatter", "mode": "markers", "x": [scale * reached], "y": [100 * objective.quantile],
            "marker": {"size": 9, "color": "var(--accent)", "line": {"color": "var(--panel)", "width": 1.5}},
            "hovertemplate": f"{objective.label} {seconds(reached)}<extra></extra>",
        })  # fmt: skip


def _draw_limit(layout: Figure, objective: Objective, scale: float, *, above: bool) -> None:
    """Draw the limit as an upright line on a log axis, its name along it at the end that the curve leaves free."""
    limit = scale * objective.limit_s
    layout["shapes"].append(_line("v", limit, "var(--limit)", "dot"))
    layout["annotations"].append(
        _note(f"{objective.label} ≤ {seconds(objective.limit_s)}", "var(--limit)", x=float(np.log10(limit)),
              y=0.97 if above else 0.05, yref="paper", xanchor="right", yanchor="top" if above else "bottom",
              textangle=-90)
    )  # fmt: skip


def _coarse(values: Floats, step: int) -> Floats:
    """Return means over `step` neighbours (the last may be fewer)."""
    starts = np.arange(0, len(values), step)
    counts = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(values, starts) / counts if len(values) else values


def _time_unit(largest_s: float) -> tuple[str, float]:
    return ("ms", 1e3) if largest_s < 1.0 else ("s", 1.0)


def _clean(values: Floats | NDArray[np.int64]) -> list[float | None]:
    """Return plain numbers of six digits, None where there is none: JSON knows neither NaN nor infinity."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _axis() -> Figure:
    return {
        "gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False, "ticks": "", "automargin": True,
        "tickfont": {"size": 11}, "fixedrange": True,
    }  # fmt: skip


def _title(text: str) -> Figure:
    return {"text": text, "font": {"size": 12}, "standoff": 8}


def _log_axis(low: float, high: float, prefix: str = "") -> Figure:
    """Return a log axis from `low` to `high`, with a handful of round numbers written out."""
    chosen = _round_numbers(low, high)
    return {
        "type": "log", "range": [math.log10(low), math.log10(high)], "tickmode": "array", "tickvals": chosen,
        "ticktext": [f"{prefix}{value:,.6g}" for value in chosen],
    }  # fmt: skip


def _round_numbers(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, four or more where there are so many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for digits in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        chosen = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(chosen) >= 4:
            break
    return chosen


def _layout(height: int) -> Figure:
    return {
        "height": height, "autosize": True, "showlegend": False, "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--sans)", "color": "var(--muted)", "size": 12},
        "hoverlabel": {"bgcolor": "var(--panel)", "bordercolor": "var(--line)", "align": "left",
                       "font": {"color": "var(--ink)", "size": 12, "family": "var(--sans)"}},
        "margin": {"l": 44, "r": 12, "t": 8, "b": 40}, "xaxis": _axis(), "yaxis": _axis(), "shapes": [],
        "annotations": [],
    }  # fmt: skip


def _line(way: str, at: float, colour: str, dash: str) -> Figure:
    ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": at, "y1": at, "yref": "y"}
    if way == "v":
        ends = {"y0": 0, "y1": 1, "yref": "paper", "x0": at, "x1": at, "xref": "x"}
    return {"type": "line", "line": {"color": colour, "width": 1.5, "dash": dash}, **ends}


def _note(text: str, colour: str, **place: object) -> Figure:
    return {"text": text, "showarrow": False, "font": {"size": 11.5, "color": colour}, **place}

"""Figures as plain plotly JSON: {"data": [...], "layout": {...}}.

Colours are CSS variables ("var(--accent)"); the page's script puts in what they stand for in light and dark.
Text that comes from the user is escaped here, for plotly reads a little HTML in its labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.metrics import Metric, Objective, Outcome, itl_edges
from sonde.plan.result import Plan
from sonde.report.text import METRIC_NAMES, figure, joules, latency, seconds
from sonde.units import show

Figure = dict[str, Any]
Floats = NDArray[np.float64]

#: points of a distribution: dense where the tail is
_RANKS: Floats = np.concatenate([np.linspace(0, 0.9, 91), 1 - np.geomspace(0.1, 1e-4, 61)[1:]])
_SPANS = 240  # points of a timeline at most
_ITL_GROUP = 4  # bins of the ITL histogram drawn as one: 16 per octave, each about 4 % wide


def frontier(plans: Sequence[Plan], bound: float, metric: Metric, objectives: Sequence[Objective]) -> Figure:
    """Return dollars per hour against the p99 of `metric`, one point a plan, energy as colour, the bound as a line."""
    x = np.array([latency(plan.summary, metric) for plan in plans])
    unit, scale = _time_unit(float(np.nanmax(x[np.isfinite(x)], initial=0.0)))
    usd = np.array([plan.usd_per_hour for plan in plans])
    energy = [figure(plan.summary, "joules_per_token") for plan in plans]
    hover = [
        f"<b>#{plan.rank} {escape(plan.label)}</b><br>{show(plan.usd_per_hour, 'price')}, {plan.devices} devices<br>"
        f"p99 TTFT {seconds(latency(plan.summary, 'ttft'))}, TPOT {seconds(latency(plan.summary, 'tpot'))}, "
        f"end to end {seconds(latency(plan.summary, 'e2e'))}<br>{joules(joule)} per token"
        for plan, joule in zip(plans, energy, strict=True)
    ]
    edge = _staircase(x, usd)
    line = {
        "type": "scatter", "mode": "lines", "name": "frontier", "hoverinfo": "skip",
        "x": _clean(scale * x[edge]), "y": _clean(usd[edge]),
        "line": {"shape": "hv", "color": "var(--muted)", "width": 1.5},
    }  # fmt: skip
    points = {
        "type": "scatter", "mode": "markers", "name": "plans", "x": _clean(scale * x), "y": _clean(usd),
        "hovertemplate": "%{text}<extra></extra>", "text": hover,
        "marker": {
            "size": [13 if plan.frontier else 8 for plan in plans],
            "opacity": [1.0 if plan.frontier else 0.75 for plan in plans],
            "line": {"color": "var(--panel)", "width": 1.2},
            "color": _clean(np.array(energy)), "showscale": True,
            "colorscale": [[0, "var(--energy-0)"], [0.5, "var(--energy-1)"], [1, "var(--energy-2)"]],
            "colorbar": {
                "title": {"text": "J/token", "side": "top", "font": {"size": 11}}, "thickness": 8, "len": 0.72,
                "outlinewidth": 0, "tickfont": {"size": 11}, "nticks": 5, "xpad": 6, "ypad": 0,
            },
        },
    }  # fmt: skip
    layout = _layout(height=400)
    layout["xaxis"] |= {"title": _title(f"p99 {_name(metric)}, {unit}"), "rangemode": "tozero"}
    layout["yaxis"] |= {"title": _title("dollars per hour"), "tickprefix": "$", "rangemode": "tozero"}
    layout["margin"] |= {"l": 56, "b": 48, "t": 16}
    if bound > 0 and float(np.max(usd, initial=bound)) > 15 * bound:
        layout["yaxis"] |= {"type": "log", "rangemode": "normal", "dtick": "D1"}
    level = float(np.log10(bound)) if layout["yaxis"].get("type") == "log" else bound
    layout["shapes"].append(_line("h", bound, "var(--good)", "dash"))
    layout["annotations"].append(
        _note(f"no plan can cost less: {show(bound, 'price')}", "var(--good)", x=1, y=level, xref="paper", xanchor="right",
              yanchor="top")
    )  # fmt: skip
    for objective in objectives:
        if objective.metric == metric and objective.quantile == 0.99 and objective.limit_s <= 1.6 * np.max(x, initial=0):
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
    times = np.quantile(done, _RANKS) if len(done) else np.empty(0)
    unit, scale = _time_unit(float(times[-1]) if len(done) else 1.0)
    data = [{
        "type": "scatter", "mode": "lines", "x": _clean(scale * times), "y": _clean(100 * share * _RANKS[: len(times)]),
        "line": {"color": "var(--accent)", "width": 2}, "fill": "tozeroy", "fillcolor": "var(--wash)",
        "hovertemplate": f"%{{y:.1f}} % within %{{x:.3~g}} {unit}<extra></extra>",
    }]  # fmt: skip
    layout = _layout(height=250)
    layout["xaxis"] |= _log_axis(unit)
    layout["yaxis"] |= {"range": [0, 104], "ticksuffix": " %", "nticks": 6}
    for objective in objectives:
        if objective.metric == metric:
            _draw_objective(data, layout, objective, scale, outcome.quantile(metric, objective.quantile))
    return {"data": data, "layout": layout}


def gaps(outcome: Outcome, objectives: Sequence[Objective]) -> Figure:
    """Return the histogram of gaps between successive tokens, on a log axis, with objectives on ITL drawn in."""
    counts = outcome.itl_counts.reshape(-1, _ITL_GROUP).sum(axis=1)
    edges = itl_edges()[::_ITL_GROUP]
    held = np.flatnonzero(counts)
    data: list[Figure] = []
    unit, scale = "ms", 1e3
    if len(held):
        first, last = max(0, held[0] - 1), min(len(counts), held[-1] + 2)
        unit, scale = _time_unit(outcome.quantile("itl", 0.99))
        data.append({
            "type": "scatter", "mode": "lines", "x": _clean(scale * edges[first:last]),
            "y": _clean(100 * counts[first:last] / counts.sum()), "fill": "tozeroy", "fillcolor": "var(--wash)",
            "line": {"color": "var(--accent)", "width": 1.5, "shape": "hv"},
            "hovertemplate": f"%{{y:.2f}} % of gaps from %{{x:.3~g}} {unit}<extra></extra>",
        })  # fmt: skip
    layout = _layout(height=250)
    layout["xaxis"] |= _log_axis(unit)
    layout["yaxis"] |= {"ticksuffix": " %", "rangemode": "tozero", "nticks": 6}
    for objective in objectives:
        if objective.metric == "itl":
            layout["shapes"].append(_line("v", scale * objective.limit_s, "var(--limit)", "dot"))
    return {"data": data, "layout": layout}


def load(outcome: Outcome) -> Figure:
    """Return four panels over time: arrivals, running and waiting requests, busy share, KV share."""
    line = outcome.timeline
    k = len(line.busy_s)
    step = max(1, -(-k // _SPANS))
    width = line.width_s
    starts = width * np.arange(0, k, step)
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
    layout = _layout(height=540)
    del layout["yaxis"]
    data: list[Figure] = []
    for row, (title, series) in enumerate(panels):
        axis = "" if row == 0 else str(row + 1)
        top = 1 - row / 4
        layout[f"yaxis{axis}"] = _axis() | {"domain": [top - 0.19, top - 0.035], "nticks": 4, "rangemode": "tozero"}
        if "%" in title:
            layout[f"yaxis{axis}"] |= {"range": [0, 104], "dtick": 50}
        layout["annotations"].append(
            _note(title, "var(--muted)", x=0, y=top, xref="paper", yref="paper", xanchor="left", yanchor="top")
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
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 0.757, "yanchor": "top", "font": {"size": 12}},
        "hovermode": "x", "showlegend": True,
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _name(metric: Metric) -> str:
    return "end to end" if metric == "e2e" else METRIC_NAMES[metric][0]


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
    limit = scale * objective.limit_s
    layout["shapes"].append(_line("v", limit, "var(--limit)", "dot"))
    layout["annotations"].append(
        _note(f"{objective.label} ≤ {seconds(objective.limit_s)}", "var(--limit)", x=float(np.log10(limit)), y=0.06,
              yref="paper", xanchor="right", yanchor="bottom", textangle=-90)
    )  # fmt: skip
    if np.isfinite(reached) and reached > 0:
        data.append({
            "type": "scatter", "mode": "markers", "x": [scale * reached], "y": [100 * objective.quantile],
            "marker": {"size": 9, "color": "var(--accent)", "line": {"color": "var(--panel)", "width": 1.5}},
            "hovertemplate": f"{objective.label} {seconds(reached)}<extra></extra>",
        })  # fmt: skip


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


def _log_axis(unit: str) -> Figure:
    return {"type": "log", "title": _title(unit), "dtick": "D2", "minor": {"showgrid": False}}


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

"""The report's page, figures and tables, on answers drawn with numpy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixture import OBJECTIVES, draw_outcome, draw_requests, draw_result
from rich.console import Console

from sonde.deployment.tree import Deployment
from sonde.errors import InputError
from sonde.metrics import ITL_BINS, Objective, itl_quantile
from sonde.plan.result import PlanDoubt, PlanResult, Rejection
from sonde.report import figures, tables, text, views
from sonde.report.page import coloured_yaml, embedded_json, packed_plotly, write_outcome_page, write_page
from sonde.units import show

EVIL = "<script>alert(1)</script>&\"'</style>"


@pytest.fixture(scope="module")
def result() -> PlanResult:
    return draw_result()


@pytest.fixture(scope="module")
def page(result: PlanResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_page(result, path) == path
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """The elements of a page: how many of each tag, ids, attributes that point elsewhere, text that is seen."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "poster") and value]
        if tag in ("script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open:
            self.words += data


def test_page_has_every_section_in_reading_order(page: str) -> None:
    outline = Outline(page)
    sections = ["answer", "plans", "frontier", "latency", "load", "cost", "rejected", "deployment", "about"]
    assert [name for name in outline.ids if name in sections] == sections


def test_page_points_nowhere_and_forbids_it(page: str) -> None:
    assert all(link.startswith(("#", "data:,")) for link in Outline(page).links)
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page
    assert page.count(packed_plotly()) == 1


def test_answer_says_plan_cost_latencies_and_bound(page: str, result: PlanResult) -> None:
    headline = unescape(re.sub(r"<[^>]*>", "", page.split("<h1>")[1].split("</h1>")[0]))
    headline = " ".join(headline.split())
    best = result.plans[0]
    assert headline.startswith(f"{best.label} serves this traffic for ${best.usd_per_hour:.2f}/h, with p99 TTFT ")
    for objective in OBJECTIVES:
        reached = text.seconds(best.outcome.quantile(objective.metric, objective.quantile))
        assert f"{objective.label} {reached} of {text.seconds(objective.limit_s)}" in headline
    assert f"less than ${result.bound_usd_per_hour:.2f}/h" in headline


def test_every_plan_and_rejection_is_on_the_page(page: str, result: PlanResult) -> None:
    words = Outline(page).words
    assert all(plan.label in words for plan in result.plans)
    assert all(f"{item.label}" in words and item.reason in words for item in result.rejected)


def test_text_of_the_user_is_escaped_everywhere(tmp_path: Path) -> None:
    base = draw_result(6, model=EVIL)
    plans = tuple(
        replace(plan, label=f"{EVIL} {i}", usd_by_part={EVIL: plan.usd_per_hour}) for i, plan in enumerate(base.plans)
    )
    evil = replace(
        base, plans=plans, rejected=(Rejection(EVIL, EVIL, EVIL),), bound_reason=EVIL, notes=(EVIL,), best_failing=EVIL
    )
    clean = Outline(write_page(base, tmp_path / "a.html").read_text())
    for answer in (evil, replace(evil, plans=())):
        page = write_page(answer, tmp_path / "b.html").read_text()
        outline = Outline(page)
        assert "<script>alert" not in page
        assert outline.tags.count("style") == 1
        assert outline.tags.count("script") <= clean.tags.count("script")
        assert EVIL in outline.words


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.none(), st.lists, max_leaves=8))
def test_embedded_json_holds_no_markup_and_reads_back(value: object) -> None:
    embedded = embedded_json(value)
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == value


def test_deployment_on_the_page_reads_back_equal(page: str, result: PlanResult) -> None:
    blocks = re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)
    assert len(blocks) == views.COPIES + 1  # the scenario is the last
    first = yaml.safe_load(unescape(re.sub(r"<[^>]*>", "", blocks[0])))
    assert Deployment.model_validate(first) == result.plans[0].deployment


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text() | st.lists(st.text(), max_size=3), max_size=4))
def test_coloured_yaml_shows_the_same_text(tree: dict[str, object]) -> None:
    source = yaml.safe_dump(tree, allow_unicode=True)
    assert unescape(re.sub(r"</?span[^>]*>", "", coloured_yaml(source))) == source.rstrip("\n")


@pytest.mark.parametrize("name", ["plan", "outcome", "log"])
def test_figures_are_valid_plotly_and_finite(result: PlanResult, name: str) -> None:
    import plotly.graph_objects as go

    drawn = {
        "plan": lambda: views.plan_figures(result),
        "outcome": lambda: views.run_figures(result.plans[0].outcome, (Objective("itl", 0.99, 0.05),)),
        "log": lambda: views.plan_figures(replace(result, bound_usd_per_hour=0.01)),
    }[name]()
    for figure in drawn.values():
        go.Figure(figure)  # refuses an unknown property or value
        json.dumps(figure, allow_nan=False)


def test_distribution_agrees_with_counting(result: PlanResult) -> None:
    outcome = result.plans[0].outcome
    curve = figures.distribution(outcome, "ttft", OBJECTIVES)["data"][0]
    for x, y in list(zip(curve["x"], curve["y"], strict=True))[5:-1:10]:
        within = sum(1 for value in outcome.ttft_s if 1e3 * value <= x) / len(outcome.ttft_s)
        assert abs(100 * within - y) < 0.15
    assert curve["y"][-1] == 100


def test_requests_that_never_finish_keep_the_curve_below_all() -> None:
    outcome = draw_outcome(draw_requests(400), unfinished=100)
    curve = figures.distribution(outcome, "e2e", ())["data"][0]
    assert max(curve["y"]) == pytest.approx(75.0)


@given(st.lists(st.tuples(st.integers(0, ITL_BINS - 1), st.integers(1, 1000)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_gap_histogram_loses_nothing_and_keeps_the_median(bins: list[tuple[int, int]]) -> None:
    counts = np.zeros(ITL_BINS, np.int64)
    for i, count in bins:
        counts[i] += count
    outcome = replace(draw_outcome(draw_requests(5)), itl_counts=counts)
    curve = figures.gaps(outcome, ())["data"][0]
    assert sum(curve["y"]) == pytest.approx(100, abs=1e-3)
    unit = 1.0 if itl_quantile(counts, 0.99) >= 1 else 1e3
    below = sum(y for x, y in zip(curve["x"], curve["y"], strict=True) if x <= unit * itl_quantile(counts, 0.5))
    assert below >= 50 - 1e-3


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_staircase_agrees_with_comparing_all_pairs(points: list[tuple[int, int]]) -> None:
    x, usd = (np.array(column, float) for column in zip(*points, strict=True))
    kept = {(x[i], usd[i]) for i in figures._staircase(x, usd)}
    free = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert kept == free


def test_load_shows_arrivals_and_shares(result: PlanResult) -> None:
    outcome = result.plans[0].outcome
    panels = {trace["name"]: trace for trace in figures.load(outcome)["data"]}
    width = outcome.timeline.width_s
    assert sum(panels["arrivals"]["y"]) * width == pytest.approx(outcome.requests.n, rel=1e-4)
    busy = 100 * outcome.timeline.busy_s.sum() / (len(outcome.busy_s) * width * len(outcome.timeline.busy_s))
    assert np.mean(panels["busy"]["y"]) == pytest.approx(busy, rel=1e-4)
    kv = 100 * outcome.timeline.kv_bytes.max() / outcome.kv_capacity_bytes.sum()
    assert max(panels["KV"]["y"]) == pytest.approx(kv, rel=1e-4)


def test_long_timelines_are_thinned_without_losing_arrivals() -> None:
    outcome = draw_outcome(draw_requests(300))
    k = 5000
    line = outcome.timeline
    many = np.full(k, 0.5)
    outcome = replace(
        outcome,
        timeline=line._replace(width_s=outcome.end_s / k, busy_s=many, kv_bytes=many, running=many, waiting=many),
    )
    panels = {trace["name"]: trace for trace in figures.load(outcome)["data"]}
    xs, ys = panels["arrivals"]["x"], panels["arrivals"]["y"]
    assert len(xs) <= 240
    spans = 60 * np.diff([*xs, outcome.end_s / 60])
    assert float(np.dot(spans, ys)) == pytest.approx(300, rel=1e-3)


def test_nothing_that_holds_still_makes_a_page(tmp_path: Path) -> None:
    none = draw_result(0, best_failing="16 × l40s reach p99 TTFT 0.9 s", interrupted=True)
    page = write_page(none, tmp_path / "none.html").read_text()
    assert "16 × l40s reach p99 TTFT 0.9 s" in page
    assert "The search was stopped before its end" in page
    assert 'id="rejected"' in page
    assert packed_plotly() not in page


def test_run_that_finished_nothing_makes_a_page(tmp_path: Path, result: PlanResult) -> None:
    outcome = draw_outcome(draw_requests(50))
    never = np.full(50, np.nan)
    outcome = replace(
        outcome, first_token_s=never, finish_s=never, scheduled_s=never, itl_counts=0 * outcome.itl_counts, aborted=True
    )
    page = write_outcome_page(outcome, result.plans[0].deployment, OBJECTIVES, tmp_path / "o.html").read_text()
    assert "misses 3 of 3 objectives" in page
    assert "50 requests never finished" in page
    assert "stopped early" in page


def test_outcome_page_shows_the_run(tmp_path: Path, result: PlanResult) -> None:
    plan = result.plans[0]
    page = write_outcome_page(plan.outcome, plan.deployment, OBJECTIVES, tmp_path / "o.html").read_text()
    outline = Outline(page)
    sections = ["answer", "latency", "load", "deployment", "about"]
    assert [name for name in outline.ids if name in sections] == sections
    assert "keeps all its objectives" in outline.words


def test_path_that_cannot_be_written_is_bad_input(tmp_path: Path, result: PlanResult) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_page(result, tmp_path / "no" / "such" / "folder.html")


def test_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    many = tuple(Rejection(f"candidate {i}", "memory", f"reason {i}") for i in range(views.REASONS + 50))
    page = write_page(replace(draw_result(1), rejected=many), tmp_path / "r.html")
    words = Outline(page.read_text()).words
    assert f"{views.REASONS + 50} candidates were turned down" in words
    assert "And 50 more." in words
    assert f"candidate {views.REASONS - 1}" in words
    assert f"candidate {views.REASONS} " not in words


def shown(renderable: object, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(renderable)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_tables_fit_and_keep_what_matters(result: PlanResult, width: int) -> None:
    plan = result.plans[0]
    for renderable in (
        tables.plan_table(result), tables.rejection_table(result), tables.outcome_table(plan.outcome, OBJECTIVES),
        tables.rows_table("Rows", [{"name": "a" * 50, "bytes": 1.5e10, "source": "b " * 80}, {"new": True}]),
    ):  # fmt: skip
        lines = shown(renderable, width)
        assert max(map(len, lines)) <= width
        assert not any("…" in line for line in lines)
    words = " ".join(shown(tables.plan_table(result), width))
    assert f"${plan.usd_per_hour:.2f}/h" in words
    assert ("p99 TTFT" in words) == (width >= 80)


def test_plan_table_ranks_and_tells_the_bound(result: PlanResult) -> None:
    lines = shown(tables.plan_table(result, 5), 120)
    ranks = [line.split()[0] for line in lines if re.match(r"\s*\d+\s+\d+ ×", line)]
    kinds: dict[object, str] = {}
    for found in result.plans:
        r = found.deployment.pools[0].replica
        kinds.setdefault((r.device, r.tensor_parallel, r.weights), str(found.rank))
    assert ranks == list(kinds.values())[:5]
    words = " ".join(lines)
    assert f"{len(result.plans) - 5} more plans are in the report" in words
    assert f"Lower bound ${result.bound_usd_per_hour:.2f}/h (at most 20 % left to save)" in words


def test_money_is_split_for_the_cheapest_plan_of_each_kind_of_device(result: PlanResult) -> None:
    kinds = [(plan.deployment.pools[0].replica.device, plan) for plan in result.plans]
    first = dict(reversed(kinds))
    view = views.part_view(views.cheapest_of_each_kind(result.plans), result.bound_usd_per_hour)
    assert view is not None
    assert [row["rank"] for row in view["rows"]] == sorted(plan.rank for plan in first.values())
    widest = max(sum(share for *_, share in row["parts"]) for row in view["rows"])
    assert widest == pytest.approx(1)


def test_rejections_are_counted_by_constraint(result: PlanResult) -> None:
    groups = text.grouped(result.rejected)
    assert sum(map(len, groups.values())) == len(result.rejected)
    assert list(map(len, groups.values())) == sorted(map(len, groups.values()), reverse=True)
    lines = shown(tables.rejection_table(result), 140)
    assert any(re.match(rf"\s*{len(groups['tpot'])}\s+Tokens too slow", line) for line in lines)


def test_tables_take_markup_as_text() -> None:
    bad = replace(draw_result(1), rejected=(Rejection("[bold]x[/]", "[red]kind", "[/] broken"),))
    words = " ".join(shown(tables.rejection_table(bad), 120))
    assert "[bold]x[/]: [/] broken" in words


def test_empty_tables_say_so() -> None:
    assert "nothing to show" in shown(tables.rows_table("Devices", []), 80)[0]
    assert "holds every objective; x." in " ".join(shown(tables.plan_table(draw_result(0, best_failing="x")), 120))


def test_import_of_the_report_brings_nothing_heavy() -> None:
    code = "import sys, sonde.report; print([m for m in ('plotly', 'jinja2', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def doubted() -> PlanResult:
    """An answer whose first plans say how sure they are."""
    found = draw_result(6)
    plans = list(found.plans)
    for i, (holds, like, high) in enumerate([(False, (2, 3), np.inf), (True, (1,), 9.25), (False, (1,), 12.5)]):
        plan = plans[i]
        outcome = replace(plan.outcome, either=lambda plan=plan: (plan.outcome, plan.outcome))
        figures_of = outcome.intervals(found.objectives)
        figures_of |= {"ttft_s": {name: [0.111, 0.222] for name in ("p50", "p90", "p99")},
                       "joules_per_token": [0.333, 0.777]}  # fmt: skip
        low = plan.usd_per_hour - 1.0
        plans[i] = replace(plan, outcome=outcome, doubt=PlanDoubt(low, high, holds, 0.17, like, figures_of))
    return replace(found, plans=tuple(plans))


def shown_at(result: PlanResult, width: int) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(tables.plan_table(result))
    return console.export_text()


def test_the_terminal_says_how_sure_a_plan_is(doubted: PlanResult, result: PlanResult) -> None:
    told = shown_at(doubted, 200)
    low = doubted.plans[0].usd_per_hour - 1.0
    for words in ("misses +17 %", "holds +17 %", "≈ #2 #3", "111–222 ms", "0.333–0.777 J", f"${low:,.2f}–∞/h",
                  "80 % interval", f"is #2, for {show(doubted.plans[1].usd_per_hour, 'price')}"):  # fmt: skip
        assert words in re.sub(r"\s+", " ", told), words
    assert "misses +17 %: with steps 17 % longer an objective is then missed." in re.sub(r"\s+", " ", told)
    assert "if slow" in shown_at(doubted, 100)
    plain = shown_at(result, 200)
    assert "If slow" not in plain
    assert "80 %" not in plain
    assert "∞" not in plain


def test_a_column_of_joules_has_one_unit() -> None:
    """Whatever their size: 967 mJ beside 1.54 J would have to be read twice."""
    assert [text.joules_each(x) for x in (0.00215, 0.967, 1.54, 1234.5, float("nan"))] == [
        "0.00215 J", "0.967 J", "1.54 J", "1,234 J", "-",
    ]  # fmt: skip
    assert text.between(0.967, 1.54, text.EACH) == "0.967–1.54 J"
    assert text.between(0.967, float("inf"), text.EACH) == "0.967 J–∞"
    assert [text.carbon({"carbon_g": grams, "span_s": 3600.0}) for grams in (480.0, 1250.0)] == ["0.48 kg", "1.25 kg"]


def test_the_page_says_how_sure_a_plan_is(doubted: PlanResult, result: PlanResult, page: str, tmp_path: Path) -> None:
    written = Outline(write_page(doubted, tmp_path / "page.html").read_text(encoding="utf-8")).words
    words = re.sub(r"\s+", " ", written)
    for said in ("misses an objective; its place before plans #2, #3 is not certain", "is #2, for", "111–222 ms",
                 "0.333–0.777 J", "–∞/h", "holds +17 %"):  # fmt: skip
        assert said in words, said
    assert "80 % interval" not in Outline(page).words
    drawn = figures.frontier(doubted.plans, 1.0, "ttft", doubted.objectives)["data"][1]
    order = sorted(doubted.plans, key=lambda plan: (plan.frontier, -plan.rank))
    for plan, x, up, down, dollars_up in zip(
        order,
        drawn["x"],
        drawn["error_x"]["array"],
        drawn["error_x"]["arrayminus"],
        drawn["error_y"]["array"],
        strict=True,
    ):
        assert (x + up, x - down) == pytest.approx((222.0, 111.0) if plan.doubt else (x, x), rel=1e-4)
        high = plan.doubt.usd_high if plan.doubt else plan.usd_per_hour
        assert dollars_up == pytest.approx(high - plan.usd_per_hour if np.isfinite(high) else 0.0)


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0.1, 0.2, "time", "100–200 ms"), (0.9, 1.5, "time", "900 ms–1.5 s"), (0.1, np.inf, "time", "100 ms–∞"),
        (0.1, 0.1, "time", ""), (np.inf, np.inf, "time", ""), (2.0, 3.5, "price", "$2.00–3.50/h"),
        (2.0, np.inf, "price", "$2.00–∞/h"), (0.1, 0.25, "usd", "$0.100–0.250"), (0.9, 1.0, "ratio", "90–100 %"),
    ],
)  # fmt: skip
def test_intervals_in_words(low: float, high: float, kind: str, expected: str) -> None:
    assert text.between(low, high, kind) == expected


def test_the_page_of_a_run_says_how_sure_it_is(tmp_path: Path) -> None:
    outcome = draw_outcome(draw_requests(300))
    deployment = draw_result(1).plans[0].deployment
    page = write_outcome_page(outcome, deployment, OBJECTIVES, tmp_path / "plain.html").read_text(encoding="utf-8")
    fast, slow = draw_outcome(draw_requests(300), slow=0.5), draw_outcome(draw_requests(300), slow=2.0)
    sure = replace(outcome, either=lambda: (fast, slow))
    told = write_outcome_page(sure, deployment, OBJECTIVES, tmp_path / "sure.html").read_text(encoding="utf-8")
    low, high = sure.interval("ttft", 0.99)
    assert low < outcome.quantile("ttft", 0.99) < high
    assert text.between(low, high) in Outline(told).words
    assert text.between(low, high) not in Outline(page).words
    console = Console(width=120, record=True, file=StringIO())
    console.print(tables.outcome_table(sure, OBJECTIVES))
    assert text.between(low, high) in console.export_text(clear=False)
    assert "if slow" in console.export_text()

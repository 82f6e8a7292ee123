"""The page in a real Chromium: it draws, it is silent, and it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from report_browser import Browser, chromium, missing
from report_fixture import OBJECTIVES, draw_result

from sonde.report.page import write_outcome_page, write_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(missing()), reason=missing() or "a browser is here"),
]

SECTIONS = ["answer", "plans", "frontier", "latency", "load", "cost", "rejected", "deployment", "about"]
EVIL = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(draw_result(), tmp_path_factory.mktemp("page") / "report.html")


def silent(browser: Browser, page: Path) -> None:
    assert browser.complaints() == []
    assert set(browser.requests()) == {page.as_uri()}


def test_a_page_that_complains_or_asks_is_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text(
        "<html data-ready=true><img src='http://127.0.0.1:9/a.png'><script>console.error('no')</script></html>"
    )
    browser.open(page)
    assert any("no" in line for line in browser.complaints())
    assert "http://127.0.0.1:9/a.png" in browser.requests()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_draws_silently(browser: Browser, page: Path, scheme: str, width: int) -> None:
    browser.open(page, scheme, width)
    assert browser.run("[...document.querySelectorAll('section, footer')].map(e => e.id)") == SECTIONS
    plots = "[...document.querySelectorAll('.plot')]"
    assert browser.run(f"{plots}.map(e => e.dataset.figure)") == [
        "frontier-e2e", "spread-ttft", "spread-tpot", "spread-e2e", "spread-itl", "load",
    ]  # fmt: skip
    assert browser.run(f"{plots}.every(e => e.querySelectorAll('svg.main-svg .trace path').length > 0)")
    assert browser.run("document.querySelectorAll('#frontier .points path').length") == 24
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    silent(browser, page)


def test_plots_follow_a_change_of_scheme(browser: Browser, page: Path) -> None:
    look = "[getComputedStyle(document.body).backgroundColor, document.querySelector('#load .js-line').style.stroke]"
    browser.open(page, "light")
    light = browser.run(look)
    browser.emulate("dark")
    browser.wait("document.documentElement.dataset.drawn === '2'")
    dark = browser.run(look)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    silent(browser, page)


def test_table_sorts_and_unfolds(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = "[...document.querySelectorAll('.ranked tbody tr')].filter(r => !r.hidden)"
    cost = f"{seen}.map(r => Number(r.cells[2].dataset.v))"
    assert browser.run(f"{seen}.length") == 12
    first = browser.run(cost)
    assert first == sorted(first)
    browser.driver.execute_script("document.querySelectorAll('.ranked thead button')[2].click()")
    browser.driver.execute_script("document.querySelectorAll('.ranked thead button')[2].click()")
    assert browser.run("document.querySelectorAll('.ranked thead th')[2].getAttribute('aria-sort')") == "descending"
    browser.driver.execute_script("document.querySelector('.more').click()")
    last = browser.run(cost)
    assert len(last) == 24
    assert last == sorted(last, reverse=True)


def test_frontier_changes_its_axis(browser: Browser, page: Path) -> None:
    browser.open(page)
    title = "document.querySelector('#frontier .xtitle').textContent"
    assert browser.run(title) == "p99 end to end, s"
    browser.driver.execute_script("document.querySelector('input[value=frontier-ttft]').click()")
    browser.wait("document.documentElement.dataset.drawn === '2'")
    assert browser.run(title) == "p99 TTFT, ms"
    silent(browser, page)


def test_copy_gives_the_yaml(browser: Browser, page: Path) -> None:
    browser.open(page)
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
    browser.driver.find_element("css selector", "#deployment .copy").click()
    browser.wait("document.getElementById('copied').textContent === 'Copied'")
    copied = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == browser.run("document.querySelector('#deployment code').textContent") + "\n"
    assert copied.startswith("sites:\n")


def test_keyboard_reaches_everything(browser: Browser, page: Path) -> None:
    browser.open(page)
    controls = "[...document.querySelectorAll('button, summary, input, .scroll, pre')]"
    assert browser.run(f"{controls}.every(e => e.tabIndex >= 0)")


def test_paper_is_drawn_light_and_the_screen_comes_back(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, "dark")
    assert browser.paper(tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    browser.wait("Number(document.documentElement.dataset.drawn) >= 3")
    assert browser.run("document.documentElement.dataset.theme === undefined")
    silent(browser, page)


def test_markup_from_the_user_stays_text(browser: Browser, tmp_path: Path) -> None:
    base = draw_result(4, model=EVIL)
    plans = tuple(replace(plan, label=f"{EVIL} {plan.rank}") for plan in base.plans)
    page = write_page(replace(base, plans=plans, notes=(EVIL,)), tmp_path / "evil.html")
    browser.open(page)
    browser.driver.execute_script(
        "Plotly.Fx.hover(document.querySelector('#frontier .plot'), [{curveNumber: 1, pointNumber: 3}])"
    )
    browser.wait("document.querySelectorAll('#frontier .hovertext').length > 0")
    assert "broken" not in browser.run("document.title").replace(EVIL, "")
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("document.querySelector('h1 strong').textContent") == plans[0].label
    silent(browser, page)


def test_outcome_page_draws_silently(browser: Browser, tmp_path: Path) -> None:
    plan = draw_result(1).plans[0]
    page = write_outcome_page(plan.outcome, plan.deployment, OBJECTIVES, tmp_path / "outcome.html")
    browser.open(page, "dark", 390)
    assert browser.run("document.querySelectorAll('.plot svg.main-svg').length") >= 5
    silent(browser, page)


def test_page_without_a_plan_is_silent(browser: Browser, tmp_path: Path) -> None:
    page = write_page(draw_result(0, best_failing="nothing"), tmp_path / "none.html")
    browser.open(page)
    assert browser.run("document.querySelectorAll('.plot').length") == 0
    silent(browser, page)

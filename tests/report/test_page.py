"""The page in a browser: what a click, a key, a narrow screen and a hostile network do to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from narrowgauge.core.encoding import LogEncoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.report.render import render
from tests.report.browser import chromium, page_of
from tests.report.example import Example, example

expect = pytest.importorskip("playwright.sync_api").expect  # waits: browsers draw and tell of changes when they like

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;'\"`${1}<!--é 日本"


def written(shown: Example, path: Path) -> Path:
    path.write_text(render(shown.summary, shown.analysis, plan=shown.plan, target=shown.target), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def shown() -> Example:
    return example(12)


@pytest.fixture(scope="module")
def file(shown: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(shown, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    with page_of(browser, file) as opened:
        yield opened


def names(page: Any) -> list[str]:
    """Names in the table's visible rows."""
    return page.locator("#tensor-table tbody tr:not([hidden]) th a").all_text_contents()


def numbers(page: Any, title: str) -> list[float]:
    """A column of the table by its title."""
    titles = page.locator("#tensor-table thead th").all_text_contents()
    cells = page.locator(f"#tensor-table tbody tr :nth-child({titles.index(title) + 1})[data-value]")
    return [float(cell) for cell in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]


def test_the_navigation_has_the_order_of_the_page(page: Any) -> None:
    links = page.locator(".bar nav a").evaluate_all("links => links.map(link => link.getAttribute('href').slice(1))")
    sections = page.locator("main section[id]").evaluate_all("sections => sections.map(section => section.id)")
    assert links == [one for one in sections if one in links]


# --- the table ------------------------------------------------------------------------------------------------


def test_the_table_fits_a_usual_screen_and_names_stay_where_it_is_scrolled(browser: Any, file: Path) -> None:
    box = "document.querySelector('#tensor-table').parentElement"
    with page_of(browser, file, width=1280) as page:
        assert page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
    with page_of(browser, file, width=800) as page:
        page.evaluate(f"{box}.scrollLeft = 200")
        assert page.evaluate(f"{box}.scrollLeft") > 0
        left = "document.querySelector('#tensor-table tbody th').getBoundingClientRect().left"
        assert page.evaluate(f"{left} - {box}.getBoundingClientRect().left") < 2


def test_the_table_begins_with_the_most_costly(page: Any, shown: Example) -> None:
    assert names(page) == [one.name for one in shown.analysis.ranking()]


def test_a_click_sorts_and_a_second_one_turns_round(page: Any) -> None:
    head = page.get_by_role("columnheader", name="SQNR", exact=True)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(page, "SQNR") == sorted(numbers(page, "SQNR"), reverse=True)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(page, "SQNR") == sorted(numbers(page, "SQNR"))


def test_the_keyboard_sorts_and_only_one_column_is_marked(page: Any, shown: Example) -> None:
    page.get_by_role("button", name="Beyond").press("Enter")
    page.get_by_role("button", name="Tensor").press("Space")
    assert page.locator("[aria-sort]").count() == 1
    plain = [name for name in names(page) if name.startswith("hardtanh")]
    assert plain == [f"hardtanh_{place}" for place in range(12)]  # 2 before 10


def test_search_and_filters_narrow_the_table_and_say_how_many_are_left(page: Any) -> None:
    page.get_by_label("Name").fill("HARDTANH_1")
    assert sorted(names(page)) == ["hardtanh_1", "hardtanh_10", "hardtanh_11"]
    assert page.locator("#count").text_content() == "3 of 24 tensors"
    page.get_by_label("Kind").select_option("weights")
    assert names(page) == []
    assert page.get_by_text("No tensor is like that.").is_visible()
    page.get_by_label("Name").fill("")
    page.get_by_label("Operator").select_option("Conv")
    assert page.locator("#count").text_content() == "12 of 24 tensors"
    assert page.locator("#count").get_attribute("aria-live") == "polite"


# --- a tensor's details ---------------------------------------------------------------------------------------


def test_a_row_opens_its_tensor_and_escape_closes_it(page: Any) -> None:
    row = page.locator("#tensor-table tbody tr").nth(2)
    name = row.locator("a").text_content()
    row.locator("td").last.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", level=2)).to_have_text(name)
    expect(dialog.locator("svg")).to_have_count(2)
    assert page.url.endswith(f"#tensor={quote(name)}")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.wait_for_function("!location.hash")
    row.locator("a").press("Enter")
    expect(dialog).to_be_visible()


def test_an_address_opens_a_tensor(browser: Any, file: Path, shown: Example) -> None:
    with page_of(browser, file, address="#tensor=3.weight") as page:
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("heading", level=2)).to_have_text("3.weight")
        loss = next(one for one in shown.analysis.losses if one.name == "3.weight")
        expect(dialog).to_contain_text(f"{loss.levels_used} of {loss.levels}")
        page.evaluate("location.hash = '#tensor=nobody'")
        expect(dialog).to_be_hidden()
        page.evaluate("location.hash = '#tensor=%'")


def test_previous_and_next_follow_the_tables_order(page: Any) -> None:
    order = names(page)
    page.locator(".worst a").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Previous")).to_be_disabled()
    dialog.get_by_role("button", name="Next").click()
    expect(dialog.get_by_role("heading", level=2)).to_have_text(order[1])
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_the_distribution_is_drawn_with_its_range_levels_and_clipped_tails(page: Any) -> None:
    page.evaluate("location.hash = '#tensor=hardtanh_1'")
    figure = page.get_by_role("img", name=re.compile("Elements from .* representable are"))
    expect(figure.locator("svg g[aria-label=rule]")).to_have_count(2)  # ends of the range, levels
    fills = figure.locator("svg [aria-label=rect] rect").evaluate_all("all => all.map(one => one.getAttribute('fill'))")
    assert {"var(--accent)", "var(--clip)"} <= set(fills)
    expect(page.get_by_text(re.compile(r"The marks below are levels .* of the 256\); one step is"))).to_be_visible()


def test_every_picture_has_a_table(page: Any, shown: Example) -> None:
    page.locator(".worst a").first.click()
    dialog = page.get_by_role("dialog")
    for place in range(2):
        dialog.get_by_text("The same as a table").nth(place).click()
    expect(dialog.locator("table")).to_have_count(3)  # the third is that of the remedies
    shares = dialog.get_by_role("region", name="Distribution").locator("tbody tr td:last-child").all_text_contents()
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=3)
    methods = dialog.get_by_role("region", name="Remedies").get_by_role("rowheader").all_text_contents()
    assert methods == ["float", "16 bits", "range: percentile:99.99", "per channel"]
    page.keyboard.press("Escape")
    page.locator("#network").get_by_text("The same as a table").click()
    expect(page.locator("#network-table tbody tr")).to_have_count(24)
    page.locator("#front").get_by_text("The same as a table").click()
    expect(page.locator("#front-table tbody tr")).to_have_count(len(shown.analysis.front))


# --- the network ----------------------------------------------------------------------------------------------


def test_the_slider_walks_through_the_network(page: Any) -> None:
    slider = page.get_by_label("Layer")
    slider.press("Home")
    assert "Left float: onnxruntime is faster in float" in slider.get_attribute("aria-valuetext")
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext").startswith("conv_0 Conv. Adds ")
    links = page.locator("#layer-text a")
    assert sorted(links.all_text_contents()) == ["0.weight", "hardtanh_0"]
    links.first.click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_pointing_at_the_chart_selects_a_layer(page: Any) -> None:
    charts = page.locator("#network-charts")
    expect(charts.locator("svg")).to_have_count(2)
    charts.scroll_into_view_if_needed()
    box = charts.locator("svg").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 60)
    assert page.get_by_label("Layer").input_value() == "23"
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    assert page.get_by_label("Layer").input_value() == "0"


# --- all of it ------------------------------------------------------------------------------------------------


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Any, file: Path) -> None:
    with page_of(browser, file, dark=True) as page:
        background = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(background)
        button = page.get_by_role("button", name=re.compile("Theme"))
        button.click()
        assert button.text_content() == "Theme: dark"
        button.press("Enter")
        assert button.text_content() == "Theme: light"
        assert page.evaluate(background) != dark
        page.reload()
        assert button.text_content() == "Theme: light"


@pytest.mark.parametrize("address", ["", "#tensor=0.weight"])
def test_a_phone_needs_no_sideways_scrolling(browser: Any, file: Path, address: str) -> None:
    with page_of(browser, file, address=address, width=360) as page:
        page.wait_for_selector("#network-charts svg")
        for element in ("document.documentElement", "document.querySelector('dialog')"):
            assert page.evaluate(f"{element}.scrollWidth <= {element}.clientWidth || !{element}.clientWidth")
        assert page.locator("#tensor-table th[scope=row]").first.bounding_box()["width"] > 80


def test_the_page_can_be_used_without_eyes_or_mouse(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator(".worst a").first.click()
    page.wait_for_selector("dialog[open] svg")
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(JUMPS) == []
    identifiers = page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
    assert len(identifiers) == len(set(identifiers))
    assert [page.locator(role).count() for role in ("main", "header", "nav", "footer", "h1")] == [1, 1, 1, 1, 1]


# Controls, pictures, tables, regions and dialogs that a screen reader could not name.
UNNAMED = """(() => {
  const spoken = (one) => one.getAttribute('aria-label') || one.labels?.length || one.caption?.textContent
    || document.getElementById(one.getAttribute('aria-labelledby'))?.textContent
    || one.matches('a, button, summary, [role=status]') && one.textContent.trim();
  const all = document.querySelectorAll('input, select, button, a, table, dialog, summary, [role]');
  return [...all].filter((one) => !spoken(one)).map((one) => one.outerHTML.slice(0, 99));
})()"""

# Headings that skip a level.
JUMPS = """[...document.querySelectorAll('h1, h2, h3, h4')].map(one => [Number(one.tagName[1]), one.textContent])
  .filter(([level], place, all) => place && level > all[place - 1][0] + 1)"""


@pytest.mark.parametrize("address", ["", f"#tensor={quote(f'{HOSTILE}1.weight')}"])
def test_names_and_notes_are_text_whatever_they_hold(browser: Any, tmp_path: Path, address: str) -> None:
    path = written(example(3, prefix=HOSTILE), tmp_path / "report.html")
    with page_of(browser, path, address=address) as page:
        page.wait_for_selector("#network-charts svg")
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 3
        assert page.locator("h1").text_content() == f"{HOSTILE}mobilenet_v2.onnx".rpartition("/")[2]
        if address:
            assert page.locator("#tensor-name").text_content() == f"{HOSTILE}1.weight"
        else:
            page.get_by_label("Name").fill(HOSTILE)
            assert len(names(page)) == 6
        page.get_by_label("Layer").evaluate("slider => slider.dispatchEvent(new Event('input'))")
        assert HOSTILE in page.locator("#layer-text").text_content()


def test_four_hundred_tensors_are_shown(browser: Any, tmp_path: Path) -> None:
    path = written(example(200), tmp_path / "report.html")
    assert path.stat().st_size < 3_000_000
    with page_of(browser, path) as page:
        assert page.locator("#tensor-table tbody tr").count() == 400
        page.get_by_role("button", name="Bits used").click()
        used = numbers(page, "Bits used")
        assert used == sorted(used, reverse=True)


def test_levels_that_are_powers_of_two_are_marked_where_they_lie(browser: Any, tmp_path: Path) -> None:
    shown = example(2)
    logarithm = LogEncoding(type=integer_type("uint4"))
    plan = replace(shown.plan, encodings={**shown.plan.encodings, "hardtanh_1": logarithm})
    losses = [
        replace(one, type="log2 4 bits", range=(2**-14, 1.0), levels=16) if one.name == "hardtanh_1" else one
        for one in shown.analysis.losses
    ]
    path = tmp_path / "report.html"
    analysis = replace(shown.analysis, losses=tuple(losses))
    path.write_text(render(shown.summary, analysis, plan=plan, target=shown.target), encoding="utf-8")
    with page_of(browser, path, address="#tensor=hardtanh_1") as page:
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_text("Levels are the powers of two below 1, and 0. The marks")).to_be_visible()
        expect(dialog.locator("svg").first.locator("g[aria-label=rule] line")).to_have_count(2 + 16)
        expect(dialog.get_by_text("log2 4 bits")).to_be_visible()

"""Attention in a browser: what a click and a key show, on a wide and on a narrow screen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from narrowgauge.report.render import render
from tests.report.attention import attention_example
from tests.report.browser import chromium, page_of
from tests.report.example import example
from tests.report.test_page import HOSTILE, JUMPS, UNNAMED

expect = pytest.importorskip("playwright.sync_api").expect


def written(path: Path, *, prefix: str = "", **asked: Any) -> Path:
    shown = example(2, prefix=prefix)
    heads, pictures = attention_example(prefix=prefix, **asked)
    analysis = dataclasses.replace(shown.analysis, attention=heads)
    page = render(shown.summary, analysis, plan=shown.plan, target=shown.target, attention=pictures)
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("attention") / "report.html")


@pytest.fixture(scope="module")
def shared_page(browser: Any, file: Path) -> Iterator[Any]:
    with page_of(browser, file) as opened:
        yield opened


@pytest.fixture
def page(shared_page: Any) -> Any:
    shared_page.reload()
    return shared_page


# A copy is read, for a browser complains of a canvas that is drawn once and read often.
READ = """one => {
  const copy = document.createElement('canvas');
  [copy.width, copy.height] = [one.width, one.height];
  const context = copy.getContext('2d', { willReadFrequently: true });
  context.drawImage(one, 0, 0);
  return [...context.getImageData(0, 0, one.width, one.height).data];
}"""


def colours(page: Any, name: str) -> list[list[int]]:
    """Red, green and blue of each pixel of a picture."""
    canvas = page.get_by_role("img", name=re.compile(f"^{name} attention"))
    data = canvas.evaluate(READ)
    return [data[place : place + 3] for place in range(0, len(data), 4)]


def test_the_head_that_changes_most_is_shown_first(page: Any) -> None:
    panel = page.locator("#attention-pictures")
    expect(panel.get_by_role("heading", level=3)).to_have_text(re.compile(r"Block 3, head 1: .* of its weight moves"))
    expect(panel.get_by_text("the image’s 4 × 4 patches")).to_be_visible()
    assert panel.locator("figcaption").all_text_contents() == ["Float", "Quantized", "Change", "Sample"]
    assert page.get_by_role("button", name="Block 3, head 1:").get_attribute("aria-pressed") == "true"
    assert len(colours(page, "Float")) == 16
    assert colours(page, "Float") != colours(page, "Quantized")
    assert len({tuple(colour) for colour in colours(page, "Change")}) > 3


def test_a_click_and_arrow_keys_choose_a_head(page: Any) -> None:
    heading = page.locator("#attention-pictures h3")
    page.get_by_role("button", name="Block 0, head 0:").click()
    expect(heading).to_have_text(re.compile("^Block 0, head 0"))
    before = colours(page, "Float")
    page.keyboard.press("ArrowRight")
    expect(heading).to_have_text(re.compile("^Block 0, head 1"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none
    expect(heading).to_have_text(re.compile("^Block 1, head 0"))
    assert colours(page, "Float") != before
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Block 1, head 0:")
    assert page.locator("#attention-heads [aria-pressed=true]").count() == 1
    assert page.locator("#attention-heads button[tabindex='0']").count() == 1


def test_the_whole_matrix_is_there_on_demand(page: Any) -> None:
    button = page.get_by_role("button", name="All queries and keys")
    assert button.get_attribute("aria-pressed") == "false"
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    expect(page.get_by_text("queries from top to bottom, keys from left to right (17 × 17)")).to_be_visible()
    assert len(colours(page, "Float")) == 17 * 17
    page.get_by_text("The largest changes as a table").click()
    rows = page.get_by_role("region", name="Largest changes").locator("tbody tr")
    expect(rows).to_have_count(12)
    name, *cells = rows.first.locator("th, td").all_text_contents()
    assert re.fullmatch(r"query \d+, key \d+", name)
    before, after, change = (float(cell.replace("−", "-")) for cell in cells)
    assert after - before == pytest.approx(change, abs=2e-3)


def test_every_head_is_in_a_table(page: Any) -> None:
    page.get_by_text("All heads, the one that changes most first").click()
    rows = page.locator("#attention-table tbody tr")
    expect(rows).to_have_count(12)
    assert rows.first.locator("th, td").all_text_contents()[:2] == ["Block 3", "1"]


def test_what_is_shown_has_names_and_headings_in_order(page: Any) -> None:
    page.locator(".worst a").first.click()
    page.wait_for_selector("dialog[open] svg")
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(JUMPS) == []
    assert page.locator("#attention canvas:not([aria-label])").count() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_nothing_overlaps_or_sticks_out(browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    path = written(tmp_path / "report.html", blocks=12, heads=16, tokens=50, image=56)
    with page_of(browser, path, width=width, dark=dark) as page:
        page.wait_for_selector("#attention-pictures canvas")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        boxes = [one.bounding_box() for one in page.locator("#attention-pictures figure").all()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 100 for box in boxes)
        for place, one in enumerate(boxes):
            for other in boxes[:place]:
                beside = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
                assert beside or one["y"] >= other["y"] + other["height"]


def test_a_sequence_has_matrices_only(browser: Any, tmp_path: Path) -> None:
    with page_of(browser, written(tmp_path / "report.html", tokens=12, image=0)) as page:
        expect(page.get_by_text("keys from left to right (12 × 12)")).to_be_visible()
        assert page.locator("#attention-pictures figcaption").all_text_contents() == ["Float", "Quantized", "Change"]
        assert page.get_by_role("group", name="What is shown").count() == 0


def test_names_are_text_whatever_they_hold(browser: Any, tmp_path: Path) -> None:
    with page_of(browser, written(tmp_path / "report.html", prefix=HOSTILE)) as page:
        page.wait_for_selector("#attention-pictures canvas")
        assert page.locator("img").count() == 0
        assert HOSTILE in page.locator("#attention-pictures").text_content()
        expect(page.get_by_role("img", name=f"The sample {HOSTILE}dog.png")).to_be_visible()

"""The report: how long it takes to write and to open, and how large it is, on made-up runs of 55 and 200 layers."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import HERE, report, table

sys.path.insert(0, str(HERE.parent))  # the made-up run is the tests'

from narrowgauge.report.render import render
from tests.report.browser import chromium, page_of
from tests.report.example import example

ROUNDS = 5
LAYERS = (55, 200)
BUDGETS = {"write, seconds": 0.3, "open, seconds": 2.0, "size, MB": 3.0}


def main() -> None:
    """Write and open pages in turn, report medians."""
    with tempfile.TemporaryDirectory(prefix="narrowgauge-page-") as folder:
        found = {layers: _measured(layers, Path(folder)) for layers in LAYERS}
    rows = [
        [name, *(f"{found[layers][name]:.2f}" for layers in LAYERS), f"{budget:g}"] for name, budget in BUDGETS.items()
    ]
    text = table(["", *(f"{layers} layers" for layers in LAYERS), "budget"], rows)
    report("page", f"The report's page: median of {ROUNDS}", text, {str(key): value for key, value in found.items()})


def _measured(layers: int, folder: Path) -> dict[str, float]:
    shown = example(layers)
    file = folder / f"{layers}.html"
    writing, opening = [], []
    with chromium() as browser:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            text = render(
                shown.summary, shown.analysis, plan=shown.plan, target=shown.target, steps=shown.steps,
                front=shown.front,
            )  # fmt: skip
            file.write_text(text, encoding="utf-8")
            writing.append(time.perf_counter() - start)
            start = time.perf_counter()
            with page_of(browser, file) as page:
                page.wait_for_selector("#network-charts svg")
                opening.append(time.perf_counter() - start)
    return {
        "write, seconds": statistics.median(writing),
        "open, seconds": statistics.median(opening),
        "size, MB": file.stat().st_size / 1e6,
    }


if __name__ == "__main__":
    main()

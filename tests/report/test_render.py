"""The page as text: what it needs, what may be missing, how large it is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from narrowgauge.analysis.records import Analysis, Step
from narrowgauge.core.plan import Plan
from narrowgauge.report.render import render
from narrowgauge.targets.registry import load_target, target_names
from tests.report.example import Example, example

HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028<!--"


@pytest.fixture(scope="module")
def shown() -> Example:
    return example(6)


def rendered(shown: Example, **changes: Any) -> str:
    return render(**(
        {"summary": shown.summary, "analysis": shown.analysis, "plan": shown.plan, "target": shown.target}
        | changes
    ))  # fmt: skip


class Reader(HTMLParser):
    """Keeps elements with their attributes, the text, and what stands in scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and data.strip():
            self.scripts.append(data)
        self.text += data


def test_the_page_names_nothing_outside_itself(shown: Example) -> None:
    page = Reader(rendered(shown))
    links = [
        value or "" for _, attributes in page.elements for key, value in attributes.items() if key in {"src", "href"}
    ]
    assert {link[:5] for link in links if not link.startswith("#")} == {"data:"}
    assert {tag for tag, _ in page.elements} & {"img", "iframe", "object", "embed", "form", "video", "audio"} == set()


def test_only_the_pages_own_scripts_may_run(shown: Example) -> None:
    page = Reader(rendered(shown))
    policy = next(attributes["content"] or "" for tag, attributes in page.elements
                  if attributes.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    data, *scripts = page.scripts
    assert json.loads(data)["tensors"]
    assert [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts] == allowed
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_hostile_names_stay_text() -> None:
    page = Reader(rendered(example(3, prefix=HOSTILE)))
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert HOSTILE in page.text
    assert json.loads(page.scripts[0])["tensors"][0]["name"].startswith(HOSTILE)


def test_what_was_measured_is_on_the_page(shown: Example) -> None:
    text = Reader(rendered(shown)).text
    for expected in (
        "mobilenet_v2.onnx", "ONNX Runtime, CPU", "84.5 %", "float 84.8 %", "97.4 %", "28.0 dB", "3.65 MB", "4.37 ms",
        "refine ranges", "SQNR 25.1 dB → 27.2 dB (+2.1 dB) · took 3.2 s", "tried, not kept", "1.2 points below float",
        "Channel 41 of 'hardtanh_1' reaches 583 at positions 1, 14, 183, 196",
        "Block 7, MLP unit 417 (channel 417 of 'gelu_1') at tokens 1, 14, 183, 196 writes -480 to -590 into residual ",
        "Best by measured gain: cap at the source (linear_1 <= 16, it reached 219), +8.8 dB.", "+13.4 dB",
        "2 nodes: onnxruntime is faster in float",
        "relu_0 (Relu)", "converted from opset 18 to 21", "64 samples were analysed", "analysis: sensitivity", "1.31.0",
        "Permission to use, copy, modify",
    ):  # fmt: skip
        assert expected in text, expected


def test_an_outlier_that_a_cause_tells_of_is_not_told_twice(shown: Example) -> None:
    text = Reader(rendered(shown)).text
    assert "hardtanh_2' reaches 578" not in text
    alone = Reader(rendered(shown, analysis=replace(shown.analysis, causes=()))).text
    assert "Block 7, residual channel 41 (channel 41 of 'hardtanh_2') reaches 578 at tokens 1, 14, 183, 196" in alone
    assert "The cause of the loss" not in alone


def test_what_recovery_did_stands_beside_the_cause(shown: Example) -> None:
    step = Step(name="cap-outliers", detail="outliers were cut off where they arise: 'gelu_7' from 219 to 21",
                noise_before=0.1, noise_after=0.0123, seconds=1.0, kept=True)  # fmt: skip
    text = Reader(rendered(shown, analysis=replace(shown.analysis, steps=(step,)))).text
    assert "Kept: cap at the source ('gelu_7' from 219 to 21): +9.1 dB." in text
    assert "Kept: cap" not in Reader(rendered(shown, analysis=replace(shown.analysis, steps=(step,), causes=()))).text


@pytest.mark.parametrize(
    "changes",
    [
        {"analysis": None},
        {"analysis": Analysis()},
        {"analysis": Analysis(noise=float("nan"), samples=3)},
        {"summary": {}},
        {"summary": {}, "analysis": None, "plan": Plan(target="onnxruntime", encodings={})},
        {"plan": Plan(target="onnxruntime", encodings={})},
    ],
)
def test_everything_may_be_missing(shown: Example, changes: dict[str, Any]) -> None:
    page = Reader(rendered(shown, **changes))
    assert "Plan and target" in page.text
    json.loads(page.scripts[0])


@pytest.mark.parametrize(
    "field", ["losses", "distributions", "sensitivities", "depth", "remedies", "outliers", "causes"]
)
def test_any_part_of_the_analysis_may_be_missing(shown: Example, field: str) -> None:
    analysis = replace(shown.analysis, **{field: type(getattr(shown.analysis, field))()})
    assert "Plan and target" in Reader(rendered(shown, analysis=analysis)).text


@pytest.mark.parametrize("name", target_names())
def test_every_target_can_be_shown(shown: Example, name: str) -> None:
    target = load_target(name)
    assert target.title in Reader(rendered(shown, target=target)).text


def test_the_same_run_gives_the_same_page(shown: Example) -> None:
    assert rendered(shown) == rendered(shown)


def test_the_page_is_small() -> None:
    assert len(rendered(example(60)).encode()) < 1_500_000
    assert len(rendered(example(200)).encode()) < 3_000_000


def test_the_packages_import_does_not_load_what_pages_need() -> None:
    script = "import sys, narrowgauge.report.render; print('jinja2' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


# --- colours --------------------------------------------------------------------------------------------------


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio, WCAG 2.2."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(shown: Example, theme: int) -> None:
    colors = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", rendered(shown)))
    of = {name: pair.split(", ")[theme] for name, pair in colors.items()}
    for text in ("ink", "soft", "accent", "clip", "good", "loss", "broken"):
        for behind in ("page", "surface"):
            assert contrast(of[text], of[behind]) >= 4.5, (text, behind)
    for mark in ("accent", "clip"):
        assert contrast(of[mark], of["range"]) >= 3, mark

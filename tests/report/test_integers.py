"""What the page takes of engines' integers from a summary, whatever stands there."""

from __future__ import annotations

from typing import Any

import pytest

from narrowgauge.report.integers import read_integers
from narrowgauge.report.render import render
from tests.report.example import example

SHOWN = example(2)
NOTED: dict[str, Any] = {
    "onnxruntime": {
        "elements": 123456, "different": 0, "max": 0, "off_by": {}, "tensors": 9, "samples": 4,
        "first_different_tensors": [], "reasons": [],
    },
    "litert": {
        "elements": 1000, "different": 25, "max": 12, "off_by": {"1": 20, "2": 4, "more": 1}, "tensors": 7,
        "samples": 4, "reasons": ["WARNING: something <is> wrong"],
        "first_different_tensors": [
            {"name": "relu<1>", "node": "conv_3", "operator": "Conv", "elements": 500, "different": 20, "max": 12,
             "own": {"different": 3, "max": 1, "off_by": {"1": 3}}},
            {"name": "pool", "node": "", "operator": "", "elements": 500, "different": 5, "max": 1, "own": None},
        ],
    },
}  # fmt: skip


def page(found: Any) -> str:
    return render(SHOWN.summary | {"bit_exact": found}, SHOWN.analysis, plan=SHOWN.plan, target=SHOWN.target)


def test_engines_are_shown_with_their_figures() -> None:
    text = page(NOTED)
    assert "The engine’s own integers" in text
    assert '<a href="#integers">' in text
    for said in ("ONNX Runtime", "123,456", "25 (2.5 %)", "20 by 1, 4 by 2, 1 by more than 10.", "20 of 500"):
        assert said in text
    assert "relu&lt;1&gt;" in text
    assert "relu<1>" not in text.split('<script type="application/json"')[0]
    assert "<li>something &lt;is&gt; wrong</li>" in text


def test_without_figures_there_is_no_section() -> None:
    for nothing in ({}, None, [], 3):  # a run leaves it empty
        assert 'id="integers"' not in page(nothing)


@pytest.mark.parametrize(
    "odd",
    [
        {"litert": 3}, {"litert": {}}, {"x": {"elements": "many", "different": -2, "max": None, "off_by": [1]}},
        {"x": {"elements": True, "reasons": "word", "first_different_tensors": [3, {"own": 4, "elements": 1.5}]}},
        {"<b>": {"different": 2, "off_by": {"<i>": "x"}, "first_different_tensors": {"a": 1}}},
    ],
)  # fmt: skip
def test_a_damaged_entry_is_taken_as_not_measured(odd: dict[str, Any]) -> None:
    for one in read_integers({"bit_exact": odd}):
        assert one.different >= 0
        assert one.elements == 0
    assert "<b>" not in page(odd)
    assert "<i>" not in page(odd)


def test_rows_keep_what_is_known() -> None:
    first, second = read_integers({"bit_exact": NOTED})[1].first
    assert (first.writer, first.different, first.own, first.largest) == ("Conv conv_3", 20, 3, 12)
    assert (second.writer, second.own) == ("", None)

"""What the page says of attention, and what its scripts are given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from narrowgauge import quantize
from narrowgauge.analysis.records_json import analysis_from_json, pictures_from_json
from narrowgauge.cli.findings import findings
from narrowgauge.core.plan import plan_to_json
from narrowgauge.exporters.folder import write_summary
from narrowgauge.report.attention import attention_data, attention_sentences
from narrowgauge.report.files import report_again, write_report
from narrowgauge.report.render import render
from tests.analysis.attention import attending
from tests.planning.networks import normal
from tests.report.attention import attention_example
from tests.report.example import example


def test_the_head_that_changes_most_is_named_and_missing_pictures_are_said() -> None:
    heads, pictures = attention_example()
    assert attention_sentences(heads, pictures) == [
        f"Attention changes most in block 3, head 1: {100 * heads[-2].moved:.1f} % of its weight moves, on one sample."
    ]
    fewer = dataclasses.replace(pictures, pictures=pictures.pictures[:5])
    assert attention_sentences(heads, fewer)[1] == "Pictures are of the 5 heads that change most, of 12."
    assert len(attention_sentences(heads, None)) == 1
    assert attention_sentences((), None) == []


def test_the_scripts_get_every_head_and_picture() -> None:
    heads, pictures = attention_example()
    found = attention_data(heads, pictures)
    assert found is not None
    assert [(one["place"], one["head"]) for one in found["heads"]] == [
        (f"block {one.block}", one.head) for one in heads
    ]
    assert len(found["pictures"]) == len(pictures.pictures) == 24  # over the image, and the matrix
    assert found["sample"]["name"] == "dog.png"
    json.dumps(found, allow_nan=False)
    without = attention_data(heads, None)
    assert without is not None
    assert (len(without["heads"]), without["pictures"]) == (12, [])
    assert attention_data((), pictures) is None


def test_a_page_without_attention_does_not_mention_it() -> None:
    shown = example(2)
    page = render(shown.summary, shown.analysis, plan=shown.plan, target=shown.target)
    assert 'id="attention' not in page


def test_a_report_that_is_written_again_keeps_the_pictures(tmp_path: Path) -> None:
    shown = example(2)
    heads, pictures = attention_example()
    analysis = dataclasses.replace(shown.analysis, attention=heads)
    write_summary(shown.summary, tmp_path / "summary.json")
    (tmp_path / "plan.json").write_text(plan_to_json(shown.plan))
    write_report(tmp_path, shown.summary, analysis, plan=shown.plan, target=shown.target, attention=pictures)
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert pictures.pictures[0].weights in first
    report_again(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first
    (tmp_path / "attention.json").unlink()
    report_again(tmp_path)
    again = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert pictures.pictures[0].weights not in again
    assert 'id="attention"' in again


@pytest.mark.parametrize(("blocks", "heads", "tokens", "image"), [(24, 16, 197, 224), (12, 12, 256, 0)])
def test_pictures_of_a_large_network_stay_small(blocks: int, heads: int, tokens: int, image: int) -> None:
    found = attention_data(*attention_example(blocks, heads, tokens=tokens, image=image))
    assert len(json.dumps(found)) < 1_000_000


def test_a_run_compares_the_attention_of_its_first_sample(tmp_path: Path) -> None:
    samples = normal(48, 5, 8)
    out = tmp_path / "out"
    result = quantize(attending(), {"t": samples}, target="integer-only", recipe="plain", samples=32, out=out)
    assert result.analysis is not None
    assert [(one.attention, one.block, one.head) for one in result.analysis.attention] == [(0, None, 0), (0, None, 1)]
    assert all(0 < one.moved < 0.2 for one in result.analysis.attention)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert "attention.json" in summary["files"]
    assert "attention" in summary["seconds"]
    assert analysis_from_json((out / "analysis.json").read_text()).attention == result.analysis.attention
    assert pictures_from_json((out / "attention.json").read_text()).sample
    (said,) = [text for text in map(str, findings(result.analysis)) if "attention" in text]
    assert said.startswith("On one sample, attention changes most in attention 0, head")


def test_a_run_without_attention_or_analysis_has_no_pictures(tmp_path: Path) -> None:
    quantize(attending("a = Neg(p)"), {"t": normal(40, 5, 8)}, recipe="plain", samples=24, out=tmp_path / "other")
    assert not (tmp_path / "other" / "attention.json").exists()
    quantize(attending(), {"t": normal(40, 5, 8)}, recipe="plain", samples=24, analysis="none", out=tmp_path / "none")
    assert not (tmp_path / "none" / "attention.json").exists()

"""The report in a run's folder: written, and made again from what lies there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from narrowgauge import quantize
from narrowgauge.analysis.records_json import analysis_from_json
from narrowgauge.analysis.verification import verify
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import NarrowgaugeError, OutputError, ReportError
from narrowgauge.report.files import ANALYSIS, REPORT, report_again, write_report
from narrowgauge.targets.registry import load_target
from tests.report.example import example

SHOWN = example(3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a real run wrote."""
    folder = tmp_path_factory.mktemp("run") / "int8"
    quantize(network_path("digits_conv"), {"image": digits().images[:48]}, recipe="plain", samples=24, out=folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_both_files_are_written_and_the_analysis_is_read_back(tmp_path: Path) -> None:
    analysis = replace(SHOWN.analysis, steps=SHOWN.steps, front=SHOWN.front)
    write_report(tmp_path, SHOWN.summary, analysis, plan=SHOWN.plan, target=SHOWN.target)
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, ANALYSIS}
    assert analysis_from_json((tmp_path / ANALYSIS).read_text(encoding="utf-8"), source="test").steps == SHOWN.steps
    page = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert SHOWN.steps[0].detail in page


def test_without_an_analysis_there_is_a_page_alone(tmp_path: Path) -> None:
    write_report(tmp_path, SHOWN.summary, None, plan=SHOWN.plan, target=SHOWN.target)
    assert {path.name for path in tmp_path.iterdir()} == {REPORT}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"report\.html: could not write the report: No such file"):
        write_report(tmp_path / "none", SHOWN.summary, None, plan=SHOWN.plan, target=SHOWN.target)


def test_a_run_leaves_what_its_report_is_made_of(made: Path) -> None:
    summary = json.loads((made / "summary.json").read_text(encoding="utf-8"))
    assert {REPORT, ANALYSIS} <= set(summary["files"])
    analysis = analysis_from_json((made / ANALYSIS).read_text(encoding="utf-8"), source="test")
    assert analysis.ranking()[0].name in (made / REPORT).read_text(encoding="utf-8")


def test_again_is_the_same_page_but_for_the_table_of_files(folder: Path) -> None:
    """The first page was written before the sizes of the files were known."""
    first = report_again(folder).read_text(encoding="utf-8")
    (folder / REPORT).unlink()
    assert report_again(folder) == folder / REPORT
    assert (folder / REPORT).read_text(encoding="utf-8") == first
    assert (folder / ANALYSIS).exists()


def test_again_shows_what_was_edited(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary["notes"].append("weighed and found too heavy")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert "weighed and found too heavy" in report_again(folder).read_text(encoding="utf-8")


def test_again_without_an_analysis_and_for_a_target_that_is_named(folder: Path) -> None:
    (folder / ANALYSIS).unlink()
    page = report_again(folder, load_target("tflite")).read_text(encoding="utf-8")
    assert load_target("tflite").title in page
    assert not (folder / ANALYSIS).exists()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "null", "3"])
def test_what_no_run_wrote_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match="expected a folder that quantize or analyze wrote"):
        report_again(tmp_path)
    assert not (tmp_path / REPORT).exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("plan.json", None),
        ("plan.json", "{"),
        (ANALYSIS, "{"),
        (ANALYSIS, "[]"),
        (ANALYSIS, '{"version": 99}'),
        ("summary.json", '{"target": "no such chip"}'),
    ],
)
def test_a_damaged_folder_is_one_error_and_the_old_page_stays(folder: Path, file: str, text: str | None) -> None:
    before = (folder / REPORT).read_bytes()
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(NarrowgaugeError):
        report_again(folder)
    assert (folder / REPORT).read_bytes() == before


def test_a_summary_of_little_still_gives_a_page(folder: Path) -> None:
    """One of an earlier version, say."""
    (folder / "summary.json").write_text('{"target": "onnxruntime", "notes": ["hardly anything"]}', encoding="utf-8")
    assert "hardly anything" in report_again(folder).read_text(encoding="utf-8")


def test_a_folder_whose_report_is_made_again_is_still_whole(folder: Path) -> None:
    before = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (folder / REPORT).write_text("an older version's", encoding="utf-8")
    with pytest.raises(OutputError, match="damaged or changed"):
        verify(folder, {"image": digits().images[:8]}, samples=8)
    report_again(folder)
    verify(folder, {"image": digits().images[:8]}, samples=8)
    after = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert {key: value for key, value in after.items() if key != "files"} == {
        key: value for key, value in before.items() if key != "files"
    }
    assert after["files"].keys() == before["files"].keys()
    assert {path.name for path in folder.iterdir()} == {*before["files"], "summary.json"}

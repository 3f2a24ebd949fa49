"""`export`: many targets from one calibration, side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, no_leftovers, record


def test_a_table_sets_targets_side_by_side(written: Digits, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = done(
        "export", written.quantized, "--target", "onnxruntime", "--target", "snpe", "--data", written.data, "--out", out
    ).stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()[:1] in (["onnxruntime"], ["snpe"])}
    assert "onnxruntime" in rows["onnxruntime"].split()[1]
    assert "simulated" in rows["snpe"]
    assert float(rows["onnxruntime"].split()[-2]) >= 0  # the latency
    assert f"Written to {out}" in text.replace("\n", " ")
    assert (out / "snpe" / "plan.json").is_file()


def test_json_has_every_summary(written: Digits, tmp_path: Path) -> None:
    found = record("export", written.quantized, "--target", "tensorrt", "--target", "snpe", "--out", tmp_path / "out")
    assert [one["target"] for one in found["targets"]] == ["tensorrt", "snpe"]
    assert [one["summary"]["target"] for one in found["targets"]] == ["tensorrt", "snpe"]
    assert {one["error"] for one in found["targets"]} == {""}


def test_nothing_is_written_where_a_target_is_unknown(written: Digits, tmp_path: Path) -> None:
    said = error_of("export", written.quantized, "--target", "abacus", "--out", tmp_path / "out")
    assert "expected a target" in said
    no_leftovers(tmp_path)


def test_a_folder_that_is_taken_is_refused(written: Digits, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert "not empty" in error_of("export", written.quantized, "--target", "snpe", "--out", tmp_path)
    assert error_of("export", tmp_path, "--target", "snpe", "--out", tmp_path / "out").startswith(f"{tmp_path}: ")
    no_leftovers(tmp_path, "mine.txt")


def test_figures_stay_on_their_line_on_a_narrow_screen(
    written: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = done(
        "export", written.quantized, "--target", "onnxruntime:qoperator", "--target", "qnn:encodings-2.0.0",
        "--data", written.data, "--out", tmp_path / "out",
    ).stdout  # fmt: skip
    table = text[: text.index("The float network")].splitlines()
    assert max(map(len, table)) <= 80
    figures = [line for line in table if " dB " in line]
    assert [line.count("%") for line in figures] == [2, 2]
    assert all(" kB " in line for line in figures)


def test_a_target_that_was_not_checked_is_said(written: Digits, tmp_path: Path) -> None:
    text = done("export", written.quantized, "--target", "onnxruntime", "--out", tmp_path / "out").stdout
    assert "not run" in text
    assert "Nothing was checked: give --data." in text

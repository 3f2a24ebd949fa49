"""`report`: the page of a folder again."""

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, no_leftovers


@pytest.fixture
def folder(written: Digits, tmp_path: Path) -> Path:
    """A copy of a folder that quantize wrote, without its page."""
    copy = Path(shutil.copytree(written.quantized, tmp_path / "int8"))
    (copy / "report.html").unlink()
    return copy


def test_the_page_is_written_and_named(folder: Path) -> None:
    result = done("report", folder)
    assert result.stdout.replace("\n", "") == str(folder / "report.html")
    assert result.stderr == ""
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_quiet_prints_nothing(folder: Path) -> None:
    assert done("report", folder, "--quiet").output == ""
    assert (folder / "report.html").exists()


def test_what_verify_reads_stays_whole(folder: Path, written: Digits) -> None:
    """The summary lists the new page; nothing else changed."""
    new = {"report.html", "summary.json"}
    before = {path.name: path.read_bytes() for path in written.quantized.iterdir() if path.name not in new}
    done("report", folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "is whole" in done("verify", folder, "--data", written.data).stdout


def test_a_target_of_ones_own(folder: Path, tmp_path: Path) -> None:
    assert "did you mean tflite" in error_of("report", folder, "--target", "tflit")
    assert "missing.toml" in error_of("report", folder, "--target", tmp_path / "missing.toml")
    assert not (folder / "report.html").exists()


def test_a_folder_that_no_run_wrote(written: Digits, tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "none", written.network):
        said = error_of("report", wrong)
        assert str(wrong) in said
        assert "expected a folder that quantize or analyze wrote" in said
    no_leftovers(tmp_path)


def test_a_folder_that_was_damaged(folder: Path) -> None:
    (folder / "analysis.json").write_text("{")
    assert "analysis.json" in error_of("report", folder)
    (folder / "analysis.json").unlink()
    (folder / "plan.json").unlink()
    assert "plan.json" in error_of("report", folder)


def test_without_a_folder_it_is_wrong_usage() -> None:
    done("report", code=2)
    done("report", "a", "b", code=2)

"""`demo`: runs through, twice, and the commands that it names work."""

import shlex
from pathlib import Path

import pytest

from tests.cli.running import done, error_of, record


def test_the_demo_and_the_commands_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = done("demo").stdout
    assert "top-1" in text
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  narrowgauge ")]
    assert [command[0] for command in commands] == ["compare", "verify", "quantize"]
    for command in commands:
        done(*command)
    summary = record("demo")  # a second time: it replaces its own folder
    assert summary["checked_samples"] == 597
    assert summary["float"]["top1"] > 98
    assert summary["quantized"]["top1"] > 97.5


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert "--force" in error_of("demo", "--out", tmp_path)

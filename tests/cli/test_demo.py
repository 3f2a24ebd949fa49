"""`demo`: runs through, twice, and the commands that it names work."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import done, error_of, record

SCRIPT = Path(sys.executable).with_name("narrowgauge")


def test_the_demo_and_the_commands_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = done("demo").stdout
    assert "top-1" in text
    lines = [shlex.split(line) for line in text.partition("Try next:")[2].splitlines()]
    assert {Path(line[0]).name for line in lines if line} == {"narrowgauge"}
    commands = [line[1:] for line in lines if line]
    assert [command[0] for command in commands] == ["compare", "verify", "quantize"]
    for command in commands:
        done(*command)
    summary = record("demo")  # a second time: it replaces its own folder
    assert summary["checked_samples"] == 597
    assert summary["float"]["top1"] > 98
    assert summary["quantized"]["top1"] > 97.5


@pytest.mark.skipif(not SCRIPT.exists(), reason="narrowgauge is not installed as a command here")
def test_the_commands_it_names_start_where_the_command_is_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    line = done("demo").stdout.partition("Try next:")[2].split("\n")[2]
    assert subprocess.run([*shlex.split(line)[:1], "--version"], check=True, capture_output=True).stdout


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert "--force" in error_of("demo", "--out", tmp_path)

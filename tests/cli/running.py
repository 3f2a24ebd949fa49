"""Run the command line: inside this process where that is enough, else as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from narrowgauge.cli.app import app


def invoke(*arguments: str | Path | int) -> Any:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path | int, code: int = 0) -> Any:
    """Run a command that is to end with a code."""
    result = invoke(*arguments)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def record(*arguments: str | Path | int) -> Any:
    """Run a command with --json and read what it prints."""
    return json.loads(done(*arguments, "--json").stdout)


def error_of(*arguments: str | Path | int) -> str:
    """Run a command that is to fail; return its one line, without what says that it is an error."""
    result = done(*arguments, code=1)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.output
    return lines[0].removeprefix("error: ")


def process(*arguments: str | Path | int, **options: Any) -> subprocess.Popen[str]:
    """Start the command as its own process."""
    command = [sys.executable, "-c", "from narrowgauge.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def no_leftovers(folder: Path, *expected: str) -> None:
    """Check that a folder holds these entries and no temporary ones."""
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(expected)

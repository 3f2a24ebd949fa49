"""The frame: help, version, exit codes of wrong usage, how light it starts."""

import json
import subprocess
import sys

import pytest

import narrowgauge
from narrowgauge.cli.app import COMMANDS
from tests.cli.running import done, invoke

HEAVY = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "PIL", "torch", "rich"}


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "from narrowgauge.cli import main\n"
        "sys.argv = ['narrowgauge', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print('MODULES', json.dumps(sorted(name for name in sys.modules if '.' not in name)), end.code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded, code = ran.stdout.split("MODULES ")[1].rsplit(maxsplit=1)
    assert code == "0"
    assert HEAVY & set(json.loads(loaded)) == set()


def test_help_names_every_command() -> None:
    text = done("--help").stdout
    assert [name for name in COMMANDS if f"  {name} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_within_80_columns(command: str) -> None:
    text = done(command, "--help").stdout
    assert text.startswith(f"Usage: root {command}") or "Usage:" in text
    assert max(map(len, text.splitlines())) <= 80


def test_version() -> None:
    assert done("--version").stdout == f"narrowgauge {narrowgauge.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantise",),
        ("quantize", "model.onnx", "--data", "x.npy"),  # no --out
        ("quantize", "model.onnx", "--out", "o", "--samples", "none"),
        ("quantize", "model.onnx", "--out", "o", "--samples", "0"),
        ("quantize", "model.onnx", "--out", "o", "--colour", "red"),
        ("calibrate", "model.onnx", "--out", "o"),
        ("compare", "a.onnx", "--data", "x.npy"),
        ("bench", "a.onnx", "--threads", "-1"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr

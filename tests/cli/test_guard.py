"""Whatever a command raises, it ends with one line and an exit code."""

import errno

import pytest
import typer
from typer.testing import CliRunner

from narrowgauge.cli.guard import ExitCode, Terminated, guarded
from narrowgauge.errors import ModelError


def run(error: BaseException, *arguments: str) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @guarded
    def fails(debug: bool = False) -> None:
        raise error

    result = CliRunner().invoke(app, list(arguments))
    assert result.stdout == ""
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelError("a.onnx: no such\nfile"), 1, "error: a.onnx: no such file"),
        (KeyError("x"), 1, "internal error: KeyError: 'x'; run again with --debug for the traceback"),
        (AssertionError(), 1, "internal error: AssertionError; run again with --debug for the traceback"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
        (KeyboardInterrupt("all of it is in x.npz"), 130, "interrupted; all of it is in x.npz"),
        (Terminated(), 143, "terminated; nothing was written"),
        (OSError(errno.ENOSPC, "No space left on device", "o/x"), 1,
         "error: o/x: No space left on device: nothing was written; free some space, or write elsewhere"),
        (PermissionError(errno.EACCES, "Permission denied", "o"), 1,
         "error: o: Permission denied: choose another place, or change its permissions"),
        (MemoryError(), 1, "error: out of memory: take fewer --threads, or a machine with more"),
    ],
)  # fmt: skip
def test_one_line_and_a_code(error: BaseException, code: int, line: str) -> None:
    assert run(error) == (code, f"{line}\n")


def test_debug_shows_the_traceback_as_well() -> None:
    code, text = run(ModelError("broken"), "--debug")
    assert code == 1
    assert text.startswith("Traceback")
    assert text.endswith("error: broken\n")


def test_exit_codes_are_those_documented() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0, "FAILED": 1, "USAGE": 2, "MISSED": 3, "INTERRUPTED": 130, "TERMINATED": 143
    }  # fmt: skip

"""How a command ends: exit codes, and one line for whatever went wrong."""

from __future__ import annotations

import enum
import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

from narrowgauge.errors import NarrowgaugeError

Parameters = ParamSpec("Parameters")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class ExitCode(enum.IntEnum):
    """What the process's exit code says."""

    DONE = 0
    FAILED = 1
    """One line on stderr says why."""
    USAGE = 2
    """The arguments are wrong; Typer says which."""
    MISSED = 3
    """Done and written, but the accuracy that was asked for is missed."""
    INTERRUPTED = 130
    """Ctrl-C (128 + SIGINT, as shells count)."""
    TERMINATED = 143
    """Asked to end (128 + SIGTERM)."""


class Terminated(BaseException):
    """SIGTERM came: cleaned up after like an interruption."""


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Let a command end with an exit code and one line on stderr, whatever it raises.

    A command's parameter `debug` shows the traceback as well. A KeyboardInterrupt that carries a text says with it
    what was kept.
    """

    @functools.wraps(command)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        try:
            command(*arguments, **options)
            sys.stdout.flush()  # a reader that has gone shows here, not when the interpreter ends
        except (typer.Exit, typer.BadParameter):
            raise
        except BrokenPipeError:  # the reader of our output has seen enough (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.DONE) from None
        except BaseException as error:
            if options.get("debug"):
                traceback.print_exc()
            line, code = _ending(error)
            print(" ".join(line.split()), file=sys.stderr)
            raise typer.Exit(code) from None

    return run


def end_cleanly_when_terminated() -> None:
    """Let SIGTERM end the process as Ctrl-C does: what was begun is removed."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _ending(error: BaseException) -> tuple[str, ExitCode]:
    """Say in one line what happened, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {_kept(error)}", ExitCode.INTERRUPTED
    if isinstance(error, Terminated):
        return f"terminated; {_kept(error)}", ExitCode.TERMINATED
    if isinstance(error, NarrowgaugeError):
        return f"error: {error}", ExitCode.FAILED
    if isinstance(error, OSError) and error.errno in _FULL | _FORBIDDEN:
        return f"error: {_file_trouble(error)}", ExitCode.FAILED
    if isinstance(error, MemoryError):
        message = "out of memory: take fewer --threads, or a machine with more"
        return f"error: {message} ({error})" if str(error) else f"error: {message}", ExitCode.FAILED
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"internal error: {what}; run again with --debug for the traceback", ExitCode.FAILED


def _kept(error: BaseException) -> str:
    return str(error) or "nothing was written"


def _file_trouble(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return f"{where}{error.strerror}: nothing was written; free some space, or write elsewhere"
    return f"{where}{error.strerror}: choose another place, or change its permissions"


def fail(message: str) -> NoReturn:
    """Print a line and end with `ExitCode.FAILED`."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(ExitCode.FAILED)

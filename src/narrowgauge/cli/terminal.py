"""What reaches the terminal: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from narrowgauge.stages import Progress

# What is done sooner needs no bar.
_PATIENCE_SECONDS = 1.0


class _Stdout(Console):
    """Rich ends the process where its reader has gone; we let the command end as it should."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(*parts: RenderableType) -> None:
    """Print for a person, on stdout; texts are not broken into lines, so that they can be copied."""
    console = _Stdout(highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def show_json(record: Mapping[str, Any] | list[Any]) -> None:
    """Print for a script, on stdout."""
    print(json.dumps(record, indent=2, allow_nan=False))


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what others print (a metric of the user's, say) to stderr: stdout is for the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Show on stderr how far a run is: on a terminal only, and only once it has taken over a second."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Progress()
        return
    bars = Bars(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    tasks: list[TaskID] = []

    def begin(stage: str, total: int | None) -> None:
        for task in tasks:
            bars.remove_task(task)
        tasks[:] = [bars.add_task(stage, total=total)]

    def advance(count: int) -> None:
        for task in tasks:
            bars.advance(task, count)

    timer = threading.Timer(_PATIENCE_SECONDS, bars.start)
    timer.daemon = True
    timer.start()
    try:
        yield Progress(begin=begin, advance=advance)
    finally:
        timer.cancel()
        timer.join()
        bars.stop()

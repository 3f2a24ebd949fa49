"""Whether the accuracy that was asked for is reached."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import typer

from narrowgauge.analysis.drop import accuracy_drop
from narrowgauge.cli.guard import ExitCode


def end_if_missed(
    before: Mapping[str, float], after: Mapping[str, float], agreement: float | None, most: float | None, own: bool
) -> None:
    """End with `ExitCode.MISSED` if accuracy fell by more than was asked for.

    Args:
        before: metrics of the float network; the user's own is the last.
        after: those of the other.
        agreement: share of equal answers, percent; stands in where there is no metric.
        most: points that it may fall, None if nothing was asked.
        own: whether the user's own metric is meant.

    Raises:
        DataError: if there is nothing to judge by.
    """
    if most is None:
        return
    name, fall = accuracy_drop(before, after, agreement, own=own)
    if fall > most:
        line = f"accuracy missed: {name} fell by {fall:.4g}, at most {most:g} were asked for (--max-drop)"
        print(line, file=sys.stderr)
        raise typer.Exit(ExitCode.MISSED)

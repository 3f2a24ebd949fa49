"""Whether the accuracy that was asked for is reached."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import typer

from narrowgauge.cli.guard import ExitCode
from narrowgauge.errors import DataError


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
    name, fall = _fall(before, after, agreement, own=own)
    if fall > most:
        line = f"accuracy missed: {name} fell by {fall:.4g}, at most {most:g} were asked for (--max-drop)"
        print(line, file=sys.stderr)
        raise typer.Exit(ExitCode.MISSED)


def _fall(
    before: Mapping[str, float], after: Mapping[str, float], agreement: float | None, *, own: bool
) -> tuple[str, float]:
    if own or "top1" in before:
        name = list(before)[-1] if own else "top1"
        return name, before[name] - after[name]
    if agreement is None:
        raise DataError("--max-drop needs something to judge by: give --data with labels, or a --metric")
    return "the agreement with the float network", 100.0 - agreement

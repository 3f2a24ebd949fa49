"""The integers inside an engine beside ours, on a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from narrowgauge.cli.outcome import counted, plain_table
from narrowgauge.runtimes.engines import engine_named

# What fits on a screen; --json has all.
_SHOWN = 10


def integers(record: Mapping[str, Any], runtime: str) -> list[RenderableType]:
    """Say how many integers inside an engine differ from ours, by how much, and in which tensors first.

    Args:
        record: what `analysis.exactness.to_json` returns.
        runtime: name of the engine.
    """
    compared = [row for row in record["tensors"] if row["elements"]]
    differing = [row for row in compared if row["different"]]
    what = f"{record['elements']:,} integers in {counted(len(compared), 'tensor')} inside {engine_named(runtime).title}"
    if not differing:
        return [Text(f"All {what} are those that we compute."), *_left_out(record)]
    table = plain_table("tensor", "operator", "differ", "of these by itself", "most", right=(2, 3, 4))
    for row in differing[:_SHOWN]:
        own = row["own"]["different"] if row["own"] else 0
        table.add_row(
            Text(row["name"]), Text(row["operator"] or "input"), f"{row['different']:,} of {row['elements']:,}",
            f"{own:,}", str(row["max"]),
        )  # fmt: skip
    rest = len(differing) - _SHOWN
    lines: list[RenderableType] = [
        Text(f"Of {what}, {record['different']:,} differ from those that we compute: {off_by(record)}."),
        table,
    ]
    if rest > 0:
        lines.append(Text(f"and {counted(rest, 'tensor')} behind them"))
    meaning = "by itself: from the engine's own integers before it; the others only hand on what differs before them"
    return [*lines, Text(meaning, style="dim"), *_left_out(record)]


def off_by(record: Mapping[str, Any]) -> str:
    """Write by how much integers differ: `1,234 by 1, 5 by 2`."""
    return ", ".join(
        f"{count:,} by more than 10 (at most {record['max']})" if distance == "more" else f"{count:,} by {distance}"
        for distance, count in record["off_by"].items()
    )


def _left_out(record: Mapping[str, Any]) -> list[RenderableType]:
    unfit = [row["name"] for row in record["tensors"] if not row["elements"]]
    parts = [
        _named(record["only_ours"], "that only we compute"),
        _named(record["only_runtime"], "that only the engine shows"),
        _named(unfit, "whose shapes or types do not fit"),
    ]
    said = "; ".join(part for part in parts if part)
    return [Text(f"Not compared: {said}", style="dim")] if said else []


def _named(names: Sequence[str], why: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{counted(len(names), 'tensor')} {why} ({shown})" if names else ""

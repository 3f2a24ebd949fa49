"""A run's figures as tables: two networks beside each other, what stays float, notes, files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

FILES = {
    "model.onnx": "the quantized network for the target: run this one",
    "simulated.onnx": "the same simulated in float (Q/DQ): runs anywhere",
    "integer.onnx": "the same in integer operators",
    "original.onnx": "the simplified float network",
    "float.onnx": "the float network that plan.json is for",
    "plan.json": "scales and zero points: edit, then --plan",
    "model.toml": "how images become inputs",
    "statistics.npz": "what calibration saw: for --statistics",
    "summary.json": "these figures, for scripts",
    "notes.txt": "what the import changed, and what it left alone",
}

_SHARES = ("top1", "top5")
"""Metrics that are percentages."""

# What fits on a screen; `summary.json` has all.
_SHOWN_REASONS = 3
_SHOWN_OPERATORS = 3

# Relative difference that two figures would not show.
_SAME = 0.005


def plain_table(*header: str, right: Sequence[int] = ()) -> Table:
    """A table without a frame; columns whose numbers are in `right` are aligned to the right."""
    table = Table(box=None, pad_edge=False, show_header=any(header), header_style="bold")
    for number, title in enumerate(header):
        table.add_column(Text(title), justify="right" if number in right else "left", overflow="fold")
    return table


def beside(names: tuple[str, str], summary: Mapping[str, Any], keys: tuple[str, str] = ("float", "quantized")) -> Table:
    """Put two networks' accuracy, agreement, size and latency beside each other.

    Args:
        names: what to call the two.
        summary: what `summary.json` holds, or `comparison.to_json`.
        keys: under which the two stand in it.
    """
    table = plain_table("", *names, "", right=(1, 2))
    metrics = summary.get("metrics", summary)
    for name, before in metrics[keys[0]].items():
        after = metrics[keys[1]].get(name)
        if after is not None:
            table.add_row(_metric(name), _value(name, before), _value(name, after), _change(name, after - before))
    if summary["agreement_top1"] is not None:
        table.add_row("same answer", "", f"{summary['agreement_top1']:.2f} %", "same largest output")
    if summary["sqnr_db"] is not None or summary["sqnr_infinite"]:
        shown = decibels(summary["sqnr_db"], infinite=summary["sqnr_infinite"])
        table.add_row("output SQNR", "", shown, "signal over the error")
    sizes = [summary["size_bytes"][key] for key in keys]
    table.add_row("size", size_text(sizes[0]), size_text(sizes[1]), times(sizes[0], sizes[1], "smaller", "larger"))
    speeds = [summary["latency_ms"].get(key) for key in keys]
    if None not in speeds:
        table.add_row(
            "latency, 1 thread", f"{speeds[0]:.3g} ms", f"{speeds[1]:.3g} ms",
            times(speeds[0], speeds[1], "faster", "slower"),
        )  # fmt: skip
    return table


def _metric(name: str) -> str:
    return {"top1": "top-1", "top5": "top-5"}.get(name, name)


def _value(name: str, value: float) -> str:
    return f"{value:.2f} %" if name in _SHARES else f"{value:.6g}"


def _change(name: str, change: float) -> str:
    return f"{change:+.2f} points" if name in _SHARES else f"{change:+.4g}"


def decibels(value: float | None, *, infinite: bool = False) -> str:
    """Write a signal-to-noise ratio."""
    if infinite:
        return "equal"
    return "-" if value is None else f"{value:.1f} dB"


def size_text(size: int) -> str:
    """Write a size in the unit that leaves three figures."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * limit:  # what three figures would round up to it
            return f"{size / limit:.3g} {unit}" if size / limit < 1000 else f"{size / limit:.0f} {unit}"
    return f"{size} B"


def times(before: float, after: float, better: str, worse: str) -> str:
    """Write a ratio as `2.65x smaller`."""
    if min(before, after) <= 0:
        return ""
    ratio = before / after
    if abs(math.log(ratio)) < _SAME:
        return "about the same"
    return f"{ratio:.2f}x {better}" if ratio >= 1 else f"{1 / ratio:.2f}x {worse}"


def grouped_reasons(nodes: Iterable[Mapping[str, str]]) -> list[tuple[int, str, str]]:
    """Group nodes that stay float: how many, their operators, why; the largest group first."""
    groups: dict[str, Counter[str]] = {}
    said: dict[str, str] = {}
    for node in nodes:
        reason = _without_names(node["reason"])
        key = _without_operator(reason, node["operator"])
        said.setdefault(key, reason)
        groups.setdefault(key, Counter())[node["operator"]] += 1
    rows = [
        (operators.total(), _counted(operators), key if len(operators) > 1 else said[key])
        for key, operators in groups.items()
    ]
    return sorted(rows, key=lambda row: -row[0])


def _counted(operators: Counter[str]) -> str:
    named = [f"{count} {name}" for name, count in operators.most_common(_SHOWN_OPERATORS)]
    rest = operators.total() - sum(count for _, count in operators.most_common(_SHOWN_OPERATORS))
    return ", ".join([*named, *([f"{rest} others"] if rest else [])])


def _without_names(reason: str) -> str:
    """Take the names out of `x arrives in float: ...`: they would make each reason a group of its own."""
    reason = re.sub(r"^.* arrives in float\b", "an input arrives in float", reason)
    return re.sub(r": an integer \w+ would", ": integers would", reason)


def _without_operator(reason: str, operator: str) -> str:
    """Take the operator out of a reason that holds for others as well."""
    reason = re.sub(rf" has no integer {re.escape(operator)}$", " has no integer form of them", reason)
    return re.sub(rf" leaves {re.escape(operator)} float$", " leaves them float", reason)


def float_nodes(nodes: Sequence[Mapping[str, str]]) -> RenderableType:
    """Say which nodes stay float, grouped by reason; `summary.json` has them all by name."""
    if not nodes:
        return Text("No node stays float.")
    rows = grouped_reasons(nodes)
    table = plain_table("", "", right=(0,))
    for count, operators, reason in rows[:_SHOWN_REASONS]:
        table.add_row(str(count), Text(f"{reason} ({operators})"))
    rest = sum(count for count, _, _ in rows[_SHOWN_REASONS:])
    if rest:
        table.add_row(str(rest), Text("others: see float_nodes in summary.json"))
    return Group(Text("1 node stays float:" if len(nodes) == 1 else f"{len(nodes)} nodes stay float:"), table)


def notes(lines: Iterable[str]) -> list[RenderableType]:
    """Warnings loud, everything else as a list."""
    loud = [line for line in lines if line.startswith("WARNING")]
    quiet = [line for line in lines if not line.startswith("WARNING")]
    shown: list[RenderableType] = [
        Panel(Text(line.removeprefix("WARNING:").strip()), title="WARNING", style="bold red") for line in loud
    ]
    if quiet:
        table = plain_table("", "")
        for line in quiet:
            table.add_row("-", Text(line))
        shown += [Text("Notes:"), table]
    return shown


def files(folder: Path) -> RenderableType:
    """Say what lies in a folder that was written, each file with its use."""
    table = plain_table("", "", "", right=(1,))
    for name, meaning in FILES.items():
        if (folder / name).exists():
            table.add_row(name, size_text((folder / name).stat().st_size), Text(meaning))
    return Group(Text(f"Written to {folder}:"), table)


def _written(folder: Path) -> Text:
    """Say in a line or two what lies in a folder that was written, the network to run first."""
    names = [name for name in FILES if (folder / name).exists()]
    names += sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    return Text(f"Written to {folder}: {', '.join(names)}")


def run_report(summary: Mapping[str, Any], folder: Path | None, *, explain: bool = False) -> list[RenderableType]:
    """Everything that a person should know of a run of `quantize`, on a screen.

    Args:
        summary: what `summary.json` holds.
        folder: where the files are.
        explain: say of each file what it is for.
    """
    head = f"{Path(summary['model']).name} for {summary['target']}, recipe {summary['recipe']}"
    took = f"{sum(summary['seconds'].values()):.1f} seconds"
    checked, labelled = summary["checked_samples"], summary["labelled_samples"]
    said = f"checked on {counted(checked, 'sample')}{labels_text(checked, labelled)}, " if checked else ""
    written = [] if folder is None else [files(folder) if explain else _written(folder)]
    body = Group(beside(("float", "quantized"), summary), Text(said + took, style="dim"))
    return [
        Panel(body, title=Text(head), title_align="left", expand=False),
        float_nodes(summary["float_nodes"]),
        *notes(summary["notes"]),
        *written,
    ]


def counted(number: int, noun: str) -> str:
    """Write a number of things: `1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def labels_text(samples: int, labelled: int) -> str:
    """Say how many samples had labels where not all of them had."""
    return "" if labelled == samples else f", {labelled} of them labelled" if labelled else ", none labelled"

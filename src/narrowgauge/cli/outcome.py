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

from narrowgauge.runtimes.engines import engine_named

FILES = {
    "model.onnx": "the quantized network for the target: run this one",
    "model.tflite": "the quantized network for TensorFlow Lite: run this one",
    "simulated.onnx": "the same simulated in float (Q/DQ), to compare",
    "integer.onnx": "the same in integers, as the target computes it",
    "original.onnx": "the simplified float network",
    "float.onnx": "the float network that plan.json is for",
    "plan.json": "scales and zero points: edit, then --plan",
    "model.toml": "how images become inputs",
    "statistics.npz": "what calibration saw: for --statistics",
    "report.html": "where the accuracy went: open it in a browser",
    "analysis.json": "the same, for scripts",
    "attention.json": "pictures of attention: for the report",
    "summary.json": "these figures, for scripts",
    "notes.txt": "what the import changed, and what it left alone",
}

_SHARES = ("top1", "top5")
"""Metrics that are percentages."""

# What fits on a screen; `summary.json` has all.
_SHOWN_REASONS = 3
_SHOWN_OPERATORS = 3
_SHOWN_NAMES = 5

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
            times(speeds[0], speeds[1], "faster", "slower") + _other_engine(summary.get("latency_runtimes"), keys),
        )  # fmt: skip
    return table


def _other_engine(runtimes: Mapping[str, str] | None, keys: tuple[str, str]) -> str:
    """Say where the first network was timed, if that was in another engine than the second."""
    if runtimes is None or runtimes[keys[0]] == runtimes[keys[1]]:
        return ""
    return f" (float in {engine_named(runtimes[keys[0]]).title})"


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


def tensors(record: Mapping[str, Any], *, worst_first: bool = False) -> list[RenderableType]:
    """Say where two networks part, tensor by tensor.

    Args:
        record: what `comparison.to_json` returns.
        worst_first: sorted by SQNR instead of in the first network's order.
    """
    rows: list[Mapping[str, Any]] = record["tensors"]
    if not rows:
        return [Text("The two networks have no tensor in common.")]
    shown = sorted(rows, key=_decibels_of) if worst_first else rows
    integers = any(row["integers"] for row in rows)
    table = plain_table(
        "tensor of A",
        "operator",
        "SQNR",
        "max diff",
        *(["off by one", "by more"] if integers else []),
        right=(2, 3, 4, 5),
    )
    for row in shown:
        cells = _integer_cells(row["integers"]) if integers else []
        difference = "-" if row["max_difference"] is None else f"{row['max_difference']:.3g}"
        table.add_row(
            Text(row["name"]), Text(row["operator"] or "input"),
            decibels(row["sqnr_db"], infinite=row["sqnr_infinite"]), difference, *cells,
        )  # fmt: skip
    return [Text(""), table, Text(""), *_parting(record, rows), *_remarks(rows)]


def _decibels_of(row: Mapping[str, Any]) -> float:
    if row["sqnr_infinite"] or not row["elements"]:
        return math.inf
    return -math.inf if row["sqnr_db"] is None else float(row["sqnr_db"])


def _integer_cells(found: Mapping[str, int] | None) -> list[str]:
    if found is None:
        return ["", ""]
    return [f"{found['by_1']}" if found["by_1"] else "-", _by_more(found)]


def _by_more(found: Mapping[str, int]) -> str:
    more = found["different"] - found["by_1"]
    return f"{more}, up to {found['largest']}" if more else "-"


def _parting(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Name the first tensor that differs and the worst, and sum up the integers."""
    named = {row["name"]: row for row in rows}
    first, worst = record["first_different_tensor"], record["worst_tensor"]
    if first is None:
        lines = [f"All {counted(len(rows), 'tensor')} are equal, but for float32's own rounding."]
    else:
        lines = [f"first that differs: {_parted(named[first])}", f"lowest SQNR: {_parted(named[worst])}"]
    found = [row for row in rows if row["integers"]]
    if found:
        total = sum(row["elements"] for row in found)
        parts = {
            f"{text}": sum(row["integers"][key] for row in found)
            for key, text in (("by_1", "by 1"), ("by_2", "by 2"), ("by_3_to_10", "by 3 to 10"), ("by_more", "by more"))
        }
        said = ", ".join(f"{count:,} {text}" for text, count in parts.items() if count) or "none"
        lines.append(f"integers that differ, of {total:,} in {counted(len(found), 'tensor')}: {said}")
    return [Text(line) for line in lines]


def _parted(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({row['operator'] or 'input'}, {decibels(row['sqnr_db'], infinite=row['sqnr_infinite'])})"


def _remarks(rows: Iterable[Mapping[str, Any]]) -> list[RenderableType]:
    """Say what is special of which tensors, each kind once."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        if row["remark"]:
            kinds.setdefault(row["remark"], []).append(row["name"])
    return [
        Text(f"{', '.join(names[:_SHOWN_NAMES])}{', ...' if len(names) > _SHOWN_NAMES else ''}: {remark}")
        for remark, names in kinds.items()
    ]


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


def _first(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Without labels: what both networks say of the first sample."""
    first = summary["first_sample"]
    if first is None or summary["labelled_samples"] or summary["float"]:
        return []
    table = plain_table("", "")
    for key, classes in first["top5"].items():
        table.add_row(f"top-{len(classes)} {key}", ", ".join(map(str, classes)))
    return [Text(f"classes of {first['name']}:"), table]


def _written(folder: Path) -> Text:
    """Say in a line or two what lies in a folder that was written, the network to run first."""
    names = [name for name in FILES if (folder / name).exists()]
    others = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    own = [name for name in others if name.startswith("model.")]  # the target's, where that is no ONNX network
    rest = [name for name in others if name not in own]
    return Text(f"Written to {folder}: {', '.join([*own, *names, *rest])}")


def recovery(steps: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Say in a paragraph what each step of recovery won and took; nothing where none was measured."""
    if not any(step["noise_after"] for step in steps):
        return []
    kept = "; ".join(_step(step) for step in steps if step["kept"])
    others = ", ".join(f"{step['name']} ({step['seconds']:.1f} s)" for step in steps if not step["kept"])
    judged = any(step.get("judged_db") is not None for step in steps)
    what = "output SQNR (gains as they are judged)" if judged else "output SQNR"
    return [Text(f"Recovery, {what}: {kept}." + (f" Not kept: {others}." if others else ""))]


def _step(step: Mapping[str, Any]) -> str:
    before, after = step["noise_before"], step["noise_after"]
    won = f" {-10 * math.log10(after):.1f} dB" if after else ""
    if step.get("judged_db") is not None:
        won = f" {step['judged_db']:+.1f} dB"
    elif before and after:
        won = f" {10 * math.log10(before / after):+.1f} dB"
    lost = f", {step['drop']:.4g} points lost" if step["drop"] is not None else ""
    return f"{step['name']}{won} ({step['seconds']:.1f} s{lost})"


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
    shown = [*_first(summary), *_inside(summary)]
    body = Group(beside(("float", "quantized"), summary), *shown, Text(said + took, style="dim"))
    return [
        Panel(body, title=Text(head), title_align="left", expand=False),
        *recovery(summary["steps"]),
        float_nodes(summary["float_nodes"]),
        *notes(summary["notes"]),
        *written,
    ]


def _inside(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Say whether an engine's integers are ours."""
    lines: list[RenderableType] = []
    for runtime, found in summary["bit_exact"].items():
        where = f"{found['elements']:,} integers inside {engine_named(runtime).title}"
        if found["different"]:
            lines.append(Text(f"{found['different']:,} of {where} differ from ours, by {found['max']} at most"))
        else:
            lines.append(Text(f"all {where} are those that we compute"))
    return lines


def counted(number: int, noun: str) -> str:
    """Write a number of things: `1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def labels_text(samples: int, labelled: int) -> str:
    """Say how many samples had labels where not all of them had."""
    return "" if labelled == samples else f", {labelled} of them labelled" if labelled else ", none labelled"

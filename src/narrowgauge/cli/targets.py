"""`narrowgauge targets`: what there is to quantize for, and what each can do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from narrowgauge.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from narrowgauge.targets.describe import TargetSummary


def targets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[T]", help="Show this one in full: a name, or a .toml file.", show_default=False),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the targets, or show one with its sources."""
    from narrowgauge.cli import terminal
    from narrowgauge.targets.describe import explain, summary_rows
    from narrowgauge.targets.registry import load_target

    if name is None:
        rows = summary_rows()
        if json:
            terminal.show_json([dataclasses.asdict(row) for row in rows])
        else:
            terminal.show(_list(rows), "`narrowgauge targets NAME` shows one in full.")
        return
    target = load_target(name)
    sections = explain(target)
    if json:
        facts = {"name": target.name, "title": target.title, "version": target.version}
        terminal.show_json({**facts, "sections": [dataclasses.asdict(section) for section in sections]})
        return
    from rich.text import Text

    terminal.show(
        Text(f"{target.name}: {target.title}", style="bold"), f"Rows read from or measured on {target.version}."
    )
    for section in sections:
        terminal.show("", Text(section.title, style="bold"), *map(Text, section.sentences))
        if section.rows:
            terminal.show(_table(section.rows))


def _list(rows: list[TargetSummary]) -> Table:
    from narrowgauge.cli.outcome import plain_table

    table = plain_table("target", "activations", "weights", "integer ops", "file", right=(3,))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row.name, row.activations, row.weights, str(row.operators), ", ".join(row.formats) or "-")
    return table


def _table(rows: tuple[tuple[str, ...], ...]) -> Table:
    """Two columns fit a narrow terminal: the operators, and all that is said of them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=2, overflow="fold")
    for operators, *said, source in rows:
        text = Text("; ".join(part for part in said if part))
        table.add_row(Text(operators), text.append(f"\nSource: {source}", style="dim"))
    return table

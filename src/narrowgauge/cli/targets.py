"""`narrowgauge targets`: what there is to quantize for, and what each can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from narrowgauge.cli import options


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
            terminal.show_json([_row(row) for row in rows])
        else:
            terminal.show(
                _list(rows), "`narrowgauge targets NAME` shows one in full; a .toml file of yours works as well."
            )
        return
    target = load_target(name)
    sections = explain(target)
    if json:
        terminal.show_json({"name": target.name, "title": target.title, "version": target.version,
                            "sections": [_section(section) for section in sections]})  # fmt: skip
        return
    from rich.text import Text

    terminal.show(
        Text(f"{target.name}: {target.title}", style="bold"), f"Rows read from or measured on {target.version}."
    )
    for section in sections:
        terminal.show("", Text(section.title, style="bold"), *map(Text, section.sentences))
        if section.rows:
            terminal.show(_table(section.rows))


def _row(row: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(row)


_section = _row


def _list(rows: list[Any]) -> Any:
    from narrowgauge.cli.outcome import plain_table

    table = plain_table("target", "activations", "weights", "integer ops", "file", right=(3,))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(row.name, row.activations, row.weights, str(row.operators), ", ".join(row.formats) or "-")
    return table


def _table(rows: tuple[tuple[str, ...], ...]) -> Any:
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

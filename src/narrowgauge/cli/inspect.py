"""`narrowgauge inspect`: what is in a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from narrowgauge.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from narrowgauge.analysis.inspection import Inspection, Placed, Port


def inspect(
    model: options.ModelPath,
    target: Annotated[
        str | None,
        typer.Option(metavar="T", help="Also say what this target would run in integers.", show_default=False),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a network.

    Also what simplification makes of it, and what a target would do with it.
    """
    import dataclasses

    from narrowgauge.analysis.inspection import inspect as look
    from narrowgauge.cli import terminal
    from narrowgauge.targets.registry import load_target

    found = look(model, load_target(target) if target else None)
    if json:
        terminal.show_json({"model": str(model), **dataclasses.asdict(found)})
        return
    terminal.show(*_facts(str(model), found), "", *_operators(found))
    if found.placed is not None:
        terminal.show("", *_placed(found.placed))


def _facts(name: str, found: Inspection) -> list[RenderableType]:
    from rich.text import Text

    from narrowgauge.cli.outcome import plain_table, size_text

    opsets = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in found.opsets.items())
    table = plain_table("", "")
    rows = [
        ("network", name),
        ("made by", found.producer or "not said"),
        ("opsets", f"{opsets} (file format {found.ir_version})"),
        *(("input", _port(port)) for port in found.inputs),
        *(("output", _port(port)) for port in found.outputs),
        ("parameters", f"{found.parameters:,} ({size_text(found.parameter_bytes)})"),
        (
            "quantized",
            "no"
            if not found.quantized
            else "yes, already: `quantize` keeps its encodings (--plan own) or chooses new ones"
            if found.simplified is not None
            else "yes, in integers alone: it can be run and compared, not quantized again",
        ),
    ]
    for key, value in rows:
        table.add_row(key, Text(value))
    return [table]


def _port(port: Port) -> str:
    from narrowgauge.data.inputs import shape_text

    shape = "any shape" if port.shape is None else shape_text(port.shape)
    return f"{port.name}: {port.type.lower()}, {shape}"


def _operators(found: Inspection) -> list[RenderableType]:
    from rich.text import Text

    from narrowgauge.cli.outcome import notes, plain_table

    columns = {"in the file": found.operators}
    if found.simplified is not None:
        columns["float, simplified" if found.quantized else "simplified"] = found.simplified
    table = plain_table("operator", *columns, right=(1, 2))
    names = list(dict.fromkeys(name for counts in columns.values() for name in counts))
    for name in names:
        table.add_row(name, *(str(counts.get(name, 0)) for counts in columns.values()))
    if len(names) > 1:
        table.add_row("together", *(str(sum(counts.values())) for counts in columns.values()))
    shown: list[RenderableType] = [table, *notes(found.notes)]
    if found.refusals:
        left = plain_table("", "")
        for refusal in found.refusals:
            left.add_row("-", Text(str(refusal)))
        shown += [Text("Left as it was:"), left]
    return shown


def _placed(placed: Placed) -> list[RenderableType]:
    import dataclasses

    from rich.text import Text

    from narrowgauge.cli.outcome import float_nodes

    integer = ", ".join(f"{count} {name}" for name, count in placed.integer.items()) or "none"
    return [
        Text(f"On {placed.target}, static quantization", style="bold"),
        Text(f"{sum(placed.integer.values())} nodes run in integers: {integer}"),
        float_nodes([dataclasses.asdict(node) for node in placed.float_nodes]),
    ]

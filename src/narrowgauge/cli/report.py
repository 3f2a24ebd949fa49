"""`narrowgauge report`: the report of a folder, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What quantize or analyze wrote.", show_default=False)],
    *,
    target: Annotated[
        str | None, typer.Option(metavar="T", help="What it was made for.", show_default="as summary.json says")
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write the report of a folder anew.

    From summary.json, plan.json, analysis.json and attention.json: after one was edited, or with a newer version.

    Example: narrowgauge report build/
    """
    from narrowgauge.cli import terminal
    from narrowgauge.report.files import report_again
    from narrowgauge.targets.registry import load_target

    written = report_again(folder, load_target(target) if target is not None else None)
    if not quiet:
        terminal.show(str(written))

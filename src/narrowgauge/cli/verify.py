"""`narrowgauge verify`: is a folder that quantize wrote whole, and does it do what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options


def verify(  # noqa: PLR0913 - the options of the command
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `narrowgauge quantize` wrote.", show_default=False)
    ],
    *,
    data: options.Data,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="R", help="Engine that runs the quantized network.", show_default="the one that it was checked in"
        ),
    ] = "",
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples, the first ones.")] = 100,
    preprocess: options.Preprocessing = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check a folder that quantize wrote.

    Its files are whole, and its networks do on samples what summary.json says.

    Ends with 1 if a file is missing, damaged or changed, or if the networks contradict each other or the summary.
    """
    from rich.text import Text

    from narrowgauge.analysis import verification
    from narrowgauge.cli import guard, terminal
    from narrowgauge.cli.outcome import decibels, notes, plain_table

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=quiet) as progress:
        progress.begin("verify", None)
        found = verification.verify(
            folder,
            data,
            runtime=runtime,
            samples=samples,
            preprocess=preprocess,
            threads=threads,
            progress=progress.advance,
        )
    if json:
        terminal.show_json(verification.to_json(found))
    elif not quiet:
        table = plain_table("", "", "same answer", "SQNR", right=(2, 3))
        for (one, other), pair in found.pairs.items():
            same = "-" if pair.agreement_top1 is None else f"{pair.agreement_top1:.2f} %"
            table.add_row(one, other, same, decibels(pair.sqnr_db, infinite=pair.sqnr_db == float("inf")))
        terminal.show(table, Text(f"on {found.samples} samples", style="dim"), *notes(found.notes))
    if found.contradictions:
        guard.fail(f"{folder}: {'; '.join(found.contradictions)}")
    if not (json or quiet):
        terminal.show(f"{folder} is whole and does what its summary says.")

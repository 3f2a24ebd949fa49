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

    Its files are whole, and its networks do on samples what summary.json says. Every integer inside the engine that
    runs the network is compared with the integer that narrowgauge computes; what is found is noted in summary.json
    (`bit_exact`) and in the report.

    Ends with 1 if a file is missing, damaged or changed, or if the networks contradict each other or the summary.
    Integers that differ do not end it: they are a finding, with a warning where there should be none.
    """
    from rich.text import Text

    from narrowgauge.analysis import verification
    from narrowgauge.analysis.exactness import to_summary
    from narrowgauge.cli import guard, terminal
    from narrowgauge.cli.integers import integers
    from narrowgauge.cli.outcome import decibels, notes, plain_table
    from narrowgauge.report.files import note_exactness

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
    said = found.notes
    if found.exactness is not None and not found.contradictions:
        said += note_exactness(folder, found.runtime, to_summary(found.exactness, found.reasons))
    record = verification.to_json(found)
    if json:
        terminal.show_json({**record, "notes": [*said, *found.reasons]})
    elif not quiet:
        table = plain_table("", "", "same answer", "SQNR", right=(2, 3))
        for (one, other), pair in found.pairs.items():
            same = "-" if pair.agreement_top1 is None else f"{pair.agreement_top1:.2f} %"
            table.add_row(one, other, same, decibels(pair.sqnr_db, infinite=pair.sqnr_db == float("inf")))
        inside = [] if record["bit_exact"] is None else integers(record["bit_exact"], found.runtime)
        terminal.show(table, Text(f"on {found.samples} samples", style="dim"), *inside, *notes([*said, *found.reasons]))
    if found.contradictions:
        guard.fail(f"{folder}: {'; '.join(found.contradictions)}")
    if not (json or quiet):
        terminal.show(f"{folder} is whole and does what its summary says.")

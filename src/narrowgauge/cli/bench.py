"""`narrowgauge bench`: how fast networks are beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="One or more .onnx files; the first is what the others are set against.",
            show_default=False,
        ),
    ],
    data: options.OptionalData = None,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples per run, where the network leaves it open.")
    ] = 1,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that run the network.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.01, metavar="S", help="About how long to measure each network.")
    ] = 2.0,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how long one run of each network takes.

    Several networks run in turn, so that a busy machine slows all of them.

    Without --data the inputs are made up. The median is what to expect, the minimum what the machine can do at best.
    """
    from rich.text import Text

    from narrowgauge.analysis.bench import bench as measure
    from narrowgauge.cli import terminal
    from narrowgauge.cli.outcome import plain_table, times

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=json) as progress:
        progress.begin("measure", None)
        found = measure(models, data=data, batch=batch, threads=threads, seconds=seconds)
    if json:
        records = [
            {"model": str(path), "median_ms": times.median_ms, "minimum_ms": times.minimum_ms, "runs": times.runs}
            for path, times in zip(models, found, strict=True)
        ]
        terminal.show_json({"batch": batch, "threads": threads, "models": records})
        return
    table = plain_table("", "median", "minimum", "runs", "", right=(1, 2, 3))
    for number, (path, latency) in enumerate(zip(models, found, strict=True)):
        ratio = times(found[0].median_ms, latency.median_ms, "faster", "slower") if number else ""
        table.add_row(
            Text(str(path)), f"{latency.median_ms:.3f} ms", f"{latency.minimum_ms:.3f} ms", str(latency.runs), ratio
        )
    terminal.show(
        table, Text(f"ONNX Runtime, batch {batch}, {threads} thread{'s' if threads > 1 else ''}", style="dim")
    )

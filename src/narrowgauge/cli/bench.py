"""`narrowgauge bench`: how fast networks are beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options


def bench(  # noqa: PLR0913 - the options of the command
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="Networks that an engine here runs, or that can be imported; the first is what the others are set "
            "against.",
            show_default=False,
        ),
    ],
    *,
    data: options.OptionalData = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R",
            help="An engine that each network is timed in, if it runs its file: onnxruntime, openvino, litert, torch, "
            "tvm. Repeatable.",
            show_default="the usual one of each file",
        ),
    ] = None,
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
    from narrowgauge.runtimes.engines import engine_named

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=json) as progress:
        progress.begin("measure", None)
        found = measure(models, runtimes=runtime or (), data=data, batch=batch, threads=threads, seconds=seconds)
    if json:
        records = [
            {
                "model": str(one.model),
                "runtime": one.runtime,
                "median_ms": one.latency.median_ms,
                "minimum_ms": one.latency.minimum_ms,
                "runs": one.latency.runs,
            }
            for one in found
        ]
        terminal.show_json({"batch": batch, "threads": threads, "models": records})
        return
    table = plain_table("", "in", "median", "minimum", "runs", "", right=(2, 3, 4))
    for number, one in enumerate(found):
        latency = one.latency
        ratio = times(found[0].latency.median_ms, latency.median_ms, "faster", "slower") if number else ""
        table.add_row(
            Text(str(one.model)), engine_named(one.runtime).title, f"{latency.median_ms:.3f} ms",
            f"{latency.minimum_ms:.3f} ms", str(latency.runs), ratio,
        )  # fmt: skip
    terminal.show(table, Text(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}", style="dim"))

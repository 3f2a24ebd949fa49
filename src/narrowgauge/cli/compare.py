"""`narrowgauge compare`: any two networks on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from narrowgauge.cli import options

_HINT = "where the two part: add --tensors 8"


def compare(  # noqa: PLR0913 - the options of the command
    a: Annotated[
        Path,
        typer.Argument(
            metavar="A",
            help="The reference: a network that an engine here runs, or that can be imported.",
            show_default=False,
        ),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other network.", show_default=False)],
    *,
    data: options.Data,
    labels: options.Labels = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples, the first ones.")] = 1000,
    tensors: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Compare every tensor that both have, too, on the first N samples."),
    ] = 0,
    worst_first: Annotated[
        bool, typer.Option("--worst-first", help="List tensors by SQNR instead of in the network's order.")
    ] = False,
    runtime_a: Annotated[
        str, typer.Option(metavar="R", help="Engine that runs A.", show_default="the usual one of its file")
    ] = "",
    runtime_b: Annotated[
        str, typer.Option(metavar="R", help="Engine that runs B.", show_default="the usual one of its file")
    ] = "",
    preprocess: options.Preprocessing = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Set two networks beside each other.

    Both run on the same samples: accuracy, agreement, size, speed; with --tensors where they part.

    Example: narrowgauge compare model.onnx build/model.onnx --data images/
    """
    from rich.text import Text

    from narrowgauge import comparison
    from narrowgauge.analysis.evaluate import load_metric
    from narrowgauge.cli import outcome, terminal
    from narrowgauge.cli.accuracy import end_if_missed

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=quiet) as progress:
        result = comparison.compare(
            a, b, data, labels=labels, preprocess=preprocess, samples=samples, tensors=tensors,
            runtimes=(runtime_a, runtime_b),
            metric=load_metric(metric) if metric else None, threads=threads, progress=progress,
        )  # fmt: skip
    record = {"a": str(a), "b": str(b), **comparison.to_json(result)}
    if json:
        terminal.show_json(record)
    elif not quiet:
        terminal.show(
            Text(f"A is {a}, in {_title(record, 'a')}\nB is {b}, in {_title(record, 'b')}"),
            outcome.beside(("A", "B"), record, ("a", "b")),
            Text(
                f"on {outcome.counted(record['samples'], 'sample')}"
                f"{outcome.labels_text(record['samples'], record['labelled_samples'])}",
                style="dim",
            ),
            *(outcome.tensors(record, worst_first=worst_first) if tensors else [Text(_HINT, style="dim")]),
            *outcome.notes(record["notes"]),
        )
    found = result.comparison
    end_if_missed(found.reference, found.candidate, found.agreement_top1, max_drop, metric is not None)


def _title(record: Mapping[str, Any], key: str) -> str:
    from narrowgauge.runtimes.engines import engine_named

    return engine_named(record["runtimes"][key]).title

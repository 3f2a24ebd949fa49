"""`narrowgauge quantize`: a float network to a quantized one, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from narrowgauge.cli import options


def quantize(  # noqa: PLR0913 - the options of the command
    model: options.ModelPath,
    *,
    out: options.OutFolder,
    target: options.TargetName = "onnxruntime",
    data: options.OptionalData = None,
    labels: options.Labels = None,
    recipe: options.RecipeName = "auto",
    plan: options.PlanFile = None,
    statistics: options.StatisticsFile = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples calibrate, the first.")] = 256,
    check_samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the other samples check, at most.")
    ] = 1000,
    weights: options.Weights = "",
    activations: options.Activations = "",
    granularity: options.Granularity = "",
    keep_float: options.KeepFloat = None,
    budget: Annotated[
        str,
        typer.Option(
            metavar="BUDGET",
            help="Bits of each layer's weights (4, 8, 16 or float) under a budget: 'size 3 MB', 'size 15 %', "
            "'operations 20 %' (of the float network's) or 'drop 1 %'.",
            show_default=False,
        ),
    ] = "",
    format: Annotated[
        str,
        typer.Option(metavar="NAME", help="Which of the target's formats to write.", show_default="its first"),
    ] = "",
    preprocess: options.Preprocessing = None,
    metric: options.Metric = None,
    max_drop: options.MaxDrop = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Quantize a network for a target and check it.

    The result is run beside the float network on samples that did not calibrate.

    Example: narrowgauge quantize model.onnx --target tflite --data images/ --out build/
    """
    from narrowgauge import pipeline
    from narrowgauge.analysis.evaluate import load_metric
    from narrowgauge.cli import terminal
    from narrowgauge.cli.accuracy import end_if_missed
    from narrowgauge.cli.outcome import run_report

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=quiet) as progress, statistics_kept(statistics):
        result = pipeline.quantize(
            model, data, target=target, out=out, recipe=recipe, weights=weights, activations=activations,
            granularity=granularity, keep_float=keep_float or (), budget=budget, format=format, samples=samples,
            check_samples=check_samples, labels=labels, preprocess=preprocess, plan=plan, statistics=statistics,
            metric=load_metric(metric) if metric else None, max_drop=max_drop, threads=threads, force=force,
            progress=progress,
        )  # fmt: skip
    summary: dict[str, Any] = result.summary
    if json:
        terminal.show_json(summary)
    elif not quiet:
        terminal.show(*run_report(summary, out))
    end_if_missed(summary["float"], summary["quantized"], summary["agreement_top1"], max_drop, metric is not None)


@contextlib.contextmanager
def statistics_kept(file: str | None) -> Iterator[None]:
    """Say, when interrupted, where the statistics so far are."""
    try:
        yield
    except KeyboardInterrupt:
        if file is None:
            raise KeyboardInterrupt(
                "nothing was written (with --statistics FILE, the next run would go on from here)"
            ) from None
        if Path(file).exists():
            raise KeyboardInterrupt(
                f"no folder was written; the statistics so far are in {file}: run the same command again to go on"
            ) from None
        raise

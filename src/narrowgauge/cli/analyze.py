"""`narrowgauge analyze`: where a quantized network loses its accuracy, and what would help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options


def analyze(  # noqa: PLR0913 - the options of the command
    model: options.ModelPath,
    *,
    data: options.Data,
    target: options.TargetName = "onnxruntime",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the quantized network and report.html there.", show_default=False),
    ] = None,
    labels: options.Labels = None,
    recipe: options.RecipeName = "auto",
    plan: options.PlanFile = None,
    statistics: options.StatisticsFile = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples calibrate, the first.")] = 256,
    check_samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many of the other samples it is measured on, at most.")
    ] = 64,
    weights: options.Weights = "",
    activations: options.Activations = "",
    granularity: options.Granularity = "",
    keep_float: options.KeepFloat = None,
    preprocess: options.Preprocessing = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say where a quantized network loses its accuracy.

    Every tensor's loss is split into rounding and clipping, what it costs at the output is measured, and remedies are
    tried on the worst. With --out, report.html shows all of it.

    Example: narrowgauge analyze model.onnx --target tflite --data images/ --out build/
    """
    import json as json_format

    from narrowgauge import pipeline
    from narrowgauge.analysis.records_json import analysis_to_json
    from narrowgauge.cli import terminal
    from narrowgauge.cli.findings import findings
    from narrowgauge.cli.outcome import run_report
    from narrowgauge.errors import DataError

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=quiet) as progress:
        result = pipeline.analyze(
            model, data, target=target, out=out, labels=labels, recipe=recipe, plan=plan, statistics=statistics,
            samples=samples, check_samples=check_samples, weights=weights, activations=activations,
            granularity=granularity, keep_float=keep_float or (), preprocess=preprocess, threads=threads, force=force,
            progress=progress,
        )  # fmt: skip
    if result.analysis is None:
        raise DataError("nothing could be analysed: that needs samples, and tensors with ranges known beforehand")
    if json:
        terminal.show_json(json_format.loads(analysis_to_json(result.analysis)))
    elif not quiet:
        terminal.show(*run_report(result.summary, out), *findings(result.analysis))

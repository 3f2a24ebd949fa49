"""`narrowgauge export`: one calibration, many targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from narrowgauge.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType


def export(  # noqa: PLR0913 - the options of the command
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder that `narrowgauge quantize` wrote, or a network, which is calibrated on --data first.",
            show_default=False,
        ),
    ],
    *,
    target: Annotated[
        list[str],
        typer.Option(
            metavar="T",
            help="What to export for; repeatable. `all`: every target; `qnn:encodings-2.0.0`: one of its formats.",
            show_default=False,
        ),
    ],
    out: options.OutFolder,
    data: options.OptionalData = None,
    labels: options.Labels = None,
    recipe: Annotated[
        str, typer.Option(metavar="R", help="fast, plain, auto, best, ..., or a .toml file; the same for all.")
    ] = "fast",
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples calibrate a network.")] = 256,
    check_samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples check each target.")] = 64,
    preprocess: options.Preprocessing = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Quantize for many targets from one calibration.

    Each target gets a folder like that of quantize. A table sets accuracy, size and speed side by side.

    Example: narrowgauge export build/ --target tflite --target qnn --data images/ --out chips/
    """
    from narrowgauge.cli import guard, terminal
    from narrowgauge.exporting import export_targets

    with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=quiet) as progress:
        found = export_targets(
            source, target, out=out, data=data, labels=labels, preprocess=preprocess, recipe=recipe, samples=samples,
            check_samples=check_samples, threads=threads, force=force, progress=progress,
        )  # fmt: skip
    records = [
        {"target": one.target, "error": one.error, "summary": one.result.summary if one.result is not None else None}
        for one in found
    ]
    if json:
        terminal.show_json({"out": str(out), "targets": records})
    elif not quiet:
        terminal.show(*_table(records), f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    failed = [f"{one.target}: {one.error}" for one in found if one.error]
    if failed:
        guard.fail("; ".join(failed))


def _table(records: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    from rich.text import Text

    from narrowgauge.cli.outcome import counted, decibels, notes, plain_table, size_text

    table = plain_table("target", "run in", "top-1", "same", "SQNR", "size", "ms", "/float", right=(2, 3, 4, 5, 6, 7))
    for column in table.columns[1:]:  # on a narrow screen the names give way, not the figures
        column.no_wrap = True
    warnings = []
    for record in records:
        summary = record["summary"]
        if summary is None:
            table.add_row(record["target"], "failed")
            continue
        top1, agreement = summary["quantized"].get("top1"), summary["agreement_top1"]
        before, after = summary["latency_ms"]["float"], summary["latency_ms"]["quantized"]
        engine = summary["latency_runtimes"]["quantized"]
        table.add_row(
            record["target"],
            engine or ("simulated" if summary["checked_samples"] else "not run"),
            "-" if top1 is None else f"{top1:.1f} %",
            "-" if agreement is None else f"{agreement:.1f} %",
            decibels(summary["sqnr_db"], infinite=summary["sqnr_infinite"]),
            size_text(summary["size_bytes"]["quantized"]),
            "-" if after is None else f"{after:.2f}",
            "" if after is None else f"{after / before:.2f}",
        )
        warnings += [f"{record['target']}: {note}" for note in summary["notes"] if note.startswith("WARNING")]
    lines: list[RenderableType] = [table]
    first = next((record["summary"] for record in records if record["summary"] is not None), None)
    if first is not None:
        top1 = first["float"].get("top1")
        answer = "" if top1 is None else f"top-1 {top1:.2f} %, "
        checked = (
            f"Checked on {counted(first['checked_samples'], 'sample')}. same: the float network's answer; ms: one run "
            "on one thread, over the float network's in the same engine where that runs ONNX files, else in ONNX "
            "Runtime."
            if first["checked_samples"]
            else "Nothing was checked: give --data."
        )
        said = f"The float network: {answer}{size_text(first['size_bytes']['float'])}. {checked}"
        lines.append(Text(said, style="dim"))
    return [*lines, *notes(warnings)]

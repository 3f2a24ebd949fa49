"""`narrowgauge calibrate`: run samples, keep what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from narrowgauge.cli import options


def calibrate(  # noqa: PLR0913 - the options of the command
    model: options.ModelPath,
    *,
    data: options.Data,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the statistics go, such as statistics.npz.", show_default=False)
    ],
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on from these: their samples are skipped.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many samples to take (the first ones).")] = 256,
    preprocess: options.Preprocessing = None,
    threads: options.Threads = None,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Run samples, save what was seen of every tensor.

    `quantize --statistics FILE` takes them for any target, recipe and bit width. Interrupted, what was seen is saved,
    and `--statistics FILE` goes on from there.
    """
    from narrowgauge import pipeline
    from narrowgauge.calibration.statistics import Statistics
    from narrowgauge.cli import terminal
    from narrowgauge.errors import OutputError

    if out.is_dir() or (out.exists() and not force and (statistics is None or not out.samefile(_there(statistics)))):
        taken = "a folder" if out.is_dir() else "a file (--force replaces it, --statistics goes on from it)"
        raise OutputError(f"{out}: expected nothing there, there is {taken}; choose another --out")
    growing = out.with_name(f"{out.name}.partial")
    seen_before = 0
    if statistics is not None:
        start = Statistics.load(_there(statistics))
        seen_before = start.samples
        start.save(growing)
    try:
        with terminal.stdout_kept_clean(), terminal.progress_bars(quiet=quiet) as progress:
            seen = pipeline.calibrate(
                model, data, samples=samples, preprocess=preprocess, statistics=growing, threads=threads,
                progress=progress,
            )  # fmt: skip
        seen.save(growing)
        growing.replace(out)
    except BaseException as error:
        _keep(error, growing, out, seen_before)
        raise
    if json:
        terminal.show_json({"statistics": str(out), "samples": seen.samples, "tensors": len(seen.tensors)})
    elif not quiet:
        terminal.show(f"{out}: statistics of {len(seen.tensors)} tensors over {seen.samples} samples")


def _there(statistics: Path) -> Path:
    from narrowgauge.errors import StatisticsError

    if not statistics.exists():
        raise StatisticsError(f"{statistics}: no such file; give statistics that `narrowgauge calibrate` saved")
    return statistics


def _keep(error: BaseException, growing: Path, out: Path, seen_before: int) -> None:
    """Move what was seen before an error into its place; remove it if that is nothing new."""
    from narrowgauge.calibration.statistics import Statistics

    if not growing.exists():
        return
    samples = Statistics.load(growing).samples
    if samples <= seen_before:
        growing.unlink()
        return
    growing.replace(out)
    said = f"the statistics of the first {samples} samples are in {out}: --statistics {out} goes on from there"
    error.args = (said,) if isinstance(error, KeyboardInterrupt) or not error.args else (f"{error}; {said}",)

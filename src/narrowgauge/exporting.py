"""One calibration, many targets: each planned, written and checked, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.data import Preprocess
from narrowgauge.errors import DataError, NarrowgaugeError, OutputError, TargetError
from narrowgauge.exporters.folder import FLOAT, ORIGINAL, PREPROCESS, STATISTICS, check_free, new_folder
from narrowgauge.exporters.forms import check_format
from narrowgauge.importers.opening import load
from narrowgauge.pipeline import CALIBRATING_SAMPLES, Result, calibrate, quantize
from narrowgauge.recipe import Recipe, load_recipe
from narrowgauge.stages import Model, Progress
from narrowgauge.targets.registry import load_target, target_names

CHECKING_SAMPLES = 64
"""How many samples check each target where nothing else is said."""

EVERY = "all"
"""As a target: every one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One target of an export.

    Attributes:
        target: its name, with the format where one was asked for: "qnn:encodings-2.0.0".
        result: what came of it; None where it failed.
        error: why it failed, "" where it did not.
    """

    target: str
    result: Result | None
    error: str = ""


def export_targets(  # noqa: PLR0913 - the command line's options, by the same names
    source: Model,
    targets: Sequence[str],
    *,
    out: str | os.PathLike[str],
    data: Any = None,
    labels: Any = None,
    preprocess: str | Path | Preprocess | None = None,
    recipe: str | Path | Recipe = "fast",
    samples: int = CALIBRATING_SAMPLES,
    check_samples: int = CHECKING_SAMPLES,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Exported]:
    """Quantize a network for several targets from one calibration.

    Args:
        source: a folder that `quantize` wrote, whose float network and statistics are taken; or a network of any
            framework, which is calibrated on the data first. One that came quantized keeps its own encodings if there
            are no data; a dynamic or weight-only recipe needs none.
        targets: their names, "all" for every one; `target:format` chooses one of the target's formats.
        out: the folder to write, with a folder like that of `quantize` for each target.
        data: samples, see `data.open_samples`: the first ones calibrate, unless the folder has statistics, and
            `check_samples` of those behind them check every target. None checks nothing.
        labels: labels of the samples.
        preprocess: how images become inputs; None takes the folder's own, or the file beside the network.
        recipe: see `quantize`; one that reads samples again takes its time for each target.
        samples: how many calibrate.
        check_samples: how many check.
        threads: of the engines; None for the cores that this process may use.
        force: replace an existing folder.
        progress: whom to tell.

    Returns:
        What came of every target, in their order. One that cannot be written does not keep the others from it.

    Raises:
        NarrowgaugeError: the network, its statistics or the data cannot be read, there is no such target or recipe, the
            folder cannot be written, or no target can.
    """
    asked = list(dict.fromkeys(_asked(targets)))
    recipe = load_recipe(recipe)  # one that is not there is refused before anything takes its time
    progress = progress or Progress()
    if isinstance(data, Iterator):
        raise DataError(
            "expected data that can be read again, for each target; got an iterator: give a list, arrays, a data "
            "loader, or a function that returns an iterator"
        )
    check_free(Path(out), force=force, reads=(source, data))
    network, statistics, beside = _source(source)
    imported = load(network, example=data)
    ranges_come_along = data is None and imported.plan is not None
    if statistics is None and recipe.mode == "static" and not ranges_come_along:
        if data is None:
            raise DataError(f"{source}: expected samples to calibrate on: give data, or a folder that quantize wrote")
        statistics = calibrate(
            imported, data, samples=samples, preprocess=preprocess or beside, threads=threads, progress=progress
        )
    found = []
    with new_folder(Path(out), force=force, reads=(source, data)) as folder:
        for name in asked:
            target, _, form = name.partition(":")
            try:
                result = quantize(
                    imported, data, target=target, format=form, out=folder / name.replace(":", "-"), recipe=recipe,
                    samples=statistics.samples if statistics is not None else samples, check_samples=check_samples,
                    labels=labels, preprocess=preprocess or beside, statistics=statistics, analysis="none",
                    threads=threads, progress=_naming(progress, name),
                )  # fmt: skip
                moved = replace(result, folder=Path(out) / name.replace(":", "-"))
                found.append(Exported(target=name, result=moved))
            except NarrowgaugeError as error:
                found.append(Exported(target=name, result=None, error=str(error)))
        if all(one.error for one in found):  # an old folder must not give way to an empty one
            raise OutputError(f"{out}: nothing was written: {'; '.join(f'{o.target}: {o.error}' for o in found)}")
    return found


def _asked(targets: Sequence[str]) -> Iterator[str]:
    """List the targets, each known, so that none is refused after the others took their time."""
    for name in targets:
        if name == EVERY:
            yield from target_names()
            continue
        target, _, form = name.partition(":")
        check_format(load_target(target), form)
        yield name
    if not targets:
        raise TargetError("expected at least one target")


def _source(source: Model) -> tuple[Model, Statistics | None, Path | None]:
    """Return the network, its statistics and its preprocessing, where a folder has them."""
    if not isinstance(source, str | os.PathLike):
        return source, None, None
    folder = Path(source)
    if not folder.is_dir():
        beside = folder.with_suffix(".toml")
        return folder, None, beside if beside.is_file() else None
    network = next((folder / name for name in (ORIGINAL, FLOAT) if (folder / name).is_file()), None)
    if network is None:
        raise OutputError(f"{folder}: expected a folder that `narrowgauge quantize` wrote, it has no {FLOAT}")
    statistics = folder / STATISTICS
    preprocess = folder / PREPROCESS
    return (
        network,
        Statistics.load(statistics) if statistics.is_file() else None,
        preprocess if preprocess.is_file() else None,
    )


def _naming(progress: Progress, target: str) -> Progress:
    return replace(progress, begin=lambda stage, total: progress.begin(f"{target}: {stage}", total))

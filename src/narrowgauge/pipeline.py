"""The whole flow on one screen: import, simplify, calibrate, plan, recover, lower, write, check."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import onnx_ir as ir

from narrowgauge.analysis.check import Check
from narrowgauge.analysis.coverage import coverage_warnings
from narrowgauge.analysis.records import Analysis, Step
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan, load_plan
from narrowgauge.data import Preprocess
from narrowgauge.errors import DataError, PlanError, RecipeError
from narrowgauge.exporters.folder import SUMMARY, describe_files, new_folder, write_forms, write_summary
from narrowgauge.exporters.forms import Forms, check_format, forms_for
from narrowgauge.graph.engine import weight_bytes
from narrowgauge.importers.imported import ImportedModel
from narrowgauge.importers.opening import load
from narrowgauge.recipe import SCOPES, Recipe, keep_float_rules, load_recipe, narrowed
from narrowgauge.report.files import write_report
from narrowgauge.runtimes.engines import file_bytes
from narrowgauge.stages import Depth, Model, Progress, Stages
from narrowgauge.summary import summarize
from narrowgauge.targets.registry import load_target
from narrowgauge.targets.schema import Scope, Target

# Samples that calibrate, and that check, where nothing else is said.
CALIBRATING_SAMPLES = 256
CHECKING_SAMPLES = 1000
ANALYZING_SAMPLES = 64

OWN = "own"
"""As a plan: the encodings that a network came with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of it.

    Attributes:
        forms: the quantized network in its forms.
        float_model: the float network that the plan describes: simplified, with what recovery changed.
        plan: every encoding, and what stays float and why.
        statistics: what calibration saw; None where none was needed.
        target: what it was made for.
        check: how it does beside the float network on samples that did not calibrate; None without data.
        analysis: where the accuracy goes; None without samples, or where none was asked for.
        steps: what recovery tried, in its order.
        summary: what `summary.json` holds.
        folder: where the files are; None if nothing was to be written.
    """

    forms: Forms
    float_model: ir.Model
    plan: Plan
    statistics: Statistics | None
    target: Target
    check: Check | None
    analysis: Analysis | None
    steps: tuple[Step, ...]
    summary: dict[str, Any]
    folder: Path | None

    @property
    def model(self) -> ir.Model:
        """The network in the target's form; where there is none, the simulated one."""
        return self.forms.exported or self.forms.simulated

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        return tuple(self.summary["notes"])


def quantize(  # noqa: PLR0913 - the command line's options, by the same names
    model: Model,
    data: Any = None,
    *,
    target: str | Path | Target = "onnxruntime",
    out: str | os.PathLike[str] | None = None,
    recipe: str | Path | Recipe = "auto",
    weights: str = "",
    activations: str = "",
    granularity: str = "",
    keep_float: Sequence[str] = (),
    budget: str = "",
    format: str = "",
    samples: int = CALIBRATING_SAMPLES,
    check_samples: int = CHECKING_SAMPLES,
    labels: Any = None,
    preprocess: str | Path | Preprocess | None = None,
    plan: str | Path | Plan | None = None,
    statistics: str | Path | Statistics | None = None,
    metric: Callable[..., Any] | None = None,
    max_drop: float | None = None,
    analysis: Depth = "quick",
    example_inputs: Any = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize a network for a target, and measure what came of it.

    Args:
        model: a network of any framework, float or quantized, as a file or in memory: see `importers.opening.load`.
        data: samples, see `data.open_samples`: a folder of images, arrays, an iterable, a data loader, ...; the first
            ones calibrate, the others check. None does for weight-only and dynamic quantization, and for a network that
            came quantized, which then keeps its own encodings.
        target: name of a target, or a TOML file of your own.
        out: folder to write, whole or not at all; None writes nothing.
        recipe: a preset's name, a TOML file, or a recipe.
        weights: number type of weights, "" for the target's choice.
        activations: number type of activations, "" for the target's choice.
        granularity: what one scale of weights covers, "" for the target's choice.
        keep_float: what stays float: `first`, `last`, operators, or patterns of node names.
        budget: what mixed precision may cost: `size 3 MB`, `size 15 %` (of the float weights), `operations 20 %`,
            `drop 1 %`; "" for one width everywhere.
        format: which of the target's formats to write, "" for its first.
        samples: how many samples calibrate.
        check_samples: how many of the others check, at the most.
        labels: labels of the samples: a file, an array or a list.
        preprocess: how images become inputs: a file or a `Preprocess`; None takes `<model>.toml` beside the network.
        plan: encodings to apply instead of choosing them: a `Plan`, its file, the file of a quantized network, or
            "own" for those that the network came with, if it came quantized.
        statistics: statistics to take instead of calibrating, or to go on from; a file that does not exist yet is
            written while they grow.
        metric: the user's own metric, see `analysis.evaluate.compare_runs`.
        max_drop: percentage points of accuracy that may be lost (of `metric`, else top-1, else the agreement with the
            float network): recovery begins with plain ranges, stops as soon as that is met, and leaves the worst layers
            float last. Whether it was met, `Result.check` says.
        analysis: how thoroughly to find out where the accuracy goes: `none`, `quick` (16 samples) or `full` (64, and
            remedies for the worst tensors); needs samples.
        example_inputs: of a torch.nn.Module: a tensor, a tuple or a dict of them; None takes the first of the data.
        threads: of the engine; None for the cores that this process may use.
        force: replace an existing folder.
        progress: whom to tell.

    Raises:
        NarrowgaugeError: one of its kinds; the message says what was expected, what came, where, and what to do.
    """
    chosen = target if isinstance(target, Target) else load_target(target)
    check_format(chosen, format)
    if analysis not in get_args(Depth):
        raise RecipeError(f"expected analysis {', '.join(get_args(Depth))}, got {analysis!r}")
    asked = _recipe(recipe, weights, activations, granularity, keep_float, budget)
    chosen = narrowed(chosen, asked)
    job = Stages(statistics_given=statistics, threads=threads, progress=progress or Progress())
    reads = (model, data, labels, preprocess, plan, statistics, target, recipe)
    with new_folder(Path(out) if out is not None else None, force=force, reads=reads) as folder:
        with job.stage("import"):
            own = plan == OWN or (data is None and statistics is None)
            given = plan if isinstance(plan, Plan) else _plan_in(Path(plan)) if plan not in (None, OWN) else None
            imported = job.read(model, given, example=example_inputs if example_inputs is not None else data)
            imported, given = job.own_plan(imported, given, wanted=own)
            opened = job.open(model, imported, data, preprocess, labels)
        calibrating, checking = job.split(opened, samples if asked.mode == "static" else 0, check_samples)
        original = imported.file or imported.original
        judge = None
        if max_drop is not None or asked.budget:
            judge = functools.partial(job.accuracy, original, imported.model, checking, metric)
        network = job.in_steps(imported.model, chosen, asked)
        made = job.plan(network, chosen, asked, calibrating, given, judge, max_drop)
        checking = job.left_to_check(checking, calibrating, made.statistics, samples)
        with job.stage("lower"):
            forms = forms_for(chosen, made.network, made.plan, form=format)
            job.notes += forms.notes
        with job.stage("write"):
            written = write_forms(
                folder, forms, made.network, made.plan, made.statistics, original=imported.model,
                preprocess=opened.preprocess if opened is not None else None,
            )  # fmt: skip
        job.notes += written.notes
        first, every = job.read_first(checking, analysis)
        if checking is None:
            found = None
            job.notes.append("nothing was checked: there are no data")
        else:
            found = job.check(original, written, imported.model, every, checking.count, metric=metric)
        bit_exact = job.integers(written, made.plan, chosen, first)
        found_out = job.analyze(made, chosen, first, analysis)
        maps = job.attention(made, first) if found_out is not None else None
        if found_out is not None and maps is not None:
            found_out = replace(found_out, attention=maps.heads)
        job.notes += [*coverage_warnings(made.network, made.plan), *(opened.notes if opened is not None else ())]
        summary = summarize(
            model=imported.name, target=chosen.name, recipe=asked.name, plan=made.plan, check=found,
            float_bytes=_float_bytes(imported), written=written, seconds=job.seconds, steps=made.steps, notes=job.notes,
            bit_exact=bit_exact,
        )  # fmt: skip
        write_report(
            folder, summary, found_out or Analysis(steps=made.steps, front=made.front), plan=made.plan, target=chosen,
            attention=maps.pictures if maps is not None else None,
        )  # fmt: skip
        summary["files"] = describe_files(folder)
        write_summary(summary, folder / SUMMARY)
    return Result(
        forms=forms, float_model=made.network, plan=made.plan, statistics=made.statistics, target=chosen, check=found,
        analysis=found_out, steps=made.steps, summary=summary, folder=Path(out) if out is not None else None,
    )  # fmt: skip


def analyze(
    model: Model, data: Any, *, target: str | Path | Target = "onnxruntime", check_samples: int = ANALYZING_SAMPLES,
    **options: Any,
) -> Result:  # fmt: skip
    """Quantize a network and find out where its accuracy goes: `Result.analysis`.

    The same as `quantize` with the fullest analysis; the network is measured on `check_samples` samples that did not
    calibrate. A network that came quantized keeps its own encodings.

    Args:
        model: see `quantize`.
        data: samples, see `data.open_samples`.
        target: name of a target, or a TOML file of your own.
        check_samples: how many samples to measure on, at the most.
        options: whatever else `quantize` takes.

    Raises:
        NarrowgaugeError: see `quantize`.
    """
    plan = options.pop("plan", None)
    asked = {"analysis": "full", "plan": OWN if plan is None else plan, **options}
    return quantize(model, data, target=target, check_samples=check_samples, **asked)


def calibrate(  # noqa: PLR0913 - the command line's options, by the same names
    model: Model,
    data: Any,
    *,
    samples: int = CALIBRATING_SAMPLES,
    preprocess: str | Path | Preprocess | None = None,
    statistics: str | Path | Statistics | None = None,
    example_inputs: Any = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Run samples through a network and return what was seen of every tensor; see `quantize` for the arguments.

    Raises:
        NarrowgaugeError: see `quantize`.
    """
    job = Stages(statistics_given=statistics, threads=threads, progress=progress or Progress())
    imported = job.read(model, example=example_inputs if example_inputs is not None else data)
    opened = job.open(model, imported, data, preprocess, None)
    if opened is None:
        raise DataError("calibration needs samples: give data")
    return job.calibrate(imported.model, opened.take(samples))


def _recipe(
    recipe: str | Path | Recipe, weights: str, activations: str, granularity: str, keep_float: Sequence[str],
    budget: str,
) -> Recipe:  # fmt: skip
    loaded = load_recipe(recipe)
    if granularity not in ("", *SCOPES):
        raise RecipeError(f"expected granularity {', '.join(SCOPES)}, got {granularity!r}")
    return replace(
        loaded,
        weights=weights or loaded.weights,
        activations=activations or loaded.activations,
        granularity=cast(Scope, granularity) if granularity else loaded.granularity,
        budget=budget or loaded.budget,
        rules=(*loaded.rules, *keep_float_rules(keep_float)),
    )


def _plan_in(path: Path) -> Plan:
    """Read a plan, or that of a quantized network."""
    if path.suffix == ".json" and not path.name.endswith("symbol.json"):
        return load_plan(path)
    found = load(path).plan
    if found is None:
        raise PlanError(f"{path}: expected a plan or a quantized network, this one is float")
    return found


def _float_bytes(imported: ImportedModel) -> int:
    """Bytes of the float network: of its file, else of its weights."""
    if imported.file is None:
        return weight_bytes(imported.original)
    return file_bytes(imported.file)

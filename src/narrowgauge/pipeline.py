"""The whole flow on one screen: import, simplify, calibrate, plan, recover, lower, write, check."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir as ir

from narrowgauge.analysis.check import Check, check
from narrowgauge.analysis.coverage import constant_input_warnings, coverage_warnings
from narrowgauge.calibration.batching import batch_size
from narrowgauge.calibration.collect import SAMPLED, collect
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan, load_plan
from narrowgauge.data import Batch, Preprocess, Samples, batches, default_preprocess, input_specs, open_samples
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.data.splitting import split
from narrowgauge.errors import DataError, ModelError, RecipeError, StatisticsError
from narrowgauge.exporters.folder import SUMMARY, describe_files, new_folder, write_forms, write_summary
from narrowgauge.exporters.forms import Forms, check_format, forms_for
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.engine import weight_bytes
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.graph.roles import activation_inputs
from narrowgauge.importers.onnx import ImportedModel, load
from narrowgauge.planning.bias_room import with_room_for_biases
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.planning.fill import fill, fixed_values
from narrowgauge.planning.place import place
from narrowgauge.recipe import SCOPES, Recipe, choices, keep_float_rules, load_recipe
from narrowgauge.recovery.bias_correction import correct_bias
from narrowgauge.recovery.outliers import split_outliers
from narrowgauge.recovery.range_refinement import refine_ranges
from narrowgauge.recovery.smooth import smooth
from narrowgauge.summary import summarize
from narrowgauge.targets.registry import load_target
from narrowgauge.targets.schema import Scope, Target

Model = str | os.PathLike[str] | onnx.ModelProto | ir.Model

# Samples that calibrate, and that check, where nothing else is said.
CALIBRATING_SAMPLES = 256
CHECKING_SAMPLES = 1000

# Samples that ranges are refined on, and with how few it is not worth it.
_REFINING = 8
_FEWEST_REFINING = 8
_REFINING_BATCH = 2  # every value and a rounded twin of it are held at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Whom the pipeline tells how far it is.

    Attributes:
        begin: called with a stage's name and how many samples it will take (None if unknown).
        advance: called with a number of samples.
    """

    begin: Callable[[str, int | None], None] = lambda stage, total: None
    advance: Callable[[int], None] = lambda count: None


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
        summary: what `summary.json` holds.
        folder: where the files are; None if nothing was to be written.
    """

    forms: Forms
    float_model: ir.Model
    plan: Plan
    statistics: Statistics | None
    target: Target
    check: Check | None
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
    recipe: str | Path | Recipe = "default",
    weights: str = "",
    activations: str = "",
    granularity: str = "",
    keep_float: Sequence[str] = (),
    format: str = "",
    samples: int = CALIBRATING_SAMPLES,
    check_samples: int = CHECKING_SAMPLES,
    labels: Any = None,
    preprocess: str | Path | Preprocess | None = None,
    plan: str | Path | Plan | None = None,
    statistics: str | Path | Statistics | None = None,
    metric: Callable[..., Any] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize a network for a target, and measure what came of it.

    Args:
        model: an ONNX file or network, float32.
        data: samples, see `data.open_samples`: a folder of images, arrays, an iterable, ...; the first ones
            calibrate, the others check. None does for weight-only and dynamic quantization.
        target: name of a target, or a TOML file of your own.
        out: folder to write, whole or not at all; None writes nothing.
        recipe: a preset's name, a TOML file, or a recipe.
        weights: number type of weights, "" for the target's choice.
        activations: number type of activations, "" for the target's choice.
        granularity: what one scale of weights covers, "" for the target's choice.
        keep_float: what stays float: `first`, `last`, operators, or patterns of node names.
        format: which of the target's formats to write, "" for its first.
        samples: how many samples calibrate.
        check_samples: how many of the others check, at the most.
        labels: labels of the samples: a file, an array or a list.
        preprocess: how images become inputs: a file or a `Preprocess`; None takes `<model>.toml` beside the network.
        plan: encodings to apply instead of choosing them: a file or a `Plan`.
        statistics: statistics to take instead of calibrating, or to go on from; a file that does not exist yet is
            written while they grow.
        metric: the user's own metric, see `analysis.evaluate.compare_runs`.
        threads: of the engine; None for the cores that this process may use.
        force: replace an existing folder.
        progress: whom to tell.

    Raises:
        NarrowgaugeError: one of its kinds; the message says what was expected, what came, where, and what to do.
    """
    chosen = target if isinstance(target, Target) else load_target(target)
    check_format(chosen, format)
    asked = _recipe(recipe, weights, activations, granularity, keep_float)
    job = _Job(statistics_given=statistics, threads=threads, progress=progress or Progress())
    reads = (model, data, labels, preprocess, plan, statistics, target, recipe)
    with new_folder(Path(out) if out is not None else None, force=force, reads=reads) as folder:
        with job.stage("import"):
            given = plan if plan is None or isinstance(plan, Plan) else load_plan(Path(plan))
            imported = job.read(model, given)
            opened = job.open(model, imported, data, preprocess, labels)
        calibrating, checking = job.split(opened, samples if asked.mode == "static" else 0, check_samples)
        network, made, seen = job.plan(imported.model, chosen, asked, calibrating, given)
        checking = job.left_to_check(checking, calibrating, seen, samples)
        with job.stage("lower"):
            forms = forms_for(chosen, network, made, form=format)
            job.notes += forms.notes
        with job.stage("write"):
            written = write_forms(
                folder, forms, network, made, seen, original=imported.model,
                preprocess=opened.preprocess if opened is not None else None,
            )  # fmt: skip
        native = chosen.runtime == "onnxruntime" and forms.exported is not None
        original = _reference(model, imported)
        found = job.check(original, written.runnable, imported.model, checking, metric, native=native)
        job.notes += [*coverage_warnings(network, made), *(opened.notes if opened is not None else ())]
        summary = summarize(
            model=_model_name(model), target=chosen.name, recipe=asked.name, plan=made, check=found,
            float_bytes=_float_bytes(model, imported), quantized_bytes=_size(written.runnable),
            files=describe_files(folder), seconds=job.seconds, notes=job.notes,
        )  # fmt: skip
        write_summary(summary, folder / SUMMARY)
    return Result(
        forms=forms, float_model=network, plan=made, statistics=seen, target=chosen, check=found, summary=summary,
        folder=Path(out) if out is not None else None,
    )  # fmt: skip


def calibrate(
    model: Model,
    data: Any,
    *,
    samples: int = CALIBRATING_SAMPLES,
    preprocess: str | Path | Preprocess | None = None,
    statistics: str | Path | Statistics | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Run samples through a network and return what was seen of every tensor; see `quantize` for the arguments.

    Raises:
        NarrowgaugeError: see `quantize`.
    """
    job = _Job(statistics_given=statistics, threads=threads, progress=progress or Progress())
    imported = job.read(model)
    opened = job.open(model, imported, data, preprocess, None)
    if opened is None:
        raise DataError("calibration needs samples: give data")
    return job.calibrate(imported.model, opened.take(samples))


@dataclass(kw_only=True, slots=True)
class _Job:
    """One run: whom to tell, what is noted and timed on the way."""

    statistics_given: str | Path | Statistics | None
    threads: int | None
    progress: Progress
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        self.progress.begin(name, total)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)

    def read(self, model: Model, plan: Plan | None = None) -> ImportedModel:
        """Import a network; the very one that a plan was made for is taken as it is, simplified already."""
        imported = load(model, simplify=False) if plan is not None and plan.network else None
        if imported is None or plan is None or network_digest(imported.model) != plan.network:
            imported = load(model)
        if is_quantized(imported.model):
            where = f"{_model_name(model)}: " if isinstance(model, str | os.PathLike) else ""
            raise ModelError(
                f"{where}expected a float network, this one is quantized already: give the one it was made from"
            )
        self.notes += imported.notes
        return imported

    def open(
        self, model: Model, imported: ImportedModel, data: Any, preprocess: str | Path | Preprocess | None, labels: Any
    ) -> Samples | None:
        if data is None:
            return None
        if preprocess is None and isinstance(model, str | os.PathLike):
            preprocess = default_preprocess(Path(model))
        elif isinstance(preprocess, str | Path):
            preprocess = load_preprocess(Path(preprocess))
        return open_samples(data, input_specs(imported.model), preprocess=preprocess, labels=labels)

    def split(self, samples: Samples | None, asked: int, most: int) -> tuple[Samples | None, Samples | None]:
        """Part samples into those that calibrate and those that check; where none calibrates, all of them check."""
        if samples is None:
            return None, None
        if not asked:
            return None, samples.take(most)
        calibrating, checking, notes = split(samples, asked)
        self.notes += notes
        if checking.count is not None and checking.count > most:
            self.notes.append(f"the check takes {most} of the {checking.count} samples that did not calibrate")
        return calibrating, checking.take(most)

    def left_to_check(
        self, checking: Samples | None, calibrating: Samples | None, seen: Statistics | None, asked: int
    ) -> Samples | None:
        """Check with the calibrating samples where only reading told how many there are, and none is left."""
        if checking is None or calibrating is None or seen is None:
            return checking
        if checking.count is not None or seen.samples >= asked:
            return checking
        try:
            next(iter(calibrating), None)
        except DataError:  # an iterator that can be read once
            self.notes.append(f"all {seen.samples} samples calibrated, none is left to check with: take fewer")
            return None
        self.notes.append(f"the {seen.samples} samples there are calibrate and check: the check says little")
        return calibrating

    def plan(
        self, network: ir.Model, target: Target, recipe: Recipe, calibrating: Samples | None,
        given: Plan | None,
    ) -> tuple[ir.Model, Plan, Statistics | None]:  # fmt: skip
        """Return the network with what recovery changed, its plan, and the statistics of the network as it came."""
        asked, notes = choices(recipe, network)
        self.notes += notes
        statistics = None
        if recipe.mode == "static" and (given is None or calibrating is not None):
            statistics = self.calibrate(network, calibrating)
        if statistics is not None:
            self.notes += constant_input_warnings(network, statistics)
        gathered = statistics
        with self.stage("plan"):
            if statistics is not None and recipe.migrate and given is None:
                network, statistics, asked = self.tame_outliers(network, statistics, target, asked)
            placement = place(network, target, asked)
            if given is not None:
                self.note_other_network(given, network)
                if given.target != target.name:
                    self.notes.append(f"the plan was made for {given.target}: it is applied for {target.name}")
                    given = replace(given, target=target.name)
            plan = given or fill(network, placement, statistics, target, asked)
        if statistics is not None and recipe.refine_ranges and given is None:
            with self.stage("refine ranges"):
                plan = self.refine(network, plan, statistics, target, calibrating, fixed=fixed_values(placement))
        made_for_this = given is not None and plan.network == network_digest(network)  # biases are corrected already
        if statistics is not None and recipe.correct_bias and not made_for_this:
            with self.stage("correct bias"):
                network, plan = correct_bias(network, plan, statistics)
        self.notes += plan.notes
        return network, replace(plan, network=network_digest(network)), gathered

    def refine(
        self, network: ir.Model, plan: Plan, statistics: Statistics, target: Target, calibrating: Samples | None,
        fixed: Collection[str],
    ) -> Plan:  # fmt: skip
        """Choose ranges by their error behind the next layers, on a few samples that can be read again."""
        count = calibrating.count if calibrating is not None else None
        if calibrating is None or count is None or count < _FEWEST_REFINING:
            self.notes.append(
                f"ranges were not refined: that takes {_FEWEST_REFINING} samples or more that can be read twice"
            )
            return plan
        few = list(batches(calibrating.take(_REFINING), _REFINING_BATCH, input_specs(network)))
        plan, done = refine_ranges(
            network, plan, statistics, few, symmetric=target.activations.is_symmetric,
            power_of_two=target.activations.power_of_two, fixed=fixed, threads=self.threads,
        )  # fmt: skip
        if done:
            values = "value was" if len(done) == 1 else "values were"
            self.notes.append(f"the ranges of {len(done)} {values} chosen by their error behind the next layers")
        return with_room_for_biases(network, plan, bits=target.bias_bits, power_of_two=target.weights.power_of_two)

    def calibrate(self, network: ir.Model, samples: Samples | None) -> Statistics:
        given = self.statistics_given
        file = None if given is None or isinstance(given, Statistics) else Path(given)
        start = given if isinstance(given, Statistics) else Statistics.load(file) if file and file.exists() else None
        if start is not None and start.network != network_digest(network):
            raise StatisticsError(
                f"{file or 'the statistics'}: expected statistics of this network, these are of another one; "
                "give another --statistics file, or remove this one to calibrate anew"
            )
        if samples is None and start is None:
            raise DataError(
                "static quantization needs samples: give --data, or --statistics of an earlier calibration, "
                "or take --recipe dynamic or weight-only, which need none"
            )
        done = start.samples if start is not None else 0
        if start is not None and (samples is None or (samples.count is not None and done >= samples.count)):
            self.notes.append(f"calibration skipped: statistics of {done} samples were given")
            return start
        assert samples is not None
        rest = samples.skip(done)
        with self.stage("calibrate", rest.count):
            statistics = collect(
                network, _batches(network, rest), sampled=start.sampled if start else SAMPLED,
                threads=self.threads, start=start, save_to=file,
                progress=self.progress.advance,
            )  # fmt: skip
        if file is not None:
            statistics.save(file)
        self.notes += samples.notes
        return statistics

    def tame_outliers(
        self, network: ir.Model, statistics: Statistics, target: Target, asked: Choices
    ) -> tuple[ir.Model, Statistics, Choices]:
        """Take the outlier channels out of what integer products read."""
        placement = place(network, target, asked)
        integer = [node for node in network.graph if node.name in placement.integer_nodes]
        written = {str(value.name) for node in integer for value in node.outputs}
        between_floats = {
            str(node.name)
            for node in integer
            if (rule := target.rule(node.op_type)) and rule.output == "float"
            and not any(value.name in written for _, value in activation_inputs(node))
        }  # fmt: skip
        network, statistics, splits = split_outliers(network, statistics, layers=between_floats)
        self.notes += [
            f"channel {', '.join(map(str, one.channels))} of {one.value!r} reaches {one.range_before:.3g}, the others "
            f"{one.range_after:.3g}: it is multiplied in float"
            for one in splits
        ]
        asked = replace(asked, nodes={**asked.nodes, **{
            name: NodeChoice(keep_float=f"outlier channels of {one.value} are multiplied in float")
            for one in splits for name in one.float_nodes
        }})  # fmt: skip
        rounded = written.difference(placement.float_outputs)
        network, statistics, done = smooth(network, statistics, layers=placement.integer_nodes, rounded=rounded)
        if done:
            worst = max(done, key=lambda migration: migration.factor)
            self.notes.append(
                f"outlier channels of {len(done)} values were scaled into the next weights, most of all channel "
                f"{worst.channel} of {worst.value!r}, by {worst.factor:.3g}"
            )
        return network, statistics, asked

    def note_other_network(self, plan: Plan, network: ir.Model) -> None:
        if plan.network and plan.network != network_digest(network):
            self.notes.append(
                "the plan was made for other weights than this network's: its encodings are applied by name "
                "(float.onnx beside a plan is the network that it was made for)"
            )

    def check(
        self, original: ir.Model | Path, runnable: Path, network: ir.Model, checking: Samples | None,
        metric: Callable[..., Any] | None, *, native: bool,
    ) -> Check | None:  # fmt: skip
        if checking is None:
            self.notes.append("nothing was checked: there are no data")
            return None
        with self.stage("check", checking.count):
            found = check(
                original, runnable, _batches(network, checking), inputs=input_specs(network), native=native,
                metric=metric, threads=self.threads, progress=self.progress.advance,
            )  # fmt: skip
        if not native:
            self.notes.append("checked as a simulation: accuracy is the simulation's, speed is not measured")
        self.notes += found.warnings
        return found


def _batches(network: ir.Model, samples: Samples) -> Iterable[Batch]:
    return batches(samples, batch_size(network), input_specs(network))


def _recipe(
    recipe: str | Path | Recipe, weights: str, activations: str, granularity: str, keep_float: Sequence[str]
) -> Recipe:
    loaded = load_recipe(recipe)
    if granularity not in ("", *SCOPES):
        raise RecipeError(f"expected granularity {', '.join(SCOPES)}, got {granularity!r}")
    return replace(
        loaded,
        weights=weights or loaded.weights,
        activations=activations or loaded.activations,
        granularity=cast(Scope, granularity) if granularity else loaded.granularity,
        rules=(*loaded.rules, *keep_float_rules(keep_float)),
    )


def _reference(model: Model, imported: ImportedModel) -> ir.Model | Path:
    return Path(model) if isinstance(model, str | os.PathLike) else imported.original


def _model_name(model: Model) -> str:
    if isinstance(model, str | os.PathLike):
        return str(Path(model))
    return (model.graph.name or "network") if model.graph is not None else "network"


def _float_bytes(model: Model, imported: ImportedModel) -> int:
    external = {
        Path(value.const_value.path)
        for value in imported.original.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    if isinstance(model, str | os.PathLike):
        return _size(Path(model)) + sum(_size(path) for path in external)
    return weight_bytes(imported.original)


def _size(path: Path) -> int:
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)

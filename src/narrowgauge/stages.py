"""The stages of the pipeline: what each takes from the one before, whom it tells, what it notes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir

from narrowgauge.analysis.analyze import analyze
from narrowgauge.analysis.check import Check, check
from narrowgauge.analysis.coverage import constant_input_warnings
from narrowgauge.analysis.drop import accuracy_drop
from narrowgauge.analysis.evaluate import compare_runs
from narrowgauge.analysis.records import Analysis, Choice, Step
from narrowgauge.calibration.batching import batch_size
from narrowgauge.calibration.collect import SAMPLED, collect
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.data import Batch, Preprocess, Samples, batches, default_preprocess, input_specs, open_samples
from narrowgauge.data.kept import KeptBatches
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.data.splitting import split
from narrowgauge.errors import DataError, ModelError, StatisticsError
from narrowgauge.exporters.forms import forms_for
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.onnx import ImportedModel, load
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.recipe import Recipe, choices
from narrowgauge.recovery.bias_correction import correct_bias
from narrowgauge.recovery.bit_widths import assign_bits, parse_budget
from narrowgauge.recovery.ladder import Bound, Ladder
from narrowgauge.recovery.workshop import State, Workshop
from narrowgauge.runtimes.onnxruntime import open_run
from narrowgauge.targets.schema import Target

Drop = Callable[[Workshop, State], float]
Model = str | os.PathLike[str] | onnx.ModelProto | ir.Model

# Of the calibrating samples, those that recovery is measured on, at most; fewer than the second are no measure.
_MEASURING = 24
_FEWEST_MEASURING = 8
_MEASURING_BATCH = 8

# How thoroughly an analysis is made: samples to measure tensors on, and to measure their cost at the output on, rows of
# a batch, and how many of the worst tensors remedies are tried on.
Depth = Literal["none", "quick", "full"]
_ANALYZED: dict[Depth, tuple[int, int, int, int]] = {"quick": (16, 4, 2, 0), "full": (64, 16, 8, 6)}

# Fewer samples than this are not worth choosing numbers on.
_FEWEST_CHOOSING = 8


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
class Planned:
    """What planning and recovery gave.

    Attributes:
        reference: the float network, with float weights, whose values those of the quantized one are compared with.
        network: the network that the plan describes: the same with the weights and biases that recovery chose.
        plan: the encodings.
        statistics: of the network as it came; None where none were needed.
        current: statistics of `reference`, whose structure may be another.
        steps: what recovery tried.
        front: what mixed precision could choose from; empty without a budget.
    """

    reference: ir.Model
    network: ir.Model
    plan: Plan
    statistics: Statistics | None
    current: Statistics | None
    steps: tuple[Step, ...] = ()
    front: tuple[Choice, ...] = ()


@dataclass(kw_only=True, slots=True)
class Stages:
    """One run: whom to tell, what is noted and timed on the way.

    Attributes:
        statistics_given: statistics or their file, to take or to go on from.
        threads: of the engine; None for the cores that this process may use.
        progress: whom to tell.
        notes: what a person should know.
        seconds: per stage.
    """

    statistics_given: str | Path | Statistics | None
    threads: int | None
    progress: Progress
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[None]:
        """Tell of a stage and time it."""
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
            where = f"{model_name(model)}: " if isinstance(model, str | os.PathLike) else ""
            raise ModelError(
                f"{where}expected a float network, this one is quantized already: give the one it was made from"
            )
        self.notes += imported.notes
        return imported

    def open(
        self, model: Model, imported: ImportedModel, data: Any, preprocess: str | Path | Preprocess | None, labels: Any
    ) -> Samples | None:
        """Open the samples, if there are any."""
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
        given: Plan | None, judge: Callable[[], Drop | None] | None = None, max_drop: float | None = None,
    ) -> Planned:  # fmt: skip
        """Calibrate, plan and recover."""
        asked, notes = choices(recipe, network)
        self.notes += notes
        statistics = None
        if recipe.mode == "static" and (given is None or calibrating is not None):
            statistics = self.calibrate(network, calibrating)
        if statistics is not None:
            self.notes += constant_input_warnings(network, statistics)
        if statistics is None or given is not None:
            if judge is not None:
                self.notes.append("the accuracy asked for is only judged: a plan that is given or has no ranges stays")
            with self.stage("plan"):
                changed, plan = network, self._given_plan(network, given, target)
                if plan is None:
                    plan = fill(network, place(network, target, asked), statistics, target, asked)
                elif statistics is not None and "correct-bias" in recipe.methods and not made_for(plan, network):
                    changed, plan = correct_bias(network, plan, statistics)
            return self._planned(network, changed, plan, statistics, statistics)
        count = _readable_again(calibrating, statistics.samples)
        workshop = self.workshop(network, target, calibrating, count)
        drop = judge() if judge is not None and count is not None else None
        if judge is not None and drop is None:
            self.notes.append("the accuracy asked for did not steer recovery: no samples are left to measure it on")
        if recipe.measured and recipe.methods and not workshop.measuring:
            self.notes.append(
                f"recovery was not measured, so all of it was kept: that takes {2 * _FEWEST_MEASURING} calibrating "
                "samples or more that can be read twice"
            )
        with self.stage("plan"):
            state = workshop.planned(network, statistics, asked)
        front: tuple[Choice, ...] = ()
        if recipe.budget:
            with self.stage("mixed precision"):
                state, front = assign_bits(workshop, state, parse_budget(recipe.budget), widths=recipe.bits, drop=drop)
        with self.stage("recover"):
            bound = Bound(drop=drop, most=max_drop) if drop is not None and max_drop is not None else None
            ladder = Ladder(
                workshop=workshop, state=state, measured=recipe.measured, bound=bound,
                tell=lambda method: self.progress.begin(f"recover: {method}", None),
            )  # fmt: skip
            ladder.climb(recipe.methods, thrifty=recipe.thrifty)
        self.notes += [step.detail for step in ladder.steps if step.kept and step.detail]
        self.notes += workshop.notes
        state = ladder.state
        made = self._planned(state.reference, state.network, state.plan, statistics, state.statistics)
        return replace(made, steps=tuple(ladder.steps), front=front)

    def _planned(
        self, reference: ir.Model, network: ir.Model, plan: Plan, statistics: Statistics | None,
        current: Statistics | None,
    ) -> Planned:  # fmt: skip
        self.notes += plan.notes
        plan = replace(plan, network=network_digest(network))
        return Planned(reference=reference, network=network, plan=plan, statistics=statistics, current=current)

    def _given_plan(self, network: ir.Model, given: Plan | None, target: Target) -> Plan | None:
        if given is None:
            return None
        self._note_other_network(given, network)
        if given.target != target.name:
            self.notes.append(f"the plan was made for {given.target}: it is applied for {target.name}")
        return replace(given, target=target.name)

    def workshop(self, network: ir.Model, target: Target, calibrating: Samples | None, count: int | None) -> Workshop:
        """Part the calibrating samples into those that numbers are chosen on and those that these are measured on.

        Args:
            network: the float network.
            target: what it is for.
            calibrating: the samples.
            count: how many of them there are; None where they cannot be read again.
        """
        held = min(_MEASURING, count // 4) if count is not None and count >= 2 * _FEWEST_MEASURING else 0
        inputs = input_specs(network)

        def few(number: int, rows: int) -> list[Batch]:
            if calibrating is None or count is None or count - held < min(number, _FEWEST_CHOOSING):
                return []
            return list(batches(calibrating.take(min(number, count - held)), rows, inputs))

        measuring = []
        if calibrating is not None and count is not None and held:
            measuring = list(batches(calibrating.skip(count - held), _MEASURING_BATCH, inputs))
        return Workshop(
            target=target, calibrate=lambda changed, most=None: self._recalibrate(changed, calibrating, most),
            samples=few, measuring=measuring, given=network, threads=self.threads,
        )  # fmt: skip

    def accuracy(
        self, original: ir.Model | Path, network: ir.Model, checking: Samples | None,
        metric: Callable[..., Any] | None,
    ) -> Drop | None:  # fmt: skip
        """Return what measures the accuracy lost, while recovery goes on, on the samples of the check."""
        kept = KeptBatches(checking, batch_size(network), input_specs(network)) if checking is not None else ()
        if checking is None or next(iter(kept), None) is None:
            return None
        reference = open_run(original, threads=self.threads)

        def drop(workshop: Workshop, state: State) -> float:
            self.progress.begin("measure accuracy", checking.count)
            forms = forms_for(workshop.target, state.network, state.plan)
            native = workshop.target.runtime == "onnxruntime" and forms.exported is not None
            runnable = forms.exported if native and forms.exported is not None else forms.simulated
            candidate = open_run(runnable, threads=self.threads, simulate=not native)
            found = compare_runs(reference, candidate, kept, metric=metric, progress=self.progress.advance)
            own = metric is not None
            return accuracy_drop(found.reference, found.candidate, found.agreement_top1, own=own)[1]

        return drop

    def _recalibrate(self, network: ir.Model, samples: Samples | None, most: int | None = None) -> Statistics:
        """Gather the statistics of a network that recovery has changed."""
        assert samples is not None
        samples = samples if most is None else samples.take(most)
        return collect(network, _batches(network, samples), threads=self.threads)

    def calibrate(self, network: ir.Model, samples: Samples | None) -> Statistics:
        """Gather statistics, or take those that were given, or go on from them."""
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

    def _note_other_network(self, plan: Plan, network: ir.Model) -> None:
        if plan.network and not made_for(plan, network):
            self.notes.append(
                "the plan was made for other weights than this network's: its encodings are applied by name "
                "(float.onnx beside a plan is the network that it was made for)"
            )

    def check(
        self, original: ir.Model | Path, runnable: Path, network: ir.Model, checking: Samples | None,
        metric: Callable[..., Any] | None, *, native: bool,
    ) -> Check | None:  # fmt: skip
        """Run the written network beside the float one, if there are samples."""
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

    def analyze(self, made: Planned, target: Target, samples: Samples | None, depth: Depth) -> Analysis | None:
        """Find out where the accuracy goes, as thoroughly as is asked for; None where nothing is to be analysed."""
        if depth == "none" or samples is None or not any(isinstance(e, Encoding) for e in made.plan.encodings.values()):
            return None
        few, swept, rows, remedies = _ANALYZED[depth]
        if depth == "quick" and samples.count is not None and samples.count < _FEWEST_MEASURING:
            swept = 0  # it would take longer than all the rest
        with self.stage("analyse"):
            found = analyze(
                made.reference, made.network, made.plan, made.current,
                list(batches(samples.take(few), rows, input_specs(made.network))),
                target=target, remedies=remedies, swept=swept, progress=self.progress, threads=self.threads,
            )  # fmt: skip
        return replace(found, steps=made.steps, front=made.front)


def made_for(plan: Plan, network: ir.Model) -> bool:
    """Whether a plan belongs to these very weights and biases."""
    return plan.network == network_digest(network)


def model_name(model: Model) -> str:
    """What to call a network: its path, or its graph's name."""
    if isinstance(model, str | os.PathLike):
        return str(Path(model))
    return (model.graph.name or "network") if model.graph is not None else "network"


def _readable_again(samples: Samples | None, seen: int) -> int | None:
    """How many of the samples that calibrated can be read once more; None where they cannot."""
    if samples is None or samples.count is not None:
        return samples.count if samples is not None else None
    try:
        return seen if next(iter(samples), None) is not None else None
    except DataError:  # an iterator that can be read once
        return None


def _batches(network: ir.Model, samples: Samples) -> Iterable[Batch]:
    return batches(samples, batch_size(network), input_specs(network))

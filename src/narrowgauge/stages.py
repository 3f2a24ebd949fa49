"""The stages of the pipeline: what each takes from the one before, whom it tells, what it notes."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from narrowgauge.analysis.analyze import analyze
from narrowgauge.analysis.attention_maps import AttentionMaps, attention_maps, attentions
from narrowgauge.analysis.causes import find_causes
from narrowgauge.analysis.check import Check, check
from narrowgauge.analysis.coverage import constant_input_warnings
from narrowgauge.analysis.drop import accuracy_drop
from narrowgauge.analysis.evaluate import compare_runs
from narrowgauge.analysis.exactness import to_summary
from narrowgauge.analysis.folder_exactness import folder_exactness
from narrowgauge.analysis.records import Analysis, Cause, Choice, Step
from narrowgauge.calibration.batching import batch_size
from narrowgauge.calibration.cells import cell_magnitudes, keep_cells
from narrowgauge.calibration.collect import SAMPLED, collect
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import Plan
from narrowgauge.data import Batch, Preprocess, Samples, batches, default_preprocess, input_specs, open_samples
from narrowgauge.data.kept import KeptBatches
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.data.samples import Sample
from narrowgauge.data.splitting import split
from narrowgauge.errors import DataError, StatisticsError
from narrowgauge.exporters.folder import SIMULATED, Written
from narrowgauge.exporters.forms import forms_for
from narrowgauge.graph.digest import network_digest
from narrowgauge.importers.imported import ImportedModel
from narrowgauge.importers.opening import load
from narrowgauge.passes.unroll_recurrent import Unrolled, unroll_recurrent
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import place
from narrowgauge.planning.support import without_effect
from narrowgauge.recipe import Recipe, choices
from narrowgauge.recovery.bias_correction import correct_bias
from narrowgauge.recovery.bit_widths import FLOAT, assign_bits, parse_budget
from narrowgauge.recovery.ladder import Bound, Ladder
from narrowgauge.recovery.workshop import State, Workshop
from narrowgauge.runtimes.engines import engine_named
from narrowgauge.runtimes.onnxruntime import open_run
from narrowgauge.targets.schema import Target

Drop = Callable[[Workshop, State], float]
Model = Any
"""A path, or a network in memory, of any framework: see `importers.opening.load`."""

# Of the calibrating samples, those that recovery is measured on, at most; fewer than the second are no measure.
_MEASURING = 24
_FEWEST_MEASURING = 8
_MEASURING_BATCH = 8

# Fewer samples than this are not worth choosing numbers on.
_FEWEST_CHOOSING = 8

# How many tell whether the engine computes as we do; `verify` takes more.
_INTEGER_SAMPLES = 2

# How many tell the range of an LSTM's cells.
_CELL_SAMPLES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Thoroughness:
    """How thoroughly an analysis is made.

    Attributes:
        samples: that tensors are measured on.
        swept: of these, that every tensor's cost at the output is measured on.
        rows: of a batch.
        remedies: how many of the worst tensors remedies are tried on.
    """

    samples: int
    swept: int
    rows: int
    remedies: int


Depth = Literal["none", "quick", "full"]
_ANALYZED: dict[Depth, Thoroughness] = {
    "none": Thoroughness(samples=0, swept=0, rows=1, remedies=0),
    "quick": Thoroughness(samples=16, swept=4, rows=2, remedies=0),
    "full": Thoroughness(samples=64, swept=16, rows=8, remedies=6),
}


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
        begun: where recovery began, and the means to measure it; None where there was none.
        steps: what recovery tried.
        front: what mixed precision could choose from; empty without a budget.
    """

    reference: ir.Model
    network: ir.Model
    plan: Plan
    statistics: Statistics | None
    current: Statistics | None
    begun: tuple[Workshop, State] | None = None
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

    def read(self, model: Model, plan: Plan | None = None, *, example: Any = None) -> ImportedModel:
        """Import a network; the very one that a plan was made for is taken as it is, simplified already."""
        imported = load(model, example=example)
        if plan is not None and plan.network and network_digest(imported.model) != plan.network:
            as_given = load(imported.original, simplify=False)
            if network_digest(as_given.model) == plan.network:
                imported = replace(imported, model=as_given.model, notes=as_given.notes, refusals=())
        self.notes += imported.notes
        return imported

    def own_plan(
        self, imported: ImportedModel, given: Plan | None, *, wanted: bool
    ) -> tuple[ImportedModel, Plan | None]:
        """Keep the encodings that a network came with, if it came quantized and they are wanted."""
        if imported.plan is None or given is not None:
            return imported, given
        came = f"the network came quantized ({imported.framework})"
        if wanted:
            self.notes.append(f"{came}: its own encodings are kept")
            return replace(imported, model=imported.original), imported.plan
        self.notes.append(
            f"{came}: new encodings are chosen for the real numbers that its integers stood for; "
            f"the plan 'own' keeps those it came with"
        )
        return imported, None

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

    def in_steps(self, network: ir.Model, target: Target, recipe: Recipe) -> ir.Model:
        """Unroll the recurrent layers that the target has no kernel for: their inner values need ranges."""
        given = self.statistics_given
        if recipe.mode != "static" or not any(node.op_type in target.unrolled for node in network.graph):
            return network
        if isinstance(given, Statistics) and given.network == network_digest(network):
            self.notes.append("statistics of the layers as they are were given: recurrent layers were not unrolled")
            return network
        steps = network.clone()
        unrolled, refusals = unroll_recurrent(steps, keep=lambda layer: layer.operator not in target.unrolled)
        if unrolled:
            self.notes.append(f"{target.name} has no kernel of {_some_nodes(unrolled)}: unrolled into its steps")
        self.notes += [f"{one} (it was not unrolled)" for one in refusals]
        return steps if unrolled else network

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
            self.notes += without_effect(changed, plan, asked)
            return self._planned(network, changed, plan, statistics, statistics)
        count = _readable_again(calibrating, statistics.samples)
        self.note_cells(network, target, calibrating if count is not None else None)
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
            state = begun = workshop.planned(network, statistics, asked)
        front: tuple[Choice, ...] = ()
        if recipe.budget:
            with self.stage("mixed precision"):
                state, front = assign_bits(workshop, state, parse_budget(recipe.budget), widths=recipe.bits, drop=drop)
            self.notes += [f"under the budget, {_widths(point.bits)}" for point in front if point.chosen]
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
        self.notes += without_effect(state.network, state.plan, asked)
        made = self._planned(state.reference, state.network, state.plan, statistics, state.statistics)
        return replace(made, begun=(workshop, begun), steps=tuple(ladder.steps), front=front)

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

    def note_cells(self, network: ir.Model, target: Target, samples: Samples | None) -> None:
        """Find the range of the cells that the target's LSTM kernel keeps in 16 bits; samples: None for none."""
        rule = target.rule("LSTM")
        if samples is not None and rule is not None and "static" in rule.modes:
            feeds = (batch.feed for batch in _batches(network, samples.take(_CELL_SAMPLES)))
            keep_cells(network, cell_magnitudes(network, feeds, threads=self.threads))

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

        def again(changed: ir.Model, most: int | None = None, /) -> Statistics:
            assert calibrating is not None  # count says how many there are
            some = calibrating if most is None else calibrating.take(most)
            return collect(changed, _batches(changed, some), threads=self.threads)

        return Workshop(
            target=target, calibrate=None if count is None else again, samples=few, measuring=measuring, given=network,
            threads=self.threads,
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

    def read_first(self, checking: Samples | None, depth: Depth) -> tuple[list[Sample], Iterable[Sample]]:
        """Read the samples that are analysed, and return them and all, which begin with them: none is read twice."""
        if checking is None:
            return [], ()
        first = list(checking.take(_ANALYZED[depth].samples))
        return first, itertools.chain(first, checking.skip(_ANALYZED[depth].samples))

    def check(
        self, original: ir.Model | Path, written: Written, network: ir.Model, samples: Iterable[Sample],
        count: int | None, *, metric: Callable[..., Any] | None,
    ) -> Check:  # fmt: skip
        """Run the written network beside the float one; `count` says how many samples there are, if that is known."""
        runnable, runtime = written.runnable, written.runtime
        if runtime and not engine_named(runtime).installed:
            engine = engine_named(runtime)
            self.notes.append(f"{engine.title} would run it, but it is not installed: {engine.install}")
            runnable, runtime = written.folder / SIMULATED, ""
        with self.stage("check", count):
            found = check(
                original, runnable, _batches(network, samples), network=network, runtime=runtime, metric=metric,
                threads=self.threads, progress=self.progress.advance,
            )  # fmt: skip
        if not runtime:
            self.notes.append("checked as a simulation: accuracy is the simulation's, speed is not measured")
        self.notes += found.warnings
        return found

    def integers(self, written: Written, plan: Plan, target: Target, samples: Sequence[Sample]) -> dict[str, Any]:
        """Compare the integers inside the engine with ours on the first samples: engine -> what was found."""
        there = written.runtime and written.planned and engine_named(written.runtime).installed
        if not there or plan.mode != "static" or not samples:
            return {}
        with self.stage("compare integers", len(samples[:_INTEGER_SAMPLES])):
            found, reasons = folder_exactness(
                written.runnable, samples[:_INTEGER_SAMPLES], engine=engine_named(written.runtime), plan=plan,
                target=target, threads=self.threads, progress=self.progress.advance,
            )  # fmt: skip
        self.notes += reasons
        return {written.runtime: to_summary(found, reasons)} if found is not None else {}

    def analyze(self, made: Planned, target: Target, samples: Sequence[Sample], depth: Depth) -> Analysis | None:
        """Find out where the accuracy goes, as thoroughly as is asked for; None where nothing is to be analysed."""
        if not samples or not any(isinstance(one, Encoding) for one in made.plan.encodings.values()):
            return None
        asked = _ANALYZED[depth]
        # With a few samples it would take longer than all the rest of a run.
        enough = depth == "full" or sum(sample.size for sample in samples) >= _FEWEST_MEASURING
        with self.stage("analyse"):
            found = analyze(
                made.reference, made.network, made.plan, made.current,
                list(batches(samples, asked.rows, input_specs(made.network))), target=target, remedies=asked.remedies,
                swept=asked.swept if enough else 0, progress=self.progress, threads=self.threads,
            )  # fmt: skip
        causes: tuple[Cause, ...] = ()
        if made.begun is not None and enough:
            with self.stage("find causes"):
                causes = find_causes(*made.begun, remedies=depth == "full")
        return replace(found, causes=causes, steps=made.steps, front=made.front)

    def attention(self, made: Planned, samples: Sequence[Sample]) -> AttentionMaps | None:
        """Compare the attention of the first sample in both networks; None where there is none."""
        first = next(iter(batches(samples[:1], 1, input_specs(made.network))), None)
        if first is None or not attentions(made.reference):
            return None
        with self.stage("attention"):
            return attention_maps(made.reference, made.network, made.plan, first, threads=self.threads)


def made_for(plan: Plan, network: ir.Model) -> bool:
    """Whether a plan belongs to these very weights and biases."""
    return plan.network == network_digest(network)


def _some_nodes(unrolled: Sequence[Unrolled]) -> str:
    names = [one.node for one in unrolled]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _widths(bits: Mapping[str, int]) -> str:
    """Say how many layers have weights of which width."""
    said = {width: "float" if width == FLOAT else f"{width} bits" for width in sorted(bits.values())}
    counts = Counter(bits.values())
    return "the weights of the layers are: " + ", ".join(f"{counts[width]} x {name}" for width, name in said.items())


def _readable_again(samples: Samples | None, seen: int) -> int | None:
    """How many of the samples that calibrated can be read once more; None where they cannot."""
    if samples is None or samples.count is not None:
        return samples.count if samples is not None else None
    try:
        return seen if next(iter(samples), None) is not None else None
    except DataError:  # an iterator that can be read once
        return None


def _batches(network: ir.Model, samples: Iterable[Sample]) -> Iterable[Batch]:
    return batches(samples, batch_size(network), input_specs(network))

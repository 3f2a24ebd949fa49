"""Two networks on the same samples: accuracy of each, agreement and signal-to-noise ratio between them."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from narrowgauge.errors import DataError, RecipeError
from narrowgauge.graph.feeds import Batch, sample_rows

# Batches that one network runs before the other does, at most, and bytes of their inputs.
_TOGETHER = 8
_TOGETHER_BYTES = 2**24

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Run = Callable[[Mapping[str, Array]], Outputs]


class LabelledBatch(Batch, Protocol):
    """Some samples that go through both networks."""

    @property
    def names(self) -> Sequence[str]:
        """Who each sample is."""

    @property
    def labels(self) -> Sequence[int | None]:
        """Class index of each sample, None if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What both networks say of one sample.

    Attributes:
        name: of the sample.
        reference: the reference's best class indices, the best first; at most five.
        candidate: likewise of the other network.
    """

    name: str
    reference: tuple[int, ...]
    candidate: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How a network does beside its reference.

    Attributes:
        samples: how many were compared.
        labelled: how many of them had a label.
        reference: metric name -> value of the reference; empty without labels or a metric.
        candidate: likewise of the other network.
        agreement_top1: share of rows whose largest output is the same one, percent; None where the first output is no
            row of scores.
        sqnr_db: signal-to-quantization-noise ratio over all float outputs, 10 log10(sum ref^2 / sum err^2), in
            decibels; infinity if they are equal, minus infinity if one alone holds NaN or infinity somewhere.
        first: what both say of the first sample; None where the first output is no row of scores.
    """

    samples: int
    labelled: int
    reference: Mapping[str, float]
    candidate: Mapping[str, float]
    agreement_top1: float | None
    sqnr_db: float
    first: Answers | None = None


Metric = Callable[[Outputs, Sequence[int | None]], float | Array]


class StatefulMetric(Protocol):
    """A metric that is no mean over samples (mean average precision)."""

    def update(self, outputs: Outputs, labels: Sequence[int | None]) -> None:
        """Take a batch."""

    def compute(self) -> float:
        """Return the value over all batches."""


def compare_runs(
    reference: Run,
    candidate: Run,
    batches: Iterable[LabelledBatch],
    *,
    metric: Callable[..., Any] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Comparison:
    """Run both networks on every batch and compare.

    Args:
        reference: runs the reference: feed -> outputs by name.
        candidate: runs the other network; its outputs have the reference's order.
        batches: samples; memory does not grow with their number.
        metric: the user's own: a function `(outputs, labels) -> float or one value per sample`, averaged over samples,
            or a class with `update(outputs, labels)` and `compute()`.
        progress: called with the number of samples after each batch.

    Raises:
        DataError: if there is no sample, or the outputs of the two have different shapes.
    """
    tally = _Tally()
    judges = [_Judge(metric), _Judge(metric)]
    for several in _some_together(batches):
        # One network after the other, not in turn: the threads of an idle session wait busily for a while.
        outputs = [[run(batch.feed) for batch in several] for run in (reference, candidate)]
        for batch, *pair in zip(several, *outputs, strict=True):
            first, second = ({name: sample_rows(value, batch) for name, value in one.items()} for one in pair)
            tally.add(first, second, batch)
            for judge, result in zip(judges, (first, second), strict=True):
                judge.add(result, batch)
            progress(batch.count)
    if tally.samples == 0:
        raise DataError("no sample to compare with: the data are empty")
    return tally.comparison(judges)


def _some_together(batches: Iterable[LabelledBatch]) -> Iterator[list[LabelledBatch]]:
    """Group batches, a few and of few bytes."""
    group: list[LabelledBatch] = []
    held = 0
    for batch in batches:
        group.append(batch)
        held += sum(array.nbytes for array in batch.feed.values())
        if len(group) >= _TOGETHER or held >= _TOGETHER_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def load_metric(name: str) -> Callable[..., Any]:
    """Import the user's metric from `module:callable`.

    Raises:
        RecipeError: if there is no such module or callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise RecipeError(f"expected a metric as module:callable, got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"metric {name!r}: {error} (looked in {Path.cwd()} and among what is installed)") from None
    if not callable(found):
        raise RecipeError(f"metric {name!r} is not callable")
    return found  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Tally:
    samples: int = 0
    rows: int = 0
    agreeing: int = 0
    labelled: int = 0
    right: list[int] = field(default_factory=lambda: [0, 0])
    right_top5: list[int] = field(default_factory=lambda: [0, 0])
    signal: float = 0.0
    noise: float = 0.0
    classes: int = 0
    first: Answers | None = None

    def add(self, first: Outputs, second: Outputs, batch: LabelledBatch) -> None:
        pairs = list(zip(first.items(), second.values(), strict=False))
        for (name, one), other in pairs:
            if one.shape != other.shape:
                raise DataError(f"output {name!r} has shape {one.shape} in the one network, {other.shape} in the other")
            if one.dtype.kind == "f":
                self.add_energies(one.astype(np.float64), other.astype(np.float64))
        self.samples += batch.count
        scores = [_scores(outputs) for outputs in (first, second)]
        if scores[0] is None or scores[1] is None:
            return
        ranks = [part.reshape(-1, part.shape[-1]) for part in scores if part is not None]
        self.classes = ranks[0].shape[-1]
        picks = [part.argmax(axis=-1) for part in ranks]
        if self.first is None and ranks[0].shape[0] == batch.count:
            best = [tuple(map(int, np.argsort(-part[0], kind="stable")[:5])) for part in ranks]
            self.first = Answers(name=batch.names[0], reference=best[0], candidate=best[1])
        self.rows += picks[0].size
        self.agreeing += int((picks[0] == picks[1]).sum())
        if ranks[0].shape[0] == batch.count and any(label is not None for label in batch.labels):
            self.count_right(ranks, picks, batch)

    def add_energies(self, one: Array, other: Array) -> None:
        """Add up signal and noise; a NaN or infinity in both is no error, one in only one of them an infinite one."""
        finite = np.isfinite(one) & np.isfinite(other)
        if not finite.all():
            if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
                self.noise = math.inf
            one, other = one[finite], other[finite]
        self.signal += float(np.square(one).sum())
        self.noise += float(np.square(one - other).sum())

    def count_right(self, ranks: list[Array], picks: list[Array], batch: LabelledBatch) -> None:
        known = np.array([number for number, label in enumerate(batch.labels) if label is not None])
        truth = np.array([label for label in batch.labels if label is not None])
        if truth.min() < 0 or truth.max() >= self.classes:
            wrong = int(np.argmax((truth < 0) | (truth >= self.classes)))
            raise DataError(
                f"expected labels from 0 to {self.classes - 1}, as the network has {self.classes} scores, got "
                f"{truth[wrong]} for {batch.names[known[wrong]]!r}; if they count from 1, set label_offset = -1 in "
                "--preprocess"
            )
        self.labelled += known.size
        for model in range(2):
            self.right[model] += int((picks[model][known] == truth).sum())
            top5 = np.argpartition(ranks[model][known], -min(5, self.classes), axis=-1)[:, -5:]
            self.right_top5[model] += int((top5 == truth[:, None]).any(axis=1).sum())

    def comparison(self, judges: list[_Judge]) -> Comparison:
        metrics: list[dict[str, float]] = [{}, {}]
        for model in range(2):
            if self.labelled:
                metrics[model]["top1"] = 100.0 * self.right[model] / self.labelled
                if self.classes > 10:
                    metrics[model]["top5"] = 100.0 * self.right_top5[model] / self.labelled
            metrics[model] |= judges[model].result()
        return Comparison(
            samples=self.samples,
            labelled=self.labelled,
            reference=metrics[0],
            candidate=metrics[1],
            agreement_top1=100.0 * self.agreeing / self.rows if self.rows else None,
            sqnr_db=_decibels(self.signal, self.noise),
            first=self.first,
        )


def _decibels(signal: float, noise: float) -> float:
    if noise in (0, math.inf):
        return math.inf if noise == 0 else -math.inf
    return 10 * math.log10(max(signal, 1e-300) / noise)


def _scores(outputs: Outputs) -> Array | None:
    """First output if it is rows of at least two scores along its last axis; maps of rank 4 are not told apart."""
    first = next(iter(outputs.values()), None)
    usable = first is not None and 2 <= first.ndim <= 3 and first.shape[-1] >= 2 and first.dtype.kind == "f"
    return first if usable else None


class _Judge:
    """The user's metric over all batches of one network."""

    def __init__(self, metric: Callable[..., Any] | None) -> None:
        self.name = getattr(metric, "__name__", "metric")
        self.stateful: StatefulMetric | None = cast(Any, metric)() if inspect.isclass(metric) else None
        self.metric = None if inspect.isclass(metric) else metric
        self.total, self.weight = 0.0, 0

    def add(self, outputs: Outputs, batch: LabelledBatch) -> None:
        if self.stateful is not None:
            self.stateful.update(outputs, batch.labels)
        elif self.metric is not None:
            value = np.asarray(self.metric(outputs, batch.labels), dtype=np.float64)
            self.total += float(value.mean()) * batch.count
            self.weight += batch.count

    def result(self) -> dict[str, float]:
        if self.stateful is not None:
            return {self.name: float(self.stateful.compute())}
        return {self.name: self.total / self.weight} if self.weight else {}

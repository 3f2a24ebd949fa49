"""Any two networks beside each other on the same samples: accuracy, agreement, size, speed, and tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.analysis.evaluate import Comparison, compare_runs
from narrowgauge.analysis.latency import Latency, measure_latency
from narrowgauge.analysis.pairing import Pairing, pair_values
from narrowgauge.analysis.subjects import ROWS_PER_RUN, Subject, subject
from narrowgauge.analysis.tensors import TensorRow, compare_values, exposed, first_difference, worst
from narrowgauge.analysis.tensors import to_json as row_to_json
from narrowgauge.analysis.written_plans import written_encodings
from narrowgauge.calibration.batching import batch_size
from narrowgauge.core.encoding import Encoding
from narrowgauge.data import (
    Batch,
    InputSpec,
    Preprocess,
    batches,
    default_preprocess,
    open_samples,
)
from narrowgauge.data.batches import single_row
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.errors import DataError
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.opening import read
from narrowgauge.runtimes.feeding import Route, routes, taking
from narrowgauge.runtimes.program import Program
from narrowgauge.stages import Progress

Model = Any
"""A file, or a network in memory: see `analysis.subjects.subject`."""

SAMPLES = 1000
"""How many are compared where nothing else is said."""

_SHOWN_NAMES = 5  # of tensors in a note


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """What two networks do on the same samples.

    Attributes:
        comparison: accuracy of each and agreement between them; the first is the reference.
        latency: "a" and "b" -> times of one run of one sample (of a fixed batch where the networks have one), one
            thread.
        size_bytes: "a" and "b" -> bytes of the file, or of the weights of a network in memory.
        runtimes: "a" and "b" -> name of the engine that ran it.
        notes: what a person should know.
        tensors: the values that both networks have, in the first one's order; empty where they were not asked for.
    """

    comparison: Comparison
    latency: Mapping[str, Latency]
    size_bytes: Mapping[str, int]
    runtimes: Mapping[str, str]
    notes: tuple[str, ...]
    tensors: tuple[TensorRow, ...] = ()


def compare(  # noqa: PLR0913 - the command line's options, by the same names
    a: Model,
    b: Model,
    data: Any,
    *,
    labels: Any = None,
    preprocess: str | Path | Preprocess | None = None,
    samples: int = SAMPLES,
    tensors: int = 0,
    runtimes: tuple[str, str] = ("", ""),
    metric: Callable[..., Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> SideBySide:
    """Run two networks on the same samples, float or quantized, by whatever tool.

    Args:
        a: the reference: a file that an engine here runs or an importer reads, or a network in memory.
        b: the other one; it takes the same inputs, by name or, failing that, in the same order; images may be NHWC in
            one and NCHW in the other.
        data: samples, see `data.open_samples`.
        labels: labels of the samples: a file, an array or a list.
        preprocess: how images become inputs; None takes `<a>.toml` beside the first network, or `<b>.toml`.
        samples: how many, the first ones.
        tensors: on how many of them, the first ones, all values that both networks have are compared, too; 0 for the
            outputs alone. Both must be networks that can be read, not only run.
        runtimes: names of the engines that run the two, "" for the usual one of each file.
        metric: the user's own metric, see `analysis.evaluate.compare_runs`.
        threads: of the accuracy runs; None for the cores that this process may use. Latency is that of one.
        progress: whom to tell.

    Raises:
        NarrowgaugeError: a network, the data or the labels cannot be read, or the two networks' inputs or outputs
            differ.
    """
    if tensors < 0:
        raise DataError(f"expected tensors, the number of samples to compare them on, to be at least 0, got {tensors}")
    progress = progress or Progress()
    progress.begin("open", None)
    first, second = (subject(model, runtime=runtime) for model, runtime in zip((a, b), runtimes, strict=True))
    program = second.open(threads)
    inputs, routed = _common_inputs(first.inputs, program)
    opened = open_samples(data, inputs, preprocess=_preprocess(preprocess, a, b), labels=labels).take(samples)
    size = min(_rows_per_run(first), _rows_per_run(second))
    fed = _Fed(batches=batches(opened, size, inputs))
    progress.begin("compare", opened.count)
    comparison = compare_runs(
        first.open(threads).run, taking(program, first.inputs, first.outputs), fed,
        metric=metric, progress=progress.advance,
    )  # fmt: skip
    progress.begin("measure latency", None)
    latency = _latency(first, second, fed, inputs)
    rows: tuple[TensorRow, ...] = ()
    said: list[str] = []
    if tensors:
        few = list(batches(opened.take(tensors), size, inputs))
        known = written_encodings(a), written_encodings(b)
        rows, said = _tensors(_network(first, a), _network(second, b), known, routed, few, threads, progress)
    return SideBySide(
        comparison=comparison,
        latency=latency,
        size_bytes={"a": first.size_bytes, "b": second.size_bytes},
        runtimes={"a": first.runtime, "b": second.runtime},
        notes=(*_notes(first, second, routed), *said, *opened.notes),
        tensors=rows,
    )


def to_json(result: SideBySide) -> dict[str, Any]:
    """Put a comparison into JSON values, keys as in `summary.json` where they mean the same."""
    found = result.comparison
    finite = math.isfinite(found.sqnr_db)
    return {
        "metrics": {"a": dict(found.reference), "b": dict(found.candidate)},
        "agreement_top1": found.agreement_top1,
        "sqnr_db": found.sqnr_db if finite else None,
        "sqnr_infinite": found.sqnr_db == math.inf,
        "samples": found.samples,
        "labelled_samples": found.labelled,
        "size_bytes": dict(result.size_bytes),
        "runtimes": dict(result.runtimes),
        "latency_ms": {name: times.median_ms for name, times in result.latency.items()},
        "notes": list(result.notes),
        "tensors": [row_to_json(row) for row in result.tensors],
        "first_different_tensor": _name(first_difference(result.tensors)),
        "worst_tensor": _name(worst(result.tensors)),
    }


def _name(row: TensorRow | None) -> str | None:
    return None if row is None else row.name


def _common_inputs(first: tuple[InputSpec, ...], program: Program) -> tuple[tuple[InputSpec, ...], dict[str, Route]]:
    """Return inputs that both take, named as the first one's, and how each reaches the second."""
    routed = routes(program, first)
    return tuple(_common(spec, routed[spec.name]) for spec in first), routed


def _common(one: InputSpec, route: Route) -> InputSpec:
    """Fix every axis that one of the two fixes."""
    order = route.axes or range(len(route.taken.shape))
    turned = dict(zip(order, route.taken.shape, strict=True))
    return replace(one, shape=tuple(turned[axis] if a is None else a for axis, a in enumerate(one.shape)))


def _rows_per_run(one: Subject) -> int:
    return ROWS_PER_RUN if one.network is None else batch_size(one.network)


def _network(one: Subject, model: Model) -> ir.Model:
    """Return a network whose values can be looked at."""
    return one.network if one.network is not None else read(model)


def _preprocess(given: str | Path | Preprocess | None, a: Model, b: Model) -> Preprocess | None:
    if isinstance(given, str | Path):
        return load_preprocess(Path(given))
    if given is not None:
        return given
    beside = (default_preprocess(Path(model)) for model in (a, b) if isinstance(model, str | os.PathLike))
    return next((found for found in beside if found is not None), None)


@dataclass(kw_only=True, slots=True)
class _Fed:
    """Batches that pass through, and the feed of the first, which the latency is measured with."""

    batches: Iterable[Batch]
    feed: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            self.feed = self.feed or batch.feed
            yield batch


def _latency(first: Subject, second: Subject, fed: _Fed, inputs: tuple[InputSpec, ...]) -> dict[str, Latency]:
    assert fed.feed is not None  # without a sample the comparison has raised
    one = single_row(fed.feed, inputs)
    runs = {"a": first.open(1).run, "b": taking(second.open(1), first.inputs, first.outputs)}
    return measure_latency({key: lambda run=run: run(one) for key, run in runs.items()})  # type: ignore[misc]


def _tensors(
    first: ir.Model,
    second: ir.Model,
    known: tuple[Mapping[str, Encoding], Mapping[str, Encoding]],
    routed: Mapping[str, Route],
    few: list[Batch],
    threads: int | None,
    progress: Progress,
) -> tuple[tuple[TensorRow, ...], list[str]]:
    """Compare the values that both networks have; return them and what a person should know of that."""
    progress.begin("compare tensors", None)
    found = pair_values(first, second, {name: route.name for name, route in routed.items()}, encodings=known)
    rows = compare_values(
        exposed(first, threads=threads), exposed(second, routed=routed, threads=threads), few, found.pairs,
        progress=progress.advance,
    )  # fmt: skip
    return rows, _tensor_notes(found, is_quantized(first) or is_quantized(second))


def _tensor_notes(found: Pairing, quantized: bool) -> list[str]:
    said = []
    guessed = [pair.first.name for pair in found.pairs if pair.matched != "name"]
    if guessed:
        said.append(f"{_counted(guessed)} matched by structure or position, as the names differ: {_some(guessed)}")
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            said.append(f"{_counted(names)} found in the {which} network only: {_some(names)}")
    if quantized:
        said.append(
            "tensors are computed as the files are written, Q/DQ in float: ONNX Runtime's fused integer kernels may "
            "round a few numbers to the next level"
        )
    return said


def _counted(names: Sequence[str]) -> str:
    return "1 tensor was" if len(names) == 1 else f"{len(names)} tensors were"


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN_NAMES], *(["..."] if len(names) > _SHOWN_NAMES else [])])


def _notes(first: Subject, second: Subject, routed: Mapping[str, Route]) -> list[str]:
    found = [
        f"input {one!r} of the first network is taken for {other.name!r} of the second"
        for one, other in routed.items()
        if one != other.name
    ]
    counts = len(first.outputs), len(second.outputs)
    if counts[0] != counts[1]:
        found.append(f"the networks have {counts[0]} and {counts[1]} outputs: the first {min(counts)} are compared")
    return found

"""Any two networks beside each other on the same samples: accuracy, agreement, size, speed, and tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from narrowgauge.analysis.evaluate import Comparison, Outputs, Run, compare_runs
from narrowgauge.analysis.latency import Latency, measure_latency
from narrowgauge.analysis.pairing import Pairing, pair_values
from narrowgauge.analysis.tensors import TensorRow, compare_values, exposed, first_difference, worst
from narrowgauge.analysis.tensors import to_json as row_to_json
from narrowgauge.calibration.batching import batch_size
from narrowgauge.data import (
    Batch,
    InputSpec,
    Preprocess,
    batches,
    default_preprocess,
    input_specs,
    open_samples,
)
from narrowgauge.data.batches import single_row
from narrowgauge.data.inputs import shape_text
from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.errors import DataError
from narrowgauge.graph.engine import weight_bytes
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes.onnxruntime import open_run
from narrowgauge.stages import Progress

Model = str | os.PathLike[str] | onnx.ModelProto | ir.Model

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
        notes: what a person should know.
        tensors: the values that both networks have, in the first one's order; empty where they were not asked for.
    """

    comparison: Comparison
    latency: Mapping[str, Latency]
    size_bytes: Mapping[str, int]
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
    metric: Callable[..., Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> SideBySide:
    """Run two networks on the same samples, float or quantized, by whatever tool.

    Args:
        a: the reference: an ONNX file or network.
        b: the other one; it takes the same inputs, by name or, failing that, in the same order.
        data: samples, see `data.open_samples`.
        labels: labels of the samples: a file, an array or a list.
        preprocess: how images become inputs; None takes `<a>.toml` beside the first network, or `<b>.toml`.
        samples: how many, the first ones.
        tensors: on how many of them, the first ones, all values that both networks have are compared, too; 0 for the
            outputs alone.
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
    first, second = read(a), read(b)
    inputs, names = _common_inputs(input_specs(first), input_specs(second))
    opened = open_samples(data, inputs, preprocess=_preprocess(preprocess, a, b), labels=labels).take(samples)
    sources = [
        model if isinstance(model, str | os.PathLike) else network for model, network in ((a, first), (b, second))
    ]
    runs = [open_run(source, threads=threads) for source in sources]
    size = min(batch_size(first), batch_size(second))
    fed = _Fed(batches=batches(opened, size, inputs))
    progress.begin("compare", opened.count)
    comparison = compare_runs(
        runs[0], _like(first, second, runs[1], names), fed, metric=metric, progress=progress.advance
    )
    progress.begin("measure latency", None)
    latency = _latency(sources, fed, inputs, names)
    rows: tuple[TensorRow, ...] = ()
    said: list[str] = []
    if tensors:
        few = list(batches(opened.take(tensors), size, inputs))
        rows, said = _tensors(first, second, names, few, threads, progress)
    return SideBySide(
        comparison=comparison,
        latency=latency,
        size_bytes={key: _bytes(model, network) for key, model, network in (("a", a, first), ("b", b, second))},
        notes=(*_notes(first, second, names), *said, *opened.notes),
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
        "latency_ms": {name: times.median_ms for name, times in result.latency.items()},
        "notes": list(result.notes),
        "tensors": [row_to_json(row) for row in result.tensors],
        "first_different_tensor": _name(first_difference(result.tensors)),
        "worst_tensor": _name(worst(result.tensors)),
    }


def _name(row: TensorRow | None) -> str | None:
    return None if row is None else row.name


def _common_inputs(
    first: tuple[InputSpec, ...], second: tuple[InputSpec, ...]
) -> tuple[tuple[InputSpec, ...], dict[str, str]]:
    """Return inputs that both take, named as the first one's, and first's name -> second's name."""
    by_name = {spec.name: spec for spec in second}
    if by_name.keys() == {spec.name for spec in first}:
        pairs = [(spec, by_name[spec.name]) for spec in first]
    elif len(first) == len(second):
        pairs = list(zip(first, second, strict=True))
    else:
        raise DataError(f"expected two networks with the same inputs, got {_text(first)} and {_text(second)}")
    return tuple(_common(*pair) for pair in pairs), {one.name: other.name for one, other in pairs}


def _text(specs: Iterable[InputSpec]) -> str:
    return ", ".join(map(str, specs)) or "none"


def _common(one: InputSpec, other: InputSpec) -> InputSpec:
    """Fix every axis that one of the two fixes."""
    fits = len(one.shape) == len(other.shape) and one.dtype == other.dtype
    if not fits or any(None not in pair and pair[0] != pair[1] for pair in zip(one.shape, other.shape, strict=True)):
        raise DataError(
            f"expected two networks with the same inputs; the first takes {one}, the second {other}: export them "
            f"with one shape, such as {shape_text(one.shape)}"
        )
    shape = tuple(b if a is None else a for a, b in zip(one.shape, other.shape, strict=True))
    return replace(one, shape=shape)


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


def _like(first: ir.Model, second: ir.Model, run: Run, names: Mapping[str, str]) -> Run:
    """Let the second network take the first one's input names and answer in the order of its outputs."""
    order = [str(value.name) for value in first.graph.outputs]
    same_names = set(order) == {value.name for value in second.graph.outputs}

    def renamed(feed: Mapping[str, Any]) -> Outputs:
        outputs = run({names[name]: array for name, array in feed.items()})
        return {name: outputs[name] for name in order} if same_names else outputs

    return renamed


def _latency(
    sources: list[Any], fed: _Fed, inputs: tuple[InputSpec, ...], names: Mapping[str, str]
) -> dict[str, Latency]:
    assert fed.feed is not None  # without a sample the comparison has raised
    one = single_row(fed.feed, inputs)
    feeds = {"a": one, "b": {names[name]: array for name, array in one.items()}}
    runs = {key: open_run(source, threads=1) for key, source in zip(feeds, sources, strict=True)}
    return measure_latency({key: lambda run=run, feed=feeds[key]: run(feed) for key, run in runs.items()})  # type: ignore[misc]


def _bytes(model: Model, network: ir.Model) -> int:
    if not isinstance(model, str | os.PathLike):
        return weight_bytes(network)
    external = {
        Path(value.const_value.path)
        for value in network.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sum(path.stat().st_size for path in {Path(model), *external})


def _tensors(
    first: ir.Model,
    second: ir.Model,
    names: Mapping[str, str],
    few: list[Batch],
    threads: int | None,
    progress: Progress,
) -> tuple[tuple[TensorRow, ...], list[str]]:
    """Compare the values that both networks have; return them and what a person should know of that."""
    progress.begin("compare tensors", None)
    found = pair_values(first, second, names)
    rows = compare_values(
        exposed(first, threads=threads), exposed(second, names=names, threads=threads), few, found.pairs,
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


def _notes(first: ir.Model, second: ir.Model, names: Mapping[str, str]) -> list[str]:
    found = [
        f"input {one!r} of the first network is taken for {other!r} of the second"
        for one, other in names.items()
        if one != other
    ]
    counts = len(first.graph.outputs), len(second.graph.outputs)
    if counts[0] != counts[1]:
        found.append(f"the networks have {counts[0]} and {counts[1]} outputs: the first {min(counts)} are compared")
    return found

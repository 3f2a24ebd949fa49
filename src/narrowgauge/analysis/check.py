"""The quantized file beside the float network: read back, run, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.analysis.evaluate import Array, Comparison, LabelledBatch, compare_runs
from narrowgauge.analysis.latency import Latency, measure_latency
from narrowgauge.data.batches import single_row
from narrowgauge.data.inputs import InputSpec
from narrowgauge.runtimes.onnxruntime import open_run

# Below these the networks are not the same any more, and a person must hear it.
_COLLAPSED_AGREEMENT = 80.0
_COLLAPSED_SQNR_DB = 6.0

# Medians of two runs of one network differ by a few percent; the figures themselves are in the record.
_SLOWER = 1.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What the check found.

    Attributes:
        comparison: accuracy and agreement.
        latency: "float" and "quantized" -> times of one run, one thread; empty where the file's engine is not here.
        warnings: what a person must hear.
    """

    comparison: Comparison
    latency: dict[str, Latency]
    warnings: tuple[str, ...]


def check(  # noqa: PLR0913 - what is compared and how, each by name
    original: ir.Model | Path,
    quantized: Path,
    batches: Iterable[LabelledBatch],
    *,
    inputs: Sequence[InputSpec],
    native: bool,
    metric: Callable[..., Any] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Check:
    """Run the float network and the quantized file on the same samples.

    Args:
        original: the float network as it was given.
        quantized: the written file.
        batches: the samples; read once.
        inputs: the networks' inputs.
        native: whether ONNX Runtime is the target's engine: then its integer kernels run the file and it is timed;
            else the file is simulated as written, without fusions that change numbers.
        metric: the user's own, see `compare_runs`.
        threads: of the accuracy runs; latency is always that of one thread.
        progress: called with the number of samples after each batch.

    Raises:
        RuntimeFailure: if a network cannot be loaded or run.
        DataError: if there is no sample.
    """
    first: list[LabelledBatch] = []
    comparison = compare_runs(
        open_run(original, threads=threads),
        open_run(quantized, threads=threads, simulate=not native),
        _remembering(batches, first),
        metric=metric,
        progress=progress,
    )
    latency = _latency(original, quantized, single_row(first[0].feed, inputs)) if native else {}
    return Check(comparison=comparison, latency=latency, warnings=_warnings(comparison, latency))


def _remembering(batches: Iterable[LabelledBatch], first: list[LabelledBatch]) -> Iterator[LabelledBatch]:
    """Hand batches on and keep the first one."""
    for batch in batches:
        if not first:
            first.append(batch)
        yield batch


def _latency(original: ir.Model | Path, quantized: Path, feed: Mapping[str, Array]) -> dict[str, Latency]:
    runs = {name: open_run(model, threads=1) for name, model in (("float", original), ("quantized", quantized))}
    return measure_latency({name: lambda run=run: run(feed) for name, run in runs.items()})  # type: ignore[misc]


def _warnings(comparison: Comparison, latency: dict[str, Latency]) -> tuple[str, ...]:
    warnings = []
    agreement = comparison.agreement_top1
    if agreement is not None and agreement < _COLLAPSED_AGREEMENT:
        warnings.append(
            f"WARNING: the quantized network gives another answer than the float one on {100 - agreement:.1f} % of the "
            "samples; do not ship it: keep the worst layers float (--keep-float), or use more bits"
        )
    elif comparison.sqnr_db < _COLLAPSED_SQNR_DB:
        warnings.append(
            f"WARNING: the error of the quantized network's output is nearly as large as the output itself "
            f"(SQNR {comparison.sqnr_db:.1f} dB); do not ship it: keep layers float (--keep-float), or use more bits"
        )
    if latency and latency["quantized"].median_ms > _SLOWER * latency["float"].median_ms:
        ratio = latency["quantized"].median_ms / latency["float"].median_ms
        warnings.append(f"the quantized network is {ratio:.2f} times slower than the float one here, on one thread")
    return tuple(warnings)

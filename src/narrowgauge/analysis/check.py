"""The quantized file beside the float network: read back, run, measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from narrowgauge.analysis.evaluate import Comparison, LabelledBatch, Run, compare_runs
from narrowgauge.analysis.latency import Latency, measure_latency
from narrowgauge.data.batches import single_row
from narrowgauge.data.inputs import input_specs, output_names
from narrowgauge.runtimes.engines import engine_named, open_program
from narrowgauge.runtimes.feeding import taking
from narrowgauge.runtimes.onnxruntime import open_run

# Below these the networks are not the same any more, and a person must hear it.
_COLLAPSED_AGREEMENT = 80.0
_COLLAPSED_SQNR_DB = 6.0

# Medians of two runs of one network differ by a few percent; the figures themselves are in the record.
_SLOWER = 1.05

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What the check found.

    Attributes:
        comparison: accuracy and agreement.
        latency: "float" and "quantized" -> times of one run, one thread; empty where the file's engine is not here.
        runtime: name of the engine that ran the quantized file; "" where it was simulated.
        float_runtime: name of the engine that the float network's latency was measured in: the same where it runs ONNX
            files, else ONNX Runtime.
        warnings: what a person must hear.
    """

    comparison: Comparison
    latency: dict[str, Latency]
    warnings: tuple[str, ...]
    runtime: str = ""
    float_runtime: str = ""


def check(  # noqa: PLR0913 - what is compared and how, each by name
    original: ir.Model | Path,
    quantized: Path,
    batches: Iterable[LabelledBatch],
    *,
    network: ir.Model,
    runtime: str = "",
    metric: Callable[..., Any] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Check:
    """Run the float network and the quantized file on the same samples.

    Args:
        original: the float network as it was given.
        quantized: the written file.
        batches: the samples; read once.
        network: the float network, for the names of inputs and outputs.
        runtime: the engine that runs the file, and is timed; "" simulates an ONNX file as it is written, in ONNX
            Runtime without fusions that change numbers.
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
        _candidate(quantized, network, runtime, threads),
        _remembering(batches, first),
        metric=metric,
        progress=progress,
    )
    if not runtime:
        return Check(comparison=comparison, latency={}, warnings=_warnings(comparison))
    one = single_row(first[0].feed, input_specs(network))
    float_runtime = runtime if ONNX_SUFFIX in engine_named(runtime).suffixes else "onnxruntime"
    runs = {
        "float": _reference(original, network, float_runtime),
        "quantized": _candidate(quantized, network, runtime, 1),
    }
    latency = measure_latency({name: lambda run=run: run(one) for name, run in runs.items()})  # type: ignore[misc]
    return Check(
        comparison=comparison, latency=latency, runtime=runtime, float_runtime=float_runtime,
        warnings=(*_warnings(comparison), *_speed_warnings(latency, same=float_runtime == runtime)),
    )  # fmt: skip


def _remembering(batches: Iterable[LabelledBatch], first: list[LabelledBatch]) -> Iterator[LabelledBatch]:
    """Hand batches on and keep the first one."""
    for batch in batches:
        if not first:
            first.append(batch)
        yield batch


def _candidate(quantized: Path, network: ir.Model, runtime: str, threads: int | None) -> Run:
    """Open the quantized file as the engine that runs it does, for the float network's feeds."""
    if runtime in ("", "onnxruntime"):
        return open_run(quantized, threads=threads, simulate=not runtime)
    program = open_program(quantized, runtime=runtime, threads=threads)
    return taking(program, input_specs(network), output_names(network))


def _reference(original: ir.Model | Path, network: ir.Model, runtime: str) -> Run:
    """Open the float network on one thread."""
    if runtime == "onnxruntime":
        return open_run(original, threads=1)
    if isinstance(original, Path):
        return taking(open_program(original, runtime=runtime, threads=1), input_specs(network), output_names(network))
    with tempfile.TemporaryDirectory(prefix="narrowgauge-") as folder:
        path = Path(folder) / "float.onnx"
        ir.save(original.clone(), path, external_data="float.data")  # of any size, wherever its weights lie now
        return _reference(path, network, runtime)


def _warnings(comparison: Comparison) -> tuple[str, ...]:
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
    return tuple(warnings)


def _speed_warnings(latency: dict[str, Latency], *, same: bool) -> tuple[str, ...]:
    ratio = latency["quantized"].median_ms / latency["float"].median_ms
    if ratio <= _SLOWER:
        return ()
    where = "" if same else " in ONNX Runtime"
    return (f"the quantized network is {ratio:.2f} times slower than the float one{where} here, on one thread",)

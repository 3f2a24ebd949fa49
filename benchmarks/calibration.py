"""What calibration costs beside the plain float pass: time, at one and at all threads, and peak memory.

Calibration is `collect` over batches from arrays in memory, and then every estimator of ranges over every tensor. The
float pass runs the given file in ONNX Runtime, with the same number of threads, over the same samples: in the batches
that calibration takes, and one by one, the faster of the two being the measure. Its session is opened beforehand; what
calibration opens and rewrites is counted. Calibration looks at a batch's values in a thread of its own beside the
engine's: the ratio of processor seconds shows what that hides, and what a busy machine adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    NETWORKS,
    Array,
    Network,
    images,
    interleaved,
    open_plain,
    paired_ratio,
    report,
    run_all,
    run_self,
    table,
    zoo,
)
from _worker import peak_rss_bytes

from narrowgauge.calibration.batching import batch_size
from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.ranges import ESTIMATORS
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.numbers import IntegerType
from narrowgauge.data import Batch
from narrowgauge.importers.onnx import load

BUDGET_RATIO = 2.0
BUDGET_BYTES = 300 * 2**20
UINT8 = IntegerType(bits=8, signed=False)
MEMORY_SAMPLES = (100, 1000)


def main() -> None:
    """Read the command line, run, report; or, as a fresh process, measure one peak and print it."""
    arguments = _arguments()
    if arguments.memory:
        print(json.dumps(_memory(arguments)))
        return
    zoo()
    times = [
        _times(NETWORKS[name], threads, arguments.images, arguments.rounds)
        for name in arguments.networks
        for threads in (1, 2)
    ]
    peaks = [] if arguments.no_memory else [_peaks(NETWORKS[name]) for name in arguments.networks]
    text = f"Budget: {BUDGET_RATIO:.0f} float passes.\n\n{_time_table(times)}"
    if peaks:
        text += (
            f"\n\nBudget: {BUDGET_BYTES / 2**20:.0f} MB above the float network's own peak, and as much for more "
            f"samples.\n\n{_peak_table(peaks)}"
        )
    report("calibration", f"Calibration: {arguments.images} images", text, {"times": times, "peaks": peaks})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=256, help="samples of one timed pass")
    parser.add_argument("--rounds", type=int, default=3, help="how often all passes are timed in turn")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--memory", choices=("float", "calibrate"), help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- time -----------------------------------------------------------------------------------------------------


def _times(network: Network, threads: int, count: int, rounds: int) -> dict[str, Any]:
    print(f"{network.name}, {threads} threads ...", file=sys.stderr, flush=True)
    path, samples = zoo() / network.path, images(network, count)
    model, session = load(path).model, open_plain(path, threads=threads)
    size, name = batch_size(model), model.graph.inputs[0].name or ""
    collecting: list[float] = []

    def calibrate() -> None:
        start = time.perf_counter()
        seen = collect(model, _batches(samples, size, name), threads=threads)
        collecting.append(time.perf_counter() - start)
        _estimate(seen)

    passes: dict[str, Callable[[], object]] = {"float": lambda: run_all(session, samples, batch=size)}
    if size > 1:
        passes["float, one by one"] = lambda: run_all(session, samples)
    processor: dict[str, list[float]] = {}
    runs = {
        name: _counted(run, processor.setdefault(name, [])) for name, run in (passes | {"calibrate": calibrate}).items()
    }
    times = interleaved(runs, rounds)
    fastest = min(passes, key=lambda name: statistics.median(times[name]))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    processor_medians = {name: statistics.median(taken[-rounds:]) for name, taken in processor.items()}
    collect_seconds = statistics.median(collecting[-rounds:])
    return {
        "network": network.name, "threads": threads, "images": count, "batch": size if fastest == "float" else 1,
        "ratio": medians["calibrate"] / medians[fastest],
        "paired_ratio": paired_ratio(times["calibrate"], times[fastest]),
        "processor_ratio": processor_medians["calibrate"] / processor_medians[fastest],
        "float_seconds": medians[fastest], "collect_seconds": collect_seconds,
        "estimate_seconds": medians["calibrate"] - collect_seconds,
        "seconds": times, "processor_seconds": processor,
    }  # fmt: skip


def _counted(run: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """Return a run that also notes the processor seconds of all its threads."""

    def counted() -> None:
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)

    return counted


def _estimate(seen: Statistics) -> None:
    """Run every estimator over every tensor."""
    for tensor in seen.tensors.values():
        if not tensor.is_empty:
            for estimate in ESTIMATORS.values():
                estimate(tensor, UINT8, symmetric=False)


def _batches(samples: Array, size: int, name: str) -> Iterator[Batch]:
    for start in range(0, len(samples), size):
        rows = samples[start : start + size]
        names = tuple(str(number) for number in range(start, start + len(rows)))
        yield Batch(feed={name: rows}, count=len(rows), names=names, labels=(None,) * len(rows))


def _time_table(times: list[dict[str, Any]]) -> str:
    head = [
        "network", "threads", "float's batch", "float s", "collect s", "estimators s", "calibrate / float", "paired",
        "processor seconds",
    ]  # fmt: skip
    rows = [
        [
            row["network"], row["threads"], row["batch"],
            *[f"{row[key]:.2f}" for key in ("float_seconds", "collect_seconds", "estimate_seconds")],
            _judged(row["ratio"], BUDGET_RATIO), f"{row['paired_ratio']:.2f}", f"{row['processor_ratio']:.2f}",
        ]
        for row in times
    ]  # fmt: skip
    return table(head, rows)


def _judged(value: float, budget: float, unit: str = "") -> str:
    """Write a value, bold where it is over its budget."""
    text = f"{value:.0f} {unit}" if unit else f"{value:.2f}"
    return text if value <= budget else f"**{text}** (over)"


# --- memory ---------------------------------------------------------------------------------------------------


def _peaks(network: Network) -> dict[str, Any]:
    """Measure each peak in a process of its own, which reads the samples from a file, batch by batch."""
    print(f"{network.name}, memory ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="narrowgauge-calibration-") as folder:
        file = Path(folder) / "samples.npy"
        np.save(file, images(network, max(MEMORY_SAMPLES)))
        row: dict[str, Any] = {"network": network.name}
        for kind in ("float", "calibrate"):
            for count in MEMORY_SAMPLES:
                arguments = ["--memory", kind, "--networks", network.name, "--file", str(file), "--samples", str(count)]
                row[f"{kind}_{count}"] = run_self("calibration.py", arguments)["peak_rss_bytes"]
    return row


def _memory(arguments: argparse.Namespace) -> dict[str, int]:
    path = zoo() / NETWORKS[arguments.networks[0]].path
    model = load(path).model
    size, name = batch_size(model), model.graph.inputs[0].name or ""
    batches = _batches_from_file(arguments.file, arguments.samples, size, name)
    if arguments.memory == "float":
        session = open_plain(path, threads=2)
        for batch in batches:
            session.run(None, dict(batch.feed))
    else:
        _estimate(collect(model, batches, threads=2))
    return {"peak_rss_bytes": peak_rss_bytes()}


def _batches_from_file(file: Path, count: int, size: int, name: str) -> Iterator[Batch]:
    """Read batches as they are needed; a mapped file would count as memory."""
    samples = np.load(file, mmap_mode="r")
    shape, offset = samples.shape[1:], samples.offset
    row_bytes = int(np.prod(shape)) * samples.itemsize
    del samples
    for start in range(0, count, size):
        number = min(size, count - start)
        rows = np.fromfile(
            file, dtype=np.float32, count=number * row_bytes // 4, offset=offset + start * row_bytes
        ).reshape(number, *shape)
        yield from _batches(rows, number, name)


def _peak_table(peaks: list[dict[str, Any]]) -> str:
    few, many = MEMORY_SAMPLES
    head = [
        "network", f"float, {few} images", f"float, {many}", f"calibrate, {few}", f"calibrate, {many}",
        f"above float, {many}", f"{many} / {few}",
    ]  # fmt: skip
    rows = []
    for row in peaks:
        megabytes = [row[f"{kind}_{count}"] / 2**20 for kind in ("float", "calibrate") for count in MEMORY_SAMPLES]
        above = megabytes[3] - megabytes[1]
        rows.append(
            [
                row["network"], *[f"{value:.0f} MB" for value in megabytes],
                _judged(above, BUDGET_BYTES / 2**20, "MB"), f"{megabytes[3] / megabytes[2]:.2f}",
            ]
        )  # fmt: skip
    return table(head, rows)


if __name__ == "__main__":
    main()

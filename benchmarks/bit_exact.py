"""Every integer inside the engines beside the one that we compute for them: networks of ours and of others."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _common import IMAGENET_NETWORKS, RESNET20, Network, report, samples, table, zoo

from narrowgauge import quantize
from narrowgauge.analysis.exactness import Exactness, check_exactness, to_json, to_summary
from narrowgauge.analysis.folder_exactness import folder_exactness
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.plan import load_plan
from narrowgauge.data import batches, input_specs, open_samples
from narrowgauge.errors import NarrowgaugeError
from narrowgauge.exporters.folder import PLAN, SIMULATED
from narrowgauge.importers.opening import load, read
from narrowgauge.lowering.integer.network import lower_to_integer
from narrowgauge.runtimes.engines import engine_named, engines_for
from narrowgauge.runtimes.inner import open_inner
from narrowgauge.targets.registry import load_target

TARGETS = {
    "onnxruntime": "onnxruntime", "litert": "tflite", "litert-reference": "tflite", "torch-fbgemm": "pytorch-fbgemm",
    "torch-qnnpack": "pytorch-qnnpack", "openvino": "openvino", "tvm": "tvm",
}  # fmt: skip
"""Engine -> the target that a network is quantized for."""

TINY = {
    "resnet8": "pretrainedResnet", "ds_cnn": "kws_ref_model_float32", "vww": "vww_96_float", "autoencoder": "ad01_fp32",
}  # fmt: skip
"""Networks of MLPerf Tiny -> their float files."""

OTHERS = (
    "mlperf_tiny/pretrainedResnet_quant", "mlperf_tiny/kws_ref_model", "mlperf_tiny/vww_96_int8",
    "mlperf_tiny/ad01_int8", "tflite_int8/mobilenet_v1_0.25_224_quant", "tflite_int8/mobilenet_v2_1.0_224_quant",
    "tflite_int8/mobilenet_v2_quantized_1x3x224x224", "tflite_int8/vww", "tflite_int8/conv_fc_mnist_srq_a8w8",
    "mlperf_tiny/str_ww_ref_model", "tflite_int8/trained_lstm_int8", "tflite_int8/keras_lstm_mnist_ptq",
)  # fmt: skip
"""TFLite files that others quantized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A network and what it is fed with, both as `quantize` takes them."""

    name: str
    path: Path
    feeds: Sequence[dict[str, Any]]


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=4, help="how many samples are compared")
    parser.add_argument("--networks", nargs="*", default=[], help="only these")
    parser.add_argument("--runtimes", nargs="*", default=list(TARGETS), help="only these engines")
    asked = parser.parse_args()
    rows, records = [], []
    for name, runtime, act in _runs(asked.samples, asked.runtimes, set(asked.networks)):
        start = time.perf_counter()
        try:
            found, reasons = act()
        except NarrowgaugeError as error:
            found, reasons = None, (str(error),)
        seconds = time.perf_counter() - start
        rows.append([name, runtime, *_cells(found), f"{seconds:.1f}"])
        records.append({
            "network": name, "runtime": runtime, "seconds": seconds, "reasons": list(reasons),
            "found": None if found is None else to_json(found),
        })  # fmt: skip
        print(" | ".join(map(str, rows[-1])), *reasons, sep="\n    ", flush=True)
    head = ["network", "engine", "integers", "differ", "by themselves", "at most by", "first that differs", "seconds"]
    report("bit_exact", f"Integers that differ, {asked.samples} samples", table(head, rows), {"runs": records})


def _runs(count: int, runtimes: Sequence[str], only: set[str]) -> Iterator[tuple[str, str, Any]]:
    for name in [*IMAGENET_NETWORKS, RESNET20.name, *TINY]:
        if only and name not in only:
            continue
        case = _tiny(name) if name in TINY else _network({**IMAGENET_NETWORKS, RESNET20.name: RESNET20}[name])
        for runtime in runtimes:
            yield name, runtime, lambda case=case, runtime=runtime: _ours(case, runtime, count)
    for name in OTHERS:
        for runtime in ("litert", "litert-reference"):
            if (not only or name in only) and runtime in runtimes:
                yield name, runtime, lambda name=name, runtime=runtime: _theirs(name, runtime, count)


def _network(network: Network) -> Case:
    path = zoo() / network.path
    name = input_specs(read(path))[0].name
    return Case(name=network.name, path=path, feeds=[{name: array} for array, _ in islice(samples(network), 32)])


def _tiny(name: str) -> Case:
    path = zoo() / "models" / "mlperf_tiny" / f"{TINY[name]}.tflite"
    return Case(name=name, path=path, feeds=list(_smooth(path, 32, unit=255.0 if name == "resnet8" else 1.0)))


def _smooth(path: Path, count: int, *, unit: float) -> Iterator[dict[str, Any]]:
    """Make inputs that change slowly along every axis, as images and spectra do, from 0 to `unit`."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        feed = {}
        for spec in input_specs(load(path).model):
            array = generator.standard_normal([1 if size is None else size for size in spec.shape])
            for axis in range(1, array.ndim):
                array = np.cumsum(array, axis=axis) if array.shape[axis] > 4 else array
            array = (array - array.min()) / max(np.ptp(array), 1e-9)
            feed[spec.name] = (unit * array).astype(np.float32)
        yield feed


def _ours(case: Case, runtime: str, count: int) -> tuple[Exactness | None, tuple[str, ...]]:
    """Quantize a network for an engine and look into it."""
    engine, target = engine_named(runtime), load_target(TARGETS[runtime])
    with tempfile.TemporaryDirectory(prefix="narrowgauge-exact-") as scratch:
        folder = Path(scratch) / "out"
        result = quantize(case.path, case.feeds, target=target, recipe="plain", samples=16, check_samples=4, out=folder)
        file = folder / result.summary["runnable"]["file"]
        if engine not in engines_for(file) and engine.runs_simulated:
            file = folder / SIMULATED
        chosen = open_samples(case.feeds[16:], input_specs(read(folder / "float.onnx"))).take(count)
        plan = load_plan(folder / PLAN)
        return folder_exactness(file, chosen, engine=engine, plan=plan, target=target, threads=1)


def _theirs(name: str, runtime: str, count: int) -> tuple[Exactness | None, tuple[str, ...]]:
    """Look into LiteRT as it runs a file that others quantized, beside our integer network of that file."""
    path = zoo() / "models" / f"{name}.tflite"
    simulated = read(path)
    integer = lower_to_integer(simulated, KERNELS[engine_named(runtime).arithmetic])
    network = load(path).original
    inputs = input_specs(network)
    feeds = [_within(feed, simulated) for feed in _smooth(path, count, unit=1.0)]
    given = batches(open_samples(feeds, inputs), 1, inputs)
    found = check_exactness(integer, open_inner(path, runtime=runtime, threads=1), given, network=network, threads=1)
    return found, ()


def _within(feed: dict[str, Any], simulated: Any) -> dict[str, Any]:
    """Stretch inputs from 0 to 1 over all the levels that they are rounded to."""
    found = dict(feed)
    for node in simulated.graph:
        name = str(node.inputs[0].name) if node.op_type == "QuantizeLinear" else ""
        if name in found:
            scale, zero_point = (node.inputs[number].const_value.numpy() for number in (1, 2))
            limits = np.iinfo(zero_point.dtype)
            levels = limits.min + found[name] * (limits.max - limits.min)
            found[name] = ((levels - float(zero_point)) * float(scale)).astype(np.float32)
    return found


def _cells(found: Exactness | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    summary, first = to_summary(found), found.first
    where = "" if first is None else f"{first.name} ({first.operator or 'input'})"
    own = 0 if found.own is None else found.own.different
    return [f"{summary['elements']:,}", f"{summary['different']:,}", f"{own:,}", str(summary["max"]), where]


if __name__ == "__main__":
    main()

"""Networks written as TFLite files and run, in LiteRT and in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.plan import Plan
from narrowgauge.data.inputs import InputSpec
from narrowgauge.exporters.formats import FORMATS, Export, Exported
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.tflite import read_network
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.runtimes.feeding import taking
from narrowgauge.runtimes.litert import open_program
from narrowgauge.targets.registry import load_target

Array = np.ndarray


def exported(model: ir.Model, plan: Plan | None = None, target: str = "tflite") -> Export:
    """A network on its way out; without a plan the float one."""
    plan = plan or Plan(target=target, encodings={})
    chosen = load_target(target)
    simulated = lower_to_qdq(model, plan, QdqStyle(bias_bits=chosen.bias_bits))
    return Export(network=model, plan=plan, target=chosen, simulated=simulated)


def written(model: ir.Model, folder: Path, plan: Plan | None = None, form: str = "tflite") -> Exported:
    """Write a network, read it back, compare."""
    return FORMATS[form].write(exported(model, plan), folder)


def operators(path: Path) -> Counter[str]:
    """Count a file's operators by name."""
    return Counter(operator.name for operator in read_network(path).main.operators)


def in_litert(path: Path, model: ir.Model, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Run a file with the feed of the network that it was made of."""
    specs = tuple(
        InputSpec(
            name=str(value.name), dtype=np.dtype(value.dtype.numpy()),
            shape=tuple(size if isinstance(size, int) else None for size in value.shape),
        )
        for value in model.graph.inputs if not value.is_initializer()
    )  # fmt: skip
    outputs = [str(value.name) for value in model.graph.outputs]
    return taking(open_program(path, threads=1), specs, outputs)(feed)


def in_onnxruntime(model: ir.Model, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Run a network in ONNX Runtime."""
    names = [str(value.name) for value in model.graph.outputs]
    session = open_session(model, threads=1, optimization="none", simulate=True)
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def feed_of(model: ir.Model, rows: int = 2, seed: int = 0) -> dict[str, Array]:
    """Random numbers for a network's inputs, `rows` where the batch is open."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else rows for size in value.shape]
        kind = np.dtype(value.dtype.numpy())
        drawn = rng.normal(size=shape) if kind.kind == "f" else rng.integers(0, 3, shape)
        found[str(value.name)] = drawn.astype(kind)
    return found

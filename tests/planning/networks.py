"""Small networks with random weights, planned and run, for the tests of planning, recovery, analysis and exporters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.ranges import estimator
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Mode, Plan
from narrowgauge.graph.engine import open_session
from narrowgauge.planning.choices import Choices, NodeChoice
from narrowgauge.planning.fill import fill
from narrowgauge.planning.place import Placement, place
from narrowgauge.targets.registry import load_target
from narrowgauge.targets.schema import Target
from tests.calibration.networks import batches_of
from tests.calibration.networks import network as parsed

Array = np.ndarray
Feed = Mapping[str, Array]


def network(inputs: str, outputs: str, body: str, **weights: Array) -> ir.Model:
    """Read a network of opset 21: its inputs and outputs as in `float[n, 3] x`, one node a line."""
    header = '<ir_version: 10, opset_import: ["": 21]>'
    return parsed(f"{header} test ({inputs}) => ({outputs}) {{ {body} }}", weights)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node_of(model: ir.Model, output: str) -> ir.Node:
    return next(node for node in model.graph if output in {value.name for value in node.outputs})


def name_of(model: ir.Model, output: str) -> str:
    """Name of the node that writes a value."""
    return str(node_of(model, output).name)


def weights_of(model: ir.Model, name: str) -> Array:
    return model.graph.initializers[name].const_value.numpy()


def choices(
    model: ir.Model, *, mode: Mode = "static", ranges: str = "max", nodes: Mapping[str, NodeChoice] | None = None,
    **everywhere: Any,
) -> Choices:  # fmt: skip
    """Choices by the names of the values that nodes write."""
    block_size = everywhere.pop("block_size", 0)
    return Choices(
        mode=mode,
        everywhere=NodeChoice(**everywhere),
        nodes={name_of(model, output): choice for output, choice in (nodes or {}).items()},
        estimator=estimator(ranges),
        block_size=block_size,
    )


def placed(model: ir.Model, target: str | Target = "onnxruntime", **asked: Any) -> Placement:
    return place(model, target if isinstance(target, Target) else load_target(target), choices(model, **asked))


def seen(model: ir.Model, feed: Feed | Array) -> Statistics:
    data = feed if isinstance(feed, Mapping) else {str(model.graph.inputs[0].name): feed}
    return collect(model, batches_of(model, dict(data)))


def planned(model: ir.Model, statistics: Statistics | None, target: str | Target = "onnxruntime", **asked: Any) -> Plan:
    chosen = target if isinstance(target, Target) else load_target(target)
    wanted = choices(model, **asked)
    return fill(model, place(model, chosen, wanted), statistics, chosen, wanted)


def run(model: ir.Model, feed: Feed | Array, *, simulate: bool = True) -> Array:
    """First output of the network, as ONNX Runtime computes it; Q/DQ pairs as they are written."""
    data = feed if isinstance(feed, Mapping) else {str(model.graph.inputs[0].name): feed}
    session = open_session(model, threads=1, optimization="basic", simulate=simulate)
    return session.run(None, dict(data))[0]


def sqnr(reference: Array, other: Array) -> float:
    """Signal to quantization noise ratio, dB."""
    noise = np.square(reference.astype(np.float64) - other).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-30)))


def operators(model: ir.Model) -> Sequence[str]:
    return [node.op_type for node in model.graph]

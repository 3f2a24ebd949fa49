"""The calibration network: the float network with reductions of every observed value as its outputs.

Extremes and an even subset of each large value of a convolutional network are computed inside ONNX Runtime, in its
blocked layout, so that these values need not leave the engine; all others do and are reduced here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from narrowgauge.calibration.observe import Observation
from narrowgauge.graph.edits import new_node

_PREFIX = "narrowgauge_calibration"

# Points of a plane along each side, at least: fewer would not tell its middle from its edge.
_GRID = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """Names of a value's reductions among the calibration network's outputs; None where it is not taken.

    Attributes:
        observation: the value.
        whole: the value itself.
        minimum: smallest value per sample and channel.
        maximum: largest value per sample and channel.
        subset: evenly spread elements, of the value's rank.
        skipped: rows and columns at the beginning of the subset that are left out of sums and counts.
    """

    observation: Observation
    whole: str | None = None
    minimum: str | None = None
    maximum: str | None = None
    subset: str | None = None
    skipped: tuple[int, int] = (0, 0)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names that are taken."""
        names = (self.whole, self.minimum, self.maximum, self.subset)
        return tuple(name for name in names if name is not None)


def calibration_network(
    model: ir.Model, observed: Sequence[Observation], *, sampled: int
) -> tuple[ir.Model, tuple[Reduced, ...]]:
    """Add the reductions of some values to a copy of a network and make them its only outputs.

    Args:
        model: the float network; it is not changed, the weights are shared.
        observed: which values.
        sampled: about how many elements of one sample's value the subset has.

    Returns:
        The calibration network and, value by value, what its outputs are; of an input that is looked at whole, the
        input's own name.
    """
    copy = model.clone()
    graph = copy.graph
    values = {value.name: value for value in graph.inputs}
    values |= {value.name: value for node in graph for value in node.outputs}
    builder = _Builder(graph)
    reduced = tuple(_REDUCTIONS[entry.reduction](builder, values[entry.name], entry, sampled) for entry in observed)
    if builder.outputs:  # else only inputs are looked at: the network runs as it is
        graph.outputs.clear()
        graph.outputs.extend(builder.outputs)
    return copy, reduced


class _Builder:
    """Adds nodes behind a graph; each gets a name of its own."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.outputs: list[ir.Value] = []
        self.number = 0

    def constant(self, array: np.ndarray) -> ir.Value:
        self.number += 1
        name = f"{_PREFIX}_{self.number}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape(array.shape)
        self.graph.register_initializer(value)
        return value

    def node(self, operator: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        self.number += 1
        node = new_node(operator, inputs, attributes, name=f"{_PREFIX}_{self.number}")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        # Right behind what it reads: the engine runs nodes in this order, while the value is still in the cache.
        producer = next((value.producer() for value in inputs if value.producer() is not None), None)
        if producer is not None:
            producer.append(node)
        else:
            self.graph[0].prepend(node)
        return node.outputs[0]

    def output(self, value: ir.Value) -> str:
        # An input need not pass through the engine: whoever feeds it has it.
        if not value.is_graph_input():
            self.outputs.append(value)
        return str(value.name)


def _whole(builder: _Builder, value: ir.Value, observation: Observation, sampled: int) -> Reduced:
    return Reduced(observation=observation, whole=builder.output(value))


def _planes(builder: _Builder, value: ir.Value, observation: Observation, sampled: int) -> Reduced:
    """Pooling over the plane per channel; a grid of its points by a pooling window of one point."""
    _, channels, height, width = observation.shape
    assert channels is not None
    assert height is not None
    assert width is not None
    maximum = builder.node("GlobalMaxPool", [value])
    minimum = None
    if not math.isfinite(observation.lower_bound):
        axes = builder.constant(np.array([2, 3], dtype=np.int64))
        minimum = builder.output(builder.node("ReduceMin", [value, axes], keepdims=0))
    side = max(_GRID, math.ceil(math.sqrt(sampled / channels)))
    strides = (max(1, height // side), max(1, width // side))
    subset = builder.node("MaxPool", [value], kernel_shape=[1, 1], strides=list(strides))
    return Reduced(
        observation=observation,
        minimum=minimum,
        maximum=builder.output(maximum),
        subset=builder.output(subset),
        # A coarse grid begins at the plane's edge and would count it several times too often.
        skipped=(int(strides[0] > 2), int(strides[1] > 2)),
    )


_REDUCTIONS = {"whole": _whole, "planes": _planes}

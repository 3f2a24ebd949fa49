"""Which nodes become one operator, and which of these compute in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import (
    activation_inputs,
    bias_addition,
    clip_bounds,
    clips_only,
    float_outputs,
    is_constant,
    weight_inputs,
)
from narrowgauge.lowering.qdq import clip_in_levels

FUSED = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
"""Bounds of an activation function -> its name, of those that kernels apply themselves (schema.fbs)."""

_FUSING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "AveragePool", "MaxPool")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A node with those behind it that its operator does as well.

    Attributes:
        node: what is computed.
        addition: the Add of a constant for each column behind a matrix product.
        clip: the Relu or Clip behind it.
        rounded: whether the plan lets it read and write levels where it gives values encodings.
        integer: whether it runs on levels: a kernel of TFLite takes these types. Where none does, it runs on real
            numbers between DEQUANTIZE and QUANTIZE, as in the simulated form.
        activation: TFLite's name of the activation function that stands for `clip`, "NONE" for none.
        bounds: levels that the output is cut to behind the operator, where no activation function does it.
    """

    node: ir.Node
    addition: ir.Node | None = None
    clip: ir.Node | None = None
    rounded: bool = False
    integer: bool = False
    activation: str = "NONE"
    bounds: tuple[int, int] | None = None

    @property
    def result(self) -> ir.Value:
        """The value that the last of the nodes writes."""
        return (self.clip or self.addition or self.node).outputs[0]


Kernels = Callable[[str], tuple[str, ...]]
"""From an ONNX operator to the types of activations (TFLite's names) that its integer kernels take."""


def steps_of(graph: ir.Graph, plan: Plan, kernels: Kernels) -> Iterator[Step]:
    """Group the nodes of a network, in its order."""
    planner = _Planner(plan=plan, float_nodes=frozenset(node.name for node in plan.float_nodes), kernels=kernels)
    done: set[str] = set()
    for node in graph:
        if str(node.name) in done:
            continue
        step = planner.step(node)
        done.update(str(one.name) for one in (step.addition, step.clip) if one is not None)
        yield step


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planner:
    plan: Plan
    float_nodes: frozenset[str]
    kernels: Kernels

    def step(self, node: ir.Node) -> Step:
        """Take in what follows, as far as it has the same kind of numbers and nothing between has an encoding."""
        step = Step(node=node)
        addition = bias_addition(node)
        if addition is not None and self.joins(node, addition) and self.takes_bias(node):
            step = replace(step, addition=addition)
        clip = clips_only(step.result)
        if clip is not None and is_operator(node, *_FUSING) and self.joins(node, clip):
            step = self.with_clip(step, clip) or step
        rounded = self.plan.mode == "static" and str(node.name) not in self.float_nodes
        integer = self.has_levels(node, step.result) and self.has_kernel(node, step.result)
        return replace(step, rounded=rounded, integer=integer)

    def joins(self, node: ir.Node, follower: ir.Node) -> bool:
        before = follower.inputs[0] if not is_operator(follower, "Add") else node.outputs[0]
        rounded = before is not None and isinstance(self.plan.encodings.get(str(before.name)), Encoding)
        return not rounded and (str(node.name) in self.float_nodes) == (str(follower.name) in self.float_nodes)

    def takes_bias(self, node: ir.Node) -> bool:
        """Whether a product has weights of two axes, so that it is a FULLY_CONNECTED."""
        weights = node.inputs[1]
        return is_constant(weights) and weights is not None and weights.shape is not None and weights.shape.rank() == 2

    def with_clip(self, step: Step, clip: ir.Node) -> Step | None:
        activation = FUSED.get(clip_bounds(clip)) if _fuses(step.node) else None
        if not self.has_levels(step.node, clip.outputs[0]):
            return replace(step, clip=clip, activation=activation) if activation is not None else None
        encoding = self.plan.encodings[str(clip.outputs[0].name)]
        assert isinstance(encoding, Encoding)
        bounds = clip_in_levels(clip, encoding)
        if bounds is None:
            return None
        if activation is not None:
            return replace(step, clip=clip, activation=activation)
        saturated = bounds == (encoding.type.minimum, encoding.type.maximum)
        return replace(step, clip=clip, bounds=None if saturated else bounds)

    def has_levels(self, node: ir.Node, result: ir.Value) -> bool:
        """Whether the plan gives a node nothing but levels to compute with, from its inputs to its result."""
        if self.plan.mode != "static" or str(node.name) in self.float_nodes:
            return False
        weights = [value for number in weight_inputs(node) if (value := node.inputs[number]) is not None]
        values = [*self.activations(node, result), *weights]
        return bool(values) and all(isinstance(self.plan.encodings.get(str(one.name)), Encoding) for one in values)

    def has_kernel(self, node: ir.Node, result: ir.Value) -> bool:
        """Whether all activations are of one type, which a kernel takes."""
        encodings = [self.plan.encodings[str(one.name)] for one in self.activations(node, result)]
        types = {levels_type(one.type) for one in encodings if isinstance(one, Encoding)}
        return len(types) == 1 and types <= set(self.kernels(node.op_type))

    def activations(self, node: ir.Node, result: ir.Value) -> list[ir.Value]:
        written = [value for value in float_outputs(node)[1:] if value.uses() or value.is_graph_output()]
        return [*(value for _, value in activation_inputs(node)), result, *written]


def levels_type(kind: IntegerType) -> str:
    """Return TFLite's name of a type of levels; that of one it has not is its own name."""
    return f"{'' if kind.signed else 'U'}INT{kind.bits}" if not kind.narrow else kind.name


def _fuses(node: ir.Node) -> bool:
    """Whether the operator that a node becomes applies an activation function: BATCH_MATMUL does not."""
    weights = constant_array(node.inputs[1]) if is_operator(node, "MatMul", "Gemm") else None
    return not is_operator(node, "MatMul", "Gemm") or (weights is not None and weights.ndim == 2)

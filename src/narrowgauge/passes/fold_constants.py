"""Compute, once, what does not depend on the network's input."""

import math

import numpy as np
import onnx_ir as ir

from narrowgauge.errors import RuntimeFailure
from narrowgauge.graph.constants import constant_tensor, replace_by_constant
from narrowgauge.graph.edits import is_operator, remove_unused
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import infer_shapes, static_shape

GROWTH_LIMIT_BYTES = 1 << 20
"""A folded tensor may be this much larger than what it was made from: a network of a megabyte that expands a number to
a gigabyte must not become one of a gigabyte."""

_KEPT_OPERATORS = frozenset(
    {"Bernoulli", "Constant", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Multinomial", "Optional"}
    | {"QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan"}
)
"""Random, with a body, or (the quantizing ones) meant to stay in the graph beside their integer weights."""

_ROUNDS = 3
"""Folding a shape computation lets shapes behind it be inferred, and those let more be folded."""


def fold_constants(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace nodes of the main graph that read only constants by initializers under their outputs' names, in place.

    ONNX Runtime computes them, so the numbers are those the network would have had.

    Refuses: what would grow by more than `GROWTH_LIMIT_BYTES`, and what ONNX Runtime cannot run.
    """
    refusals: tuple[Refusal, ...] = ()
    for _ in range(_ROUNDS):
        nodes, refusals = _foldable(model.graph)
        if not nodes:
            break
        try:
            _fold(model, nodes)
        except RuntimeFailure as error:
            return (*refusals, *(_refusal(node, f"its constant inputs cannot be folded: {error}") for node in nodes))
        remove_unused(model)
        infer_shapes(model)
    return refusals


def _refusal(node: ir.Node, reason: str) -> Refusal:
    return Refusal(node=node.name or "", operator=node.op_type, reason=reason)


def _foldable(graph: ir.Graph) -> tuple[list[ir.Node], tuple[Refusal, ...]]:
    """Return, in order, the nodes that read only constants or each other, and the refusals on the way."""
    folded: set[ir.Value] = set()
    nodes: list[ir.Node] = []
    refusals: list[Refusal] = []
    for node in graph:
        if node.op_type in _KEPT_OPERATORS or not is_operator(node, node.op_type):
            continue
        inputs = [value for value in node.inputs if value is not None]
        if any(value not in folded and constant_tensor(value) is None for value in inputs):
            continue
        if any(output.is_graph_output() for output in node.outputs):
            continue
        sizes = [_bytes(output) for output in node.outputs if output.uses()]
        if any(size is None for size in sizes):
            continue
        allowed = sum(_bytes(value) or 0 for value in inputs) + GROWTH_LIMIT_BYTES
        if sum(size or 0 for size in sizes) > allowed:
            refusals.append(_refusal(node, f"its constant result would have {sum(filter(None, sizes))} bytes"))
            continue
        nodes.append(node)
        folded.update(node.outputs)
    return nodes, tuple(refusals)


def _bytes(value: ir.Value) -> int | None:
    tensor = constant_tensor(value)
    if tensor is not None:
        return tensor.nbytes
    shape = static_shape(value)
    if shape is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return None
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


def _fold(model: ir.Model, nodes: list[ir.Node]) -> None:
    inside = set(nodes)
    wanted = [
        output for node in nodes for output in node.outputs if any(use.node not in inside for use in output.uses())
    ]
    arrays = _computed(model, nodes, wanted)
    for value, array in zip(wanted, arrays, strict=True):
        replace_by_constant(value, array)


def _computed(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> list[np.ndarray]:
    """Run the nodes as a network without inputs, whose outputs are what others want of them."""
    made: dict[ir.Value, ir.Value] = {}
    initializers: list[ir.Value] = []
    copies = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in made:
                tensor = constant_tensor(value)
                made[value] = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor)
                initializers.append(made[value])
        inputs = [None if value is None else made[value] for value in node.inputs]
        count = len(node.outputs)
        copy = ir.Node("", node.op_type, inputs, node.attributes.values(), num_outputs=count, name=node.name)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            made[old] = new
        copies.append(copy)
    graph = ir.Graph(
        (),
        [made[value] for value in wanted],
        nodes=copies,
        initializers=initializers,
        opset_imports={"": model.opset_imports[""]},
        name="constants",
    )
    session = open_session(ir.Model(graph, ir_version=model.ir_version), threads=1, optimization="none")
    return [np.asarray(array) for array in session.run(None, {})]

"""Where a plan rounds: the tensors whose numbers change when it is applied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.analysis.records import Kind
from narrowgauge.core.encoding import Encoding, LogEncoding, NormalizedEncoding, same_encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.plan import Plan
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.roles import LAYOUT_OPERATORS, activation_inputs, is_constant, weight_inputs

RoundedEncoding = Encoding | LogEncoding | NormalizedEncoding
"""What is known of a value's levels before it is there."""

# Types of more bits lose less than float32 does, and their levels are too many to count.
_MOST_BITS = 16

# Each output is one of the inputs, or 0, or a bound: what arrives in levels of an encoding leaves in levels of it.
_SELECTING_OPERATORS = LAYOUT_OPERATORS | {
    "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min", "Relu", "Clip", "Concat", "Split", "Slice",
    "Gather", "GatherElements", "GatherND", "Pad", "Expand", "Tile",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """A tensor that is rounded.

    Attributes:
        value: the tensor.
        kind: whether its numbers come with each sample or are constants (weights, and a constant operand).
        node: the node that writes the activation (None for an input of the network) or first reads the constant in
            integers.
        depth: that node's place in the network's order, from 0; 0 for an input.
        encoding: what it is rounded to.
    """

    value: ir.Value
    kind: Kind
    node: ir.Node | None
    depth: int
    encoding: RoundedEncoding

    @property
    def name(self) -> str:
        """The value's name."""
        return str(self.value.name)


def roundings(model: ir.Model, plan: Plan) -> tuple[Rounding, ...]:
    """List the tensors that a plan rounds, in the network's order, a layer's weights before what it writes.

    As `lowering.qdq.lower_to_qdq` writes a plan: what an integer node writes is rounded if anything reads it, all else
    if an integer node does. Left out is what is only handed on: levels of an encoding that another value with the same
    encoding holds already, moved or selected (Reshape, MaxPool, Concat, ...), for rounding them again changes nothing.
    So are encodings whose range is taken at run time, and types of more than 16 bits.

    Args:
        model: the float network that the plan describes.
        plan: its encodings.
    """
    places = {node: place for place, node in enumerate(model.graph)}
    floats = {entry.name for entry in plan.float_nodes}
    integer = {node for node in places if str(node.name) not in floats}
    found = [*_activations(model.graph, plan, places, integer), *_constants(model.graph, plan, places, integer)]
    return tuple(sorted(found, key=lambda one: (one.node is not None, one.depth, one.kind == "activation")))


def _encoding(value: ir.Value | None, plan: Plan) -> RoundedEncoding | None:
    encoding = plan.encodings.get(str(value.name)) if value is not None else None
    return encoding if isinstance(encoding, RoundedEncoding) and encoding.type.bits <= _MOST_BITS else None


def _activations(
    graph: ir.Graph, plan: Plan, places: dict[ir.Node, int], integer: set[ir.Node]
) -> Iterator[Rounding]:  # fmt: skip
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    for value in [*inputs, *(value for node in graph for value in node.outputs)]:
        encoding, node = _encoding(value, plan), value.producer()
        if encoding is None or not _takes_effect(value, integer) or _is_handed_on(value, encoding, plan, integer):
            continue
        depth = places[node] if node is not None else 0
        yield Rounding(value=value, kind="activation", node=node, depth=depth, encoding=encoding)


def _constants(graph: ir.Graph, plan: Plan, places: dict[ir.Node, int], integer: set[ir.Node]) -> Iterator[Rounding]:
    for value in graph.initializers.values():
        encoding = _encoding(value, plan)
        readers = sorted((use.node for use in value.uses() if use.node in integer), key=places.__getitem__)
        if isinstance(encoding, Encoding) and readers and is_constant(value):
            node = readers[0]
            yield Rounding(value=value, kind="weights", node=node, depth=places[node], encoding=encoding)


def _takes_effect(value: ir.Value, integer: set[ir.Node]) -> bool:
    if value.producer() in integer:
        return bool(value.uses()) or value.is_graph_output()
    return any(use.node in integer for use in value.uses())


def _is_handed_on(value: ir.Value, encoding: RoundedEncoding, plan: Plan, integer: set[ir.Node]) -> bool:
    """Whether a value's writer only moves or selects levels that it reads."""
    node = value.producer()
    if node is None or not is_operator(node, *_SELECTING_OPERATORS):
        return False
    if not isinstance(encoding, Encoding) or not isinstance(encoding.granularity, PerTensor):
        return False
    read: list[ir.Value | None] = [source for _, source in activation_inputs(node)]
    read = read or [node.inputs[number] for number in weight_inputs(node)]  # the table that a Gather takes rows from
    arrives_rounded = node in integer or all(source is not None and source.producer() in integer for source in read)
    encodings = [_encoding(source, plan) for source in read]
    return bool(read) and arrives_rounded and all(one is not None and same_encoding(one, encoding) for one in encodings)

"""The ONNX graph that grows while a network is translated, with the type and shape of every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import free_name

OPSET = 21

Array = npt.NDArray[Any]
Operand = ir.Value | Array | None

_SMALL_ELEMENTS = 64
"""Constants up to this size are shown to shape inference: axes, target shapes, pads."""


def _empty_graph() -> ir.Graph:
    return ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="mxnet")


@dataclass(kw_only=True, slots=True)
class Builder:
    """Adds nodes and constants to a graph.

    Attributes:
        graph: what is there so far.
        taken: the names of its values and nodes.
        final: the names of values that were claimed.
        remarks: what a person should know, and the nodes that it is about.
    """

    graph: ir.Graph = field(default_factory=_empty_graph)
    taken: set[str] = field(default_factory=set)
    final: set[str] = field(default_factory=set)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        """Return a name that nothing else has, and keep it taken."""
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def input(self, name: str, kind: ir.DataType, shape: Sequence[int | None]) -> ir.Value:
        """Add an input of the network; None is an axis of any length."""
        value = ir.Value(name=self.name(name), type=ir.TensorType(kind), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def constant(self, name: str, array: Array) -> ir.Value:
        """Add an initializer."""
        unique = self.name(name)
        tensor = ir.tensor(array, name=unique)
        value = ir.Value(name=unique, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        return value

    def add(self, operator: str, inputs: Sequence[Operand], name: str, **attributes: Any) -> ir.Value:
        """Add a node of one output; arrays among its inputs become initializers.

        Raises:
            ModelError: the inputs do not fit the operator.
        """
        return self.add_many(operator, inputs, name, 1, **attributes)[0]

    def add_many(
        self, operator: str, inputs: Sequence[Operand], name: str, count: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node of several outputs.

        Raises:
            ModelError: the inputs do not fit the operator.
            ValueError: an attribute is an empty list, which no operator here has.
        """
        empty = [key for key, value in attributes.items() if isinstance(value, list | tuple) and not value]
        if empty:
            raise ValueError(f"{empty[0]} is empty")
        read = [
            self.constant(f"{name}_input{number}", one) if isinstance(one, np.ndarray) else one
            for number, one in enumerate(inputs)
        ]
        node = ir.node(operator, inputs=read, attributes=attributes, num_outputs=count, name=self.name(name))
        for number, output in enumerate(node.outputs):
            output.name = self.name(f"{name}_output" if count == 1 else f"{name}_output{number}")
        _infer(node)
        self.graph.append(node)
        return node.outputs

    def remark(self, text: str, node: str) -> None:
        """Keep a sentence about a node."""
        self.remarks.setdefault(text, []).append(node)

    def notes(self) -> list[str]:
        """Return the remarks, one sentence each, with the first of their nodes."""
        return [f"{text} ({len(nodes)} nodes, the first is {nodes[0]!r})" for text, nodes in self.remarks.items()]

    def claim(self, value: ir.Value, node_name: str, value_name: str) -> None:
        """Give a value and the node that makes it their final names, where they have none yet and it is free."""
        node = value.producer()
        if node is None or str(value.name) in self.final:
            return
        if value_name not in self.taken:
            self.taken.add(value_name)
            value.name = value_name
        if node_name not in self.taken:
            self.taken.add(node_name)
            node.name = node_name
        self.final.add(str(value.name))

    def return_rounded(self, value: ir.Value, wanted: str) -> None:
        """Give an output that was rounded the name that the value before the rounding has."""
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return
        for other in self.graph:
            for output in other.outputs:
                if output.name == wanted and output is not value:
                    output.name = self.name(f"{wanted}_before_rounding")
        value.name = wanted
        self.taken.add(wanted)


def sizes_of(value: ir.Value) -> tuple[int | None, ...] | None:
    """Return the length of each axis, None where it is not known; None where not even the rank is."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _infer(node: ir.Node) -> None:
    """Infer the outputs' types and shapes from the inputs' by ONNX's own rules."""
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or value.dtype is None:
            continue
        sizes = sizes_of(value)
        types[str(value.name)] = onnx.helper.make_tensor_type_proto(int(value.dtype), sizes)
        if value.const_value is not None and value.const_value.size <= _SMALL_ELEMENTS:
            data[str(value.name)] = ir.serde.serialize_tensor(value.const_value)
    schema = onnx.defs.get_schema(node.op_type, OPSET, "")
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data, opset_imports=opsets
        )
    except Exception as error:
        shapes = ", ".join(f"{value.name!r} {sizes_of(value)}" for value in node.inputs if value is not None)
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{node.name!r}: its inputs ({shapes}) do not fit what the operator {node.op_type} expects ({reason}); "
            "the parameters are not this network's, or the shape given for an input is wrong"
        ) from error
    for output in node.outputs:
        proto = found.get(str(output.name))
        if proto is None or not proto.HasField("tensor_type"):
            continue
        output.type = ir.TensorType(ir.DataType(proto.tensor_type.elem_type))
        if proto.tensor_type.HasField("shape"):
            axes = proto.tensor_type.shape.dim
            output.shape = ir.Shape([axis.dim_value if axis.HasField("dim_value") else None for axis in axes])

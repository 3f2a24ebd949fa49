"""What rewrites of quantized networks write: names that nothing else has, constants, Q and DQ nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import all_nodes, free_name, graph_of, is_operator, new_node, take_place


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Scale and zero point of levels, as a QuantizeLinear or DequantizeLinear reads them.

    Attributes:
        scale: float, one number or one per index of `axis` or block.
        zero_point: of the levels' type; None means 0.
        axis: along which there are several scales; of no meaning where there is one.
        block_size: elements along `axis` that share a scale, 0 where there are no blocks.
    """

    scale: ir.Value
    zero_point: ir.Value | None = None
    axis: int = 1
    block_size: int = 0

    def same_as(self, other: Parameters) -> bool:
        """Whether both surely give the same levels the same meaning."""
        return (
            same_numbers(self.scale, other.scale)
            and (self.zero_point is None) == (other.zero_point is None)
            and (self.zero_point is None or same_numbers(self.zero_point, _some(other.zero_point)))
            and (self.axis, self.block_size) == (other.axis, other.block_size)
        )


def parameters_of(node: ir.Node) -> Parameters:
    """Return what a QuantizeLinear or DequantizeLinear of the graph reads beside its first input.

    Raises:
        ModelError: it has no scale.
    """
    if len(node.inputs) < 2 or node.inputs[1] is None:
        raise ModelError(f"node {node.name!r} ({node.op_type}) has no scale; the network is damaged, export it again")
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    return Parameters(
        scale=_some(node.inputs[1]),
        zero_point=zero_point,
        axis=node.attributes.get_int("axis", 1),
        block_size=node.attributes.get_int("block_size", 0),
    )


def same_numbers(first: ir.Value, second: ir.Value) -> bool:
    """Whether two values are one, or constants of one type, shape and content."""
    if first is second:
        return True
    one, other = constant_array(first), constant_array(second)
    return one is not None and other is not None and one.dtype == other.dtype and np.array_equal(one, other)


@dataclass(slots=True)
class Rewriter:
    """Adds nodes and constants to a network that is being rewritten.

    Attributes:
        model: the network.
        taken: every name in it, of values and nodes.
        notes: what a rewrite could not keep exactly.
    """

    model: ir.Model
    taken: set[str] = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.taken = {str(node.name) for node in all_nodes(self.model)}
        self.taken |= {str(value.name) for node in all_nodes(self.model) for value in node.outputs}
        for graph in self.model.graphs():
            self.taken |= {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}

    def note(self, text: str) -> None:
        """Keep a sentence for the person, once."""
        if text not in self.notes:
            self.notes.append(text)

    def name(self, wanted: str) -> str:
        """Return a name that nothing else has, and keep it taken."""
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def constant(self, graph: ir.Graph, wanted: str, array: npt.NDArray[Any]) -> ir.Value:
        """Add an initializer."""
        name = self.name(wanted)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        graph.register_initializer(value)
        return value

    def add(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        wanted: str,
    ) -> ir.Value:
        """Add a float operator of one output before a node, and return the output, whose name is `wanted`."""
        name = self.name(wanted)
        node = new_node(operator, inputs, attributes, name=name)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        before.prepend(node)
        return node.outputs[0]

    def dequantize(self, before: ir.Node, levels: ir.Value, parameters: Parameters) -> ir.Value:
        """Add a DequantizeLinear before a node and return the real numbers."""
        wanted = f"{real_name(levels)}_dequantized"
        result = self.add(before, "DequantizeLinear", *_linear(levels, parameters), wanted=wanted)
        result.shape = levels.shape
        return result

    def quantize(self, before: ir.Node, real: ir.Value, parameters: Parameters, kind: ir.DataType) -> ir.Value:
        """Add a QuantizeLinear before a node and return the levels, which are of type `kind`."""
        if parameters.zero_point is None:
            zeros = np.zeros(_shape_of(parameters.scale), dtype=kind.numpy())
            zero_point = self.constant(graph_of(before), f"{real.name}_zero_point", zeros)
            parameters = Parameters(
                scale=parameters.scale, zero_point=zero_point, axis=parameters.axis, block_size=parameters.block_size
            )
        levels = self.add(before, "QuantizeLinear", *_linear(real, parameters), wanted=f"{real.name}_levels")
        levels.type = ir.TensorType(kind)
        levels.shape = real.shape
        return levels

    def real_name_for(self, levels: ir.Value) -> str:
        """Return the name for the real numbers that levels stand for; what dequantizes those levels gives it up."""
        wanted = real_name(levels)
        for use in levels.uses():
            result = use.node.outputs[0] if is_operator(use.node, "DequantizeLinear") else None
            if result is not None and result.name == wanted and not result.is_graph_output():
                result.name = self.name(f"{wanted}_dequantized")
                self.taken.discard(wanted)
        return wanted

    def replace_levels(self, node: ir.Node, old: ir.Value, real: ir.Value, parameters: Parameters) -> None:
        """Let a QuantizeLinear of real numbers write the levels that a node wrote."""
        kind = parameters.zero_point.dtype if parameters.zero_point is not None else old.dtype
        levels = self.quantize(node, real, parameters, kind or ir.DataType.UINT8)
        kept, shape = levels.type, levels.shape
        take_place(levels, old)
        levels.type, levels.shape = kept, shape if levels.shape is None else levels.shape


def real_name(levels: ir.Value) -> str:
    """Name of the real numbers behind levels: tools name levels after them, with `_quantized` behind."""
    name = str(levels.name)
    for suffix in ("_quantized", "_QuantizeLinear_Output"):
        if name.endswith(suffix) and len(name) > len(suffix):
            return name.removesuffix(suffix)
    return f"{name}_real"


def _linear(
    value: ir.Value, parameters: Parameters
) -> tuple[list[ir.Value | None], dict[str, int]]:  # inputs and attributes
    inputs = [value, parameters.scale, parameters.zero_point]
    shape = _shape_of(parameters.scale)
    attributes = {"axis": parameters.axis} if shape != () else {}
    if parameters.block_size:
        attributes["block_size"] = parameters.block_size
    return inputs if parameters.zero_point is not None else inputs[:2], attributes


def _shape_of(value: ir.Value) -> tuple[int, ...]:
    array = constant_array(value)
    return () if array is None else array.shape


def _some(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value

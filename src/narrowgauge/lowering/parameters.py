"""Scales, zero points and levels as initializers of a network that is being lowered."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, normalized_axis
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.plan import Plan
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import free_name, new_node


@dataclass(slots=True)
class Parameters:
    """Adds initializers and nodes to a graph; a name that is taken gets a number, and equal constants are one.

    Attributes:
        graph: the graph that is being lowered.
        taken: every name in it, of values and nodes.
        made: wanted name -> the initializers added for it.
    """

    graph: ir.Graph
    taken: set[str] = field(init=False)
    made: dict[str, list[ir.Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = [*self.graph.inputs, *self.graph.initializers.values()]
        values += [value for node in self.graph.all_nodes() for value in node.outputs]
        self.taken = {str(value.name) for value in values} | {str(node.name) for node in self.graph.all_nodes()}

    def name(self, wanted: str) -> str:
        """Return a name that nothing else has, and keep it taken."""
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def constant(self, wanted: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """Return an initializer with these numbers: one that was added under this name before, or a new one."""
        for known in self.made.setdefault(wanted, []):
            numbers = constant_array(known)
            if numbers is not None and numbers.dtype == array.dtype and np.array_equal(numbers, array):
                return known
        name = self.name(wanted)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        self.made[wanted].append(value)
        return value

    def scale(self, name: str, encoding: Encoding) -> ir.Value:
        """Return the scale of the value of that name, float32."""
        return self.constant(f"{name}_scale", encoding.scale)

    def zero_point(self, name: str, encoding: Encoding) -> ir.Value:
        """Return its zero point, in the type that holds its levels."""
        return self.constant(f"{name}_zero_point", encoding.zero_point.astype(array_type(encoding.type)))

    def levels(self, name: str, numbers: npt.NDArray[np.generic], encoding: Encoding) -> ir.Value:
        """Return real numbers as an initializer of levels."""
        return self.constant(f"{name}_quantized", quantize(numbers, encoding).astype(array_type(encoding.type)))

    def linear(self, operator: str, value: ir.Value, encoding: Encoding, name: str, node_name: str) -> ir.Node:
        """Build a QuantizeLinear or DequantizeLinear of the value of that name."""
        attributes: dict[str, int] = {}
        if isinstance(encoding.granularity, PerAxis | PerBlock):
            attributes["axis"] = encoding.granularity.axis
        if isinstance(encoding.granularity, PerBlock):
            attributes["block_size"] = encoding.granularity.size
        inputs = [value, self.scale(name, encoding), self.zero_point(name, encoding)]
        return new_node(operator, inputs, attributes, name=self.name(node_name))

    def dequantized(self, value: ir.Value, encoding: Encoding, before: ir.Node, *, widen: bool = False) -> ir.Value:
        """Turn a float initializer into levels and a DequantizeLinear before a node, and return the latter's output.

        Each reader gets its own DequantizeLinear, as engines expect it; the levels are one initializer.

        Args:
            value: the initializer.
            encoding: of its numbers.
            before: the node that reads it.
            widen: dequantize levels of 4 bits as 8: a Cast between, which ONNX Runtime (1.31) folds when it loads the
                network, so that its kernels for 8 bits run it; it has none for layers of 4.
        """
        name, array = str(value.name), constant_array(value)
        assert array is not None
        levels = self.levels(name, array.astype(np.float32, copy=False), encoding)
        if widen and encoding.type.bits == 4 and not isinstance(encoding.granularity, PerBlock):
            encoding = replace(encoding, type=IntegerType(bits=8, signed=encoding.type.signed))
            kind = ir.DataType.from_numpy(array_type(encoding.type))
            cast = new_node("Cast", [levels], {"to": kind}, name=self.name(f"{before.name}_{name}_widened"))
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(kind), levels.shape
            before.prepend(cast)
            levels = cast.outputs[0]
        node = self.linear("DequantizeLinear", levels, encoding, name, f"{before.name}_{name}_dequantized")
        node.outputs[0].type = value.type
        node.outputs[0].shape = value.shape
        before.prepend(node)
        return node.outputs[0]

    def converted(self, value: ir.Value, encoding: Encoding, before: ir.Node) -> ir.Value:
        """Turn a float initializer into levels and a Cast, Sub and Mul before a node; return the last one's output.

        The same numbers as `dequantized`'s, bit for bit: the difference of levels is exact, one float32 product. But
        ONNX Runtime (1.31) runs a DequantizeLinear of constants with every sample, and these once, when it loads.
        """
        name, array = str(value.name), constant_array(value)
        assert array is not None
        granularity = encoding.granularity
        shape = array.shape
        if isinstance(granularity, PerBlock):
            if shape[granularity.axis] % granularity.size:
                return self.dequantized(value, encoding, before)
            # [.., blocks * size, ..] to [.., blocks, size, ..]
            axis = normalized_axis(granularity.axis, array.ndim)
            shape = (*shape[:axis], -1, granularity.size, *shape[axis + 1 :])
        levels = self.levels(name, array.astype(np.float32, copy=False), encoding)
        steps: list[tuple[str, list[ir.Value], dict[str, int]]] = [("Cast", [], {"to": ir.DataType.FLOAT})]
        if isinstance(granularity, PerBlock):
            steps.append(("Reshape", [self.constant(f"{name}_blocks", np.array(shape, dtype=np.int64))], {}))
        if encoding.zero_point.any():
            zero_point = _spread(encoding.zero_point.astype(np.float32), encoding, array.ndim)
            steps.append(("Sub", [self.constant(f"{name}_zero_point", zero_point)], {}))
        steps.append(("Mul", [self.constant(f"{name}_scale", _spread(encoding.scale, encoding, array.ndim))], {}))
        if isinstance(granularity, PerBlock):
            steps.append(("Reshape", [self.constant(f"{name}_shape", np.array(array.shape, dtype=np.int64))], {}))
        result = levels
        for operator, others, attributes in steps:
            wanted = f"{before.name}_{name}_{operator.lower()}"
            node = new_node(operator, [result, *others], attributes, name=self.name(wanted))
            node.outputs[0].type = value.type
            before.prepend(node)
            result = node.outputs[0]
        result.shape = value.shape
        return result


def _spread(parameters: npt.NDArray[Any], encoding: Encoding, rank: int) -> npt.NDArray[Any]:
    """Return scales or zero points in a shape that broadcasts over a tensor of that rank, its blocks parted."""
    granularity = encoding.granularity
    if isinstance(granularity, PerAxis):
        axis = normalized_axis(granularity.axis, rank)
        return parameters.reshape([-1 if index == axis else 1 for index in range(rank)])
    if isinstance(granularity, PerBlock):
        return np.expand_dims(parameters, normalized_axis(granularity.axis, rank) + 1)  # [.., blocks, 1, ..]
    return parameters


def check_names(graph: ir.Graph, plan: Plan) -> None:
    """Refuse a plan that names what the network does not have.

    Raises:
        PlanError: naming the first such value or node.
    """
    values = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    values |= {str(value.name) for node in graph for value in node.outputs}
    nodes = {str(node.name) for node in graph}
    for what, names, known in (
        ("value", list(plan.encodings), values),
        ("node", [node.name for node in plan.float_nodes], nodes),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise PlanError(
                f"the plan names {what} {unknown[0]!r}{others} that the network does not have; expected the plan of "
                "this network: names of the simplified network, as in float.onnx beside the plan"
            )


def fills_container(kind: IntegerType) -> bool:
    """Whether every number of the ONNX type that stores the levels is one of the levels."""
    return kind.bits in (4, 8, 16, 32) and not kind.narrow


def array_type(kind: IntegerType) -> np.dtype[Any]:
    """Return the numpy type that levels are stored in: 4 bits by themselves, else the next of 8, 16 and 32."""
    four_bits: type[np.generic] = ml_dtypes.int4 if kind.signed else ml_dtypes.uint4
    return np.dtype(four_bits) if kind.bits == 4 else kind.storage

"""Constant values of a graph: read them as arrays, add new ones, replace them."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.edits import all_nodes, graph_of, is_operator, unique_name


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor behind an initializer or the output of a Constant node, else None.

    An initializer that is also a graph input can be overridden by the caller and is no constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    if not is_operator(value.producer(), "Constant"):
        return None
    return ir.convenience.get_const_tensor(value)


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Return the constant's array (do not write to it: it may be a memory map), or None if it is no constant."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_scalar(value: ir.Value | None) -> float | None:
    """Return the one number of a constant with one element, else None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()))


def constant_integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers of a constant of rank 0 or 1, else None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.shape.rank() > 1 or not tensor.dtype.is_integer():
        return None
    return tuple(int(number) for number in tensor.numpy().reshape(-1))


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer; its name is `name`, with a number behind it where that is taken."""
    return _register(graph, unique_name(graph, name), array)


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer new numbers (and their shape and type) under its old name."""
    tensor = ir.tensor(array, name=value.name)
    value.const_value = tensor
    value.shape = ir.Shape(tensor.shape.numpy())
    value.type = ir.TensorType(tensor.dtype)


def lift_constants(model: ir.Model) -> None:
    """Turn every Constant node, also in the bodies of If and Loop, into an initializer of the same name.

    A sparse constant, and one that is itself a graph output, stays a node.
    """
    for node in tuple(all_nodes(model)):
        if not is_operator(node, "Constant") or "sparse_value" in node.attributes:
            continue
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is not None and not node.outputs[0].is_graph_output():
            _lift(node, tensor)


def _lift(node: ir.Node, tensor: ir.TensorProtocol) -> None:
    output = node.outputs[0]
    value = _initializer(output.name, tensor)
    value.metadata_props.update(output.metadata_props)
    graph = graph_of(node)
    output.replace_all_uses_with(value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def replace_by_constant(value: ir.Value, array: np.ndarray) -> ir.Value:
    """Let every reader of a node's output read an initializer of the same name instead; the node is left unused.

    The value must not be a graph output.
    """
    graph = _graph_of(value)
    name = value.name
    if name is None:
        message = "the value has no name"
        raise ValueError(message)
    value.name = unique_name(graph, f"{name}_unused")
    constant = _register(graph, name, array)
    value.replace_all_uses_with(constant)
    return constant


def replace_constant_input(node: ir.Node, index: int, array: np.ndarray, name: str | None = None) -> None:
    """Give one input of a node new constant numbers.

    The initializer keeps its name when this node alone reads it, and this once; otherwise, or where there was no
    input yet, the node gets an initializer of its own, called `name` (default: the old name).
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        set_constant(value, array)
        return
    graph = graph_of(node)
    base = name or (value.name if value is not None else None) or f"{node.name}_constant"
    constant = add_constant(graph, base, array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, constant)


def _register(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = _initializer(name, tensor)
    graph.register_initializer(value)
    return value


def _initializer(name: str | None, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def _graph_of(value: ir.Value) -> ir.Graph:
    producer = value.producer()
    graph = value.graph if producer is None else producer.graph
    if graph is None:
        message = f"the value {value.name!r} is in no graph"
        raise ValueError(message)
    return graph

"""Give every layer its own copy of weights that several layers share."""

from collections.abc import Iterable

import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array
from narrowgauge.graph.edits import all_nodes, graph_of, is_operator
from narrowgauge.graph.refusals import Refusal
from narrowgauge.passes.layers import LAYERS, layer_of


def split_shared_weights(model: ir.Model) -> tuple[Refusal, ...]:
    """Copy constants that more than one Conv, ConvTranspose, Gemm or MatMul has as weights or bias, in place.

    The first reader keeps the initializer and its name; every other gets a copy named after it with a number. Wanted
    by methods that change one layer's weights alone. Not part of `simplify`, since the network grows.
    Nothing is refused.
    """
    taken: set[ir.Value] = set()
    for node in tuple(all_nodes(model)):
        for index in _weight_inputs(node):
            value = node.inputs[index]
            array = constant_array(value)
            if value is None or array is None or not value.is_initializer():
                continue
            if value in taken:
                node.replace_input_with(index, add_constant(graph_of(node), value.name or "weight", array))
            taken.add(value)
    return ()


def _weight_inputs(node: ir.Node) -> Iterable[int]:
    """Return the numbers of the inputs that hold weights or bias; also for the Add of a MatMul's bias."""
    if is_operator(node, *LAYERS):
        return range(1, len(node.inputs))
    return (0, 1) if layer_of(node) is not None else ()

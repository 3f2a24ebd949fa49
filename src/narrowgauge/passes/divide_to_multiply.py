"""Write a division by constants as a product with their inverses."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array
from narrowgauge.graph.edits import graph_of, is_operator, new_node, take_place
from narrowgauge.graph.refusals import Refusal


def divide_to_multiply(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace each Div by finite constants other than zero by a Mul, in place; names survive.

    It is faster, and targets have integer products where they have no quotients. Nothing is refused: a division by
    constants whose inverse is zero, infinite or not normal is right as it is.
    """
    for node in tuple(model.graph):
        if is_operator(node, "Div") and constant_array(node.inputs[0]) is None:
            inverse = _inverse(constant_array(node.inputs[1]))
            if inverse is not None:
                _replace(node, inverse)
    return ()


def _inverse(numbers: np.ndarray | None) -> np.ndarray | None:
    if numbers is None or numbers.dtype.kind != "f" or not np.isfinite(numbers).all() or not numbers.all():
        return None
    with np.errstate(over="ignore"):
        inverse = (1.0 / numbers.astype(np.float64)).astype(numbers.dtype)
    normal = np.abs(inverse) >= np.finfo(numbers.dtype).tiny
    return inverse if np.isfinite(inverse).all() and normal.all() else None


def _replace(node: ir.Node, inverse: np.ndarray) -> None:
    graph, result = graph_of(node), node.outputs[0]
    name = (node.inputs[1].name if node.inputs[1] is not None else None) or str(result.name)
    constant = add_constant(graph, f"{name}_inverse", inverse)
    product = new_node("Mul", [node.inputs[0], constant], name=node.name or str(result.name), output=f"{name}_product")
    graph.insert_before(node, product)
    take_place(product.outputs[0], result)

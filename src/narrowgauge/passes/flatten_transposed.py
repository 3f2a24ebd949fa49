"""Take a Transpose away that only orders what is flattened next, by ordering the weights behind it instead."""

import math

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_integers, replace_constant_input
from narrowgauge.graph.edits import graph_of, is_operator, sole_consumer
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import dimensions
from narrowgauge.passes.cancel_transposes import order_of


def flatten_transposed(model: ir.Model) -> tuple[Refusal, ...]:
    """Order the rows of a Gemm's or MatMul's weights as a Transpose orders the flattened tensor before it, in place.

    Flatten(Transpose(x)) W = Flatten(x) P W, where P is a permutation: what a network whose channels come last writes
    between its last convolution and its classifier. Value names survive but that of the Transpose's result; the
    flattened value holds its numbers in another order.

    Nothing is refused: left alone, and right, is a Transpose that moves the batch, whose result has a dynamic size, or
    which or whose flattened result is read by others or by a product that is not of constant weights with two axes.
    """
    for node in tuple(model.graph):
        if node.graph is not None and order_of(node) is not None:
            _remove(node)
    return ()


def _remove(transpose: ir.Node) -> None:
    order, sizes = order_of(transpose), dimensions(transpose.outputs[0])
    flatten = sole_consumer(transpose.outputs[0])
    if order is None or sizes is None or order[0] != 0 or flatten is None or not _flattens(flatten, sizes):
        return
    inner = [size for size in sizes[1:] if size is not None]
    product = sole_consumer(flatten.outputs[0])
    weight = None if product is None else _rows(product, flatten.outputs[0], math.prod(inner))
    if product is None or weight is None:
        return
    places = np.arange(math.prod(inner)).reshape(inner)  # row of each element, in the order behind the Transpose
    unmoved = places.transpose([int(axis) for axis in np.argsort(np.asarray(order[1:]))])  # ... and before it
    axis = _row_axis(product)
    flatten.replace_input_with(0, transpose.inputs[0])
    replace_constant_input(product, 1, np.ascontiguousarray(np.take(weight, unmoved.reshape(-1), axis=axis)))
    graph_of(transpose).remove(transpose, safe=True)


def _flattens(node: ir.Node, sizes: tuple[int | None, ...]) -> bool:
    """Tell whether a node makes [N, all the rest] of a tensor, and would of one with the rest in another order."""
    if any(size is None for size in sizes[1:]):
        return False
    if is_operator(node, "Flatten"):
        return node.attributes.get_int("axis", 1) in {1, 1 - len(sizes)}
    result = dimensions(node.outputs[0])
    target = constant_integers(node.inputs[1]) if is_operator(node, "Reshape") else None
    inner = math.prod(size or 0 for size in sizes[1:])
    return target is not None and len(target) == 2 and result is not None and result[1] == inner > 0


def _rows(product: ir.Node, value: ir.Value, rows: int) -> np.ndarray | None:
    """Return the weights that a product multiplies a value with, if they are constant and have so many rows."""
    if not is_operator(product, "Gemm", "MatMul") or product.inputs[0] is not value:
        return None
    weight = constant_array(product.inputs[1])
    if weight is None or weight.ndim != 2 or product.attributes.get_int("transA", 0) == 1:
        return None
    return weight if weight.shape[_row_axis(product)] == rows else None


def _row_axis(product: ir.Node) -> int:
    return 1 if product.attributes.get_int("transB", 0) else 0

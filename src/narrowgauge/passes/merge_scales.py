"""Scale one operand of a matrix product instead of both."""

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import constant_array, constant_scalar, replace_constant_input
from narrowgauge.graph.edits import is_operator, remove_if_unused, sole_consumer
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank
from narrowgauge.passes.moments import producer


def merge_scales(model: ir.Model) -> tuple[Refusal, ...]:
    """Write `(a x) (b y)` with two numbers a and b as `(ab x) y`, in place.

    torch.onnx writes scaled_dot_product_attention with the root of its scale at queries and at keys. Nothing is
    refused: scales that something else reads, or whose product is not finite, stay.
    """
    for node in tuple(model.graph):
        if is_operator(node, "MatMul"):
            _merge(node)
    return ()


def _merge(product: ir.Node) -> None:
    first, second = (_scaling(product, number) for number in (0, 1))
    if first is None or second is None:
        return
    place, other = _constant_input(first), _constant_input(second)
    array, factor = constant_array(first.inputs[place]), constant_scalar(second.inputs[other])
    assert array is not None
    assert factor is not None
    with np.errstate(over="ignore", under="ignore"):
        merged = (array.astype(np.float64) * factor).astype(array.dtype)
    if not np.isfinite(merged).all() or not np.abs(merged).min() >= np.finfo(array.dtype).tiny:
        return
    replace_constant_input(first, place, merged)
    product.replace_input_with(1, second.inputs[1 - other])
    remove_if_unused(second)


def _scaling(product: ir.Node, number: int) -> ir.Node | None:
    """Return the Mul by one number that this product alone reads."""
    value = product.inputs[number]
    node = producer(value, "Mul")
    if node is None or value is None or sole_consumer(value) is not product:
        return None
    constants = [constant_array(one) for one in node.inputs]
    numbers = [array for array in constants if array is not None]
    if len(numbers) != 1 or numbers[0].size != 1 or numbers[0].dtype.kind != "f":
        return None
    axes = rank(node.inputs[1 - _constant_input(node)])
    return node if axes is not None and numbers[0].ndim <= axes else None


def _constant_input(node: ir.Node) -> int:
    return 1 if constant_array(node.inputs[1]) is not None else 0

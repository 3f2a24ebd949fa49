"""Write an Einsum with constant weights as the matrix product that it is."""

import math

import numpy as np
import onnx_ir as ir

from narrowgauge.graph.constants import add_constant, constant_array, replace_constant_input
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import rank


def einsum_to_matmul(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace each Einsum of a value and constant weights that sums over the value's last axes by a MatMul, in place.

    `abc,cde->abde` is a product of [a, b, c] with weights reshaped to [c, d e], and a Reshape; `abcd,cde->abe` is a
    Reshape, and a product with [c d, e]. So the projections of Keras' attention become layers like any other, with
    weights per channel and integer kernels. An Add behind it of constants that are the same at all positions comes
    before the Reshape, as the bias of the product. The names of the Einsum, of its weights and of its value survive.

    Refuses an Einsum with constant weights where the summed axes are not the value's last and the weights' first, in
    the same order, or where the value has more than two axes of which an unknown number is kept (an ellipsis).
    """
    refusals = []
    for node in tuple(model.graph):
        if is_operator(node, "Einsum") and len(node.inputs) == 2 and constant_array(node.inputs[1]) is not None:
            summed = _summed(node.attributes.get_string("equation", "") or "")
            axes, weight = rank(node.inputs[0]), np.asarray(constant_array(node.inputs[1]))
            if summed is None or axes is None or weight.ndim <= summed:
                reason = "the axes it sums over are not the value's last and the weights' first"
                refusals.append(Refusal(node=node.name or "", operator="Einsum", reason=reason))
            else:
                _replace(node, axes - summed, weight.shape[:summed], weight.shape[summed:])
    remove_unused(model)
    return tuple(refusals)


def _summed(equation: str) -> int | None:
    """Return how many axes are summed over, None if the equation is no matrix product of two flattened operands."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    first, comma, second = terms.partition(",")
    letters = first + second
    if (
        not arrow
        or not comma
        or not letters.isalpha()
        or any(each.count(letter) > 1 for each in (first, second) for letter in each)
    ):
        return None
    summed = sum(letter in second for letter in first)
    if summed == 0 or first[-summed:] != second[:summed] or result != first[:-summed] + second[summed:]:
        return None
    return summed


def _replace(node: ir.Node, kept: int, rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """Write the product of [kept axes..., rows...] and [rows..., columns...]."""
    graph, source, result, stored = graph_of(node), node.inputs[0], node.outputs[0], node.inputs[1]
    base = node.name or f"{result.name}_product"
    if len(rows) > 1:
        source = _reshaped(node, source, [0] * kept + [math.prod(rows)], f"{base}_flat")
    matrix = np.asarray(constant_array(stored)).reshape(math.prod(rows), math.prod(columns))
    product = new_node("MatMul", [source, stored], name=base, output=f"{base}_product")
    product.outputs[0].type = result.type
    graph.insert_before(node, product)
    node.replace_input_with(1, None)
    replace_constant_input(product, 1, matrix)
    last, place = product, node
    bias = _bias_behind(result, columns)
    if bias is not None:
        place, number = bias
        constant = place.inputs[number]
        last = new_node("Add", [product.outputs[0], constant], name=place.name or f"{base}_add")
        last.outputs[0].name, last.outputs[0].type = f"{base}_biased", result.type
        graph.insert_before(place, last)
        place.replace_input_with(number, None)
        replace_constant_input(last, 1, np.asarray(constant_array(constant)).reshape(-1))
        result = place.outputs[0]
    if len(columns) == 1:
        take_place(last.outputs[0], result)
    else:
        take_place(_reshaped(place, last.outputs[0], [0] * kept + list(columns), f"{base}_shaped"), result)


def _bias_behind(value: ir.Value, columns: tuple[int, ...]) -> tuple[ir.Node, int] | None:
    """Return the Add of one constant for each column that alone reads a value, and the number of its constant input."""
    addition = sole_consumer(value) if len(columns) > 1 else None
    if addition is None or not is_operator(addition, "Add"):
        return None
    number = 1 if addition.inputs[0] is value else 0
    array = constant_array(addition.inputs[number])
    if array is None or array.ndim < len(columns) or array.shape[array.ndim - len(columns) :] != columns:
        return None
    return (addition, number) if array.size == math.prod(columns) else None


def _reshaped(place: ir.Node, value: ir.Value | None, target: list[int], name: str) -> ir.Value:
    graph = graph_of(place)
    shape = add_constant(graph, f"{name}_shape", np.array(target, dtype=np.int64))
    node = new_node("Reshape", [value, shape], name=name)
    node.outputs[0].type = None if value is None else value.type
    graph.insert_before(place, node)
    return node.outputs[0]

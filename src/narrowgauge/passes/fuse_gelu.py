"""Recognise the Gaussian error linear unit in its parts and write it as one Gelu.

gelu(x) = x Phi(x) = 0.5 x (1 + erf(x / sqrt 2)); D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units (GELUs)", 2016,
section 2. Opset 20 has it as an operator.
"""

import math

import onnx_ir as ir

from narrowgauge.graph.constants import constant_scalar
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, sole_consumer, take_place
from narrowgauge.graph.refusals import Refusal

RELATIVE_TOLERANCE = 1e-3
"""Exports round sqrt(2) to anything from float16 to 1.414; a factor off by this moves gelu by less than 1e-3."""


def fuse_gelu(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace Erf and the multiplications and the addition around it by Gelu, in place.

    Found in any order and grouping: x may be divided by sqrt 2 or multiplied by its inverse, 0.5 may go to x, to
    1 + erf, or to their product, as factor or divisor.

    Refuses: an Erf whose surroundings are not a gelu, or whose parts something else reads.
    """
    refusals = []
    for node in tuple(model.graph):
        if is_operator(node, "Erf") and not _fuse(node):
            reason = "it is not part of 0.5 x (1 + erf(x / sqrt 2)) with unshared parts"
            refusals.append(Refusal(node=node.name or "", operator="Erf", reason=reason))
    remove_unused(model)
    return tuple(refusals)


def _fuse(erf: ir.Node) -> bool:
    argument = erf.inputs[0]
    if argument is None:
        return False
    source, factor = _split_factor(argument)
    if source is None or not math.isclose(factor, 1 / math.sqrt(2), rel_tol=RELATIVE_TOLERANCE):
        return False
    top = half_of_one_plus(erf, source)
    if top is None:
        return False
    name = top.name or f"{top.outputs[0].name}_gelu"
    gelu = new_node("Gelu", [source], name=name)
    graph_of(top).insert_before(top, gelu)
    take_place(gelu.outputs[0], top.outputs[0])
    return True


def _split_factor(value: ir.Value) -> tuple[ir.Value | None, float]:
    """Return v and c for a value made as v * c, c * v or v / c with a constant number c, else (None, 1)."""
    node = value.producer()
    if node is None or not is_operator(node, "Mul", "Div"):
        return None, 1.0
    first, second = node.inputs
    number = constant_scalar(second)
    if number is not None:
        if is_operator(node, "Mul"):
            return first, number
        return (first, 1.0 / number) if number else (None, 1.0)
    number = constant_scalar(first)
    return (second, number) if number is not None and is_operator(node, "Mul") else (None, 1.0)


def half_of_one_plus(function: ir.Node, source: ir.Value) -> ir.Node | None:
    """Return the node that ends 0.5 x (1 + f) in any order, where f is what `function` writes and x `source`."""
    add = sole_consumer(function.outputs[0])
    if add is None or not is_operator(add, "Add"):
        return None
    one = constant_scalar(add.inputs[1] if add.inputs[0] is function.outputs[0] else add.inputs[0])
    if one is None or not math.isclose(one, 1.0, rel_tol=RELATIVE_TOLERANCE):
        return None
    return _top_of_product(add, source)


def _top_of_product(add: ir.Node, source: ir.Value) -> ir.Node | None:
    """Climb from 1 + f through products with constants and with x until all that remains is 0.5 x (1 + f)."""
    value, total, found = add.outputs[0], 1.0, False
    while True:
        node = sole_consumer(value)
        if node is None or not is_operator(node, "Mul", "Div"):
            return None
        other, factor = _split_factor(node.outputs[0])
        if other is value:
            total *= factor
        elif is_operator(node, "Mul") and not found:
            partner = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            scaled = _scale_over(partner, source)
            if scaled is None:
                return None
            total, found = total * scaled, True
        else:
            return None
        if found and math.isclose(total, 0.5, rel_tol=RELATIVE_TOLERANCE):
            return node
        value = node.outputs[0]


def _scale_over(value: ir.Value | None, source: ir.Value) -> float | None:
    """Return c where a value is c * x, else None."""
    if value is source:
        return 1.0
    if value is None:
        return None
    inner, factor = _split_factor(value)
    return factor if inner is source else None

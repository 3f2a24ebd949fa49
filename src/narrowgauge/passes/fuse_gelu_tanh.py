"""Recognise the Gaussian error linear unit's approximation by the hyperbolic tangent and write it as one Gelu.

gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units
(GELUs)", 2016, section 2. Opset 20 has it as an operator.
"""

import math
from collections.abc import Mapping

import onnx_ir as ir

from narrowgauge.graph.constants import constant_scalar
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.passes.fuse_gelu import RELATIVE_TOLERANCE, half_of_one_plus

_Polynomial = Mapping[int, float]
"""Power of x -> its coefficient."""

_WANTED: _Polynomial = {1: math.sqrt(2 / math.pi), 3: 0.044715 * math.sqrt(2 / math.pi)}

_DEEPEST = 8
"""The longest form known, with every factor a node of its own, is seven nodes deep."""

_HIGHEST_POWER = 3


def fuse_gelu_tanh(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace Tanh, the polynomial before it and the products around it by Gelu, in place.

    The polynomial may be written in any way: the cube as a power or as products, factors taken out or multiplied in.
    A Tanh that is no part of a gelu is an activation function of its own and no refusal.
    """
    for node in tuple(model.graph):
        if is_operator(node, "Tanh") and node.graph is not None:
            _fuse(node)
    remove_unused(model)
    return ()


def _fuse(tanh: ir.Node) -> None:
    argument = tanh.inputs[0]
    if argument is None:
        return
    for source in _candidates(argument, _DEEPEST):
        found = _polynomial(argument, source, _DEEPEST)
        top = half_of_one_plus(tanh, source) if found is not None and _is_wanted(found) else None
        if top is not None:
            name = top.name or f"{top.outputs[0].name}_gelu"
            gelu = new_node("Gelu", [source], {"approximate": "tanh"}, name=name)
            graph_of(top).insert_before(top, gelu)
            take_place(gelu.outputs[0], top.outputs[0])
            return


def _is_wanted(found: _Polynomial) -> bool:
    left = {power: number for power, number in found.items() if number}
    return left.keys() == _WANTED.keys() and all(
        math.isclose(number, _WANTED[power], rel_tol=RELATIVE_TOLERANCE) for power, number in left.items()
    )


def _candidates(value: ir.Value, depth: int) -> list[ir.Value]:
    """Values that a polynomial may be one of, those nearest to it first; each once."""
    found, layer = [], [value]
    for _ in range(depth):
        following: dict[ir.Value, None] = {}
        for each in layer:
            node = each.producer()
            if is_operator(node, "Add", "Sub", "Mul", "Div", "Pow") and node is not None:
                inputs = [one for one in node.inputs if one is not None and constant_scalar(one) is None]
                following.update(dict.fromkeys(inputs))
        layer = list(following)
        found += [each for each in layer if each not in found]
    return found


def _polynomial(value: ir.Value | None, source: ir.Value, depth: int) -> _Polynomial | None:
    """Read a value as a polynomial of another, None where it is none (of a power of 3 at the most)."""
    if value is source:
        return {1: 1.0}
    number = constant_scalar(value)
    if number is not None:
        return {0: number}
    node = value.producer() if value is not None else None
    if node is None or depth == 0 or not is_operator(node, "Add", "Sub", "Mul", "Div", "Pow"):
        return None
    first = _polynomial(node.inputs[0], source, depth - 1)
    second = _polynomial(node.inputs[1], source, depth - 1)
    return None if first is None or second is None else _combined(node.op_type, first, second)


def _combined(operator: str, first: _Polynomial, second: _Polynomial) -> _Polynomial | None:
    if operator in {"Add", "Sub"}:
        return _sum(first, second, 1.0 if operator == "Add" else -1.0)
    if operator == "Mul":
        return _product(first, second)
    if second.keys() != {0}:
        return None
    number = second[0]
    if operator == "Div":
        return {power: factor / number for power, factor in first.items()} if number else None
    square = _product(first, first) if number in (2.0, 3.0) else None
    return square if number == 2.0 or square is None else _product(square, first)


def _sum(first: _Polynomial, second: _Polynomial, sign: float) -> _Polynomial:
    return {power: first.get(power, 0.0) + sign * second.get(power, 0.0) for power in {*first, *second}}


def _product(first: _Polynomial, second: _Polynomial) -> _Polynomial | None:
    found: dict[int, float] = {}
    for power, number in first.items():
        for other, factor in second.items():
            found[power + other] = found.get(power + other, 0.0) + number * factor
    return found if max(found) <= _HIGHEST_POWER else None

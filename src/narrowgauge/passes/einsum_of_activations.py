"""Write an Einsum of two activations as the matrix product that it is."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import graph_of, is_operator, new_node, remove_unused, take_place
from narrowgauge.graph.refusals import Refusal
from narrowgauge.graph.shapes import infer_shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Product:
    """A product of matrices [batch..., rows, summed] and [batch..., summed, columns], as letters."""

    first: str
    second: str
    result: str
    batch: str
    rows: str
    columns: str
    summed: str


def einsum_of_activations(model: ir.Model) -> tuple[Refusal, ...]:
    """Replace each Einsum of two values that is a product of matrices by Transpose, MatMul and Transpose, in place.

    One axis is summed over, each value has one axis of its own, and they share any number of others: the scores of
    attention and the product behind them, `aecd,abcd->acbe` and `acbe,aecd->abcd`.

    Refuses an Einsum of two activations of another form.
    """
    refusals, changed = [], False
    for node in tuple(model.graph):
        if not is_operator(node, "Einsum") or len(node.inputs) != 2 or None in node.inputs or _reads_constant(node):
            continue
        product = _product(node.attributes.get_string("equation", "") or "")
        if product is None:
            reason = "it is no product of matrices with one axis of rows, of columns and of what is summed"
            refusals.append(Refusal(node=node.name or "", operator="Einsum", reason=reason))
        else:
            _replace(node, product)
            changed = True
    remove_unused(model)
    if changed:
        infer_shapes(model)
    return tuple(refusals)


def _reads_constant(node: ir.Node) -> bool:
    return any(constant_array(value) is not None for value in node.inputs)


def _product(equation: str) -> _Product | None:
    terms, arrow, result = equation.replace(" ", "").partition("->")
    first, comma, second = terms.partition(",")
    if not arrow or not comma or not (first + second).isalpha() or not result.isalpha():
        return None
    if any(len(set(each)) != len(each) for each in (first, second, result)):
        return None
    batch = "".join(letter for letter in result if letter in first and letter in second)
    rows = "".join(letter for letter in first if letter not in second)
    columns = "".join(letter for letter in second if letter not in first)
    summed = "".join(letter for letter in first if letter in second and letter not in result)
    if (len(rows), len(columns), len(summed)) != (1, 1, 1) or set(result) != set(batch + rows + columns):
        return None
    return _Product(first=first, second=second, result=result, batch=batch, rows=rows, columns=columns, summed=summed)


def _replace(node: ir.Node, product: _Product) -> None:
    base, result = node.name or f"{node.outputs[0].name}_product", node.outputs[0]
    batch, rows, columns, summed = product.batch, product.rows, product.columns, product.summed
    first, second = (value for value in node.inputs if value is not None)
    left = _turned(node, first, product.first, batch + rows + summed, f"{base}_left")
    right = _turned(node, second, product.second, batch + summed + columns, f"{base}_right")
    matmul = new_node("MatMul", [left, right], name=base, output=f"{base}_product")
    matmul.outputs[0].type = result.type
    graph_of(node).insert_before(node, matmul)
    take_place(_turned(node, matmul.outputs[0], batch + rows + columns, product.result, f"{base}_result"), result)


def _turned(place: ir.Node, value: ir.Value, letters: str, wanted: str, name: str) -> ir.Value:
    """Bring the axes of a value into another order."""
    if letters == wanted:
        return value
    order = [letters.index(letter) for letter in wanted]
    node = new_node("Transpose", [value], {"perm": order}, name=name)
    node.outputs[0].type = value.type
    graph_of(place).insert_before(place, node)
    return node.outputs[0]

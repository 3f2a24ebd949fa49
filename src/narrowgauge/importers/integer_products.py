"""MatMulInteger and ConvInteger with the scaling behind them, rewritten as products of real numbers.

The pattern is the one that ONNX's own quantizer and ours write: the int32 product, Cast to float, Mul by the scale of
the first factor times that of the second, in one Mul or two (onnxruntime/core/optimizer/matmul_integer_to_float.cc).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.errors import ModelError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import graph_of, is_operator, sole_consumer, take_place
from narrowgauge.graph.shapes import rank
from narrowgauge.importers.rewriting import Parameters, Rewriter, parameters_of


def rewrite_integer_product(rewriter: Rewriter, node: ir.Node) -> None:
    """Let a float MatMul or Conv of dequantized factors write what the last Mul behind an integer product wrote.

    Raises:
        ModelError: what stands behind the product is not the pattern; the node is named.
    """
    last, factors = _scaling(node)
    if last is None:
        raise _refusal(node, "its result is not made float by a Cast and a Mul alone")
    first_scale = _scale_of(node, 0)
    if first_scale is None:
        raise _refusal(node, "the scale of its first factor is not known")
    second = _second_scale(node, first_scale, factors)
    if second is None:
        raise _refusal(node, "the Mul behind it is not by the product of its factors' scales")
    inputs = [
        rewriter.dequantize(node, _some(node.inputs[0]), _linear(rewriter, node, 0, first_scale)),
        rewriter.dequantize(node, _some(node.inputs[1]), _linear(rewriter, node, 1, second)),
    ]
    operator = node.op_type.removesuffix("Integer")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    result = rewriter.add(node, operator, inputs, attributes, wanted=f"{last.name}_real")
    made = result.producer()
    assert made is not None
    old = str(node.name)
    node.name, made.name = rewriter.name(f"{old}_replaced"), old
    made.metadata_props.update(node.metadata_props)
    take_place(result, last)


def _refusal(node: ir.Node, reason: str) -> ModelError:
    return ModelError(
        f"node {node.name!r} ({node.op_type}): {reason}, so the real numbers behind its integers are not "
        "known; expected Cast to float32 and Mul by both scales behind it. A network that computes in integers "
        "alone holds no real numbers: give it in Q/DQ form (of a folder of narrowgauge quantize, simulated.onnx) or "
        "the float network"
    )


def _scaling(node: ir.Node) -> tuple[ir.Value | None, list[ir.Value]]:
    """Return the result of the Muls behind an integer product and what they multiply it with."""
    cast = sole_consumer(node.outputs[0])
    if cast is None or not is_operator(cast, "Cast") or cast.attributes.get_int("to", 0) != ir.DataType.FLOAT:
        return None, []
    value = cast.outputs[0]
    factors: list[ir.Value] = []
    while len(factors) < 2:
        product = sole_consumer(value)
        if product is None or not is_operator(product, "Mul"):
            break
        other = product.inputs[1] if product.inputs[0] is value else product.inputs[0]
        if other is None or not _is_scale(other):
            break
        factors.append(other)
        value = product.outputs[0]
        if _is_product(other):
            break
    return (value, factors) if factors else (None, [])


def _is_scale(value: ir.Value) -> bool:
    """Whether a value is a constant, a scale found at run time, or a product of such."""
    if constant_array(value) is not None or _is_dynamic_scale(value):
        return True
    producer = value.producer()
    return is_operator(producer, "Mul") and all(one is not None and _is_scale(one) for one in _inputs(producer))


def _is_dynamic_scale(value: ir.Value) -> bool:
    return is_operator(value.producer(), "DynamicQuantizeLinear") and value.index() == 1


def _is_product(value: ir.Value) -> bool:
    return is_operator(value.producer(), "Mul")


def _inputs(node: ir.Node | None) -> list[ir.Value | None]:
    return list(node.inputs) if node is not None else []


def _scale_of(node: ir.Node, number: int) -> ir.Value | None:
    """Return the scale of a factor that a QuantizeLinear or DynamicQuantizeLinear wrote."""
    levels = node.inputs[number]
    producer = levels.producer() if levels is not None else None
    if producer is None:
        return None
    if is_operator(producer, "DynamicQuantizeLinear"):
        return producer.outputs[1]
    return parameters_of(producer).scale if is_operator(producer, "QuantizeLinear") else None


def _second_scale(node: ir.Node, first: ir.Value, factors: list[ir.Value]) -> ir.Value | None:
    """Return what is left of the factors without the first scale: the scale of the second."""
    flat: list[ir.Value] = []
    for factor in factors:
        flat += [_some(one) for one in _inputs(factor.producer())] if _is_product(factor) else [factor]
    dynamic = [one for one in flat if _is_dynamic_scale(one)]
    known = constant_array(first)
    for one in dynamic if known is None else flat:
        array = constant_array(one)
        same = one is first or (known is not None and array is not None and np.array_equal(known, array))
        if same and len(flat) == 2:
            return flat[1] if flat[0] is one else flat[0]
    return None


def _linear(rewriter: Rewriter, node: ir.Node, number: int, scale: ir.Value) -> Parameters:
    zero_point = node.inputs[number + 2] if number + 2 < len(node.inputs) else None
    array, zeros = constant_array(scale), constant_array(zero_point)
    axes = rank(node.inputs[number]) or 2
    axis = (axes - 2 if number == 0 else axes - 1) if node.op_type == "MatMulInteger" else number - 1
    if array is None:
        return Parameters(scale=scale, zero_point=zero_point)
    shape = () if array.size == 1 and (zeros is None or zeros.size == 1) else (max(array.size, _size(zeros)),)
    if array.shape != shape:
        scale = rewriter.constant(graph_of(node), f"{scale.name}_flat", _spread(array, shape))
    if zeros is not None and zeros.shape != shape:
        zero_point = rewriter.constant(graph_of(node), f"{_some(zero_point).name}_spread", _spread(zeros, shape))
    return Parameters(scale=scale, zero_point=zero_point, axis=axis)


def _size(array: npt.NDArray[Any] | None) -> int:
    return 1 if array is None else array.size


def _spread(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1) if shape else array.reshape(()), shape))


def _some(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value

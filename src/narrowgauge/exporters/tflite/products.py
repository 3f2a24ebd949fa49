"""Matrix products: Gemm and MatMul."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.exporters.tflite.call import Call
from narrowgauge.exporters.tflite.forms import Order, extents_of, identity
from narrowgauge.exporters.tflite.weights import Weights, add_bias, add_weights, weights_of
from narrowgauge.graph.constants import constant_array


def gemm(call: Call) -> None:
    """Gemm: FULLY_CONNECTED with weights [out, in], or BATCH_MATMUL where they are computed."""
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    weights = weights_of(call)
    order: Order = (1, 0) if call.whole("transA", 0) else (0, 1)
    if alpha != 1 or (beta != 1 and call.given(2)):
        call = call.in_float()
    if weights is None:
        _computed_product(call, order, alpha, beta)
        return
    if not call.whole("transB", 0):
        weights = weights.reshaped(weights.array.shape, (1, 0), 0)
    bias = call.node.inputs[2] if call.given(2) else None
    if alpha != 1 and weights.quantization is None:
        weights, alpha = Weights(array=weights.array * np.float32(alpha), name=weights.name), 1.0
    if alpha == 1 and _is_bias(bias, weights.array.shape[0]):
        fully_connected(call, weights, bias, order=order, factor=beta)
    else:
        _product_and_sum(call.in_float(), weights, order, alpha, beta)


def _is_bias(value: ir.Value | None, channels: int) -> bool:
    """Whether a value is a constant for each column, or one for all, or none."""
    array = constant_array(value)
    if value is None or array is None:
        return value is None
    return array.size in (1, channels) and array.shape[:-1] in ((), (1,))


def _product_and_sum(call: Call, weights: Weights, order: Order, alpha: float, beta: float) -> None:
    """Write `alpha * A @ B + beta * C` one by one, of real numbers: levels of weights bear no factor."""
    inputs = [call.read(0, order), add_weights(call, _in_columns(call, weights), "FULLY_CONNECTED")]
    extents = extents_of(call.result())
    product = call.between("FULLY_CONNECTED", inputs, extents, _product_options(call))
    if not call.given(2):
        call.emit("MUL", [product, call.constant(alpha, "alpha", np.float32)])
        return
    terms = []
    for found, factor, shape in ((product, alpha, extents), (call.read(2), beta, call.extents(2))):
        number = call.constant(factor, "factor", np.float32)
        terms.append(found if factor == 1 else call.between("MUL", [found, number], shape))
    call.emit("ADD", terms, {"pot_scale_int16": False})


def _computed_product(call: Call, order: Order, alpha: float, beta: float) -> None:
    if alpha != 1 or call.given(2):
        raise call.refusal("expected constant weights, or a product of two activations alone")
    options = {"adj_x": order == (1, 0), "adj_y": bool(call.whole("transB", 0)), "asymmetric_quantize_inputs": False}
    call.emit("BATCH_MATMUL", [call.read(0), call.read(1)], options)


def matmul(call: Call) -> None:
    """MatMul: FULLY_CONNECTED over the last axis where the second factor is a constant matrix, else BATCH_MATMUL."""
    weights = weights_of(call)
    if weights is not None and weights.array.ndim == 2 and call.rank() > 1:
        addition = call.step.addition
        bias = None
        if addition is not None:
            bias = next(value for value in addition.inputs if constant_array(value) is not None)
        fully_connected(call, weights.reshaped(weights.array.shape, (1, 0), 0), bias)
        return
    if call.rank() < 2 or call.rank(1) < 2:
        raise call.refusal(f"expected factors of two axes or more, got {call.rank()} and {call.rank(1)}")
    if call.integer and call.type() == "UINT8":
        call = call.in_float()  # LiteRT 2.3 has no such kernel
    factors, adjoint = [], []
    for number in (0, 1):
        order, flipped = _factor_order(call, number)
        adjoint.append(flipped)
        if number == 1 and weights is not None and weights.levels is not None:
            factors.append(add_weights(call, weights, "BATCH_MATMUL"))
            adjoint[1] = False
        else:
            factors.append(call.read(number, order))
    options = {"adj_x": adjoint[0], "adj_y": adjoint[1], "asymmetric_quantize_inputs": call.dynamic}
    call.emit("BATCH_MATMUL", factors, options)


def _factor_order(call: Call, number: int) -> tuple[Order, bool]:
    """Return the order to read a factor in, and whether the kernel is to exchange its last two axes.

    A factor that is found with these exchanged is read as it is found.
    """
    rank = call.rank(number)
    flipped = (*range(rank - 2), rank - 1, rank - 2)
    if number == 1 and call.array(number) is None and call.home(number) == flipped:
        return flipped, True
    return identity(rank), False


def fully_connected(
    call: Call, weights: Weights, bias: ir.Value | None, *, order: Order | None = None, factor: float = 1.0
) -> None:
    """Add a FULLY_CONNECTED with weights [out, in] over the input's last axis."""
    inputs = [call.read(0, order), add_weights(call, _in_columns(call, weights), "FULLY_CONNECTED")]
    inputs += add_bias(call, bias, weights.array.shape[0], factor=factor)
    call.emit("FULLY_CONNECTED", inputs, _product_options(call))


def _product_options(call: Call) -> dict[str, Any]:
    return {
        "keep_num_dims": call.rank() != 2, "weights_format": "DEFAULT", "asymmetric_quantize_inputs": call.dynamic
    }  # fmt: skip


def _in_columns(call: Call, weights: Weights) -> Weights:
    """Put the columns of weights [out, in] into the order that a flattened image has them in the file."""
    flattened = call.emitter.flattened.get(str(call.input().name))
    if flattened is None:
        return weights
    columns = np.moveaxis(np.arange(weights.array.shape[1]).reshape(flattened), 0, -1).reshape(-1)
    levels = None if weights.levels is None else weights.levels[:, columns]
    return replace(weights, array=weights.array[:, columns], levels=levels)

"""Operators with weights: convolutions and matrix products of levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from narrowgauge.exporters.tvm import conversion
from narrowgauge.exporters.tvm.builder import Builder, Levels, as_rows
from narrowgauge.exporters.tvm.convolution import (
    Convolution,
    Rounding,
    Window,
    convolution_kernel,
    packed_weights,
)
from narrowgauge.exporters.tvm.image import Image, whole
from narrowgauge.exporters.tvm.reading import Array, Encoded, array_of, encoding_of, halo_of, window_of
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.shapes import static_shape

_VECTOR = 16


def convolution(builder: Builder, node: ir.Node) -> bool:
    """Add a QLinearConv."""
    source, target = encoding_of(node, 1, 2), encoding_of(node, 6, 7)
    weights = constant_array(node.inputs[3])
    assert source is not None
    assert target is not None
    assert weights is not None
    assert node.inputs[0] is not None
    weights = weights if weights.ndim == 4 else weights[:, :, None, :]
    levels = builder.read(node.inputs[0], source, last=False, halo=halo_of(node, 0))
    window, _ = window_of(node)
    value, low, high = builder.written(node, target.signed)
    shape = static_shape(value)
    assert shape is not None
    groups = node.attributes.get_int("group", 1)
    depthwise = groups == levels.image.channels == weights.shape[0] > 1
    depth = levels.image.depth if depthwise else -(-weights.shape[0] // _VECTOR) * _VECTOR
    image = replace(whole(shape, last=False), depth=depth, halo=builder.halo(value))
    product = _Product(
        weights=weights, bias=constant_array(node.inputs[8]) if len(node.inputs) > 8 else None,
        scale=array_of(node, 4), source=source, target=target, low=low, high=high,
    )  # fmt: skip
    variable = _emit(builder, product, levels, image, window, groups)
    operand = target.operand(image)
    builder.write(value, variable, operand, signed=target.signed, last=False)
    return True


def product_of_levels(builder: Builder, node: ir.Node) -> bool:
    """Add a QLinearMatMul."""
    return _matrix(builder, node, {
        "scale": 1, "zero_point": 2, "weights": 3, "weights_scale": 4, "target": 6,
    })  # fmt: skip


def product_to_float(builder: Builder, node: ir.Node) -> bool:
    """Add a MatMulIntegerToFloat."""
    return _matrix(builder, node, {"scale": 2, "zero_point": 4, "weights": 1, "weights_scale": 3})


def gemm(builder: Builder, node: ir.Node) -> bool:
    """Add a QGemm, whose output is levels or float."""
    numbers = {"scale": 1, "zero_point": 2, "weights": 3, "weights_scale": 4}
    if len(node.inputs) > 6:
        numbers["bias"] = 6
    if len(node.inputs) > 8 and node.inputs[7] is not None:
        numbers["target"] = 7
    return _matrix(builder, node, numbers)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Product:
    """What a layer multiplies with, and how it rounds; without a target it does not.

    Attributes:
        weights: levels, `[outputs, inputs of a group, rows, columns]`.
        bias: int32 of each output, None where there is none.
        scale: of the weights, one or one of each output.
        source: of its input.
        target: of its output; None where it is float.
        low: lowest level that it writes.
        high: highest.
    """

    weights: Array
    bias: Array | None
    scale: Array
    source: Encoded
    target: Encoded | None
    low: int = 0
    high: int = 255


def _emit(builder: Builder, product: _Product, levels: Levels, image: Image, window: Window, groups: int) -> Any:
    """Add a convolution's kernel; return its output."""
    outputs = product.weights.shape[0]
    step = np.float32(product.target.scale if product.target is not None else 1.0)
    factors = np.zeros(image.depth, np.float32)
    # Two float32 operations in this order: then ONNX Runtime's integer operators have the same factor.
    factors[:outputs] = np.float32(product.source.scale) * product.scale.astype(np.float32).reshape(-1) / step
    shifts = _shifts(factors[:outputs]) if product.target is not None else None
    rounding = Rounding(by="float")
    if product.target is not None:
        rounding = Rounding(
            by="factor" if shifts is None else "shift", zero_point=product.target.zero_point, low=product.low,
            high=product.high,
        )  # fmt: skip
    convolution = Convolution(source=levels.image, result=image, window=window, groups=groups, rounding=rounding)
    bias = np.zeros(image.depth, np.int64)
    bias[:outputs] = 0 if product.bias is None else product.bias
    bias[:outputs] -= product.source.zero_point * product.weights.astype(np.int64).sum(axis=(1, 2, 3))
    numbers: Array = factors
    if shifts is not None:
        numbers = np.ones(image.depth, np.int32)
        numbers[:outputs] = shifts
    arguments = [
        levels.variable,
        builder.constant(packed_weights(convolution, builder.processor.product, product.weights)),
        # Sums are taken modulo 2^32: a bias that leaves int32 is cut to its low bits and does no harm.
        builder.constant(bias.astype(np.int32)),
        builder.constant(numbers),
    ]
    kind = "float32" if rounding.by == "float" else "uint8"
    key = ("convolution", convolution)
    return builder.call(
        key, lambda: convolution_kernel(convolution, builder.processor.product), arguments, image.size, kind
    )


def _shifts(factors: npt.NDArray[np.float32]) -> npt.NDArray[np.int32] | None:
    """Return by how many bits accumulators are shifted right, if every factor is 2^-s, s from 1 to 30; else None."""
    fractions, exponents = np.frexp(factors)  # factor = fraction * 2^exponent, 2^-s is 0.5 * 2^(1 - s)
    shifts = 1 - exponents
    exact = bool((fractions == 0.5).all()) and bool(((shifts >= 1) & (shifts <= 30)).all())
    return shifts.astype(np.int32) if exact else None


def _matrix(builder: Builder, node: ir.Node, numbers: Mapping[str, int]) -> bool:
    """Add a matrix product; `numbers` says which input is what."""
    source = encoding_of(node, numbers["scale"], numbers["zero_point"])
    weights = constant_array(node.inputs[numbers["weights"]])
    assert source is not None
    assert weights is not None
    assert node.inputs[0] is not None
    transposed = weights if node.attributes.get_int("transB", 0) else weights.T  # [outputs, inputs]
    levels = builder.read(node.inputs[0], source, last=True)
    target = encoding_of(node, numbers["target"], numbers["target"] + 1) if "target" in numbers else None
    value, low, high = (node.outputs[0], 0, 255) if target is None else builder.written(node, target.signed)
    shape = static_shape(node.outputs[0]) or (*levels.shape[:-1], transposed.shape[0])
    depth = -(-shape[-1] // _VECTOR) * _VECTOR
    rows = as_rows(levels)
    image = Image(batch=1, channels=shape[-1], height=1, width=rows.image.width, depth=depth)
    bias = numbers.get("bias")
    product = _Product(
        weights=np.ascontiguousarray(transposed)[:, :, None, None],
        bias=constant_array(node.inputs[bias]) if bias is not None and node.inputs[bias] is not None else None,
        scale=array_of(node, numbers["weights_scale"]), source=source, target=target, low=low, high=high,
    )  # fmt: skip
    variable = _emit(builder, product, rows, image, Window(), 1)
    written = target or Encoded(scale=1.0, zero_point=0, signed=False)  # of real numbers nobody asks
    found = Levels(variable=variable, operand=written.operand(image), signed=written.signed, shape=shape, last=True)
    if target is not None:
        builder.levels[str(value.name)] = found
    else:
        made = builder.taken_out(found, "crop", conversion.crop_kernel, "float32")
        builder.importer._nodes[str(value.name)] = made
    return True

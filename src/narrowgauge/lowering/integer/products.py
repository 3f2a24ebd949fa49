"""Products of levels with constant weights: Gemm and MatMul."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from narrowgauge.core.engines.kernels import Layer, LayerForm
from narrowgauge.core.engines.rescale import FloatRescale
from narrowgauge.errors import PlanError
from narrowgauge.graph.constants import constant_array
from narrowgauge.graph.edits import is_operator, sole_consumer
from narrowgauge.graph.shapes import dimensions
from narrowgauge.lowering.integer import attention
from narrowgauge.lowering.integer.convolutions import scaled_convolution
from narrowgauge.lowering.integer.emitter import Result, Site, Source, result_of
from narrowgauge.lowering.integer.fitting import Integers
from narrowgauge.lowering.integer.layers import (
    Weights,
    at_once,
    by_bytes,
    form_of,
    reach,
    unsigned_weights,
    weights_of,
    zero_point_of,
)
from narrowgauge.lowering.integer.rescaling import Sums, clipped, kept_rescale, write_levels
from narrowgauge.lowering.integer.shifted_products import shifted_product
from narrowgauge.lowering.integer.sums import within_result
from narrowgauge.lowering.pairs import LEVELS, dequantized

_INT32 = np.iinfo(np.int32)


def gemm(node: ir.Node, site: Site) -> None:
    """Gemm: rows times constant weights."""
    if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_int("transA", 0) != 0:
        raise PlanError("its first factor is scaled or transposed")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and node.attributes.get_float("beta", 1.0) != 1.0:
        raise PlanError("its bias is scaled")
    source, result = site.ends()
    weights = weights_of(node, 0 if node.attributes.get_int("transB", 0) else 1)
    site.write(_product(site, source, weights, bias, result), result)


def matmul(node: ir.Node, site: Site) -> None:
    """MatMul of two activations, or with a constant matrix and an Add of a constant per column that follows it."""
    if attention.reads_probabilities(node):
        attention.product(node, site)
        return
    second = node.inputs[1]
    levels = dequantized(second, LEVELS)
    if levels is not None and constant_array(levels.levels) is None:
        _batch_product(node, site)
        return
    bias, output = None, node.outputs[0]
    addition = sole_consumer(output)
    if addition is not None and is_operator(addition, "Add"):
        bias = next((value for value in addition.inputs if value is not output), None)
        output = addition.outputs[0]
    source, result = site.ends(output)
    weights = weights_of(node, 1)
    if weights.levels.ndim != 2:
        raise PlanError("its weights are not a matrix")
    site.write(_product(site, source, weights, bias, result), result)


def _batch_product(node: ir.Node, site: Site) -> None:
    """Multiply two activations."""
    first, second, result = site.source(0), site.source(1), result_of(node.outputs[0])
    layer = Layer(
        kind="batch_product", input=first.encoding, weights=second.encoding, output=result.encoding,
        bounds=result.rounding.bounds,
    )  # fmt: skip
    form, count = site.kernels.layer(layer), _summed_extent(node)
    if isinstance(form.rescale, FloatRescale) and form.bias is None and result.encoding.type.bits == 8:
        site.write(_scaled_batch_product(site, first, second, form.rescale, result), result)
        return
    sums = _batch_sums(site, first, second, count)
    site.write(write_levels(site, sums, form.bias, form.rescale, result), result)


def _summed_extent(node: ir.Node) -> int:
    """Return how many products are added up.

    Raises:
        PlanError: it is not known, or so many of bytes that 32 bits may not hold their sum.
    """
    first, second = (dimensions(value) or (None,) for value in node.inputs[:2])
    count = first[-1] or second[-2 if len(second) > 1 else -1]
    if not count or count * 255 * 255 > _INT32.max:
        raise PlanError(f"it adds up {count or 'an unknown number of'} products, which 32 bits may not hold")
    return count


def _scaled_batch_product(
    site: Site, first: Source, second: Source, form: FloatRescale, result: Result
) -> ir.Value:  # fmt: skip
    rescale, shape = kept_rescale(form, result), site.node.outputs[0].shape
    unit, multiplier = (
        site.constant(1, "unit", np.float32), site.constant(rescale.multiplier, "multiplier", np.float32)
    )  # fmt: skip
    zeros = [site.constant(zero_point_of(each), f"zero_point_{n}", np.uint8) for n, each in enumerate((first, second))]
    value = site.add(
        "QLinearMatMul", first.value, unit, zeros[0], second.value, multiplier, zeros[1], unit,
        site.constant(rescale.zero_point, "zero_point", np.uint8), type=ir.DataType.UINT8, shape=shape,
    )  # fmt: skip
    value.shape = shape
    return clipped(site, value, rescale.low, rescale.high)


def _batch_sums(site: Site, first: Source, second: Source, count: int) -> Sums:
    """Sum products of levels of 8 bits, or of the bytes of those of 16."""
    shape = site.node.outputs[0].shape
    spans = [2**each.encoding.type.bits - 1 for each in (first, second)]

    def rows(value: ir.Value, zero: int, name: str) -> ir.Value:
        def columns(other: ir.Value, other_zero: int, other_name: str) -> ir.Value:
            zeros = [
                site.constant(number, f"{which}_zero_point", np.uint8)
                for number, which in ((zero, name), (other_zero, f"second_{other_name}"))
            ]
            product = site.add("MatMulInteger", value, other, *zeros, type=ir.DataType.INT32, shape=shape)
            product.shape = shape
            return product

        return by_bytes(site, second, columns, _around(count * 255 * spans[1]))

    least, greatest = _around(count * spans[0] * spans[1])
    return Sums(value=by_bytes(site, first, rows, (least, greatest)), least=least, greatest=greatest)


def _around(largest: int) -> tuple[Integers, Integers]:
    return np.array([-largest]), np.array([largest])


def _product(site: Site, source: Source, weights: Weights, bias: ir.Value | None, result: Result) -> ir.Value:
    """Multiply rows, [..., inputs], with weights, [channels, inputs]."""
    if result.encoding.scale.ndim and result.rounding.clips:
        unbounded = replace(result, rounding=replace(result.rounding, clips=()))
        return within_result(site, _product(site, source, weights, bias, unbounded), result)
    if source.encoding.scale.ndim:
        return shifted_product(site, source, weights, bias, result)
    form = form_of(site, "product", source, weights, bias, result)
    if at_once(source, weights, form, result):
        if form.bias is None or not form.bias.any():
            return _scaled_product(site, source, weights, form, result)
        return _as_convolution(site, source, weights, form, result)
    least, greatest = reach(source, weights)
    steps = weights.levels - weights.zero_points
    kind = np.int8 if steps.min(initial=0) >= -128 and steps.max(initial=0) <= 127 else None
    matrix, zero_point = (steps.astype(kind), 0) if kind is not None else unsigned_weights(weights)
    factor, offset = site.constant(matrix.T, "weights"), site.constant(zero_point, "weights_zero_point", matrix.dtype)
    shape = site.node.outputs[0].shape

    def sums(value: ir.Value, zero: int, suffix: str) -> ir.Value:
        inputs = [value, factor, site.constant(zero, f"{suffix}_zero_point", np.uint8), offset]
        return site.add("MatMulInteger", *inputs, type=ir.DataType.INT32, shape=shape)

    value = by_bytes(site, source, sums, (least, greatest))
    return write_levels(site, Sums(value=value, least=least, greatest=greatest), form.bias, form.rescale, result)


def _scaled_product(site: Site, source: Source, weights: Weights, form: LayerForm, result: Result) -> ir.Value:
    assert isinstance(form.rescale, FloatRescale)
    rescale = kept_rescale(form.rescale, result)
    kind = np.dtype(np.int8 if weights.encoding.type.signed else np.uint8)
    multiplier = np.asarray(rescale.multiplier, dtype=np.float32)
    zero_point = np.full(multiplier.shape, weights.zero_points.flat[0], dtype=kind)
    one = site.constant(1, "unit", np.float32)
    value = site.add(
        "QLinearMatMul", source.value, one, site.constant(zero_point_of(source), "input_zero_point", np.uint8),
        site.constant(weights.levels.T, "weights", kind), site.constant(multiplier, "multiplier"),
        site.constant(zero_point, "weights_zero_point"), one,
        site.constant(rescale.zero_point, "zero_point", np.uint8),
        type=ir.DataType.UINT8, shape=site.node.outputs[0].shape,
    )  # fmt: skip
    return clipped(site, value, rescale.low, rescale.high)


def _as_convolution(site: Site, source: Source, weights: Weights, form: LayerForm, result: Result) -> ir.Value:
    """Multiply rows by a convolution of one position each: QLinearMatMul has no bias."""
    inputs = weights.levels.shape[1]
    shape = site.add("Shape", source.value, type=ir.DataType.INT64, shape=ir.Shape([None]), start=0, end=-1)
    channels = site.constant([len(weights.levels)], "channels", np.int64)
    shape = site.add("Concat", shape, channels, axis=0)
    rows = site.add(
        "Reshape",
        source.value,
        site.constant([-1, inputs, 1, 1], "rows", np.int64),
        shape=ir.Shape([None, inputs, 1, 1]),
    )
    column = Source(linear=source.linear, encoding=source.encoding, value=rows)
    kernel = Weights(levels=weights.levels[:, :, None, None], encoding=weights.encoding)
    value = scaled_convolution(site, column, kernel, form, result, {})
    return site.add("Reshape", value, shape, shape=site.node.outputs[0].shape, allowzero=1)

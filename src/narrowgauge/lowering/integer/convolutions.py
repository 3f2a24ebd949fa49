"""Convolutions of constant weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from narrowgauge.core.engines.kernels import LayerForm, LayerKind
from narrowgauge.core.engines.rescale import FloatRescale
from narrowgauge.graph.edits import is_operator
from narrowgauge.lowering.integer.emitter import Result, Site, Source, result_of
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


def convolution(node: ir.Node, site: Site) -> None:
    """Conv."""
    source, result = site.source(0), result_of(node.outputs[0])
    weights = weights_of(node, 0)
    groups = node.attributes.get_int("group", 1)
    kind: LayerKind = "depthwise" if groups > 1 and weights.levels.shape[1] == 1 else "convolution"
    form = form_of(site, kind, source, weights, bias_input(node), result, groups)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    value = convolved(site, source, weights, form, result, attributes)
    site.write(value, result)


def bias_input(node: ir.Node) -> ir.Value | None:
    """Return the bias of a convolution, None for none."""
    return node.inputs[2] if len(node.inputs) > 2 else None


def convolved(
    site: Site, source: Source, weights: Weights, form: LayerForm, result: Result, attributes: dict[str, Any]
) -> ir.Value:
    """Add the nodes of a convolution, of levels of 8 or 16 bits, that writes levels as they are kept."""
    if at_once(source, weights, form, result):
        return scaled_convolution(site, source, weights, form, result, attributes)
    sums = _convolution_sums(site, source, weights, attributes)
    return write_levels(site, sums, form.bias, form.rescale, result)


def scaled_convolution(
    site: Site, source: Source, weights: Weights, form: LayerForm, result: Result, attributes: dict[str, Any]
) -> ir.Value:
    """Add a QLinearConv."""
    assert isinstance(form.rescale, FloatRescale)
    rescale = kept_rescale(form.rescale, result)
    channels = len(weights.levels)
    kind = np.dtype(np.int8 if weights.encoding.type.signed else np.uint8)
    multiplier = np.asarray(rescale.multiplier, dtype=np.float32)
    zero_point = np.full(multiplier.shape, weights.zero_points.flat[0], dtype=kind)
    one = site.constant(1, "unit", np.float32)
    inputs = [
        source.value, one, site.constant(zero_point_of(source), "input_zero_point", np.uint8),
        site.constant(weights.levels, "weights", kind), site.constant(multiplier, "multiplier"),
        site.constant(zero_point, "weights_zero_point"), one,
        site.constant(rescale.zero_point, "zero_point", np.uint8),
    ]  # fmt: skip
    if form.bias is not None:
        inputs.append(site.constant(np.broadcast_to(form.bias, (channels,)), "bias", np.int32))
    shape = (
        site.node.outputs[0].shape
        if is_operator(site.node, "Conv", "ConvTranspose")
        else ir.Shape([None] * weights.levels.ndim)
    )
    value = site.add("QLinearConv", *inputs, type=ir.DataType.UINT8, shape=shape, **attributes)
    return clipped(site, value, rescale.low, rescale.high)


def _convolution_sums(site: Site, source: Source, weights: Weights, attributes: dict[str, Any]) -> Sums:
    least, greatest = reach(source, weights)
    levels, zero_point = unsigned_weights(weights)
    shared = [site.constant(levels, "weights"), site.constant(zero_point, "weights_zero_point", np.uint8)]
    shape = site.node.outputs[0].shape

    def sums(value: ir.Value, zero: int, suffix: str) -> ir.Value:
        inputs = [value, shared[0], site.constant(zero, f"{suffix}_zero_point", np.uint8), shared[1]]
        return site.add("ConvInteger", *inputs, type=ir.DataType.INT32, shape=shape, **attributes)

    value = by_bytes(site, source, sums, (least, greatest))
    return Sums(value=value, least=least, greatest=greatest, rank=weights.levels.ndim - 1)

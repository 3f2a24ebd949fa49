"""The last step of `core.engines.hybrid` as nodes: sums of products become real numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from narrowgauge.core.arithmetic import FloatArray
from narrowgauge.core.engines import hybrid
from narrowgauge.lowering.hybrid.maker import Maker

Write = Callable[[Maker, ir.Value, ir.Value, FloatArray, FloatArray | None], ir.Value]


def _in_fused_step(
    make: Maker, sums: ir.Value, scale: ir.Value, weight_scale: FloatArray, bias: FloatArray | None
) -> ir.Value:
    steps = make("Mul", sums, scale)
    if bias is None:
        return make("Mul", steps, make.constant(weight_scale))
    product = make("Mul", make.cast(steps, ir.DataType.DOUBLE), make.constant(weight_scale, np.float64))
    return make.cast(make("Add", product, make.constant(bias, np.float64)), ir.DataType.FLOAT)


def _at_once(
    make: Maker, sums: ir.Value, scale: ir.Value, weight_scale: FloatArray, bias: FloatArray | None
) -> ir.Value:
    return _biased(make, make("Mul", sums, make("Mul", scale, make.constant(weight_scale))), bias)


def _weights_first(
    make: Maker, sums: ir.Value, scale: ir.Value, weight_scale: FloatArray, bias: FloatArray | None
) -> ir.Value:
    return _biased(make, make("Mul", make("Mul", sums, make.constant(weight_scale)), scale), bias)


def _in_fours(
    make: Maker, sums: ir.Value, scale: ir.Value, weight_scale: FloatArray, bias: FloatArray | None
) -> ir.Value:
    """Channels lie along the first axis of the weights' scale, (channels, 1, ...)."""
    constant = make.constant(weight_scale)
    first = make("Mul", make("Mul", sums, constant), scale)
    channels = weight_scale.shape[0] if weight_scale.ndim else 0
    if channels % hybrid.LANES == 0:
        return _biased(make, first, bias)
    full = np.arange(channels) < channels // hybrid.LANES * hybrid.LANES
    last = make("Mul", make("Mul", sums, scale), constant)
    return _biased(make, make("Where", make.constant(full.reshape(weight_scale.shape), np.bool_), first, last), bias)


def _biased(make: Maker, real: ir.Value, bias: FloatArray | None) -> ir.Value:
    return real if bias is None else make("Add", real, make.constant(bias))


RESULTS: dict[hybrid.Results, Write] = {
    hybrid.scale_in_fused_step: _in_fused_step,
    hybrid.scale_at_once: _at_once,
    hybrid.scale_weights_first: _weights_first,
    hybrid.scale_in_fours: _in_fours,
}
"""Results in numpy -> in nodes."""

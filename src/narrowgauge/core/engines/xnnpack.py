"""LiteRT as it runs by default: XNNPACK's kernels where its delegate takes the operator, LiteRT's own where not.

Compared with LiteRT 2.3 on x86-64, integer for integer (tests/core/engines/test_arithmetics.py). Sources are files of
google/XNNPACK.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import DOUBLE_ROUNDING, integer_rescale, truncated_mantissa_form
from narrowgauge.core.engines.kernels import (
    AxisInterpolation,
    Bounds,
    CoordinateMode,
    Kernels,
    Layer,
    LayerForm,
    PairForm,
    ResizeForm,
    steps,
    storage_limits,
)
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale, Levels, Sums
from narrowgauge.core.engines.tflite_checks import (
    check_activation,
    check_alike,
    check_count,
    check_fixed_output,
    check_layer,
    check_resized,
)
from narrowgauge.core.engines.tflite_optimized import TFLITE_NEON
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE
from narrowgauge.core.engines.tflite_tables import (
    Function,
    Table,
    average_pool,
    bias_levels,
    concatenated,
    divided,
    kernel_name,
    limits_even,
    real_function,
    real_levels,
    saturated,
    softmax,
)
from narrowgauge.core.engines.tflite_unary import leaky_relu as tflite_leaky_relu
from narrowgauge.core.engines.tflite_unary import wide_softmax
from narrowgauge.errors import PlanError


def layer_form(layer: Layer) -> LayerForm:
    """Sums of a layer to levels: one float32 multiplier, half to even (requantization.h, the rule fp32).

    The multiplier is `float32(float32(input scale * weight scale) / output scale)`. LiteRT's own kernels take 16-bit
    activations, convolutions with weights of 4 bits, transposed ones whose output has no fixed shape, and depthwise
    layers of uint8 whose file says a dimension other than 0 for the weights' only scale, which no encoding tells: these
    round as `tflite_optimized` says.

    Raises:
        PlanError: LiteRT has no such layer.
    """
    check_layer(layer)
    shifted = layer.kind == "batch_product" and int(layer.weights.zero_point) != 0
    narrow = layer.weights.type.bits < 8 and layer.kind != "product"
    open_shape = layer.kind == "transposed" and not layer.fixed_shape
    if layer.input.type.bits == 16 or shifted or narrow or open_shape:
        return TFLITE_NEON.layer(layer)
    _check_ratio("a layer with weights", _multiplier(layer), 0, 256)
    low, high = limits_even(layer.output, layer.bounds)
    rescale = FloatRescale(
        multiplier=_multiplier(layer), zero_point=int(layer.output.zero_point), low=low, high=high
    )  # fmt: skip
    return LayerForm(bias=bias_levels(layer), rescale=rescale)


def _check_ratio(what: str, ratio: npt.NDArray[np.floating[Any]], low: float, high: float) -> None:
    """Refuse scales that XNNPACK does not take.

    Raises:
        PlanError: naming the ratio and its bounds.
    """
    if (ratio < low).any() or (ratio >= high).any():
        raise PlanError(
            f"expected a step of the inputs of {what} to be {low:g} to {high:g} steps of the output, as XNNPACK's "
            f"kernels ask, got {float(ratio.min()):g} to {float(ratio.max()):g}"
        )


def truncated_layer_form(layer: Layer) -> LayerForm:
    """Sums of a layer to levels on ARM, uint8: the multiplier's 24 bits, half up (requantization.h, the rule rndnu)."""
    form = layer_form(layer)
    if layer.input.type.signed or not isinstance(form.rescale, FloatRescale):
        return form
    limits = form.rescale.low, form.rescale.high
    return replace(form, rescale=truncated_mantissa_form(_multiplier(layer), form.rescale.zero_point, limits))


def _multiplier(layer: Layer) -> npt.NDArray[np.float32]:
    unit = layer.input.scale * layer.weights.scale
    return np.asarray(unit / layer.output.scale, dtype=np.float32)


def unary(operator: str, attributes: Mapping[str, Any], input: Encoding, output: Encoding, bounds: Bounds) -> Table:
    """Table of an operator on each level; see `Kernels.unary`.

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    operator = kernel_name(operator, bounds)
    check_activation(input, f"the input of {operator}")
    check_activation(output, f"the output of {operator}")
    if 16 in (input.type.bits, output.type.bits) or input.type.storage != output.type.storage:
        return TFLITE_NEON.unary(operator, attributes, input, output, bounds)
    if operator == "Requantize" and 1 / 256 <= input.scale / output.scale < 128:
        return requantized(input, output, bounds)
    if operator in ("Sigmoid", "Tanh") or (operator == "Elu" and input.type.signed):
        if operator == "Sigmoid":
            check_fixed_output(operator, output, 1 / 256, storage_limits(output)[0])
        return function_table(real_function(operator, attributes, output), input, output)
    if operator == "LeakyRelu":
        return leaky_relu(input, output, float(attributes.get("alpha", 0.01)))
    return TFLITE_NEON.unary(operator, attributes, input, output, bounds)


def function_table(function: Function, input: Encoding, output: Encoding) -> Table:
    """Table of a function of 8-bit levels, each step in float32, the zero point added before the rounding to even.

    src/reference/unary-elementwise.cc.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        levels = function(real_levels(input)) * (np.float32(1) / output.scale) + np.float32(int(output.zero_point))
    return saturated(np.rint(levels), output)


def requantized(input: Encoding, output: Encoding, bounds: Bounds) -> Table:
    """Table of levels from one scale to another of the same type: a multiplier in steps of 1/256, half up.

    microparams-init.c, xnn_init_qs8_cvt_scalar_params.
    """
    multiplier = _in_256ths(input.scale / output.scale)
    return np.clip(_rescaled(steps(input), multiplier, output), *limits_even(output, bounds))


def leaky_relu(input: Encoding, output: Encoding, slope: float) -> Table:
    """Each side of zero with a multiplier in steps of 1/256, half up.

    microparams-init.c, xnn_init_qs8_lrelu_scalar_params.
    """
    values, ratio = steps(input), input.scale / output.scale
    below = ratio * np.float32(slope)
    if not (1 / 256 <= ratio < 128 and abs(below) >= 1 / 256 and -127.99609375 <= below <= 128):
        return tflite_leaky_relu(input, output, slope, DOUBLE_ROUNDING)  # what the delegate leaves
    return _rescaled(values, np.where(values >= 0, _in_256ths(ratio), _in_256ths(below)), output)


def _in_256ths(ratio: np.floating[Any] | npt.NDArray[np.float32]) -> int:
    return int(np.rint(np.float32(256) * ratio))


def _rescaled(values: npt.NDArray[np.int64], multiplier: int | npt.NDArray[np.int64], output: Encoding) -> Table:
    return saturated(((values * 128 * multiplier + 2**14) >> 15) + int(output.zero_point), output)


def pair(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> PairForm:
    """How two levels become one; see `Kernels.pair`. LiteRT's own kernels take scales that XNNPACK does not.

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    check_alike(operator, first, second, output)
    if output.type.bits == 16 or not _delegated(operator, first, second, output):
        return TFLITE_NEON.pair(operator, first, second, output, bounds)
    zero_point, (low, high) = int(output.zero_point), limits_even(output, bounds)
    if operator == "Mul":
        multiplier = np.asarray(first.scale * second.scale / output.scale, dtype=np.float32)
        rescale = FloatRescale(multiplier=multiplier, zero_point=zero_point, low=low, high=high)
        return PairForm(first=steps(first), second=steps(second), combine="multiply", rescale=rescale)
    # microparams-init.c, xnn_init_qs8_add_minmax_scalar_params: the greater multiplier has 21 bits.
    ratios = [one.scale / output.scale for one in (first, second)]
    shift = 21 - int(np.frexp(max(ratios))[1])
    parts = [int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in ratios]
    rescale_sum = integer_rescale(1, 1 << (shift - 1), shift, None, zero_point, (low, high))
    sign = -1 if operator == "Sub" else 1
    return PairForm(
        first=steps(first) * parts[0], second=sign * steps(second) * parts[1], combine="add", rescale=rescale_sum
    )


def _delegated(operator: str, first: Encoding, second: Encoding, output: Encoding) -> bool:
    """Whether XNNPACK's delegate takes an operator on two tensors of these scales (src/subgraph/binary.c)."""
    if operator == "Mul":
        return bool(2.0**-16 <= np.float32(first.scale * second.scale / output.scale) < 256)
    return operator in ("Add", "Sub") and all(2.0**-10 <= one.scale / output.scale < 256 for one in (first, second))


def binary(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> npt.NDArray[np.int64]:
    """Table of every pair of 8-bit levels; see `Kernels.binary`."""
    if first.type.bits != 8 or operator not in ("Add", "Sub", "Mul"):
        return TFLITE_REFERENCE.binary(operator, first, second, output, bounds)
    return pair(operator, first, second, output, bounds).table()


def mean(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Sum of levels to the level of their mean.

    `S` of `_in_float32` is `float32(float32(input scale / output scale) * float32(1 / count))`.
    """
    check_alike("a mean", input, output)
    check_count("a mean", count)
    if input.type.bits == 16:
        return TFLITE_REFERENCE.mean(input, output, count)
    return _in_float32(input, output, count, input.scale / output.scale * (np.float32(1) / np.float32(count)))


def sum_form(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Sum of levels to the level of their sum; LiteRT's own kernel takes 16-bit levels."""
    check_alike("a sum", input, output)
    if input.type.bits == 16:
        return TFLITE_NEON.sum(input, output, count)
    return _in_float32(input, output, count, np.asarray(input.scale / output.scale))


def _in_float32(input: Encoding, output: Encoding, count: int, factor: npt.NDArray[np.floating[Any]]) -> LayerForm:
    """Rescale a sum of levels in float32, the zero point added before the rounding, half to even.

    `rint(float32(float32(float32(sum) * S) + B))`, `B = float32(zero point - float32(float32(input zero point * count)
    * S))` (XNNPACK's reduce kernels).
    """
    low, high = storage_limits(output)
    offset = np.float32(np.float32(int(output.zero_point)) - np.float32(int(input.zero_point) * count) * factor)

    def compute(sums: Sums) -> Levels:
        levels = np.rint(np.asarray(sums).astype(np.float32) * factor + offset)
        return np.asarray(np.clip(levels, low, high), dtype=np.int64)

    return LayerForm(bias=None, rescale=ComputedRescale(compute=compute, channels=0, low=low, high=high))


def resize(
    input: Encoding, output: Encoding, mode: CoordinateMode, extents: tuple[int, ...], wanted: tuple[int, ...]
) -> ResizeForm:
    """Interpolate with weights of 11 bits, half up (indirection.c, xnn_indirection_init_resize_bilinear2d_hwc_q11).

    Raises:
        PlanError: the levels change.
    """
    check_resized(input, output)
    if input.type.bits == 16:
        return TFLITE_REFERENCE.resize(input, output, mode, extents, wanted)
    axes = tuple(_axis(mode, extent, size) for extent, size in zip(extents, wanted, strict=True))
    return ResizeForm(axes=axes, rescale=divided(sum(axis.bits for axis in axes), output, half_away=False))


def _axis(mode: CoordinateMode, extent: int, size: int) -> AxisInterpolation:
    """Where each pixel lies, in float32."""
    corner = int(mode == "align_corners" and size != 1)
    scale = np.float32(extent - corner) / np.float32(size - corner)
    places = np.arange(size).astype(np.float32) * scale
    if mode == "half_pixel":
        places = places + (np.float32(0.5) * scale - np.float32(0.5))
        places = np.clip(places, np.float32(0), np.float32(extent - 1))
    first = places.astype(np.int64)
    weight = np.rint((places - first.astype(np.float32)) * np.float32(2**11)).astype(np.int64)
    return AxisInterpolation(first=first, second=np.minimum(first + 1, extent - 1), weight=weight, bits=11)


XNNPACK = Kernels(
    name="xnnpack", source="google/XNNPACK, LiteRT's default delegate; measured on LiteRT 2.3, x86-64",
    quantize="reciprocal", layer=layer_form, unary=unary, binary=binary, pair=pair, mean=mean,
    average_pool=average_pool, softmax=softmax, concat=concatenated, resize=resize, sum=sum_form,
    wide_softmax=wide_softmax, tflite_lstm=True, tflite_files=True,
)  # fmt: skip

XNNPACK_RNDNU = replace(
    XNNPACK, name="xnnpack-rndnu", layer=truncated_layer_form, tflite_lstm=False,
    source="google/XNNPACK, src/configs/gemm-config.c and dwconv-config.c: uint8 on ARM NEON; not measured",
)  # fmt: skip

"""LiteRT's reference kernels, and those of builds that round once.

Compared with LiteRT 2.3 on x86-64, integer for integer (tests/core/engines/test_arithmetics.py). Reference kernels are
those of `OpResolverType.BUILTIN_REF`. Sources are named below `tflite/kernels/` of google-ai-edge/LiteRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import (
    DOUBLE_ROUNDING,
    ROUNDING_16_BITS,
    SINGLE_ROUNDING,
    Multiplier,
    Multiply,
    Rule,
    half_away_form,
    quantized_multiplier,
)  # fmt: skip
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
from narrowgauge.core.engines.rescale import Rescale
from narrowgauge.core.engines.tflite_checks import (
    check_activation,
    check_alike,
    check_count,
    check_fixed_output,
    check_layer,
    check_resized,
)
from narrowgauge.core.engines.tflite_pairs import parametric_relu, squared_difference
from narrowgauge.core.engines.tflite_tables import (
    Table,
    average_pool,
    bias_levels,
    concatenated,
    divided,
    function_table,
    kernel_name,
    limits_away,
    ratio_multiplier,
    real_function,
    softmax,
)  # fmt: skip
from narrowgauge.core.engines.tflite_unary import (
    absolute,
    function_table_16_bits,
    hard_swish,
    leaky_relu,
    rescaled,
    sigmoid_16_bits,
    tanh_16_bits,
    wide_softmax,
)
from narrowgauge.errors import PlanError


def layer_form(layer: Layer, rule: Rule, *, half_away_products: bool) -> LayerForm:
    """Sums of a layer to levels.

    The multiplier is input scale * weight scale / output scale in float64; with uint8, in products of two activations,
    and in neon's fully connected layers of one weight scale, the product in float32 first (kernel_util.cc). Sums of
    16-bit activations are int64 and multiplied by 15 bits of it. `half_away_products`: reference fully connected
    layers, and all of 16-bit activations with a bias, multiply in float64 and round half away
    (integer_ops/fully_connected.h). Optimized ones without a bias sum 16-bit activations in int32 like all others
    (fully_connected.cc, FullyConnectedPerChannelInt16); networks whose sums exceed it are not told from those that fit.

    Raises:
        PlanError: LiteRT has no such layer.
    """
    check_layer(layer)
    product, wide = layer.kind == "product", layer.input.type.bits == 16
    exact_product = product and (half_away_products or (wide and layer.bias is not None))
    one_scale = product and not layer.weights.scale.ndim
    if not exact_product and (not layer.input.type.signed or one_scale or layer.kind == "batch_product"):
        unit = (layer.input.scale * layer.weights.scale).astype(np.float64)
    else:
        unit = layer.input.scale.astype(np.float64) * layer.weights.scale.astype(np.float64)
    real = unit / layer.output.scale.astype(np.float64)
    zero_point, limits = int(layer.output.zero_point), limits_away(layer.output, layer.bounds)
    rescale: Rescale
    if exact_product:
        rescale = half_away_form(real, zero_point, limits)
    else:
        how = ROUNDING_16_BITS if wide and not product else rule
        rescale = how.form(quantized_multiplier(real), zero_point, limits)
    return LayerForm(bias=bias_levels(layer), rescale=rescale)


def unary(
    operator: str, attributes: Mapping[str, Any], input: Encoding, output: Encoding, bounds: Bounds, *, rule: Rule
) -> Table:
    """Table of an operator on each level; see `Kernels.unary`.

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    operator = kernel_name(operator, bounds)
    check_activation(input, f"the input of {operator}")
    check_activation(output, f"the output of {operator}")
    if operator == "Requantize":  # quantize.cc: scales divided in float64
        return rescaled(input, output, bounds, np.float64(input.scale) / np.float64(output.scale), rule)
    check_alike(operator, input, output)
    if operator in ("Relu", "Clip"):  # activations.cc, ReluPrepare: scales divided in float32
        low = max(bounds[0], 0.0) if operator == "Relu" else bounds[0]
        return rescaled(input, output, (low, bounds[1]), np.float64(input.scale / output.scale), rule)
    if operator == "LeakyRelu":
        return leaky_relu(input, output, float(attributes.get("alpha", 0.01)), rule)
    if operator == "Abs" and input.type.signed:
        return absolute(input, output, rule)
    if operator == "HardSwish" and input.type.bits == 8:
        return hard_swish(input, output)
    return function(operator, attributes, input, output)


def function(operator: str, attributes: Mapping[str, Any], input: Encoding, output: Encoding) -> Table:
    """Table of a function of real numbers.

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    if input.type.bits == 8:
        if operator == "Sigmoid":
            check_fixed_output(operator, output, 1 / 256, storage_limits(output)[0])
        return function_table(real_function(operator, attributes, output), input, output)
    if operator in ("Sigmoid", "Tanh"):
        check_fixed_output(operator, output, 1 / 32768, 0)
        return sigmoid_16_bits(input) if operator == "Sigmoid" else tanh_16_bits(input)
    if operator in ("Exp", "Log"):
        return function_table_16_bits(real_function(operator, attributes, output), input, output)
    raise PlanError(f"no integer arithmetic of LiteRT is known for {operator} of {input.type.name}")


def pair(
    operator: str,
    first: Encoding,
    second: Encoding,
    output: Encoding,
    bounds: Bounds,
    *,
    rule: Rule,
    terms: Multiply | None = None,
) -> PairForm:
    """How two levels become one; see `Kernels.pair`. `terms`: rescales the terms of a sum, where that is not the rule.

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    check_alike(operator, first, second, output)
    zero_point, limits = int(output.zero_point), limits_away(output, bounds)
    if operator in ("Add", "Sub"):
        return _sum(operator, (first, second, output), limits, rule, terms or rule.literal)
    if operator == "Mul":  # mul.cc: product and quotient of the scales in float32
        real = np.float64(first.scale * second.scale / output.scale)
        form = rule.form(ratio_multiplier(real), zero_point, limits)
        return PairForm(first=steps(first), second=steps(second), combine="multiply", rescale=form)
    if operator in ("Max", "Min") and first.same_as(output) and second.same_as(output):  # maximum_minimum.h: levels
        form = rule.form(quantized_multiplier(1.0), zero_point, limits)
        greater = PairForm(first=steps(first), second=steps(second), combine="maximum", rescale=form)
        return greater if operator == "Max" else replace(greater, combine="minimum")
    raise PlanError(f"no integer arithmetic of LiteRT is known for {operator} of {first.type.name} with these scales")


def _sum(
    operator: str,
    encodings: tuple[Encoding, Encoding, Encoding],
    limits: tuple[int, int],
    rule: Rule,
    terms: Multiply,
) -> PairForm:
    """Add in units of twice the greater scale over 2^20, of 16-bit levels 2^15 (add.cc, Prepare; add.h)."""
    first, second, output = encodings
    left = 15 if output.type.bits == 16 else 20
    twice_greater = 2 * np.float64(max(first.scale, second.scale))
    parts = [
        terms(steps(one) << left, quantized_multiplier(np.float64(one.scale) / twice_greater))
        for one in (first, second)
    ]
    real = twice_greater / (2.0**left * np.float64(output.scale))
    form = rule.form(quantized_multiplier(real), int(output.zero_point), limits)
    sign = -1 if operator == "Sub" else 1
    return PairForm(first=parts[0], second=sign * parts[1], combine="add", rescale=form)


def binary(
    operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds, *, rule: Rule
) -> npt.NDArray[np.int64]:
    """Table of every pair of 8-bit levels; see `Kernels.binary`.

    Raises:
        PlanError: LiteRT has no such kernel. Its DIV shifts small quotients by more than 31 bits, so that what it
            gives for them is anything.
    """
    if first.type.bits != 8:
        raise PlanError(f"expected 8-bit levels for a table of pairs of {operator}, got {first.type.name}")
    check_alike(operator, first, second, output)
    if operator == "PRelu":
        return parametric_relu(first, second, output, rule)
    if operator == "SquaredDifference" and first.type.signed:
        return squared_difference(first, second, output, rule)
    return pair(operator, first, second, output, bounds, rule=rule).table()


def mean(input: Encoding, output: Encoding, count: int, *, rule: Rule) -> LayerForm:
    """Sum of levels to the level of their mean (reduce.h, QuantizedMeanOrSum).

    The multiplier of the scales is divided by `count` in integers.
    """
    check_alike("a mean", input, output)
    check_count("a mean", count)
    multiplier = quantized_multiplier(np.float64(input.scale) / np.float64(output.scale))
    shift = min(count.bit_length() - 1, 32, 31 + int(multiplier.shift))
    divided = Multiplier(q31=(multiplier.q31 << shift) // count, shift=multiplier.shift - shift)
    return LayerForm(
        bias=np.asarray(-int(input.zero_point) * count, dtype=np.int64),
        rescale=rule.form(divided, int(output.zero_point), storage_limits(output)),
    )


def sum_form(input: Encoding, output: Encoding, count: int, *, rule: Rule) -> LayerForm:
    """Sum of levels to the level of their sum (reduce.h, QuantizedMeanOrSum).

    Raises:
        PlanError: signed levels, which the reference kernel of LiteRT 2.3 reads as uint8.
    """
    check_alike("a sum", input, output)
    if input.type.signed:
        raise PlanError(f"expected uint8 of ReduceSum: LiteRT's reference kernel reads {input.type.name} as uint8")
    multiplier = quantized_multiplier(np.float64(input.scale) / np.float64(output.scale))
    return LayerForm(
        bias=np.asarray(-int(input.zero_point) * count, dtype=np.int64),
        rescale=rule.form(multiplier, int(output.zero_point), storage_limits(output)),
    )


def resize(
    input: Encoding, output: Encoding, mode: CoordinateMode, extents: tuple[int, ...], wanted: tuple[int, ...]
) -> ResizeForm:
    """Interpolate with weights of 10 bits, half away from zero (resize_bilinear.h, ResizeBilinearInteger).

    Raises:
        PlanError: the levels change, or uint8, which the reference kernel interpolates in float32.
    """
    check_resized(input, output)
    if not input.type.signed:
        raise PlanError("expected int8 or int16 of a linear Resize: LiteRT's reference kernel takes uint8 in float")
    axes = tuple(_axis(mode, extent, size) for extent, size in zip(extents, wanted, strict=True))
    return ResizeForm(axes=axes, rescale=divided(sum(axis.bits for axis in axes), output, half_away=True))


def _axis(mode: CoordinateMode, extent: int, size: int) -> AxisInterpolation:
    corners = mode == "align_corners" and size > 1
    before, after = (extent - 1, size - 1) if corners else (extent, size)
    scale = (2**10 * before + after // 2) // after
    places = np.arange(size, dtype=np.int64) * scale
    if mode == "half_pixel":
        places += scale // 2 - 2**9
    first = np.maximum(places >> 10, 0)
    second = np.minimum(-(-places >> 10), extent - 1)
    first = np.minimum(first, second)
    weight = np.where(second > first, places - 2**10 * first, 0)
    return AxisInterpolation(first=first, second=second, weight=weight, bits=10)


def kernels(name: str, rule: Rule, source: str, *, half_away_products: bool) -> Kernels:
    """LiteRT's reference kernels with one rule of rounding."""
    return Kernels(
        name=name, source=source, quantize="divide_half_away",
        layer=partial(layer_form, rule=rule, half_away_products=half_away_products), unary=partial(unary, rule=rule),
        binary=partial(binary, rule=rule), pair=partial(pair, rule=rule), mean=partial(mean, rule=rule),
        average_pool=average_pool, softmax=softmax, concat=concatenated, resize=resize,
        sum=partial(sum_form, rule=rule), wide_softmax=wide_softmax, tflite_lstm=half_away_products,
        tflite_files=True,
    )  # fmt: skip


TFLITE_REFERENCE = kernels(
    "tflite-reference", DOUBLE_ROUNDING,
    "google-ai-edge/LiteRT, tflite/kernels/internal/reference; measured on LiteRT 2.3 with BUILTIN_REF",
    half_away_products=True,
)  # fmt: skip

TFLITE_SINGLE_ROUNDING = kernels(
    "tflite-single-rounding", SINGLE_ROUNDING,
    "google-ai-edge/LiteRT, tflite/kernels/internal/common.cc built with TFLITE_SINGLE_ROUNDING; not measured",
    half_away_products=False,
)  # fmt: skip

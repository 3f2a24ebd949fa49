"""LiteRT's optimized kernels, which run without a delegate: layers and rescaled levels round as ARM's instructions do.

Compared with LiteRT 2.3 on x86-64, which emulates those instructions, integer for integer
(tests/core/engines/test_arithmetics.py). Sources are named below `tflite/kernels/` of google-ai-edge/LiteRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import round_half_away
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import DOUBLE_ROUNDING, NEON_DOUBLE_ROUNDING, single_rounding, truncated_shift
from narrowgauge.core.engines.kernels import Bounds, Layer, LayerForm, PairForm, steps, storage_limits
from narrowgauge.core.engines.rescale import ComputedRescale, IntegerRescale, Levels, Sums
from narrowgauge.core.engines.tflite_checks import check_activation, check_alike, check_fixed_output
from narrowgauge.core.engines.tflite_fixed_point import sigmoid_table, tanh_table
from narrowgauge.core.engines.tflite_reference import TFLITE_REFERENCE, layer_form, pair, unary
from narrowgauge.core.engines.tflite_tables import Table, kernel_name
from narrowgauge.core.engines.tflite_unary import leaky_relu
from narrowgauge.errors import PlanError

_VECTOR = 8
"""Channels whose sums of a transposed convolution are rounded together."""


def optimized_layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels, half up after the first rounding.

    Depthwise layers of uint8 and products of two activations round as the reference does. So do the channels of a
    transposed convolution of int8 that fill no vector of 8 (optimized_ops.h, Quantize).

    Raises:
        PlanError: LiteRT has no such layer.
    """
    if layer.kind == "transposed" and layer.input.type.signed and layer.input.type.bits == 8:
        return _in_vectors(layer)
    unsigned_depthwise = layer.kind == "depthwise" and not layer.input.type.signed
    scalar = unsigned_depthwise or layer.kind == "batch_product"
    return layer_form(layer, DOUBLE_ROUNDING if scalar else NEON_DOUBLE_ROUNDING, half_away_products=False)


def _in_vectors(layer: Layer) -> LayerForm:
    """Half up in the channels of whole vectors, half away in those left over."""
    vectors, others = (
        layer_form(layer, rule, half_away_products=False) for rule in (NEON_DOUBLE_ROUNDING, DOUBLE_ROUNDING)
    )
    one, other = vectors.rescale, others.rescale
    assert isinstance(one, IntegerRescale)
    assert isinstance(other, IntegerRescale)
    sizes = [array.size for array in (layer.weights.scale, layer.bias) if array is not None and array.ndim]
    channels = layer.channels or max(sizes, default=0)
    if not channels % _VECTOR:
        return vectors
    inside = np.arange(channels) < channels - channels % _VECTOR
    numbers = ("multiplier", "addend", "shift", "below", "above")
    joined = {name: np.where(inside, getattr(one, name), getattr(other, name)) for name in numbers}
    return replace(vectors, rescale=replace(one, **joined))


def optimized_unary(
    operator: str, attributes: Mapping[str, Any], input: Encoding, output: Encoding, bounds: Bounds
) -> Table:
    """Table of an operator on each level; see `Kernels.unary`.

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    operator = kernel_name(operator, bounds)
    check_activation(input, f"the input of {operator}")
    check_activation(output, f"the output of {operator}")
    if operator in ("Sigmoid", "Tanh") and input.type.bits == 16 and input.scale in _OPTIMIZED_SCALES[operator]:
        return gemmlowp_function(operator, input, output)
    if operator == "LeakyRelu" and input.type.bits == output.type.bits == 16:
        check_alike(operator, input, output)
        slope = float(attributes.get("alpha", 0.01))
        return leaky_relu(input, output, slope, DOUBLE_ROUNDING, negative_multiplier=True)
    vectors = operator == "Requantize" and input.type.bits == output.type.bits == 8
    rule = NEON_DOUBLE_ROUNDING if vectors else DOUBLE_ROUNDING
    return unary(operator, attributes, input, output, bounds, rule=rule)


_OPTIMIZED_SCALES = {"Sigmoid": (2.0**-12,), "Tanh": (2.0**-12, 2.0**-11)}
"""Scales of 16-bit levels for which LiteRT takes its optimized kernels (kernels/activations.cc)."""


def gemmlowp_function(operator: str, input: Encoding, output: Encoding) -> Table:
    """Sigmoid or tanh of 16-bit levels in gemmlowp's fixed point (internal/optimized/optimized_ops.h).

    Raises:
        PlanError: LiteRT has no such kernel.
    """
    check_alike(operator, input, output)
    check_fixed_output(operator, output, 1 / 32768, 0)
    if operator == "Sigmoid":
        return sigmoid_table()
    doubled = np.clip(steps(input) * int(input.scale * 2.0**12), -(2**15), 2**15 - 1)
    return np.asarray(tanh_table(3)[doubled + 2**15])


def optimized_pair(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> PairForm:
    """How two levels become one; see `Kernels.pair`.

    Vectors of ADD rescale their terms with one rounding, of uint8 with another and a shift down
    (internal/optimized/integer_ops/add.h, optimized_ops.h); what is left over, or broadcast, as the reference does.

    Raises:
        PlanError: LiteRT has no such kernel, or its vectors overflow.
    """
    vectors = single_rounding if output.type.signed else truncated_shift
    terms = vectors if operator == "Add" else None
    form = pair(operator, first, second, output, bounds, rule=DOUBLE_ROUNDING, terms=terms)
    if operator in ("Add", "Mul") and output.type.bits == 8:
        _check_vectors(operator, form)
    return form


def _check_vectors(operator: str, form: PairForm) -> None:
    """Refuse what vectors of ADD and MUL of 8-bit levels cut off: they keep 16 bits before they saturate.

    Raises:
        PlanError: naming how far the result reaches.
    """
    unbounded = replace(form, rescale=replace(form.rescale, low=-(2**62), high=2**62))
    ends = np.array([0, -1])
    reach = int(np.abs(unbounded.levels(ends[:, None], ends)).max())
    if reach >= 2**15:
        raise PlanError(
            f"expected {operator} of 8-bit levels to reach fewer than {2**15} steps of the output before it saturates, "
            f"as vectors of LiteRT's kernel keep 16 bits, got {reach}"
        )


def optimized_binary(
    operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds
) -> npt.NDArray[np.int64]:
    """Table of every pair of 8-bit levels; see `Kernels.binary`."""
    if operator in ("Add", "Mul") and first.type.bits == 8:
        return optimized_pair(operator, first, second, output, bounds).table()
    return TFLITE_REFERENCE.binary(operator, first, second, output, bounds)


def optimized_sum(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Sum of levels to the level of their sum in float32, half away (internal/optimized/reduce.h, QuantizedMeanOrSum).

    `away(float32(float32(float32(sum) * r) - float32(float32(zero point * r) * count))) + zero point`, `r` the ratio of
    the scales.
    """
    check_alike("a sum", input, output)
    ratio, (low, high) = np.asarray(input.scale / output.scale), storage_limits(output)
    offset = np.float32(int(input.zero_point)) * ratio * np.float32(count)

    def compute(sums: Sums) -> Levels:
        steps_out = round_half_away(np.asarray(sums).astype(np.float32) * ratio - offset)
        return np.asarray(np.clip(steps_out.astype(np.float64) + int(output.zero_point), low, high), dtype=np.int64)

    return LayerForm(bias=None, rescale=ComputedRescale(compute=compute, channels=0, low=low, high=high))


TFLITE_NEON = replace(
    TFLITE_REFERENCE,
    name="tflite-neon",
    source="google-ai-edge/LiteRT, tflite/kernels/internal/optimized; layers, requantization, sums and pairs were "
    "measured on LiteRT 2.3 without delegate (x86-64 emulates the instructions). What fills no vector of a depthwise "
    "layer, of QUANTIZE or of ADD rounds as the reference does",
    quantize="reciprocal",
    layer=optimized_layer,
    unary=optimized_unary,
    binary=optimized_binary,
    pair=optimized_pair,
    sum=optimized_sum,
    tflite_lstm=False,
)

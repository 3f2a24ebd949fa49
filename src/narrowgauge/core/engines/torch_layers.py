"""Layers with weights in PyTorch's integer engines on the CPU: how sums become levels.

Each rule gave every integer of PyTorch 2.13 on x86-64 with AVX-512 and VNNI (tests/core/engines/test_torch_layers.py).
Sources are files of pytorch/pytorch, aten/src/ATen/native/quantized/cpu, where no other is named.

FBGEMM's depthwise convolutions add two products in 16 bits, which saturate. Levels of 7 bits never do, levels of 8 bits
do where the two weights are greater than 128 together. The rules here do not saturate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import Bounds, Layer, LayerForm
from narrowgauge.core.engines.requantize import multiply_add, rounded, rounded_with_zero_point
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale, Levels, Sums
from narrowgauge.errors import PlanError

Real = npt.NDArray[np.float32]

MOST_ONEDNN_GROUPS = 100
"""The engine x86 gives convolutions of more groups to FBGEMM (OnednnUtils.h, should_use_onednn_quant)."""


def fbgemm_layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels in FBGEMM: the bias stays real and is added in units of the sum.

    `rint(v * float32(unit / output scale)) + zero point`, `unit = float32(input scale * weight scale)`; with a scale
    per channel `v = float32(sum) + float32(bias / unit)`, with one scale
    `v = fma(bias, float32(1 / unit), float32(sum))` (FBGEMM, QuantUtilsAvx2.cc and QuantUtilsAvx512.cc,
    requantizeOutputProcessing).

    Raises:
        PlanError: PyTorch has no such layer.
    """
    _check_layer(layer)
    unit, bias = _unit(layer), _bias(layer)
    multiplier = np.asarray(unit / layer.output.scale, dtype=np.float32)
    if bias is None:
        return LayerForm(bias=None, rescale=_float_rescale(multiplier, layer))

    def compute(sums: Sums) -> Levels:
        units = np.asarray(sums).astype(np.float32)
        units = units + bias / unit if unit.ndim else multiply_add(bias, np.float32(1) / unit, units)
        return np.asarray(rounded(units * multiplier, layer.output), dtype=np.int64)

    return LayerForm(bias=None, rescale=_computed(compute, layer))


def onednn_layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels in oneDNN: real numbers, the zero point added before the rounding.

    `rint(float32(float32(float32(float32(sum * sx) * sw) + bias) * float32(1 / output scale)) + zero point)`, where
    `sx = float32(1 / float32(1 / input scale))`, and of linear layers `sw` likewise (onednn_utils, qconv.cpp and
    qlinear.cpp hand over inverses).

    Raises:
        PlanError: PyTorch has no such layer.
    """
    _check_layer(layer)
    input_scale, weight_scale = _twice_inverted(layer.input.scale), layer.weights.scale
    if layer.kind == "product":
        weight_scale = _twice_inverted(weight_scale)
    bias, inverse = _bias(layer), np.float32(1) / layer.output.scale

    def compute(sums: Sums) -> Levels:
        real = np.asarray(sums).astype(np.float32) * input_scale * weight_scale
        real = real if bias is None else real + bias
        return np.asarray(rounded_with_zero_point(real * inverse, layer.output), dtype=np.int64)

    return LayerForm(bias=None, rescale=_computed(compute, layer))


def x86_layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels in the engine x86 on a processor with VNNI.

    oneDNN takes convolutions of up to 100 groups, FBGEMM all else (OnednnUtils.h, should_use_onednn_quant). Without
    VNNI FBGEMM takes everything: that is `fbgemm`.

    Raises:
        PlanError: PyTorch has no such layer.
    """
    taken = layer.kind != "product" and layer.groups <= MOST_ONEDNN_GROUPS
    return onednn_layer(layer) if taken else fbgemm_layer(layer)


def qnnpack_layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels in QNNPACK: a bias in int32 units of the sum, one float32 multiplier, half to even.

    `bias = rint(float32(bias * float32(1 / unit)))`, `unit = float32(input scale * weight scale)`, multiplier
    `float32(unit * float32(1 / output scale))` (qnnpack_utils.h, generate_requantization_scales; qconv.cpp quantizes
    the bias with quantize_per_channel).

    Raises:
        PlanError: PyTorch has no such layer.
    """
    _check_layer(layer)
    unit, bias = _unit(layer), _bias(layer)
    multiplier = np.asarray(unit * (np.float32(1) / layer.output.scale), dtype=np.float32)
    levels = None
    if bias is not None:
        ends = np.iinfo(np.int32)
        with np.errstate(over="ignore"):
            units = np.rint(bias * (np.float32(1) / unit)).astype(np.float64)
        levels = np.clip(units, ends.min, ends.max).astype(np.int64)
    return LayerForm(bias=levels, rescale=_float_rescale(multiplier, layer))


def _unit(layer: Layer) -> Real:
    return np.asarray(layer.input.scale * layer.weights.scale, dtype=np.float32)


def _bias(layer: Layer) -> Real | None:
    return None if layer.bias is None else np.asarray(layer.bias, dtype=np.float32)


def _twice_inverted(scale: Real) -> Real:
    return np.asarray(np.float32(1) / (np.float32(1) / scale), dtype=np.float32)


def _channels(layer: Layer) -> int:
    """How many channels have numbers of their own, 0 where one rule holds for all."""
    counts = [array.size for array in (layer.weights.scale, layer.bias) if array is not None and array.ndim]
    return max(counts, default=0)


def _float_rescale(multiplier: Real, layer: Layer) -> FloatRescale:
    low, high = limits(layer.output, layer.bounds)
    return FloatRescale(multiplier=multiplier, zero_point=int(layer.output.zero_point), low=low, high=high)


def _computed(compute: Callable[[Sums], Levels], layer: Layer) -> ComputedRescale:
    low, high = limits(layer.output, layer.bounds)
    return ComputedRescale(
        compute=lambda sums: np.clip(compute(sums), low, high), channels=_channels(layer), low=low, high=high
    )


def limits(output: Encoding, bounds: Bounds) -> tuple[int, int]:
    """Least and greatest level; bounds are quantized by ATen's quantize_val, the zero point before the rounding."""
    ends = []
    for bound in bounds:
        step = np.float32(bound) * (np.float32(1) / output.scale) + np.float32(output.zero_point)
        ends.append(int(np.clip(np.rint(step), output.type.minimum, output.type.maximum)))
    return ends[0], ends[1]


def check_levels(operator: str, *encodings: Encoding) -> None:
    """Refuse levels that PyTorch's kernels do not take.

    Raises:
        PlanError: they are not stored in uint8, or have several scales.
    """
    for encoding in encodings:
        if encoding.type.storage != np.uint8 or encoding.scale.ndim:
            raise PlanError(
                f"expected levels of uint8 with one scale for {operator}, which PyTorch's kernels take, "
                f"got {encoding.type.name}, {encoding.granularity}"
            )


def _check_layer(layer: Layer) -> None:
    if layer.kind == "batch_product":
        raise PlanError("expected a layer with weights: PyTorch multiplies two activations in real numbers")
    check_levels("a layer with weights", layer.input, layer.output)
    weights = layer.weights
    if weights.type.storage != np.int8 or weights.scale.ndim > 1 or weights.zero_point.any():
        raise PlanError(
            "expected int8 weights with one scale, or one per channel, and zero point 0, as PyTorch has them, "
            f"got {weights.type.name}, {weights.granularity}"
        )

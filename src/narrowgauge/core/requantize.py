"""How engines turn accumulators into levels: the named rules of `Target.arithmetic.requantization`, exact in numpy.

`arithmetic.quantize` is what ONNX defines and what the simulation computes. The rules here differ from it and from each
other in the order of two steps, in where a bias is added and in how ties are rounded; each was compared with its engine
integer for integer (tests/core/test_requantize.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import FloatArray, round_half_away, spread
from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import PlanError

Levels = npt.NDArray[np.integer]
Bias = Literal["integer", "accumulator", "real"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Requantization:
    """How an engine writes the accumulators of a convolution or matrix product as levels.

    Attributes:
        bias: where the bias is added: "integer": rounded to int32 in units of the accumulator (input scale times weight
            scale) before; "accumulator": in those units as float32; "real": as a real number.
        zero_point_first: the zero point is added before the one rounding to integers, so that a tie falls on the even
            level, not on the even number of steps.
        source: where that is said, what was measured.
    """

    bias: Bias
    zero_point_first: bool
    source: str


REQUANTIZATIONS: dict[str, Requantization] = {
    "onnxruntime": Requantization(
        bias="integer", zero_point_first=False,
        source="onnxruntime: MLAS MlasRequantizeOutput; measured on 1.31: QLinearMatMul has no differing integer",
    ),
    "fbgemm": Requantization(
        bias="accumulator", zero_point_first=False,
        source="FBGEMM QuantUtils.h and QuantUtilsAvx2.cc requantizeOutputProcessingAvx2; measured on PyTorch 2.13: no "
        "differing integer of linear and conv2d of the engine fbgemm and linear of the engine x86",
    ),
    "qnnpack": Requantization(
        bias="integer", zero_point_first=False,
        source="PyTorch's fork of QNNPACK, requantization with a float32 multiplier; measured on PyTorch 2.13 on "
        "x86-64: no differing integer of linear and conv2d; ARM's kernels were not measured",
    ),
    "onednn": Requantization(
        bias="real", zero_point_first=True,
        source="oneDNN, output scale and zero point as post-operations; measured on PyTorch 2.13: no "
        "differing integer of linear and conv2d of the engine onednn and, on a processor with VNNI, conv2d of x86",
    ),
}  # fmt: skip


def requantize(
    accumulators: npt.ArrayLike,
    *,
    input_scale: npt.ArrayLike,
    weight_scale: npt.ArrayLike,
    output: Encoding,
    bias: npt.ArrayLike | None = None,
    rule: str,
) -> Levels:
    """Write accumulators as the output's levels, as an engine does it.

    Args:
        accumulators: sums of (level - zero point) * weight level, int32, shape `[..., channels]`.
        input_scale: of the layer's input, one.
        weight_scale: one, or one per channel.
        output: one scale; its type's least and greatest level saturate.
        bias: real units, one per channel; None for none.
        rule: a key of `REQUANTIZATIONS`.

    Returns:
        Levels in the output type's storage, the accumulators' shape.

    Raises:
        PlanError: there is no such rule, or the output has more than one scale.
    """
    if rule not in REQUANTIZATIONS:
        raise PlanError(f"expected a rule of requantization, one of {', '.join(REQUANTIZATIONS)}, got {rule!r}")
    if output.scale.ndim:
        raise PlanError(f"expected one scale of the output, got {output.granularity}")
    how = REQUANTIZATIONS[rule]
    sums = np.asarray(accumulators, dtype=np.int64)
    # Each product and quotient is rounded to float32, as the engines' are.
    unit = np.asarray(input_scale, np.float32) * np.asarray(weight_scale, np.float32)
    multiplier = unit / output.scale
    added = np.zeros(1, np.float32) if bias is None else np.asarray(bias, np.float32)
    if how.bias == "integer":
        steps = (sums + np.rint(added / unit).astype(np.int64)).astype(np.float32) * multiplier
    elif how.bias == "accumulator":
        steps = (sums.astype(np.float32) + added / unit) * multiplier
    else:
        steps = (sums.astype(np.float32) * unit + added) * (np.float32(1) / output.scale)
    return _levels(steps, output, zero_point_first=how.zero_point_first)


def quantize_by_inverse(values: npt.ArrayLike, encoding: Encoding, *, zero_point_first: bool) -> Levels:
    """Write real numbers as levels by a product with `1 / scale`, where ONNX divides.

    PyTorch's `quantize_per_tensor` adds the zero point first, in one fused step (ATen's quantize_avx2 and
    FBGEMM's Quantize, QuantUtils.h); the operators of its exported programs, those of `quantized_decomposed`, after
    (torch/ao/quantization/fx/_decomposed.py).

    Args:
        values: real units, any shape that the encoding's granularity fits; no NaN.
        encoding: the map.
        zero_point_first: add the zero point before the one rounding to integers.

    Raises:
        PlanError: the scale does not fit the shape.
    """
    real = np.asarray(values, dtype=np.float32)
    inverse = np.float32(1) / spread(encoding.scale, encoding, real.shape)
    zero_point = spread(encoding.zero_point, encoding, real.shape)
    with np.errstate(over="ignore"):  # infinitely many steps saturate like any number of them
        if zero_point_first:  # float64 holds the product exactly, so that only the sum is rounded to float32
            return _saturated(np.rint((real * inverse.astype(np.float64) + zero_point).astype(np.float32)), encoding)
        return _levels(real * inverse, encoding, zero_point_first=False)


def add(
    first: npt.ArrayLike, second: npt.ArrayLike, encodings: tuple[Encoding, Encoding, Encoding], rule: str
) -> Levels:
    """Add two tensors of levels, as PyTorch's `quantized.add` does it.

    "fbgemm" (also the engine x86): in real numbers, float32, and the zero point added after rounding. Measured on 2.13:
    so for all but the last elements of a tensor, those that fill no vector of 32, which get the zero point first.
    "qnnpack": in int32, each input times a multiplier of 22 bits, ties away from zero (QNNPACK, requantization.h,
    compute_add_quantization_params).

    Args:
        first: levels.
        second: levels, the same shape.
        encodings: of the first, the second and the output, one scale each.
        rule: "fbgemm" or "qnnpack".

    Raises:
        PlanError: there is no such rule.
    """
    one, other, output = encodings
    parts = [np.asarray(levels, np.int64) - int(e.zero_point) for levels, e in ((first, one), (second, other))]
    if rule == "fbgemm":
        real = parts[0].astype(np.float32) * one.scale + parts[1].astype(np.float32) * other.scale
        return quantize_by_inverse(real, output, zero_point_first=False)
    if rule != "qnnpack":
        raise PlanError(f"expected a rule of addition, fbgemm or qnnpack, got {rule!r}")
    ratios = [np.float64(e.scale / output.scale) for e in (one, other)]
    shift = 22 - int(np.frexp(max(ratios))[1])  # the greater multiplier lies between 2^21 and 2^22
    multipliers = [np.int64(np.rint(ratio * 2.0**shift)) for ratio in ratios]
    total = parts[0] * multipliers[0] + parts[1] * multipliers[1]
    # The sum has 31 bits at most, so float64 holds it and its quotient by a power of two exactly.
    steps = round_half_away(np.asarray(total * 2.0**-shift))
    return _saturated(steps + int(output.zero_point), output)


def _levels(steps: FloatArray, output: Encoding, *, zero_point_first: bool) -> Levels:
    zero_point = spread(output.zero_point, output, steps.shape)
    if zero_point_first:
        return _saturated(np.rint(steps + zero_point.astype(np.float32)), output)
    # Float64 holds every sum of a rounded float32 and a zero point that matters before saturation.
    return _saturated(np.rint(steps).astype(np.float64) + zero_point, output)


def _saturated(levels: npt.NDArray[np.floating], output: Encoding) -> Levels:
    saturated: Levels = np.clip(levels, output.type.minimum, output.type.maximum).astype(output.type.storage)
    return saturated

"""OpenVINO's integers on the CPU: real numbers are rounded by the bounds of a range, in one fused step.

Measured on 2026.4, x86-64 with VNNI. A QuantizeLinear becomes a FakeQuantize: `rint(fma(x, s, t))` levels above the
least one, where `s = float32(count / float32(high - low))`, `t = float32(float32(-low * count) / float32(high - low))`,
`count` is the number of levels less one, and `low` and `high` are the real numbers of the least and the greatest level.
A layer scales its int32 sum to a real number, adds the float bias, and is rounded so (the CPU plugin's post-ops).

What is added to a convolution's result before that is rounded is no sum of levels; such an addition stays in float.

Two things move numbers that lie next to ties, where there are any, by one level, and are not here: additions of rounded
values and pooling, whose scales OpenVINO rearranges (up to 6 in 1,000 of such numbers); and a rounding that no layer
does in a network of fixed shapes, which is not fused (a tenth of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.arithmetic import dequantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import Bounds, Kernels, Layer, LayerForm, SoftmaxForm, storage_levels
from narrowgauge.core.engines.requantize import multiply_add
from narrowgauge.core.engines.rescale import ComputedRescale, Levels, Sums
from narrowgauge.errors import PlanError

Real = npt.NDArray[np.float32]


def scale_and_shift(encoding: Encoding) -> tuple[np.float32, np.float32]:
    """Return what a real number is multiplied with, and what is added, to count levels from the least one.

    Raises:
        PlanError: the encoding has several scales.
    """
    if encoding.scale.ndim:
        raise PlanError(f"expected one scale for an activation, as OpenVINO takes it, got {encoding.granularity}")
    zero_point, count = int(encoding.zero_point), np.float32(encoding.type.maximum - encoding.type.minimum)
    low = np.float32(encoding.type.minimum - zero_point) * np.float32(encoding.scale)
    high = np.float32(encoding.type.maximum - zero_point) * np.float32(encoding.scale)
    reach = np.float32(high - low)
    return np.float32(count / reach), np.float32(np.float32(-low * count) / reach)


def rounded(real: npt.ArrayLike, encoding: Encoding) -> Levels:
    """Write real numbers as levels, int64."""
    scale, shift = scale_and_shift(encoding)
    count = encoding.type.maximum - encoding.type.minimum
    found = np.clip(np.rint(multiply_add(np.asarray(real, dtype=np.float32), scale, shift)), 0, count)
    return np.asarray(found.astype(np.int64) + encoding.type.minimum)


def layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels: `float32(float32(sum * float32(input scale * weight scale)) + bias)`, rounded."""
    unit = np.asarray(layer.input.scale * layer.weights.scale, dtype=np.float32)
    bias = None if layer.bias is None else np.asarray(layer.bias, dtype=np.float32)
    numbers = [array.size for array in (layer.weights.scale, layer.bias) if array is not None and array.ndim]

    def real(sums: Sums) -> Real:
        scaled = np.asarray(sums).astype(np.float32) * unit
        return np.asarray(scaled if bias is None else scaled + bias, dtype=np.float32)

    low, high = _limits(layer.output, layer.bounds)
    rescale = ComputedRescale(
        compute=lambda sums: np.clip(rounded(real(sums), layer.output), low, high),
        channels=max(numbers, default=0),
        low=low,
        high=high,
    )
    return LayerForm(bias=None, rescale=rescale)


def binary(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> Levels:
    """Table of an addition of two rounded values; see `Kernels.binary`.

    Raises:
        PlanError: it is no addition: OpenVINO computes those in float.
    """
    if operator != "Add":
        raise PlanError(f"OpenVINO computes {operator} in float")
    one, other = (dequantize(storage_levels(each), each) for each in (first, second))
    return np.clip(rounded(one[:, None] + other[None, :], output), *_limits(output, bounds))


def mean(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Write a sum of levels as the level of their mean: the exact mean in float32, rounded; see `Kernels.mean`."""
    return LayerForm(bias=None, rescale=average_pool(input, output, count))


def average_pool(input: Encoding, output: Encoding, count: int) -> ComputedRescale:
    """Write a sum of levels of a window as the level of its mean; see `Kernels.average_pool`."""

    def compute(sums: Sums) -> Levels:
        steps = np.asarray(sums) - count * int(input.zero_point)
        return rounded(steps * np.float64(input.scale) / count, output)

    return ComputedRescale(compute=compute, channels=0, low=output.type.minimum, high=output.type.maximum)


def unary(operator: str, attributes: Mapping[str, Any], input: Encoding, output: Encoding, bounds: Bounds) -> Levels:
    """Table of another encoding of levels, the only function that is computed on them; see `Kernels.unary`.

    Raises:
        PlanError: another operator: OpenVINO computes those in float.
    """
    if operator not in ("Requantize", "Relu", "Clip"):
        raise PlanError(f"OpenVINO computes {operator} in float")
    low, high = (max(bounds[0], 0.0), bounds[1]) if operator == "Relu" else bounds
    return np.clip(concat(input, output), *_limits(output, (low, high)))


def concat(input: Encoding, output: Encoding) -> Levels:
    """Table of an input of a Concat; see `Kernels.concat`."""
    return rounded(dequantize(storage_levels(input), input), output)


def softmax(input: Encoding, output: Encoding, count: int) -> SoftmaxForm:
    """Refuse.

    Raises:
        PlanError: always.
    """
    raise PlanError("OpenVINO computes Softmax in float")


def _limits(output: Encoding, bounds: Bounds) -> tuple[int, int]:
    """Least and greatest level of what an activation function leaves; rounding keeps the order of numbers."""
    ends = []
    for bound, end in zip(bounds, (output.type.minimum, output.type.maximum), strict=True):
        ends.append(int(rounded(bound, output)) if np.isfinite(bound) else end)
    return ends[0], ends[1]


OPENVINO = Kernels(
    name="openvino",
    source="measured on OpenVINO 2026.4, CPU: all integers of MobileNetV1 (tests/core/engines/test_openvino.py)",
    quantize="range",
    layer=layer,
    unary=unary,
    binary=binary,
    mean=mean,
    average_pool=average_pool,
    softmax=softmax,
    concat=concat,
)

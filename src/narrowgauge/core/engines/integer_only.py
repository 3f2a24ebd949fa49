"""The arithmetic of the target `integer-only`: what a chip computes that knows integers alone. Defined here.

No chip's: every rule is the plainest one of the literature, each number is rounded once, half up, and every width is
stated. Layers add up products in int32, a bias in their unit included, and multiply the sum by 31 bits (Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017, section 2.2, with
one rounding instead of two). Sums of tensors are `integer_sums`, functions of one tensor are tables, LayerNormalization
is `integer_layernorm`, attention `integer_softmax`.

Inputs of a layer may have a power-of-two factor, `base 2^shift (level - zero_point)`: the shift belongs to the products
of its channel, so that weights become `weight << shift`, and sums stay integers in one unit (`shifted_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.fixed_point import integer_rescale
from narrowgauge.core.engines.integer_sums import channel_limits, weighted_sum
from narrowgauge.core.engines.kernels import (
    UNBOUNDED,
    Bounds,
    Kernels,
    Layer,
    LayerForm,
    PairForm,
    SoftmaxForm,
    steps,
    storage_levels,
)
from narrowgauge.core.engines.rescale import IntegerRescale
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.integer_exponential import exponential_table
from narrowgauge.core.integer_gelu import gelu
from narrowgauge.core.power_of_two_factor import factor_of
from narrowgauge.errors import PlanError

Table = npt.NDArray[np.int64]
Real = npt.NDArray[np.float64]
Attributes = Mapping[str, Any]

_LARGEST_RATIO = 2.0**20
_MOST_BITS = 58
"""Of a level, shifted."""

_LARGEST_BIAS = 2.0**62
"""So that sums of products fit beside it in 64 bits."""

_EXPONENTIAL_BITS = 15
"""A row of 65,538 of them adds up in int32 (`integer_exponential.most_table_bits`)."""


def rescale(ratio: npt.ArrayLike, output: Encoding, bounds: Bounds = UNBOUNDED) -> IntegerRescale:
    """Multiply sums by a ratio of 31 bits, once rounded, half up: `(sum q + (1 << s - 1) >> s) + zero_point`.

    A small ratio has fewer bits: its last one is a `2^-50`, of 16-bit levels a `2^-42`, so that all fits 62 bits.

    Args:
        ratio: of a unit of the sum to the output's scale, shape () or (channels,).
        output: one scale, or one for each channel; then its zero points are part of the addend.
        bounds: of a fused activation function.

    Raises:
        PlanError: bounds that are other levels in every channel, or a ratio beyond 2^20.
    """
    real = np.asarray(ratio, dtype=np.float64)
    if (real > _LARGEST_RATIO).any():
        raise PlanError(f"a unit of a sum is {real.max():.4g} steps of its output, at most {_LARGEST_RATIO:.0f} fit")
    shift = np.clip(31 - np.frexp(real)[1].astype(np.int64), 1, _MOST_BITS - output.type.bits)
    low, high = channel_limits(output, bounds)
    if low.size and (np.ptp(low) or np.ptp(high)):
        raise PlanError("an activation function is fused behind a scale for each channel: its bound is many levels")
    zero_point = output.zero_point.astype(np.int64)
    addend = (np.int64(1) << (shift - 1)) + (np.left_shift(zero_point, shift) if zero_point.ndim else 0)
    multiplier = np.rint(np.ldexp(real, shift.astype(np.int32))).astype(np.int64)
    limits = (int(low.min(initial=output.type.maximum)), int(high.max(initial=output.type.minimum)))
    whole = 0 if zero_point.ndim else int(zero_point)
    return integer_rescale(np.broadcast_to(multiplier, addend.shape), addend, shift, None, whole, limits)


def layer(layer: Layer) -> LayerForm:
    """Sums of a layer to levels, the bias rounded to their unit; see `Kernels.layer`.

    Raises:
        PlanError: a bias is too large for its unit.
    """
    unit = layer.input.scale.astype(np.float64) * layer.weights.scale.astype(np.float64)
    bias = None if layer.bias is None else np.rint(layer.bias.astype(np.float64) / unit)
    if bias is not None and (np.abs(bias) >= _LARGEST_BIAS).any():
        raise PlanError(
            f"a bias is {np.abs(bias).max():.2g} units of its sums, more than fit: the scale of the layer's input is "
            f"{float(layer.input.scale.min()):.2g}, as that of values that are always 0"
        )
    bias = None if bias is None else bias.astype(np.int64)
    return LayerForm(
        bias=bias, rescale=rescale(unit / layer.output.scale.astype(np.float64), layer.output, layer.bounds)
    )


def shifted_weights(steps: Table, input: Encoding) -> tuple[Table, Table, Encoding]:
    """Move the shifts of an input's power-of-two factor into the weights.

    Args:
        steps: weights less their zero points, shape (channels, inputs).
        input: with a scale for each of the inputs.

    Returns:
        The weights, `steps << shift`; what the inputs' zero points add to each sum, shape (channels,), to be taken off;
        and the input's encoding with the base as its one scale and zero point 0.

    Raises:
        PlanError: the scales are no powers of two of each other, or not as many as inputs.
    """
    factor = factor_of(input)
    if factor.shifts.size != steps.shape[1]:
        raise PlanError(f"expected a scale for each of {steps.shape[1]} inputs, got {factor.shifts.size}")
    wide = steps << factor.shifts
    scale, zero_point = np.asarray(factor.base, dtype=np.float32), np.zeros((), dtype=np.int32)
    base = Encoding(type=input.type, granularity=PerTensor(), scale=scale, zero_point=zero_point)
    return wide, wide @ factor.zero_points, base


# --- functions of one tensor


def unary(operator: str, attributes: Attributes, input: Encoding, output: Encoding, bounds: Bounds) -> Table:
    """Table of a function of every level, computed in float64 and rounded once, half up; see `Kernels.unary`.

    Another encoding alone ("Requantize") and bounds (Relu, Clip) are a `weighted_sum` of one input.

    Returns:
        int64, shape (levels,); (channels, levels) where input or output has a scale for each channel.

    Raises:
        PlanError: the function is not known, or 16-bit levels would need a table for each channel.
    """
    if operator in ("Requantize", "Relu", "Clip"):
        low, high = (max(bounds[0], 0.0), bounds[1]) if operator == "Relu" else bounds
        table = weighted_sum((input,), output, bounds=(low, high)).levels(storage_levels(input)[:, None]).T
        return table if input.scale.ndim or output.scale.ndim else table[0]
    if operator not in _FUNCTIONS:
        raise PlanError(f"no integer arithmetic is known for {operator}")
    levels = storage_levels(input)
    if len(levels) > 256 and (input.scale.ndim or output.scale.ndim):
        raise PlanError(f"a table for each channel has 8-bit levels, got {input.type.name}")
    real = (levels - input.zero_point[..., None]) * input.scale.astype(np.float64)[..., None]
    with np.errstate(all="ignore"):
        found = np.nan_to_num(np.clip(_FUNCTIONS[operator](attributes, real), *bounds), nan=0.0)
        counted = np.floor(found / output.scale.astype(np.float64)[..., None] + 0.5)
    written = np.clip(counted + output.zero_point[..., None], output.type.minimum, output.type.maximum)
    return np.asarray(written, dtype=np.int64)


def _sigmoid(real: Real) -> Real:
    return np.asarray(1 / (1 + np.exp(-real)))


def _erf(real: Real) -> Real:
    return np.where(real == 0, 0.0, 2 * gelu(real * np.sqrt(2)) / np.where(real == 0, 1.0, real * np.sqrt(2)) - 1)


def _hard_sigmoid(attributes: Attributes, real: Real) -> Real:
    return np.asarray(np.clip(attributes.get("alpha", 0.2) * real + attributes.get("beta", 0.5), 0, 1))


_FUNCTIONS: dict[str, Callable[[Attributes, Real], Real]] = {
    "Abs": lambda _, real: np.abs(real),
    "Elu": lambda attributes, real: np.where(real < 0, attributes.get("alpha", 1.0) * np.expm1(real), real),
    "Erf": lambda _, real: _erf(real),
    "Exp": lambda _, real: np.exp(real),
    "Gelu": lambda attributes, real: gelu(real, attributes.get("approximate", "none")),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, real: real * np.clip(real / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda attributes, real: np.where(real < 0, attributes.get("alpha", 0.01) * real, real),
    "Log": lambda _, real: np.log(real),
    "Neg": lambda _, real: -real,
    "Reciprocal": lambda _, real: 1 / real,
    "Sigmoid": lambda _, real: _sigmoid(real),
    "Softplus": lambda _, real: np.logaddexp(0, real),
    "Sqrt": lambda _, real: np.sqrt(real),
    "Tanh": lambda _, real: np.tanh(real),
}


# --- pairs, means, softmax


def binary(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> Table:
    """Table of every pair of 8-bit levels; see `pair`."""
    return pair(operator, first, second, output, bounds).table()


def pair(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> PairForm:
    """Multiply two levels, each less its zero point, in units of the product of their scales; see `Kernels.pair`.

    Jacob et al. 2017, section 2.2. Additions are `integer_sums.weighted_sum`.

    Raises:
        PlanError: another operator.
    """
    if operator != "Mul":
        raise PlanError(f"no integer arithmetic is known for {operator} of two tensors")
    ratio = first.scale.astype(np.float64) * second.scale.astype(np.float64) / output.scale.astype(np.float64)
    return PairForm(
        first=steps(first), second=steps(second), combine="multiply", rescale=rescale(ratio, output, bounds)
    )


def mean(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Sum of levels to the level of their mean: one multiplier; see `Kernels.mean`."""
    return _sum(input, output, count, count)


def sum_form(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Sum of levels to the level of their sum; see `Kernels.sum`."""
    return _sum(input, output, count, 1)


def _sum(input: Encoding, output: Encoding, count: int, divisor: int) -> LayerForm:
    ratio = np.float64(input.scale) / (np.float64(output.scale) * divisor)
    return LayerForm(bias=np.asarray(-int(input.zero_point) * count), rescale=rescale(ratio, output))


def average_pool(input: Encoding, output: Encoding, count: int) -> IntegerRescale:
    """Sum of a window's levels, as they are, to the level of their mean; see `Kernels.average_pool`."""
    form = mean(input, output, count)
    found, bias = form.rescale, int(form.bias if form.bias is not None else 0)
    assert isinstance(found, IntegerRescale)
    return integer_rescale(
        found.multiplier, found.addend + bias * found.multiplier, found.shift, None, found.zero_point,
        (found.low, found.high),
    )  # fmt: skip


def softmax(input: Encoding, output: Encoding, count: int) -> SoftmaxForm:
    """Exponentials of 15 bits from a table over their sum, `integer_softmax.UniformSoftmax`; see `Kernels.softmax`.

    Raises:
        PlanError: the output's scale is not one over a number of levels.
    """
    exact = 1 / float(output.scale)
    if abs(exact - round(exact)) > 1e-3:
        raise PlanError(f"expected the output of Softmax to count parts of 1, got a scale of {float(output.scale)}")
    table = exponential_table(float(input.scale), bits=_EXPONENTIAL_BITS, count=2**input.type.bits)
    return SoftmaxForm(
        exponentials=np.ldexp(table.astype(np.float32), -_EXPONENTIAL_BITS), steps=round(exact),
        zero_point=int(output.zero_point), low=output.type.minimum, high=output.type.maximum,
    )  # fmt: skip


def concat(input: Encoding, output: Encoding) -> Table:
    """Table of an input of a Concat; see `Kernels.concat`."""
    return unary("Requantize", {}, input, output, UNBOUNDED)


INTEGER_ONLY = Kernels(
    name="integer-only",
    source="defined here, after Jacob et al. 2017 and Lin et al., 'FQ-ViT', 2022",
    quantize="divide",
    layer=layer,
    unary=unary,
    binary=binary,
    pair=pair,
    mean=mean,
    sum=sum_form,
    average_pool=average_pool,
    softmax=softmax,
    concat=concat,
    transformer_forms=True,
)

"""What an engine computes on levels, operator by operator: the records that one file per arithmetic fills.

Everything is a function from encodings to plain numbers: a `Rescale` (how sums become levels) or a table of levels.
`lowering.integer` writes them into a network; tests compare them with the engine itself, integer for integer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.rescale import Rescale
from narrowgauge.errors import PlanError

Bounds = tuple[float, float]
"""Real numbers between which a fused activation function keeps an output; infinite where it does not."""

UNBOUNDED: Bounds = (-np.inf, np.inf)

LayerKind = Literal["convolution", "depthwise", "transposed", "product", "batch_product"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer with weights.

    Attributes:
        kind: "convolution", "depthwise" (one input channel a group), "transposed" (ConvTranspose), "product" (fully
            connected, matrix product with weights), or "batch_product" (matrix product of two activations).
        input: of the activation, one scale.
        weights: one scale, or one per output channel; zero point 0 unless unsigned. Of a batch_product the second
            activation's, one scale.
        output: one scale.
        bias: real numbers, shape (channels,), multiples of input scale times weight scale; None for none. float64 for
            levels above 2^23: `level * float64(float32(input scale * weight scale))`.
        bounds: of a fused activation function.
        groups: of a convolution.
        channels: of the output; 0 for as many as `weights` and `bias` have numbers.
        fixed_shape: whether the extents of the output, the batch's too, are known before it runs: LiteRT's delegate
            takes no other transposed convolution.
    """

    kind: LayerKind
    input: Encoding
    weights: Encoding
    output: Encoding
    bias: npt.NDArray[np.floating[Any]] | None = None
    bounds: Bounds = UNBOUNDED
    groups: int = 1
    channels: int = 0
    fixed_shape: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerForm:
    """How a layer's sums of (level - zero point) * (weight level - zero point) become levels.

    Attributes:
        bias: added to the sums first, int64, shape (channels,), or () of a mean; None for none.
        rescale: of the result.
    """

    bias: npt.NDArray[np.int64] | None
    rescale: Rescale


@dataclass(frozen=True, kw_only=True, slots=True)
class PairForm:
    """How two levels become one: `rescale(combine(first[level], second[level]))`, in integers.

    Attributes:
        first: what each level of the first input's storage type stands for, from the least on, int64, shape (256,) or
            (65536,).
        second: the same of the second input.
        combine: how the two are combined.
        rescale: of the result.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    combine: Literal["add", "multiply", "maximum", "minimum"]
    rescale: Rescale

    def levels(self, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Combine two arrays of positions in the tables (level - least level of the storage type); they broadcast."""
        return self.rescale.levels(_COMBINE[self.combine](self.first[first], self.second[second]))

    def table(self) -> npt.NDArray[np.int64]:
        """Combine every pair of levels: shape (256, 256) of 8-bit inputs."""
        return self.levels(np.arange(len(self.first))[:, None], np.arange(len(self.second))[None, :])


_COMBINE: dict[str, np.ufunc] = {
    "add": np.add, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxForm:
    """A softmax over levels: `exponentials[greatest level of the row - level]`, divided by their sum.

    `clip(round_half_even(exponential * steps / sum) + zero_point, low, high)`. Engines add up float32 numbers one by
    one; here the sum is exact, which differs by at most (numbers - 1) / 2^24 of it.

    Attributes:
        exponentials: float32, shape (levels,), from 1 down: of the differences 0, 1, 2, ...
        steps: output levels that stand for 1.
        zero_point: of the output.
        low: least level that is written.
        high: greatest level.
    """

    exponentials: npt.NDArray[np.float32]
    steps: int
    zero_point: int
    low: int
    high: int


Rounding = Literal["divide", "reciprocal", "reciprocal_with_zero_point", "divide_half_away", "range"]
"""How real numbers become levels on the way in: `rint(x / scale) + z`; `rint(x * (1 / scale)) + z`;
`rint(fma(x, 1 / scale, z))`; `x / scale` rounded half away from zero, `+ z`; by the bounds of the range, see
`core.engines.openvino`. All in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisInterpolation:
    """How an axis is resized: `levels[first] * (2^bits - weight) + levels[second] * weight`.

    Attributes:
        first: positions in the input, int64, shape (output extent,).
        second: the same.
        weight: of the second, int64, 0 to 2^bits, the same shape.
        bits: of the weights.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    weight: npt.NDArray[np.int64]
    bits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizeForm:
    """How levels are interpolated: along each axis in turn, in integers, and one rescale of the result.

    Attributes:
        axes: one of each axis that is resized, in the network's order; the order in which they are applied is of no
            matter, since all is exact.
        rescale: divides by the product of the axes' `2^bits`.
    """

    axes: tuple[AxisInterpolation, ...]
    rescale: Rescale


CoordinateMode = Literal["half_pixel", "align_corners", "asymmetric"]
"""Where pixels lie, in ONNX's words; TensorFlow Lite's half_pixel_centers, align_corners, and neither."""

Resize = Callable[[Encoding, Encoding, CoordinateMode, tuple[int, ...], tuple[int, ...]], ResizeForm]


def no_resize(
    input: Encoding, output: Encoding, mode: CoordinateMode, extents: tuple[int, ...], wanted: tuple[int, ...]
) -> ResizeForm:
    """Refuse: an engine whose interpolation is not known."""
    raise PlanError(f"no integer arithmetic is known for a linear Resize of {input.type.name}")


def no_sum(input: Encoding, output: Encoding, count: int) -> LayerForm:
    """Refuse: an engine whose sums are not known."""
    raise PlanError(f"no integer arithmetic is known for ReduceSum of {input.type.name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WideSoftmaxForm:
    """A softmax over 16-bit levels, in integers throughout.

    With `e = exponentials[greatest level of the row - level]`, `s` their sum and `b` how many bits `s` has:
    `r = reciprocals[min(((s << 31 - b) + 2^13 >> 14) - 2^16, 2^16 - 1)]`, and each number of the row becomes
    `min((e * r + (1 << b - 2)) >> (b - 1), 2^15 - 1)`.

    Attributes:
        exponentials: int64, shape (65536,): of the differences 0, 1, 2, ... in units of 2^-15.
        reciprocals: int64, shape (65536,): of 1 to 2, in units of 2^-15.
    """

    exponentials: npt.NDArray[np.int64]
    reciprocals: npt.NDArray[np.int64]

    def levels(self, levels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Compute the softmax of rows, shape [..., numbers]."""
        parts = self.exponentials[levels.max(axis=-1, keepdims=True) - levels]
        total = parts.sum(axis=-1, keepdims=True)
        bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)
        place = (((total << (31 - bits)) + 2**13) >> 14) - 2**16
        products = parts * self.reciprocals[np.minimum(place, 2**16 - 1)]
        half = np.int64(1) << (bits - 2)
        return np.asarray(np.minimum((products + half) >> (bits - 1), 2**15 - 1))


WideSoftmax = Callable[[Encoding, Encoding], WideSoftmaxForm]


def no_wide_softmax(input: Encoding, output: Encoding) -> WideSoftmaxForm:
    """Refuse: an engine that knows no softmax of 16-bit levels."""
    raise PlanError(f"no integer arithmetic is known for Softmax of {input.type.name}")


Pair = Callable[[str, Encoding, Encoding, Encoding, Bounds], PairForm]


def no_pair(operator: str, first: Encoding, second: Encoding, output: Encoding, bounds: Bounds) -> PairForm:
    """Refuse: an engine without a form for pairs, only tables of 8-bit levels."""
    raise PlanError(f"no integer arithmetic is known for {operator} of {first.type.name} and {second.type.name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """One engine's arithmetic.

    A function raises `PlanError` where the engine has no such kernel (a type, an operator); the message says so, and
    the node then stays between its Q and DQ.

    Attributes:
        name: as targets' `arithmetic.requantization` and engines name it.
        source: where each formula is said, what it was measured against.
        quantize: how real numbers become levels.
        layer: layers with weights.
        unary: (operator, its attributes, input, output, bounds) -> the output's level for each level of the input's
            storage type from its least on, int64, shape (256,) or (65536,). Operators by ONNX's names (Sigmoid, Tanh,
            HardSwish, LeakyRelu, Gelu, Elu, Relu, Exp, Log, Abs, ...; Clip cuts at `bounds`), and "Requantize": from
            one encoding to another.
        binary: (operator, first, second, output, bounds) -> the output's level for each pair, int64, shape (256, 256),
            indexed from the least levels of the storage types. Add, Sub, Mul, Max, Min, PRelu (the slopes are the
            second), SquaredDifference, ... of 8-bit levels.
        mean: (input, output, count) -> how a sum of that many levels (as they are, no zero point taken off) becomes
            the level of their mean: what is added to the sum first (shape ()), then the rescale. ReduceMean,
            GlobalAveragePool.
        average_pool: (input, output, count) -> how a sum of levels as they are becomes the level of AveragePool,
            `count` cells of a window inside the input.
        softmax: (input, output, how many numbers a row has) -> its form.
        concat: (input, output) -> a table like `unary`'s for each input of a Concat.
        pair: the same as `binary` for levels of any width, as arithmetic instead of a table: 16-bit levels have no
            table of pairs.
        resize: (input, output, where pixels lie, extents before, extents after) of the axes that change -> how levels
            are interpolated linearly.
        sum: (input, output, count) -> like `mean`, of ReduceSum.
        wide_softmax: (input, output) -> the form of a softmax of 16-bit levels.
        transformer_forms: whether LayerNormalization and attention are those of `core.integer_layernorm` and
            `core.integer_softmax`, sums of tensors `integer_sums`, and levels may have a power-of-two factor for each
            channel; tables of `unary` then have shape (channels, 256) where a scale is one of many.
        tflite_lstm: whether an LSTM of 8-bit levels is TensorFlow Lite's (`tflite_recurrent`).
        tflite_files: whether the engine runs TFLite files, so that what `exporters.tflite` cannot say in integers is
            in real numbers.
    """

    name: str
    source: str
    quantize: Rounding
    layer: Callable[[Layer], LayerForm]
    unary: Callable[[str, Mapping[str, Any], Encoding, Encoding, Bounds], npt.NDArray[np.int64]]
    binary: Callable[[str, Encoding, Encoding, Encoding, Bounds], npt.NDArray[np.int64]]
    mean: Callable[[Encoding, Encoding, int], LayerForm]
    average_pool: Callable[[Encoding, Encoding, int], Rescale]
    softmax: Callable[[Encoding, Encoding, int], SoftmaxForm]
    concat: Callable[[Encoding, Encoding], npt.NDArray[np.int64]]
    pair: Pair = no_pair
    tflite_lstm: bool = False
    tflite_files: bool = False
    resize: Resize = no_resize
    sum: Callable[[Encoding, Encoding, int], LayerForm] = no_sum
    wide_softmax: WideSoftmax = no_wide_softmax
    transformer_forms: bool = False


def storage_levels(encoding: Encoding) -> npt.NDArray[np.int64]:
    """Every level of the type that stores an encoding's levels, from the least on: int64, shape (256,) or (65536,)."""
    limits = np.iinfo(encoding.type.storage)
    return np.arange(limits.min, limits.max + 1, dtype=np.int64)


def storage_limits(encoding: Encoding) -> tuple[int, int]:
    """Return the least and the greatest level of the type that stores an encoding's levels."""
    limits = np.iinfo(encoding.type.storage)
    return int(limits.min), int(limits.max)


def steps(encoding: Encoding) -> npt.NDArray[np.int64]:
    """Every level of the storage type less the zero point, int64."""
    return storage_levels(encoding) - int(encoding.zero_point)

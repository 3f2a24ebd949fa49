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
from narrowgauge.core.rescale import Rescale

Bounds = tuple[float, float]
"""Real numbers between which a fused activation function keeps an output; infinite where it does not."""

UNBOUNDED: Bounds = (-np.inf, np.inf)

LayerKind = Literal["convolution", "depthwise", "product"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer with weights.

    Attributes:
        kind: "convolution", "depthwise" (one input channel a group), or "product" (fully connected, matrix product).
        input: of the activation, one scale.
        weights: one scale, or one per output channel; zero point 0 unless unsigned.
        output: one scale.
        bias: real numbers, float32, shape (channels,); None for none.
        bounds: of a fused activation function.
    """

    kind: LayerKind
    input: Encoding
    weights: Encoding
    output: Encoding
    bias: npt.NDArray[np.float32] | None = None
    bounds: Bounds = UNBOUNDED


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerForm:
    """How a layer's sums of (level - zero point) * (weight level - zero point) become levels.

    Attributes:
        bias: added to the sums first, int64, shape (channels,); None for none.
        rescale: of the result.
    """

    bias: npt.NDArray[np.int64] | None
    rescale: Rescale


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


Rounding = Literal["divide", "reciprocal", "reciprocal_with_zero_point", "divide_half_away"]
"""How real numbers become levels on the way in: `rint(x / scale) + z`; `rint(x * (1 / scale)) + z`;
`rint(fma(x, 1 / scale, z))`; `x / scale` rounded half away from zero, `+ z`. All in float32."""


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
            HardSwish, LeakyRelu, Gelu, Elu, Relu, Clip, Exp, ...), and "Requantize": from one encoding to another.
        binary: (operator, first, second, output, bounds) -> the output's level for each pair, int64, shape (256, 256),
            indexed from the least levels of the storage types. Add, Sub, Mul, Max, Min, ... of 8-bit levels.
        mean: (input, output, count) -> how a sum of that many levels (as they are, no zero point taken off) becomes
            the level of their mean. ReduceMean, GlobalAveragePool.
        average_pool: the same of AveragePool, `count` cells of a window inside the input.
        softmax: (input, output, how many numbers a row has) -> its form.
        concat: (input, output) -> a table like `unary`'s for each input of a Concat.
    """

    name: str
    source: str
    quantize: Rounding
    layer: Callable[[Layer], LayerForm]
    unary: Callable[[str, Mapping[str, Any], Encoding, Encoding, Bounds], npt.NDArray[np.int64]]
    binary: Callable[[str, Encoding, Encoding, Encoding, Bounds], npt.NDArray[np.int64]]
    mean: Callable[[Encoding, Encoding, int], Rescale]
    average_pool: Callable[[Encoding, Encoding, int], Rescale]
    softmax: Callable[[Encoding, Encoding, int], SoftmaxForm]
    concat: Callable[[Encoding, Encoding], npt.NDArray[np.int64]]

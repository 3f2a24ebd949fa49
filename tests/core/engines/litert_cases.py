"""Random single operators, each with what our kernels and what LiteRT make of it.

A case is a function (kernels, drawn numbers) -> our levels and the operator to run in LiteRT; the same draw gives the
same case, so that golden levels need no inputs beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from narrowgauge.core.arithmetic import round_half_away
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.kernels import (
    UNBOUNDED,
    AxisInterpolation,
    Bounds,
    CoordinateMode,
    Kernels,
    Layer,
    LayerForm,
)
from tests.core.engines.litert_operators import Array, Draw, encoding, litert, tensor
from tests.importers.tflite_networks import T

ACTIVATIONS: dict[int, Bounds] = {0: UNBOUNDED, 1: (0, np.inf), 2: (-1, 1), 3: (0, 6)}
"""Bounds by the number of a fused activation function in TFLite."""


@dataclass
class Case:
    """Our levels, and the operator of which LiteRT should give the same."""

    ours: Array
    name: str
    inputs: list[T]
    output: T
    feeds: list[Array]
    version: int = 2
    options: dict[str, Any] = field(default_factory=dict)

    def theirs(self, *, reference: bool, delegate: bool = True) -> Array:
        results = litert(
            self.name, self.inputs, [self.output], self.feeds, reference=reference, delegate=delegate,
            version=self.version, **self.options,
        )  # fmt: skip
        return results[0].reshape(self.ours.shape)


MakeCase = Callable[[Kernels, Draw], Case]


def every_level(kind: str) -> Array:
    limits = np.iinfo(kind)
    return np.arange(limits.min, limits.max + 1).astype(kind)


# --- layers


@dataclass
class Drawn:
    """A layer's numbers: weights [outputs, ...], bias in units of the sum."""

    layer: Layer
    weights: Array
    bias: Array
    activation: int

    @property
    def steps(self) -> Array:
        held = self.layer.weights
        return self.weights.astype(np.int64) - (0 if held.scale.ndim else int(held.zero_point))

    def weights_tensor(self, numbers: Array, axis: int = 0) -> T:
        made = tensor(numbers.shape, self.layer.weights, numbers, axis)
        if self.layer.weights.type.bits == 8:
            return made
        halves = numbers.reshape(-1, 2).astype(np.uint8) & 15  # the first of two in the lower half of a byte
        return replace(made, type="INT4", data=halves[:, 0] | halves[:, 1] << 4)

    @property
    def bias_tensor(self) -> T:
        unit = np.atleast_1d(self.layer.input.scale * self.layer.weights.scale)
        kind = {"int32": "INT32", "int64": "INT64"}[self.bias.dtype.name]
        return T(shape=self.bias.shape, type=kind, data=self.bias, scale=unit.tolist(), zero_point=[0] * len(unit))


def drawn_layer(draw: Draw, kind: Any, shape: tuple[int, ...], *, channels: bool, bits: int = 8) -> Drawn:
    wide, unsigned, outputs = draw.kind == "int16", draw.kind == "uint8", shape[0]
    weight_kind = "uint8" if unsigned else f"int{bits}"
    weights = encoding(
        draw.factor((outputs,) if channels else ()), draw.levels((), "uint8") if unsigned else 0, weight_kind
    )
    gain = 2.0**-4 if wide else draw.rng.integers(4, 40) / (8 if bits == 8 else 64)
    held, output = draw.encoding(), draw.encoding(product=gain)
    numbers = draw.levels(shape, "uint8" if unsigned else "int8") >> (8 - bits)
    bias = draw.rng.integers(-3000, 3000, outputs).astype(np.int64 if wide else np.int32)
    activation = int(draw.rng.choice([0, 0, 1, 2, 3]))
    layer = Layer(
        kind=kind, input=held, weights=weights, output=output, bounds=ACTIVATIONS[activation],
        bias=bias * (held.scale * weights.scale).astype(np.float64),
    )  # fmt: skip
    return Drawn(
        layer=layer,
        weights=numbers if unsigned else np.maximum(numbers, 1 - 2 ** (bits - 1)),
        bias=bias,
        activation=activation,
    )


def levels_of(form: LayerForm, sums: Array) -> Array:
    return form.rescale.levels(sums + (0 if form.bias is None else form.bias))


def fully_connected(
    kernels: Kernels, draw: Draw, *, channels: bool = False, bits: int = 8, biased: bool = True
) -> Case:
    drawn = drawn_layer(draw, "product", (17, 40), channels=channels, bits=bits)
    layer, levels = drawn.layer if biased else replace(drawn.layer, bias=None), draw.levels((33, 40))
    sums = (levels.astype(np.int64) - int(layer.input.zero_point)) @ drawn.steps.T
    return Case(
        ours=levels_of(kernels.layer(layer), sums), name="FULLY_CONNECTED",
        version=7 if bits == 4 else 5 if layer.input.type.signed else 2,
        inputs=[tensor((33, 40), layer.input), drawn.weights_tensor(drawn.weights), *[drawn.bias_tensor][:biased]],
        output=tensor((33, 17), layer.output), feeds=[levels], options={"fusedActivationFunction": drawn.activation},
    )  # fmt: skip


WINDOW = {"strideW": 1, "strideH": 1, "padding": 1, "dilationWFactor": 1, "dilationHFactor": 1}


def convolution(kernels: Kernels, draw: Draw, *, channels: bool = False, bits: int = 8) -> Case:
    drawn = drawn_layer(draw, "convolution", (17, 1, 3, 12), channels=channels, bits=bits)
    layer, levels = drawn.layer, draw.levels((1, 1, 40, 12))
    windows = np.stack([levels[0, 0, place : place + 38] for place in range(3)], axis=1)  # [38, 3, 12]
    steps = windows.astype(np.int64) - int(layer.input.zero_point)
    sums = np.einsum("pkc,okc->po", steps, drawn.steps[:, 0])
    return Case(
        ours=levels_of(kernels.layer(layer), sums), name="CONV_2D", version=5 if bits == 8 else 7, feeds=[levels],
        inputs=[tensor(levels.shape, layer.input), drawn.weights_tensor(drawn.weights),
                drawn.bias_tensor],
        output=tensor((1, 1, 38, 17), layer.output),
        options=WINDOW | {"fusedActivationFunction": drawn.activation},
    )  # fmt: skip


def depthwise(kernels: Kernels, draw: Draw, *, channels: bool = False, bits: int = 8) -> Case:
    drawn = drawn_layer(draw, "depthwise", (24, 5), channels=channels, bits=bits)
    layer, levels = drawn.layer, draw.levels((1, 1, 40, 24))
    windows = np.stack([levels[0, 0, place : place + 36] for place in range(5)], axis=1)  # [36, 5, 24]
    steps = windows.astype(np.int64) - int(layer.input.zero_point)
    sums = np.einsum("pkc,ck->pc", steps, drawn.steps)
    weights = np.ascontiguousarray(drawn.weights.T[None, None])  # [1, 1, 5, 24]
    return Case(
        ours=levels_of(kernels.layer(layer), sums), name="DEPTHWISE_CONV_2D",
        version=7 if bits == 4 else 5 if draw.kind == "int16" else 3, feeds=[levels],
        inputs=[tensor(levels.shape, layer.input), drawn.weights_tensor(weights, 3 if channels else 0),
                drawn.bias_tensor],
        output=tensor((1, 1, 36, 24), layer.output),
        options=WINDOW | {"fusedActivationFunction": drawn.activation, "depthMultiplier": 1},
    )  # fmt: skip


def transposed(kernels: Kernels, draw: Draw, *, channels: bool = False) -> Case:
    drawn = drawn_layer(draw, "transposed", (17, 1, 3, 12), channels=channels)
    layer, levels = drawn.layer, draw.levels((1, 1, 10, 12))
    steps = levels[0, 0].astype(np.int64) - int(layer.input.zero_point)
    sums = np.zeros((21, 17), np.int64)
    for place in range(10):
        sums[2 * place : 2 * place + 3] += np.einsum("c,okc->ko", steps[place], drawn.steps[:, 0])
    shape = T(shape=(4,), type="INT32", data=np.array([1, 1, 21, 17], np.int32))
    return Case(
        ours=levels_of(kernels.layer(layer), sums), name="TRANSPOSE_CONV", version=4, feeds=[levels],
        inputs=[shape, tensor(drawn.weights.shape, layer.weights, drawn.weights), tensor(levels.shape, layer.input),
                drawn.bias_tensor],
        output=tensor((1, 1, 21, 17), layer.output),
        options={"strideW": 2, "strideH": 1, "padding": 1, "fusedActivationFunction": drawn.activation},
    )  # fmt: skip


def batch_product(kernels: Kernels, draw: Draw, *, shifted: bool = False) -> Case:
    first, second = draw.encoding(), encoding(draw.factor(), draw.zero_point() if shifted else 0, draw.kind)
    output = draw.encoding(product=2.0 if draw.kind == "int16" else draw.rng.integers(4, 40) / 8)
    one, other = draw.levels((2, 9, 20)), draw.levels((2, 20, 11))
    sums = (one.astype(np.int64) - int(first.zero_point)) @ (other.astype(np.int64) - int(second.zero_point))
    form = kernels.layer(Layer(kind="batch_product", input=first, weights=second, output=output))
    return Case(
        ours=levels_of(form, sums), name="BATCH_MATMUL", version=4, feeds=[one, other],
        inputs=[tensor(one.shape, first), tensor(other.shape, second)], output=tensor(sums.shape, output),
    )  # fmt: skip


# --- pairs


def pair(kernels: Kernels, draw: Draw, *, operator: str, name: str) -> Case:
    multiplied = operator in ("Mul", "PRelu")
    first, second = (
        draw.encoding(),
        encoding(draw.factor() if multiplied else draw.scale(), draw.zero_point(), draw.kind),
    )
    same = operator in ("Max", "Min")
    wide = draw.kind == "int16"
    gain = {"Mul": 2.0**3 if wide else 0.5, "PRelu": 0.5, "SquaredDifference": 2.0**-4}.get(
        operator, 1 if wide else 0.25
    )
    output = first if same else draw.encoding(product=gain)
    second = first if same else second
    activation = int(draw.rng.choice([0, 0, 1, 2, 3])) if operator in ("Add", "Sub", "Mul") else 0
    one, other = draw.levels((1, 64, 1, 64)), draw.levels((1, 64, 1, 64))
    least = np.iinfo(draw.kind).min
    places = one.astype(np.int64) - least, other.astype(np.int64) - least
    bounds = ACTIVATIONS[activation]
    if wide:
        ours = kernels.pair(operator, first, second, output, bounds).levels(*places)
    else:
        ours = kernels.binary(operator, first, second, output, bounds)[places]
    options: dict[str, Any] = {}
    if operator in ("Add", "Sub", "Mul"):
        options = {"fusedActivationFunction": activation} | ({} if operator == "Mul" else {"potScaleInt16": False})
    return Case(
        ours=ours, name=name, inputs=[tensor(one.shape, first), tensor(other.shape, second)],
        output=tensor(one.shape, output), feeds=[one, other], options=options, version=1 if operator == "PRelu" else 2,
    )  # fmt: skip


# --- sums


def reduced(kernels: Kernels, draw: Draw, *, operator: str) -> Case:
    held, output = draw.encoding(), draw.encoding(product=1 if operator == "MEAN" else 2.0 ** draw.rng.integers(-1, 4))
    count = int(draw.rng.integers(1, 30))
    levels = draw.levels((1, count, 200)) // (16 if operator == "MEAN" and draw.seed % 2 else 1)
    form = (kernels.mean if operator == "MEAN" else kernels.sum)(held, output, count)
    axes = T(shape=(1,), type="INT32", data=np.array([1], np.int32))
    return Case(
        ours=levels_of(form, levels.astype(np.int64).sum(1)), name=operator, feeds=[levels],
        inputs=[tensor(levels.shape, held), axes], output=tensor((1, 200), output), options={"keepDims": False},
    )  # fmt: skip


def average_pool(kernels: Kernels, draw: Draw) -> Case:
    held, (height, width) = draw.encoding(), (int(extent) for extent in draw.rng.integers(1, 9, 2))
    levels = draw.levels((1, height * 2, width * 3, 16)) // (1 + 7 * (draw.seed % 2))
    sums = levels.astype(np.int64).reshape(1, 2, height, 3, width, 16).sum((2, 4))
    return Case(
        ours=kernels.average_pool(held, held, height * width).levels(sums), name="AVERAGE_POOL_2D", feeds=[levels],
        inputs=[tensor(levels.shape, held)], output=tensor(sums.shape, held),
        options={"filterHeight": height, "filterWidth": width, "strideH": height, "strideW": width, "padding": 1},
    )  # fmt: skip


def softmax(kernels: Kernels, draw: Draw) -> Case:
    held, count = draw.encoding(product=float(2.0 ** draw.rng.integers(-2, 3))), int(draw.rng.choice([2, 3, 10, 100]))
    least = np.iinfo(draw.kind).min
    levels, output = draw.levels((20, count)) // (1 + 3 * (draw.seed % 2)), encoding(1 / 256, least, draw.kind)
    form = kernels.softmax(held, output, count)
    parts = form.exponentials[levels.max(1, keepdims=True).astype(np.int64) - levels].astype(np.float64)
    steps = np.rint(parts * form.steps / parts.sum(1, keepdims=True)) + form.zero_point
    return Case(
        ours=np.clip(steps, form.low, form.high).astype(np.int64), name="SOFTMAX", feeds=[levels],
        inputs=[tensor(levels.shape, held)], output=tensor(levels.shape, output), options={"beta": 1.0},
    )  # fmt: skip


def wide_softmax(kernels: Kernels, draw: Draw) -> Case:
    held, count = (
        draw.encoding(product=float(2.0 ** draw.rng.integers(-10, -2))),
        int(draw.rng.choice([1, 2, 3, 10, 100])),
    )
    levels, output = draw.levels((20, count)) // (1 + 31 * (draw.seed % 2)), encoding(1 / 32768, 0, draw.kind)
    return Case(
        ours=kernels.wide_softmax(held, output).levels(levels.astype(np.int64)), name="SOFTMAX", feeds=[levels],
        inputs=[tensor(levels.shape, held)], output=tensor(levels.shape, output), options={"beta": 1.0}, version=3,
    )  # fmt: skip


# --- tables


def table(
    kernels: Kernels, draw: Draw, *, operator: str, name: str, version: int = 2, bounds: Bounds = UNBOUNDED,
    output: Callable[[str], Encoding] | None = None, attributes: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None, to: str = "", product: float = 1,
) -> Case:  # fmt: skip
    held = draw.encoding(product=product * 2.0 ** draw.rng.integers(-2, 3))
    made = output(draw.kind) if output else draw.encoding(product=2.0 ** draw.rng.integers(-1, 2))
    if to:
        made = encoding(made.scale, Draw(draw.family, draw.seed + 99, to).zero_point(), to)
    levels = every_level(draw.kind)[None]
    return Case(
        ours=kernels.unary(operator, attributes or {}, held, made, bounds)[None], name=name, version=version,
        inputs=[tensor(levels.shape, held)], output=tensor(levels.shape, made), feeds=[levels],
        options=dict(options or {}),
    )  # fmt: skip


def sigmoid_output(kind: str) -> Encoding:
    return encoding(1 / 32768, 0, kind) if kind == "int16" else encoding(1 / 256, np.iinfo(kind).min, kind)


def tanh_output(kind: str) -> Encoding:
    return encoding(1 / 32768 if kind == "int16" else 1 / 128, 128 if kind == "uint8" else 0, kind)


# --- what goes in


def quantized(kernels: Kernels, draw: Draw) -> Case:
    made = draw.encoding()
    halves = (draw.rng.integers(-600, 600, 500) * np.float32(0.5) * made.scale).astype(np.float32)
    real = np.concatenate([halves, np.nextafter(halves, np.float32(9e9)), np.nextafter(halves, np.float32(-9e9))])[None]
    if kernels.quantize == "reciprocal":
        steps = np.rint(real * (np.float32(1) / made.scale))
    else:
        assert kernels.quantize == "divide_half_away"
        steps = round_half_away(real / made.scale)
    limits = np.iinfo(draw.kind)
    ours = np.clip(steps.astype(np.int64) + int(made.zero_point), limits.min, limits.max)
    return Case(
        ours=ours, name="QUANTIZE", version=1, inputs=[tensor(real.shape, None)], output=tensor(real.shape, made),
        feeds=[real],
    )  # fmt: skip


def concatenated(kernels: Kernels, draw: Draw, *, same: bool = True) -> Case:
    held = draw.encoding()
    other, made = (held, held) if same else (draw.encoding(), draw.encoding())
    levels = every_level(draw.kind)[None]
    ours = np.concatenate([kernels.concat(held, made), kernels.concat(other, made)])[None]
    return Case(
        ours=ours, name="CONCATENATION", inputs=[tensor(levels.shape, held), tensor(levels.shape, other)],
        output=tensor(ours.shape, made), feeds=[levels, levels], options={"axis": 1, "fusedActivationFunction": 0},
    )  # fmt: skip


# --- interpolation


def interpolated(levels: Array, form: AxisInterpolation, axis: int) -> Array:
    moved = np.moveaxis(levels, axis, -1)
    result = moved[..., form.first] * (2**form.bits - form.weight) + moved[..., form.second] * form.weight
    return np.moveaxis(result, -1, axis)


def resized(kernels: Kernels, draw: Draw, *, mode: CoordinateMode) -> Case:
    held, extents = draw.encoding(), [int(extent) for extent in draw.rng.integers(1, 12, 4)]
    before, after = (extents[0], extents[1]), (extents[2], extents[3])
    levels = draw.levels((2, *before, 6)) // (1 + 31 * (draw.seed % 2))
    form = kernels.resize(held, held, mode, before, after)
    wide = interpolated(interpolated(levels.astype(np.int64), form.axes[0], 1), form.axes[1], 2)
    size = T(shape=(2,), type="INT32", data=np.array(after, np.int32))
    return Case(
        ours=form.rescale.levels(wide), name="RESIZE_BILINEAR", version=4, feeds=[levels],
        inputs=[tensor(levels.shape, held), size], output=tensor((2, *after, 6), held),
        options={"alignCorners": mode == "align_corners", "halfPixelCenters": mode == "half_pixel"},
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A case, the types that LiteRT computes it with, and the engines that have it."""

    make: MakeCase
    kinds: tuple[str, ...] = ("int8", "uint8")
    engines: tuple[str, ...] = ("xnnpack", "tflite-reference", "tflite-neon")


ALL = ("int8", "uint8", "int16")
SIGNED = ("int8", "int16")


def activation(operator: str, name: str, **fields: Any) -> MakeCase:
    return partial(table, operator=operator, name=name, **fields)


CASES: dict[str, Row] = {
    "fully connected": Row(fully_connected, ALL),
    "fully connected, per channel": Row(partial(fully_connected, channels=True), SIGNED),
    "fully connected, no bias": Row(partial(fully_connected, biased=False), ALL),
    "fully connected, per channel, no bias": Row(partial(fully_connected, channels=True, biased=False), SIGNED),
    "convolution": Row(convolution, ALL),
    "convolution, per channel": Row(partial(convolution, channels=True), SIGNED),
    "depthwise": Row(depthwise, ALL),
    "depthwise, per channel": Row(partial(depthwise, channels=True), SIGNED),
    "transposed": Row(transposed, ALL),
    "transposed, per channel": Row(partial(transposed, channels=True), SIGNED),
    "fully connected, 4 bits": Row(partial(fully_connected, bits=4), ("int8",)),
    "convolution, 4 bits": Row(partial(convolution, bits=4), ("int8",)),
    "convolution, 4 bits, per channel": Row(partial(convolution, channels=True, bits=4), ("int8",)),
    "depthwise, 4 bits": Row(partial(depthwise, channels=True, bits=4), ("int8",), ("xnnpack", "tflite-neon")),
    "batch product": Row(batch_product, SIGNED),
    "batch product, zero point": Row(partial(batch_product, shifted=True), ("int8",)),
    "add": Row(partial(pair, operator="Add", name="ADD"), ALL),
    "subtract": Row(partial(pair, operator="Sub", name="SUB"), ALL),
    "multiply": Row(partial(pair, operator="Mul", name="MUL"), ALL),
    "maximum": Row(partial(pair, operator="Max", name="MAXIMUM"), ALL),
    "minimum": Row(partial(pair, operator="Min", name="MINIMUM"), ALL),
    "parametric relu": Row(partial(pair, operator="PRelu", name="PRELU")),
    "squared difference": Row(partial(pair, operator="SquaredDifference", name="SQUARED_DIFFERENCE"), ("int8",)),
    "mean": Row(partial(reduced, operator="MEAN"), ALL),
    "sum": Row(partial(reduced, operator="SUM"), ALL, ("xnnpack", "tflite-neon")),
    "sum, reference": Row(partial(reduced, operator="SUM"), ("uint8",), ("tflite-reference",)),
    "average pool": Row(average_pool, ALL),
    "softmax": Row(softmax),
    "softmax of 16 bits": Row(wide_softmax, ("int16",)),
    "quantize": Row(quantized, ALL),
    "concatenate": Row(concatenated, ALL),
    "concatenate, other scales": Row(partial(concatenated, same=False), ("uint8",)),
    "resize, half pixels": Row(partial(resized, mode="half_pixel"), SIGNED),
    "resize, corners": Row(partial(resized, mode="align_corners"), SIGNED),
    "resize, asymmetric": Row(partial(resized, mode="asymmetric"), SIGNED),
    "resize of uint8": Row(partial(resized, mode="half_pixel"), ("uint8",), ("xnnpack",)),
    "requantize to int8": Row(activation("Requantize", "QUANTIZE", to="int8"), ALL),
    "requantize to uint8": Row(activation("Requantize", "QUANTIZE", to="uint8")),
    "requantize to int16": Row(activation("Requantize", "QUANTIZE", to="int16"), ALL),
    "sigmoid": Row(activation("Sigmoid", "LOGISTIC", output=sigmoid_output), ALL),
    "tanh": Row(activation("Tanh", "TANH", output=tanh_output), ALL),
    "tanh, other scales": Row(activation("Tanh", "TANH")),
    "relu": Row(activation("Relu", "RELU"), ALL),
    "relu6": Row(activation("Clip", "RELU6", bounds=(0, 6)), ALL),
    "relu of -1 to 1": Row(activation("Clip", "RELU_N1_TO_1", bounds=(-1, 1), version=1)),
    "leaky relu": Row(activation("LeakyRelu", "LEAKY_RELU", attributes={"alpha": 0.1}, options={"alpha": 0.1}), ALL),
    "leaky relu, rising to the left": Row(
        activation("LeakyRelu", "LEAKY_RELU", attributes={"alpha": -0.3}, options={"alpha": -0.3}), ALL
    ),
    "leaky relu, nearly flat": Row(activation("LeakyRelu", "LEAKY_RELU", options={"alpha": 0.01}), ALL),
    "hard swish": Row(activation("HardSwish", "HARD_SWISH", version=1)),
    "absolute": Row(activation("Abs", "ABS"), SIGNED),
    "elu": Row(activation("Elu", "ELU", version=1), ("int8",), ("xnnpack", "tflite-neon")),
    "gelu": Row(activation("Gelu", "GELU")),
    "gelu by tanh": Row(activation("Gelu", "GELU", attributes={"approximate": "tanh"}, options={"approximate": True})),
    "exponential": Row(activation("Exp", "EXP", product=2.0**-9), SIGNED),
    "logarithm": Row(activation("Log", "LOG"), SIGNED),
}

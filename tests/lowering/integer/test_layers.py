"""Layers in integers against sums computed by PyTorch in float64, and the rescale of the engine in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import UNBOUNDED, Bounds, Layer, LayerKind
from narrowgauge.core.granularity import PerAxis
from narrowgauge.graph.engine import open_session
from tests.lowering.integer.networks import encoding, levels_of, lowered, random_levels, real, simulated
from tests.passes.networks import node

Sums = Callable[[np.ndarray, np.ndarray], np.ndarray]

ACTIVATIONS: dict[str, Bounds] = {"": UNBOUNDED, "Relu": (0.0, np.inf), "Clip": (-1.0, 2.0)}
TYPES = {
    "xnnpack": ["int8", "uint8", "int16"], "tflite-reference": ["int8", "uint8", "int16"], "tflite-neon": ["int8"],
    "tflite-single-rounding": ["uint8"], "xnnpack-rndnu": ["uint8"],
    "fbgemm": ["uint8"], "onednn": ["uint8"], "qnnpack": ["uint8"],
}  # fmt: skip
TORCH = ("fbgemm", "onednn", "qnnpack")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What of a layer is drawn at random.

    Attributes:
        seed: of levels and scales.
        rule: the engine's.
        type: of activations.
        per_channel: weights have a scale for each channel, where the engine takes that.
        power_of_two: so are the scales, so that many sums are ties; else they are small multiples of one number.
        activation: the fused function.
        bias: whether there is one.
    """

    seed: int
    rule: str
    type: str
    per_channel: bool
    power_of_two: bool
    activation: str
    bias: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rule = draw(st.sampled_from(list(TYPES)))
    return Case(
        seed=draw(st.integers(0, 2**32 - 1)), rule=rule, type=draw(st.sampled_from(TYPES[rule])),
        per_channel=draw(st.booleans()), power_of_two=draw(st.booleans()),
        activation=draw(st.sampled_from(list(ACTIVATIONS))), bias=draw(st.booleans()),
    )  # fmt: skip


def check(
    case: Case, operator: str, weights_shape: tuple[int, ...], shape: tuple[int, ...], sums: Sums,
    kind: LayerKind, *, axis: int = 0, groups: int = 1, **attributes: Any,
) -> None:  # fmt: skip
    """Compare a lowered layer, level for level, with a rescale of sums of level differences.

    `axis` is that of the weights' output channels, of one of the groups; the result's is 1, or the last of a product.
    """
    rng = np.random.default_rng(case.seed)
    unsigned_weights = case.type == "uint8" and case.rule not in TORCH
    channels = weights_shape[axis] * groups
    base = np.float32(2.0**-6 if case.power_of_two else rng.uniform(2.0**-7, 2.0**-6))
    factors = 2.0 ** rng.integers(-3, 3, channels) if case.power_of_two else rng.integers(1, 9, channels)
    factors = np.tile(factors[: weights_shape[axis]], groups)  # scales along the weights' axis, alike in all groups
    scale = base * (factors if case.per_channel and not unsigned_weights else factors[0]).astype(np.float32)
    weight_kind = encoding("uint8" if unsigned_weights else "int8", scale, 121 if unsigned_weights else 0)
    zero_point = 0 if case.type == "int16" else int(rng.integers(*((0, 256) if case.type == "uint8" else (-128, 128))))
    source = encoding(case.type, base, zero_point)
    levels = random_levels(rng, shape, source)
    weights = random_levels(rng, weights_shape, weight_kind).clip(-127)
    exact = sums(levels.astype(np.int64) - zero_point, weights.astype(np.int64) - (121 if unsigned_weights else 0))
    largest = max(np.abs(exact).max(initial=1), 1) * float(np.max(scale)) * float(base)
    reach = 32767.0 if case.type == "int16" else 127.0
    step = np.float32(2.0 ** np.floor(np.log2(largest / reach)))  # so that some levels saturate
    output = encoding(case.type, step if case.power_of_two else base * np.rint(step / base + 1), zero_point // 2)

    unit = (source.scale * weight_kind.scale).astype(np.float64)
    bias = (rng.integers(-(2**12), 2**12, channels) * unit).astype(np.float32) if case.bias else None
    nodes, constants = _nodes(case, operator, attributes)
    along = [-1 if number == axis else 1 for number in range(len(weights_shape))]
    planned = weight_kind
    if weight_kind.scale.ndim:
        kept = slice(weights_shape[axis])
        planned = replace(
            weight_kind, granularity=PerAxis(axis), scale=weight_kind.scale[kept],
            zero_point=weight_kind.zero_point[kept],
        )  # fmt: skip
    spread = planned.scale.reshape(along) if planned.scale.ndim else planned.scale
    constants["w"] = (weights.astype(np.float32) - weight_kind.zero_point.flat[0]) * spread
    if bias is not None:
        constants["b"] = bias
    qdq = simulated(
        nodes, {"x": ["n", *shape[1:]]}, {"x": source, "w": planned, "y": output}, constants,
        bias_bits=0 if case.rule in TORCH else 32,
    )  # fmt: skip
    found = lowered(qdq, KERNELS[case.rule])
    assert found.refusals == ()

    result = levels_of(found.model, {"x": real(levels, source)})
    np.testing.assert_array_equal(result["x_quantized"], levels)
    layer = Layer(
        kind=kind, input=source, weights=weight_kind, output=output, bias=bias, bounds=ACTIVATIONS[case.activation],
        groups=attributes.get("group", 1), channels=channels, fixed_shape=False,
    )  # fmt: skip
    form = KERNELS[case.rule].layer(layer)
    across = -1 if kind == "product" else 1
    expected = form.rescale.levels(np.moveaxis(exact, across, -1) + (0 if form.bias is None else form.bias))
    np.testing.assert_array_equal(result["y_quantized"], np.moveaxis(expected, -1, across))


def _nodes(case: Case, operator: str, attributes: dict[str, Any]) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    last = "a" if case.activation else "y"
    constants: dict[str, np.ndarray] = {}
    if operator == "MatMul" and case.bias:
        nodes = [node("MatMul", "x w", "m"), node("Add", "m b", last)]
    else:
        nodes = [node(operator, "x w b" if case.bias else "x w", last, **attributes)]
    if case.activation == "Clip":
        constants = {"low": np.array(-1, np.float32), "high": np.array(2, np.float32)}
    if case.activation:
        nodes.append(node(case.activation, " ".join(["a", *constants]), "y"))
    return nodes, constants


def convolved(pads: list[int], strides: list[int], dilations: list[int], groups: int) -> Sums:
    torch = pytest.importorskip("torch", reason="sums are computed by PyTorch")
    rank = len(strides)
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    around = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]

    def sums(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        padded = torch.nn.functional.pad(torch.from_numpy(levels).double(), around)
        made = function(padded, torch.from_numpy(weights).double(), None, strides, 0, dilations, groups)
        return made.numpy().astype(np.int64)

    return sums


@settings(max_examples=40)
@given(case=cases(), data=st.data())
def test_convolutions(case: Case, data: st.DataObject) -> None:
    def numbers(low: int, high: int, count: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    rank = data.draw(st.sampled_from([1, 2, 2, 3]))
    kernel, strides, dilations, pads = (
        numbers(1, 3, rank), numbers(1, 2, rank), numbers(1, 2, rank), numbers(0, 2, 2 * rank)
    )  # fmt: skip
    groups, width, multiplier = data.draw(st.sampled_from([(1, 3, 4), (2, 2, 3), (4, 1, 1), (3, 1, 2)]))
    extents = [5 + extent for extent in numbers(0, 2, rank)]
    check(
        case, "Conv", (groups * multiplier, width, *kernel), (2, groups * width, *extents),
        convolved(pads, strides, dilations, groups), "depthwise" if groups > 1 and width == 1 else "convolution",
        kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads, group=groups,
    )  # fmt: skip


@settings(max_examples=30)
@given(case=cases(), rows=st.sampled_from([(1,), (5,), (2, 3), (2, 3, 4)]), form=st.sampled_from(["MatMul", "Gemm"]))
def test_products(case: Case, rows: tuple[int, ...], form: str) -> None:
    def sums(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return levels @ (weights.T if form == "Gemm" else weights)

    width = 700 if case.type == "int16" else 17  # so many that sums take more than 32 bits
    if form == "Gemm":
        check(case, "Gemm", (6, width), (rows[0], width), sums, "product", transB=1)
    else:
        check(case, "MatMul", (width, 6), (*rows, width), sums, "product", axis=1)


@pytest.mark.parametrize(
    ("rule", "type", "inputs", "refused"),
    [
        ("integer-only", "uint8", 66_000, False), ("integer-only", "uint8", 66_400, True),
        ("integer-only", "int16", 66_000, False), ("integer-only", "int16", 66_400, True),
    ],
)  # fmt: skip
def test_more_products_than_32_bits_hold_are_refused(rule: str, type: str, inputs: int, refused: bool) -> None:
    kinds = {"x": encoding(type, 1.0), "w": encoding("int8_narrow", 1.0), "y": encoding(type, inputs * 127.0)}
    weights = np.full((inputs, 1), 127, np.float32)
    found = lowered(simulated([node("MatMul", "x w", "y")], {"x": [1, inputs]}, kinds, {"w": weights}), KERNELS[rule])
    expected = [f"it adds up {inputs} products, which 32 bits may not hold"] if refused else []
    assert [one.reason for one in found.refusals] == expected
    if not refused:
        result = levels_of(found.model, {"x": np.full((1, inputs), 250, np.float32)})
        assert result["y_quantized"].item() == 250


def test_a_wide_product_of_16_bit_levels_is_the_one_in_float64() -> None:
    """More channels than thresholds are searched for, and a multiplier of 31 bits misses some of them."""
    rng = np.random.default_rng(0)
    source, output = encoding("int16", 0.0013), encoding("int16", 0.0097)
    weight_kind = encoding("int8", rng.uniform(0.005, 0.03, 150))
    levels = random_levels(rng, (300, 40), source)
    weights = random_levels(rng, (150, 40), weight_kind).clip(-127)
    constants = {"w": weights * weight_kind.scale[:, None]}
    encodings = {"x": source, "w": weight_kind, "y": output}
    found = lowered(
        simulated([node("Gemm", "x w", "y", transB=1)], {"x": ["n", 40]}, encodings, constants),
        KERNELS["tflite-reference"],
    )
    assert found.refusals == ()
    result = levels_of(found.model, {"x": real(levels, source)})["y_quantized"]
    factor = np.float64(source.scale) * weight_kind.scale.astype(np.float64) / np.float64(output.scale)
    steps = (levels.astype(np.int64) @ weights.astype(np.int64).T).astype(np.float64) * factor
    expected = np.clip(np.sign(steps) * np.floor(np.abs(steps) + 0.5), -(2**15), 2**15 - 1)
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=30)
@given(case=cases(), data=st.data())
def test_transposed_convolutions(case: Case, data: st.DataObject) -> None:
    torch = pytest.importorskip("torch", reason="sums are computed by PyTorch")

    def numbers(low: int, high: int, count: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    rank = data.draw(st.sampled_from([1, 2]))
    kernel, strides, dilations = numbers(1, 3, rank), numbers(1, 3, rank), numbers(1, 2, rank)
    pads = numbers(0, 1, 2 * rank)
    beyond = [min(stride, dilation) - 1 for stride, dilation in zip(strides, dilations, strict=True)]
    groups = data.draw(st.sampled_from([1, 2]))
    function = (torch.nn.functional.conv_transpose1d, torch.nn.functional.conv_transpose2d)[rank - 1]

    def sums(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        one, other = torch.from_numpy(levels).double(), torch.from_numpy(weights).double()
        made = function(one, other, None, strides, 0, beyond, groups, dilations).numpy().astype(np.int64)
        cut = tuple(slice(pads[axis], made.shape[2 + axis] - pads[rank + axis]) for axis in range(rank))
        return made[(slice(None), slice(None), *cut)]

    check(
        case, "ConvTranspose", (2 * groups, 9 // groups, *kernel), (2, 2 * groups, *numbers(4, 6, rank)), sums,
        "transposed", axis=1, groups=groups, kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads,
        output_padding=beyond, group=groups,
    )  # fmt: skip


PADDINGS: list[dict[str, Any]] = [
    {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID", "output_padding": [1, 0]},
    {"output_shape": [12, 9]}, {"output_shape": [11, 11]}, {"output_shape": [12, 9], "auto_pad": "SAME_UPPER"},
]  # fmt: skip


@pytest.mark.parametrize("type", ["int8", "int16"])
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_padding_of_transposed_convolutions_follows_from_their_output(padding: dict[str, Any], type: str) -> None:
    """In ONNX Runtime, of numbers that are whole: levels are these numbers."""
    rng = np.random.default_rng(1)
    source, wide = encoding(type, 1.0, 0 if type == "int16" else 3), encoding("int16", 1.0)
    weights = rng.integers(-2, 3, (2, 3, 3, 2)).astype(np.float32)
    made = node("ConvTranspose", "x w", "y", strides=[2, 2], **padding)
    output = replace(source, scale=np.asarray(np.float32(1))) if type == "int8" else wide
    qdq = simulated([made], {"x": [2, 2, 6, 5]}, {"x": source, "w": encoding("int8", 1.0), "y": output}, {"w": weights})
    found = lowered(qdq, KERNELS["tflite-reference"])
    assert found.refusals == ()
    levels = (rng.integers(-9, 9, (2, 2, 6, 5)) + int(source.zero_point)).astype(source.type.storage)
    feed = {"x": real(levels, source)}
    (expected,) = open_session(qdq, threads=1).run(None, feed)
    result = levels_of(found.model, feed)["y_quantized"]
    np.testing.assert_array_equal(result - int(output.zero_point), expected)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1), rule=st.sampled_from(["xnnpack", "tflite-reference"]),
    type=st.sampled_from(["int8", "int16"]),
    shape=st.sampled_from(
        [((2, 3, 7), (2, 7, 5)), ((1, 4, 3, 7), (7, 5)), ((3, 7), (7, 1)), ((4, 700), (1, 700, 3)), ((5,), (2, 5, 3))]
    ),
    zero_point=st.sampled_from([0, 9]), power_of_two=st.booleans(),
)  # fmt: skip
def test_products_of_two_activations(
    seed: int, rule: str, type: str, shape: tuple[tuple[int, ...], tuple[int, ...]], zero_point: int, power_of_two: bool
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    base = np.float32(2.0**-6 if power_of_two else rng.uniform(0.01, 0.02))
    zeros = (0, 0, 0) if type == "int16" else (-5, zero_point, 11)
    spread = 1 if type == "int16" else base * 8
    one, other, output = (
        encoding(type, scale, zero) for scale, zero in zip((base, base * 3, spread), zeros, strict=True)
    )
    first, second = random_levels(rng, shape[0], one), random_levels(rng, shape[1], other)
    encodings = {"a": one, "b": other, "y": output}
    found = lowered(simulated([node("MatMul", "a b", "y")], {"a": shape[0], "b": shape[1]}, encodings), KERNELS[rule])
    assert found.refusals == ()
    result = levels_of(found.model, {"a": real(first, one), "b": real(second, other)})["y_quantized"]
    layer = Layer(kind="batch_product", input=one, weights=other, output=output)
    sums = (first.astype(np.int64) - zeros[0]) @ (second.astype(np.int64) - zeros[1])
    np.testing.assert_array_equal(result, KERNELS[rule].layer(layer).rescale.levels(sums))

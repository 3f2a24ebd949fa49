"""LayerNormalization in integers, against its definition in numpy, integer for integer."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import quantize
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.granularity import PerAxis, PowerOfTwoFactor
from narrowgauge.core.integer_layernorm import LayerNormForm, layernorm_form
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError
from tests.lowering.integer.networks import encoding, levels_of, lowered, random_levels, real, simulated
from tests.passes.networks import node

INTEGER_ONLY = KERNELS["integer-only"]


def powers(kind: str, base: float, shifts: np.ndarray, zero_points: np.ndarray) -> Encoding:
    scale = np.ldexp(np.float32(base), shifts.astype(np.int32)).astype(np.float32)
    return Encoding(
        type=integer_type(kind), granularity=PowerOfTwoFactor(-1), scale=scale, zero_point=zero_points.astype(np.int32)
    )


def each(kind: str, scale: np.ndarray, zero_points: np.ndarray) -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerAxis(-1), scale=scale.astype(np.float32),
        zero_point=zero_points.astype(np.int32),
    )  # fmt: skip


def form_of(input: Encoding, output: Encoding, gain: np.ndarray, bias: np.ndarray, epsilon: float) -> LayerNormForm:
    real_epsilon = float(np.float32(epsilon))
    try:
        return layernorm_form(input, output, gain=gain, bias=bias, epsilon=real_epsilon)
    except PlanError:
        return layernorm_form(input, output, gain=gain, bias=bias, epsilon=real_epsilon, width=64)


def normalization(inputs: str = "x gain bias", epsilon: float = 1e-5, axis: int = -1) -> onnx.NodeProto:
    return node("LayerNormalization", inputs, "y", axis=axis, epsilon=epsilon)


def computed(
    levels: np.ndarray, input: Encoding, output: Encoding, gain: np.ndarray, bias: np.ndarray, epsilon: float
) -> np.ndarray:
    shape = ["n", *levels.shape[1:]]
    axis = -1 if levels.shape[0] % 2 else levels.ndim - 1
    constants = {"gain": gain, "bias": bias}
    qdq = simulated([normalization(epsilon=epsilon, axis=axis)], {"x": shape}, {"x": input, "y": output}, constants)
    found = lowered(qdq, INTEGER_ONLY)
    assert found.refusals == ()
    result = levels_of(found.model, {"x": real(levels, input)})
    np.testing.assert_array_equal(result["x_quantized"], levels)
    return result["y_quantized"]


def random_rows(generator: np.random.Generator, shape: tuple[int, ...], input: Encoding, kind: str) -> np.ndarray:
    limits, levels = np.iinfo(input.type.storage), random_levels(generator, shape, input)
    if kind == "equal":
        levels[...] = input.zero_point
    if kind == "ends":
        levels = np.where(generator.random(shape) < 0.5, limits.min, limits.max).astype(levels.dtype)
    if kind == "one":
        levels[...], levels[..., 0] = limits.min, limits.max
    if kind == "near":
        levels[...] = np.clip(input.zero_point + generator.integers(0, 2, shape), limits.min, limits.max)
    return levels


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Encoding, Encoding, np.ndarray, np.ndarray, float]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from([1, 2, 3, 8, 17, 192]))
    kind = draw(st.sampled_from(["uint8", "int8", "int16"]))
    limits = np.iinfo(kind)
    base = draw(st.sampled_from([2.0**-7, 0.0123, 3.7]))
    if draw(st.booleans()) and kind != "int16":
        zero_points = generator.integers(limits.min, limits.max + 1, channels)
        input = powers(kind, base, generator.integers(0, draw(st.integers(1, 6)), channels), zero_points)
    else:
        input = encoding(kind, base, draw(st.sampled_from([0, 17, 100])))
    kind = draw(st.sampled_from(["uint8", "int8", "int16"]))
    zero = 0 if kind == "int16" else draw(st.sampled_from([0, 100]))
    scale = draw(st.sampled_from([2.0**-5, 0.0213, 0.1])) / (64 if kind == "int16" else 1)
    output = encoding(kind, scale, zero)
    if draw(st.booleans()):
        output = each(kind, scale * generator.uniform(0.3, 2, channels), zero + generator.integers(0, 9, channels))
    gain = (generator.normal(1, 0.3, channels) * draw(st.sampled_from([0.1, 1.0, -0.5]))).astype(np.float32)
    bias = generator.normal(0, 1, channels).astype(np.float32)
    shape = (*draw(st.sampled_from([(3,), (1, 4), (2, 3), (2, 1, 3), (1, 2, 2)])), channels)
    rows = draw(st.sampled_from(["any", "equal", "ends", "one", "near"]))
    epsilon = draw(st.sampled_from([0.0, 1e-12, 1e-6, 1e-5, 0.1]))
    return random_rows(generator, shape, input, rows), input, output, gain, bias, epsilon


@settings(max_examples=40)
@given(cases())
def test_levels_are_those_of_the_definition(
    case: tuple[np.ndarray, Encoding, Encoding, np.ndarray, np.ndarray, float],
) -> None:
    levels, input, output, gain, bias, epsilon = case
    expected = form_of(input, output, gain, bias, epsilon).levels(levels.astype(np.int64))
    np.testing.assert_array_equal(computed(*case), expected)


@pytest.mark.parametrize(("channels", "bits"), [(64, 16), (1000, 16), (7, 16), (4000, 8), (1, 8)])
def test_the_greatest_numbers_that_the_widths_hold(channels: int, bits: int) -> None:
    kind = f"uint{bits}"
    output = encoding("uint8", np.sqrt(channels) / 127, 128)
    levels = np.zeros((4, channels), kind)
    levels[0, 0] = levels[1, 1:] = levels[2, ::2] = 2**bits - 1
    gain, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    for shift in (0, 1, 3, 5, 6):
        input = powers(kind, 1.0, np.array([0, *[shift] * (channels - 1)]), np.zeros(channels))
        try:
            form = form_of(input, output, gain, bias, 0.0)
        except PlanError:  # the squares exceed 62 bits
            assert shift > 4
            break
        found = computed(levels, input, output, gain, bias, 0.0)
        np.testing.assert_array_equal(found, form.levels(levels.astype(np.int64)))


def test_levels_are_those_of_real_numbers_but_for_ties() -> None:
    generator = np.random.default_rng(0)
    channels = 192
    input = powers("uint8", 0.01, generator.integers(0, 6, channels), generator.integers(90, 160, channels))
    output = each("uint8", generator.uniform(0.01, 0.03, channels), generator.integers(100, 150, channels))
    gain, bias = generator.normal(1, 0.3, channels), generator.normal(0, 0.5, channels)
    levels = random_levels(generator, (40, channels), input)
    found = computed(levels, input, output, gain.astype(np.float32), bias.astype(np.float32), 1e-6)
    numbers = real(levels, input).astype(np.float64)
    numbers -= numbers.mean(axis=-1, keepdims=True)
    numbers /= np.sqrt(np.square(numbers).mean(axis=-1, keepdims=True) + 1e-6)
    exact = numbers * np.float32(gain) + np.float32(bias)
    rounded = quantize(exact, output)
    differing = found != rounded
    assert differing.mean() < 0.01
    error = form_of(input, output, np.float32(gain), np.float32(bias), 1e-6).error
    assert error < 0.2
    steps = exact / output.scale.astype(np.float64)
    assert (np.abs(found.astype(int) - rounded.astype(int))[differing] == 1).all()
    assert (np.abs(steps - np.floor(steps) - 0.5)[differing] < error).all()


def test_a_bias_may_be_absent_and_a_gain_single() -> None:
    input, output = encoding("int8", 0.03, 5), encoding("int8", 0.02, -3)
    qdq = simulated([normalization("x gain")], {"x": ["n", 6]}, {"x": input, "y": output}, {"gain": np.float32([1.5])})
    found = lowered(qdq, INTEGER_ONLY)
    levels = random_levels(np.random.default_rng(2), (5, 6), input)
    result = levels_of(found.model, {"x": real(levels, input)})["y_quantized"]
    expected = form_of(input, output, np.full(6, 1.5), np.zeros(6), 1e-5).levels(levels.astype(np.int64))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_activation_function_behind_it_cuts_levels(per_channel: bool) -> None:
    generator = np.random.default_rng(3)
    input, output = encoding("uint8", 0.03, 130), encoding("uint8", 0.02, 100)
    if per_channel:
        output = each("uint8", generator.uniform(0.01, 0.03, 6), generator.integers(50, 150, 6))
    nodes = [node("LayerNormalization", "x gain", "z"), node("Relu", "z", "y")]
    qdq = simulated(nodes, {"x": ["n", 6]}, {"x": input, "y": output}, {"gain": np.ones(6, np.float32)})
    found = lowered(qdq, INTEGER_ONLY)
    assert found.refusals == ()
    levels = random_levels(generator, (50, 6), input)
    result = levels_of(found.model, {"x": real(levels, input)})["y_quantized"]
    expected = form_of(input, output, np.ones(6), np.zeros(6), 1e-5).levels(levels.astype(np.int64))
    np.testing.assert_array_equal(result, np.maximum(expected, output.zero_point))


def test_only_squares_that_are_added_up_are_wider_than_32_bits() -> None:
    channels = 192
    input = powers("uint8", 0.01, np.arange(channels) % 6, np.full(channels, 128))
    constants = {"gain": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
    encodings = {"x": input, "y": encoding("uint8", 0.02, 128)}
    model = lowered(simulated([normalization()], {"x": ["n", 3, channels]}, encodings, constants), INTEGER_ONLY).model
    elements = [
        value
        for each_node in model.graph
        for value in each_node.outputs
        if value.shape is not None and len(value.shape) > 1 and value.shape[-1] == channels
    ]
    wide = [value for value in elements if value.dtype in {ir.DataType.INT64, ir.DataType.UINT64}]
    assert len(elements) > 10
    assert [[use.node.op_type for use in value.uses()] for value in wide] == [["MatMul"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"axis": 1}, "normalizes from axis 1 on"),
        ({"inputs": "x x bias"}, "its gain is computed"),
        ({"inputs": "x gain x"}, "its bias is computed"),
        (
            {"gain": np.ones(1, np.float32), "inputs": "x gain", "shape": [6, "c"]},
            "number of its channels is not known",
        ),
        ({"gain": np.ones(5, np.float32)}, "its gain and bias have 5 and 6 numbers, expected 6"),
        ({"rule": "xnnpack"}, "xnnpack has no integer arithmetic for LayerNormalization"),
        ({"gain": np.full(6, 1e20, np.float32)}, "levels|off by"),
    ],
)
def test_what_cannot_be_computed_stays_as_it_is(change: dict[str, object], reason: str) -> None:
    change = dict(change)
    rule, shape = str(change.pop("rule", "integer-only")), change.pop("shape", [6, 6, 6])
    constants = {"gain": change.pop("gain", np.ones(6, np.float32)), "bias": np.zeros(6, np.float32)}
    encodings = {"x": encoding("uint8", 0.03, 130), "y": encoding("uint8", 0.02, 100)}
    qdq = simulated([normalization(**change)], {"x": shape}, encodings, constants)
    found = lowered(qdq, KERNELS[rule])
    assert [one.operator for one in found.refusals] == ["LayerNormalization"]
    assert [one.op_type for one in found.model.graph].count("LayerNormalization") == 1
    assert any(part in found.refusals[0].reason for part in reason.split("|")), found.refusals[0].reason

"""Operators without weights in integers, against the engine's tables and forms evaluated in numpy."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.kernels import UNBOUNDED
from narrowgauge.errors import PlanError
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.lowering.integer.networks import encoding, levels_of, lowered, random_levels, real, simulated
from tests.lowering.networks import hand_plan
from tests.passes.networks import network, node

RULES = ("xnnpack", "tflite-reference")
SCALE = np.float32(0.043)
ANY_PADDING = replace(KERNELS["tflite-reference"], tflite_files=False)
"""Pools as TensorFlow Lite's files say them pad in two ways only."""


def computed(
    nodes: list[onnx.NodeProto], levels: dict[str, np.ndarray], encodings: dict[str, Encoding], rule: str,
    constants: dict[str, np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """Run a lowered network on levels and return those of `y`; nothing of it may stay in real numbers."""
    inputs = {name: ["n", *array.shape[1:]] for name, array in levels.items()}
    found = lowered(simulated(nodes, inputs, encodings, constants), KERNELS[rule])
    assert found.refusals == ()
    result = levels_of(found.model, {name: real(array, encodings[name]) for name, array in levels.items()})
    for name, array in levels.items():
        np.testing.assert_array_equal(result[f"{name}_quantized"], array)
    return result["y_quantized"]


def drawn(seed: int, shape: tuple[int, ...], kind: Encoding) -> np.ndarray:
    return random_levels(np.random.default_rng(seed), shape, kind)


def places(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.int64) - np.iinfo(levels.dtype).min


# --- one by one -----------------------------------------------------------------------------------------------------

REFUSED = (("HardSwish", "int16"), ("Elu", "int16"))
"""Operators and types that LiteRT has no kernel for."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("type", ["int8", "uint8", "int16"])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("Sigmoid", {}), ("Tanh", {}), ("LeakyRelu", {"alpha": 0.3}), ("Relu", {}), ("HardSwish", {}), ("Elu", {})],
)
def test_functions_of_levels(operator: str, attributes: dict[str, Any], type: str, rule: str) -> None:
    zero = 0 if type == "int16" else 17
    source = encoding(type, SCALE if type != "int16" else 2.0**-12, zero)
    output = encoding(type, SCALE * 2 if type != "int16" else 2.0**-15, zero)
    if operator == "Sigmoid":
        output = encoding(type, 2.0**-15 if type == "int16" else 2.0**-8, -128 if type == "int8" else 0)
    if operator == "Tanh" and type != "int16":
        output = encoding(type, 2.0**-7, 0 if type == "int8" else 128)
    if (operator, type) in REFUSED:
        with pytest.raises(PlanError, match=f"no integer arithmetic of LiteRT is known for {operator} of int16"):
            KERNELS[rule].unary(operator, attributes, source, output, UNBOUNDED)
        return
    table = KERNELS[rule].unary(operator, attributes, source, output, UNBOUNDED)
    levels = drawn(1, (2, 3, 50), source)
    found = computed([node(operator, "x", "y", **attributes)], {"x": levels}, {"x": source, "y": output}, rule)
    np.testing.assert_array_equal(found, table[places(levels)])


@pytest.mark.parametrize("rule", [*RULES, "qnnpack", "fbgemm"])
@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub"])
def test_pairs_of_levels_broadcast(operator: str, rule: str) -> None:
    one, other, output = (
        encoding("uint8", SCALE, 3),
        encoding("uint8", SCALE / 3, 200),
        encoding("uint8", SCALE * 2, 99),
    )
    if operator == "Sub" and rule in ("qnnpack", "fbgemm"):
        pytest.skip("PyTorch has no such kernel")
    levels = {"a": drawn(1, (2, 3, 4, 5), one), "b": drawn(2, (1, 1, 4, 1), other)}
    encodings = {"a": one, "b": other, "y": output}
    nodes = [node(operator, "a b", "s"), node("Relu", "s", "y")]
    found = computed(nodes, levels, encodings, rule)
    table = KERNELS[rule].binary(operator, one, other, output, (0.0, np.inf))
    np.testing.assert_array_equal(found, table[places(levels["a"]), places(levels["b"])])


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_pairs_of_16_bit_levels(operator: str) -> None:
    one, other, output = encoding("int16", 2.0**-9), encoding("int16", 0.003), encoding("int16", 0.0071)
    levels = {"a": drawn(1, (2, 300), one), "b": drawn(2, (2, 300), other)}
    found = computed([node(operator, "a b", "y")], levels, {"a": one, "b": other, "y": output}, "tflite-reference")
    form = KERNELS["tflite-reference"].pair(operator, one, other, output, UNBOUNDED)
    np.testing.assert_array_equal(found, form.levels(places(levels["a"]), places(levels["b"])))


def test_a_constant_is_an_operand_like_any_other() -> None:
    one, other, output = encoding("int8", SCALE, 3), encoding("int8", SCALE / 3, -20), encoding("int8", SCALE, 9)
    levels, second = drawn(1, (2, 3, 4), one), drawn(2, (3, 1), other)
    encodings = {"x": one, "c": other, "y": output}
    found = computed([node("Mul", "x c", "y")], {"x": levels}, encodings, "xnnpack", {"c": real(second, other)})
    table = KERNELS["xnnpack"].binary("Mul", one, other, output, UNBOUNDED)
    np.testing.assert_array_equal(found, table[places(levels), places(second)])


def test_the_square_of_a_difference_is_one_operator() -> None:
    one, other, output = encoding("int8", SCALE, 3), encoding("int8", SCALE, -20), encoding("int8", SCALE * 3, -128)
    levels = {"a": drawn(1, (2, 40), one), "b": drawn(2, (2, 40), other)}
    nodes = [node("Sub", "a b", "d"), node("Mul", "d d", "y")]
    found = computed(nodes, levels, {"a": one, "b": other, "y": output}, "tflite-reference")
    table = KERNELS["tflite-reference"].binary("SquaredDifference", one, other, output, UNBOUNDED)
    np.testing.assert_array_equal(found, table[places(levels["a"]), places(levels["b"])])


# --- sums -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1), rule=st.sampled_from(RULES), type=st.sampled_from(["int8", "uint8"]),
    axes=st.sampled_from([(2, 3), (1,), (-1,), (0, 2)]), keep=st.booleans(),
)  # fmt: skip
def test_means(seed: int, rule: str, type: str, axes: tuple[int, ...], keep: bool) -> None:
    rng = np.random.default_rng(seed)
    base = np.float32(rng.uniform(0.01, 0.1))
    source, output = encoding(type, base, 7), encoding(type, base * rng.integers(1, 3) / 2, 100)
    levels = random_levels(rng, (1, 3, 5, 4), source)
    nodes = [node("ReduceMean", "x axes", "y", keepdims=int(keep))]
    model_axes = {"axes": np.array(axes, np.int64)}
    found = lowered(
        simulated(nodes, {"x": levels.shape}, {"x": source, "y": output}, model_axes), KERNELS[rule]
    )  # fmt: skip
    assert found.refusals == ()
    result = levels_of(found.model, {"x": real(levels, source)})["y_quantized"]
    count = int(np.prod([levels.shape[axis] for axis in axes]))
    form = KERNELS[rule].mean(source, output, count)
    sums = levels.astype(np.int64).sum(axis=axes, keepdims=keep) + (0 if form.bias is None else form.bias)
    np.testing.assert_array_equal(result, form.rescale.levels(sums))


def test_global_average_pool_keeps_its_axes() -> None:
    source = encoding("int8", SCALE, 7)
    levels = drawn(3, (2, 3, 6, 5), source)
    found = computed([node("GlobalAveragePool", "x", "y")], {"x": levels}, {"x": source, "y": source}, "xnnpack")
    form = KERNELS["xnnpack"].mean(source, source, 30)
    np.testing.assert_array_equal(found, form.rescale.levels(levels.astype(np.int64).sum(axis=(2, 3), keepdims=True)))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), type=st.sampled_from(["int8", "uint8", "int16"]), data=st.data(),
    rank=st.sampled_from([1, 2, 3]), include=st.booleans(),
)  # fmt: skip
def test_average_pools(seed: int, type: str, data: st.DataObject, rank: int, include: bool) -> None:
    def numbers(low: int, high: int, count: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, strides = numbers(2, 3, rank), numbers(1, 2, rank)
    pads = numbers(0, 1, 2 * rank)
    zero_point = 0 if type == "int16" else 11
    source = encoding(type, SCALE, zero_point)
    levels = drawn(seed, (2, 3, *(6 - axis for axis in range(rank))), source)
    pool = node(
        "AveragePool", "x", "y", kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=int(include)
    )  # fmt: skip
    qdq = simulated([pool], {"x": ["n", *levels.shape[1:]]}, {"x": source, "y": source})
    lower = lowered(qdq, ANY_PADDING)
    assert lower.refusals == ()
    found = levels_of(lower.model, {"x": real(levels, source)})["y_quantized"]
    np.testing.assert_array_equal(found, pooled(levels, kernel, strides, pads, zero_point if include else None))


def pooled(levels: np.ndarray, kernel: list[int], strides: list[int], pads: list[int], fill: int | None) -> np.ndarray:
    """Divide sums of windows by what lies inside, half away from zero; `fill` counts as a level where it is given."""
    rank = len(kernel)
    around = [(0, 0), (0, 0), *((pads[axis], pads[axis + rank]) for axis in range(rank))]
    padded = np.pad(levels.astype(np.int64), around, constant_values=fill or 0)
    inside = np.pad(np.ones_like(levels, np.int64), around, constant_values=int(fill is not None))

    def sums(array: np.ndarray) -> np.ndarray:
        axes = tuple(range(2, 2 + rank))
        windows = np.lib.stride_tricks.sliding_window_view(array, kernel, axis=axes)
        return windows[(..., *(slice(None, None, step) for step in strides), *(slice(None),) * rank)].sum(
            axis=tuple(range(-rank, 0))
        )

    total, count = sums(padded), sums(inside)
    return np.sign(total) * ((np.abs(total) + count // 2) // count)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), type=st.sampled_from(["int8", "uint8"]), axis=st.sampled_from([1, -1]))
def test_softmax_is_exact(seed: int, type: str, axis: int) -> None:
    rng = np.random.default_rng(seed)
    source = encoding(type, rng.uniform(0.01, 0.2), 3)
    output = encoding(type, 2.0**-8, -128 if type == "int8" else 0)
    levels = random_levels(rng, (2, 16, 4), source)
    levels[0] = levels[0, 0, 0]  # equal numbers: a sixteenth each, and ties
    found = computed([node("Softmax", "x", "y", axis=axis)], {"x": levels}, {"x": source, "y": output}, "xnnpack")
    form = KERNELS["xnnpack"].softmax(source, output, levels.shape[axis])
    rows, given_rows = np.moveaxis(found, axis, -1), np.moveaxis(levels.astype(np.int64), axis, -1)
    for row, result in zip(
        given_rows.reshape(-1, levels.shape[axis]), rows.reshape(-1, levels.shape[axis]), strict=True
    ):
        exponentials = [Fraction(float(one)) for one in form.exponentials[row.max() - row]]
        total = sum(exponentials)
        expected = [round(one * form.steps / total) + form.zero_point for one in exponentials]
        np.testing.assert_array_equal(result, np.clip(expected, form.low, form.high))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), axis=st.sampled_from([1, -1]), spread=st.sampled_from([5, 500, 30000]))
def test_softmax_of_16_bits(seed: int, axis: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    source, output = encoding("int16", rng.uniform(1e-4, 1e-2)), encoding("int16", 2.0**-15)
    levels = rng.integers(-spread, spread, (2, 16, 300)).astype(np.int16)
    found = computed(
        [node("Softmax", "x", "y", axis=axis)], {"x": levels}, {"x": source, "y": output}, "tflite-reference"
    )
    form = KERNELS["tflite-reference"].wide_softmax(source, output)
    expected = np.moveaxis(form.levels(np.moveaxis(levels.astype(np.int64), axis, -1)), -1, axis)
    np.testing.assert_array_equal(found, expected)


def test_softmax_of_a_multiple() -> None:
    """TensorFlow Lite's SOFTMAX has a factor `beta` inside."""
    source, output = encoding("int8", SCALE, 3), encoding("int8", 2.0**-8, -128)
    levels = drawn(4, (2, 30), source)
    nodes = [node("Mul", "x beta", "m"), node("Softmax", "m", "y")]
    encodings = {"x": source, "y": output}
    found = computed(nodes, {"x": levels}, encodings, "xnnpack", {"beta": np.array(2, np.float32)})
    doubled = encoding("int8", SCALE * 2, 3)
    expected = computed([node("Softmax", "x", "y")], {"x": levels}, {"x": doubled, "y": output}, "xnnpack")
    np.testing.assert_array_equal(found, expected)


# --- moves ----------------------------------------------------------------------------------------------------------

MOVES = {
    "Reshape": ("x c", {}, {"c": np.array([0, -1, 3])}),
    "Transpose": ("x", {"perm": [0, 2, 3, 1]}, {}),
    "Flatten": ("x", {}, {}),
    "Slice": ("x c d e", {}, {"c": np.array([1]), "d": np.array([3]), "e": np.array([2])}),
    "Gather": ("x c", {"axis": 2}, {"c": np.array([[2, 0]])}),
    "Tile": ("x c", {}, {"c": np.array([1, 1, 2, 1])}),
    "Expand": ("x c", {}, {"c": np.array([2, 2, 1, 1, 1])}),
    "ReduceMax": ("x c", {"keepdims": 0}, {"c": np.array([2])}),
    "ReduceMin": ("x c", {}, {"c": np.array([1, 3])}),
    "MaxPool": ("x", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, {}),
    "GlobalMaxPool": ("x", {}, {}),
    "DepthToSpace": ("x", {"blocksize": 2}, {}),
    "SpaceToDepth": ("x", {"blocksize": 2}, {}),
    "Pad": ("x c", {}, {"c": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
    "Resize": ("x - c", {"nearest_mode": "floor"}, {"c": np.array([1, 1, 2, 1.5], np.float32)}),
    "Squeeze": ("x c", {}, {"c": np.array([1])}),
}


@pytest.mark.parametrize("type", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("operator", MOVES)
def test_moves_keep_levels(operator: str, type: str) -> None:
    inputs, attributes, constants = MOVES[operator]
    source = encoding(type, 1.0, 0 if type == "int16" else 5)
    shape = (2, 1, 4, 6) if operator == "Squeeze" else (2, 4, 4, 6)
    levels = drawn(4, shape, source)
    moved = node(operator, inputs, "y", **attributes)
    found = computed([moved], {"x": levels}, {"x": source, "y": source}, "tflite-reference", constants)
    model = simulated([moved], {"x": shape}, {}, constants)
    (real_result,) = open_session(model, threads=1).run(None, {"x": real(levels, source)})
    expected = np.rint(real_result).astype(np.int64) + int(source.zero_point)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40)
@given(
    operator=st.sampled_from(["MaxPool", "AveragePool"]), data=st.data(), rank=st.sampled_from([1, 2]),
    automatic=st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]), up=st.booleans(),
    include=st.booleans(),
)  # fmt: skip
def test_windows_lie_where_onnx_runtime_has_them(
    operator: str, data: st.DataObject, rank: int, automatic: str, up: bool, include: bool
) -> None:
    """Maxima of 16-bit levels, and means of 8-bit ones: of whole numbers, rounded half away from zero afterwards."""

    def numbers(low: int, high: int, count: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    averages = operator == "AveragePool"
    attributes: dict[str, Any] = {"kernel_shape": numbers(2, 3, rank), "strides": numbers(1, 3, rank)}
    if automatic == "NOTSET":
        attributes |= {"pads": numbers(0, 1, 2 * rank), "dilations": numbers(1, 2, rank)}
    elif automatic != "VALID":  # ONNX Runtime refuses the padding of windows that leave gaps
        attributes["strides"] = [min(pair) for pair in zip(*attributes.values(), strict=True)]
    attributes |= {"auto_pad": automatic, "ceil_mode": int(up)}
    if averages:
        attributes["count_include_pad"] = int(include)
    source = encoding("int8", 1.0, 4) if averages else encoding("int16", 1.0)
    levels = drawn(3, (2, 3, *numbers(5, 8, rank)), source)
    made, feed = node(operator, "x", "y", **attributes), {"x": real(levels, source)}
    unrounded = simulated([made], {"x": levels.shape}, {})
    (expected,) = open_session(unrounded, threads=1).run(None, feed)
    assume(unrounded.graph.outputs[0].shape == expected.shape)  # ONNX 1.23 counts windows that begin in the padding
    found = lowered(simulated([made], {"x": levels.shape}, {"x": source, "y": source}), ANY_PADDING)
    assert found.refusals == ()
    result = levels_of(found.model, feed)["y_quantized"]
    exact = expected.astype(np.float64) + int(source.zero_point)
    np.testing.assert_array_equal(result, np.sign(exact) * np.floor(np.abs(exact) + 0.5))


def test_the_parts_of_a_split() -> None:
    source = encoding("int8", SCALE, 5)
    levels = drawn(4, (2, 6), source)
    encodings = {"x": source, "a": source, "b": source}
    qdq = simulated(
        [node("Split", "x c", "a b", axis=1)], {"x": [2, 6]}, encodings, {"c": np.array([2, 4])}, outputs=("a", "b")
    )
    found = lowered(qdq, KERNELS["xnnpack"])
    result = levels_of(found.model, {"x": real(levels, source)})
    np.testing.assert_array_equal(result["a_quantized"], levels[:, :2])
    np.testing.assert_array_equal(result["b_quantized"], levels[:, 2:])


@pytest.mark.parametrize("rule", RULES)
def test_a_move_to_another_encoding_rescales(rule: str) -> None:
    source, output = encoding("int8", SCALE, 5), encoding("int8", SCALE * 1.7, -3)
    levels = drawn(4, (2, 60), source)
    found = computed([node("Identity", "x", "y")], {"x": levels}, {"x": source, "y": output}, rule)
    table = KERNELS[rule].unary("Requantize", {}, source, output, UNBOUNDED)
    np.testing.assert_array_equal(found, table[places(levels)])


def test_concat_of_several_encodings() -> None:
    one, other = encoding("uint8", SCALE, 5), encoding("uint8", SCALE * 1.7, 30)
    levels = {"a": drawn(1, (2, 3, 4), one), "b": drawn(2, (2, 5, 4), other)}
    found = computed([node("Concat", "a b", "y", axis=1)], levels, {"a": one, "b": other, "y": one}, "tflite-reference")
    table = KERNELS["tflite-reference"].concat(other, one)
    np.testing.assert_array_equal(found, np.concatenate([levels["a"], table[places(levels["b"])]], axis=1))


def test_a_batch_of_none() -> None:
    source = encoding("int8", SCALE, 5)
    nodes = [node("Add", "x x", "a"), node("GlobalAveragePool", "a", "y")]
    encodings = {"x": source, "a": source, "y": source}
    found = computed(nodes, {"x": np.zeros((0, 3, 4, 4), np.int8)}, encodings, "tflite-reference")
    assert found.shape == (0, 3, 1, 1)


# --- interpolation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "type"), [("xnnpack", "int8"), ("xnnpack", "uint8"), ("tflite-reference", "int16")])
@pytest.mark.parametrize("places_of_pixels", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("wanted", [(7, 9), (2, 4), (4, 10)])
def test_linear_resizes(wanted: tuple[int, int], places_of_pixels: str, type: str, rule: str) -> None:
    zero_point = 0 if type == "int16" else 5
    source = encoding(type, SCALE, zero_point)
    levels = drawn(4, (2, 3, 4, 5), source)
    sizes = {"c": np.array([2, 3, *wanted])}
    nodes = [
        node("Resize", "x - - c", "r", mode="linear", coordinate_transformation_mode=places_of_pixels),
        node("Relu", "r", "y"),
    ]
    encodings = {"x": source, "y": source}
    found = lowered(simulated(nodes, {"x": levels.shape}, encodings, sizes), KERNELS[rule])
    assert found.refusals == ()
    result = levels_of(found.model, {"x": real(levels, source)})["y_quantized"]
    changed = [axis for axis in (2, 3) if levels.shape[axis] != (2, 3, *wanted)[axis]]
    old = tuple(levels.shape[axis] for axis in changed)
    form = KERNELS[rule].resize(source, source, places_of_pixels, old, tuple((2, 3, *wanted)[axis] for axis in changed))
    sums = levels.astype(np.int64)
    for axis, one in zip(changed, form.axes, strict=True):
        weight = one.weight.reshape([-1 if number == axis else 1 for number in range(4)])
        sums = sums.take(one.first, axis) * ((1 << one.bits) - weight) + sums.take(one.second, axis) * weight
    np.testing.assert_array_equal(result, np.maximum(form.rescale.levels(sums), zero_point))


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_places_of_extremes_are_those_of_levels(operator: str) -> None:
    source = encoding("int8", SCALE, 5)
    levels = drawn(4, (3, 30), source)
    nodes = [node("Relu", "x", "r"), node(operator, "r", "y", axis=1)]
    made = network(nodes, {"x": [3, 30]}, {"y": onnx.TensorProto.INT64})
    qdq = lower_to_qdq(load(made, simplify=False).model, hand_plan({"x": source, "r": source}))
    found = lowered(qdq, KERNELS["xnnpack"])
    feed = {"x": real(levels, source)}
    (expected,) = open_session(qdq, threads=1).run(None, feed)
    (result,) = open_session(found.model, threads=1).run(None, feed)
    np.testing.assert_array_equal(result, expected)

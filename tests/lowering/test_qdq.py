from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from narrowgauge.core.arithmetic import dequantize, quantize, round_trip
from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import PlanError
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.lowering.unsigned import in_unsigned
from tests.lowering.networks import (
    calibrated_plan,
    hand_plan,
    optimised,
    per_channel,
    per_tensor,
    photos,
    products,
    run,
    sqnr,
)
from tests.passes.networks import network, node, operators, random

TYPES = ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int8_narrow"]
ODD_TYPES = [f"{sign}int{bits}" for bits in (2, 3, 5, 6, 7, 9, 11, 15) for sign in ("", "u")]


def imported(*nodes: onnx.NodeProto, inputs: dict, outputs: list[str], constants: dict | None = None) -> ir.Model:
    return load(network(nodes, inputs, outputs, constants or {}), simplify=False).model


def identity(shape: list[int | str]) -> ir.Model:
    """One operator that changes nothing: the smallest network whose input is rounded."""
    return imported(node("Identity", "x", "y"), inputs={"x": shape}, outputs=["y"])


def spread_encoding(kind: str, granularity: Granularity, shape: tuple[int, ...], zero_point: int = 0) -> Encoding:
    """Make an encoding with another scale, and another zero point, for each part."""
    generator = np.random.default_rng([*shape, zero_point])
    return Encoding(
        type=integer_type(kind),
        granularity=granularity,
        scale=generator.uniform(0.01, 0.2, shape).astype(np.float32),
        zero_point=np.full(shape, zero_point, dtype=np.int32),
    )


# --- one value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*TYPES, *ODD_TYPES])
@pytest.mark.parametrize("from_middle", [0, 1])
def test_a_rounded_input_is_exactly_its_round_trip(kind: str, from_middle: int) -> None:
    levels = integer_type(kind)
    middle = (levels.minimum + levels.maximum + 1) // 2
    encoding = per_tensor(kind, 0.0837, middle + from_middle * (levels.maximum - middle) // 2)
    ends = [float(encoding.minimum), float(encoding.maximum)]
    ties = np.arange(-40, 40, dtype=np.float32) / 2 * encoding.scale
    beyond = np.linspace(2 * ends[0], 2 * ends[1], 500, dtype=np.float32)
    x = np.concatenate([ties, beyond, np.float32([*ends, 0, -0.0, 3e38, -3e38])])
    model = identity(["N"])
    lowered = lower_to_qdq(model, hand_plan({"x": encoding}))
    np.testing.assert_array_equal(run(lowered, {"x": x})["y"], round_trip(x, encoding))


@given(st.data())
def test_a_rounded_input_is_exactly_its_round_trip_whatever_the_numbers(data: st.DataObject) -> None:
    kind = integer_type(data.draw(st.sampled_from([*TYPES, *ODD_TYPES])))
    scale = data.draw(st.floats(2.0**-40, 2.0**40, width=32))
    encoding = per_tensor(kind.name, scale, data.draw(st.integers(kind.minimum, kind.maximum)))
    reach = min(4.0 * scale * kind.levels, 1e38)
    numbers = data.draw(st.lists(st.floats(-float(np.float32(reach)), float(np.float32(reach)), width=32), min_size=1))
    x = np.array(numbers, dtype=np.float32)
    lowered = lower_to_qdq(identity(["N"]), hand_plan({"x": encoding}))
    np.testing.assert_array_equal(run(lowered, {"x": x})["y"], round_trip(x, encoding))


@pytest.mark.parametrize("kind", ["int8", "uint16", "int4"])
@pytest.mark.parametrize(
    ("granularity", "scales"),
    [(PerAxis(1), (6,)), (PerAxis(-1), (8,)), (PerBlock(2, 4), (5, 6, 2)), (PerBlock(0, 2), (3, 6, 8))],
)
def test_an_activation_may_have_many_scales(kind: str, granularity: Granularity, scales: tuple[int, ...]) -> None:
    encoding = spread_encoding(kind, granularity, scales, zero_point=integer_type(kind).maximum // 2)
    x = random(5, 6, 8)
    lowered = lower_to_qdq(identity([5, 6, 8]), hand_plan({"x": encoding}))
    np.testing.assert_array_equal(run(lowered, {"x": x})["y"], round_trip(x, encoding))


def test_a_type_that_onnx_lacks_with_many_scales_is_refused_for_an_activation() -> None:
    encoding = spread_encoding("int6", PerAxis(0), (5,))
    with pytest.raises(PlanError, match=r"'x': expected one scale .* int6"):
        lower_to_qdq(identity([5, 6]), hand_plan({"x": encoding}))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int4", "uint4", "int3", "int7", "int8_narrow", "uint5"])
@pytest.mark.parametrize(
    ("granularity", "scales"),
    [
        (PerTensor(), ()),
        (PerAxis(0), (8,)),
        (PerAxis(1), (6,)),
        (PerBlock(0, 4), (2, 6)),
        (PerBlock(1, 4), (8, 2)),
        (PerBlock(0, 3), (3, 6)),
    ],
)
@pytest.mark.parametrize("convert", [False, True])
def test_weights_are_exactly_their_round_trip(
    kind: str, granularity: Granularity, scales: tuple[int, ...], convert: bool
) -> None:
    weights = random(8, 6)
    encoding = spread_encoding(kind, granularity, scales, zero_point=1)
    model = imported(node("MatMul", "x w", "y"), inputs={"x": [8, 8]}, outputs=["y"], constants={"w": weights})
    style = QdqStyle(convert_weights=convert)
    lowered = lower_to_qdq(model, hand_plan({"w": encoding}, mode="weight-only"), style)
    onnx.checker.check_model(ir.to_proto(lowered))
    # Rows of the identity pick the weights out one by one.
    np.testing.assert_array_equal(run(lowered, {"x": np.eye(8, dtype=np.float32)})["y"], round_trip(weights, encoding))
    stored = lowered.graph.initializers["w_quantized"].const_value
    assert stored is not None
    assert stored.nbytes == weights.size * {4: 0.5, 16: 2}.get(encoding.type.bits, 1)
    assert "w" not in lowered.graph.initializers


@pytest.mark.parametrize("kind", ["int8", "uint4"])
@pytest.mark.parametrize(
    ("granularity", "scales"),
    [(PerTensor(), ()), (PerAxis(0), (6,)), (PerBlock(1, 4), (6, 2, 1, 1)), (PerBlock(-3, 3), (6, 3, 1, 1))],
)
@pytest.mark.parametrize("convert", [False, True])
def test_weights_of_a_convolution_are_exactly_their_round_trip(
    kind: str, granularity: Granularity, scales: tuple[int, ...], convert: bool
) -> None:
    weights = random(6, 8, 1, 1)
    encoding = spread_encoding(kind, granularity, scales, zero_point=2)
    model = imported(node("Conv", "x w", "y"), inputs={"x": [8, 8, 1, 1]}, outputs=["y"], constants={"w": weights})
    plan = hand_plan({"w": encoding}, mode="weight-only")
    lowered = lower_to_qdq(model, plan, QdqStyle(convert_weights=convert))
    onnx.checker.check_model(ir.to_proto(lowered))
    pick = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    for optimization in ("none", "all"):
        result = run(lowered, {"x": pick}, optimization)["y"]
        np.testing.assert_array_equal(result.transpose(1, 0, 2, 3), round_trip(weights, encoding))


# --- layers: the golden rule ----------------------------------------------------------------------------------------


def conv_network(*tail: onnx.NodeProto, output: str = "y") -> tuple[ir.Model, dict[str, np.ndarray]]:
    constants = {"w": random(6, 4, 3, 3), "b": random(6, seed=1)}
    model = imported(
        node("Conv", "x w b", "y", pads=[1, 1, 1, 1]), *tail, inputs={"x": ["N", 4, 7, 7]}, outputs=[output],
        constants=constants,
    )  # fmt: skip
    return model, constants


def conv_reference(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Convolve in float64, 3 x 3, padded by one."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows.astype(np.float64), w.astype(np.float64)) + b.reshape(1, -1, 1, 1)


def assert_equal_but_for_ties(levels: np.ndarray, real: np.ndarray, encoding: Encoding) -> None:
    """Compare levels with those of a real result; where that is within float32's error of a tie, either is right."""
    steps = real / encoding.scale.astype(np.float64)
    expected = np.clip(np.rint(steps) + encoding.zero_point, encoding.type.minimum, encoding.type.maximum)
    tie = np.abs(steps - np.floor(steps) - 0.5) < 1e-4
    assert (np.abs(levels - expected) <= tie).all()
    assert tie.mean() < 0.01


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int6"])
@pytest.mark.parametrize("channels", [False, True])
def test_a_convolution_is_the_simulation_with_the_reference_arithmetic(kind: str, channels: bool) -> None:
    model, constants = conv_network()
    levels = integer_type(kind)
    spread = 255 / (levels.levels - 1)
    x_encoding = per_tensor(kind, 0.03 * spread, (levels.minimum + levels.maximum) // 2)
    y_encoding = per_tensor(kind, 0.11 * spread, (levels.minimum + levels.maximum) // 2 + 1)
    w_encoding = per_channel("int8", constants["w"], 0) if channels else per_tensor("int8", 0.021)
    lowered = lower_to_qdq(model, hand_plan({"x": x_encoding, "w": w_encoding, "y": y_encoding}))
    onnx.checker.check_model(ir.to_proto(lowered))

    unit = (x_encoding.scale * w_encoding.scale).astype(np.float32)
    bias = np.rint(constants["b"] / unit).astype(np.int64)
    stored = lowered.graph.initializers["b_quantized"].const_value
    assert stored is not None
    assert stored.dtype == ir.DataType.INT32
    np.testing.assert_array_equal(stored.numpy(), bias)

    x = random(3, 4, 7, 7)
    real = conv_reference(round_trip(x, x_encoding), round_trip(constants["w"], w_encoding), bias * unit)
    y = run(lowered, {"x": x})["y"]
    np.testing.assert_array_equal(y, round_trip(y, y_encoding))
    assert_equal_but_for_ties(quantize(y, y_encoding), real, y_encoding)


@pytest.mark.parametrize(
    ("operator", "zero_point", "dropped"),
    [("Relu", 0, True), ("Relu", 12, False), ("Clip", 0, True), ("Clip", 12, False)],
)
def test_a_clip_is_left_out_only_where_saturation_does_the_same(operator: str, zero_point: int, dropped: bool) -> None:
    bounds = {"Relu": {}, "Clip": {"low": np.float32(0), "high": np.float32(0.02 * 255)}}[operator]
    tail = node(operator, " ".join(["y", *bounds]), "z")
    constants = {"w": random(6, 4, 3, 3), "b": random(6, seed=1), **bounds}
    model = imported(
        node("Conv", "x w b", "y", pads=[1, 1, 1, 1]), tail, inputs={"x": ["N", 4, 7, 7]}, outputs=["z"],
        constants=constants,
    )  # fmt: skip
    plan = hand_plan(
        {"x": per_tensor("uint8", 0.03, 128), "w": per_channel("int8", constants["w"], 0),
         "z": per_tensor("uint8", 0.02, zero_point)}
    )  # fmt: skip
    lowered, kept = lower_to_qdq(model, plan), lower_to_qdq(model, plan, QdqStyle(drop_clips=False))
    assert operators(kept)[operator] == 1
    assert (operators(lowered)[operator] == 0) == dropped
    x = 3 * random(3, 4, 7, 7)
    low = run(kept, {"x": x})["z"]
    np.testing.assert_array_equal(run(lowered, {"x": x})["z"], low)
    assert low.min() == 0  # the clip had something to do
    assert [output.name for output in lowered.graph.outputs] == ["z"]


@pytest.mark.parametrize(("kind", "zero_point"), [("uint8", 12), ("int8", -100), ("uint8", 0), ("int8", 127)])
@pytest.mark.parametrize("bounds", [(None, None), (0.0, 3.0), (-1.0, 2.5), (None, 1.01)])
def test_a_clip_on_levels_gives_the_same_numbers_and_the_layer_runs_in_integers(
    tmp_path: Path, kind: str, zero_point: int, bounds: tuple[float | None, float | None]
) -> None:
    """A range beyond the bounds of the Clip, as other tools' files have it."""
    limits = {name: np.float32(bound) for name, bound in zip(("low", "high"), bounds, strict=True) if bound is not None}
    inputs = ["y", *(name if name in limits else "" for name in ("low", "high"))]
    tail = onnx.helper.make_node("Clip", inputs, ["z"], "node_z") if limits else node("Relu", "y", "z")
    constants = {"w": random(6, 4, 3, 3), "b": random(6, seed=1), **limits}
    model = imported(
        node("Conv", "x w b", "y", pads=[1, 1, 1, 1]), tail, inputs={"x": ["N", 4, 7, 7]}, outputs=["z"],
        constants=constants,
    )  # fmt: skip
    plan = hand_plan(
        {"x": per_tensor(kind, 0.03, 128 if kind == "uint8" else 0), "w": per_channel("int8", constants["w"], 0),
         "z": per_tensor(kind, 0.02, zero_point)}
    )  # fmt: skip
    kept = lower_to_qdq(model, plan, QdqStyle(drop_clips=False))
    # Between pairs of int8, ONNX Runtime computes convolutions in float on x86-64.
    lowered = lower_to_qdq(model, in_unsigned(model, plan), QdqStyle(clip_levels=True))
    x = 3 * random(3, 4, 7, 7)
    np.testing.assert_array_equal(run(lowered, {"x": x})["z"], run(kept, {"x": x})["z"])
    assert [output.name for output in lowered.graph.outputs] == ["z"]
    assert "QLinearConv" in optimised(lowered, tmp_path)


def test_a_clip_stays_where_something_else_reads_what_is_before_it() -> None:
    w = random(6, 4, 3, 3)
    model = imported(
        node("Conv", "x w", "y"), node("Relu", "y", "z"), node("Neg", "y", "n"), inputs={"x": [1, 4, 7, 7]},
        outputs=["z", "n"], constants={"w": w},
    )  # fmt: skip
    plan = hand_plan(
        {"x": per_tensor("uint8", 0.03, 128), "w": per_tensor("int8", 0.02), "z": per_tensor("uint8", 0.02)},
        float_nodes=["node_n"],
    )
    result = run(lower_to_qdq(model, plan), {"x": random(1, 4, 7, 7)})
    assert result["n"].min() < 0 < result["n"].max()
    np.testing.assert_array_equal(result["z"], round_trip(np.maximum(-result["n"], 0), plan.encodings["z"]))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(1)])
def test_a_bias_that_is_no_plain_summand_of_the_accumulator_stays_float(
    alpha: float, beta: float, granularity: Granularity
) -> None:
    """Factors before the product or the bias, or several scales of the input, leave no common unit."""
    constants = {"w": random(4, 3), "b": random(3, seed=1)}
    model = imported(
        node("Gemm", "x w b", "y", alpha=alpha, beta=beta), inputs={"x": ["N", 4]}, outputs=["y"], constants=constants
    )
    scales = () if isinstance(granularity, PerTensor) else (4,)
    encodings = {"x": spread_encoding("int8", granularity, scales), "w": per_tensor("int8", 0.02)}
    result = run(lower_to_qdq(model, hand_plan(encodings)), {"x": np.zeros((1, 4), np.float32)})["y"][0]
    if alpha == beta == 1 and not scales:
        unit = (encodings["x"].scale * encodings["w"].scale).astype(np.float32)
        np.testing.assert_array_equal(result, np.rint(constants["b"] / unit) * unit)
    else:
        np.testing.assert_array_equal(result, constants["b"] * np.float32(beta))


def test_a_clip_with_a_bound_known_only_at_run_time_stays() -> None:
    constants = {"w": random(6, 4, 3, 3)}
    model = imported(
        node("Conv", "x w", "y"), node("Clip", "y - high", "z"), inputs={"x": [1, 4, 7, 7], "high": []}, outputs=["z"],
        constants=constants,
    )  # fmt: skip
    plan = hand_plan({"x": per_tensor("int8", 0.03), "w": per_tensor("int8", 0.02), "z": per_tensor("int8", 0.05)})
    lowered = lower_to_qdq(model, plan)
    result = run(lowered, {"x": random(1, 4, 7, 7), "high": np.array(0.3, np.float32)})["z"]
    assert result.max() == pytest.approx(0.3)


# --- who reads what -------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_keep_their_names_and_everything_behind_an_integer_operator_reads_rounded() -> None:
    """The value y is an output and is read, both by an integer and by a float operator."""
    constants = {"w": random(4, 4), "v": random(4, 4, seed=1)}
    model = imported(
        node("MatMul", "x w", "y"), node("MatMul", "y v", "z"), node("Exp", "y", "e"), inputs={"x": ["N", 4]},
        outputs=["y", "z", "e"], constants=constants,
    )  # fmt: skip
    encodings = {
        "x": per_tensor("int8", 0.02), "w": per_tensor("int8", 0.03), "v": per_tensor("int8", 0.03),
        "y": per_tensor("int8", 0.05), "z": per_tensor("uint8", 0.1, 128),
    }  # fmt: skip
    lowered = lower_to_qdq(model, hand_plan(encodings, float_nodes=["node_e"]))
    assert [value.name for value in lowered.graph.inputs] == ["x"]
    assert [value.name for value in lowered.graph.outputs] == ["y", "z", "e"]
    result = run(lowered, {"x": random(5, 4)})
    np.testing.assert_array_equal(result["y"], round_trip(result["y"], encodings["y"]))
    np.testing.assert_array_equal(result["z"], round_trip(result["z"], encodings["z"]))
    np.testing.assert_allclose(result["e"], np.exp(result["y"]), rtol=1e-6)
    assert operators(lowered)["QuantizeLinear"] == 3


def test_what_a_float_operator_writes_is_rounded_for_integer_operators_only() -> None:
    constants = {"w": random(4, 4)}
    model = imported(
        node("Exp", "x", "e"), node("MatMul", "e w", "y"), node("Neg", "e", "n"), inputs={"x": ["N", 4]},
        outputs=["e", "y", "n"], constants=constants,
    )  # fmt: skip
    encoding = per_tensor("uint8", 0.04)
    plan = hand_plan({"e": encoding, "w": per_tensor("int8", 0.03)}, float_nodes=["node_e", "node_n"])
    x = random(5, 4)
    result, plain = run(lower_to_qdq(model, plan), {"x": x}), run(model, {"x": x})
    np.testing.assert_array_equal(result["e"], plain["e"])
    np.testing.assert_array_equal(result["n"], plain["n"])
    expected = round_trip(plain["e"], encoding) @ round_trip(constants["w"], per_tensor("int8", 0.03))
    np.testing.assert_allclose(result["y"], expected, rtol=1e-5)


def test_a_float_operator_reads_the_float_weights_that_an_integer_one_shares() -> None:
    constants = {"w": random(4, 4)}
    model = imported(
        node("MatMul", "x w", "y"), node("MatMul", "x w", "z"), inputs={"x": ["N", 4]}, outputs=["y", "z"],
        constants=constants,
    )  # fmt: skip
    encoding = per_tensor("int4", 0.3)
    plan = hand_plan({"w": encoding}, mode="weight-only", float_nodes=["node_z"])
    result = run(lower_to_qdq(model, plan), {"x": np.eye(4, dtype=np.float32)})
    np.testing.assert_array_equal(result["y"], round_trip(constants["w"], encoding))
    np.testing.assert_array_equal(result["z"], constants["w"])


def test_weights_and_bias_that_two_nodes_read_fit_each_of_them() -> None:
    """The same bias is another integer behind an input of another scale."""
    constants = {"w": random(4, 3), "b": random(3, seed=1)}
    model = imported(
        node("Gemm", "x w b", "y"), node("Gemm", "a w b", "z"), inputs={"x": ["N", 4], "a": ["N", 4]},
        outputs=["y", "z"], constants=constants,
    )  # fmt: skip
    encodings = {
        "x": per_tensor("int8", 0.02),
        "a": per_tensor("int8", 0.25),
        "w": per_channel("int8", constants["w"], 1),
    }
    lowered = lower_to_qdq(model, hand_plan(encodings))
    nothing = np.zeros((1, 4), np.float32)
    result = run(lowered, {"x": nothing, "a": nothing})
    for name, source in (("y", "x"), ("z", "a")):
        unit = (encodings[source].scale * encodings["w"].scale).astype(np.float32)
        np.testing.assert_array_equal(result[name][0], np.rint(constants["b"] / unit) * unit)
    assert sum(name.startswith("w_quantized") for name in lowered.graph.initializers) == 1


def test_a_constant_in_the_place_of_an_activation_is_rounded() -> None:
    constants = {"c": random(3, 4)}
    model = imported(node("Add", "x c", "y"), inputs={"x": ["N", 3, 4]}, outputs=["y"], constants=constants)
    encoding = per_tensor("int8", 0.02)
    lowered = lower_to_qdq(model, hand_plan({"c": encoding}))
    np.testing.assert_array_equal(
        run(lowered, {"x": np.zeros((1, 3, 4), np.float32)})["y"][0], round_trip(constants["c"], encoding)
    )


def test_names_that_the_network_has_already_are_not_taken() -> None:
    """The network itself has values called as lowering would call its own."""
    constants = {"w": random(4, 4), "x_scale": random(4), "w_quantized": random(4, seed=3)}
    model = imported(
        node("Add", "x x_scale", "x_dequantized"), node("Add", "x_dequantized w_quantized", "s"),
        node("MatMul", "s w", "y"), inputs={"x": ["N", 4]}, outputs=["y"], constants=constants,
    )  # fmt: skip
    encodings = {name: per_tensor("int8", 0.05) for name in ("x", "w", "s")}
    plan = hand_plan(encodings)
    x = random(5, 4)
    s = round_trip(x, encodings["x"]) + constants["x_scale"] + constants["w_quantized"]
    expected = round_trip(s, encodings["s"]) @ round_trip(constants["w"], encodings["w"])
    np.testing.assert_allclose(run(lower_to_qdq(model, plan), {"x": x})["y"], expected, rtol=1e-5)


def test_values_that_share_an_encoding_hold_the_same_levels() -> None:
    model = imported(
        node("MaxPool", "x", "p", kernel_shape=[2, 2]), node("Flatten", "p", "f"), inputs={"x": [1, 2, 4, 4]},
        outputs=["f"],
    )  # fmt: skip
    encoding = per_tensor("uint8", 0.02, 100)
    lowered = lower_to_qdq(model, hand_plan(dict.fromkeys(["x", "p", "f"], encoding)))
    x = random(1, 2, 4, 4)
    windows = np.lib.stride_tricks.sliding_window_view(round_trip(x, encoding), (2, 2), axis=(2, 3))
    np.testing.assert_array_equal(run(lowered, {"x": x})["f"], windows.max(axis=(-1, -2)).reshape(1, -1))


def test_the_body_of_an_if_reads_what_stands_outside_unrounded_unless_an_integer_operator_wrote_it() -> None:
    then = onnx.helper.make_graph(
        [node("Neg", "y", "t")], "then", [], [onnx.helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    other = onnx.helper.make_graph(
        [node("Neg", "x", "o")], "else", [], [onnx.helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    )
    proto = network(
        [node("MatMul", "x w", "y"), node("If", "c", "z", then_branch=then, else_branch=other)],
        {"x": [2, 4], "c": []}, ["z"], {"w": random(4, 4)}, input_types={"c": TensorProto.BOOL},
    )  # fmt: skip
    encodings = {name: per_tensor("int8", 0.1) for name in ("x", "w", "y")}
    lowered = lower_to_qdq(load(proto, simplify=False).model, hand_plan(encodings, float_nodes=["node_z"]))
    x = random(2, 4)
    np.testing.assert_array_equal(run(lowered, {"x": x, "c": np.array(False)})["z"], -x)
    rounded = run(lowered, {"x": x, "c": np.array(True)})["z"]
    np.testing.assert_array_equal(rounded, round_trip(rounded, encodings["y"]))


# --- refusals, and what must not change -----------------------------------------------------------------------------


def test_a_plan_of_another_network_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="'nowhere' that the network does not have"):
        lower_to_qdq(identity([2]), hand_plan({"x": per_tensor("int8", 1), "nowhere": per_tensor("int8", 1)}))
    with pytest.raises(PlanError, match="node 'nobody'"):
        lower_to_qdq(identity([2]), hand_plan({}, float_nodes=["nobody"]))


def test_a_scale_that_does_not_fit_is_refused() -> None:
    model, _ = conv_network()
    with pytest.raises(PlanError, match="expected scales of shape"):
        lower_to_qdq(model, hand_plan({"w": spread_encoding("int8", PerAxis(0), (5,))}, mode="weight-only"))


def test_the_float_network_is_not_changed() -> None:
    model, _ = conv_network(node("Relu", "y", "z"), output="z")
    before = ir.to_proto(model).SerializeToString()
    lower_to_qdq(
        model, hand_plan({"x": per_tensor("int8", 1), "w": per_tensor("int8", 1), "z": per_tensor("uint8", 1)})
    )
    assert ir.to_proto(model).SerializeToString() == before


def test_a_style_without_integer_biases_leaves_them_float() -> None:
    model, constants = conv_network()
    plan = hand_plan({"x": per_tensor("int8", 1), "w": per_tensor("int8", 1), "y": per_tensor("int8", 1)})
    lowered = lower_to_qdq(model, plan, QdqStyle(bias_bits=0))
    stored = lowered.graph.initializers["b"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), constants["b"])


def test_dynamic_rounding_is_onnx_own_dynamic_quantization() -> None:
    """DynamicQuantizeLinear: the range is stretched to hold 0, its 255 steps are the scale."""
    model = imported(
        node("MatMul", "x w", "y"), node("MatMul", "x v", "z"), inputs={"x": ["N", 4]}, outputs=["y", "z"],
        constants={"w": np.eye(4, dtype=np.float32), "v": np.eye(4, dtype=np.float32)},
    )  # fmt: skip
    plan = hand_plan({"x": DynamicEncoding(type=integer_type("uint8"))}, mode="dynamic")
    lowered = lower_to_qdq(model, plan)
    assert operators(lowered)["DynamicQuantizeLinear"] == 1
    for x in (random(5, 4), np.abs(random(5, 4)) + 1):
        encoding = encoding_from_range(x.min(), x.max(), integer_type("uint8"), PerTensor())
        result = run(lowered, {"x": x})
        np.testing.assert_allclose(result["y"], round_trip(x, encoding), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(result["y"], result["z"])


# --- weights only ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "granularity", "scales", "written"),
    [
        ("int8", PerTensor(), (), ["Gather", "DequantizeLinear"]),
        ("int16", PerTensor(), (), ["Gather", "DequantizeLinear"]),
        ("int4", PerTensor(), (), ["DequantizeLinear", "Gather"]),  # ONNX Runtime gathers no 4 bits
        ("int8", PerAxis(0), (50,), ["DequantizeLinear", "Gather"]),
        ("int4", PerBlock(1, 4), (50, 2), ["DequantizeLinear", "Gather"]),
    ],
)
def test_rows_of_an_embedding_are_dequantized_behind_the_gather(
    kind: str, granularity: Granularity, scales: tuple[int, ...], written: list[str]
) -> None:
    table = random(50, 8)
    proto = network(
        [node("Gather", "table ids", "y")], {"ids": ["N"]}, ["y"], {"table": table},
        input_types={"ids": TensorProto.INT64},
    )  # fmt: skip
    encoding = spread_encoding(kind, granularity, scales)
    lowered = lower_to_qdq(load(proto).model, hand_plan({"table": encoding}, mode="weight-only"))
    onnx.checker.check_model(ir.to_proto(lowered))
    assert [each.op_type for each in lowered.graph] == written
    ids = np.array([3, 49, 0, 3])
    for optimization in ("none", "all"):
        result = run(lowered, {"ids": ids}, optimization)["y"]
        np.testing.assert_array_equal(result, round_trip(table, encoding)[ids])


def test_levels_of_a_gathered_value_have_its_name() -> None:
    proto = network(
        [node("Gather", "table ids", "y")], {"ids": ["N"]}, ["y"], {"table": random(50, 8)},
        input_types={"ids": TensorProto.INT64},
    )  # fmt: skip
    plan = hand_plan({name: spread_encoding("int8", PerTensor(), ()) for name in ("table", "y")})
    lowered = lower_to_qdq(load(proto).model, plan)
    written = {str(each.outputs[0].name): each.op_type for each in lowered.graph}
    assert written["y_quantized"] == "QuantizeLinear"
    assert written["y_gathered"] == "Gather"


@pytest.mark.parametrize(("kind", "least"), [("int8", 3.7), ("int4", 5.0)])
def test_weight_only_files_are_small_and_run_in_onnx_runtime(
    zoo: Path, tmp_path: Path, kind: str, least: float
) -> None:
    model = load(zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx").model
    plan = calibrated_plan(model, [], mode="weight-only", weights=kind, granularity="block" if kind == "int4" else None)
    lowered = lower_to_qdq(model, plan)
    ir.save(model, tmp_path / "float.onnx")
    ir.save(lowered, tmp_path / "small.onnx")
    ratio = (tmp_path / "float.onnx").stat().st_size / (tmp_path / "small.onnx").stat().st_size
    assert ratio > least
    made = optimised(lowered, tmp_path)
    assert made["MatMulNBits"] == products(model, "MatMul")
    x = photos(zoo, 224, 1)
    reference = run(model, {"input": x}, "all")["logits"]
    assert sqnr(reference, run(lowered, {"input": x}, "all")["logits"]) > {"int8": 25, "int4": 7}[kind]


def test_converted_weights_are_the_same_numbers_and_vanish_when_loaded(zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / "models" / "mobilenet_v1_025" / "mobilenet_v1_0.25_224.onnx").model
    plan = calibrated_plan(model, [], mode="weight-only")
    plain, converted = lower_to_qdq(model, plan), lower_to_qdq(model, plan, QdqStyle(convert_weights=True))
    x = {"input": photos(zoo, 224, 1)}
    for name, result in run(plain, x).items():
        np.testing.assert_array_equal(run(converted, x)[name], result)
    assert optimised(plain, tmp_path)["DequantizeLinear"] == 28  # run with every sample
    assert not optimised(converted, tmp_path, "basic").keys() & {"Cast", "Mul", "DequantizeLinear"}


def test_the_reference_of_these_tests_dequantizes_what_it_quantizes() -> None:
    encoding = per_tensor("int8", 0.5, 3)
    np.testing.assert_array_equal(dequantize(quantize([1.0, -0.25], encoding), encoding), np.float32([1.0, 0.0]))


def test_onnx_runtime_leaves_a_float_layer_between_integer_ones_float() -> None:
    """Unshielded, it rounds the layer's weights too, with one scale for all channels, without a word."""
    weights = random(8, 8, 3, 3)
    weights[1:] *= 0.001  # one scale for all channels leaves nothing of these
    model = imported(
        node("Relu", "x", "a"),
        node("Conv", "a w b", "y", kernel_shape=[3, 3]),
        node("Conv", "y v", "z", kernel_shape=[1, 1]),
        inputs={"x": ["N", 8, 10, 10]},
        outputs=["z"],
        constants={"w": weights, "b": np.zeros(8, np.float32), "v": np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)},
    )
    layer = next(str(entry.name) for entry in model.graph if entry.outputs[0].name == "y")
    encodings = {"a": per_tensor("uint8", 0.02), "y": per_tensor("int16", 0.001), "v": per_tensor("int8", 1.0)}
    plan = hand_plan(encodings, float_nodes=[layer])
    feed = {"x": np.abs(random(4, 8, 10, 10))}
    meant = run(lower_to_qdq(model, plan), feed)["z"][:, 1:]
    shielded, bare = (
        run(lower_to_qdq(model, plan, QdqStyle(shield_float_layers=shield)), feed, "all")["z"][:, 1:]
        for shield in (True, False)
    )
    assert sqnr(meant, shielded) > 30
    assert sqnr(meant, bare) < 3, "ONNX Runtime no longer does this: the shield may go"

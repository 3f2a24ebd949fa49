from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from narrowgauge.core.arithmetic import dequantize, quantize, round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.graph.constants import set_constant
from narrowgauge.graph.engine import Optimization
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from narrowgauge.lowering.qoperator import REWRITES, lower_to_qoperator
from tests.lowering.networks import (
    calibrated_plan,
    hand_plan,
    integer_plan,
    optimised,
    per_channel,
    per_tensor,
    photos,
    run,
)
from tests.passes.networks import network, node, operators, random

LEVELS: list[Optimization] = ["none", "basic", "extended", "all"]
MIDDLE = {"uint8": 128, "int8": 0, "uint16": 32768}


def lowered_pair(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    encodings: dict[str, Encoding],
    *,
    constants: dict[str, np.ndarray] | None = None,
    outputs: list[str] | None = None,
    float_nodes: list[str] | None = None,
    drop_clips: bool = True,
) -> tuple[ir.Model, ir.Model]:
    """Lower a network to its Q/DQ and its integer form."""
    model = load(network(nodes, inputs, outputs or ["y"], constants or {}), simplify=False).model
    plan = hand_plan(encodings, float_nodes=float_nodes or [])
    qdq = lower_to_qdq(model, plan, QdqStyle(drop_clips=drop_clips))
    integer = lower_to_qoperator(qdq)
    onnx.checker.check_model(ir.to_proto(integer))
    assert [value.name for value in integer.graph.outputs] == [value.name for value in qdq.graph.outputs]
    return qdq, integer


def assert_integer(integer: ir.Model, *expected: str) -> None:
    """Check that between the first QuantizeLinear and the last DequantizeLinear stand these operators only."""
    inner = [each.op_type for each in integer.graph if each.op_type not in {"QuantizeLinear", "DequantizeLinear"}]
    assert inner == list(expected)


def activation(kind: str, scale: float, shift: int = 0) -> Encoding:
    return per_tensor(kind, scale, MIDDLE[kind] + shift)


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "size"),
    [("cifar_resnet/resnet20", 32), ("mobilenet_v1_025/mobilenet_v1_0.25_224", 224),
     ("mobilenet_v2/mobilenet_v2_1.0_224", 224)],
)  # fmt: skip
@pytest.mark.parametrize("weights", ["int8 channel", "int8 tensor", "uint8 tensor"])
def test_networks_give_the_bits_that_onnx_runtime_makes_of_the_qdq_form(
    zoo: Path, file: str, size: int, weights: str
) -> None:
    model = load(zoo / "models" / f"{file}.onnx").model
    images = photos(zoo, size, 3)
    kind, scope = weights.split()
    qdq = lower_to_qdq(model, integer_plan(model, {"input": images[:1]}, weights=kind, channels=scope == "channel"))
    integer = lower_to_qoperator(qdq)
    onnx.checker.check_model(ir.to_proto(integer))
    feed = {"input": images[1:]}
    expected = run(qdq, feed, "all")
    for optimization in LEVELS:
        for name, result in run(integer, feed, optimization).items():
            np.testing.assert_array_equal(result, expected[name], err_msg=f"{name} at {optimization}")


def test_a_planned_transformer_gives_the_bits_that_onnx_runtime_makes_of_its_qdq_form(zoo: Path) -> None:
    """Softmax and the like stay float: what ONNX Runtime makes of them depends on the level, so levels are compared."""
    model = load(zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx").model
    images = photos(zoo, 224, 2)
    qdq = lower_to_qdq(model, calibrated_plan(model, [{"input": images[:1]}]))
    integer = lower_to_qoperator(qdq)
    assert operators(integer)["MatMulIntegerToFloat"] + operators(integer)["QGemm"] >= 49
    feed = {"input": images[1:]}
    for optimization in ("extended", "all"):
        expected = run(qdq, feed, optimization)["logits"]
        np.testing.assert_array_equal(run(integer, feed, optimization)["logits"], expected)


def test_every_operator_of_mobilenet_v2_is_an_integer_one(zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / "models" / "mobilenet_v2" / "mobilenet_v2_1.0_224.onnx").model
    qdq = lower_to_qdq(model, integer_plan(model, {"input": photos(zoo, 224, 1)}))
    found = operators(lower_to_qoperator(qdq))
    assert found == {
        "QuantizeLinear": 1, "QLinearConv": 52, "QLinearAdd": 10, "QLinearGlobalAveragePool": 1, "Flatten": 1,
        "QGemm": 1, "DequantizeLinear": 1,
    }  # fmt: skip
    assert found == optimised(qdq, tmp_path)


def test_shortcuts_of_resnet20_are_integers_where_the_qdq_form_leaves_their_padding_float(
    zoo: Path, tmp_path: Path
) -> None:
    model = load(zoo / "models" / "cifar_resnet" / "resnet20.onnx").model
    qdq = lower_to_qdq(model, integer_plan(model, {"input": photos(zoo, 32, 1)}))
    found = operators(lower_to_qoperator(qdq))
    assert found == {
        "QuantizeLinear": 1, "QLinearConv": 19, "QLinearAdd": 9, "Slice": 4, "Pad": 2, "QLinearGlobalAveragePool": 1,
        "Flatten": 1, "QGemm": 1, "DequantizeLinear": 1,
    }  # fmt: skip
    assert optimised(qdq, tmp_path)["QuantizeLinear"] == 3


# --- convolutions and products --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        *(("uint8", weights) for weights in ("int8 channel", "int8 tensor", "uint8 tensor", "int7 channel")),
        *(("int8", weights) for weights in ("int8 channel", "int8 tensor", "int7 channel")),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [0, 11])
def test_convolutions(kind: str, weights: str, groups: int, bias: bool, shift: int) -> None:
    """Levels are those of the accumulator in integers, times one float32 factor, rounded half to even."""
    w, b = random(8, 4 // groups, 3, 3), random(8, seed=1)
    weight_type, scope = weights.split()
    w_encoding = per_tensor(weight_type, 0.03, 120 if weight_type == "uint8" else 0)
    if scope == "channel":
        w_encoding = per_channel(weight_type, w, 0)
    x_encoding, y_encoding = activation(kind, 0.021, shift), activation(kind, 0.11, -shift)
    inputs = "x w b" if bias else "x w"
    qdq, integer = lowered_pair(
        [node("Conv", inputs, "y", group=groups, pads=[1, 0, 1, 0], strides=[1, 2], dilations=[2, 1])],
        {"x": ["N", 4, 9, 9]}, {"x": x_encoding, "w": w_encoding, "y": y_encoding},
        constants={"w": w, "b": b} if bias else {"w": w},
    )  # fmt: skip
    assert_integer(integer, "QLinearConv")
    x = random(2, 4, 9, 9)
    results = [run(integer, {"x": x}, optimization)["y"] for optimization in LEVELS]

    levels = quantize(x, x_encoding).astype(np.int64) - int(x_encoding.zero_point)
    w_levels = quantize(w, w_encoding).astype(np.int64) - int(w_encoding.zero_point.flat[0])
    padded = np.pad(levels, [(0, 0), (0, 0), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 3), axis=(2, 3))[:, :, :, ::2, ::2, :]
    parts = np.split(windows, groups, axis=1), np.split(w_levels, groups, axis=0)
    accumulator = np.concatenate(
        [np.einsum("nchwij,ocij->nohw", one, other) for one, other in zip(*parts, strict=True)], axis=1
    )
    unit = np.broadcast_to((x_encoding.scale * w_encoding.scale).astype(np.float32), (8,)).reshape(1, -1, 1, 1)
    if bias:
        accumulator += np.rint(b.reshape(1, -1, 1, 1) / unit).astype(np.int64)
    steps = np.rint(accumulator.astype(np.float32) * (unit / y_encoding.scale).astype(np.float32))
    expected = np.clip(steps + y_encoding.zero_point, y_encoding.type.minimum, y_encoding.type.maximum)
    for result in results:
        np.testing.assert_array_equal(result, dequantize(expected.astype(np.int64), y_encoding))
    assert run(qdq, {"x": x}, "all")["y"].shape == expected.shape


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(kind: str, transposed: int, channels: bool, rounded: bool, bias: bool) -> None:
    w, b = random(6, 5), random(6 if transposed else 5, seed=1)
    x_encoding, w_encoding = activation(kind, 0.02, 3), per_tensor("int8", 0.03)
    if channels:
        w_encoding = per_channel("int8", w, 0 if transposed else 1)
    encodings = {"x": x_encoding, "w": w_encoding} | ({"y": activation(kind, 0.1, 5)} if rounded else {})
    qdq, integer = lowered_pair(
        [node("Gemm", "x w b" if bias else "x w", "y", transB=transposed)], {"x": ["N", 5 if transposed else 6]},
        encodings, constants={"w": w, "b": b} if bias else {"w": w},
    )  # fmt: skip
    assert_integer(integer, "QGemm")
    x = random(4, 5 if transposed else 6)
    fused = run(qdq, {"x": x}, "all")["y"]
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, {"x": x}, optimization)["y"], fused)
    real = round_trip(x, x_encoding) @ (round_trip(w, w_encoding).T if transposed else round_trip(w, w_encoding))
    unit = (x_encoding.scale * w_encoding.scale).astype(np.float32)
    real = real + (np.rint(b / unit) * unit if bias else 0)
    step = 0.1 if rounded else 0
    np.testing.assert_allclose(fused, np.clip(real, -13.0, 12.0), atol=step / 2 + 1e-4)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_matmul_with_weights(kind: str, channels: bool, rounded: bool) -> None:
    w = random(6, 5)
    x_encoding = activation(kind, 0.02, 3)
    w_encoding = per_channel("int8", w, 1) if channels else per_tensor("int8", 0.03)
    encodings = {"x": x_encoding, "w": w_encoding} | ({"y": activation(kind, 0.1, 5)} if rounded else {})
    qdq, integer = lowered_pair([node("MatMul", "x w", "y")], {"x": ["N", 3, 6]}, encodings, constants={"w": w})
    assert_integer(integer, "QLinearMatMul" if rounded else "MatMulIntegerToFloat")
    x = random(2, 3, 6)
    expected = run(qdq, {"x": x}, "all")["y"]
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, {"x": x}, optimization)["y"], expected)
    real = round_trip(x, x_encoding) @ round_trip(w, w_encoding)
    np.testing.assert_allclose(expected, np.clip(real, -13.3, 12.2), atol=0.05 + 1e-4 if rounded else 1e-4)


def test_a_product_of_two_activations() -> None:
    encodings = {"x": activation("uint8", 0.02), "z": activation("uint8", 0.03, 7), "y": activation("uint8", 0.1)}
    qdq, integer = lowered_pair([node("MatMul", "x z", "y")], {"x": [2, 3, 4], "z": [2, 4, 5]}, encodings)
    assert_integer(integer, "QLinearMatMul")
    feed = {"x": random(2, 3, 4), "z": random(2, 4, 5)}
    expected = run(qdq, feed, "all")["y"]
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, feed, optimization)["y"], expected)


# --- the other operators, alone -------------------------------------------------------------------------------------

SINGLE = [
    ("Sigmoid", {}, "QLinearSigmoid", 1 / 256, -128),
    ("LeakyRelu", {"alpha": 0.2}, "QLinearLeakyRelu", 0.03, 0),
    ("Softmax", {"axis": 1}, "QLinearSoftmax", 1 / 256, -128),
    ("Softmax", {}, "QLinearSoftmax", 1 / 256, -128),
    ("GlobalAveragePool", {}, "QLinearGlobalAveragePool", 0.01, 5),
    ("AveragePool", {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1], "strides": [2, 1]}, "QLinearAveragePool", 0.01, 5),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, "QLinearAveragePool", 0.01, 5),
    ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}, "QLinearAveragePool", 0.01, 5),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, "QLinearAveragePool", 0.01, 5),
]


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(("operator", "attributes", "integer_operator", "scale", "shift"), SINGLE)
def test_operators_of_one_input(
    kind: str, operator: str, attributes: dict[str, object], integer_operator: str, scale: float, shift: int
) -> None:
    encodings = {"x": activation(kind, 0.04, 3), "y": activation(kind, scale, shift)}
    qdq, integer = lowered_pair([node(operator, "x", "y", **attributes)], {"x": [2, 3, 8, 8]}, encodings)
    assert_integer(integer, integer_operator)
    x = random(2, 3, 8, 8)
    fused, simulated = run(qdq, {"x": x}, "all")["y"], run(qdq, {"x": x})["y"]
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, {"x": x}, optimization)["y"], fused)
    np.testing.assert_allclose(fused, simulated, atol=1.001 * scale)  # at most one level from the float operator's


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(("operator", "integer_operator"), [("Add", "QLinearAdd"), ("Mul", "QLinearMul")])
@pytest.mark.parametrize("constant", [False, True])
def test_operators_of_two_inputs(kind: str, operator: str, integer_operator: str, constant: bool) -> None:
    encodings = {"x": activation(kind, 0.02, 3), "z": activation(kind, 0.05, -9), "y": activation(kind, 0.06, 1)}
    inputs: dict[str, list[int | str]] = {"x": [2, 3, 4]} | ({} if constant else {"z": [1, 3, 1]})
    z = random(1, 3, 1)
    qdq, integer = lowered_pair(
        [node(operator, "x z", "y")], inputs, encodings, constants={"z": z} if constant else None
    )
    assert_integer(integer, integer_operator)
    feed = {"x": random(2, 3, 4)} | ({} if constant else {"z": z})
    # ONNX Runtime itself rewrites constant int8 to uint8 first, and then leaves the operator float.
    fused = run(qdq, feed, "all")["y"] if kind == "uint8" or not constant else run(integer, feed)["y"]
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, feed, optimization)["y"], fused)
    np.testing.assert_allclose(fused, run(qdq, feed)["y"], atol=1.001 * 0.06)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_concat_of_values_of_other_scales(kind: str) -> None:
    encodings = {"x": activation(kind, 0.02, 3), "z": activation(kind, 0.05, -9), "y": activation(kind, 0.06, 1)}
    qdq, integer = lowered_pair([node("Concat", "x z x", "y", axis=1)], {"x": [2, 3, 4], "z": [2, 1, 4]}, encodings)
    assert_integer(integer, "QLinearConcat")
    feed = {"x": random(2, 3, 4), "z": random(2, 1, 4)}
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, feed, optimization)["y"], run(qdq, feed)["y"])


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


MOVING = [
    ("MaxPool", "x", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}, {}),
    ("ReduceMax", "x axes", {"keepdims": 0}, {"axes": ints(2)}),
    ("ReduceMin", "x axes", {}, {"axes": ints(1, 3)}),
    ("DepthToSpace", "x", {"blocksize": 2}, {}),
    ("Reshape", "x shape", {}, {"shape": ints(0, -1)}),
    ("Transpose", "x", {"perm": [0, 2, 3, 1]}, {}),
    ("Flatten", "x", {"axis": 2}, {}),
    ("Unsqueeze", "x axes", {}, {"axes": ints(0, 3)}),
    ("Slice", "x starts ends axes steps", {},
     {"starts": ints(1, -1), "ends": ints(3, -6), "axes": ints(1, 2), "steps": ints(1, -2)}),
    ("Expand", "x shape", {}, {"shape": ints(3, 2, 4, 6, 6)}),
    ("Tile", "x repeats", {}, {"repeats": ints(1, 2, 1, 3)}),
    ("Gather", "x indices", {"axis": 1}, {"indices": ints(3, 0)}),
    ("Pad", "x pads", {}, {"pads": ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    ("Pad", "x pads value axes", {}, {"pads": ints(1, 2), "value": np.array(0.63, np.float32), "axes": ints(1)}),
    ("Pad", "x pads", {"mode": "reflect"}, {"pads": ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    ("Resize", "x - scales", {"mode": "nearest"}, {"scales": np.array([1, 1, 2, 1.5], np.float32)}),
    ("Relu", "x", {}, {}),
    ("Clip", "x low high", {}, {"low": np.array(-0.5, np.float32), "high": np.array(0.77, np.float32)}),
    ("Clip", "x - high", {}, {"high": np.array(0.77, np.float32)}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(("operator", "inputs", "attributes", "constants"), MOVING)
def test_operators_that_move_levels_read_and_write_integers(
    kind: str, operator: str, inputs: str, attributes: dict[str, object], constants: dict[str, np.ndarray]
) -> None:
    encoding = activation(kind, 0.02, 3)
    qdq, integer = lowered_pair(
        [node(operator, inputs, "y", **attributes)], {"x": [2, 4, 6, 6]}, {"x": encoding, "y": encoding},
        constants=constants, drop_clips=False,
    )  # fmt: skip
    assert_integer(integer, "Clip" if operator == "Relu" else operator)
    assert operators(integer)["QuantizeLinear"] == 1
    x = random(2, 4, 6, 6)
    for optimization in LEVELS:
        np.testing.assert_array_equal(run(integer, {"x": x}, optimization)["y"], run(qdq, {"x": x})["y"])


def test_split_squeeze_and_16_bit_levels() -> None:
    encoding = activation("uint16", 0.0002, 3)
    qdq, integer = lowered_pair(
        [node("Split", "x", "a b", axis=1, num_outputs=2), node("Squeeze", "a axes", "y")], {"x": [3, 2, 4]},
        dict.fromkeys(["x", "a", "b", "y"], encoding), constants={"axes": ints(1)}, outputs=["y", "b"],
    )  # fmt: skip
    assert_integer(integer, "Split", "Squeeze")
    x = random(3, 2, 4)
    for name, result in run(qdq, {"x": x}).items():
        np.testing.assert_array_equal(run(integer, {"x": x}, "all")[name], result)


def test_every_row_of_the_table_is_tested() -> None:
    tested = {row[0] for row in SINGLE} | {row[0] for row in MOVING}
    tested |= {"Conv", "MatMul", "Gemm", "Add", "Mul", "Concat", "Split", "Squeeze", "QuantizeLinear"}
    assert set(REWRITES) == tested


# --- clips, pairs, refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [None, -1.37])
@pytest.mark.parametrize("high", [None, 2.22])
def test_a_clip_that_saturation_does_not_do_is_a_clip_of_levels(low: float | None, high: float | None) -> None:
    """The integers behind it are those of the same network without the clip, cut at the bounds' levels."""
    w = random(6, 4, 3, 3)
    bounds = {name: np.array(bound, np.float32) for name, bound in (("low", low), ("high", high)) if bound is not None}
    names = " ".join(["c", "low" if low is not None else "-", "high" if high is not None else "-"])
    encodings = {
        "x": activation("uint8", 0.02), "w": per_channel("int8", w, 0), "y": activation("uint8", 0.05, 9),
    }  # fmt: skip
    conv, clip = node("Conv", "x w", "c"), node("Clip", names, "y")
    _, clipped = lowered_pair([conv, clip], {"x": [1, 4, 8, 8]}, encodings, constants={"w": w, **bounds})
    _, plain = lowered_pair([node("Conv", "x w", "y")], {"x": [1, 4, 8, 8]}, encodings, constants={"w": w})
    assert_integer(clipped, "QLinearConv", *(["Clip"] if bounds else []))
    x = 2 * random(1, 4, 8, 8)
    whole = run(plain, {"x": x})["y"]
    ends = [
        end if bound is None else round_trip(np.float32(bound), encodings["y"])
        for bound, end in ((low, whole.min()), (high, whole.max()))
    ]
    np.testing.assert_array_equal(run(clipped, {"x": x})["y"], np.clip(whole, *ends))


def test_a_pair_that_changes_nothing_is_left_out() -> None:
    """The levels of x are rounded again, once with the same scale and once with another."""
    nodes, constants = [], {}
    for name, reads, scale in (("a", "x", 0.02), ("y", "a", 0.02), ("z", "a", 0.03)):
        constants |= {f"{name}_scale": np.array(scale, np.float32), f"{name}_zero": np.array(131, np.uint8)}
        nodes.append(node("QuantizeLinear", f"{reads} {name}_scale {name}_zero", f"{name}_levels"))
        nodes.append(node("DequantizeLinear", f"{name}_levels {name}_scale {name}_zero", name))
    qdq = ir.from_proto(network(nodes, {"x": [4]}, ["y", "z"], constants))
    integer = lower_to_qoperator(qdq)
    assert operators(qdq)["QuantizeLinear"] == 3
    assert operators(integer)["QuantizeLinear"] == 2
    x = random(4)
    for name, result in run(qdq, {"x": x}).items():
        np.testing.assert_array_equal(run(integer, {"x": x})[name], result)


@pytest.mark.parametrize(
    ("encodings", "why"),
    [
        ({"x": per_tensor("uint16", 0.001, 9)}, "no kernel of 16 bits"),
        ({"x": activation("int8", 0.02), "y": activation("int8", 0.05), "w": per_tensor("uint8", 0.02, 120)},
         "int8 goes with int8"),
        ({"y": activation("int8", 0.02)}, "another type of output"),
        ({"w": per_tensor("int4", 0.2)}, "weights of 4 bits"),
        ({"w": per_channel("int8", random(6, 4, 3, 3), 1)}, "scales along the channels that are summed"),
        ({"w": Encoding(type=integer_type("uint8"), granularity=PerAxis(0), scale=np.full(6, 0.02),
                        zero_point=np.arange(6))}, "several zero points"),
    ],
)  # fmt: skip
def test_what_has_no_integer_form_stays_between_q_and_dq(encodings: dict[str, Encoding], why: str) -> None:
    w = random(6, 4, 3, 3)
    common = {"x": activation("uint8", 0.02), "w": per_channel("int8", w, 0), "y": activation("uint8", 0.05)}
    qdq, integer = lowered_pair([node("Conv", "x w", "y")], {"x": [1, 4, 8, 8]}, common | encodings, constants={"w": w})
    assert_integer(integer, "Conv")
    x = random(1, 4, 8, 8)
    np.testing.assert_array_equal(run(integer, {"x": x})["y"], run(qdq, {"x": x})["y"], err_msg=why)


def test_a_product_of_rows_with_their_own_scales_stays_float() -> None:
    w = random(6, 5)
    encodings = {"x": activation("uint8", 0.02), "w": per_channel("int8", w, 0)}
    _, integer = lowered_pair([node("MatMul", "x w", "y")], {"x": [2, 6]}, encodings, constants={"w": w})
    assert_integer(integer, "MatMul")


def test_a_bias_of_another_unit_stays_float() -> None:
    """As another tool may write it: ONNX Runtime would take its levels for those of the product's unit."""
    w, b = random(6, 4, 3, 3), random(6, seed=1)
    encodings = {"x": activation("uint8", 0.02), "w": per_tensor("int8", 0.03), "y": activation("uint8", 0.05)}
    qdq, _ = lowered_pair([node("Conv", "x w b", "y")], {"x": [1, 4, 8, 8]}, encodings, constants={"w": w, "b": b})
    set_constant(qdq.graph.initializers["b_scale"], np.array(0.02 * 0.03 * 2, np.float32))
    assert_integer(lower_to_qoperator(qdq), "Conv")


@pytest.mark.parametrize(
    ("nodes", "scale"),
    [
        ([node("Flatten", "x", "y")], 0.05),
        ([node("Pad", "x pads", "y")], 0.05),
        ([node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[2, 1])], 0.05),
        ([node("Resize", "x - scales", "y", mode="linear")], 0.02),
        ([node("MaxPool", "x", "m", kernel_shape=[2, 2]), node("Relu", "m", "y")], 0.02),
        ([node("Relu", "x", "y")], 0.05),
    ],
)
def test_what_is_no_move_of_levels_stays_float(nodes: list[onnx.NodeProto], scale: float) -> None:
    encodings = {"x": activation("uint8", 0.02), "y": activation("uint8", scale)}
    constants = {"pads": ints(0, 0, 1, 0, 0, 0, 1, 0), "scales": np.array([1, 1, 2, 2], np.float32)}
    used = {name: array for name, array in constants.items() if any(name in each.input for each in nodes)}
    qdq, integer = lowered_pair(nodes, {"x": [1, 2, 6, 6]}, encodings, constants=used)
    x = random(1, 2, 6, 6)
    np.testing.assert_array_equal(run(integer, {"x": x})["y"], run(qdq, {"x": x})["y"])
    assert operators(integer) == operators(qdq)


def test_a_relu_or_clip_whose_bounds_are_no_constants_stays_float() -> None:
    encodings = {"x": activation("uint8", 0.02), "y": activation("uint8", 0.02)}
    qdq, integer = lowered_pair([node("Clip", "x - high", "y")], {"x": [5], "high": []}, encodings)
    feed = {"x": random(5), "high": np.array(0.4, np.float32)}
    np.testing.assert_array_equal(run(integer, feed)["y"], run(qdq, feed)["y"])


def test_the_qdq_network_is_not_changed() -> None:
    w = random(6, 4, 3, 3)
    encodings = {"x": activation("uint8", 0.02), "w": per_channel("int8", w, 0), "y": activation("uint8", 0.05)}
    model = load(network([node("Conv", "x w", "y")], {"x": [1, 4, 8, 8]}, ["y"], {"w": w})).model
    qdq = lower_to_qdq(model, hand_plan(encodings))
    before = ir.to_proto(qdq).SerializeToString()
    lower_to_qoperator(qdq)
    assert ir.to_proto(qdq).SerializeToString() == before


def test_a_plan_without_integers_changes_nothing() -> None:
    model = load(network([node("Exp", "x", "y")], {"x": [2]}, ["y"])).model
    integer = lower_to_qoperator(lower_to_qdq(model, Plan(target="none", encodings={})))
    assert operators(integer) == {"Exp": 1}
    assert set(integer.opset_imports) == {""}

"""Forms of quantized networks, one by one: parted and lowered again, each gives the numbers that it gave before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from narrowgauge.core.encoding import DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock, PerTensor
from narrowgauge.errors import ModelError
from narrowgauge.graph.digest import network_digest
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.onnx import read
from narrowgauge.importers.opening import load
from narrowgauge.importers.prequantized import Parted, take_apart
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.passes.networks import network, node, random

U8, I8, F32 = TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT

ONE = {"s": np.array(0.05, np.float32), "z": np.array(100, np.uint8)}
TWO = {"s2": np.array(0.08, np.float32), "z2": np.array(-5, np.int8)}


def given(nodes: Sequence[onnx.NodeProto], inputs: dict, outputs: object, constants: dict, **more: object) -> ir.Model:
    return ir.from_proto(network(nodes, inputs, outputs, constants, **more))  # type: ignore[arg-type]


def pair(value: str, parameters: str = "s z", name: str = "") -> list[onnx.NodeProto]:
    """Q and DQ of a value; the last writes `<name>_d`."""
    name = name or value
    return [
        node("QuantizeLinear", f"{value} {parameters}", f"{name}_q"),
        node("DequantizeLinear", f"{name}_q {parameters}", f"{name}_d"),
    ]


def run(model: ir.Model, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = open_session(model, threads=1, optimization="none", simulate=True)
    return [np.asarray(array) for array in session.run(None, dict(feed))]


def lowered(parted: Parted, *, bias_bits: int = 32) -> ir.Model:
    assert parted.plan.network == network_digest(parted.model)
    assert parted.plan.notes == parted.notes
    return lower_to_qdq(parted.model, parted.plan, QdqStyle(bias_bits=bias_bits))


def check(
    model: ir.Model, feed: dict[str, np.ndarray] | None = None, *, exact: bool = True, bias_bits: int = 32
) -> Parted:
    """Part, lower, compare; the given network is not changed."""
    before_text = ir.to_proto(model).SerializeToString()
    parted = take_apart(model)
    assert ir.to_proto(model).SerializeToString() == before_text
    if feed is None:
        feed = {str(value.name): 2 * random(*value.shape.numpy(), seed=3) for value in model.graph.inputs}  # type: ignore[union-attr]
    before, after = run(model, feed), run(lowered(parted, bias_bits=bias_bits), feed)
    for one, other in zip(before, after, strict=True):
        assert one.dtype == other.dtype
        (np.testing.assert_array_equal if exact else _close)(one, other)
    return parted


def _close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def encoding(parted: Parted, name: str) -> Encoding:
    found = parted.plan.encodings[name]
    assert isinstance(found, Encoding)
    return found


def operators(parted: Parted) -> list[str]:
    return [one.op_type for one in parted.model.graph]


def values(parted: Parted) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each encoding of one scale."""
    return {
        name: (float(one.scale), int(one.zero_point))
        for name, one in parted.plan.encodings.items()
        if isinstance(one, Encoding) and one.scale.ndim == 0
    }


# --- what a value is read as ----------------------------------------------------------------------------------------


def test_a_layer_in_integers() -> None:
    constants = {"w_quantized": np.arange(-40, 41, 10, dtype=np.int8).reshape(3, 3), "ws": np.full(3, 0.01, np.float32)}
    constants |= {"wz": np.zeros(3, np.int8), "b_quantized": np.array([5, -7, 900], np.int32)}
    constants |= {"bs": np.full(3, np.float32(0.05) * np.float32(0.01), np.float32), "bz": np.zeros(3, np.int32)}
    nodes = [
        *pair("x"), node("DequantizeLinear", "w_quantized ws wz", "w_d", axis=0),
        node("DequantizeLinear", "b_quantized bs bz", "b_d", axis=0),
        node("Gemm", "x_d w_d b_d", "y", transB=1), *pair("y", "s2 z2"),
    ]  # fmt: skip
    parted = check(given(nodes, {"x": [2, 3]}, ["y_d"], {**constants, **ONE, **TWO}))
    assert operators(parted) == ["Gemm"]
    assert parted.notes == ()
    assert (parted.plan.mode, parted.plan.float_nodes, parted.plan.float_outputs) == ("static", (), ())
    assert values(parted) == {"x": (np.float32(0.05), 100), "y_d": (np.float32(0.08), -5)}
    assert encoding(parted, "w").granularity == PerAxis(0)
    np.testing.assert_array_equal(encoding(parted, "w").scale, constants["ws"])
    weights, bias = (parted.model.graph.initializers[name].const_value.numpy() for name in ("w", "b"))
    np.testing.assert_allclose(weights, constants["w_quantized"] * 0.01, rtol=1e-6)
    np.testing.assert_allclose(bias, constants["b_quantized"] * 0.0005, rtol=1e-6)


def test_the_target_is_the_given_one() -> None:
    model = given([*pair("x"), node("MatMul", "x_d w", "y")], {"x": [2, 3]}, ["y"], {"w": random(3, 3), **ONE})
    assert take_apart(model).plan.target == "onnxruntime"
    assert take_apart(model, target="tflite").plan.target == "tflite"


def test_one_reader_rounded_and_one_not() -> None:
    nodes = [*pair("x"), node("MatMul", "x_d x_d", "m"), node("Add", "m x", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], ONE))
    assert operators(parted) == ["MatMul", "Add"]
    assert values(parted) == {"x": (np.float32(0.05), 100)}
    assert [one.operator for one in parted.plan.float_nodes] == ["Add"]
    assert parted.plan.float_outputs == ("m",)


def test_one_float_reader_rounded_and_one_not() -> None:
    """The plan cannot say it of one value: an Identity stands for the rounded one."""
    nodes = [*pair("x"), node("Erf", "x_d", "e"), node("Add", "e x", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], ONE))
    assert operators(parted) == ["Identity", "Erf", "Add"]
    assert values(parted) == {"x_rounded": (np.float32(0.05), 100)}


def test_two_encodings_of_one_value() -> None:
    nodes = [*pair("x"), *pair("x", "s2 z2", "v"), node("MatMul", "x_d v_d", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {**ONE, **TWO}))
    assert sorted(values(parted).values()) == [(np.float32(0.05), 100), (np.float32(0.08), -5)]


def test_rounded_twice() -> None:
    nodes = [node("Erf", "x", "e"), *pair("e"), *pair("e_d", "s2 z2"), node("MatMul", "e_d_d e_d_d", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {**ONE, **TWO}))
    assert sorted(values(parted).values()) == [(np.float32(0.05), 100), (np.float32(0.08), -5)]


def test_the_same_rounding_twice_is_one() -> None:
    nodes = [*pair("x"), node("MaxPool", "x_d", "m", kernel_shape=[2]), *pair("m"), *pair("m_d")]
    parted = check(given(nodes, {"x": [1, 2, 6]}, ["m_d_d"], ONE))
    assert operators(parted) == ["MaxPool"]
    assert list(values(parted)) == ["x", "m_d_d"]


def test_levels_read_by_another_scale_than_they_were_written_with() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s3 z3", "d"),
        node("DequantizeLinear", "q s z", "e"), node("MatMul", "d e", "y"),
    ]  # fmt: skip
    other = {"s3": np.array(0.3, np.float32), "z3": np.array(17, np.uint8)}
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {**ONE, **other}))
    assert sorted(values(parted).values()) == [(np.float32(0.05), 100), (np.float32(0.3), 17)]


def test_a_narrower_type_is_recognized_by_its_clip() -> None:
    scale = np.array(0.25, np.float32)
    constants = {"s": scale, "z": np.array(10, np.uint8), "low": (0 - 10) * scale, "high": (63 - 10) * scale}
    nodes = [node("Clip", "x low high", "c"), *pair("c"), node("MatMul", "c_d c_d", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], constants), {"x": 20 * random(3, 3)})
    assert operators(parted) == ["MatMul"]
    assert encoding(parted, "x").type.name == "uint6"


def test_a_clip_that_is_no_type_stays() -> None:
    constants = {**ONE, "low": np.array(-1, np.float32), "high": np.array(1, np.float32)}
    nodes = [node("Clip", "x low high", "c"), *pair("c"), node("MatMul", "c_d c_d", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], constants))
    assert operators(parted) == ["Clip", "MatMul"]


@pytest.mark.parametrize(("zero_point", "operator"), [(0, "Relu"), (128, None)])
def test_a_relu_that_saturation_replaced_is_written_out(zero_point: int, operator: str | None) -> None:
    constants = {"w": random(3, 3), "s": np.array(0.02, np.float32), "z": np.array(zero_point, np.uint8)}
    nodes = [*pair("x"), node("MatMul", "x_d w", "m"), *pair("m"), node("Erf", "m_d", "y")]
    parted = check(given(nodes, {"x": [2, 3]}, ["y"], constants))
    expected = ["MatMul", *([operator] if operator else []), "Erf"]
    assert [one for one in operators(parted) if one != "Identity"] == expected
    assert any("written out" in note for note in parted.notes) == bool(operator)
    assert "m" in values(parted)


def test_a_clip_to_6_that_saturation_replaced_is_written_out() -> None:
    constants = {"w": random(3, 3), "s": np.array(6 / 255, np.float32), "z": np.array(0, np.uint8)}
    nodes = [*pair("x"), node("MatMul", "x_d w", "m"), *pair("m")]
    parted = check(given(nodes, {"x": [2, 3]}, ["m_d"], constants))
    assert operators(parted)[-1] == "Clip"
    assert parted.model.graph.outputs[0].name == "m_d"


# --- types, granularities, constants --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [(np.int16, "int16"), (np.uint16, "uint16"), (ml_dtypes.int4, "int4"), (ml_dtypes.uint4, "uint4")],
)
def test_types_of_4_and_16_bits(kind: type, name: str) -> None:
    signed = not name.startswith("u")
    low = -7 if signed else 0
    constants = {"s": np.array(0.03, np.float32), "z": np.array(1, kind)}
    constants |= {"w": (np.arange(9) + low).astype(kind).reshape(3, 3)}
    nodes = [*pair("x"), node("DequantizeLinear", "w s z", "d"), node("MatMul", "x_d d", "y")]
    parted = check(given(nodes, {"x": [2, 3]}, ["y"], constants))
    assert {one.type.name for one in map(parted.plan.encodings.__getitem__, parted.plan.encodings)} == {name}


def test_the_contributed_pair_of_16_bits() -> None:
    nodes = [*pair("x"), node("MatMul", "x_d x_d", "y")]
    for one in nodes[:2]:
        one.domain = "com.microsoft"
    constants = {"s": np.array(0.003, np.float32), "z": np.array(30000, np.uint16)}
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], constants, opset=17))
    assert encoding(parted, "x").type.name == "uint16"


def test_weights_in_blocks() -> None:
    levels = np.random.default_rng(0).integers(-8, 8, (40, 5)).astype(ml_dtypes.int4)
    scales = np.random.default_rng(1).uniform(0.01, 0.1, (3, 5)).astype(np.float32)  # the last block is shorter
    nodes = [node("DequantizeLinear", "w_quantized s", "d", axis=0, block_size=16), node("MatMul", "x d", "y")]
    parted = check(given(nodes, {"x": [2, 40]}, ["y"], {"w_quantized": levels, "s": scales}))
    assert parted.plan.mode == "weight-only"
    assert (encoding(parted, "w").granularity, encoding(parted, "w").type.name) == (PerBlock(0, 16), "int4")
    np.testing.assert_array_equal(encoding(parted, "w").scale, scales)


def test_float_weights_between_q_and_dq() -> None:
    constants = {"w": random(4, 3), "ws": np.array([0.1, 0.02, 0.05], np.float32), "wz": np.zeros(3, np.int8), **ONE}
    nodes = [
        *pair("x"), node("QuantizeLinear", "w ws wz", "w_q", axis=1),
        node("DequantizeLinear", "w_q ws wz", "v", axis=1), node("MatMul", "x_d v", "y"),
    ]  # fmt: skip
    parted = check(given(nodes, {"x": [2, 4]}, ["y"], constants))
    assert encoding(parted, "w").granularity == PerAxis(1)


def test_scales_of_constant_nodes_and_a_missing_zero_point() -> None:
    scale = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array(0.05, np.float32), "s"))
    nodes = [scale, *pair("x", "s"), node("MatMul", "x_d x_d", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {}), {"x": np.abs(random(3, 3))})
    assert encoding(parted, "x").type.name == "uint8"


def test_activations_with_a_scale_per_channel() -> None:
    constants = {"s": np.array([0.1, 0.2, 0.05], np.float32), "z": np.array([1, 2, 3], np.uint8)}
    parted = check(given([*pair("x"), node("MatMul", "x_d x_d", "y")], {"x": [3, 3]}, ["y"], constants))
    assert encoding(parted, "x").granularity == PerAxis(1)


def test_weights_that_two_layers_read() -> None:
    """As the same kind of weights they stay one initializer; read in another place as well they part."""
    constants = {"w_quantized": np.arange(9, dtype=np.int8).reshape(3, 3), "ws": np.array(0.1, np.float32)}
    nodes = [
        *pair("x"), node("DequantizeLinear", "w_quantized ws", "a"), node("DequantizeLinear", "w_quantized ws", "b"),
        node("MatMul", "x_d a", "m"), node("MatMul", "x_d b", "n"), node("Add", "m n", "o"), node("Mul", "o b", "y"),
    ]  # fmt: skip
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {**constants, **ONE}))
    assert set(values(parted)) == {"x", "w", "w_copy"}


def test_rows_of_a_table_of_levels() -> None:
    constants = {"t_quantized": np.arange(-20, 20, dtype=np.int8).reshape(10, 4), "ts": np.array(0.1, np.float32)}
    nodes = [node("Gather", "t_quantized i", "r"), node("DequantizeLinear", "r ts", "y")]
    model = given(nodes, {"i": [2]}, ["y"], constants, input_types={"i": TensorProto.INT64})
    parted = check(model, {"i": np.array([3, 7])})
    assert operators(parted) == ["Gather"]
    assert list(parted.plan.encodings)[-1] == "t"


def test_a_constant_that_is_returned() -> None:
    constants = {"w": np.arange(9, dtype=np.int8).reshape(3, 3), **ONE, **TWO}
    nodes = [*pair("x"), node("DequantizeLinear", "w s2 z2", "y"), node("MatMul", "x_d y", "m")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y", "m"], constants))
    assert [value.name for value in parted.model.graph.outputs] == ["y", "m"]


def test_a_tensor_without_elements() -> None:
    constants = {"w": np.zeros((3, 0), np.int8), **ONE, **TWO}
    nodes = [*pair("x"), node("DequantizeLinear", "w s2 z2", "d"), node("MatMul", "x_d d", "y")]
    check(given(nodes, {"x": [2, 3]}, ["y"], constants))


def test_float16_becomes_float32() -> None:
    constants = {"s": np.array(0.05, np.float16), "z": np.array(100, np.uint8), "w": random(3, 3).astype(np.float16)}
    nodes = [*pair("x"), node("MatMul", "x_d w", "m"), node("Cast", "m", "y", to=F32)]
    model = given(nodes, {"x": [2, 3]}, ["y"], constants, input_types={"x": TensorProto.FLOAT16})
    parted = take_apart(model)
    x = random(2, 3)
    before = run(model, {"x": x.astype(np.float16)})[0]
    after = run(lowered(parted), {"x": x})[0]
    np.testing.assert_allclose(after, before, atol=0.15)  # a step of x through a sum of three
    assert encoding(parted, "x").scale == np.float32(np.float16(0.05))
    assert any("16-bit" in note for note in parted.notes)


# --- biases ---------------------------------------------------------------------------------------------------------


def gemm(bias: np.ndarray, scale: object = None, zero_point: int = 0) -> ir.Model:
    """A Gemm in integers; without a scale the bias is float."""
    constants = {"w": np.arange(9, dtype=np.int8).reshape(3, 3), "ws": np.array(0.01, np.float32), "b": bias, **ONE}
    nodes = [*pair("x"), node("DequantizeLinear", "w ws", "w_d")]
    if scale is not None:
        constants |= {"bs": np.array(scale, np.float32), "bz": np.array(zero_point, np.int32)}
        nodes.append(node("DequantizeLinear", "b bs bz", "b_d"))
    nodes += [node("Gemm", f"x_d w_d {'b' if scale is None else 'b_d'}", "y")]
    return given(nodes, {"x": [2, 3]}, ["y"], constants)


UNIT = np.float32(0.05) * np.float32(0.01)


@pytest.mark.parametrize("largest", [10, 2**20, 2**22 - 1])
def test_an_integer_bias_comes_back(largest: int) -> None:
    levels = np.array([largest, -largest + 3, largest // 3], np.int32)
    parted = take_apart(gemm(levels, UNIT))
    assert parted.notes == ()
    written = {str(value.name): value.const_value for value in lowered(parted).graph.initializers.values()}
    np.testing.assert_array_equal(written["b_real_quantized"].numpy(), levels)


def test_a_bias_finer_than_float32_is_noted() -> None:
    parted = take_apart(gemm(np.array([2**30 + 1, 5, 7], np.int32), UNIT))
    assert any("finer than float32" in note for note in parted.notes)


@pytest.mark.parametrize(
    "model",
    [gemm(np.array([5, -7, 900], np.int32), 2 * UNIT), gemm(np.array([5, -7, 900], np.int32), UNIT, 3)],
    ids=["scale", "zero point"],
)
def test_a_bias_of_another_scale_stays_float(model: ir.Model) -> None:
    parted = check(model, bias_bits=0)
    assert any("another scale" in note for note in parted.notes)


def test_a_float_bias_stays_float() -> None:
    parted = check(gemm(random(3)), bias_bits=0)
    assert any("biases are float" in note for note in parted.notes)


# --- integers at the ends, integers moved ---------------------------------------------------------------------------


def test_inputs_and_outputs_of_integers_become_real() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]), node("DequantizeLinear", "t s z", "d"), node("MatMul", "d d", "m"),
        node("QuantizeLinear", "m s2 z2", "y"),
    ]  # fmt: skip
    model = given(nodes, {"x": [3, 3]}, {"y": I8}, {**ONE, **TWO}, input_types={"x": U8})
    parted = take_apart(model)
    levels = np.random.default_rng(0).integers(60, 140, (3, 3)).astype(np.uint8)
    real = (levels.astype(np.float32) - 100) * np.float32(0.05)
    expected = (run(model, {"x": levels})[0].astype(np.float32) + 5) * np.float32(0.08)
    np.testing.assert_array_equal(run(lowered(parted), {"x": real})[0], expected)
    assert values(parted)["x"] == (np.float32(0.05), 100)
    assert values(parted)["y"] == (np.float32(0.08), -5)
    assert ["takes integers" in parted.notes[0], "gives integers" in parted.notes[1]] == [True, True]


@pytest.mark.parametrize(
    "moving",
    [
        [node("MaxPool", "x_q", "m", kernel_shape=[2, 2], pads=[1, 1, 0, 0])],
        [node("Pad", "x_q pads", "m")],
        [node("Pad", "x_q pads level", "m")],
        [node("Pad", "x_q pads", "m", mode="reflect")],
        [node("Clip", "x_q level", "m")],
        [node("Clip", "x_q level high", "m")],
        [node("Max", "x_q levels", "m")],
        [node("Concat", "x_q levels x_q", "m", axis=1)],
        [node("Split", "x_q", "a m", axis=1, num_outputs=2)],
        [node("Transpose", "x_q", "t", perm=[0, 2, 3, 1]), node("Reshape", "t shape", "m")],
        [node("Slice", "x_q zero two", "n"), node("Gather", "n zero", "m")],
        [node("Where", "yes x_q levels", "m")],
        [node("Resize", "x_q - double", "m")],
        [node("DepthToSpace", "x_q", "m", blocksize=2)],
        [node("ReduceMax", "x_q", "m")],
        [node("TopK", "x_q two", "m i")],
    ],
    ids=lambda nodes: "-".join(one.op_type for one in nodes),
)
def test_operators_that_move_levels(moving: list[onnx.NodeProto]) -> None:
    constants = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 0]), "level": np.array(90, np.uint8), "high": np.array(120, np.uint8),
        "levels": np.arange(96, 160, dtype=np.uint8).reshape(1, 4, 4, 4), "shape": np.array([2, -1]),
        "zero": np.array([0]), "two": np.array([2]), "yes": np.array([True, False, False, True]),
        "double": np.array([1, 1, 2, 2], np.float32), **ONE,
    }  # fmt: skip
    nodes = [pair("x")[0], *moving, node("DequantizeLinear", "m s z", "y")]
    parted = check(given(nodes, {"x": [1, 4, 4, 4]}, ["y"], constants))
    assert not is_quantized(parted.model)
    assert set(values(parted).values()) == {(np.float32(0.05), 100)}


def test_a_relu_of_levels_cuts_at_the_level_0() -> None:
    constants = {"s": np.array(0.05, np.float32), "z": np.array(-30, np.int8)}
    nodes = [pair("x")[0], node("Relu", "x_q", "r"), node("DequantizeLinear", "r s z", "y")]
    check(given(nodes, {"x": [3, 3]}, ["y"], constants))


def test_levels_compared_and_counted() -> None:
    nodes = [pair("x")[0], node("ArgMax", "x_q", "i", axis=1, keepdims=0), node("Greater", "x_q level", "g")]
    outputs = {"i": TensorProto.INT64, "g": TensorProto.BOOL}
    check(given(nodes, {"x": [3, 5]}, outputs, {"level": np.array(101, np.uint8), **ONE}))


def test_levels_made_float_by_a_cast() -> None:
    nodes = [pair("x")[0], node("Cast", "x_q", "c", to=F32), node("Mul", "c half", "y")]
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {"half": np.array(0.5, np.float32), **ONE}))
    assert (1.0, 0) in values(parted).values()


def test_scales_along_an_axis_follow_a_transpose() -> None:
    constants = {"s": np.array([0.1, 0.2, 0.05], np.float32), "z": np.array([1, 2, 3], np.uint8)}
    nodes = [
        node("QuantizeLinear", "x s z", "q", axis=0), node("Transpose", "q", "t", perm=[1, 0]),
        node("DequantizeLinear", "t s z", "y", axis=1),
    ]  # fmt: skip
    check(given(nodes, {"x": [3, 4]}, ["y"], constants))


def test_scales_along_an_axis_do_not_follow_a_reshape() -> None:
    constants = {"s": np.array([0.1, 0.2], np.float32), "z": np.zeros(2, np.uint8), "shape": np.array([-1])}
    nodes = [node("QuantizeLinear", "x s z", "q", axis=0), node("Reshape", "q shape", "r"), *pair("x", "o p", "v")]
    nodes.append(node("DequantizeLinear", "r o p", "y"))
    more = {"o": np.array(1, np.float32), "p": np.array(0, np.uint8)}
    with pytest.raises(ModelError, match=r"'node_r' \(Reshape\) moves integers that have 2 scales"):
        take_apart(given(nodes, {"x": [2, 3]}, ["y"], {**constants, **more}))


def test_what_reads_levels_and_is_not_known_is_named() -> None:
    nodes = [pair("x")[0], node("Mod", "x_q x_q", "m"), node("DequantizeLinear", "m s z", "y")]
    with pytest.raises(ModelError, match=r"'node_m' \(Mod\) reads quantized integers"):
        take_apart(given(nodes, {"x": [3, 3]}, ["y"], ONE))


def test_integers_that_are_no_levels_are_left_alone() -> None:
    nodes = [
        node("Cast", "i", "f", to=F32), node("Div", "f byte", "x"), *pair("x"), node("MatMul", "x_d x_d", "y"),
    ]  # fmt: skip
    model = given(nodes, {"i": [3, 3]}, ["y"], {"byte": np.array(255, np.float32), **ONE}, input_types={"i": U8})
    parted = check(model, {"i": np.arange(9, dtype=np.uint8).reshape(3, 3)})
    assert parted.model.graph.inputs[0].dtype == ir.DataType.UINT8


# --- found at run time, or stored otherwise -------------------------------------------------------------------------


def test_ranges_found_at_run_time() -> None:
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "d"),
        node("MatMul", "d w", "m"), node("Add", "m x", "y"),
    ]  # fmt: skip
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], {"w": random(3, 3)}))
    assert parted.plan.mode == "dynamic"
    assert isinstance(parted.plan.encodings["x"], DynamicEncoding)


def test_a_rounded_by_run_time_range_that_is_returned() -> None:
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y")]
    check(given(nodes, {"x": [3, 3]}, ["y"], {}))


def test_scales_found_at_run_time_stay_nodes() -> None:
    nodes = [
        node("ReduceMax", "x", "s", keepdims=0), node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"), *pair("d", "t z"), node("MatMul", "d_d d_d", "y"),
    ]  # fmt: skip
    constants = {"t": np.array(0.05, np.float32), "z": np.array(100, np.uint8)}
    parted = check(given(nodes, {"x": [3, 3]}, ["y"], constants))
    assert any(note.startswith("2 nodes that quantize or dequantize stay") for note in parted.notes)
    assert set(values(parted).values()) == {(np.float32(0.05), 100)}


def test_pairs_in_bodies_stay_nodes() -> None:
    body = helper.make_graph(
        [*pair("x", "s z", "inner"), node("MatMul", "inner_d x_d", "b")], "body", [],
        [helper.make_tensor_value_info("b", F32, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [node("Identity", "x_d", "o")], "other", [], [helper.make_tensor_value_info("o", F32, None)]
    )
    nodes = [*pair("x"), node("If", "c", "y", then_branch=body, else_branch=other)]
    model = given(nodes, {"x": [3, 3], "c": []}, ["y"], ONE, input_types={"c": TensorProto.BOOL})
    for choice in (True, False):
        parted = check(model, {"x": random(3, 3), "c": np.array(choice)})
    assert any("2 of them in the bodies of If, Loop or Scan" in note for note in parted.notes)


@pytest.mark.parametrize("blocks", [False, True])
def test_weights_made_real_by_cast_sub_and_mul(blocks: bool) -> None:
    levels = np.random.default_rng(0).integers(-8, 8, (4, 6)).astype(np.int8)
    shape = (2, 2, 6) if blocks else (4, 6)
    scales = np.random.default_rng(1).uniform(0.01, 0.1, (2, 1, 6) if blocks else (1, 6)).astype(np.float32)
    constants = {"w_quantized": levels, "s": scales, "z": np.array(3, np.float32), "shape": np.array(shape)}
    constants["flat"] = np.array([4, 6])
    nodes = [
        node("Cast", "w_quantized", "c", to=F32), *([node("Reshape", "c shape", "r")] if blocks else []),
        node("Sub", f"{'r' if blocks else 'c'} z", "u"), node("Mul", "u s", "v"),
        *([node("Reshape", "v flat", "v2")] if blocks else []), node("MatMul", f"x {'v2' if blocks else 'v'}", "y"),
    ]  # fmt: skip
    model = given(nodes, {"x": [2, 4]}, ["y"], constants)
    assert is_quantized(model)
    parted = check(model)
    assert encoding(parted, "w").granularity == (PerBlock(0, 2) if blocks else PerAxis(1))
    assert (encoding(parted, "w").zero_point == 3).all()


def test_weights_of_4_bits_widened_for_kernels_of_8() -> None:
    constants = {"w_quantized": np.arange(-4, 5).astype(ml_dtypes.int4).reshape(3, 3), **ONE, **TWO}
    nodes = [
        *pair("x"), node("Cast", "w_quantized", "c", to=I8), node("DequantizeLinear", "c s2 z2", "d"),
        node("MatMul", "x_d d", "y"),
    ]  # fmt: skip
    parted = check(given(nodes, {"x": [2, 3]}, ["y"], constants))
    assert encoding(parted, "w").type.name == "int4"


# --- damaged, and the whole way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -0.1, np.inf])
def test_scales_that_are_no_positive_numbers_are_refused(scale: float) -> None:
    constants = {"s": np.array(scale, np.float32), "z": np.array(0, np.uint8)}
    with pytest.raises(ModelError, match=r"'node_x_q'.*positive"):
        take_apart(given([*pair("x"), node("MatMul", "x_d x_d", "y")], {"x": [3, 3]}, ["y"], constants))


@pytest.mark.parametrize(
    "changed",
    [
        {"s": np.ones(4, np.float32), "z": np.zeros(4, np.uint8)},
        {"s": np.ones(3, np.float32), "z": np.zeros(2, np.uint8)},
        {"s": np.ones((2, 2), np.float32), "z": np.zeros((2, 2), np.uint8)},
    ],
)
def test_scales_that_do_not_fit_are_refused(changed: dict[str, np.ndarray]) -> None:
    nodes = [node("DequantizeLinear", "w s z", "d"), node("MatMul", "x d", "y")]
    constants = {"w": np.zeros((3, 3), np.uint8), **changed}
    with pytest.raises(ModelError, match="damaged"):
        take_apart(given(nodes, {"x": [3, 3]}, ["y"], constants))


def damaged_files() -> list[bytes]:
    """Files cut off or with some bytes changed, always the same."""
    constants = {"w_quantized": np.arange(9, dtype=np.int8).reshape(3, 3), "ws": np.full(3, 0.1, np.float32)}
    nodes = [
        *pair("x"), node("DequantizeLinear", "w_quantized ws", "w_d", axis=0), node("MatMul", "x_d w_d", "m"),
        node("QLinearMatMul", "x_q s z x_q s z s z", "n_q"), node("DequantizeLinear", "n_q s z", "n"),
    ]  # fmt: skip
    whole = network(nodes, {"x": [3, 3]}, ["m", "n"], {**constants, **ONE}).SerializeToString()
    generator = np.random.default_rng(0)
    cut = [whole[:size] for size in range(1, len(whole), len(whole) // 12)]
    changed = []
    for _ in range(60):
        text = bytearray(whole)
        for place in generator.integers(0, len(whole), 2):
            text[place] = generator.integers(0, 256)
        changed.append(bytes(text))
    return [*cut, *changed]


def test_damaged_files_give_one_error(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    refused = 0
    for text in damaged_files():
        file.write_bytes(text)
        try:
            take_apart(read(file))
        except ModelError:
            refused += 1
    assert refused > 20


def test_a_scale_that_is_missing_is_named() -> None:
    nodes = [node("QuantizeLinear", "x", "q"), node("DequantizeLinear", "q s z", "y")]
    with pytest.raises(ModelError, match=r"'node_q' \(QuantizeLinear\) has no scale"):
        take_apart(given(nodes, {"x": [3, 3]}, ["y"], ONE))


def test_opened_like_any_network() -> None:
    nodes = [*pair("x"), node("MatMul", "x_d w", "m"), node("Add", "m b", "y"), *pair("y", "s2 z2")]
    constants = {"w": random(3, 3), "b": random(3), **ONE, **TWO}
    imported = load(network(nodes, {"x": [2, 3]}, ["y_d"], constants, opset=13))
    assert imported.plan is not None
    assert not is_quantized(imported.model)
    x = {"x": random(2, 3)}
    _close(run(imported.model, x)[0], run(imported.original, x)[0])
    assert imported.plan.network == network_digest(imported.original)
    assert isinstance(imported.plan.encodings["x"], Encoding)
    assert imported.plan.encodings["x"].granularity == PerTensor()


@pytest.mark.parametrize(
    ("operator", "domain", "expected"),
    [
        ("Quant", "qonnx.custom_op.general", True),
        ("BipolarQuant", "onnx.brevitas", True),
        ("Trunc", "finn.custom_op.general", True),
        ("MatMulNBits", "com.microsoft", True),
        ("GatherBlockQuantized", "com.microsoft", True),
        ("QuickGelu", "com.microsoft", False),
        ("Gelu", "com.microsoft", False),
    ],
)
def test_who_is_quantized(operator: str, domain: str, expected: bool) -> None:
    assert is_quantized(given([node(operator, "x", "y", domain=domain)], {"x": [3]}, ["y"], {})) == expected


def test_integers_that_are_no_weights_do_not_make_a_network_quantized() -> None:
    mask = {"m": np.array([0, 1, 1], np.int8), "t": np.ones((3, 3), np.int8)}
    nodes = [node("Cast", "m", "f", to=F32), node("Mul", "x f", "z"), node("Cast", "t", "b", to=TensorProto.BOOL)]
    nodes.append(node("Where", "b z x", "y"))
    assert not is_quantized(given(nodes, {"x": [3, 3]}, ["y"], mask))

"""Each operator of integers beside ONNX Runtime's own kernel of it: the parted and lowered network gives its levels."""

from collections.abc import Sequence
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
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.prequantized import Parted, take_apart
from narrowgauge.importers.qoperator import REWRITES
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.passes.networks import node, random

CONTRIB = "com.microsoft"
SCALE_X, SCALE_Y, SCALE_Z = 0.031, 0.057, 0.043


def contrib(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return node(operator, inputs, outputs, domain=CONTRIB, **attributes)


def network(
    nodes: Sequence[onnx.NodeProto], shapes: dict[str, Sequence[int]], constants: dict[str, object], *,
    zero: object = np.uint8(128), dequantized: bool = True, opset: int = 21,
) -> onnx.ModelProto:  # fmt: skip
    """Round each input `x` to the levels `x_q`, run the nodes, make their levels `z_q` real."""
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    arrays |= {"xs": np.float32(SCALE_X), "ys": np.float32(SCALE_Y), "zs": np.float32(SCALE_Z)}
    arrays |= {"xz": np.asarray(zero), "yz": np.asarray(zero) - 3, "zz": np.asarray(zero) + 5}
    before = [node("QuantizeLinear", f"{name} {name}s {name}z", f"{name}_q") for name in shapes]
    after = [node("DequantizeLinear", "z_q zs zz", "z")] if dequantized else []
    graph = helper.make_graph(
        [*before, *nodes, *after],
        "integers",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=min(10, 4 + opset // 3))


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        value.name: 2 * random(*(axis.dim_value for axis in value.type.tensor_type.shape.dim), seed=number)
        for number, value in enumerate(model.graph.input)
    }


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = open_session(model, threads=1, optimization="none", simulate=True)
    return np.asarray(session.run(None, feed)[0])


def check(model: onnx.ModelProto, *, step: float = SCALE_Z, share: float = 0.02) -> Parted:
    """At most one step apart, and that in few places: kernels round ties of a float32 product."""
    parted = take_apart(ir.from_proto(model))
    feed = feeds(model)
    before, after = run(ir.from_proto(model), feed), run(lower_to_qdq(parted.model, parted.plan), feed)
    assert before.shape == after.shape
    apart = np.abs(before - after) / step
    assert apart.max(initial=0) < 1.01
    assert (apart > 0.01).mean() <= share
    assert before.std() > 0
    return parted


def levels(*shape: int, kind: type = np.int8, seed: int = 7) -> np.ndarray:
    ends = np.iinfo(kind)
    return np.random.default_rng([seed, *shape]).integers(ends.min, ends.max + 1, shape).astype(kind)


IMAGE = (1, 4, 6, 6)
WEIGHTS = {"ws": np.linspace(0.002, 0.004, 5, dtype=np.float32), "wz": np.zeros(5, np.int8)}
BIAS = {"b": np.arange(-2, 3, dtype=np.int32) * 400}
ONE = {"ws": np.float32(0.003), "wz": np.int8(0)}


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("weights", ["int8 per channel", "int8", "uint8 with zero point"])
@pytest.mark.parametrize("domain", ["", CONTRIB])
def test_convolution(kind: type, weights: str, domain: str) -> None:
    if weights == "uint8 with zero point" and kind is np.int8:
        pytest.skip("ONNX Runtime multiplies int8 only with int8")
    last = domain == CONTRIB  # channels last
    w = levels(5, 4, 3, 3, kind=np.uint8 if "uint8" in weights else np.int8)
    scales = WEIGHTS if "per channel" in weights else ONE
    scales = {"ws": np.float32(0.003), "wz": np.uint8(131)} if "uint8" in weights else scales
    attributes = {"channels_last": 1} if last else {}
    one = node("QLinearConv", "x_q xs xz w ws wz zs zz b", "z_q", pads=[1, 1, 0, 0], strides=[2, 1], domain=domain,
               **attributes)  # fmt: skip
    shape = (1, 6, 6, 4) if last else IMAGE
    zero = np.uint8(128) if kind is np.uint8 else np.int8(3)
    model = network([one], {"x": shape}, {"w": w, **scales, **BIAS}, zero=zero)
    parted = check(model)
    encoding = parted.plan.encodings["w_real"]
    assert isinstance(encoding, Encoding)
    np.testing.assert_array_equal(encoding.scale, scales["ws"])
    np.testing.assert_array_equal(encoding.zero_point, scales["wz"])
    assert encoding.granularity == (PerAxis(0) if "per channel" in weights else PerTensor())


def test_depthwise_convolution_in_groups() -> None:
    one = node("QLinearConv", "x_q xs xz w ws wz zs zz", "z_q", group=4)
    scales = {"ws": np.linspace(0.01, 0.02, 4, dtype=np.float32), "wz": np.zeros(4, np.int8)}
    check(network([one], {"x": IMAGE}, {"w": levels(4, 1, 3, 3), **scales}))


def test_matrix_product() -> None:
    one = node("QLinearMatMul", "x_q xs xz w ws wz zs zz", "z_q")
    scales = {"ws": np.linspace(0.002, 0.004, 5, dtype=np.float32), "wz": np.zeros(5, np.int8)}
    parted = check(network([one], {"x": (3, 8)}, {"w": levels(8, 5), **scales}))
    assert parted.plan.encodings["w_real"].granularity == PerAxis(1)


def test_matrix_product_of_two_activations() -> None:
    one = node("QLinearMatMul", "x_q xs xz y_q ys yz zs zz", "z_q")
    check(network([one], {"x": (2, 3, 8), "y": (2, 8, 4)}, {}))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("rounded", [True, False])
def test_gemm(transposed: int, rounded: bool) -> None:
    end = "zs zz" if rounded else ""
    one = contrib("QGemm", f"x_q xs xz w ws wz b {end}", "z_q" if rounded else "z", transB=transposed, alpha=1.0)
    w = levels(5, 8) if transposed else levels(8, 5)
    model = network([one], {"x": (3, 8)}, {"w": w, **WEIGHTS, **BIAS}, dequantized=rounded)
    parted = check(model, step=SCALE_Z if rounded else 1e-4)
    assert parted.plan.encodings["w_real"].granularity == PerAxis(0 if transposed else 1)


@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("zero", [np.uint8(128), np.int8(-7)])
def test_sum_and_product(operator: str, zero: object) -> None:
    one = contrib(operator, "x_q xs xz y_q ys yz zs zz", "z_q")
    check(network([one], {"x": IMAGE, "y": IMAGE}, {}, zero=zero))


def test_sum_with_a_constant_of_levels() -> None:
    one = contrib("QLinearAdd", "x_q xs xz w ws wz zs zz", "z_q")
    constants = {"w": levels(5), "ws": np.float32(0.02), "wz": np.int8(4)}
    parted = check(network([one], {"x": (2, 5)}, constants, zero=np.int8(2)))
    assert int(parted.plan.encodings["w_real"].zero_point) == 4


@pytest.mark.parametrize(
    "one",
    [
        contrib("QLinearSigmoid", "x_q xs xz zs zz", "z_q"),
        contrib("QLinearLeakyRelu", "x_q xs xz zs zz", "z_q", alpha=0.1),
        contrib("QLinearAveragePool", "x_q xs xz zs zz", "z_q", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        contrib("QLinearAveragePool", "x_q xs xz zs zz", "z_q", kernel_shape=[2, 2], channels_last=1),
        contrib("QLinearGlobalAveragePool", "x_q xs xz zs zz", "z_q"),
        contrib("QLinearGlobalAveragePool", "x_q xs xz zs zz", "z_q", channels_last=1),
        contrib("QLinearConcat", "zs zz x_q xs xz x_q ys yz", "z_q", axis=1),
    ],
    ids=lambda one: f"{one.op_type}{len(one.attribute)}",
)
def test_operators_of_one_input(one: onnx.NodeProto) -> None:
    check(network([one], {"x": IMAGE}, {}))


@pytest.mark.parametrize(("opset", "axis"), [(13, -1), (13, 1), (12, 1), (12, 3)])
def test_softmax_of_either_meaning(opset: int, axis: int) -> None:
    one = contrib("QLinearSoftmax", "x_q xs xz s z0", "s_q", axis=axis, opset=opset)
    last = node("DequantizeLinear", "s_q s z0", "z")
    model = network([one, last], {"x": IMAGE}, {"s": np.float32(1 / 256), "z0": np.uint8(0)}, dequantized=False)
    check(model, step=1 / 256, share=0.05)


def test_selection() -> None:
    one = contrib("QLinearWhere", "c x_q xs xz y_q ys yz zs zz", "z_q")
    check(network([one], {"x": (2, 5), "y": (2, 5)}, {"c": np.array([True, False, True, True, False])}))


def test_pooling_of_levels_with_channels_last() -> None:
    one = contrib("NhwcMaxPool", "x_q", "p_q", kernel_shape=[2, 2])
    last = node("DequantizeLinear", "p_q xs xz", "z")
    check(network([one, last], {"x": (1, 6, 6, 4)}, {}, dequantized=False), share=0)


@pytest.mark.parametrize(
    ("one", "operator", "inputs"),
    [
        (contrib("QLinearConvTranspose", "x_q xs xz w ws wz zs zz", "z_q", strides=[2, 2]), "ConvTranspose", "a v"),
        (contrib("QLinearReduceMean", "x_q xs xz zs zz", "z_q", axes=[2, 3], keepdims=0), "ReduceMean", "a axes"),
    ],
)
def test_operators_that_onnxruntime_has_no_kernel_of(one: onnx.NodeProto, operator: str, inputs: str) -> None:
    """They are compared with the float operator on what the integers stand for."""
    attributes = {"strides": [2, 2]} if operator == "ConvTranspose" else {"keepdims": 0}
    pair = [
        node("DequantizeLinear", "x_q xs xz", "a"), node("DequantizeLinear", "w ws wz", "v"),
        node(operator, inputs, "c", **attributes), node("QuantizeLinear", "c zs zz", "z_q"),
    ]  # fmt: skip
    constants = {"w": levels(4, 3, 2, 2), **ONE, "axes": np.array([2, 3])}
    given, expected = (network(nodes, {"x": IMAGE}, constants) for nodes in ([one], pair))
    parted = take_apart(ir.from_proto(given))
    after = run(lower_to_qdq(parted.model, parted.plan), feeds(given))
    np.testing.assert_array_equal(after, run(ir.from_proto(expected), feeds(expected)))


# --- ranges found at run time ---------------------------------------------------------------------------------------


def dynamic(nodes: Sequence[onnx.NodeProto], shape: Sequence[int], constants: dict[str, object]) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "dynamic", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


ROUNDING = node("DynamicQuantizeLinear", "x", "x_q xs xz")
CAST = node("Cast", "i", "f", to=TensorProto.FLOAT)


@pytest.mark.parametrize(
    "scaling",
    [
        [node("Mul", "xs ws", "s"), node("Mul", "f s", "z")],
        [node("Mul", "ws xs", "s"), node("Mul", "s f", "z")],
        [node("Mul", "f xs", "g"), node("Mul", "g ws", "z")],
    ],
)
@pytest.mark.parametrize("channels", [1, 5])
def test_integer_product_with_its_scaling(scaling: list[onnx.NodeProto], channels: int) -> None:
    nodes = [ROUNDING, node("MatMulInteger", "x_q w xz wz", "i"), CAST, *scaling]
    scale = np.float32(0.003) if channels == 1 else WEIGHTS["ws"]
    zero = np.int8(0) if channels == 1 else WEIGHTS["wz"]
    parted = check(dynamic(nodes, (3, 8), {"w": levels(8, 5), "ws": scale, "wz": zero}), step=1e-4)
    assert parted.plan.mode == "dynamic"
    assert isinstance(parted.plan.encodings["x"], DynamicEncoding)
    np.testing.assert_array_equal(parted.plan.encodings["w_real"].scale, scale)


@pytest.mark.parametrize("channels", [1, 5])
def test_integer_convolution_with_its_scaling(channels: int) -> None:
    nodes = [
        ROUNDING, node("ConvInteger", "x_q w xz wz", "i", pads=[1, 1, 1, 1]), CAST,
        node("Mul", "xs ws", "s"), node("Mul", "f s", "z"),
    ]  # fmt: skip
    scale = np.linspace(0.002, 0.004, channels, dtype=np.float32).reshape(channels, 1, 1)
    constants = {"w": levels(5, 4, 3, 3), "ws": scale, "wz": np.int8(0)}
    parted = check(dynamic(nodes, IMAGE, constants), step=1e-4)
    assert parted.plan.encodings["w_real"].granularity == (PerAxis(0) if channels > 1 else PerTensor())


def test_static_levels_in_an_integer_product() -> None:
    nodes = [node("MatMulInteger", "x_q w xz wz", "i"), CAST, node("Mul", "xs ws", "s"), node("Mul", "f s", "z")]
    parted = check(network(nodes, {"x": (3, 8)}, {"w": levels(8, 5), **ONE}, dequantized=False), step=1e-4)
    assert parted.plan.mode == "static"
    assert parted.plan.float_outputs == ("z",)


def test_matrix_products_that_write_float() -> None:
    constants = {"w": levels(8, 5), **WEIGHTS, "bias": random(5)}
    one = contrib("MatMulIntegerToFloat", "x_q w xs ws xz wz bias", "z")
    check(network([one], {"x": (3, 8)}, constants, dequantized=False), step=1e-4)
    one = contrib("DynamicQuantizeMatMul", "x w ws wz bias", "z")
    parted = check(dynamic([one], (3, 8), constants), step=1e-4)
    assert isinstance(parted.plan.encodings["x"], DynamicEncoding)


def test_an_integer_product_without_its_scaling_is_refused_by_name() -> None:
    nodes = [ROUNDING, node("MatMulInteger", "x_q w xz wz", "i"), node("Cast", "i", "z", to=TensorProto.FLOAT)]
    with pytest.raises(ModelError, match=r"'node_i' \(MatMulInteger\).*Cast and a Mul"):
        take_apart(ir.from_proto(dynamic(nodes, (3, 8), {"w": levels(8, 5), "wz": np.int8(0)})))


@pytest.mark.parametrize("scales", ["one", "per gate"])
@pytest.mark.parametrize("directions", [1, 2])
def test_lstm(scales: str, directions: int) -> None:
    hidden, inputs = 3, 4
    shape = (directions,) if scales == "one" else (directions, 4 * hidden)
    generator = np.random.default_rng(1)
    constants: dict[str, object] = {"b": random(directions, 8 * hidden)}
    for name, size in (("w", inputs), ("r", hidden)):
        constants[name] = levels(directions, size, 4 * hidden)
        constants[f"{name}s"] = generator.uniform(0.001, 0.004, shape).astype(np.float32)
        constants[f"{name}z"] = np.zeros(shape, np.int8)
    one = contrib("DynamicQuantizeLSTM", "x w r b - - - - ws wz rs rz", "z", hidden_size=hidden,
                  direction="bidirectional" if directions == 2 else "forward")  # fmt: skip
    model = dynamic([one], (5, 1, inputs), constants)
    parted = take_apart(ir.from_proto(model))
    feed = feeds(model)
    before, after = run(ir.from_proto(model), feed), run(lower_to_qdq(parted.model, parted.plan), feed)
    np.testing.assert_allclose(after, before, atol=0.02)
    assert any("in every step" in note for note in parted.notes)
    for name in "wr":
        encoding = parted.plan.encodings[f"{name}_real_transposed"]
        np.testing.assert_array_equal(np.ravel(encoding.scale), np.ravel(constants[f"{name}s"]))


# --- weights in blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("rows", [64, 40])  # 40: the last block is shorter
def test_weights_in_blocks(bits: int, zero_points: bool, rows: int) -> None:
    columns, size = 6, 32
    blocks = -(-rows // size)
    generator = np.random.default_rng(rows)
    constants: dict[str, object] = {
        "w": generator.integers(0, 256, (columns, blocks, size * bits // 8)).astype(np.uint8),
        "s": generator.uniform(0.01, 0.02, (columns * blocks,)).astype(np.float32),
    }
    if zero_points:
        row = -(-blocks * bits // 8)
        constants["zp"] = generator.integers(0, 256, (columns * row,)).astype(np.uint8)
    one = contrib("MatMulNBits", f"x w s {'zp' if zero_points else ''}", "z", K=rows, N=columns, bits=bits,
                  block_size=size)  # fmt: skip
    parted = check(dynamic([one], (3, rows), constants), step=1e-3)
    assert parted.plan.mode == "weight-only"
    (encoding,) = parted.plan.encodings.values()
    assert isinstance(encoding, Encoding)
    assert (encoding.type.name, encoding.granularity) == (f"uint{bits}", PerBlock(0, size))
    np.testing.assert_array_equal(encoding.scale, constants["s"].reshape(columns, blocks).T)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("kind", ["int4", "uint4", "bytes"])
def test_rows_of_a_table_in_blocks(kind: str, zero_points: bool) -> None:
    generator = np.random.default_rng(5)
    rows, columns, size = 7, 64, 16
    stored = generator.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    points = generator.integers(0, 256, (rows, columns // size // 2)).astype(np.uint8)
    if kind != "bytes":
        low = -8 if kind == "int4" else 0
        numbers = getattr(ml_dtypes, kind)
        stored = generator.integers(low, low + 16, (rows, columns)).astype(numbers)
        points = generator.integers(low, low + 16, (rows, columns // size)).astype(numbers)
    scales = generator.uniform(0.01, 0.02, (rows, columns // size)).astype(np.float32)
    constants: dict[str, object] = {"w": stored, "s": scales, "i": np.array([[3, 0], [6, 6]])}
    constants |= {"zp": points} if zero_points else {}
    one = contrib("GatherBlockQuantized", f"w i s {'zp' if zero_points else ''}", "t", block_size=size, quantize_axis=1)
    parted = check(dynamic([one, node("Add", "t x", "z")], (2, 2, columns), constants), step=1e-5)
    (encoding,) = parted.plan.encodings.values()
    assert isinstance(encoding, Encoding)
    assert (encoding.type.bits, encoding.granularity) == (4, PerBlock(1, size))
    np.testing.assert_array_equal(encoding.scale, scales)


def test_damaged_blocks_are_refused() -> None:
    constants = {"w": np.zeros((6, 2, 15), np.uint8), "s": np.ones(12, np.float32)}
    one = contrib("MatMulNBits", "x w s", "z", K=64, N=6, bits=4, block_size=32)
    with pytest.raises(ModelError, match="192 bytes and 12 scales for 6 columns of 64, got 180 and 12"):
        take_apart(ir.from_proto(dynamic([one], (3, 64), constants)))


# --- what is not known ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["QAttention", "QEmbedLayerNormalization", "QOrderedMatMul", "QLinearNew", "QMoE"])
def test_operators_that_are_not_known_are_named(operator: str) -> None:
    with pytest.raises(ModelError, match=f"'node_z' is a {operator} of the domain 'com.microsoft'"):
        take_apart(ir.from_proto(dynamic([contrib(operator, "x w", "z")], (3, 8), {"w": levels(8, 5)})))


def test_a_missing_input_is_named() -> None:
    one = node("QLinearConv", "x_q xs xz", "z_q")
    with pytest.raises(ModelError, match=r"'node_z_q' \(QLinearConv\): expected an input"):
        take_apart(ir.from_proto(network([one], {"x": IMAGE}, {})))


def test_every_row_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    rows = {operator for _, operator in REWRITES} - {"QuantizeLinear", "DequantizeLinear"}
    assert [operator for operator in rows if f'"{operator}"' not in text] == []

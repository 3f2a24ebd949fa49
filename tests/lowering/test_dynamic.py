import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import AnyEncoding, DynamicEncoding, Encoding
from narrowgauge.core.granularity import PerAxis, PerBlock
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import PlanError
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.dynamic import lower_dynamically
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

AT_RUN_TIME = DynamicEncoding(type=integer_type("uint8"))


def lowered_pair(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    encodings: dict[str, AnyEncoding],
    constants: dict[str, np.ndarray],
    *,
    outputs: list[str] | None = None,
    float_nodes: list[str] | None = None,
) -> tuple[ir.Model, ir.Model]:
    """Return a network with rounded weights in float, and its dynamic form."""
    plan = hand_plan(encodings, mode="dynamic", float_nodes=float_nodes or [])
    lowered = lower_dynamically(load(network(nodes, inputs, outputs or ["y"], constants), simplify=False).model, plan)
    onnx.checker.check_model(ir.to_proto(lowered))
    rounded = {
        name: round_trip(array, encodings[name]) if isinstance(encodings.get(name), Encoding) else array
        for name, array in constants.items()
    }
    return load(network(nodes, inputs, outputs or ["y"], rounded), simplify=False).model, lowered


def assert_like_reference(lowered: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compare ONNX Runtime, optimised and not, with ONNX's own reference implementation of the same operators."""
    expected = ReferenceEvaluator(ir.to_proto(lowered)).run(None, feed)
    for optimization in ("none", "all"):
        result = run(lowered, feed, optimization)
        for one, other in zip(result.values(), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    return result


# --- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int8 channel", "int8 tensor", "uint8 tensor", "int5 channel"])
@pytest.mark.parametrize("bias", [None, "first", "second"])
def test_matmul_becomes_one_kernel(tmp_path: Path, weights: str, bias: str | None) -> None:
    w, b = random(16, 5), random(5)
    kind, scope = weights.split()
    encoding = per_channel(kind, w, 1) if scope == "channel" else per_tensor(kind, 0.03, 100 if kind == "uint8" else 0)
    nodes = [node("MatMul", "x w", "y" if bias is None else "m")]
    if bias is not None:
        nodes.append(node("Add", "b m" if bias == "first" else "m b", "y"))
    reference, lowered = lowered_pair(
        nodes, {"x": ["N", 3, 16]}, {"x": AT_RUN_TIME, "w": encoding}, {"w": w, "b": b} if bias else {"w": w}
    )
    assert optimised(lowered, tmp_path) == {"DynamicQuantizeMatMul": 1}
    for x in (
        random(2, 3, 16),
        np.abs(random(2, 3, 16)) + 2,
        -np.abs(random(2, 3, 16)),
        np.zeros((1, 3, 16), np.float32),
    ):
        result = assert_like_reference(lowered, {"x": x})["y"]
        # Each of the 16 factors is at most half a step from its real value, and the sum is exact.
        step = (max(x.max(), 0) - min(x.min(), 0)) / 255
        bound = 0.51 * step * np.abs(round_trip(w, encoding)).sum(axis=0) + 1e-5
        assert (np.abs(result - run(reference, {"x": x})["y"]) <= bound).all()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (-3.0, 0.0)])
@pytest.mark.parametrize("bias", [None, "constant", "computed"])
def test_gemm_with_every_attribute(
    transposed: int, channels: bool, alpha: float, beta: float, bias: str | None
) -> None:
    w = random(6, 6)
    encoding = per_channel("int8", w, 0 if transposed else 1) if channels else per_tensor("int8", 0.03)
    inputs: dict[str, list[int | str]] = {"x": [4, 6]} | ({"b": [1, 6]} if bias == "computed" else {})
    constants = {"w": w} | ({"b": random(6)} if bias == "constant" else {})
    reference, lowered = lowered_pair(
        [node("Gemm", "x w b" if bias else "x w", "y", transB=transposed, alpha=alpha, beta=beta)], inputs,
        {"x": AT_RUN_TIME, "w": encoding}, constants,
    )  # fmt: skip
    feed = {"x": random(4, 6)} | ({"b": random(1, 6)} if bias == "computed" else {})
    result = assert_like_reference(lowered, feed)["y"]
    assert operators(lowered)["MatMulInteger"] == 1
    assert sqnr(run(reference, feed)["y"], result) > 35


def test_gemm_of_a_transposed_activation_keeps_its_meaning() -> None:
    w = random(6, 5)
    reference, lowered = lowered_pair(
        [node("Gemm", "x w", "y", transA=1)], {"x": [6, 4]}, {"x": AT_RUN_TIME, "w": per_tensor("int8", 0.03)}, {"w": w}
    )
    feed = {"x": random(6, 4)}
    np.testing.assert_allclose(run(lowered, feed)["y"], run(reference, feed)["y"], rtol=1e-5)


@pytest.mark.parametrize("weights", ["int8 channel", "int8 tensor", "uint8 tensor"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [[9], [9, 8]])
def test_conv(weights: str, groups: int, bias: bool, sizes: list[int]) -> None:
    w = random(8, 4 // groups, *[3] * len(sizes))
    kind, scope = weights.split()
    encoding = per_channel(kind, w, 0) if scope == "channel" else per_tensor(kind, 0.03, 100 if kind == "uint8" else 0)
    inputs = "x w b" if bias else "x w"
    reference, lowered = lowered_pair(
        [node("Conv", inputs, "y", group=groups, pads=[1, 1] * len(sizes), strides=[2] * len(sizes))],
        {"x": ["N", 4, *sizes]}, {"x": AT_RUN_TIME, "w": encoding}, {"w": w, "b": random(8)} if bias else {"w": w},
    )  # fmt: skip
    assert operators(lowered)["ConvInteger"] == 1
    x = random(2, 4, *sizes)
    expected = run(reference, {"x": x})["y"]
    for optimization in ("none", "all"):
        assert sqnr(expected, run(lowered, {"x": x}, optimization)["y"]) > 38


def test_a_value_that_several_products_read_is_rounded_once(tmp_path: Path) -> None:
    """Queries, keys and values of one normalised input; a float operator reads it as it was."""
    constants = {name: random(8, 8, seed=number) for number, name in enumerate("qkv")}
    nodes = [node("MatMul", f"x {name}", f"y{name}") for name in constants] + [node("Exp", "x", "e")]
    # Equal scales would be one product for ONNX Runtime, which then fuses none of the three.
    encodings = {"x": AT_RUN_TIME} | {name: per_channel("int8", array, 1) for name, array in constants.items()}
    reference, lowered = lowered_pair(
        nodes, {"x": ["N", 8]}, encodings, constants, outputs=["yq", "yk", "yv", "e"], float_nodes=["node_e"]
    )
    assert operators(lowered)["DynamicQuantizeLinear"] == 1
    assert optimised(lowered, tmp_path) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Exp": 1}
    x = random(5, 8)
    expected, result = run(reference, {"x": x}), run(lowered, {"x": x}, "all")
    np.testing.assert_array_equal(result["e"], expected["e"])
    for name in ("yq", "yk", "yv"):
        assert sqnr(expected[name], result[name]) > 38


def test_a_node_that_stays_float_reads_the_float_weights() -> None:
    w = random(4, 4)
    _, lowered = lowered_pair(
        [node("MatMul", "x w", "y"), node("MatMul", "x w", "z")], {"x": ["N", 4]},
        {"x": AT_RUN_TIME, "w": per_tensor("int4", 0.4)}, {"w": w}, outputs=["y", "z"], float_nodes=["node_z"],
    )  # fmt: skip
    result = run(lowered, {"x": np.eye(4, dtype=np.float32)})
    np.testing.assert_array_equal(result["z"], w)
    np.testing.assert_allclose(result["y"], round_trip(w, per_tensor("int4", 0.4)), atol=1e-5)


# --- recurrent ------------------------------------------------------------------------------------------------------


def lstm_encodings(w: np.ndarray, scope: str) -> Encoding:
    if scope == "tensor":
        reach = float(np.abs(w).max())
        return per_tensor("int8", reach / 127)
    axis = {"direction": 0, "gate": 1}[scope]
    reach = np.abs(w).max(axis=tuple(index for index in range(3) if index != axis))
    return encoding_from_range(-reach, reach, integer_type("int8"), PerAxis(axis), symmetric=True)


@pytest.mark.parametrize("scope", ["tensor", "direction", "gate"])
@pytest.mark.parametrize(
    ("attributes", "directions"),
    [
        ({}, 1),
        ({"direction": "reverse", "clip": 0.7}, 1),
        ({"direction": "bidirectional", "input_forget": 1}, 2),
        ({"activations": ["HardSigmoid", "Tanh", "Softsign"], "activation_alpha": [0.25], "activation_beta": [0.4]}, 1),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_lstm(scope: str, attributes: dict[str, object], directions: int, full: bool) -> None:
    """Beside a float LSTM of the same rounded weights: only the rounding of activations is left."""
    hidden, size = 6, 10
    constants = {
        "w": random(directions, 4 * hidden, size) / 3, "r": random(directions, 4 * hidden, hidden) / 3,
        "b": random(directions, 8 * hidden) / 3, "l": np.array([5, 3], np.int32),
        "h": random(directions, 2, hidden), "c": random(directions, 2, hidden, seed=1),
        "p": random(directions, 3 * hidden) / 3,
    }  # fmt: skip
    inputs = "x w r b l h c p" if full else "x w r"
    if not full:
        constants = {name: constants[name] for name in ("w", "r")}
    encodings = {name: lstm_encodings(constants[name], scope) for name in ("w", "r")}
    reference, lowered = lowered_pair(
        [node("LSTM", inputs, "y yh yc", hidden_size=hidden, **attributes)], {"x": [5, 2, size]},
        {"x": AT_RUN_TIME, **encodings}, constants, outputs=["y", "yh", "yc"],
    )  # fmt: skip
    assert operators(lowered) == {"DynamicQuantizeLSTM": 1}
    feed = {"x": random(5, 2, size)}
    expected = run(reference, feed)
    for optimization in ("none", "all"):
        for name, result in run(lowered, feed, optimization).items():
            assert sqnr(expected[name], result) > 30, name


@pytest.mark.parametrize(
    ("operator", "gates", "attributes"),
    [("GRU", 3, {}), ("GRU", 3, {"direction": "bidirectional", "linear_before_reset": 1}), ("RNN", 1, {}),
     ("LSTM", 4, {"layout": 1})],
)  # fmt: skip
def test_what_has_no_integer_kernel_has_integer_weights(
    tmp_path: Path, operator: str, gates: int, attributes: dict[str, object]
) -> None:
    hidden, size, directions = 6, 10, 2 if "direction" in attributes else 1
    constants = {"w": random(directions, gates * hidden, size), "r": random(directions, gates * hidden, hidden)}
    encodings = {name: lstm_encodings(array, "tensor") for name, array in constants.items()}
    reference, lowered = lowered_pair(
        [node(operator, "x w r", "y", hidden_size=hidden, **attributes)], {"x": [5, 2, size]},
        {"x": AT_RUN_TIME, **encodings}, constants,
    )  # fmt: skip
    stored = {str(value.dtype) for value in lowered.graph.initializers.values() if value.const_value.size > 1}
    assert stored == {"INT8"}
    if attributes.get("layout"):  # ONNX Runtime has no LSTM of this layout
        return
    feed = {"x": random(5, 2, size)}
    np.testing.assert_array_equal(run(lowered, feed)["y"], run(reference, feed)["y"])
    assert optimised(lowered, tmp_path, "basic") == {operator: 1}  # the weights are made float once, at load


# --- whole networks -------------------------------------------------------------------------------------------------


def quantize_with_onnx_runtime(source: Path, target: Path) -> None:
    """Quantize with the tool that comes with ONNX Runtime, at its defaults but for int8 weights, its own advice."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("file", ["dtln/model_1.onnx", "dtln/model_2.onnx", "onnx_other/mnist.onnx"])
def test_networks_lose_no_more_than_with_onnx_runtimes_own_tool(zoo: Path, tmp_path: Path, file: str) -> None:
    model = load(zoo / "models" / file).model
    generator = np.random.default_rng(0)
    feed = {
        str(value.name): np.abs(generator.standard_normal([int(size) for size in value.shape])).astype(np.float32)
        for value in model.graph.inputs
    }
    lowered = lower_dynamically(model, calibrated_plan(model, [], mode="dynamic"))
    onnx.checker.check_model(ir.to_proto(lowered))
    ir.save(model, tmp_path / "float.onnx")
    ir.save(lowered, tmp_path / "ours.onnx")
    quantize_with_onnx_runtime(tmp_path / "float.onnx", tmp_path / "theirs.onnx")
    sizes = {name: (tmp_path / f"{name}.onnx").stat().st_size for name in ("ours", "theirs")}
    assert sizes["ours"] < 1.1 * sizes["theirs"]
    reference = run(model, feed)
    ours = run(lowered, feed, "all")
    theirs = run(ir.load(tmp_path / "theirs.onnx"), feed, "all")
    for name in reference:
        assert sqnr(reference[name], ours[name]) > sqnr(reference[name], theirs[name]) - 0.5, name


def test_a_transformer_becomes_integer_products(zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx").model
    lowered = lower_dynamically(model, calibrated_plan(model, [], mode="dynamic"))
    made = optimised(lowered, tmp_path)
    assert made["DynamicQuantizeMatMul"] + made["MatMulIntegerToFloat"] == products(model, "MatMul", "Gemm")
    feed = {"input": photos(zoo, 224, 1)}
    assert sqnr(run(model, feed, "all")["logits"], run(lowered, feed, "all")["logits"]) > 8


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "encodings", "message"),
    [
        ("MatMul", {"x": DynamicEncoding(type=integer_type("int8"))}, "'x': expected a dynamic encoding of uint8"),
        ("MatMul", {"x": DynamicEncoding(type=integer_type("uint8"), symmetric=True)}, "uint8 without one"),
        ("MatMul", {"w": per_tensor("int16", 0.001)}, "'w': expected at most 8 bits"),
        ("MatMul", {"w": per_channel("int8", np.ones((4, 4)), 0)}, "one per output channel"),
        ("MatMul", {"w": Encoding(type=integer_type("int8"), granularity=PerBlock(0, 2), scale=np.ones((2, 4)),
                                  zero_point=np.zeros((2, 4)))}, "weight-only"),
        ("Conv", {"w": Encoding(type=integer_type("uint8"), granularity=PerAxis(0), scale=np.ones(4),
                                zero_point=np.arange(4))}, "one zero point"),
        ("MatMul", {"elsewhere": per_tensor("int8", 1)}, "'elsewhere' that the network does not have"),
    ],
)  # fmt: skip
def test_what_no_integer_operator_takes_is_refused(
    operator: str, encodings: dict[str, AnyEncoding], message: str
) -> None:
    size: list[int | str] = [4, 4] if operator == "MatMul" else [1, 4, 4, 4]
    weights = random(4, 4) if operator == "MatMul" else random(4, 4, 1, 1)
    model = load(network([node(operator, "x w", "y")], {"x": size}, ["y"], {"w": weights})).model
    common: dict[str, AnyEncoding] = {"x": AT_RUN_TIME, "w": per_tensor("int8", 0.03)}
    with pytest.raises(PlanError, match=message):
        lower_dynamically(model, hand_plan(common | encodings, mode="dynamic"))


def test_a_plan_of_another_mode_is_refused() -> None:
    model = load(network([node("Exp", "x", "y")], {"x": [2]}, ["y"])).model
    with pytest.raises(PlanError, match="expected a plan of mode dynamic, got static"):
        lower_dynamically(model, hand_plan({}))


def test_the_float_network_is_not_changed() -> None:
    model = load(network([node("MatMul", "x w", "y")], {"x": [2, 4]}, ["y"], {"w": random(4, 4)})).model
    before = ir.to_proto(model).SerializeToString()
    lower_dynamically(model, hand_plan({"x": AT_RUN_TIME, "w": per_tensor("int8", 0.03)}, mode="dynamic"))
    assert ir.to_proto(model).SerializeToString() == before

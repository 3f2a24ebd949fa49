"""QONNX's quantizers in Q/DQ form, against their definition in numpy and the qonnx package where it is installed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import ModelError
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.opening import load
from narrowgauge.importers.qonnx import to_qdq

DOMAIN = "qonnx.custom_op.general"

ROUNDINGS = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.where(x >= 0, np.ceil(x), np.floor(x)),
    "DOWN": np.trunc,
    "HALF_UP": lambda x: np.where(x >= 0, np.floor(x + 0.5), np.ceil(x - 0.5)),
    "HALF_DOWN": lambda x: np.where(x >= 0, np.ceil(x - 0.5), np.floor(x + 0.5)),
}


def quantized(
    x: np.ndarray, scale: Any, zero_point: Any, bits: int, *, signed: bool, narrow: bool, mode: str = "ROUND"
) -> np.ndarray:
    """Quant by its definition."""
    scale, zero_point = np.float32(scale), np.float32(zero_point)
    steps = (x / scale + zero_point).astype(np.float32)
    if bits == 1 and signed:
        levels = np.where(steps >= 0, 1.0, -1.0)
    else:
        low = -(2 ** (bits - 1)) + narrow if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        levels = ROUNDINGS[mode](np.clip(steps, np.float32(low), np.float32(high)))
    return ((levels - zero_point) * scale).astype(np.float32)


def network(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any],
    shape: Sequence[int | None],
    *,
    domain: str = DOMAIN,
    opset: int = 21,
) -> ir.Model:
    """Return a network from "x" to "y"."""
    floats = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "net", [value("x", 1, shape)], [value("y", 1, None)], initializer=floats)
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(domain, 1)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))


def quant_node(
    source: str, result: str, *, signed: bool = True, narrow: bool = False, **attributes: Any
) -> onnx.NodeProto:
    inputs = [source, f"{result}_s", f"{result}_z", f"{result}_b"]
    return onnx.helper.make_node(
        "Quant", inputs, [result], name=f"quant_{result}", domain=attributes.pop("domain", DOMAIN),
        signed=int(signed), narrow=int(narrow), **attributes,
    )  # fmt: skip


def parameters(result: str, scale: Any, zero_point: Any, bits: Any) -> dict[str, np.ndarray]:
    numbers = {"s": scale, "z": zero_point, "b": bits}
    return {f"{result}_{key}": np.asarray(number, dtype=np.float32) for key, number in numbers.items()}


def computed(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(model, threads=1, simulate=True).run(None, {"x": x})[0])


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


INPUT = np.random.default_rng(0).normal(0, 3, (4, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow"), [(bits, *rest) for bits in (2, 3, 4, 7, 8, 12, 16) for rest in
                                   ((True, True), (True, False), (False, False), (False, True))]
)  # fmt: skip
def test_values_on_the_way_become_pairs(bits: int, signed: bool, narrow: bool) -> None:
    zero_point = 0 if signed else 2 ** (bits - 1)
    node = quant_node("x", "y", signed=signed, narrow=narrow)
    model = network([node], parameters("y", 0.37, zero_point, bits), [None, 6])
    rewritten = to_qdq(model)
    assert "QuantizeLinear" in operators(rewritten)
    assert set(operators(rewritten)) <= {"Clip", "QuantizeLinear", "DequantizeLinear"}
    expected = quantized(INPUT, 0.37, zero_point, bits, signed=signed, narrow=narrow)
    np.testing.assert_allclose(computed(rewritten, INPUT), expected, rtol=1e-6, atol=1e-6)
    assert DOMAIN not in rewritten.opset_imports
    assert operators(model) == ["Quant"]


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("constant", [False, True])
def test_every_rounding(mode: str, constant: bool) -> None:
    x = np.arange(-12, 12, dtype=np.float32).reshape(4, 6) / 4
    first = quant_node("w" if constant else "x", "q" if constant else "y", rounding_mode=mode)
    numbers = parameters("q" if constant else "y", 0.5, 0, 4)
    if constant:
        model = network([first, onnx.helper.make_node("Add", ["x", "q"], ["y"])], {**numbers, "w": x}, [4, 6])
    else:
        model = network([first], numbers, [4, 6])
    rewritten = to_qdq(model)
    expected = quantized(x, 0.5, 0, 4, signed=True, narrow=False, mode=mode)
    result = computed(rewritten, np.zeros_like(x) if constant else x)
    np.testing.assert_array_equal(result, expected)
    assert ("DequantizeLinear" in operators(rewritten)) == (constant or mode == "ROUND")


@settings(max_examples=25)
@given(
    bits=st.integers(1, 20),
    signed=st.booleans(),
    narrow=st.booleans(),
    scale=st.sampled_from([0.25, 0.1, 3.0]),
    zero_point=st.sampled_from([0.0, 2.0, 0.5, -3.0]),
    mode=st.sampled_from(list(ROUNDINGS)),
    constant=st.booleans(),
)
def test_any_quantizer_computes_its_definition(
    bits: int, signed: bool, narrow: bool, scale: float, zero_point: float, mode: str, constant: bool
) -> None:
    # Away from ties, which an odd zero point breaks the other way.
    x = (INPUT / np.float32(7)).astype(np.float32)
    first = quant_node("w" if constant else "x", "q", signed=signed, narrow=narrow, rounding_mode=mode)
    nodes = [first, onnx.helper.make_node("Mul", ["x", "q"] if constant else ["q", "one"], ["y"])]
    constants = parameters("q", scale, zero_point, bits) | {"one": np.float32(1)} | ({"w": x} if constant else {})
    result = computed(to_qdq(network(nodes, constants, [4, 6])), np.ones_like(x) if constant else x)
    expected = quantized(x, scale, zero_point, bits, signed=signed, narrow=narrow, mode=mode)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT8"), (4, "INT4"), (8, "INT8"), (12, "INT16"), (32, "INT32")])
def test_weights_become_levels_with_a_scale_for_each_channel(bits: int, kind: str) -> None:
    random = np.random.default_rng(1)
    weights = random.normal(0, 1, (5, 3, 2, 2)).astype(np.float32)
    scale = random.uniform(0.1, 0.3, (5, 1, 1, 1)).astype(np.float32) / 2.0 ** (bits - 4)
    nodes = [quant_node("w", "q", narrow=True), onnx.helper.make_node("Conv", ["x", "q"], ["y"], name="conv")]
    model = network(nodes, parameters("q", scale, 0, bits) | {"w": weights}, [None, 3, 4, 4])
    rewritten = to_qdq(model)
    dequantize = rewritten.graph[0]
    assert dequantize.op_type == "DequantizeLinear"
    levels = dequantize.inputs[0]
    assert levels is not None
    assert levels.dtype == ir.DataType[kind]
    assert dequantize.attributes.get_int("axis", 9) == 0
    x = random.normal(0, 1, (2, 3, 4, 4)).astype(np.float32)
    plain = network([onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
                    {"w": quantized(weights, scale, 0, bits, signed=True, narrow=True)}, [None, 3, 4, 4])  # fmt: skip
    np.testing.assert_allclose(computed(rewritten, x), computed(plain, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_activation_with_a_scale_for_each_channel_behind_another_quantizer(bits: int) -> None:
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(1, 6)
    nodes = [quant_node("x", "q"), quant_node("q", "y", narrow=True)]
    model = network(nodes, parameters("q", 0.01, 0, 16) | parameters("y", scale, 0, bits), [None, 6])
    rewritten = to_qdq(model)
    assert operators(rewritten).count("QuantizeLinear") == 2
    first = quantized(INPUT, 0.01, 0, 16, signed=True, narrow=False)
    expected = quantized(first, scale, 0, bits, signed=True, narrow=True)
    np.testing.assert_allclose(computed(rewritten, INPUT), expected, rtol=1e-5, atol=1e-6)


def test_bipolar_weights_and_activations() -> None:
    weights = np.random.default_rng(2).normal(0, 1, (6, 3)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("BipolarQuant", ["x", "sx"], ["qx"], domain=DOMAIN),
        onnx.helper.make_node("BipolarQuant", ["w", "sw"], ["qw"], domain=DOMAIN),
        onnx.helper.make_node("MatMul", ["qx", "qw"], ["y"]),
    ]
    rewritten = to_qdq(network(nodes, {"w": weights, "sx": np.float32(0.5), "sw": np.float32(0.25)}, [None, 6]))
    expected = (np.where(INPUT >= 0, 0.5, -0.5) @ np.where(weights >= 0, 0.25, -0.25)).astype(np.float32)
    np.testing.assert_allclose(computed(rewritten, INPUT), expected, rtol=1e-6)
    assert operators(rewritten).count("DequantizeLinear") == 1


@pytest.mark.parametrize("mode", ["FLOOR", "ROUND", "CEIL"])
@pytest.mark.parametrize("version", [1, 2])
def test_trunc(mode: str, version: int) -> None:
    x = (np.rint(INPUT * 20) * np.float32(0.25)).astype(np.float32)
    numbers = {"s": 0.25, "z": 0, "i": 10, "t": 1.0, "o": 8}
    names = ["s", "z", "i", "o"] if version == 1 else ["s", "z", "i", "t", "o"]
    node = onnx.helper.make_node("Trunc", ["x", *names], ["y"], domain=DOMAIN, rounding_mode=mode)
    result = computed(to_qdq(network([node], {name: np.float32(numbers[name]) for name in names}, [4, 6])), x)
    steps = ROUNDINGS[mode](np.clip(np.rint(x / 0.25) / 4, *((-np.inf, np.inf) if version == 1 else (-128, 127))))
    np.testing.assert_allclose(result, steps * (0.25 if version == 1 else 1.0), rtol=1e-6)


@pytest.mark.parametrize("domain", [DOMAIN, "onnx.brevitas", "finn.custom_op.general"])
def test_a_network_opens_as_a_float_one_with_its_plan(domain: str) -> None:
    random = np.random.default_rng(3)
    weights = random.normal(0, 1, (6, 5)).astype(np.float32)
    nodes = [
        quant_node("x", "qx", domain=domain),
        quant_node("w", "qw", narrow=True, domain=domain),
        onnx.helper.make_node("MatMul", ["qx", "qw"], ["m"], name="product"),
        onnx.helper.make_node("Relu", ["m"], ["r"], name="relu"),
        quant_node("r", "y", signed=False, domain=domain),
    ]
    constants = {"w": weights} | parameters("qx", 0.05, 0, 8) | parameters("qw", 0.1, 0, 4) | parameters("y", 0.1, 0, 6)
    model = network(nodes, constants, [None, 6], domain=domain)
    imported = load(model)
    assert imported.plan is not None
    encodings = [one for one in imported.plan.encodings.values() if isinstance(one, Encoding)]
    assert sorted(one.type.name for one in encodings) == ["int4", "int8", "uint6"]
    assert sorted(float(one.scale) for one in encodings) == pytest.approx([0.05, 0.1, 0.1])


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (quant_node("x", "y"), parameters("y", 1, 0, 2.5), "bit width"),
        (quant_node("x", "y"), parameters("y", 1, 0, [2, 3]), "bit width"),
        (quant_node("x", "y", rounding_mode="SIDEWAYS"), parameters("y", 1, 0, 4), "rounding_mode"),
        (onnx.helper.make_node("Quant", ["x", "y_s"], ["y"], domain=DOMAIN), parameters("y", 1, 0, 4), "inputs"),
        (onnx.helper.make_node("BipolarQuant", ["x"], ["y"], domain=DOMAIN), {}, "inputs"),
        (onnx.helper.make_node("Trunc", ["x", "y_s"], ["y"], domain=DOMAIN), parameters("y", 1, 0, 4), "inputs"),
        (onnx.helper.make_node("FloatQuant", ["x"], ["y"], domain=DOMAIN), {}, "FloatQuant"),
    ],
)
def test_what_is_not_understood_is_refused(node: onnx.NodeProto, constants: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        to_qdq(network([node], constants, [4, 6]))


def test_zero_sized_weights_and_quantizers_in_a_branch() -> None:
    empty = network(
        [quant_node("w", "q"), onnx.helper.make_node("Concat", ["x", "q"], ["y"], axis=0)],
        parameters("q", 1, 0, 8) | {"w": np.zeros((0, 6), dtype=np.float32)}, [4, 6],
    )  # fmt: skip
    np.testing.assert_array_equal(computed(to_qdq(empty), INPUT), INPUT)
    value = onnx.helper.make_tensor_value_info("inner", 1, None)
    inner = quant_node("x", "y")
    inner.output[0] = "inner"
    branch = onnx.helper.make_graph([inner], "then", [], [value])
    other = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["inner2"])], "else", [],
                                   [onnx.helper.make_tensor_value_info("inner2", 1, None)])  # fmt: skip
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    model = network([node], parameters("y", 0.5, 0, 8) | {"c": np.array(True)}, [4, 6])
    expected = quantized(INPUT, 0.5, 0, 8, signed=True, narrow=False)
    np.testing.assert_allclose(computed(to_qdq(model), INPUT), expected)


def test_the_definition_is_that_of_the_qonnx_package() -> None:
    package = pytest.importorskip("qonnx.custom_op.general.quant", reason="needs QONNX's own executor")
    for bits, signed, narrow, mode in itertools.product((1, 3, 8), (True, False), (True, False), ROUNDINGS):
        theirs = package.quant(
            INPUT, np.float32(0.3), np.float32(0), np.array(bits, dtype=np.float32), signed, narrow, mode
        )
        ours = quantized(INPUT, 0.3, 0, bits, signed=signed, narrow=narrow, mode=mode)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=f"{bits} {signed} {narrow} {mode}")

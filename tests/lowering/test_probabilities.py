"""Levels that are not affine, in Q/DQ networks: the numbers of their definitions; channels spelled out, likewise."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import AnyEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PerTensor, PowerOfTwoFactor
from narrowgauge.core.logarithmic import dequantize_logarithm, quantize_logarithm
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.lowering.probabilities import (
    is_kept,
    keep_encoding,
    logarithm_of,
    probabilities_behind,
    probabilities_of,
    shares_of,
)
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.planning.networks import network, normal, run

UINT4, UINT8 = integer_type("uint4"), integer_type("uint8")
LOGARITHMS = [
    LogEncoding(type=UINT4),
    LogEncoding(type=integer_type("uint3")),
    LogEncoding(type=UINT4, threshold="square_root_of_two"),
    LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two"),
]


def lowered(
    encoding: AnyEncoding, body: str = "y = Abs(x)", style: QdqStyle | None = None, *, name: str = "x",
    **weights: np.ndarray,
) -> ir.Model:  # fmt: skip
    model = network("float[n, 6] x", "float[n, k] y", body, **weights)
    return lower_to_qdq(model, Plan(target="t", encodings={name: encoding}), style)


@pytest.mark.parametrize("encoding", LOGARITHMS)
def test_logarithms_are_those_of_the_definition(encoding: LogEncoding) -> None:
    generator = np.random.default_rng(0)
    ratios = np.arange(4, 16385) / 4
    ratios = ratios[ratios % 1 != 0.5]  # a tie of the ratios is one in exact arithmetic only
    numbers = np.concatenate([1 / ratios, generator.uniform(0, 1, 3001), 2.0 ** -np.arange(0, 30), [0.0]])
    x = numbers[: len(numbers) // 6 * 6].reshape(-1, 6).astype(np.float32)
    wanted = quantize_logarithm(x, encoding)
    network = lowered(encoding)
    values = {str(value.name): value for node in network.graph for value in node.outputs}
    np.testing.assert_array_equal(run(network, x), dequantize_logarithm(wanted, encoding))
    found = logarithm_of(values["x_dequantized"])
    assert found is not None
    assert (found[0].name, found[1]) == ("x_quantized", encoding)
    assert logarithm_of(values["x_quantized"]) is None


@pytest.mark.parametrize("encoding", LOGARITHMS)
def test_logarithms_of_a_row_count_from_its_greatest_and_add_up_to_one(encoding: LogEncoding) -> None:
    x = np.float32(np.random.default_rng(1).uniform(0, 0.3, (50, 6)) ** 3)
    x[7] = 0
    normalized = dataclasses.replace(encoding, normalized=True)
    network = lowered(normalized)
    peak = np.maximum(x.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    parts = dequantize_logarithm(quantize_logarithm(x / peak, encoding), encoding)
    wanted = parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(run(network, x), wanted, rtol=1e-6)
    found = logarithm_of(next(v for node in network.graph for v in node.outputs if v.name == "x_dequantized"))
    assert found is not None
    assert found[1] == normalized


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for value in [*model.graph.inputs, *(v for one in model.graph for v in one.outputs)]}


ALL = [
    *LOGARITHMS,
    *(dataclasses.replace(one, normalized=True) for one in LOGARITHMS),
    *(NormalizedEncoding(type=integer_type(name)) for name in ("uint4", "uint8", "uint11", "uint16")),
]


@pytest.mark.parametrize("encoding", ALL)
def test_levels_and_encoding_are_read_back_from_either_end(encoding: LogEncoding | NormalizedEncoding) -> None:
    values = values_of(lowered(encoding, "s = Softmax<axis = -1>(x) y = Abs(s)", name="s"))
    found = probabilities_of(values["s_dequantized"])
    assert found is not None
    assert (found[0].name, found[1]) == ("s_quantized", encoding)
    assert probabilities_behind(values["s"]) == found
    assert (shares_of(values["s_dequantized"]) is None) == isinstance(encoding, LogEncoding)
    assert [name for name in ("x", "s_quantized", "y") if probabilities_behind(values[name]) is not None] == []
    assert [name for name in ("x", "s", "s_quantized", "y") if probabilities_of(values[name]) is not None] == []


@pytest.mark.parametrize("encoding", ALL)
def test_levels_that_other_nodes_write_keep_their_encoding(encoding: LogEncoding | NormalizedEncoding) -> None:
    values = values_of(lowered(encoding))
    levels = values["x_quantized"]
    written = ir.Value(name="other", shape=levels.shape, type=levels.type)
    levels.replace_all_uses_with(written)
    assert probabilities_of(values["x_dequantized"]) is None
    assert not is_kept(written)
    keep_encoding(written, encoding)
    assert probabilities_of(values["x_dequantized"]) == (written, encoding)
    assert is_kept(written)


def test_a_value_that_is_computed_before_it_is_rounded_is_not_the_rounded_one() -> None:
    body = "s = Softmax<axis = -1>(x) t = Mul(s, factor) y = Abs(t)"
    values = values_of(lowered(LogEncoding(type=UINT4), body, name="t", factor=np.float32(0.5)))
    assert probabilities_behind(values["s"]) is None
    assert probabilities_behind(values["t"]) is not None


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), min_size=1, max_size=4))
def test_shares_use_all_levels_of_each_row_and_add_up_to_one(rows: list[list[float]]) -> None:
    x = np.float32(rows)
    found = run(lowered(NormalizedEncoding(type=UINT8)), x)
    peak = np.maximum(x.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    levels = np.rint(np.float32(x / peak) * np.float32(255))
    wanted = levels / np.maximum(levels.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16"])
def test_channels_that_are_spelled_out_are_the_same_numbers(kind: str) -> None:
    levels = integer_type(kind)
    encoding = Encoding(
        type=levels,
        granularity=PowerOfTwoFactor(-1),
        scale=np.ldexp(np.float32(0.037), np.array([0, 1, 2, 5, 0, 1], dtype=np.int32)),
        zero_point=np.array([levels.minimum, 3, 100, 7, levels.maximum, 0], dtype=np.int32),
    )
    x = np.concatenate([normal(200, 6) * 9, np.arange(-300, 300).reshape(-1, 6) / 2 * encoding.scale])
    x = np.concatenate([x, np.full((1, 6), 1e30), np.full((1, 6), -1e30)]).astype(np.float32)
    plain = run(lowered(encoding), x)
    np.testing.assert_array_equal(plain, np.abs(round_trip(x, encoding)))
    np.testing.assert_array_equal(run(lowered(encoding, style=QdqStyle(spell_out_channels=True)), x), plain)


def test_the_bias_of_a_layer_that_reads_a_factor_counts_in_its_smallest_step() -> None:
    model = network(
        "float[n, 6] x", "float[n, 3] y", "y = Gemm(x, w, b)", w=normal(6, 3), b=normal(3),
    )  # fmt: skip
    scale = np.ldexp(np.float32(0.02), np.array([0, 1, 2, 3, 0, 1], dtype=np.int32))
    factor = Encoding(type=UINT8, granularity=PowerOfTwoFactor(-1), scale=scale, zero_point=np.full(6, 128))
    weights = Encoding(
        type=integer_type("int8"), granularity=PerTensor(), scale=np.float32(0.03), zero_point=np.int32(0)
    )
    network_ = lower_to_qdq(model, Plan(target="t", encodings={"x": factor, "w": weights}))
    bias = network_.graph.initializers["b_scale"].const_value
    assert bias is not None
    np.testing.assert_allclose(bias.numpy(), np.float32(0.02) * np.float32(0.03), rtol=1e-6)
    feed = normal(20, 6, seed=4)
    np.testing.assert_allclose(run(network_, feed), run(model, feed), atol=0.6)


def test_what_nobody_reads_is_not_rounded() -> None:
    model = network("float[n, 6] x", "float[n, 6] y", "y = Abs(x)")
    encodings = {"x": LogEncoding(type=UINT4)}
    plan = Plan(target="t", encodings=encodings, float_nodes=())
    assert any(node.op_type == "Log" for node in lower_to_qdq(model, plan).graph)
    node = model.graph[0]

    plan = Plan(
        target="t", encodings=encodings, float_nodes=(FloatNode(name=str(node.name), operator="Abs", reason=""),)
    )
    assert [one.op_type for one in lower_to_qdq(model, plan).graph] == ["Abs"]


def test_an_output_of_the_network_keeps_its_name() -> None:
    model = network("float[n, 6] x", "float[n, 6] y", "y = Softmax<axis = -1>(x)")
    plan = Plan(target="t", encodings={"y": LogEncoding(type=UINT4)})
    found = lower_to_qdq(model, plan)
    assert [output.name for output in found.graph.outputs] == ["y"]
    assert isinstance(found, ir.Model)
    assert set(np.unique(run(found, normal(9, 6) * 4))) <= set(LogEncoding(type=UINT4).values)

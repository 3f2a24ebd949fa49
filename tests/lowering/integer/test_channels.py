"""Levels with a power-of-two factor in integers: products, sums, tables, moves, against the real network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.integer_only import INTEGER_ONLY
from narrowgauge.core.engines.integer_sums import weighted_sum
from narrowgauge.core.engines.kernels import UNBOUNDED
from narrowgauge.core.granularity import PerAxis, PowerOfTwoFactor
from narrowgauge.core.numbers import integer_type
from narrowgauge.lowering.integer.network import integer_network
from tests.lowering.integer.networks import encoding, levels_of, lowered, random_levels, simulated
from tests.passes.networks import node

SIZE = 6


def factor(rng: np.random.Generator, kind: str = "uint8", *, size: int = SIZE, base: float = 0.01) -> Encoding:
    """A shift and a zero point for each channel."""
    found = integer_type(kind)
    shifts = rng.integers(0, 6, size)
    shifts[rng.integers(size)] = 0
    return Encoding(
        type=found, granularity=PowerOfTwoFactor(-1), scale=np.ldexp(np.float32(base), shifts).astype(np.float32),
        zero_point=rng.integers(found.minimum, found.maximum + 1, size).astype(np.int32),
    )  # fmt: skip


def run(nodes: list, kinds: Mapping[str, Encoding], constants: Mapping[str, np.ndarray], feed: dict[str, np.ndarray]):
    """Lower a network, check that nothing is real inside, and return its levels by name."""
    shapes = {name: ["n" if len(levels) > 1 else 1, *levels.shape[1:]] for name, levels in feed.items()}
    qdq = simulated(nodes, shapes, kinds, constants, bias_bits=32)
    found = lowered(qdq, INTEGER_ONLY)
    assert found.refusals == ()
    reals = {
        name: ((levels - kinds[name].zero_point) * kinds[name].scale.astype(np.float64)).astype(np.float32)
        for name, levels in feed.items()
    }
    result = levels_of(found.model, reals)
    for name, levels in feed.items():
        np.testing.assert_array_equal(result[f"{name}_quantized"], levels)
    return result


def near(found: np.ndarray, real: np.ndarray, kind: Encoding) -> None:
    """Whether levels are real numbers rounded once, but for what lies next to a tie."""
    exact = np.clip(real / kind.scale.astype(np.float64) + kind.zero_point, kind.type.minimum, kind.type.maximum)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3


def values(levels: np.ndarray, kind: Encoding) -> np.ndarray:
    return np.asarray((levels.astype(np.int64) - kind.zero_point) * kind.scale.astype(np.float64))


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
@pytest.mark.parametrize("kinds", ["uint8 uint8", "int8 uint8", "uint8 int8", "uint8 int16"])
@pytest.mark.parametrize("factors", ["input", "output", "both"])
@pytest.mark.parametrize("activation", ["", "Relu"])
def test_a_layer_takes_shifts_on_both_sides(operator: str, kinds: str, factors: str, activation: str) -> None:
    rng = np.random.default_rng(len(kinds) + len(factors))
    first, last = kinds.split()
    input = factor(rng, first) if factors != "output" else encoding(first, 0.02, 3)
    output = factor(rng, last, size=4, base=0.03) if factors != "input" else encoding(last, 0.3, 2)
    shape = (3, SIZE) if operator == "Gemm" else (2, 3, SIZE)
    levels = random_levels(rng, shape, input)
    matrix = rng.integers(-127, 128, (SIZE, 4))
    weights = Encoding(
        type=integer_type("int8_narrow"), granularity=PerAxis(1),
        scale=rng.uniform(0.001, 0.01, 4).astype(np.float32), zero_point=np.zeros(4, np.int32),
    )  # fmt: skip
    real = (matrix * weights.scale.astype(np.float64)).astype(np.float32)
    unit = float(input.scale.min()) * weights.scale.astype(np.float64)
    bias = (rng.integers(-300, 300, 4) * unit).astype(np.float32)
    name = "z" if activation else "y"
    nodes = [node("Gemm", "x w b", name)] if operator == "Gemm" else [
        node("MatMul", "x w", "p"), node("Add", "p b", name)
    ]  # fmt: skip
    nodes += [node(activation, name, "y")] if activation else []
    result = run(nodes, {"x": input, "w": weights, "y": output}, {"w": real, "b": bias}, {"x": levels})
    exact = values(levels, input) @ (matrix * weights.scale.astype(np.float64)) + np.rint(bias / unit) * unit
    near(result["y_quantized"], np.maximum(exact, 0) if activation else exact, output)


@given(st.integers(0, 30), st.sampled_from(["Add", "Sub"]), st.booleans(), st.booleans(), st.booleans())
def test_sums_of_tensors_are_the_weighted_sum(seed: int, operator: str, one: bool, other: bool, out: bool) -> None:
    rng = np.random.default_rng(seed)
    kinds = {
        "a": factor(rng) if one else encoding("int16", 0.001),
        "b": factor(rng) if other else encoding("int8", 0.05, -9),
        "y": factor(rng, base=0.02) if out else encoding("int16", 0.002),
    }  # fmt: skip
    feed = {"a": random_levels(rng, (2, 3, SIZE), kinds["a"]), "b": random_levels(rng, (1, 3, SIZE), kinds["b"])}
    result = run([node(operator, "a b", "y")], kinds, {}, feed)
    form = weighted_sum((kinds["a"], kinds["b"]), kinds["y"], signs=(1, -1) if operator == "Sub" else (1, 1))
    expected = form.levels(feed["a"].astype(np.int64), feed["b"].astype(np.int64))
    np.testing.assert_array_equal(result["y_quantized"], expected)


def test_one_number_for_all_channels_is_added_to_each() -> None:
    rng = np.random.default_rng(10)
    kinds = {"a": encoding("int8", 0.05, -9), "b": factor(rng), "y": factor(rng, base=0.02)}
    feed = {"a": random_levels(rng, (2, 5, 1), kinds["a"]), "b": random_levels(rng, (2, 5, SIZE), kinds["b"])}
    result = run([node("Add", "a b", "y")], kinds, {}, feed)  # checks every shape
    form = weighted_sum((kinds["a"], kinds["b"]), kinds["y"])
    expected = form.levels(feed["a"].astype(np.int64), feed["b"].astype(np.int64))
    np.testing.assert_array_equal(result["y_quantized"], expected)


def long_layer(size: int) -> tuple[dict[str, Encoding], dict[str, np.ndarray]]:
    """Greatest weights of many inputs, shifted by up to 10, zero points of 0, and the encoding of their sum."""
    kind = Encoding(
        type=integer_type("uint8"), granularity=PowerOfTwoFactor(-1),
        scale=np.ldexp(np.float32(0.5), np.arange(size) % 11).astype(np.float32), zero_point=np.zeros(size, np.int32),
    )  # fmt: skip
    weights = encoding("int8_narrow", 0.5)
    return {"x": kind, "w": weights, "y": encoding("uint8", size * 2.0**13)}, {
        "w": np.full((size, 1), 63.5, np.float32)
    }


def test_sums_of_shifted_weights_exceed_32_bits() -> None:
    kinds, constants = long_layer(4096)
    feed = {"x": np.full((1, 4096), 255, np.uint8)}
    result = run([node("MatMul", "x w", "y")], kinds, constants, feed)
    exact = values(feed["x"], kinds["x"]) @ constants["w"].astype(np.float64)
    assert exact.max() / 0.25 > 2**32  # in the unit of the sums
    assert 0 < result["y_quantized"].item() < 255
    near(result["y_quantized"], exact, kinds["y"])


def test_more_inputs_than_digits_add_up_of_in_32_bits_are_refused() -> None:
    kinds, constants = long_layer(65_794)
    found = integer_network(simulated([node("MatMul", "x w", "y")], {"x": [1, 65_794]}, kinds, constants), INTEGER_ONLY)
    assert [one.reason for one in found.refusals] == ["it adds up 65794 products, of at most 65793 32 bits hold"]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_has_a_table_for_each_channel(approximate: str) -> None:
    rng = np.random.default_rng(5)
    kinds = {"x": factor(rng, "int8"), "y": factor(rng, base=0.02)}
    feed = {"x": random_levels(rng, (2, 50, SIZE), kinds["x"])}
    result = run([node("Gelu", "x", "y", approximate=approximate)], kinds, {}, feed)
    table = INTEGER_ONLY.unary("Gelu", {"approximate": approximate}, kinds["x"], kinds["y"], UNBOUNDED)
    np.testing.assert_array_equal(result["y_quantized"], table[np.arange(SIZE), feed["x"].astype(np.int64) + 128])


def test_moves_keep_the_channels_in_place() -> None:
    rng = np.random.default_rng(6)
    kind = factor(rng)
    again = factor(rng, "int8", base=0.02)
    feed = {"x": random_levels(rng, (2, 4, SIZE), kind)}
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t shape", "r"),
        node("Concat", "r r", "y", axis=0),
    ]  # fmt: skip
    constants = {"shape": np.array([-1, SIZE])}
    result = run(nodes, {"x": kind, "t": kind, "r": kind, "y": again}, constants, feed)
    moved = feed["x"].transpose(1, 0, 2).reshape(-1, SIZE)
    np.testing.assert_array_equal(result["r_quantized"], moved)
    expected = weighted_sum((kind,), again).levels(np.concatenate([moved, moved]).astype(np.int64))
    np.testing.assert_array_equal(result["y_quantized"], expected)


def test_joined_channels_each_have_their_own_scale() -> None:
    rng = np.random.default_rng(9)
    kinds = {"a": factor(rng, size=2), "b": encoding("int16", 0.002), "y": factor(rng, base=0.02)}
    feed = {"a": random_levels(rng, (2, 3, 2), kinds["a"]), "b": random_levels(rng, (2, 3, 4), kinds["b"])}
    result = run([node("Concat", "a b", "y", axis=-1)], kinds, {}, feed)
    joined = np.concatenate([values(feed[name], kinds[name]) for name in ("a", "b")], axis=-1)
    near(result["y_quantized"], joined, kinds["y"])


def test_channels_that_leave_their_axis_are_refused() -> None:
    kind = factor(np.random.default_rng(7))
    nodes = [node("Transpose", "x", "y", perm=[0, 2, 1])]
    found = integer_network(simulated(nodes, {"x": [1, SIZE, SIZE]}, {"x": kind, "y": kind}), INTEGER_ONLY)
    assert [one.operator for one in found.refusals] == ["Transpose"]
    assert "a scale for each channel" in found.refusals[0].reason


@pytest.mark.parametrize("rule", ["xnnpack", "fbgemm", "openvino"])
def test_engines_without_them_refuse_shifts(rule: str) -> None:
    kind = factor(np.random.default_rng(8))
    nodes = [node("Relu", "x", "y")]
    found = integer_network(simulated(nodes, {"x": [1, SIZE]}, {"x": kind, "y": kind}), KERNELS[rule])
    assert [one.operator for one in found.refusals] == ["Relu"]

"""The arithmetic of integer-only: every number rounded once, half up, against float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.integer_only import INTEGER_ONLY, shifted_weights
from narrowgauge.core.engines.kernels import UNBOUNDED, Layer
from narrowgauge.core.granularity import PerAxis, PerTensor, PowerOfTwoFactor
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError


def one(kind: str, scale: float, zero_point: int = 0) -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerTensor(), scale=np.asarray(scale, np.float32),
        zero_point=np.asarray(zero_point, np.int32),
    )  # fmt: skip


def many(kind: str, scales: list[float], zero_points: list[int]) -> Encoding:
    return Encoding(
        type=integer_type(kind), granularity=PerAxis(-1), scale=np.asarray(scales, np.float32),
        zero_point=np.asarray(zero_points, np.int32),
    )  # fmt: skip


def half_up(real: np.ndarray, output: Encoding) -> np.ndarray:
    levels = np.floor(real / output.scale.astype(np.float64) + 0.5) + output.zero_point
    return np.clip(levels, output.type.minimum, output.type.maximum).astype(np.int64)


@given(
    st.integers(0, 99), st.sampled_from([one("uint8", 0.04, 7), one("int8", 0.003, -3), one("int16", 1e-4),
                                         many("uint8", [0.01, 0.02, 0.08], [0, 128, 255])]),
)  # fmt: skip
def test_a_layer_s_sum_and_its_bias_are_rounded_once(seed: int, output: Encoding) -> None:
    rng = np.random.default_rng(seed)
    input, weights = one("uint8", 0.02, 30), many("int8", rng.uniform(1e-3, 1e-2, 3).tolist(), [0] * 3)
    unit = input.scale.astype(np.float64) * weights.scale.astype(np.float64)
    bias = rng.integers(-(2**15), 2**15, 3) * unit
    form = INTEGER_ONLY.layer(Layer(kind="product", input=input, weights=weights, output=output, bias=bias))
    assert form.bias is not None
    sums = rng.integers(-(2**18), 2**18, (400, 3))
    found = form.rescale.levels(sums + form.bias)
    exact = (sums * unit + bias) / output.scale.astype(np.float64) + output.zero_point
    clipped = np.clip(exact, output.type.minimum, output.type.maximum)
    assert (np.abs(found - clipped) <= 0.5 + 1e-4).all()


def test_a_bias_that_no_integer_holds_is_refused() -> None:
    layer = Layer(
        kind="product", input=one("uint8", 2.0**-60), weights=one("int8", 2.0**-10), output=one("uint8", 0.1),
        bias=np.ones(3),
    )  # fmt: skip
    with pytest.raises(PlanError, match=r"a bias is 1.2e\+21 units of its sums"):
        INTEGER_ONLY.layer(layer)


def test_shifts_of_the_inputs_are_shifts_of_the_weights() -> None:
    rng = np.random.default_rng(3)
    shifts, points = rng.integers(0, 6, 8), rng.integers(0, 256, 8)
    input = Encoding(
        type=integer_type("uint8"), granularity=PowerOfTwoFactor(-1),
        scale=np.ldexp(np.float32(0.01), shifts).astype(np.float32), zero_point=points.astype(np.int32),
    )  # fmt: skip
    weights = rng.integers(-127, 128, (5, 8))
    levels = rng.integers(0, 256, (4, 8))
    wide, taken, base = shifted_weights(weights, input)
    real = ((levels - points) * input.scale.astype(np.float64)) @ weights.T
    np.testing.assert_allclose((levels @ wide.T - taken) * np.float64(base.scale), real, rtol=1e-12)
    with pytest.raises(PlanError, match="a scale for each of 7 inputs, got 8"):
        shifted_weights(weights[:, :7], input)


erf = np.vectorize(math.erf)

FUNCTIONS = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Tanh": np.tanh, "Erf": erf, "Neg": np.negative, "Abs": np.abs,
    "Gelu": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))), "HardSwish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "LeakyRelu": lambda x: np.where(x < 0, 0.01 * x, x), "Elu": lambda x: np.where(x < 0, np.expm1(x), x),
    "Softplus": lambda x: np.log1p(np.exp(x)), "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "Exp": np.exp, "Relu": lambda x: np.maximum(x, 0),
}  # fmt: skip


@pytest.mark.parametrize("operator", FUNCTIONS)
@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_tables_have_every_level(operator: str, kind: str) -> None:
    input = one(kind, 0.03 if kind == "uint8" else 1.2e-4, 120 if kind == "uint8" else 0)
    output = one("int8", 0.02, 5)
    levels = np.arange(input.type.minimum, input.type.maximum + 1)
    real = (levels - int(input.zero_point)) * np.float64(input.scale)
    found = INTEGER_ONLY.unary(operator, {}, input, output, (-np.inf, 1.5))
    expected = half_up(np.minimum(FUNCTIONS[operator](real), 1.5), output)
    # The numbers that lie next to a tie may differ by what float64 leaves of it, or by a bit of a multiplier.
    assert (found != expected).mean() < 0.001
    assert np.abs(found - expected).max() <= 1


def test_a_table_for_each_channel() -> None:
    input, output = many("uint8", [0.01, 0.02], [100, 50]), many("uint8", [0.02, 0.01], [9, 10])
    found = INTEGER_ONLY.unary("Gelu", {"approximate": "tanh"}, input, output, UNBOUNDED)
    assert found.shape == (2, 256)
    for channel in range(2):
        alone = [one("uint8", float(kind.scale[channel]), int(kind.zero_point[channel])) for kind in (input, output)]
        expected = INTEGER_ONLY.unary("Gelu", {"approximate": "tanh"}, alone[0], alone[1], UNBOUNDED)
        np.testing.assert_array_equal(found[channel], expected)
    with pytest.raises(PlanError, match="a table for each channel has 8-bit levels"):
        INTEGER_ONLY.unary("Gelu", {}, one("int16", 1e-4), output, UNBOUNDED)


@pytest.mark.parametrize("count", [1, 9, 49, 1000])
def test_means(count: int) -> None:
    input, output = one("uint8", 0.03, 77), one("uint8", 0.011, 20)
    sums = np.linspace(0, 255 * count, 513).astype(np.int64)
    real = (sums - 77 * count) * np.float64(input.scale) / count
    form = INTEGER_ONLY.mean(input, output, count)
    assert form.bias is not None
    np.testing.assert_array_equal(form.rescale.levels(sums + form.bias), half_up(real, output))
    np.testing.assert_array_equal(INTEGER_ONLY.average_pool(input, output, count).levels(sums), half_up(real, output))


def test_what_is_not_known_is_refused() -> None:
    kind = one("uint8", 0.1)
    with pytest.raises(PlanError, match="no integer arithmetic is known for Sin"):
        INTEGER_ONLY.unary("Sin", {}, kind, kind, UNBOUNDED)
    with pytest.raises(PlanError, match="for Max of two tensors"):
        INTEGER_ONLY.pair("Max", kind, kind, kind, UNBOUNDED)
    with pytest.raises(PlanError, match="count parts of 1"):
        INTEGER_ONLY.softmax(kind, one("uint8", 0.3), 4)
    several = many("uint8", [0.1, 0.2], [3, 9])
    with pytest.raises(PlanError, match="its bound is many levels"):
        INTEGER_ONLY.layer(Layer(kind="product", input=kind, weights=kind, output=several, bounds=(0.0, np.inf)))

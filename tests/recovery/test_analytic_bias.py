"""Expected moments against sampled ones, and the bias correction that uses them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.numbers import integer_type
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.recovery.analytic_bias import (
    Moments,
    clipped_normal,
    correct_bias_analytically,
    expected_moments,
    rescaled_moments,
)
from narrowgauge.recovery.equalize import equalize
from tests.planning.networks import network, normal, planned, run, seen

INFINITY = float("inf")


@given(
    mean=st.floats(-4, 4), deviation=st.floats(0.01, 3), low=st.sampled_from([-INFINITY, 0.0, -1.0]),
    high=st.sampled_from([1.0, 6.0, INFINITY]),
)  # fmt: skip
def test_a_clipped_normal_has_the_moments_of_its_samples(
    mean: float, deviation: float, low: float, high: float
) -> None:
    points = (np.arange(20_000) + 0.5) / 20_000
    quantiles = np.interp(points, NORMAL_SHARES, NORMAL_POINTS)
    samples = np.clip(mean + deviation * quantiles, low, high)
    found, spread = clipped_normal(np.array([mean]), np.array([deviation]), low, high)
    np.testing.assert_allclose(found, samples.mean(), atol=2e-3)
    np.testing.assert_allclose(spread, samples.std(), atol=5e-3)


def _shares(points: np.ndarray) -> np.ndarray:
    """Share of a normal variable below each point, by summing its density."""
    density = np.exp(-(points**2) / 2)
    return np.cumsum(density) / density.sum()


NORMAL_POINTS = np.linspace(-7, 7, 200_001)
NORMAL_SHARES = _shares(NORMAL_POINTS)


def test_a_variable_without_deviation_is_clipped_itself() -> None:
    mean, deviation = clipped_normal(np.array([-1.0, 2.0, 9.0]), np.zeros(3), 0.0, 6.0)
    np.testing.assert_allclose(mean, [0, 2, 6])
    np.testing.assert_allclose(deviation, 0, atol=1e-12)


def independent(**more: np.ndarray) -> ir.Model:
    weights = {
        "w": normal(24, 16) / 4, "b": normal(24, seed=1), "v": normal(24, 8, seed=2) / 5, "c": normal(8, seed=3),
        "low": np.float32(0), "high": np.float32(1.5),
    }  # fmt: skip
    body = "h = Gemm<transB = 1>(x, w, b)  r = Clip(h, low, high)  m = MatMul(r, v)  y = Add(m, c)"
    return network("float[n, 16] x", "float[n, 8] y", body, **weights, **more)


def test_moments_go_through_layers_as_samples_do() -> None:
    model = independent()
    known = expected_moments(model, {"x": Moments(axis=1, mean=np.zeros(16), deviation=np.ones(16))})
    model.graph.outputs[:] = [value for node in model.graph for value in node.outputs]
    samples = normal(50_000, 16, seed=7)
    for number, value in enumerate(list(model.graph.outputs)):
        alone = model.clone()
        alone.graph.outputs[:] = [alone.graph.outputs[number]]
        found = run(alone, samples)
        np.testing.assert_allclose(known[str(value.name)].mean, found.mean(axis=0), atol=0.03)
        if value.name in {"h", "r"}:  # behind, channels depend on each other
            np.testing.assert_allclose(known[str(value.name)].deviation, found.std(axis=0), atol=0.03)


def test_nothing_is_known_without_inputs_or_normalizations() -> None:
    assert expected_moments(independent()) == {}


def normalized() -> ir.Model:
    body = "a = Conv(x, w)  n = BatchNormalization(a, gamma, beta, mean, variance)  r = Relu(n)  y = Conv(r, v, b)"
    return network(
        "float[n, 3, 8, 8] x", "float[n, 4, 8, 8] y", body, w=normal(6, 3, 1, 1), v=normal(4, 6, 1, 1, seed=1),
        b=normal(4), gamma=-np.abs(normal(6, seed=2)), beta=normal(6, seed=3), mean=normal(6, seed=4),
        variance=np.abs(normal(6, seed=5)),
    )  # fmt: skip


def test_a_normalization_says_its_moments() -> None:
    known = expected_moments(normalized())
    np.testing.assert_array_equal(known["n"].mean, normal(6, seed=3))
    np.testing.assert_array_equal(known["n"].deviation, np.abs(normal(6, seed=2)))
    expected, _ = clipped_normal(known["n"].mean, known["n"].deviation, 0, INFINITY)
    np.testing.assert_allclose(known["r"].mean, expected)
    np.testing.assert_allclose(
        known["y"].mean, normal(4, 6, 1, 1, seed=1)[:, :, 0, 0] @ expected + normal(4), rtol=1e-5
    )


def test_moments_follow_an_equalization() -> None:
    model = independent()
    inputs = {"x": Moments(axis=1, mean=np.zeros(16), deviation=np.ones(16))}
    changed, _, done = equalize(model)
    scaled, fresh = rescaled_moments(expected_moments(model, inputs), done), expected_moments(changed, inputs)
    assert done
    for name in ("h", "r", "m", "y"):
        np.testing.assert_allclose(scaled[name].mean, fresh[name].mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scaled[name].deviation, fresh[name].deviation, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_mean_error_of_rounded_weights_goes_without_data(bits: str) -> None:
    model = independent()
    samples = normal(20_000, 16, seed=8)
    plan = planned(
        model, seen(model, normal(64, 16, seed=9)), "tflite", granularity="tensor", weights=integer_type(bits)
    )
    only_weights = type(plan)(
        target=plan.target, encodings={name: one for name, one in plan.encodings.items() if name in {"w", "v"}}
    )
    moments = expected_moments(model, {"x": Moments(axis=1, mean=np.zeros(16), deviation=np.ones(16))})
    corrected, _ = correct_bias_analytically(model, only_weights, moments)
    reference = run(model, samples)
    errors = [
        np.abs((run(lower_to_qdq(network, only_weights), samples) - reference).mean(axis=0)).max()
        for network in (model, corrected)
    ]
    assert errors[1] < 0.5 * errors[0]

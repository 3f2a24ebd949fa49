"""High biases move into the next layer, where hardly anything is cut off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.recovery.absorb import absorb_high_biases
from narrowgauge.recovery.analytic_bias import Moments, expected_moments
from tests.planning.networks import network, normal, run, seen, weights_of

HIGH = np.array([8, -2, 6, 0, 9, 0.5], np.float32)


def high_biases(pads: int = 0, between: str = "r = Relu(a)", **more: np.ndarray) -> ir.Model:
    body = f"a = Conv(x, w, b)  {between}  y = Conv<pads = [{pads}, {pads}, {pads}, {pads}]>(r, v, c)"
    weights = {
        "w": normal(6, 4, 1, 1) / 2, "b": HIGH, "v": normal(3, 6, 3, 3, seed=1) / 5, "c": normal(3, seed=2),
    } | more  # fmt: skip
    return network("float[n, 4, 8, 8] x", "float y", body, **weights)


INPUT = {"x": Moments(axis=1, mean=np.zeros(4), deviation=np.ones(4))}


def exact(model: ir.Model) -> dict[str, Moments]:
    """Moments of the first layer, which are exact, since its inputs are independent."""
    return {name: replace(found, rough=False) for name, found in expected_moments(model, INPUT).items()}


SAMPLES = normal(64, 4, 8, 8, seed=4)


def test_the_bias_moves_and_the_function_hardly_changes() -> None:
    model = high_biases()
    moments = exact(model)
    changed, (done,) = absorb_high_biases(model, moments)
    expected = np.maximum(moments["a"].mean - 3 * moments["a"].deviation, 0)
    np.testing.assert_allclose(done.amounts, expected)
    np.testing.assert_allclose(weights_of(changed, "b"), HIGH - expected, rtol=1e-5)
    before, after = run(model, SAMPLES), run(changed, SAMPLES)
    assert np.abs(after - before).mean() < 2e-3 * before.std()
    assert (done.clipped[expected > 0] > 0).all()
    assert (done.clipped < 4e-4 * moments["a"].deviation).all()
    reach = [seen(one, SAMPLES).of("r").maximum for one in (model, changed)]
    assert reach[1] < 0.8 * reach[0]


def test_caps_move_along() -> None:
    cap = np.array([10, 1, 7, 1, 5, 1], np.float32).reshape(6, 1, 1)
    model = high_biases(between="u = Relu(a)  r = Min(u, cap)", cap=cap)
    changed, (done,) = absorb_high_biases(model, exact(model))
    np.testing.assert_allclose(weights_of(changed, "cap").reshape(-1), cap.reshape(-1) - done.amounts, rtol=1e-5)
    assert done.amounts[4] == 0  # its cap lies below what would be absorbed
    before, after = run(model, SAMPLES), run(changed, SAMPLES)
    assert np.abs(after - before).mean() < 2e-3 * before.std()


@pytest.mark.parametrize(
    "model", [high_biases(pads=1), high_biases(between="r = Sigmoid(a)"), high_biases(b=-np.abs(HIGH))]
)
def test_what_cannot_take_it_stays(model: ir.Model) -> None:
    assert absorb_high_biases(model, exact(model)) == (model, ())


def test_without_moments_nothing_happens() -> None:
    model = high_biases()
    assert absorb_high_biases(model, {}) == (model, ())


def test_rough_moments_are_not_used() -> None:
    model = high_biases()
    assert absorb_high_biases(model, expected_moments(model, INPUT)) == (model, ())


def test_with_statistics_nothing_that_was_seen_is_cut_off() -> None:
    model = high_biases()
    changed, (done,) = absorb_high_biases(model, statistics=seen(model, SAMPLES))
    assert (done.amounts > 0).sum() >= 2
    np.testing.assert_array_equal(done.clipped, 0)
    expected = run(model, SAMPLES)
    np.testing.assert_allclose(run(changed, SAMPLES), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

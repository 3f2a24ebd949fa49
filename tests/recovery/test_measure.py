"""The noise at the output: error energy over signal energy, of each output by its own."""

import math

import numpy as np
import pytest

from narrowgauge.core.plan import Plan
from narrowgauge.errors import DataError, RuntimeFailure
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.recovery.measure import OutputNoise
from tests.calibration.networks import batches_of
from tests.planning.networks import network, normal, planned, run, seen

NETWORK = network("float[n, 8] x", "float[n, 4] y, float[n, 8] z", "y = MatMul(x, w)  z = Tanh(x)", w=normal(8, 4))
FEED = normal(12, 8, seed=1)


def test_noise_of_a_plan_is_that_of_its_simulation() -> None:
    one = network("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", w=normal(8, 4))
    plan = planned(one, seen(one, FEED), "tflite")
    reference, candidate = run(one, FEED), run(lower_to_qdq(one, plan), FEED)
    expected = np.square(candidate - reference).sum() / np.square(reference).sum()
    assert OutputNoise(one, list(batches_of(one, {"x": FEED}))).of(one, plan) == pytest.approx(expected, rel=1e-4)


def test_noise_is_the_mean_over_outputs_of_relative_energies() -> None:
    changed = network(
        "float[n, 8] x", "float[n, 4] y, float[n, 8] z", "y = MatMul(x, w)  t = Tanh(x)  z = Mul(t, two)",
        w=np.float32(1.5) * normal(8, 4), two=np.array(2, np.float32),
    )  # fmt: skip
    judge = OutputNoise(NETWORK, list(batches_of(NETWORK, {"x": FEED})))
    assert judge.of_network(changed) == pytest.approx((0.25 + 1) / 2, rel=1e-5)
    assert judge.of_network(NETWORK) == 0


def test_a_plan_of_nothing_makes_no_noise() -> None:
    judge = OutputNoise(NETWORK, list(batches_of(NETWORK, {"x": FEED})))
    assert judge.of(NETWORK, Plan(target="tflite", encodings={})) == 0


def test_nan_and_zero_signals_are_infinitely_bad() -> None:
    zeros = network("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", w=np.zeros((8, 4), np.float32))
    judge = OutputNoise(zeros, list(batches_of(zeros, {"x": FEED})))
    assert judge.of_network(zeros) == 0
    one = network("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", w=np.ones((8, 4), np.float32))
    assert judge.of_network(one) == math.inf
    bad = network("float[n, 8] x", "float[n, 4] y", "t = MatMul(x, w)  y = Log(t)", w=normal(8, 4))
    assert OutputNoise(one, list(batches_of(one, {"x": FEED}))).of_network(bad) == math.inf


def test_outputs_of_other_shape_are_refused() -> None:
    other = network("float[n, 8] x", "float[n, 5] y, float[n, 8] z", "y = MatMul(x, w)  z = Tanh(x)", w=normal(8, 5))
    with pytest.raises(RuntimeFailure, match="expected shape"):
        OutputNoise(NETWORK, list(batches_of(NETWORK, {"x": FEED}))).of_network(other)


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="expected samples"):
        OutputNoise(NETWORK, [])


def test_measured_noise_equals_a_run_by_hand() -> None:
    one = network("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", w=normal(8, 4))
    other = network("float[n, 8] x", "float[n, 4] y", "y = MatMul(x, w)", w=normal(8, 4, seed=2))
    reference, candidate = (run(each, FEED).astype(np.float64) for each in (one, other))
    expected = np.square(candidate - reference).sum() / np.square(reference).sum()
    assert OutputNoise(one, list(batches_of(one, {"x": FEED}))).of_network(other) == pytest.approx(expected, rel=1e-5)


def test_without_a_float_output_nothing_is_measured() -> None:
    indices = network("float[n, 8] x", "int64[n] y", "y = ArgMax<axis=1, keepdims=0>(x)")
    assert math.isnan(OutputNoise(indices, list(batches_of(indices, {"x": FEED}))).of_network(indices))

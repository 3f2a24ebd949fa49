"""Caps: where they go, that they cut and nothing else, and that only what is worth it is kept."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.outliers import find_outliers
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.demo import NETWORK_NAMES, digits, network_path
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.recovery.cap_outliers import cap_outliers, capped
from narrowgauge.recovery.measure import OutputNoise
from tests.analysis.test_outliers import samples, stream_network
from tests.calibration.networks import batches_of
from tests.planning.networks import network, normal, operators, planned, run, seen, sqnr


class Bench:
    """Calibrates and measures one network for one target, and counts."""

    def __init__(self, model: ir.Model, feed: np.ndarray, target: str = "tflite") -> None:
        self.model, self.feed, self.target = model, feed, target
        self.name = str(model.graph.inputs[0].name)
        self.judge = OutputNoise(model, list(batches_of(model, {self.name: feed})), threads=1)
        self.statistics = self.calibrate(model)
        self.outliers = find_outliers(model, self.statistics)
        self.measured: list[float] = []

    def calibrate(self, model: ir.Model) -> Statistics:
        return seen(model, {self.name: self.feed})

    def noise(self, model: ir.Model, statistics: Statistics) -> float:
        self.measured.append(self.judge.of(model, planned(model, statistics, self.target)))
        return self.measured[-1]


@pytest.mark.parametrize("activation", ["Gelu", "Relu", "HardSwish", "Sigmoid"])
def test_a_cap_cuts_and_nothing_else(activation: str) -> None:
    model = network(
        "float[n, 8] x", "float[n, 4] y", f"h = MatMul(x, w)  a = {activation}(h)  y = MatMul(a, v)",
        w=normal(8, 12), v=normal(12, 4, seed=1),
    )  # fmt: skip
    feed = normal(20, 8, seed=2)
    inner = network("float[n, 8] x", "float[n, 12] a", f"h = MatMul(x, w)  a = {activation}(h)", w=normal(8, 12))
    expected = np.clip(run(inner, feed), -0.1, 0.4) @ normal(12, 4, seed=1)
    np.testing.assert_allclose(run(capped(model, "a", -0.1, 0.4), feed), expected, atol=1e-5)
    np.testing.assert_allclose(run(capped(model, "a", -math.inf, math.inf), feed), run(model, feed), atol=1e-6)


@pytest.mark.parametrize("body", ["a = Relu(h)", "a = Clip(h, low, high)"])
def test_an_operator_that_cuts_takes_the_cap_in(body: str) -> None:
    model = network(
        "float[n, 8] x", "float[n, 4] y", f"h = MatMul(x, w)  {body}  y = MatMul(a, v)",
        w=normal(8, 12), v=normal(12, 4, seed=1), low=np.array(-1, np.float32), high=np.array(6, np.float32),
    )  # fmt: skip
    cut = capped(model, "a", -2, 0.5)
    assert operators(cut) == ["MatMul", "Clip", "MatMul"]
    low = 0 if "Relu" in body else -1
    feed = normal(20, 8, seed=2)
    expected = np.clip(feed @ normal(8, 12), low, 0.5) @ normal(12, 4, seed=1)
    np.testing.assert_allclose(run(cut, feed), expected, atol=1e-5)


def test_the_unit_is_capped_before_its_activation_function() -> None:
    bench = Bench(stream_network(), samples())
    network_, statistics, caps = cap_outliers(
        bench.model, bench.statistics, bench.outliers, calibrate=bench.calibrate, noise=bench.noise
    )
    assert "b" in {cap.value for cap in caps}
    assert all(cap.noise_after < 0.8 * cap.noise_before for cap in caps)
    after = bench.noise(network_, statistics)
    assert after == pytest.approx(caps[-1].noise_after)
    assert after < 0.3 * bench.noise(bench.model, bench.statistics)
    assert statistics.of("a").maximum <= next(cap.high for cap in caps if cap.value == "b") + 1e-5


def test_a_cap_at_a_relu_costs_no_operator() -> None:
    model = network(
        "float[n, 8] x", "float[n, 4] y", "h = MatMul(x, w)  a = Relu(h)  y = MatMul(a, v)",
        w=normal(8, 12), v=normal(12, 4, seed=1),
    )  # fmt: skip
    feed = normal(20, 8, seed=2)
    cut = capped(model, "a", -math.inf, 1.5)
    lowered = lower_to_qdq(cut, planned(cut, seen(cut, feed), "tflite"))
    assert "Clip" not in operators(lowered)
    assert sqnr(run(cut, feed), run(lowered, feed)) > 30


def test_a_sketch_compares_and_the_whole_decides() -> None:
    bench = Bench(stream_network(), samples())
    calibrated = []

    def calibrate(model: ir.Model) -> Statistics:
        calibrated.append(model)
        return bench.calibrate(model)

    def sketch(model: ir.Model) -> Statistics:
        return seen(model, {"x": bench.feed[:8]})

    network_, statistics, caps = cap_outliers(
        bench.model, bench.statistics, bench.outliers, calibrate=calibrate, noise=bench.noise, sketch=sketch
    )
    assert caps
    assert len(calibrated) == 1
    assert statistics.samples == len(bench.feed)
    assert calibrated[0] is network_


def test_what_is_not_worth_it_is_not_kept() -> None:
    bench = Bench(stream_network(), samples())
    network_, statistics, caps = cap_outliers(
        bench.model, bench.statistics, bench.outliers, calibrate=bench.calibrate, noise=lambda model, seen: 0.1
    )
    assert (network_, statistics, caps) == (bench.model, bench.statistics, ())


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_networks_without_outliers_are_not_hurt(name: str) -> None:
    bench = Bench(load(network_path(name)).model, digits().images[:48])
    network_, statistics, caps = cap_outliers(
        bench.model, bench.statistics, bench.outliers, calibrate=bench.calibrate, noise=bench.noise
    )
    assert bench.noise(network_, statistics) <= bench.noise(bench.model, bench.statistics)
    assert caps or network_ is bench.model

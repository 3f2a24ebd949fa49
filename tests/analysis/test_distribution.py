"""What pictures are drawn from, beside the elements."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.distribution import distributions
from narrowgauge.analysis.records import Distribution
from narrowgauge.calibration.collect import collect
from narrowgauge.calibration.histogram import EMPTY
from narrowgauge.core.encoding import LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PerAxis, PerBlock
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from tests.calibration.networks import batches_of, network
from tests.lowering.networks import hand_plan, per_tensor
from tests.planning.networks import network as written
from tests.planning.networks import normal, seen

GATED = """
<ir_version: 10, opset_import: ["": 21]>
gated (float[n, 100] x) => (float[n, 8] y)
{
    h = Relu(x)
    y = MatMul(h, w)
}
"""


def gated() -> tuple[ir.Model, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    weights = rng.normal(0, 1, (100, 8)).astype(np.float32)
    data = (rng.standard_t(4, (500, 100)) * np.linspace(0.5, 2, 100)).astype(np.float32)
    return network(GATED, {"w": weights}), weights, data


def drawn(plan: Plan, *names: str) -> dict[str, Distribution]:
    model, _, data = gated()
    return distributions(model, plan, collect(model, batches_of(model, data, 500), threads=1), names)


def assert_sound(one: Distribution) -> None:
    edges, shares = np.array(one.edges), np.array(one.density)
    assert len(edges) == len(shares) + 1 <= 201
    assert (np.diff(edges) > 0).all()
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "tolerance"), [("h", 0.02), ("y", 0.02), ("w", 0.0)])
def test_the_shares_are_those_of_the_elements(name: str, tolerance: float) -> None:
    _, weights, data = gated()
    elements = {"h": np.maximum(data, 0), "y": np.maximum(data, 0) @ weights, "w": weights}[name]
    one = drawn(hand_plan({name: per_tensor("int8", 0.1)}), name)[name]
    assert_sound(one)
    assert (one.edges[0], one.edges[-1]) == pytest.approx((elements.min(), elements.max()), rel=1e-5)
    np.testing.assert_allclose(np.diff(one.edges), (one.edges[-1] - one.edges[0]) / 160)
    wanted = np.histogram(elements, one.edges)[0] / elements.size
    assert np.abs(np.array(one.density) - wanted).sum() <= tolerance + 1e-9


def test_channels_are_those_that_matter_with_what_is_representable_there() -> None:
    _, _, data = gated()
    one = drawn(hand_plan({"h": per_tensor("uint8", 0.01, 5)}), "h")["h"]
    positive = np.maximum(data, 0)
    widths = positive.max(axis=0) - positive.min(axis=0)
    assert one.channel_axis == 1
    assert len(one.channel_index) == 64
    assert list(one.channel_index) == sorted(one.channel_index)
    left_out = set(range(100)) - set(one.channel_index)
    assert {int(widths.argmax()), int(widths.argmin())} <= set(one.channel_index)
    ranks = np.argsort(np.argsort(widths))
    assert all(32 <= ranks[channel] < 68 for channel in left_out)
    np.testing.assert_array_equal(one.channel_high, positive.max(axis=0)[list(one.channel_index)])
    np.testing.assert_allclose(one.channel_range_low, -0.05, rtol=1e-6)
    np.testing.assert_allclose(one.channel_range_high, 2.5, rtol=1e-6)


@pytest.mark.parametrize("granularity", [PerAxis(1), PerAxis(-1), PerBlock(0, 50)], ids=str)
def test_weights_have_a_range_per_channel(granularity: PerAxis | PerBlock) -> None:
    _, weights, _ = gated()
    columns = weights if isinstance(granularity, PerAxis) else weights.reshape(2, 50, 8)
    reach = np.abs(columns).max(axis=0 if isinstance(granularity, PerAxis) else 1)
    encoding = encoding_from_range(-reach, reach, integer_type("int8_narrow"), granularity, symmetric=True)
    one = drawn(hand_plan({"w": encoding}), "w")["w"]
    assert_sound(one)
    assert (one.channel_axis, one.channel_index) == (1, tuple(range(8)))
    np.testing.assert_array_equal(one.channel_low, weights.min(axis=0))
    np.testing.assert_allclose(one.channel_range_high, np.abs(weights).max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(one.channel_range_low, -np.abs(weights).max(axis=0), rtol=1e-6)


def test_what_has_no_distribution_is_left_out() -> None:
    model, _, data = gated()
    plan = hand_plan({"h": per_tensor("uint8", 0.01), "w": per_tensor("int8", 0.01)})
    statistics = collect(model, batches_of(model, data[:9]), threads=1)
    bare = replace(statistics, tensors={"h": replace(statistics.tensors["h"], histogram=EMPTY)})
    assert distributions(model, plan, statistics, ["nobody", "x"]) == {}
    assert distributions(model, plan, bare, ["h"]) == {}
    assert list(distributions(model, plan, None, ["h", "w"])) == ["w"]


@pytest.mark.parametrize("number", [0.0, 2.5, -1e-20, 3e30])
def test_one_number_all_over_has_one_bin(number: float) -> None:
    model, _, _ = gated()
    data = np.full((3, 100), number, np.float32)
    statistics = collect(model, batches_of(model, data), threads=1)
    one = distributions(model, hand_plan({"x": per_tensor("uint8", 0.01)}), statistics, ["x"])["x"]
    assert_sound(one)
    assert one.density == (1.0,)
    assert one.edges[0] <= np.float32(number) <= one.edges[1]


def test_numbers_on_one_side_keep_their_place() -> None:
    model, _, _ = gated()
    data = np.random.default_rng(0).uniform(5, 6, (20, 100)).astype(np.float32)
    statistics = collect(model, batches_of(model, data), threads=1)
    one = distributions(model, hand_plan({"x": per_tensor("uint8", 0.03)}), statistics, ["x"])["x"]
    assert_sound(one)
    assert one.edges[0] == pytest.approx(5, abs=0.01)
    assert np.array(one.density).max() < 0.02  # even: 1 / 160


@pytest.mark.parametrize(
    "encoding", [LogEncoding(type=integer_type("uint4")), NormalizedEncoding(type=integer_type("uint8"))]
)
def test_shares_are_drawn_like_other_values(encoding: LogEncoding | NormalizedEncoding) -> None:
    model = written("float[n, 8] x", "float[n, 8] y", "p = Softmax(x) y = Neg(p)")
    plan = Plan(target="t", encodings={"p": encoding})
    samples = normal(200, 8) * 3
    (drawn,) = distributions(model, plan, seen(model, samples), ["p"]).values()
    parts = np.exp(samples.astype(np.float64))
    counts, _ = np.histogram(parts / parts.sum(axis=1, keepdims=True), np.linspace(0, 1, 9))
    middles = (np.array(drawn.edges[:-1]) + drawn.edges[1:]) / 2
    shares, _ = np.histogram(middles, np.linspace(0, 1, 9), weights=drawn.density)
    np.testing.assert_allclose(shares, counts / counts.sum(), atol=0.02)
    assert drawn.channel_index == ()

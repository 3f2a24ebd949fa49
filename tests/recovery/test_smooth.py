"""Outlier channels move into the weights: the network computes the same, and rounds better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.plan import Plan
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.recovery.noise import migration_factors, product_noise
from narrowgauge.recovery.smooth import smooth
from tests.planning.networks import network, normal, operators, planned, run, seen, sqnr, weights_of

CHANNELS, OUTLIER, FACTOR = 48, 7, 60.0


def with_outlier(*shape: int, seed: int = 0) -> np.ndarray:
    values = normal(*shape, seed=seed)
    values[..., OUTLIER] *= FACTOR
    return values


def light_row(*shape: int, along: int = 0, seed: int = 1) -> np.ndarray:
    """Weights whose row for the outlier is small, as in trained networks."""
    weights = normal(*shape, seed=seed) / np.float32(np.sqrt(CHANNELS))
    np.moveaxis(weights, along, 0)[OUTLIER] /= FACTOR
    return weights


def scales() -> np.ndarray:
    scale = np.ones(CHANNELS, np.float32)
    scale[OUTLIER] = FACTOR
    return scale


PLAIN = network(
    f"float[n, {CHANNELS}] x", "float[n, 16] y", "h = Tanh(x)  g = Mul(h, s)  y = MatMul(g, w)",
    s=scales(), w=light_row(CHANNELS, 16),
)  # fmt: skip

TRANSPOSED = network(
    f"float[n, {CHANNELS}] x", "float[n, 16] y", "h = Tanh(x)  g = Mul(h, s)  y = Gemm<transB = 1>(g, w, b)",
    s=scales(), w=light_row(16, CHANNELS, along=1), b=normal(16),
)  # fmt: skip

NORMALIZED = network(
    f"float[n, {CHANNELS}] x", "float[n, 16] y", "g = LayerNormalization<axis = -1>(x, s, o)  y = MatMul(g, w)",
    s=scales(), o=with_outlier(CHANNELS) / 3, w=light_row(CHANNELS, 16),
)  # fmt: skip

TWO_READERS = network(
    f"float[n, {CHANNELS}] x", "float[n, 16] y, float[n, 8] z",
    "g = LayerNormalization<axis = -1>(x, s, o)  y = MatMul(g, w)  z = Gemm<transB = 1>(g, v)",
    s=scales(), o=with_outlier(CHANNELS) / 3, w=light_row(CHANNELS, 16), v=light_row(8, CHANNELS, along=1, seed=2),
)  # fmt: skip

OTHER_READER = network(
    f"float[n, {CHANNELS}] x", f"float[n, 16] y, float[n, {CHANNELS}] z",
    "g = LayerNormalization<axis = -1>(x, s, o)  y = MatMul(g, w)  z = Tanh(g)",
    s=scales(), o=with_outlier(CHANNELS) / 3, w=light_row(CHANNELS, 16),
)  # fmt: skip

NETWORKS = {
    "plain": PLAIN, "transposed": TRANSPOSED, "normalized": NORMALIZED, "two readers": TWO_READERS,
    "other reader": OTHER_READER,
}  # fmt: skip

SAMPLES, HELD_OUT = normal(96, CHANNELS, seed=3), normal(200, CHANNELS, seed=4)


def products(model: ir.Model) -> set[str]:
    return {str(node.name) for node in model.graph if node.op_type in {"MatMul", "Gemm"}}


def smoothed(model: ir.Model) -> tuple[ir.Model, Statistics]:
    changed, statistics, done = smooth(model, seen(model, SAMPLES), layers=products(model))
    assert [(each.value, each.channel) for each in done] == [("g", OUTLIER)]
    assert done[0].factor > 5
    assert done[0].gain > 2
    return changed, statistics


def outputs(model: ir.Model, samples: np.ndarray) -> list[np.ndarray]:
    alone = []
    for number in range(len(model.graph.outputs)):
        copy = model.clone()
        copy.graph.outputs[:] = [copy.graph.outputs[number]]
        alone.append(run(copy, samples))
    return alone


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_do_not_change(name: str) -> None:
    model = NETWORKS[name]
    weights = {key: weights_of(model, key).copy() for key in model.graph.initializers}
    changed, _ = smoothed(model)
    for before, after in zip(outputs(model, HELD_OUT), outputs(changed, HELD_OUT), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=2e-5 * np.abs(before).max())
    for key, array in weights.items():
        np.testing.assert_array_equal(weights_of(model, key), array)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_statistics_are_those_of_calibrating_again(name: str) -> None:
    changed, statistics = smoothed(NETWORKS[name])
    fresh = seen(changed, SAMPLES)
    assert statistics.network == fresh.network
    assert fresh.tensors.keys() <= statistics.tensors.keys()
    for value, tensor in fresh.tensors.items():
        kept = statistics.of(value)
        reach = max(abs(tensor.minimum), abs(tensor.maximum))
        np.testing.assert_allclose([kept.minimum, kept.maximum], [tensor.minimum, tensor.maximum], atol=2e-6 * reach)
        if tensor.channels is not None and kept.channels is not None:
            for key in ("minimum", "maximum", "mean"):
                found, expected = getattr(kept.channels, key), getattr(tensor.channels, key)
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * reach)


def noise(model: ir.Model, statistics: Statistics) -> float:
    """Measured noise of the rounded network on samples that did not calibrate, summed over its outputs."""
    plan: Plan = planned(model, statistics)
    lowered = lower_to_qdq(model, plan)
    pairs = zip(outputs(model, HELD_OUT)[:1], outputs(lowered, HELD_OUT)[:1], strict=True)
    return sum(float(np.square(one.astype(np.float64) - other).sum()) for one, other in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_measured_noise_falls(name: str) -> None:
    model = NETWORKS[name]
    changed, statistics = smoothed(model)
    assert noise(changed, statistics) < noise(model, seen(model, SAMPLES)) / 2


def test_the_predicted_noise_is_near_the_measured_one() -> None:
    statistics = seen(PLAIN, SAMPLES)
    channels = statistics.of("g").channels
    assert channels is not None
    weights = weights_of(PLAIN, "w").astype(np.float64)
    predicted = product_noise(channels, weights, np.ones(CHANNELS), 8) * len(HELD_OUT)
    assert predicted / 2 < noise(PLAIN, statistics) < predicted * 2


@pytest.mark.parametrize(("name", "added"), [("normalized", 0), ("two readers", 0), ("plain", 1), ("other reader", 1)])
def test_the_division_is_folded_into_a_normalization_that_nothing_else_reads(name: str, added: int) -> None:
    changed, _ = smoothed(NETWORKS[name])
    assert operators(changed).count("Mul") == operators(NETWORKS[name]).count("Mul") + added


def test_scales_of_a_normalization_may_have_leading_axes() -> None:
    model = network(
        f"float[n, 3, {CHANNELS}] x", "float[n, 3, 16] y", "g = LayerNormalization<axis = -1>(x, s)  y = MatMul(g, w)",
        s=scales().reshape(1, 1, -1), w=light_row(CHANNELS, 16),
    )  # fmt: skip
    samples = normal(20, 3, CHANNELS)
    changed, _, done = smooth(model, seen(model, samples), layers=products(model))
    assert len(done) == 1
    np.testing.assert_allclose(run(changed, samples), run(model, samples), rtol=1e-4, atol=1e-4)


def test_parameters_that_others_read_are_copied() -> None:
    model = network(
        f"float[n, {CHANNELS}] x", f"float[n, 16] y, float[n, {CHANNELS}] z",
        "g = LayerNormalization<axis = -1>(x, s)  y = MatMul(g, w)  z = Mul(x, s)",
        s=scales(), w=light_row(CHANNELS, 16),
    )  # fmt: skip
    changed, _ = smoothed(model)
    for before, after in zip(outputs(model, HELD_OUT), outputs(changed, HELD_OUT), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=2e-5 * np.abs(before).max())


def test_no_node_is_spent_behind_an_integer_operator() -> None:
    statistics = seen(PLAIN, SAMPLES)
    same, kept, done = smooth(PLAIN, statistics, layers=products(PLAIN), rounded={"g"})
    assert same is PLAIN
    assert kept is statistics
    assert done == ()
    assert smooth(NORMALIZED, seen(NORMALIZED, SAMPLES), layers=products(NORMALIZED), rounded={"g"})[2]


def test_networks_without_outliers_and_layers_that_stay_float_are_left() -> None:
    even = network(f"float[n, {CHANNELS}] x", "float[n, 16] y", "y = MatMul(x, w)", w=normal(CHANNELS, 16))
    for model, layers in ((even, products(even)), (PLAIN, set())):
        statistics = seen(model, SAMPLES)
        same, kept, done = smooth(model, statistics, layers=layers)
        assert (same is model, kept is statistics, done) == (True, True, ())


def test_statistics_along_another_axis_are_not_taken() -> None:
    """A convolution over the first inner axis reads the value, too: its channels are not those of the product."""
    model = network(
        f"float[n, {CHANNELS}, {CHANNELS}] x", f"float[n, 4, {CHANNELS}] c, float[n, {CHANNELS}, 16] y",
        "h = Tanh(x)  g = Mul(h, s)  c = Conv(g, v)  y = MatMul(g, w)",
        s=scales().reshape(-1, 1), v=normal(4, CHANNELS, 1), w=light_row(CHANNELS, 16),
    )  # fmt: skip
    statistics = seen(model, normal(8, CHANNELS, CHANNELS))
    channels = statistics.of("g").channels
    assert channels is not None
    assert channels.axis == 1
    assert smooth(model, statistics, layers=products(model))[2] == ()


def test_numbers_that_were_not_finite_leave_it_alone() -> None:
    bad = SAMPLES.copy()
    bad[3, 3] = np.nan
    assert smooth(PLAIN, seen(PLAIN, bad), layers=products(PLAIN))[2] == ()


@settings(max_examples=40)
@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=3, max_size=12), st.floats(0, 1), st.integers(0, 2**31),
)  # fmt: skip
def test_factors_are_positive_and_bounded(reach: list[float], strength: float, seed: int) -> None:
    heights = np.abs(np.random.default_rng(seed).standard_normal(len(reach))) + 1e-8
    factors = migration_factors(np.array(reach), heights, strength)
    assert factors.shape == (len(reach),)
    assert np.isfinite(factors).all()
    assert ((factors >= 2.0**-10) & (factors <= 2.0**10)).all()
    assert (factors[np.array(reach) == 0] == 1).all()
    if strength == 0:
        assert (factors == 1).all()


def test_a_real_transformer_computes_the_same(zoo: Path) -> None:
    from narrowgauge.data import input_specs, open_samples
    from narrowgauge.data.preprocess import load_preprocess
    from narrowgauge.importers.onnx import load
    from narrowgauge.planning.choices import Choices
    from narrowgauge.planning.place import place
    from narrowgauge.targets.registry import load_target

    folder = zoo / "models" / "vit_tiny"
    model = load(folder / "vit_tiny_patch16_224.onnx").model
    preprocess = load_preprocess(folder / "vit_tiny_patch16_224.toml")
    pictures = open_samples(zoo / "images" / "nips17" / "images", input_specs(model), preprocess=preprocess).take(4)
    feeds = np.concatenate([next(iter(each.feed.values())) for each in pictures])
    statistics = seen(model, feeds)
    placement = place(model, load_target("onnxruntime"), Choices())
    changed, _, done = smooth(model, statistics, layers=placement.integer_nodes)
    assert done
    assert sqnr(run(model, feeds), run(changed, feeds)) > 80

"""Bias correction takes the mean error of rounded weights away, whatever the layer looks like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.calibration.statistics import Statistics
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import FloatNode, Plan
from narrowgauge.graph.constants import set_constant
from narrowgauge.recovery.bias_correction import correct_bias
from tests.planning.networks import name_of, network, normal, operators, planned, run, seen, weights_of

INT4 = integer_type("int4")


def positive(*shape: int, seed: int = 5) -> np.ndarray:
    """Samples with means that differ between channels, constant over each plane but for a little noise."""
    channels = shape[1] if len(shape) == 4 else shape[-1]
    means = np.linspace(0.5, 3, channels, dtype=np.float32)
    if len(shape) == 4:
        means = means.reshape(-1, 1, 1)
    return (means + 0.05 * normal(*shape, seed=seed)).astype(np.float32)


def convolution(attributes: str, weights: np.ndarray, *, bias: bool = True, inputs: int = 8) -> ir.Model:
    held = {"w": weights} | ({"b": normal(len(weights))} if bias else {})
    body = f"y = Conv<{attributes}>(x, w{', b' if bias else ''})"
    return network(f"float[n, {inputs}, 12, 12] x", f"float[n, {len(weights)}, h, v] y", body, **held)


IMAGES = positive(24, 8, 12, 12)
ROWS = positive(64, 24)

LAYERS = {
    "convolution": (convolution("group = 1", normal(16, 8, 3, 3)), IMAGES),
    "no bias": (convolution("group = 1", normal(16, 8, 3, 3), bias=False), IMAGES),
    "padding": (convolution("pads = [1, 2, 0, 1]", normal(16, 8, 3, 3)), IMAGES),
    "wide padding": (convolution("pads = [4, 4, 4, 4]", normal(16, 8, 5, 5)), IMAGES),
    "stride": (convolution("pads = [1, 1, 1, 1], strides = [2, 3]", normal(16, 8, 3, 3)), IMAGES),
    "dilation": (convolution("pads = [2, 2, 2, 2], dilations = [2, 3]", normal(16, 8, 3, 3)), IMAGES),
    "groups": (convolution("group = 2, pads = [1, 1, 1, 1]", normal(16, 4, 3, 3)), IMAGES),
    "depthwise": (
        convolution("group = 16, pads = [1, 1, 1, 1]", normal(16, 1, 3, 3), inputs=16), positive(24, 16, 12, 12),
    ),
    "gemm": (network("float[n, 24] x", "float[n, 16] y", "y = Gemm(x, w, b)", w=normal(24, 16), b=normal(16)), ROWS),
    "gemm of one row of bias": (
        network("float[n, 24] x", "float[n, 16] y", "y = Gemm(x, w, b)", w=normal(24, 16), b=normal(1, 16)), ROWS,
    ),
    "transposed gemm": (
        network("float[n, 24] x", "float[n, 16] y", "y = Gemm<transB = 1>(x, w, b)", w=normal(16, 24), b=normal(16)),
        ROWS,
    ),
    "gemm without bias": (
        network("float[n, 24] x", "float[n, 16] y", "y = Gemm<transB = 1>(x, w)", w=normal(16, 24)), ROWS,
    ),
    "matrix product": (
        network(
            "float[n, t, 24] x", "float[n, t, 16] y", "m = MatMul(x, w)  y = Add(b, m)", w=normal(24, 16), b=normal(16)
        ),
        positive(10, 7, 24),
    ),
}  # fmt: skip


def rounded(model: ir.Model, plan: Plan) -> ir.Model:
    """The network with rounded weights, in float."""
    copy = model.clone()
    for name, value in copy.graph.initializers.items():
        encoding = plan.encodings.get(name)
        if isinstance(encoding, Encoding):
            set_constant(value, round_trip(value.const_value.numpy(), encoding))
    return copy


def weight_plan(model: ir.Model, statistics: Statistics) -> Plan:
    plan = planned(model, statistics, weights=INT4, granularity="tensor")
    weights = {name: each for name, each in plan.encodings.items() if name in model.graph.initializers}
    return replace(plan, encodings=weights)


def mean_error(reference: np.ndarray, other: np.ndarray, channel: int) -> np.ndarray:
    axes = tuple(axis for axis in range(reference.ndim) if axis != channel)
    return np.abs((other.astype(np.float64) - reference).mean(axes))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_mean_error_of_each_channel_goes_away(layer: str) -> None:
    model, samples = LAYERS[layer]
    statistics = seen(model, samples)
    plan = weight_plan(model, statistics)
    assert "w" in plan.encodings
    corrected, same = correct_bias(model, plan, statistics)
    assert same is plan
    reference = run(model, samples)
    channel = 1 if reference.ndim == 4 else reference.ndim - 1
    before = mean_error(reference, run(rounded(model, plan), samples), channel)
    after = mean_error(reference, run(rounded(corrected, plan), samples), channel)
    assert before.max() > 0.1
    assert after.max() < 0.03 * before.max()
    assert (after <= before + 1e-4 * np.abs(reference).max()).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_squared_error_falls_and_the_given_network_stays(layer: str) -> None:
    model, samples = LAYERS[layer]
    statistics = seen(model, samples)
    plan = weight_plan(model, statistics)
    reference = run(model, samples)
    corrected, _ = correct_bias(model, plan, statistics)
    errors = [np.square(run(rounded(each, plan), samples) - reference).mean() for each in (model, corrected)]
    assert errors[1] < 0.5 * errors[0]  # what is left varies along the plane
    np.testing.assert_array_equal(run(model, samples), reference)
    np.testing.assert_array_equal(weights_of(corrected, "w"), weights_of(model, "w"))


def test_on_images_with_structure_it_is_no_worse() -> None:
    """The means of a channel differ between border and middle: the correction is near, not exact."""
    ramp = np.linspace(0, 2, 12, dtype=np.float32)
    images = (IMAGES * ramp * ramp[:, None]).astype(np.float32)
    model, _ = LAYERS["padding"]
    statistics = seen(model, images)
    plan = weight_plan(model, statistics)
    corrected, _ = correct_bias(model, plan, statistics)
    reference = run(model, images)
    errors = [np.square(run(rounded(each, plan), images) - reference).mean() for each in (model, corrected)]
    assert errors[1] < errors[0]


def test_a_bias_that_two_layers_share_is_corrected_for_each() -> None:
    model = network(
        "float[n, 24] x", "float[n, 16] y, float[n, 16] z", "y = Gemm(x, w, b)  z = Gemm(x, v, b)",
        w=normal(24, 16), v=normal(24, 16, seed=1), b=normal(16),
    )  # fmt: skip
    statistics = seen(model, ROWS)
    plan = weight_plan(model, statistics)
    corrected, _ = correct_bias(model, plan, statistics)
    for output in "yz":
        alone = [each.clone() for each in (model, rounded(model, plan), rounded(corrected, plan))]
        for each in alone:
            each.graph.outputs[:] = [value for value in each.graph.outputs if value.name == output]
        reference, before, after = (run(each, ROWS) for each in alone)
        assert mean_error(reference, after, 1).max() < 0.03 * mean_error(reference, before, 1).max()


def unchanged(model: ir.Model, plan: Plan, statistics: Statistics) -> bool:
    corrected, _ = correct_bias(model, plan, statistics)
    return operators(corrected) == operators(model) and all(
        np.array_equal(weights_of(corrected, name), weights_of(model, name)) for name in corrected.graph.initializers
    )


def test_a_node_that_stays_float_keeps_its_bias() -> None:
    model, samples = LAYERS["gemm"]
    statistics = seen(model, samples)
    plan = weight_plan(model, statistics)
    assert not unchanged(model, plan, statistics)
    kept = replace(plan, float_nodes=(FloatNode(name=name_of(model, "y"), operator="Gemm", reason="by hand"),))
    assert unchanged(model, kept, statistics)


@pytest.mark.parametrize(
    "body",
    ["y = Gemm<alpha = 2.0>(x, w, b)", "y = Gemm<beta = 0.5>(x, w, b)", "m = MatMul(x, w)  y = Mul(m, b)",
     "y = MatMul(x, w)  z = Add(y, b)"],
)  # fmt: skip
def test_layers_without_a_place_for_it_are_left(body: str) -> None:
    outputs = "float[n, 16] y" + (", float[n, 16] z" if "z" in body else "")
    model = network("float[n, 24] x", outputs, body, w=normal(24, 16), b=normal(16))
    statistics = seen(model, ROWS)
    assert unchanged(model, weight_plan(model, statistics), statistics)


def test_a_constant_along_the_rows_is_no_bias() -> None:
    model = network("float[16, 24] x", "float[16, 16] y", "y = Gemm(x, w, b)", w=normal(24, 16), b=normal(16, 1))
    statistics = seen(model, ROWS[:16])
    assert unchanged(model, weight_plan(model, statistics), statistics)


def test_means_along_another_axis_are_not_taken() -> None:
    """The value's channels are those of the convolution that reads it, too; the product sums up another axis."""
    model = network(
        "float[n, 12, 12] x", "float[n, 12, 12] c, float[n, 12, 12] y",
        "c = Conv(x, v)  m = MatMul(x, w)  y = Add(m, b)",
        v=normal(12, 12, 1), w=normal(12, 12), b=normal(12),
    )  # fmt: skip
    statistics = seen(model, positive(16, 12, 12))
    plan = weight_plan(model, statistics)
    corrected, _ = correct_bias(model, plan, statistics)
    np.testing.assert_array_equal(weights_of(corrected, "b"), weights_of(model, "b"))


def test_means_of_numbers_that_were_not_finite_are_not_taken() -> None:
    model, samples = LAYERS["gemm"]
    bad = samples.copy()
    bad[3, 3] = np.inf
    plan = weight_plan(model, seen(model, samples))
    assert unchanged(model, plan, seen(model, bad))

"""A few outlier channels are multiplied in float: found, split off, and worth it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import narrowgauge
from narrowgauge.calibration.statistics import Statistics
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.recipe import Recipe
from narrowgauge.recovery.outliers import Split, split_outliers
from narrowgauge.recovery.smooth import smooth
from tests.planning.networks import network, normal, operators, planned, run, seen, sqnr, weights_of

CHANNELS = 48
SAMPLES, HELD_OUT = normal(96, CHANNELS, seed=3), normal(200, CHANNELS, seed=4)


def factors(*outliers: int) -> np.ndarray:
    array = np.ones(CHANNELS, np.float32)
    array[list(outliers)] = 300
    return array


def outlying(*outliers: int, layer: str = "y = MatMul(g, w)", **weights: np.ndarray) -> ir.Model:
    held = {"w": normal(CHANNELS, 16, seed=1)} | weights
    body = f"h = Tanh(x)  g = Mul(h, s)  {layer}"
    return network(f"float[n, {CHANNELS}] x", "float[n, 16] y", body, s=factors(*outliers), **held)


def products(model: ir.Model) -> set[str]:
    return {str(node.name) for node in model.graph if node.op_type in {"MatMul", "Gemm"}}


def split(model: ir.Model) -> tuple[ir.Model, Statistics, tuple[Split, ...]]:
    return split_outliers(model, seen(model, SAMPLES), layers=products(model))


BIAS = normal(16, seed=8)
NETWORKS = {
    "one": (outlying(7), {7}),
    "three": (outlying(0, 20, 47), {0, 20, 47}),
    "bias": (outlying(7, layer="m = MatMul(g, w)  y = Add(m, b)", b=BIAS), {7}),
    "gemm": (outlying(7, layer="y = Gemm<alpha = 0.5, beta = 2.0>(g, w, b)", b=BIAS), {7}),
    "transposed": (outlying(7, layer="y = Gemm<transB = 1>(g, w, b)", w=normal(16, CHANNELS, seed=1), b=BIAS), {7}),
    "two readers": (
        outlying(7, layer="m = MatMul(g, w)  k = MatMul(g, v)  y = Sub(m, k)", v=normal(CHANNELS, 16, seed=2)), {7},
    ),
    "shared weights": (outlying(7, layer="m = MatMul(g, w)  k = MatMul(h, w)  y = Sub(m, k)"), {7}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_planted_channels_are_found_and_the_outputs_do_not_change(name: str) -> None:
    model, planted = NETWORKS[name]
    before = run(model, HELD_OUT)
    divided, statistics, done = split(model)
    assert [(each.value, set(each.channels)) for each in done] == [("g", planted)]
    np.testing.assert_allclose(run(divided, HELD_OUT), before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    np.testing.assert_array_equal(run(model, HELD_OUT), before)
    assert statistics.network == seen(divided, SAMPLES).network
    assert {value.name for value in divided.graph.outputs} == {"y"}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_the_outliers_stand_alone(name: str) -> None:
    model, planted = NETWORKS[name]
    divided, _, done = split(model)
    product = next(
        node for node in divided.graph if node.op_type in {"MatMul", "Gemm"} and node.name in products(model)
    )
    weights = product.inputs[1].const_value.numpy()
    rows = weights.T if product.attributes.get_int("transB", 0) else weights
    assert not rows[sorted(planted)].any()
    assert rows[[row for row in range(CHANNELS) if row not in planted]].any(axis=1).all()
    assert set(done[0].float_nodes) <= products(divided) - products(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_range_is_that_of_the_other_channels(name: str) -> None:
    model, planted = NETWORKS[name]
    _, statistics, done = split(model)
    values = np.tanh(SAMPLES)
    rest = values[:, [channel for channel in range(CHANNELS) if channel not in planted]]
    tensor = statistics.of("g")
    np.testing.assert_allclose([tensor.minimum, tensor.maximum], [rest.min(), rest.max()], rtol=1e-6)
    np.testing.assert_allclose(done[0].range_after, np.abs(rest).max(), rtol=1e-6)
    np.testing.assert_allclose(done[0].range_before, 300 * np.abs(values[:, sorted(planted)]).max(), rtol=1e-6)
    assert tensor.channels is not None
    assert (tensor.channels.mean >= tensor.minimum - 1e-6).all()
    assert (tensor.channels.mean <= tensor.maximum + 1e-6).all()


def rounded(model: ir.Model, statistics: Statistics, done: tuple[Split, ...] = ()) -> np.ndarray:
    keep = {name: NodeChoice(keep_float="outliers") for each in done for name in each.float_nodes}
    outputs = {name_of_node(model, name): choice for name, choice in keep.items()}
    return run(lower_to_qdq(model, planned(model, statistics, nodes=outputs)), HELD_OUT)


def name_of_node(model: ir.Model, name: str) -> str:
    return next(str(node.outputs[0].name) for node in model.graph if node.name == name)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_measured_error_falls_further_than_scaling_reaches(name: str) -> None:
    model, _ = NETWORKS[name]
    reference = run(model, HELD_OUT)
    statistics = seen(model, SAMPLES)
    divided, changed, done = split(model)
    with_split = np.square(rounded(divided, changed, done) - reference).mean()
    without = np.square(rounded(model, statistics) - reference).mean()
    scaled = np.square(rounded(*smooth(model, statistics, layers=products(model))[:2]) - reference).mean()
    assert with_split < min(without, scaled) / 2


def test_after_it_nothing_is_left_to_scale() -> None:
    divided, statistics, _ = split(NETWORKS["one"][0])
    assert smooth(divided, statistics, layers=products(NETWORKS["one"][0]))[2] == ()


def left_alone(model: ir.Model, layers: set[str] | None = None) -> bool:
    statistics = seen(model, SAMPLES)
    same, kept, done = split_outliers(model, statistics, layers=products(model) if layers is None else layers)
    return same is model and kept is statistics and done == ()


def test_without_outliers_nothing_happens() -> None:
    assert left_alone(outlying())


def test_outliers_that_scaling_takes_care_of_are_not_split() -> None:
    light = normal(CHANNELS, 16, seed=1)
    light[7] /= 300
    assert left_alone(outlying(7, w=light))


def test_more_outliers_than_a_few_are_not_split() -> None:
    assert left_alone(outlying(*range(0, 40, 5)))


def test_layers_that_are_not_named_are_left() -> None:
    assert left_alone(outlying(7), layers=set())


def test_a_value_that_others_read_is_left() -> None:
    model = network(
        f"float[n, {CHANNELS}] x", f"float[n, 16] y, float[n, {CHANNELS}] z",
        "h = Tanh(x)  g = Mul(h, s)  y = MatMul(g, w)  z = Neg(g)", s=factors(7), w=normal(CHANNELS, 16),
    )  # fmt: skip
    assert left_alone(model)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tflite"])
@pytest.mark.parametrize("light", [1.0, 100.0])
def test_what_arrives_in_integers_is_not_split_by_the_pipeline(target: str, light: float) -> None:
    """The integers of a convolution's output have lost the outliers before any product could take them in float."""
    heavy = normal(CHANNELS, 8, 3, 3) / 8
    heavy[5] *= 300
    weights = normal(CHANNELS, 16) / 8
    weights[5] /= light
    model = network(
        "float[n, 8, 6, 6] x", "float[n, 16, 16] y",
        "c = Conv(x, v)  r = Relu(c)  f = Reshape(r, shape)  t = Transpose<perm = [0, 2, 1]>(f)  y = MatMul(t, w)",
        v=heavy, w=weights, shape=np.array([0, CHANNELS, 16]),
    )  # fmt: skip
    samples = {"x": normal(120, 8, 6, 6)}
    found = [
        narrowgauge.quantize(ir.to_proto(model), samples, target=target, recipe=recipe, samples=60)
        for recipe in ("plain", taming())
    ]
    noises = [each.check.comparison.sqnr_db for each in found if each.check is not None]
    assert noises[1] > noises[0] - 1
    if target != "openvino":  # it reshapes in float
        assert operators(found[1].float_model) == operators(found[0].float_model)


def taming() -> Recipe:
    """A recipe of nothing but the taming of outliers."""
    return Recipe(name="tame", estimator="max", methods=("migrate",))


def test_the_outlier_of_a_real_transformer_is_found(zoo: Path) -> None:
    from narrowgauge.importers.onnx import load
    from narrowgauge.planning.choices import Choices
    from narrowgauge.planning.place import place
    from narrowgauge.targets.registry import load_target

    file = zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx"
    model = load(file).model
    statistics = narrowgauge.calibrate(file, zoo / "images" / "nips17" / "images", samples=32)
    placement = place(model, load_target("onnxruntime"), Choices())
    divided, _, done = split_outliers(model, statistics, layers=placement.integer_nodes)
    assert [(each.value, each.channels) for each in done] == [("gelu_7", (417,))]
    feed = {str(model.graph.inputs[0].name): normal(1, 3, 224, 224)}
    assert sqnr(run(model, feed), run(divided, feed)) > 80
    assert operators(divided).count("Gather") == operators(model).count("Gather") + 1
    assert weights_of(divided, f"{done[0].float_nodes[0]}_weights").shape == (1, 192)

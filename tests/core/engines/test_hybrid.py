"""Dynamic-range arithmetic beside LiteRT (XNNPACK, its own kernels, the reference) and ONNX Runtime, bit for bit."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from narrowgauge.core.engines.hybrid import HYBRIDS, Hybrid, HybridLayer
from narrowgauge.core.engines.hybrid_rounding import round_like_onnx
from narrowgauge.errors import PlanError
from narrowgauge.graph.engine import session_options
from tests.core.engines.hybrid_layers import Array, Image, Layer, assert_same, near_ties, spread
from tests.importers.tflite_networks import constant

ENGINES = ("xnnpack", "tflite-neon", "tflite-reference")


# --- LiteRT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fully_connected(tmp_path: Path, engine: str, channels: bool, symmetric: bool) -> None:
    for seed, (rows, width, outputs) in enumerate([(1500, 16, 5), (300, 13, 8), (40, 67, 4), (1, 1, 1), (9, 300, 3)]):
        rng = np.random.default_rng([seed, channels])
        weights = rng.integers(-127, 128, (outputs, width))
        scale = (rng.uniform(0.5, 2, outputs if channels else ()) / 100).astype(np.float32)
        inputs, biases = (near_ties(seed, rows, width), spread(seed, rows, width)), (None, spread(9, outputs))
        for values, bias in product(inputs, biases):
            layer = Layer("FULLY_CONNECTED", values, weights, scale, (rows, outputs), bias,
                          options={"asymmetricQuantizeInputs": not symmetric})  # fmt: skip
            how = HYBRIDS[engine].of("product", per_channel=channels and outputs > 1, symmetric=symmetric)
            expected = how.layer(values, lambda steps, weights=weights: steps @ weights.T, scale, bias)
            assert_same(layer.results(tmp_path, engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("channels", "symmetric", "adjoint"), [(False, True, False), (True, False, True)])
def test_batch_matmul(tmp_path: Path, engine: str, channels: bool, symmetric: bool, adjoint: bool) -> None:
    values = near_ties(3, 3 * 50, 24).reshape(3, 50, 24)
    rng = np.random.default_rng(1)
    weights = rng.integers(-127, 128, (3, 24, 6))
    scale = (rng.uniform(0.5, 2, 6 if channels else ()) / 100).astype(np.float32)
    stored, axis = (weights.swapaxes(1, 2), 1) if adjoint else (weights, 2)
    layer = Layer("BATCH_MATMUL", values, stored, scale, (3, 50, 6), axis=axis, version=4,
                  options={"adjY": adjoint, "asymmetricQuantizeInputs": not symmetric})  # fmt: skip
    how = HYBRIDS[engine].of("product", per_channel=channels, symmetric=symmetric)
    assert_same(layer.results(tmp_path, engine), how.layer(values, lambda steps: steps @ weights, scale))


IMAGES = [
    Image(), Image(strides=(2, 1), kernel=(3, 2)), Image(dilations=(2, 2), same=False), Image(kernel=(1, 1)),
    Image(kernel=(1, 1), strides=(2, 2), same=False),
]  # fmt: skip


def image(seed: int, samples: int, channels: int) -> Array:
    """Samples of 9 x 7: the first is spread, the others lie near ties."""
    values = near_ties(seed, samples, 9 * 7 * channels)
    values[0] = spread(seed, 9 * 7 * channels)
    return values.reshape(samples, 9, 7, channels)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [False, True])
def test_convolution(tmp_path: Path, engine: str, groups: int, channels: bool) -> None:
    kind: HybridLayer = "convolution" if groups == 1 else "grouped convolution"
    if groups == 2 and not channels and engine != "xnnpack":
        with pytest.raises(PlanError, match="no dynamic-range kernel of a grouped convolution with one scale"):
            HYBRIDS[engine].of(kind, per_channel=channels, symmetric=False)
        return
    for seed, (moves, samples) in enumerate(product(IMAGES, (1, 4))):
        pointwise = (moves.kernel, moves.strides, groups) == ((1, 1), (1, 1), 1)
        exact: HybridLayer = "pointwise convolution" if pointwise else kind
        how = HYBRIDS[engine].of(exact, per_channel=channels, symmetric=False)
        rng = np.random.default_rng(seed)
        weights = rng.integers(-127, 128, (6, *moves.kernel, 4 // groups))
        scale = (rng.uniform(0.5, 2, 6 if channels else ()) / 100).astype(np.float32)

        def sums(steps: Array, moves: Image = moves, weights: Array = weights) -> Array:
            parts = zip(np.split(moves.patches(steps), groups, axis=-1), np.split(weights, groups), strict=True)
            return np.concatenate([np.einsum("nhwijc,oijc->nhwo", patch, part) for patch, part in parts], axis=-1)

        values, bias = image(seed, samples, 4), spread(seed, 6)
        expected = how.layer(values, sums, scale, bias)
        layer = Layer("CONV_2D", values, weights, scale, expected.shape, bias, version=5, options=moves.options)
        assert_same(layer.results(tmp_path, engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("inputs", "multiplier"), [(3, 2), (5, 1), (1, 7), (8, 1)])
def test_depthwise_convolution(tmp_path: Path, engine: str, inputs: int, multiplier: int) -> None:
    how = HYBRIDS[engine].of("depthwise convolution", per_channel=True, symmetric=False)
    outputs = inputs * multiplier
    for seed, moves in enumerate(IMAGES):
        rng = np.random.default_rng(seed)
        weights = rng.integers(-127, 128, (1, *moves.kernel, outputs))
        scale = (rng.uniform(0.5, 2, outputs) / 100).astype(np.float32)

        def sums(steps: Array, moves: Image = moves, weights: Array = weights) -> Array:
            kernel = weights.reshape(*moves.kernel, inputs, multiplier)
            made = np.einsum("nhwijc,ijcm->nhwcm", moves.patches(steps), kernel)
            return made.reshape(*made.shape[:3], outputs)

        values, bias = image(seed, 3, inputs), spread(seed, outputs)
        expected = how.layer(values, sums, scale, bias)
        layer = Layer("DEPTHWISE_CONV_2D", values, weights, scale, expected.shape, bias, axis=3, version=6,
                      options={**moves.options, "depthMultiplier": multiplier})  # fmt: skip
        assert_same(layer.results(tmp_path, engine), expected)


def test_depthwise_convolutions_need_a_scale_for_each_channel() -> None:
    with pytest.raises(PlanError, match="no dynamic-range kernel of a depthwise convolution with one scale"):
        HYBRIDS["xnnpack"].of("depthwise convolution", per_channel=False, symmetric=False)


@pytest.mark.parametrize("channels", [False, True])
def test_transposed_convolution(tmp_path: Path, channels: bool) -> None:
    rng = np.random.default_rng(4)
    weights = rng.integers(-127, 128, (3, 3, 3, 4))  # [out, rows, columns, in]
    scale = (rng.uniform(0.5, 2, 3 if channels else ()) / 100).astype(np.float32)
    values, bias = image(1, 4, 4), spread(1, 3)

    def sums(steps: Array) -> Array:
        made = np.zeros((len(steps), 19, 15, 3), np.int64)
        for row, column in np.ndindex(9, 7):
            patch = np.einsum("nc,ohwc->nhwo", steps[:, row, column], weights)
            made[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += patch
        return made[:, :18, :14]  # SAME: the padding of 1 lies behind

    how = HYBRIDS["xnnpack"].of("transposed convolution", per_channel=channels, symmetric=False)
    shape = (4, 18, 14, 3)
    layer = Layer("TRANSPOSE_CONV", values, weights, scale, shape, bias, before=(constant(shape, np.int32),),
                  options={"strideH": 2, "strideW": 2, "padding": 0})  # fmt: skip
    assert_same(layer.results(tmp_path, "xnnpack"), how.layer(values, sums, scale, bias))


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def run_onnx(
    nodes: list[onnx.NodeProto], outputs: dict[str, int], constants: dict[str, Array], *samples: Array
) -> list[list[Array]]:
    """Run a network of one input, x, on each of the samples."""
    rank = samples[0].ndim
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    engine = onnxruntime.InferenceSession(made.SerializeToString(), session_options(threads=1))
    return [engine.run(None, {"x": sample}) for sample in samples]


def test_onnx_runtime_rounds_a_tensor_as_its_operator_says() -> None:
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["levels", "scale", "zero_point"])]
    kinds = {"levels": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero_point": TensorProto.UINT8}
    values = near_ties(8, 700, 40)
    expected = round_like_onnx(values)
    for row, (levels, scale, zero_point) in enumerate(run_onnx(nodes, kinds, {}, *values)):
        assert (levels == expected.levels[row]).all()
        assert (scale, zero_point) == (expected.scale[row, 0], expected.zero_point[row, 0])


def onnx_layer(
    operator: str, bias: Array | None, weights: Array, scale: Array, values: Array, **attributes: Any
) -> Array:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["levels", "x_scale", "x_zero_point"]),
        helper.make_node(operator, ["levels", "w", "x_zero_point"], ["sums"], **attributes),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "w_scale"], ["scale"]),
        helper.make_node("Mul", ["real", "scale"], ["y" if bias is None else "product"]),
    ]
    constants = {"w": weights.astype(np.int8), "w_scale": scale}
    if bias is not None:
        nodes.append(helper.make_node("Add", ["product", "b"], ["y"]))
        constants["b"] = bias
    return run_onnx(nodes, {"y": TensorProto.FLOAT}, constants, values)[0][0]


def of_onnxruntime(layer: HybridLayer, channels: bool) -> Hybrid:
    return HYBRIDS["onnxruntime"].of(layer, per_channel=channels, symmetric=False)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("bias", [None, spread(2, 11)], ids=["none", "bias"])
def test_matrix_products_of_onnx_runtime(channels: bool, bias: Array | None) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        weights = rng.integers(-127, 128, (40, 11))
        scale = (rng.uniform(0.5, 2, 11 if channels else ()) / 100).astype(np.float32)
        values = near_ties(seed, 1, 40 * 30).reshape(30, 40)
        expected = of_onnxruntime("product", channels).layer(values, lambda steps, w=weights: steps @ w, scale, bias)
        assert_same(onnx_layer("MatMulInteger", bias, weights, scale, values), expected)


@pytest.mark.parametrize("channels", [False, True])
def test_convolutions_of_onnx_runtime(channels: bool) -> None:
    moves = Image(same=False, strides=(2, 2))
    rng = np.random.default_rng(7)
    weights = rng.integers(-127, 128, (6, 4, 3, 3))
    scale = (rng.uniform(0.5, 2, 6 if channels else ()) / 100).astype(np.float32)
    values, bias = near_ties(7, 1, 3 * 4 * 81).reshape(3, 4, 9, 9), spread(7, 6)
    made = onnx_layer(
        "ConvInteger", bias.reshape(6, 1, 1), weights, scale.reshape(6, 1, 1) if channels else scale, values,
        strides=[2, 2], kernel_shape=[3, 3],
    )  # fmt: skip

    def sums(steps: Array) -> Array:
        return np.einsum("nhwijc,ocij->nhwo", moves.patches(steps), weights)

    expected = of_onnxruntime("convolution", channels).layer(values.transpose(0, 2, 3, 1), sums, scale, bias)
    assert_same(made.transpose(0, 2, 3, 1), expected)

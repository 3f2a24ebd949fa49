"""Rows of inputs times rows of weights are the layer's output, for all that a layer's attributes can say."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.recovery import matrix_form as module
from narrowgauge.recovery.matrix_form import matrix_form, spread_positions
from tests.planning.networks import network, node_of, normal, run, weights_of

ALL = 10**6


def image_layer(body: str, weights: np.ndarray, inputs: int, *, dimensions: int = 2) -> ir.Model:
    axes = ", ".join("abc"[:dimensions])
    out = ", ".join("def"[:dimensions])
    return network(f"float[n, {inputs}, {axes}] x", f"float[n, o, {out}] y", body, w=weights)


LAYERS = {
    "convolution": (image_layer("y = Conv(x, w)", normal(6, 4, 3, 3), 4), normal(2, 4, 7, 8)),
    "pads, strides, dilations": (
        image_layer("y = Conv<pads = [2, 0, 1, 3], strides = [2, 3], dilations = [2, 1]>(x, w)", normal(6, 4, 3, 2), 4),
        normal(2, 4, 9, 8),
    ),
    "groups": (
        image_layer("y = Conv<group = 2, pads = [1, 1, 1, 1]>(x, w)", normal(6, 2, 3, 3), 4), normal(2, 4, 5, 5),
    ),
    "depthwise": (
        image_layer("y = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w)", normal(8, 1, 3, 3), 4), normal(3, 4, 5, 5),
    ),
    "one axis": (
        image_layer("y = Conv<auto_pad = \"VALID\">(x, w)", normal(6, 4, 3), 4, dimensions=1), normal(2, 4, 9),
    ),
    "three axes": (
        image_layer("y = Conv<strides = [1, 2, 1]>(x, w)", normal(3, 2, 2, 3, 1), 2, dimensions=3),
        normal(2, 2, 4, 7, 3),
    ),
    "transposed": (
        image_layer("y = ConvTranspose<pads = [1, 0, 0, 1], strides = [2, 3], output_padding = [1, 2]>(x, w)",
                    normal(4, 5, 3, 4), 4),
        normal(2, 4, 5, 3),
    ),
    "transposed with groups": (
        image_layer("y = ConvTranspose<group = 2, strides = [2, 1], dilations = [1, 2]>(x, w)", normal(4, 3, 2, 3), 4),
        normal(2, 4, 4, 5),
    ),
    "gemm": (network("float[n, 5] x", "float[n, 7] y", "y = Gemm(x, w)", w=normal(5, 7)), normal(4, 5)),
    "transposed gemm": (
        network("float[n, 5] x", "float[n, 7] y", "y = Gemm<transB = 1>(x, w)", w=normal(7, 5)), normal(4, 5),
    ),
    "product": (network("float[n, t, 5] x", "float[n, t, 7] y", "y = MatMul(x, w)", w=normal(5, 7)), normal(4, 3, 5)),
}  # fmt: skip


def written(model: ir.Model, samples: np.ndarray) -> np.ndarray:
    """The layer's output as [rows, channels]."""
    output = run(model, samples)
    moved = np.moveaxis(output, 1, -1) if node_of(model, "y").op_type.startswith("Conv") else output
    return moved.reshape(-1, moved.shape[-1])


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_rows_times_weights_are_the_output(layer: str, parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = LAYERS[layer]
    if parts:
        monkeypatch.setattr(module, "MOST_INPUTS", 4)
    form = matrix_form(node_of(model, "y"))
    if form is None:
        assert parts
        assert node_of(model, "y").attributes.get_int("group", 1) > 1
        return
    weights = form.weights(weights_of(model, "w"))
    np.testing.assert_array_equal(form.restored(weights), weights_of(model, "w"))
    products = form.rows(samples, ALL, np.random.default_rng(0)) @ weights.transpose(0, 2, 1)
    found = np.stack([form.channels(row) for row in products.transpose(1, 0, 2)])
    np.testing.assert_allclose(found, written(model, samples), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_fewer_rows_are_some_of_all(layer: str) -> None:
    model, samples = LAYERS[layer]
    form = matrix_form(node_of(model, "y"))
    assert form is not None
    every = form.rows(samples, ALL, np.random.default_rng(0))[0]
    few = form.rows(samples, 6, np.random.default_rng(0))[0]
    assert len(few) <= 6
    assert {row.tobytes() for row in few} <= {row.tobytes() for row in every}


@pytest.mark.parametrize(
    "model",
    [
        image_layer('y = Conv<auto_pad = "SAME_UPPER">(x, w)', normal(6, 4, 3, 3), 4),
        image_layer("y = ConvTranspose<output_shape = [9, 9]>(x, w)", normal(4, 6, 3, 3), 4),
        network("float[5, n] x", "float[n, 7] y", "y = Gemm<transA = 1>(x, w)", w=normal(5, 7)),
        network("float[2, n, 5] x", "float[2, n, 7] y", "y = MatMul(x, w)", w=normal(2, 5, 7)),
        network("float[n, 5] x", "float[n] y", "y = MatMul(x, w)", w=normal(5)),
        network("float[n, 5] x", "float[n, 0] y", "y = MatMul(x, w)", w=normal(5, 0)),
        network("float[n, 5] x, float[5, 5] w", "float[n, 5] y", "y = MatMul(x, w)"),
        network("float[n, 5] x", "float[n, 5] y", "y = Relu(x)"),
    ],
)
def test_what_has_no_matrix_form(model: ir.Model) -> None:
    assert matrix_form(node_of(model, "y")) is None


def test_positions_are_spread_and_differ() -> None:
    found = spread_positions(1000, 10, np.random.default_rng(0))
    assert (found // 100 == np.arange(10)).all()
    np.testing.assert_array_equal(spread_positions(4, 10, np.random.default_rng(0)), np.arange(4))
    assert spread_positions(0, 10, np.random.default_rng(0)).size == 0

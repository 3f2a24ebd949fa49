"""What was written beside the plan: number by number where the order of a layer's weights is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.errors import OutputError
from narrowgauge.exporters.tflite.checking import check
from narrowgauge.exporters.tflite.conversion import Conversion, convert
from narrowgauge.exporters.tflite.forms import packed
from narrowgauge.exporters.tflite.litert import serialized
from tests.exporters.tflite.planning import everything_in_integers
from tests.exporters.tflite.running import Array, exported, feed_of
from tests.planning.networks import network, normal

pytest.importorskip("ai_edge_litert", reason="its schema writes and reads the files")

LAYERS = {
    "convolution": (
        "float[n, 3, 8, 9] x", "float[n, 8, h, v] y", "y = Conv<pads = [1, 1, 1, 1]>(x, w, b)",
        {"w": normal(8, 3, 3, 3), "b": normal(8)},
    ),
    "groups": ("float[n, 6, 8, 9] x", "float[n, 8, h, v] y", "y = Conv<group = 2>(x, w)", {"w": normal(8, 3, 3, 3)}),
    "one axis": ("float[n, 3, 8] x", "float[n, 8, h] y", "y = Conv(x, w)", {"w": normal(8, 3, 3)}),
    "depthwise": ("float[n, 3, 8, 9] x", "float[n, 6, h, v] y", "y = Conv<group = 3>(x, w)", {"w": normal(6, 1, 3, 3)}),
    "transposed": (
        "float[n, 3, 4, 5] x", "float[n, 6, h, v] y", "y = ConvTranspose<dilations = [2, 1]>(x, w)",
        {"w": normal(3, 6, 3, 3)},
    ),
    "product": ("float[n, 6] x", "float[n, 6] y", "y = MatMul(x, w)", {"w": normal(6, 6)}),
    "Gemm": ("float[n, 6] x", "float[n, 6] y", "y = Gemm<transB = 1>(x, w, b)", {"w": normal(6, 6), "b": normal(6)}),
    "flattened": (
        "float[n, 4, 3, 4] x", "float[n, 6] y",
        "c = Conv(x, k) r = Relu(c) f = Flatten(r) y = Gemm(f, w)", {"k": normal(4, 4, 1, 1), "w": normal(48, 6)},
    ),
}  # fmt: skip


def made(layer: str, single: bool) -> tuple[ir.Model, Conversion, object, ir.Model]:
    first, last, body, weights = LAYERS[layer]
    model = network(first, last, body, **weights)
    kind = "uint8" if single else "int8"
    plan = everything_in_integers(model, feed_of(model), kind, kind if single else "int8_narrow")
    return model, convert(model, plan), plan, exported(model, plan).simulated


def checked(layer: str, folder: Path, change: Callable[[Array], Array], tensor: str = "w", *, single: bool) -> None:
    """Write a file in which the levels of a tensor are changed, and compare it with the plan."""
    model, conversion, plan, simulated = made(layer, single)
    tensors = tuple(
        replace(one, data=packed(np.ascontiguousarray(change(one.array())))) if one.name == tensor else one
        for one in conversion.graph.tensors
    )
    graph = replace(conversion.graph, tensors=tensors)
    path = folder / "model.tflite"
    path.write_bytes(
        serialized(graph, inputs=conversion.inputs, outputs=conversion.outputs, metadata={}, description="changed")
    )
    check(path, graph, plan, simulated, conversion.flattened(model))


@pytest.mark.parametrize("single", [False, True], ids=["channels", "tensor"])
@pytest.mark.parametrize("layer", LAYERS)
def test_permuted_weights_are_refused(layer: str, single: bool, tmp_path: Path) -> None:
    """With the same numbers in each channel, so that scales, sums and extremes are the same."""
    checked(layer, tmp_path, lambda levels: levels, single=single)
    axis = -2 if layer == "depthwise" else -1
    with pytest.raises(OutputError, match="'w': what was written has other levels"):
        checked(layer, tmp_path, lambda levels: np.flip(levels, axis), single=single)


@pytest.mark.parametrize("layer", ["convolution", "Gemm"])
def test_permuted_biases_are_refused(layer: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'b': what was written has other levels"):
        checked(layer, tmp_path, np.flip, "b", single=True)


def test_columns_of_a_flattened_image_must_lie_as_it_does(tmp_path: Path) -> None:
    def as_the_network(levels: Array) -> Array:
        return np.moveaxis(levels.reshape(6, 3, 4, 4), -1, 1).reshape(levels.shape)

    with pytest.raises(OutputError, match="'w': what was written has other levels"):
        checked("flattened", tmp_path, as_the_network, single=False)

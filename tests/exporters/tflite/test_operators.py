"""Every operator, as a float file and on levels, in LiteRT against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.exporters.formats import FORMATS
from narrowgauge.exporters.tflite.writers import WRITERS
from narrowgauge.importers.tflite import convert
from tests.exporters.tflite.networks import CASES, case
from tests.exporters.tflite.planning import everything_in_integers
from tests.exporters.tflite.running import exported, feed_of, in_litert, in_onnxruntime, operators, written

pytest.importorskip("ai_edge_litert", reason="LiteRT runs what is written")

LAYERS = (
    "conv_asymmetric", "conv_clip", "conv_relu6", "depthwise_multiplier", "grouped", "conv_1d", "transposed_cropped",
    "transposed_dilated", "gemm", "gemm_transposed", "matmul", "flatten_gemm", "max_pool_padded", "average_pool_same",
    "average_pool_padded", "pool_head", "add_pair", "mul_pair", "max_pair", "squeeze_excite", "sigmoid", "softmax",
    "leakyrelu", "prelu", "concat", "pad_number", "slice_conv", "shuffle", "tokens", "relu", "div_pair", "reducemean_0",
)  # fmt: skip

COARSE = {"gelu": 10, "gelu_tanh": 10, "softmax_channels": 8, "log_softmax": 2, "tanh": 2, "reduce_conv": 2}
"""Steps that kernels are off by which look up rough tables, or where a step of the input is several of the output."""


@pytest.mark.parametrize("name", CASES)
def test_float_file_computes_what_the_network_does(name: str, tmp_path: Path) -> None:
    model = case(name)
    feed = feed_of(model)
    file = written(model, tmp_path).runnable
    assert file is not None
    expected, found = in_onnxruntime(model, feed), in_litert(file, model, feed)
    for output, array in expected.items():
        assert found[output].shape == array.shape
        np.testing.assert_allclose(found[output], array, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "activations", "weights"),
    [
        *((name, "int8", "int8_narrow") for name in CASES),
        *((name, "uint8", "uint8") for name in LAYERS),
        *((name, "int16", "int8_narrow") for name in LAYERS),
        *((name, "int8", "int4") for name in ("conv", "depthwise", "grouped", "transposed", "gemm", "matmul_stack")),
        *((name, "uint8", "int8_narrow") for name in ("conv", "depthwise", "gemm", "transposed")),
    ],
)
def test_levels_are_within_a_step_of_the_simulation(name: str, activations: str, weights: str, tmp_path: Path) -> None:
    model = case(name)
    feed = feed_of(model)
    plan = everything_in_integers(model, feed, activations, weights)
    export = exported(model, plan)
    file = FORMATS["tflite"].write(export, tmp_path).runnable
    assert file is not None
    expected, found = in_onnxruntime(export.simulated, feed), in_litert(file, model, feed)
    for output, array in expected.items():
        assert found[output].shape == array.shape
        encoding = plan.encodings.get(output)
        if name == "cast":  # a number cut off just below or above a whole one
            continue
        step = float(encoding.scale) if isinstance(encoding, Encoding) else 1.0
        steps = np.abs(found[output].astype(np.float64) - array) / step
        assert steps.max(initial=0) < COARSE.get(name, 1) + 0.01


@pytest.mark.parametrize("name", ["conv_stride", "depthwise_multiplier", "conv_relu6", "average_pool_same", "concat"])
def test_float_file_is_read_as_the_network(name: str, tmp_path: Path) -> None:
    model = case(name)
    file = written(model, tmp_path).runnable
    assert file is not None
    back = convert(file).model
    feed = feed_of(model)
    source = back.graph.inputs[0]
    turned = {str(source.name): feed["x"].transpose(0, 2, 3, 1)}
    taken = turned if source.shape[-1] == feed["x"].shape[1] else {str(source.name): feed["x"]}
    for one, other in zip(in_onnxruntime(back, taken).values(), in_onnxruntime(model, feed).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_every_operator_has_a_network() -> None:
    there = {node.op_type for name in CASES for node in case(name).graph}
    elsewhere = {"SequenceLstm", "Dropout", "Swish", "Identity"}
    assert set(WRITERS) - there <= elsewhere


def test_integer_file_has_no_float_operator_between_its_ends(tmp_path: Path) -> None:
    model = case("squeeze_excite")
    plan = everything_in_integers(model, feed_of(model))
    file = written(model, tmp_path, plan, "tflite-integer").runnable
    assert file is not None
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(operators(file))

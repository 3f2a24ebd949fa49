"""Real networks: no transposes, no more operators and bytes than others' files, the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrowgauge.importers.opening import load
from narrowgauge.runtimes.litert import open_program
from tests.exporters.tflite.running import feed_of, in_litert, in_onnxruntime, operators, written
from tests.planning.networks import planned, seen

pytest.importorskip("ai_edge_litert", reason="LiteRT runs what is written")

OTHERS = {
    "mlperf_tiny/pretrainedResnet.tflite": "mlperf_tiny/pretrainedResnet_quant.tflite",
    "mlperf_tiny/kws_ref_model_float32.tflite": "mlperf_tiny/kws_ref_model.tflite",
    "mlperf_tiny/vww_96_float.tflite": "mlperf_tiny/vww_96_int8.tflite",
}
"""Float network -> the int8 file that others made of it."""


@pytest.mark.parametrize("name", [*OTHERS, "cifar_resnet/resnet20.onnx", "mobilenet_v1_025/mobilenet_v1_0.25_224.onnx"])
def test_float_network_survives_without_transposes(name: str, zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / "models" / name).model
    feed = feed_of(model)
    file = written(model, tmp_path).runnable
    assert file is not None
    assert "TRANSPOSE" not in operators(file)
    for output, array in in_onnxruntime(model, feed).items():
        np.testing.assert_allclose(in_litert(file, model, feed)[output], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_integer_file_is_no_larger_than_others(name: str, zoo: Path, tmp_path: Path) -> None:
    model = load(zoo / "models" / name).model
    plan = planned(model, seen(model, next(iter(feed_of(model).values()))), "tflite")
    file = written(model, tmp_path, plan, "tflite-integer").runnable
    assert file is not None
    other = zoo / "models" / OTHERS[name]
    assert operators(file) == operators(other)
    assert file.stat().st_size <= other.stat().st_size


@pytest.mark.parametrize(
    "name",
    ["mlperf_tiny/kws_ref_model", "mlperf_tiny/ad01_int8", "mlperf_tiny/str_ww_ref_model",
     "tflite_int8/mobilenet_v1_0.25_224_quant", "tflite_int8/conv_fc_mnist_srq_a8w8"],
)  # fmt: skip
def test_quantized_file_goes_out_as_it_came_in(name: str, zoo: Path, tmp_path: Path) -> None:
    source = zoo / "models" / f"{name}.tflite"
    imported = load(source)
    assert imported.plan is not None
    file = written(imported.original, tmp_path, imported.plan, "tflite-integer").runnable
    assert file is not None
    assert operators(file) == operators(source)
    assert file.stat().st_size <= source.stat().st_size
    first, second = open_program(source, threads=1), open_program(file, threads=1)
    (taken,), (given,) = first.inputs, second.inputs
    array = np.random.default_rng(0).normal(size=[extent or 1 for extent in taken.shape]).astype(np.float32)
    one = first.run({taken.name: array})
    other = second.run({given.name: array.reshape([extent or 1 for extent in given.shape])})
    for array, twin in zip(one.values(), other.values(), strict=True):
        np.testing.assert_array_equal(array, twin)

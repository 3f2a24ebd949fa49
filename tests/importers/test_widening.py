"""Networks of 16-bit floating point are worked on in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import narrowgauge
from narrowgauge.importers.opening import load


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Two layers in float16, with a constant inside and a conversion at the end."""
    generator = np.random.default_rng(0)
    w, v = (generator.normal(size=shape).astype(np.float16) for shape in ((8, 3, 3, 3), (8, 5)))
    two = numpy_helper.from_array(np.array(2, np.float16))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("ReduceMean", ["b", "axes"], ["c"], "mean", keepdims=0),
        helper.make_node("Constant", [], ["two"], "two", value=two),
        helper.make_node("Mul", ["c", "two"], ["d"], "twice"),
        helper.make_node("MatMul", ["d", "v"], ["e"], "matmul"),
        helper.make_node("Cast", ["e"], ["y"], "cast", to=TensorProto.FLOAT16),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in (("w", w), ("v", v))]
    constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    graph = helper.make_graph(
        nodes, "half", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 5])], constants,
    )  # fmt: skip
    path = tmp_path / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_it_computes_the_same_but_for_rounding(half: Path) -> None:
    imported = load(half)
    assert any("16-bit floating point" in note for note in imported.notes)
    x = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float16)
    given = onnxruntime.InferenceSession(half).run(None, {"x": x})[0]
    wide = onnxruntime.InferenceSession(onnx_bytes(imported.model)).run(None, {"x": x.astype(np.float32)})[0]
    assert wide.dtype == np.float32
    np.testing.assert_allclose(given, wide, atol=0.01 * np.abs(wide).max())


def test_it_is_quantized_like_any_other(half: Path) -> None:
    x = np.random.default_rng(1).normal(size=(64, 3, 8, 8)).astype(np.float16)
    result = narrowgauge.quantize(half, {"x": x}, target="tflite", samples=32, analysis="none")
    assert {"x", "w", "v"} <= set(result.plan.encodings)
    assert result.summary["sqnr_db"] > 20


def onnx_bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString())

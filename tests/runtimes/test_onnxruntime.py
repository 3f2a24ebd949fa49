"""ONNX Runtime opens whatever we write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.runtimes.engines import open_program
from tests.lowering.integer.networks import simulated
from tests.passes.networks import node


def test_results_with_a_scale_for_each_channel_run(tmp_path: Path) -> None:
    one = Encoding(
        type=integer_type("uint8"),
        granularity=PerTensor(),
        scale=np.asarray(0.05, np.float32),
        zero_point=np.asarray(100, np.int32),
    )
    many = Encoding(
        type=integer_type("uint8"), granularity=PerAxis(-1), scale=np.asarray([0.1, 0.2, 0.4, 0.8], np.float32),
        zero_point=np.asarray([100, 90, 128, 200], np.int32),
    )  # fmt: skip
    nodes = [node("MatMul", "a b", "y")]
    qdq = simulated(nodes, {"a": ["n", 4], "b": [4, 4]}, {"a": one, "b": one, "y": many})
    write_onnx(qdq, tmp_path / "simulated.onnx")
    rng = np.random.default_rng(2)
    feed = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(4, 4)).astype(np.float32)}
    found = open_program(tmp_path / "simulated.onnx").run(feed)["y"]
    assert (np.abs(found - feed["a"] @ feed["b"]) <= many.scale / 2 + 0.3).all()


def test_activations_with_a_scale_for_each_channel_run(tmp_path: Path) -> None:
    kinds = {
        name: Encoding(
            type=integer_type(kind), granularity=PerAxis(axis), scale=np.exp2(-np.arange(4.0, 8.0)).astype(np.float32),
            zero_point=np.asarray(zero_points, np.int32),
        )
        for name, kind, axis, zero_points in (("x", "uint8", -1, [3, 7, 100, 0]), ("w", "int8", 1, [0] * 4))
    }  # fmt: skip
    weights = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) / 8
    qdq = simulated([node("MatMul", "x w", "y")], {"x": ["n", 4]}, kinds, {"w": weights})
    write_onnx(qdq, tmp_path / "simulated.onnx")
    program = open_program(tmp_path / "simulated.onnx")
    feed = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    scale, zero_point = kinds["x"].scale, kinds["x"].zero_point
    rounded = (np.clip(np.rint(feed / scale) + zero_point, 0, 255) - zero_point) * scale
    steps = np.clip(np.rint(weights / kinds["w"].scale), -128, 127) * kinds["w"].scale
    np.testing.assert_allclose(program.run({"x": feed})["y"], rounded @ steps, rtol=1e-5, atol=1e-6)

"""LiteRT as an engine: names, axes that may change, integers at the ends, states, errors, silence."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the engine")

from narrowgauge.errors import ModelError, RuntimeFailure
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.tflite import convert
from narrowgauge.runtimes.engines import open_program
from tests.importers.tflite_networks import Op, T, constant, packed, run_litert

RNG = np.random.default_rng(31)


def sum_network(folder: Path) -> Path:
    """Add a constant, over a batch that may change."""
    tensors = [
        T(shape=(1, 3), signature=[-1, 3], name="x:0"), constant([1, 2, 3], np.float32),
        T(shape=(1, 3), signature=[-1, 3], name="sum"),
    ]  # fmt: skip
    path = folder / "sum.tflite"
    path.write_bytes(packed(tensors, [Op(name="ADD", inputs=[0, 1], outputs=[2], options={})], [0], [2]))
    return path


def quantized_network(folder: Path, kind: str = "INT8", scale: float = 0.0371, zero_point: int = -5) -> Path:
    """Round to integers and back."""
    ends = {"type": kind, "scale": [scale], "zero_point": [zero_point]}
    tensors = [T(shape=(2, 50), name="x", **ends), T(shape=(2, 50), name="y", **ends)]
    path = folder / "quantized.tflite"
    path.write_bytes(packed(tensors, [Op(name="MAXIMUM", inputs=[0, 0], outputs=[1], options={}, version=2)], [0], [1]))
    return path


def test_a_program_runs_by_the_importer_s_names_in_any_batch(tmp_path: Path) -> None:
    path = sum_network(tmp_path)
    program = open_program(path, threads=1)
    assert [(spec.name, spec.shape, spec.dtype) for spec in program.inputs] == [("x:0", (None, 3), np.float32)]
    assert program.outputs == tuple(str(value.name) for value in convert(path).model.graph.outputs) == ("sum",)
    for batch in (1, 4, 2):
        x = RNG.normal(size=(batch, 3)).astype(np.float32)
        np.testing.assert_array_equal(program.run({"x:0": x})["sum"], x + np.float32([1, 2, 3]))


@pytest.mark.parametrize(
    ("kind", "scale", "zero_point"), [("INT8", 0.0371, -5), ("UINT8", 0.02, 131), ("INT16", 0.0002, 0)]
)
def test_real_numbers_are_rounded_on_the_way_in_and_given_on_the_way_out(
    tmp_path: Path, kind: str, scale: float, zero_point: int
) -> None:
    path = quantized_network(tmp_path, kind, scale, zero_point)
    program = open_program(path, threads=1)
    assert program.inputs[0].dtype == np.float32
    x = (RNG.normal(size=(2, 50)) * 4).astype(np.float32)
    (imported,) = open_session(convert(path).model, simulate=True).run(None, {"x": x})
    found = program.run({"x": x})["y"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, imported)


def test_rounding_is_that_of_litert_s_quantize(tmp_path: Path) -> None:
    encoding = {"type": "INT8", "scale": [0.037], "zero_point": [-5]}
    tensors = [T(shape=(1, 4000), name="x"), T(shape=(1, 4000), name="y", **encoding)]
    path = tmp_path / "quantize.tflite"
    path.write_bytes(packed(tensors, [Op(name="QUANTIZE", inputs=[0], outputs=[1], options={})], [0], [1]))
    x = (np.arange(-2000, 2000) * np.float32(0.0185)).astype(np.float32)[np.newaxis]  # every other one a tie
    x[0, :3] = [np.inf, -np.inf, 1e30]
    (levels,) = run_litert(path, {"x": x})
    rounded = tmp_path / "quantized.tflite"
    tensors = [T(shape=(1, 4000), name="x", **encoding), T(shape=(1, 4000), name="y", **encoding)]
    rounded.write_bytes(
        packed(tensors, [Op(name="MAXIMUM", inputs=[0, 0], outputs=[1], options={}, version=2)], [0], [1])
    )
    found = open_program(rounded).run({"x": x})["y"]
    np.testing.assert_array_equal(np.rint(found / np.float32(0.037)) - 5, levels)


def test_runs_do_not_see_each_other_s_state(zoo: Path) -> None:
    program = open_program(zoo / "models" / "tflite_int8" / "trained_lstm.tflite", threads=1)
    feed = {program.inputs[0].name: RNG.normal(size=(1, 28, 28)).astype(np.float32)}
    first, second = (program.run(feed)[program.outputs[0]] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_runs_from_several_threads(tmp_path: Path) -> None:
    program = open_program(sum_network(tmp_path), threads=1)
    found: dict[int, bool] = {}

    def work(number: int) -> None:
        x = np.full((number + 1, 3), number, dtype=np.float32)
        found[number] = all(
            np.array_equal(program.run({"x:0": x})["sum"], x + np.float32([1, 2, 3])) for _ in range(20)
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.parametrize(
    ("feed", "expected"),
    [
        ({}, "expected the inputs 'x:0', got none"),
        ({"x:0": np.zeros((2, 4), np.float32)}, "could not run"),
        ({"x:0": np.zeros((2, 3), np.float64)}, "could not run"),
        ({"x:0": np.zeros(3, np.float32)}, "could not run"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, feed: dict[str, np.ndarray], expected: str
) -> None:
    program = open_program(sum_network(tmp_path))
    with pytest.raises(RuntimeFailure, match=expected) as refused:
        program.run(feed)
    assert "\n" not in str(refused.value)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(program.run({"x:0": x})["sum"], x + np.float32([1, 2, 3]))


def test_files_that_do_not_open(tmp_path: Path) -> None:
    path = tmp_path / "bad.tflite"
    path.write_bytes(b"not a network")
    with pytest.raises(ModelError, match="expected a TFLite network"):
        open_program(path)
    tensors = [T(shape=(2, 3)), T(shape=(2, 3))]
    path.write_bytes(packed(tensors, [Op(name="ABS", inputs=[0], outputs=[1], options={}, version=99)], [0], [1]))
    with pytest.raises(RuntimeFailure, match="LiteRT could not load") as refused:
        open_program(path)
    assert "\n" not in str(refused.value)


def test_nothing_is_printed(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pathlib; from narrowgauge.runtimes.engines import open_program; "
        "program = open_program(pathlib.Path(sys.argv[1])); "
        "program.run({'x:0': numpy.ones((2, 3), numpy.float32)})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sum_network(tmp_path))], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")

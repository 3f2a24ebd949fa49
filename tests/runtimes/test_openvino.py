"""OpenVINO runs ONNX, IR and TFLite by the file's own names, in real numbers, and says what it refuses in one line."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.errors import MissingDependencyError, ModelError, RuntimeFailure
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.lowering.integer.network import integer_network
from narrowgauge.runtimes.openvino import open_program
from tests.lowering.integer.networks import encoding, simulated
from tests.passes.networks import node
from tests.planning.networks import network, normal, run

pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")


@pytest.fixture
def model() -> ir.Model:
    """Two inputs, the second a batch of integers; two outputs."""
    return network(
        "float[n, 3, 8, 8] x, int64[n] k", "float[n, 4, 8, 8] y, float[n] z",
        "c = Conv<pads = [1, 1, 1, 1]>(x, w)  y = Relu(c)  z = Cast<to = 1>(k)", w=normal(4, 3, 3, 3),
    )  # fmt: skip


def save_ir(model: ir.Model, folder: Path) -> Path:
    import openvino

    write_onnx(model, folder / "m.onnx")
    openvino.save_model(openvino.Core().read_model(folder / "m.onnx"), folder / "m.xml", compress_to_fp16=False)
    return folder / "m.xml"


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("rows", [1, 3])
def test_names_types_and_results_are_the_networks_own(model: ir.Model, tmp_path: Path, suffix: str, rows: int) -> None:
    path = save_ir(model, tmp_path).with_suffix(suffix)
    program = open_program(path, threads=1)
    assert [str(spec) for spec in program.inputs] == ["'x' (float32, ? x 3 x 8 x 8)", "'k' (int64, ?)"]
    assert program.outputs == ("y", "z")
    feed = {"k": np.arange(rows), "x": normal(rows, 3, 8, 8)}
    found = program.run(feed)
    assert list(found) == ["y", "z"]
    np.testing.assert_allclose(found["y"], run(model, feed), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["z"], np.arange(rows, dtype=np.float32))


def test_results_of_a_run_outlive_the_next(model: ir.Model, tmp_path: Path) -> None:
    program = open_program(save_ir(model, tmp_path), threads=1)
    first = program.run({"x": normal(1, 3, 8, 8), "k": np.zeros(1, np.int64)})["y"]
    kept = first.copy()
    program.run({"x": normal(1, 3, 8, 8, seed=1), "k": np.zeros(1, np.int64)})
    np.testing.assert_array_equal(first, kept)


def test_a_feed_that_does_not_fit_is_one_line(model: ir.Model, tmp_path: Path) -> None:
    program = open_program(save_ir(model, tmp_path), threads=1)
    for feed in ({"x": normal(1, 3, 8, 8)}, {"x": normal(1, 5, 8, 8), "k": np.zeros(1, np.int64)}):
        with pytest.raises(RuntimeFailure, match="OpenVINO could not run the network: ") as failure:
            program.run(feed)
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_file_cut_short_is_one_line(model: ir.Model, tmp_path: Path, suffix: str, kept: float) -> None:
    path = save_ir(model, tmp_path)
    content = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(RuntimeFailure, match=r"m\.xml: OpenVINO could not") as failure:
        open_program(path)
    assert "\n" not in str(failure.value)


def test_changed_bytes_end_in_an_error_of_ours_or_a_network(model: ir.Model, tmp_path: Path) -> None:
    path, rng = save_ir(model, tmp_path), np.random.default_rng(0)
    content = path.read_bytes()
    for _ in range(10):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 2):
            damaged[place] = rng.integers(32, 127)
        path.write_bytes(damaged)
        with contextlib.suppress(RuntimeFailure):
            open_program(path, threads=1)


def test_networks_in_integers_of_64_bits_are_refused(tmp_path: Path) -> None:
    kinds = {"x": encoding("int8", 0.1), "y": encoding("int8", 0.2)}
    qdq = simulated([node("Add", "x x", "y")], {"x": ["n", 4]}, kinds)
    write_onnx(integer_network(qdq, KERNELS["integer-only"]).model, tmp_path / "m.onnx")
    with pytest.raises(RuntimeFailure, match="computes int64 in int32"):
        open_program(tmp_path / "m.onnx")


@pytest.mark.parametrize(("name", "error"), [("none.xml", RuntimeFailure), ("none.onnx", ModelError)])
def test_no_file(tmp_path: Path, name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="none"):
        open_program(tmp_path / name)


def test_without_openvino_the_command_that_installs_it_is_named(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_ir(model, tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)  # Python's own way to mark a module as absent
    with pytest.raises(MissingDependencyError, match=r'pip install "narrowgauge\[openvino\]"'):
        open_program(path)


def test_an_operator_that_it_does_not_know_is_named(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float[n, 4] y", "y = Relu(x)")
    model.graph[0].op_type, model.graph[0].domain = "Nonsense", "my.domain"
    model.opset_imports["my.domain"] = 1
    write_onnx(model, tmp_path / "m.onnx")
    with pytest.raises(RuntimeFailure, match="Nonsense"):
        open_program(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "name",
    ["mlperf_tiny/ad01_int8.tflite", "tflite_int8/conv_fc_mnist_srq_a8w8.tflite", "mlperf_tiny/kws_ref_model.tflite"],
)
def test_integers_at_the_ends_of_tflite_are_real_numbers(zoo: Path, name: str) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="reads the encodings independently")
    path = zoo / "models" / name
    program = open_program(path, threads=1)
    reference = interpreter.Interpreter(str(path))
    reference.allocate_tensors()
    taken, given = reference.get_input_details()[0], reference.get_output_details()[0]
    assert [spec.dtype for spec in program.inputs] == [np.float32]
    scale, zero_point = taken["quantization"]
    levels = np.random.default_rng(0).integers(-128, 128, taken["shape"]).astype(np.int8)
    reference.set_tensor(taken["index"], levels)
    reference.invoke()
    out_scale, out_zero_point = given["quantization"]
    expected = (reference.get_tensor(given["index"]).astype(np.int64) - out_zero_point) * out_scale
    real = ((levels.astype(np.int64) - zero_point) * scale).astype(np.float32)
    found = program.run({program.inputs[0].name: real})[program.outputs[0]]
    assert found.dtype == np.float32
    steps = np.abs(found - expected) / out_scale
    assert np.allclose(steps, np.rint(steps), atol=1e-3)
    assert steps.max() <= 3, "kernels round differently, by a few steps at most"


_INTERRUPTED = """
import gc, os, signal, sys
from pathlib import Path
from narrowgauge.runtimes.openvino import open_program

first, second = (open_program(Path(sys.argv[1]), threads=1) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_survived_after_programs_were_closed(model: ir.Model, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, str(save_ir(model, tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n")

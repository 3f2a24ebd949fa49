"""The table of engines: which one runs a file, and what is said where none does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import narrowgauge
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import MissingDependencyError, RuntimeFailure
from narrowgauge.runtimes import engines
from narrowgauge.runtimes.engines import engine_for, engine_named, engines_for, file_bytes, open_program


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("a.onnx", "onnxruntime"), ("a.xml", "openvino"), ("A.TFLITE", "litert"), ("a.pt2", "torch"),
        ("model.tvm.so", "tvm"),
    ],
)  # fmt: skip
def test_a_files_usual_engine(name: str, first: str) -> None:
    assert engine_for(Path(name)).name == first


def test_an_engine_that_does_not_run_a_file_is_refused() -> None:
    with pytest.raises(RuntimeFailure, match=r"a\.onnx: tvm does not run such a file; expected one of \.tvm\.so"):
        engine_for(Path("a.onnx"), "tvm")
    with pytest.raises(RuntimeFailure, match=r"a\.gguf: no engine runs such a file"):
        engine_for(Path("a.gguf"))
    with pytest.raises(RuntimeFailure, match="expected a runtime, one of onnxruntime, litert"):
        engine_for(Path("a.onnx"), "abacus")
    assert engines_for(Path("a.gguf")) == []


def test_a_missing_engine_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(engine_named("openvino"), package="no_such_package")
    monkeypatch.setattr(engines, "ENGINES", (missing,))
    with pytest.raises(MissingDependencyError, match=r"OpenVINO .*not installed: pip install .*narrowgauge\[openvino"):
        open_program(Path("a.xml"))


def test_onnx_runtime_runs_onnx_files() -> None:
    program = open_program(network_path("digits_conv"), threads=1)
    images = digits().images[:3]
    outputs = program.run({program.inputs[0].name: images})
    assert tuple(outputs) == program.outputs
    assert np.mean(next(iter(outputs.values())).argmax(1) == digits().labels[:3]) == 1


def test_files_that_belong_together_are_counted_together(tmp_path: Path) -> None:
    for name, size in (("m.xml", 3), ("m.bin", 5), ("other.bin", 7), ("n.tvm.so", 11), ("n.tvm.params", 13)):
        (tmp_path / name).write_bytes(bytes(size))
    assert file_bytes(tmp_path / "m.xml") == 8
    assert file_bytes(tmp_path / "n.tvm.so") == 24


def test_external_data_of_an_onnx_file_are_counted(tmp_path: Path) -> None:
    network = ir.load(network_path("digits_conv"))
    ir.save(network, tmp_path / "m.onnx", external_data="weights")
    (tmp_path / "other.data").write_bytes(bytes(7))
    assert file_bytes(tmp_path / "m.onnx") == sum((tmp_path / name).stat().st_size for name in ("m.onnx", "weights"))
    quantized = narrowgauge.quantize(tmp_path / "m.onnx", recipe="weight-only", analysis="none")
    assert quantized.summary["size_bytes"]["float"] == file_bytes(tmp_path / "m.onnx")

"""`inspect`: what is in a file and what a target would do."""

from pathlib import Path

import onnx

from tests.cli import networks
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, record


def test_facts_are_those_of_the_file(written: Digits) -> None:
    model = onnx.load(written.network)
    found = record("inspect", written.network)
    assert found["opsets"] == {entry.domain: entry.version for entry in model.opset_import}
    assert sum(found["operators"].values()) == len(model.graph.node)
    assert found["parameters"] == sum(onnx.numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    assert found["inputs"] == [{"name": "image", "type": "FLOAT", "shape": [None, 1, 8, 8]}]
    assert not found["quantized"]
    assert found["operators"]["BatchNormalization"] > 0
    assert "BatchNormalization" not in found["simplified"]


def test_a_target_says_what_stays_float(tmp_path: Path) -> None:
    network = networks.unquantizable(tmp_path / "n.onnx")
    found = record("inspect", network, "--target", "onnxruntime")
    assert found["placed"]["integer"] == {"MatMul": 2}
    assert [node["name"] for node in found["placed"]["float_nodes"]] == ["erf_node"]
    assert "onnxruntime has no integer Erf" in done("inspect", network, "--target", "onnxruntime").stdout


def test_a_quantized_network_is_said_to_be(written: Digits) -> None:
    path = written.quantized / "integer.onnx"
    assert record("inspect", path)["quantized"]
    assert "already" in done("inspect", path, "--target", "tflite").stdout


def test_a_network_in_integers_alone_is_counted_and_refused_elsewhere(written: Digits, tmp_path: Path) -> None:
    data = ("--data", written.data, "--samples", 16, "--check-samples", 4, "--recipe", "plain", "--quiet")
    done("quantize", written.network, "--target", "integer-only", *data, "--out", tmp_path / "o")
    path = tmp_path / "o" / "model.onnx"
    found = record("inspect", path)
    assert found["quantized"]
    assert found["simplified"] is None
    assert sum(found["operators"].values()) == len(onnx.load(path).graph.node)
    assert "in integers alone" in done("inspect", path).stdout
    for arguments in (("inspect", path, "--target", "tflite"), ("import", path, "--out", tmp_path / "i")):
        assert "simulated.onnx" in error_of(*arguments)


def test_a_foreign_operator_is_shown(tmp_path: Path) -> None:
    assert "com.acme.Swirl" in done("inspect", networks.foreign(tmp_path / "n.onnx")).stdout


def test_errors(tmp_path: Path) -> None:
    assert "no such file" in error_of("inspect", tmp_path / "n.onnx")
    assert "expected a target" in error_of("inspect", networks.foreign(tmp_path / "n.onnx"), "--target", "abacus")

"""`verify`: a folder that is whole passes; anything else is named."""

import json
import shutil
from pathlib import Path

import pytest

from narrowgauge.demo import network_path
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, record


@pytest.fixture
def folder(written: Digits, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(written.quantized, tmp_path / "copy"))


def test_a_sound_folder_passes(written: Digits) -> None:
    found = record("verify", written.quantized, "--data", written.data)
    assert found["contradictions"] == []
    assert [pair["other"] for pair in found["pairs"]] == ["model.onnx", "simulated.onnx", "integer.onnx"]
    assert found["pairs"][0]["agreement_top1"] > 90
    assert "does what its summary says" in done("verify", written.quantized, "--data", written.data).stdout


def test_biases_that_recovery_changed_are_no_contradiction(zoo: Path, tmp_path: Path) -> None:
    """Depthwise layers need much of it: the network with other biases is no reference for the quantized one."""
    network = zoo / "models" / "mobilenet_v1_025" / "mobilenet_v1_0.25_224.onnx"
    images = zoo / "images" / "nips17"
    done(
        "quantize", network, "--data", images, "--samples", 32, "--check-samples", 64, "--out", tmp_path / "o",
        "--labels", images / "labels.txt", "--quiet",
    )  # fmt: skip
    found = record("verify", tmp_path / "o", "--data", images, "--samples", 64)
    assert found["contradictions"] == []
    assert found["pairs"][0]["reference"] == "original.onnx"
    assert found["pairs"][0]["agreement_top1"] > 75


@pytest.mark.parametrize("name", ["model.onnx", "simulated.onnx", "integer.onnx", "float.onnx", "plan.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_file_is_named(written: Digits, folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    said = error_of("verify", folder, "--data", written.data)
    assert str(path) in said
    assert "quantize again" in said


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"files": '])
def test_a_damaged_summary_is_named(written: Digits, folder: Path, content: str | None) -> None:
    path = folder / "summary.json"
    path.unlink() if content is None else path.write_text(content)
    assert "summary.json" in error_of("verify", folder, "--data", written.data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", []),
        ("files", {"../other/model.onnx": {"bytes": 1, "sha256": ""}}),
        ("files", {"model.onnx": {"bytes": "1"}}),
        ("runnable", "model.onnx"),
        ("runnable", {"file": "/somewhere/model.tvm.so", "runtime": "tvm"}),
        ("checked_samples", "many"),
        ("sqnr_db", [1]),
        ("model", None),
    ],
)
def test_an_entry_of_another_kind_is_named(written: Digits, folder: Path, key: str, value: object) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert f"summary.json: '{key}' is not what a run writes there" in error_of("verify", folder, "--data", written.data)


@pytest.mark.parametrize(("key", "value", "word"), [("sqnr_db", 70.0, "70.0 dB"), ("target", "tflite", "tflite")])
def test_a_summary_that_says_otherwise_is_contradicted(
    written: Digits, folder: Path, key: str, value: object, word: str
) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    result = done("verify", folder, "--data", written.data, code=1)
    assert result.stderr.startswith("error: ")
    assert word in result.stderr


def test_a_network_in_the_place_of_another_is_contradicted(written: Digits, folder: Path) -> None:
    """Even one whose digest somebody put into the summary."""
    done(
        "quantize", written.network, "--data", written.data, "--weights", "int2", "--recipe", "plain", "--out",
        folder / "worse", "--quiet",
    )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    summary["files"]["model.onnx"] = json.loads((folder / "worse/summary.json").read_text())["files"]["simulated.onnx"]
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.copyfile(folder / "worse/simulated.onnx", folder / "model.onnx")
    said = error_of_contradiction(folder, written.data)
    assert "model.onnx" in said
    assert "summary.json says" in said


def error_of_contradiction(folder: Path, data: Path) -> str:
    result = done("verify", folder, "--data", data, "--quiet", code=1)
    return str(result.stderr)


def test_a_folder_of_something_else(written: Digits, tmp_path: Path) -> None:
    assert "summary.json" in error_of("verify", tmp_path, "--data", written.data)
    assert "there is none" in error_of("verify", tmp_path / "nowhere", "--data", written.data)


def test_another_runtime_is_refused(written: Digits) -> None:
    said = error_of("verify", written.quantized, "--data", written.data, "--runtime", "tensorrt")
    assert "onnxruntime" in said


def test_a_folder_without_the_targets_own_file(written: Digits, tmp_path: Path) -> None:
    done(
        "quantize", network_path("digits_conv"), "--data", written.data, "--target", "tflite", "--out", tmp_path / "o",
        "--quiet",
    )  # fmt: skip
    found = record("verify", tmp_path / "o", "--data", written.data)
    assert found["pairs"][0]["other"] == "simulated.onnx"
    assert found["contradictions"] == []

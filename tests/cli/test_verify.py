"""`verify`: a folder that is whole passes; anything else is named."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrowgauge.analysis import folder_exactness
from narrowgauge.demo import network_path
from narrowgauge.report import files
from narrowgauge.runtimes import inner
from narrowgauge.runtimes.inner import Inner
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, record


@pytest.fixture
def folder(written: Digits, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(written.quantized, tmp_path / "copy"))


def test_a_sound_folder_passes(folder: Path, written: Digits) -> None:
    found = record("verify", folder, "--data", written.data)
    assert found["contradictions"] == []
    assert [pair["other"] for pair in found["pairs"]] == ["model.onnx", "simulated.onnx", "integer.onnx"]
    assert found["pairs"][0]["agreement_top1"] > 90
    assert "does what its summary says" in done("verify", folder, "--data", written.data).stdout


def test_integers_inside_the_engine_are_compared_and_noted(folder: Path, written: Digits) -> None:
    found = record("verify", folder, "--data", written.data, "--samples", 5)
    assert found["runtime"] == "onnxruntime"
    inside = found["bit_exact"]
    assert inside["different"] == inside["max"] == 0
    assert inside["samples"] == 5
    assert inside["elements"] == sum(row["elements"] for row in inside["tensors"]) > 10_000
    summary = json.loads((folder / "summary.json").read_text())
    noted = summary["bit_exact"]["onnxruntime"]
    assert {key: noted[key] for key in ("elements", "different", "max")} == {
        "elements": inside["elements"], "different": 0, "max": 0,
    }  # fmt: skip
    assert "The engine’s own integers" in (folder / "report.html").read_text()
    # The summary lists the report as it is now, so that the folder is whole; nothing is left lying about.
    said = done("verify", folder, "--data", written.data, "--samples", 4).stdout
    assert "inside ONNX Runtime are those that we compute" in " ".join(said.split())
    assert json.loads((folder / "summary.json").read_text())["bit_exact"]["onnxruntime"]["samples"] == 4
    assert {path.name for path in folder.iterdir()} == {path.name for path in written.quantized.iterdir()}


def test_another_engine_is_noted_beside_the_first(folder: Path, written: Digits) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    for runtime in ("onnxruntime", "openvino"):
        done("verify", folder, "--data", written.data, "--samples", 4, "--runtime", runtime, "--quiet")
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["bit_exact"]) == ["onnxruntime", "openvino"]
    assert summary["bit_exact"]["onnxruntime"]["different"] == 0


def test_integers_that_differ_are_a_finding_not_an_error(
    folder: Path, written: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose second layer computes one step too much."""
    honest = inner.open_inner

    def shifted(path: Path, **options: Any) -> Inner:
        opened = honest(path, **options)
        name = opened.names[2]

        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = opened.run(feed)
            return {**found, name: np.where(found[name] < 255, found[name] + 1, 254).astype(np.uint8)}

        return dataclasses.replace(opened, run=run)

    monkeypatch.setattr(folder_exactness, "open_inner", shifted)
    result = done("verify", folder, "--data", written.data, "--samples", 4)
    said = " ".join(result.stdout.split())
    assert "differ from those that we compute: " in said
    assert "WARNING" in said
    assert "is whole and does what its summary says" in said
    found = record("verify", folder, "--data", written.data, "--samples", 4)
    assert found["contradictions"] == []
    assert any(note.startswith("WARNING: ") for note in found["notes"])
    first = found["bit_exact"]["first_different_tensor"]
    row = next(row for row in found["bit_exact"]["tensors"] if row["name"] == first)
    assert row["different"] == row["elements"] == row["own"]["different"]
    assert row["off_by"] == {"1": row["elements"]}
    assert f'<th scope="row">{first}</th>' in (folder / "report.html").read_text()


def test_a_folder_that_cannot_be_written_is_still_verified(
    folder: Path, written: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "write_summary", refuse)
    before = (folder / "summary.json").read_bytes()
    found = record("verify", folder, "--data", written.data, "--samples", 4)
    assert found["bit_exact"]["different"] == 0
    assert any("could not be noted" in note and "Read-only file system" in note for note in found["notes"])
    assert (folder / "summary.json").read_bytes() == before


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


def test_an_engine_that_cannot_run_the_file_says_why_and_names_it_once(written: Digits, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    data = ("--data", written.data, "--samples", 16, "--check-samples", 4, "--recipe", "plain", "--quiet")
    done("quantize", written.network, "--target", "integer-only", *data, "--out", tmp_path / "o")
    said = error_of("verify", tmp_path / "o", "--data", written.data, "--runtime", "openvino")
    assert said.count("model.onnx") == 1
    assert "OpenVINO cannot run it" in said
    assert "damaged" not in said


def test_a_folder_without_the_targets_own_file(written: Digits, tmp_path: Path) -> None:
    done(
        "quantize", network_path("digits_conv"), "--data", written.data, "--target", "ncnn", "--out", tmp_path / "o",
        "--quiet",
    )  # fmt: skip
    found = record("verify", tmp_path / "o", "--data", written.data)
    assert found["pairs"][0]["other"] == "simulated.onnx"
    assert found["contradictions"] == []
    assert found["bit_exact"] is None
    assert any("no engine here runs the target's own file" in note for note in found["notes"])


def test_a_file_of_the_float_network_has_no_plan_and_no_recovery_in_it(written: Digits, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install ai-edge-litert")
    folder = tmp_path / "float"
    options = ("--target", "tflite", "--format", "tflite-float", "--recipe", "fast")
    done("quantize", written.network, "--data", written.data, *options, "--out", folder, "--quiet")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["runnable"] == {"file": "model.tflite", "runtime": "litert", "planned": False}
    assert summary["sqnr_infinite"] or summary["sqnr_db"] > 100
    assert "the float network" in done("verify", folder, "--data", written.data).stdout

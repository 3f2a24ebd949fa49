"""A plan is edited by hand and given back: what it says arrives in the file, what makes no sense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli import networks
from tests.cli.running import done, error_of, record

TARGET = ("--target", "openvino")
"""A target that quantizes all of the small network and reads Q/DQ files."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    networks.convolution(tmp_path / "net.onnx")
    np.save("x.npy", networks.random(40, 3, 8, 8))
    done("quantize", "net.onnx", *TARGET, "--data", "x.npy", "--recipe", "plain", "--out", "first", "--quiet")
    return tmp_path


def edited(**changes: Any) -> Path:
    """Change keys of the plan; `encodings` are changed one by one."""
    plan = json.loads(Path("first/plan.json").read_text())
    plan["encodings"] |= changes.pop("encodings", {})
    Path("edited.json").write_text(json.dumps(plan | changes))
    return Path("edited.json")


def scale_behind(path: str, value: str) -> float:
    """Scale of the QuantizeLinear that reads a value."""
    graph = onnx.load(path).graph
    node = next(node for node in graph.node if node.op_type == "QuantizeLinear" and value in node.input[0])
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return float(held[node.input[1]])


def test_the_plan_of_a_run_makes_the_same_file_again(here: Path) -> None:
    done(
        "quantize",
        "first/float.onnx",
        *TARGET,
        "--plan",
        "first/plan.json",
        "--recipe",
        "plain",
        "--out",
        "again",
        "--quiet",
    )
    assert (
        json.loads(Path("again/plan.json").read_text())["encodings"]
        == (json.loads(Path("first/plan.json").read_text())["encodings"])
    )
    assert np.array_equal(weights("again/model.onnx"), weights("first/model.onnx"))


def weights(path: str) -> np.ndarray:
    held = [numpy_helper.to_array(tensor).ravel() for tensor in onnx.load(path).graph.initializer]
    return np.sort(np.concatenate([array.astype(np.float64) for array in held]))


def test_a_changed_scale_arrives_in_the_model(here: Path) -> None:
    encoding = json.loads(Path("first/plan.json").read_text())["encodings"]["image"]
    plan = edited(encodings={"image": {**encoding, "scale": 0.125}})
    record("quantize", "net.onnx", *TARGET, "--data", "x.npy", "--plan", plan, "--recipe", "plain", "--out", "second")
    assert scale_behind("first/model.onnx", "image") == pytest.approx(encoding["scale"])
    assert scale_behind("second/model.onnx", "image") == 0.125
    assert json.loads(Path("second/plan.json").read_text())["encodings"]["image"]["scale"] == 0.125


def test_a_value_that_the_network_does_not_have_is_refused(here: Path) -> None:
    plan = edited(encodings={"imgae": {"type": "int8", "granularity": "tensor", "scale": 0.1, "zero_point": 0}})
    said = error_of("quantize", "net.onnx", *TARGET, "--data", "x.npy", "--plan", plan, "--out", "second")
    assert "'imgae'" in said


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ({"type": "int8", "scale": -1.0, "zero_point": 0}, "positive finite"),
        ({"type": "int8", "scale": 0.1, "zero_point": 300}, "zero points between -128 and 127"),
        ({"type": "int99", "scale": 0.1}, "2 to 16 bits"),
        ({"type": "int8"}, "'scale' is missing"),
        ({"type": "int8", "scale": 0.1, "colour": 3}, "colour"),
        ([], "expected an object"),
    ],
)
def test_an_encoding_that_makes_no_sense_is_refused(here: Path, encoding: object, expected: str) -> None:
    plan = edited(encodings={"image": encoding})
    said = error_of("quantize", "net.onnx", *TARGET, "--data", "x.npy", "--plan", plan, "--out", "second")
    assert "edited.json" in said
    assert "'image'" in said
    assert expected in said


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": 1}', '{"version": 99, "encodings": {}}'])
def test_a_file_that_is_no_plan_is_refused(here: Path, content: str) -> None:
    Path("edited.json").write_text(content)
    assert "edited.json" in error_of("quantize", "net.onnx", "--plan", "edited.json", "--out", "second")


def test_a_node_kept_float_by_hand_stays_float(here: Path) -> None:
    plan = json.loads(Path("first/plan.json").read_text())
    kept = {name: entry for name, entry in plan["encodings"].items() if name not in ("w2", "scores")}
    Path("edited.json").write_text(json.dumps(plan | {"encodings": kept, "float_nodes": [{"name": "last"}]}))
    summary = record(
        "quantize", "net.onnx", *TARGET, "--data", "x.npy", "--plan", "edited.json", "--recipe", "plain", "--out", "o"
    )
    assert "last" in {node["name"] for node in summary["float_nodes"]}
    held = {tensor.name: tensor.data_type for tensor in onnx.load("o/model.onnx").graph.initializer}
    assert held["w2"] == onnx.TensorProto.FLOAT

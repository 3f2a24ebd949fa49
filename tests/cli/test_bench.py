"""`bench`: every network timed, inputs made up or given."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.cli import networks
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, record

SHORT = ("--seconds", "0.02")


def test_networks_are_timed_and_set_against_the_first(written: Digits) -> None:
    models = written.network, written.quantized / "model.onnx"
    found = record("bench", *models, *SHORT, "--batch", 2)
    assert [entry["model"] for entry in found["models"]] == [str(path) for path in models]
    assert all(0 < entry["minimum_ms"] <= entry["median_ms"] for entry in found["models"])
    assert (found["batch"], found["threads"]) == (2, 1)
    text = done("bench", *models, *SHORT).stdout
    assert "faster" in text or "slower" in text


@pytest.mark.parametrize("build", [networks.convolution, networks.two_inputs, networks.sequence])
def test_inputs_are_made_up(tmp_path: Path, build: object) -> None:
    path = build(tmp_path / "n.onnx")  # type: ignore[operator]
    assert record("bench", path, *SHORT)["models"][0]["runs"] >= 3


def test_given_inputs_are_taken(tmp_path: Path) -> None:
    network = networks.convolution(tmp_path / "n.onnx")
    np.save(tmp_path / "x.npy", networks.random(4, 3, 8, 8))
    assert record("bench", network, "--data", tmp_path / "x.npy", *SHORT)["models"][0]["runs"] >= 3
    np.save(tmp_path / "y.npy", networks.random(4, 1, 8, 8))
    assert "3 channels" in error_of("bench", network, "--data", tmp_path / "y.npy", *SHORT)


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    assert "missing.onnx" in error_of("bench", tmp_path / "missing.onnx")


def test_made_up_inputs_that_do_not_fit_say_what_to_do(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["a", "b"], ["y"], "product")]  # k must be 7
    shapes = {"a": ["n", "k"], "b": [7, 3]}
    network = networks.save(tmp_path / "n.onnx", nodes, shapes, {"y": ["n", 3]}, {})
    said = error_of("bench", network, *SHORT)
    assert "n.onnx" in said
    assert "--data" in said

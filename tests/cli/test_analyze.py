"""`analyze`: what it prints, what it writes, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from narrowgauge.analysis.records_json import analysis_from_json
from tests.cli import networks
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, no_leftovers, record

QUICK = ("--recipe", "plain", "--samples", 24, "--check-samples", 16)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    networks.convolution(folder / "net.onnx")
    np.save(folder / "x.npy", networks.random(48, 3, 8, 8))
    return folder


def test_a_person_reads_what_costs_most(here: Path, tmp_path: Path) -> None:
    text = done("analyze", here / "net.onnx", "--data", here / "x.npy", *QUICK, "--target", "tflite").stdout
    flat = " ".join(text.split())
    assert "these cost most:" in flat
    for word in ("tensor", "adds", "if float", "clipping", "remedy", "w1", "w2", "Output SQNR"):
        assert word in flat
    no_leftovers(tmp_path)


def test_json_is_the_analysis_and_nothing_else(here: Path) -> None:
    result = done("analyze", here / "net.onnx", "--data", here / "x.npy", *QUICK, "--json")
    found = analysis_from_json(result.stdout, source="stdout")
    assert found == analysis_from_json(json.dumps(json.loads(result.stdout)), source="stdout")
    assert found.samples == 16
    assert found.remedies
    assert {loss.kind for loss in found.losses} == {"activation", "weights"}
    assert {one.name for one in found.ranking()} <= {loss.name for loss in found.losses}


def test_a_folder_holds_the_network_and_the_report(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    arguments = ("analyze", here / "net.onnx", "--data", here / "x.npy", *QUICK, "--out", out)
    assert done(*arguments, "--quiet").output == ""
    assert {"model.onnx", "report.html", "analysis.json", "summary.json"} <= {path.name for path in out.iterdir()}
    assert "not empty" in error_of(*arguments)
    done(*arguments, "--quiet", "--force")
    again = record(*arguments, "--force")
    assert again["remedies"] == json.loads((out / "analysis.json").read_text())["remedies"]
    no_leftovers(tmp_path, "o")


def test_what_another_run_planned_is_analysed(written: Digits) -> None:
    found = record(
        "analyze", written.quantized / "float.onnx", "--plan", written.quantized / "plan.json", "--data", written.data,
        "--samples", 16, "--check-samples", 8,
    )  # fmt: skip
    assert found["steps"] == []
    assert found["samples"] == 8


@pytest.mark.parametrize("recipe", ["dynamic", "weight-only"])
def test_ranges_that_are_not_known_beforehand(here: Path, tmp_path: Path, recipe: str) -> None:
    """Weights alone have a range that can be analysed."""
    arguments = ("analyze", here / "net.onnx", "--data", here / "x.npy", "--check-samples", 8, "--recipe", recipe)
    found = record(*arguments)
    assert {loss["kind"] for loss in found["losses"]} == {"weights"}


def test_where_nothing_is_quantized_it_says_so(here: Path, tmp_path: Path) -> None:
    said = error_of("analyze", here / "net.onnx", "--data", here / "x.npy", *QUICK, "--keep-float", "*")
    assert "nothing could be analysed" in said


def test_bad_input_is_one_line(here: Path, tmp_path: Path) -> None:
    assert "missing.onnx: no such file" in error_of("analyze", here / "missing.onnx", "--data", here / "x.npy")
    assert "missing.npy" in error_of("analyze", here / "net.onnx", "--data", here / "missing.npy")
    assert "did you mean tflite" in error_of(
        "analyze", here / "net.onnx", "--data", here / "x.npy", "--target", "tflit", "--out", tmp_path / "o"
    )
    no_leftovers(tmp_path)


def test_without_samples_it_is_wrong_usage(here: Path) -> None:
    assert "--data" in done("analyze", here / "net.onnx", code=2).stderr
    done("analyze", code=2)

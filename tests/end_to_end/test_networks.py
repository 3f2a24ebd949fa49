"""Networks that are no plain image classifiers, and recipes with and without data."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import narrowgauge as ng
from tests.cli import networks
from tests.cli.running import done, record

FEEDS = """
import numpy as np

def feeds():
    generator = np.random.default_rng(0)
    for length in range(3, 43):
        yield {"x": generator.standard_normal((1, length, 8)).astype(np.float32)}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(one).sum() / np.square(one - other).sum()))


def run(path: str | Path, **feed: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize("target", ["onnxruntime", "tflite"])
def test_two_inputs(here: Path, target: str) -> None:
    network = networks.two_inputs(here / "n.onnx")
    feed = {"left": networks.random(80, 4), "right": networks.random(80, 6)}
    np.savez("x.npz", **feed)
    summary = record("quantize", network, "--data", "x.npz", "--samples", 60, "--target", target, "--out", "o")
    assert summary["checked_samples"] == 20
    quantized = run("o/simulated.onnx", **feed)
    assert noise_db(run(network, **feed), quantized) > 25


def test_sequences_of_any_length_from_a_generator_of_unknown_length(here: Path) -> None:
    network = networks.sequence(here / "n.onnx")
    (here / "sequence_feeds.py").write_text(FEEDS)
    summary = record("quantize", network, "--data", "sequence_feeds:feeds", "--samples", 30, "--out", "o")
    assert summary["checked_samples"] == 10
    steps = networks.random(1, 99, 8)
    assert noise_db(run(network, x=steps), run("o/model.onnx", x=steps)) > 25


def test_a_generator_that_ends_early_calibrates_and_checks(here: Path) -> None:
    network = networks.sequence(here / "n.onnx")
    (here / "short_feeds.py").write_text(FEEDS)
    summary = record("quantize", network, "--data", "short_feeds:feeds", "--out", "o")
    assert summary["checked_samples"] == 40
    assert "the 40 samples there are calibrate and check: the check says little" in summary["notes"]


@pytest.mark.parametrize("recipe", ["dynamic", "weight-only"])
@pytest.mark.parametrize("build", [networks.two_inputs, networks.sequence, networks.convolution])
def test_without_data(here: Path, recipe: str, build: object) -> None:
    network = build(here / "n.onnx")  # type: ignore[operator]
    done("quantize", network, "--recipe", recipe, "--out", "o", "--quiet")
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    feed = {value.name: networks.random(2, *[size if isinstance(size, int) else 5 for size in value.shape[1:]])
            for value in session.get_inputs()}  # fmt: skip
    for form in (path for path in Path("o").glob("*.onnx") if path.name != "float.onnx"):
        assert noise_db(run(network, **feed), run(form, **feed)) > 25, form


def test_an_iterator_that_is_read_once_and_ends_early_is_not_checked(here: Path) -> None:
    network = networks.sequence(here / "n.onnx")
    feeds = ({"x": networks.random(1, 5, 8, seed=seed)} for seed in range(20))
    result = ng.quantize(network, feeds)
    assert result.check is None
    assert "all 20 samples calibrated, none is left to check with: take fewer" in result.notes

"""What levels of a written network mean: only the plan that was written with it says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import narrowgauge
from narrowgauge.analysis.written_plans import written_encodings
from narrowgauge.comparison import compare
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.plan import load_plan
from narrowgauge.demo.networks import network_path


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(0).random((24, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def folder(samples: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "o"
    options = {"samples": 16, "recipe": "plain", "analysis": "none"}
    narrowgauge.quantize(network_path("digits_vit"), samples, target="integer-only", out=out, **options)
    return out


def test_encodings_are_those_of_the_plan(folder: Path) -> None:
    plan = load_plan(folder / "plan.json")
    assert set(written_encodings(folder / "model.onnx")) == {
        name for name, encoding in plan.encodings.items() if isinstance(encoding, Encoding)
    }


def test_inner_values_of_a_network_in_integers_are_compared(folder: Path, samples: np.ndarray) -> None:
    rows = compare(folder / "float.onnx", folder / "model.onnx", samples, tensors=4).tensors
    inner = [row for row in rows if row.encoding_b is not None]
    assert len(inner) > 30
    assert min(row.sqnr_db for row in inner if row.sqnr_db is not None) > 5


def test_a_plan_that_was_changed_since_or_lies_elsewhere_says_nothing(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "copy"
    shutil.copytree(folder, moved)
    assert written_encodings(moved / "model.onnx")
    record = json.loads((moved / "plan.json").read_text())
    (moved / "plan.json").write_text(json.dumps({**record, "notes": ["mine"]}))
    assert not written_encodings(moved / "model.onnx")
    (moved / "plan.json").unlink()
    assert not written_encodings(moved / "model.onnx")
    (moved / "summary.json").write_text("[]")
    assert not written_encodings(moved / "model.onnx")
    assert not written_encodings(object())

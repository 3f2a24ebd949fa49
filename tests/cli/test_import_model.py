"""`import`: the simplified network computes what the given one does."""

from pathlib import Path

import numpy as np
import onnxruntime

from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, no_leftovers, record


def test_the_simplified_network_gives_the_same_answers(written: Digits, tmp_path: Path) -> None:
    found = record("import", written.network, "--out", tmp_path / "o")
    no_leftovers(tmp_path / "o", "float.onnx", "notes.txt")
    assert found["nodes"]["after"] < found["nodes"]["before"]
    images = np.load(written.data)["image"]
    one, other = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
        for path in (written.network, tmp_path / "o" / "float.onnx")
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert "converted from opset" in (tmp_path / "o" / "notes.txt").read_text()


def test_an_existing_folder_is_replaced_only_with_force(written: Digits, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "old").touch()
    assert "--force" in error_of("import", written.network, "--out", tmp_path / "o")
    done("import", written.network, "--out", tmp_path / "o", "--force")
    no_leftovers(tmp_path / "o", "float.onnx", "notes.txt")


def test_a_missing_network_leaves_nothing(tmp_path: Path) -> None:
    assert "no such file" in error_of("import", tmp_path / "n.onnx", "--out", tmp_path / "o")
    no_leftovers(tmp_path)

"""`calibrate`: statistics in a file, gone on from, and taken by `quantize`."""

from pathlib import Path

import numpy as np
import pytest

from narrowgauge import Statistics
from tests.cli import networks
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, no_leftovers, record


def test_statistics_of_two_parts_equal_those_of_one_run(written: Digits, tmp_path: Path) -> None:
    first, whole, resumed = (tmp_path / f"{name}.npz" for name in ("first", "whole", "resumed"))
    assert (
        record("calibrate", written.network, "--data", written.data, "--samples", 30, "--out", first)["samples"] == 30
    )
    done("calibrate", written.network, "--data", written.data, "--samples", 70, "--out", whole, "--quiet")
    done("calibrate", written.network, "--data", written.data, "--samples", 70, "--out", resumed, "--statistics", first)
    one, other = Statistics.load(whole), Statistics.load(resumed)
    assert one.samples == other.samples == 70
    for name, tensor in one.tensors.items():
        again = other.tensors[name]
        assert (tensor.minimum, tensor.maximum) == (again.minimum, again.maximum)
        np.testing.assert_array_equal(tensor.histogram.counts, again.histogram.counts)


def test_quantize_takes_them_instead_of_calibrating(written: Digits, tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    done("calibrate", written.network, "--data", written.data, "--samples", 40, "--out", file)
    before = file.read_bytes()
    summary = record(
        "quantize",
        written.network,
        "--data",
        written.data,
        "--samples",
        40,
        "--statistics",
        file,
        "--out",
        tmp_path / "o",
    )
    assert "calibration skipped: statistics of 40 samples were given" in summary["notes"]
    assert "calibrate" not in summary["seconds"]
    assert file.read_bytes() == before
    assert (tmp_path / "o" / "plan.json").read_text() == (written.quantized / "plan.json").read_text()


def test_quantize_needs_no_data_beside_them(written: Digits, tmp_path: Path) -> None:
    statistics = written.quantized / "statistics.npz"
    summary = record("quantize", written.network, "--statistics", statistics, "--out", tmp_path / "o")
    assert summary["checked_samples"] == 0
    found = record("compare", written.network, tmp_path / "o" / "model.onnx", "--data", written.data)
    assert found["agreement_top1"] > 90


def test_statistics_of_another_network_are_refused(written: Digits, tmp_path: Path) -> None:
    network = networks.convolution(tmp_path / "n.onnx")
    statistics = written.quantized / "statistics.npz"
    assert "another one" in error_of("quantize", network, "--statistics", statistics, "--out", tmp_path / "o")
    np.save(tmp_path / "x.npy", networks.random(4, 3, 8, 8))
    said = error_of(
        "calibrate", network, "--data", tmp_path / "x.npy", "--statistics", statistics, "--out", tmp_path / "s.npz"
    )
    assert "another one" in said
    no_leftovers(tmp_path, "n.onnx", "x.npy")


@pytest.mark.parametrize("content", [b"", b"not statistics", None])
def test_damaged_or_missing_statistics_are_refused(written: Digits, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "bad.npz"
    if content is not None:
        file.write_bytes(content)
    out = tmp_path / "s.npz"
    said = error_of("calibrate", written.network, "--data", written.data, "--statistics", file, "--out", out)
    assert "bad.npz" in said
    assert not out.exists()


def test_an_existing_file_is_replaced_only_with_force(written: Digits, tmp_path: Path) -> None:
    out = tmp_path / "s.npz"
    out.write_text("precious")
    arguments = ("calibrate", written.network, "--data", written.data, "--samples", 4, "--out", out)
    assert "--force" in error_of(*arguments)
    assert out.read_text() == "precious"
    done(*arguments, "--force")
    assert Statistics.load(out).samples == 4


def test_what_was_seen_before_a_bad_sample_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = networks.sequence(tmp_path / "n.onnx")
    good = networks.random(5, 3, 8)
    (tmp_path / "some_feeds.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for length in (3, 4, 5):\n"
        "        yield {'x': np.ones((1, length, 8), np.float32)}\n"
        "    raise ValueError('the disk went away')\n"
    )
    said = done("calibrate", network, "--data", "some_feeds:feeds", "--out", "s.npz", code=1).stderr
    assert "the disk went away" in said
    assert "the statistics of the first 3 samples are in s.npz" in said
    np.save("good.npy", good)
    done("calibrate", network, "--data", "good.npy", "--statistics", "s.npz", "--out", "s.npz")
    assert Statistics.load("s.npz").samples == 5

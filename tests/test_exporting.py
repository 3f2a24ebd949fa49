"""One calibration, many targets: what is read once, what is written for each, what is said where one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

import narrowgauge
from narrowgauge.core.plan import load_plan
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import DataError, NarrowgaugeError, OutputError, TargetError
from narrowgauge.exporting import export_targets

IMAGES = {"image": digits().images[:160]}
NETWORK = network_path("digits_conv")
TARGETS = ["onnxruntime", "tensorrt", "snpe"]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "out"
    narrowgauge.quantize(NETWORK, IMAGES, samples=64, out=folder, analysis="none")
    return folder


def test_a_folder_of_quantize_needs_no_second_calibration(quantized: Path, tmp_path: Path) -> None:
    found = export_targets(quantized, TARGETS, out=tmp_path / "out")
    assert [one.target for one in found] == TARGETS
    for one in found:
        assert one.result is not None
        assert one.result.folder == tmp_path / "out" / one.target
        assert load_plan(one.result.folder / "plan.json").same_as(one.result.plan)
        assert any("calibration skipped: statistics of 64 samples" in note for note in one.result.notes)
        alone = narrowgauge.quantize(NETWORK, target=one.target, recipe="fast", statistics=quantized / "statistics.npz")
        assert alone.plan.same_as(one.result.plan)


def test_samples_check_every_target(quantized: Path, tmp_path: Path) -> None:
    found = export_targets(
        quantized, TARGETS, out=tmp_path / "out", data=IMAGES, labels=digits().labels[:160], check_samples=40
    )
    for one in found:
        assert one.result is not None
        assert one.result.summary["checked_samples"] == 40
        assert one.result.summary["quantized"]["top1"] > 90


def test_a_network_is_calibrated_once(tmp_path: Path) -> None:
    found = export_targets(NETWORK, TARGETS, out=tmp_path / "out", data=IMAGES, samples=64, check_samples=8)
    for one in found:
        assert one.result is not None
        assert one.result.statistics is not None
        assert one.result.statistics.samples == 64
        assert "calibrate" not in one.result.summary["seconds"]


def test_one_that_fails_leaves_the_others(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from narrowgauge import exporting

    def quantize(*given: object, target: str, **options: object) -> narrowgauge.Result:
        if target == "tensorrt":
            raise OutputError("no room left")
        return narrowgauge.quantize(*given, target=target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "quantize", quantize)
    found = export_targets(quantized, TARGETS, out=tmp_path / "out")
    assert [one.error for one in found] == ["", "no room left", ""]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["onnxruntime", "snpe"]


def test_a_format_can_be_chosen(quantized: Path, tmp_path: Path) -> None:
    (found,) = export_targets(quantized, ["onnxruntime:qoperator"], out=tmp_path / "out")
    assert found.result is not None
    assert found.result.folder == tmp_path / "out" / "onnxruntime-qoperator"
    assert any(node.op_type == "QLinearConv" for node in found.result.model.graph)


@pytest.mark.parametrize(
    ("targets", "error", "said"),
    [
        (["abacus"], TargetError, "expected a target"),
        (["onnxruntime:gguf"], TargetError, "expected a format of onnxruntime, one of qdq, qoperator, got 'gguf'"),
        ([], TargetError, "expected at least one target"),
    ],
)
def test_targets_are_known_before_anything_is_done(
    tmp_path: Path, targets: list[str], error: type[NarrowgaugeError], said: str
) -> None:
    with pytest.raises(error, match=said):
        export_targets(tmp_path / "nothing", targets, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a folder that `narrowgauge quantize` wrote"):
        export_targets(tmp_path, TARGETS, out=tmp_path / "out")
    with pytest.raises(DataError, match="expected samples to calibrate on"):
        export_targets(NETWORK, TARGETS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

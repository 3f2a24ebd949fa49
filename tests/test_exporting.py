"""One calibration, many targets: what is read once, what is written for each, what is said where one fails."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import narrowgauge
from narrowgauge.core.encoding import same_encoding
from narrowgauge.core.plan import load_plan
from narrowgauge.demo import digits, network_path
from narrowgauge.errors import DataError, NarrowgaugeError, OutputError, RecipeError, TargetError
from narrowgauge.exporting import export_targets
from narrowgauge.importers.opening import load

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
        assert one.result.summary["model"] == str(NETWORK)


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


def test_data_that_can_be_read_once_are_refused_before_the_work(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected data that can be read again"):
        export_targets(quantized, TARGETS, out=tmp_path / "out", data=iter([IMAGES]))


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a folder that `narrowgauge quantize` wrote"):
        export_targets(tmp_path, TARGETS, out=tmp_path / "out")
    with pytest.raises(DataError, match="expected samples to calibrate on"):
        export_targets(NETWORK, TARGETS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_target_changes_the_network(tmp_path: Path) -> None:
    imported = load(NETWORK)
    before = [ir.to_proto(model).SerializeToString() for model in (imported.model, imported.original)]
    found = export_targets(
        imported, ["onnxruntime", "qnn", "cambricon", "ncnn"], out=tmp_path / "out", data=IMAGES, samples=32,
        check_samples=8,
    )  # fmt: skip
    assert all(one.result is not None for one in found)
    assert [ir.to_proto(model).SerializeToString() for model in (imported.model, imported.original)] == before


def test_a_format_that_the_targets_engine_does_not_run_is_simulated(quantized: Path, tmp_path: Path) -> None:
    (found,) = export_targets(quantized, ["tvm:qdq"], out=tmp_path / "out", data=IMAGES, check_samples=8)
    assert found.result is not None
    assert found.result.summary["runnable"] == {"file": "model.onnx", "runtime": "", "planned": True}
    assert found.result.summary["checked_samples"] == 8


def test_a_plan_that_a_format_cannot_say_is_simulated_with_a_warning(tmp_path: Path) -> None:
    (found,) = export_targets(
        NETWORK, ["onnxruntime-arm"], out=tmp_path / "out", data=IMAGES, recipe="dynamic", samples=16, check_samples=8
    )
    assert found.result is not None
    assert found.result.summary["runnable"] == {"file": "simulated.onnx", "runtime": "", "planned": True}
    (warning,) = (note for note in found.result.notes if note.startswith("WARNING"))
    assert "expected a dynamic encoding of uint8" in warning


def test_a_recipe_is_known_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected a recipe"):
        export_targets(tmp_path / "nothing", TARGETS, out=tmp_path / "out", recipe="risotto")


def test_an_old_folder_stays_where_no_target_can_be_written(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from narrowgauge import exporting

    def refuse(*given: object, **options: object) -> narrowgauge.Result:
        raise OutputError("no room left")

    (tmp_path / "old.txt").write_text("old", encoding="utf-8")
    monkeypatch.setattr(exporting, "quantize", refuse)
    with pytest.raises(OutputError, match="nothing was written: onnxruntime: no room left; tensorrt: no room left"):
        export_targets(quantized, TARGETS[:2], out=tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]


def test_what_needs_no_ranges_needs_no_samples(quantized: Path, tmp_path: Path) -> None:
    (found,) = export_targets(NETWORK, ["onnxruntime"], out=tmp_path / "weights", recipe="weight-only")
    assert found.result is not None
    assert found.result.plan.mode == "weight-only"
    both = export_targets(quantized / "model.onnx", ["onnxruntime", "qnn"], out=tmp_path / "own")
    own = load(quantized / "model.onnx").plan
    assert own is not None
    for one in both:
        assert one.result is not None
        assert all(same_encoding(one.result.plan.encodings[name], other) for name, other in own.encodings.items())

"""`quantize`: what it prints, what it writes, what its options do."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from narrowgauge.data.preprocess import load_preprocess
from narrowgauge.demo import network_path
from tests.cli import networks
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, invoke, no_leftovers, process, record

FIGURES = {
    "model", "target", "recipe", "float", "quantized", "agreement_top1", "sqnr_db", "size_bytes", "latency_ms",
    "seconds", "peak_rss_bytes", "float_nodes", "notes",
}  # fmt: skip


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_the_folder_holds_what_the_contract_says(written: Digits) -> None:
    no_leftovers(
        written.quantized, "model.onnx", "simulated.onnx", "integer.onnx", "float.onnx", "plan.json", "statistics.npz",
        "summary.json", "original.onnx", "report.html", "analysis.json",
    )  # fmt: skip
    summary = json.loads((written.quantized / "summary.json").read_text())
    assert set(summary) >= FIGURES
    assert summary["checked_samples"] == summary["labelled_samples"] == 80
    assert summary["quantized"]["top1"] > 90
    assert summary["size_bytes"]["float"] == written.network.stat().st_size


def test_a_person_reads_accuracy_size_and_where_the_files_are(written: Digits, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = done("quantize", written.network, "--data", written.data, "--samples", 40, "--out", out).stdout
    for word in (
        "top-1",
        "same answer",
        "SQNR",
        "smaller",
        "latency",
        "float",
        "model.onnx",
        "plan.json",
    ):
        assert word in text
    assert f"Written to {out}" in text.replace("\n", "") or str(out) in text.replace("\n", "")


def test_a_person_reads_it_on_one_screen(written: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target, recipe in (("onnxruntime", "auto"), ("onnxruntime", "dynamic"), ("tflite", "fast")):
        text = done(
            "quantize", network_path("digits_vit"), "--data", written.data, "--target", target, "--recipe", recipe,
            "--out", f"{target}-{recipe}",
        ).stdout  # fmt: skip
        # Whether there is this note of two lines, the machine decides.
        slower = "times slower than the float one" in " ".join(text.split())
        assert len(text.splitlines()) <= 28 + 2 * slower, text


def test_the_preprocessing_is_beside_the_network(tmp_path: Path) -> None:
    """So that a folder, moved away from the network it was made from, is compared and verified as it was made."""
    network = networks.convolution(tmp_path / "n.onnx")
    (tmp_path / "n.toml").write_text("scale = 0.01\noffset = -1\n")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{number:02}.png")
    out = tmp_path / "out"
    made = record("quantize", network, "--data", pictures, "--samples", 16, "--out", out)
    assert load_preprocess(out / "model.toml").offset == (-1.0,)
    before = record("compare", network, out / "model.onnx", "--data", pictures)
    moved = out.rename(tmp_path / "moved")
    network.unlink()
    (tmp_path / "n.toml").unlink()
    assert record("verify", moved, "--data", pictures)["contradictions"] == []
    for reference in ("original.onnx", "float.onnx"):
        found = record("compare", moved / reference, moved / "model.onnx", "--data", pictures)
        assert not [note for note in found["notes"] if "no preprocessing" in note]
    assert before["sqnr_db"] == pytest.approx(made["sqnr_db"], abs=6)


def test_where_nothing_calibrates_every_sample_checks(written: Digits, tmp_path: Path) -> None:
    found = record("quantize", written.network, "--data", written.data, "--recipe", "dynamic", "--out", tmp_path / "o")
    assert found["checked_samples"] == 120
    assert not [note for note in found["notes"] if "calibrat" in note]


def test_a_network_that_stays_float_altogether_is_said_loudly(tmp_path: Path) -> None:
    network = networks.convolution(tmp_path / "n.onnx")
    arguments = ("quantize", network, "--recipe", "dynamic", "--keep-float", "*", "--out", tmp_path / "o")
    assert "nothing was quantized" in " ".join(done(*arguments).stdout.split())


def test_force_never_removes_what_the_run_reads(written: Digits, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    network = networks.convolution(folder / "n.onnx")
    np.save(folder / "x.npy", networks.random(20, 3, 8, 8))
    elsewhere = networks.convolution(tmp_path / "m.onnx")
    for model, data in ((network, written.data), (elsewhere, folder / "x.npy"), (elsewhere, folder)):
        said = error_of("quantize", model, "--data", data, "--out", folder, "--force")
        assert "--force would remove" in said
    no_leftovers(folder, "n.onnx", "x.npy")


def test_force_replaces_a_folder_whose_own_files_the_run_reads(written: Digits, tmp_path: Path) -> None:
    out = tmp_path / "o"
    for more in ((), ("--plan", out / "plan.json", "--statistics", out / "statistics.npz", "--force")):
        done("quantize", written.network, "--data", written.data, "--samples", 40, "--out", out, "--quiet", *more)
    assert (out / "summary.json").exists()


def test_json_is_the_summary_and_nothing_else(written: Digits, tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text("def chatty(outputs, labels):\n    print('I am a metric')\n    return 1.0\n")
    running = process(
        "quantize", written.network, "--data", written.data, "--samples", 40, "--out", "out", "--json", "--metric",
        "chatty:chatty", cwd=tmp_path,
    )  # fmt: skip
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 0, stderr
    assert json.loads(stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert json.loads(stdout)["quantized"]["chatty"] == 1.0
    assert "I am a metric" in stderr


def test_quiet_prints_nothing(written: Digits, tmp_path: Path) -> None:
    result = done("quantize", written.network, "--data", written.data, "--out", tmp_path / "o", "--quiet")
    assert result.output == ""


def test_a_missed_accuracy_ends_with_3_and_everything_is_written(written: Digits, tmp_path: Path) -> None:
    """Where weights alone are quantized, nothing is recovered."""
    result = done(
        "quantize", written.network, "--data", written.data, "--samples", 40, "--weights", "int2", "--recipe",
        "weight-only", "--max-drop", 1, "--out", tmp_path / "o", code=3,
    )  # fmt: skip
    assert result.stderr.startswith("accuracy missed: top1 fell by ")
    assert "WARNING" in result.stdout
    assert (tmp_path / "o" / "summary.json").exists()


@pytest.mark.parametrize("points", ["2", "2%"])
def test_a_reached_accuracy_ends_with_0(written: Digits, tmp_path: Path, points: str) -> None:
    summary = record(
        "quantize", written.network, "--data", written.data, "--samples", 40, "--max-drop", points, "--out",
        tmp_path / "o",
    )  # fmt: skip
    assert summary["steps"][0]["name"] == "plain ranges"
    assert summary["steps"][-1]["drop"] <= 2
    assert summary["float"]["top1"] - summary["quantized"]["top1"] <= 2


@pytest.mark.parametrize("points", ["much", "-1", "101", "nan", "1 percent"])
def test_an_accuracy_that_is_none_is_wrong_usage(written: Digits, tmp_path: Path, points: str) -> None:
    arguments = ("quantize", written.network, "--data", written.data, f"--max-drop={points}", "--out", tmp_path / "o")
    assert "percentage points from 0 to 100" in " ".join(done(*arguments, code=2).stderr.split())
    assert not (tmp_path / "o").exists()


def test_the_accuracy_is_the_agreement_where_there_are_no_labels(written: Digits, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(written.data)["image"])
    result = done(
        "quantize", written.network, "--data", tmp_path / "x.npy", "--weights", "int2", "--recipe", "weight-only",
        "--max-drop", 1, "--out", tmp_path / "o", code=3,
    )  # fmt: skip
    assert "the agreement with the float network fell by" in result.stderr


def test_a_budget_chooses_bits_and_is_kept(written: Digits, tmp_path: Path) -> None:
    arguments = ("quantize", written.network, "--data", written.data, "--samples", 40, "--recipe", "plain", "--quiet")
    done(*arguments, "--budget", "size 20 %", "--out", tmp_path / "o")
    analysis = json.loads((tmp_path / "o" / "analysis.json").read_text())
    (taken,) = [point for point in analysis["front"] if point["chosen"]]
    assert set(taken["bits"].values()) <= {4, 8, 16, 32}
    assert len(set(taken["bits"].values())) > 1
    assert "expected a budget" in error_of(*arguments[:-1], "--budget", "cheap", "--out", tmp_path / "p")


def test_keep_float_is_repeatable_and_reported(written: Digits, tmp_path: Path) -> None:
    summary = record(
        "quantize", written.network, "--data", written.data, "--keep-float", "last", "--keep-float", "Add", "--out",
        tmp_path / "o",
    )  # fmt: skip
    kept = {node["operator"] for node in summary["float_nodes"]}
    assert {"Gemm", "Add"} <= kept
    assert "Gemm" in operators(tmp_path / "o" / "model.onnx")


def test_the_format_is_the_one_asked_for(written: Digits, tmp_path: Path) -> None:
    done(
        "quantize", written.network, "--data", written.data, "--format", "qoperator", "--out", tmp_path / "o", "--quiet"
    )
    assert "QLinearConv" in operators(tmp_path / "o" / "model.onnx")
    assert "QLinearConv" not in operators(written.quantized / "model.onnx")


def test_a_format_that_the_target_does_not_have_is_refused(written: Digits, tmp_path: Path) -> None:
    said = error_of("quantize", written.network, "--data", written.data, "--format", "coreml", "--out", tmp_path / "o")
    assert "qdq, qoperator" in said
    assert "coreml" in said


@pytest.mark.parametrize(("target", "weights"), [("tvm", "int4"), ("tflite-edgetpu", "int4"), ("tensorrt", "uint8")])
def test_a_type_that_the_target_lacks_is_refused_for_its_format_and_simulated(
    written: Digits, tmp_path: Path, target: str, weights: str
) -> None:
    out = tmp_path / "o"
    summary = record(
        "quantize", written.network, "--data", written.data, "--weights", weights, "--target", target, "--recipe",
        "plain", "--out", out,
    )  # fmt: skip
    assert [note for note in summary["notes"] if f"{target} cannot run this plan" in note and weights in note]
    assert not (out / "model.onnx").exists()
    assert (out / "simulated.onnx").exists()


def test_fewer_samples_than_asked_are_split_and_noted(written: Digits, tmp_path: Path) -> None:
    summary = record("quantize", written.network, "--data", written.data, "--recipe", "plain", "--out", tmp_path / "o")
    assert "120 samples found, 256 asked for calibration: 90 calibrate, the other 30 check" in summary["notes"]
    assert summary["checked_samples"] == 30


def test_labels_beyond_the_networks_classes_are_refused(tmp_path: Path) -> None:
    network = networks.convolution(tmp_path / "n.onnx")
    np.savez(tmp_path / "x.npz", image=networks.random(20, 3, 8, 8), labels=np.arange(1, 21))
    said = error_of("quantize", network, "--data", tmp_path / "x.npz", "--out", tmp_path / "o")
    assert "labels from 0 to 3" in said
    assert "label_offset" in said


@pytest.mark.parametrize("recipe", ["dynamic", "weight-only"])
def test_recipes_that_need_no_data(written: Digits, tmp_path: Path, recipe: str) -> None:
    without = record("quantize", written.network, "--recipe", recipe, "--out", tmp_path / "a")
    assert "nothing was checked: there are no data" in without["notes"]
    with_data = record("quantize", written.network, "--data", written.data, "--recipe", recipe, "--out", tmp_path / "b")
    assert with_data["agreement_top1"] > 90
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()


def test_output_to_a_pipe_that_closes_is_no_error(written: Digits) -> None:
    running = process("targets")
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait(timeout=60) == 0


def test_unexpected_failures_of_the_users_metric_are_one_line(
    written: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_metric.py").write_text("def failing(outputs, labels):\n    raise ZeroDivisionError('by 0')\n")
    result = invoke(
        "quantize", written.network, "--data", written.data, "--out", "o", "--metric", "failing_metric:failing"
    )
    assert result.exit_code == 1
    assert result.stderr == "internal error: ZeroDivisionError: by 0; run again with --debug for the traceback\n"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith((".", "o"))] == []

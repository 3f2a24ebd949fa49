"""`compare`: any two networks, against onnxruntime and numpy."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import narrowgauge as ng
from tests.cli import networks
from tests.cli.conftest import Digits
from tests.cli.running import done, error_of, record


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_figures_are_those_of_onnxruntime_and_numpy(written: Digits) -> None:
    other = written.quantized / "model.onnx"
    found = record("compare", written.network, other, "--data", written.data)
    images, labels = np.load(written.data)["image"], np.load(written.data)["labels"]
    one, two = answers(written.network, images), answers(other, images)
    assert found["samples"] == found["labelled_samples"] == 120
    assert found["metrics"]["a"]["top1"] == pytest.approx(100 * np.mean(one.argmax(1) == labels))
    assert found["metrics"]["b"]["top1"] == pytest.approx(100 * np.mean(two.argmax(1) == labels))
    assert found["agreement_top1"] == pytest.approx(100 * np.mean(one.argmax(1) == two.argmax(1)))
    noise = 10 * np.log10(np.square(one).sum() / np.square(one - two).sum())
    assert found["sqnr_db"] == pytest.approx(noise, abs=0.5)
    assert found["size_bytes"] == {"a": written.network.stat().st_size, "b": other.stat().st_size}
    assert min(found["latency_ms"].values()) > 0


def test_a_network_equals_itself(written: Digits) -> None:
    found = record("compare", written.network, written.network, "--data", written.data, "--samples", 10)
    assert found["sqnr_infinite"]
    assert found["agreement_top1"] == 100
    assert found["samples"] == 10


def test_quantized_forms_are_compared_too(written: Digits) -> None:
    one, other = written.quantized / "model.onnx", written.quantized / "integer.onnx"
    text = done("compare", one, other, "--data", written.data).stdout
    assert "top-1" in text
    assert "integer.onnx" in text.replace("\n", "")


def test_inputs_of_other_names_are_taken_in_order_and_noted(tmp_path: Path) -> None:
    first = networks.two_inputs(tmp_path / "a.onnx")
    renamed = onnx.load(first)
    for value in renamed.graph.input:
        value.name += "_of_b"
    for node in renamed.graph.node:
        node.input[:] = [f"{name}_of_b" if name in ("left", "right") else name for name in node.input]
    onnx.save(renamed, tmp_path / "b.onnx")
    np.savez(tmp_path / "x.npz", left=networks.random(6, 4), right=networks.random(6, 6))
    found = record("compare", first, tmp_path / "b.onnx", "--data", tmp_path / "x.npz")
    assert found["sqnr_infinite"]
    assert "input 'left' of the first network is taken for 'left_of_b' of the second" in found["notes"]


def test_a_fixed_batch_beside_an_open_one(tmp_path: Path) -> None:
    first = networks.convolution(tmp_path / "a.onnx")
    fixed = onnx.load(first)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "b.onnx")
    np.save(tmp_path / "x.npy", networks.random(5, 3, 8, 8))
    assert record("compare", first, tmp_path / "b.onnx", "--data", tmp_path / "x.npy")["samples"] == 5


def test_networks_of_other_inputs_are_refused(written: Digits, tmp_path: Path) -> None:
    said = error_of("compare", written.network, networks.convolution(tmp_path / "n.onnx"), "--data", written.data)
    assert "same inputs" in said
    assert "'image' (float32, ? x 3 x 8 x 8)" in said
    said = error_of("compare", written.network, networks.two_inputs(tmp_path / "t.onnx"), "--data", written.data)
    assert "'left'" in said


def test_outputs_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path, order in zip(paths, (("low", "high"), ("high", "low")), strict=True):
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["low"], "l"),
            helper.make_node("MatMul", ["x", "w2"], ["high"], "h"),
        ]
        weights = {"w1": networks.random(4, 3), "w2": networks.random(4, 3, seed=9)}
        networks.save(path, nodes, {"x": ["n", 4]}, {name: ["n", 3] for name in order}, weights)
    np.save(tmp_path / "x.npy", networks.random(5, 4))
    assert record("compare", *paths, "--data", tmp_path / "x.npy")["sqnr_infinite"]


def test_max_drop_ends_with_3(written: Digits, tmp_path: Path) -> None:
    done(
        "quantize", written.network, "--recipe", "weight-only", "--weights", "int2", "--out", tmp_path / "o", "--quiet"
    )
    done("compare", written.network, tmp_path / "o/simulated.onnx", "--data", written.data, "--max-drop", 1, code=3)


def test_from_python(written: Digits) -> None:
    images = np.load(written.data)["image"][:8]
    found = ng.compare(onnx.load(written.network), written.network, {"image": images})
    assert found.comparison.sqnr_db == np.inf
    assert ng.compare is ng.compare  # the name stays a function once its module is imported
    assert callable(ng.compare)


def test_tensors_of_the_folder_of_quantize(written: Digits) -> None:
    """Beside the float network, the values of both with noise that onnxruntime shows; forms of one plan are equal."""
    reference = written.quantized / "float.onnx"
    found = record("compare", reference, written.quantized / "model.onnx", "--data", written.data, "--tensors", 8)
    rows = {row["name"]: row for row in found["tensors"]}
    assert len(rows) == len(found["tensors"]) > 10
    assert found["first_different_tensor"] == next(row["name"] for row in found["tensors"] if row["differs"])
    assert rows[found["worst_tensor"]]["sqnr_db"] == min(
        row["sqnr_db"] for row in found["tensors"] if row["sqnr_db"] is not None
    )
    name = found["first_different_tensor"]
    assert rows[name]["encoding_a"] is None
    scale, zero_point = rows[name]["encoding_b"]["scale"], rows[name]["encoding_b"]["zero_point"]
    model = onnx.load(reference)
    model.graph.output.append(helper.make_tensor_value_info(name, networks.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    real = session.run([name], {"image": np.load(written.data)["image"][:8]})[0]
    levels = np.clip(np.rint(real / np.float32(scale)) + zero_point, 0, 255)
    error = real - (levels - zero_point) * np.float32(scale)
    assert rows[name]["sqnr_db"] == pytest.approx(
        10 * np.log10(np.square(real).sum() / np.square(error).sum()), abs=0.01
    )
    assert rows[name]["max_difference"] == pytest.approx(np.abs(error).max(), rel=1e-3)

    simulated, integer = written.quantized / "simulated.onnx", written.quantized / "integer.onnx"
    found = record("compare", simulated, integer, "--data", written.data, "--tensors", 8)
    counted = [row for row in found["tensors"] if row["integers"] is not None]
    assert len(counted) > 10
    assert sum(row["integers"]["different"] for row in counted) < 1e-3 * sum(row["elements"] for row in counted)


def test_the_table_of_tensors(written: Digits) -> None:
    arguments = ("compare", written.quantized / "float.onnx", written.quantized / "simulated.onnx")
    text = done(*arguments, "--data", written.data, "--samples", 8).stdout
    assert "add --tensors 8" in text
    text = done(*arguments, "--data", written.data, "--tensors", 4, "--worst-first").stdout
    assert "add --tensors 8" not in text
    assert "first that differs: " in text
    listed = [
        float(line.split(" dB")[0].split()[-1]) for line in text.splitlines() if " dB  " in line and "x " not in line
    ]
    shown = listed[1:]  # the first is that of the outputs
    assert shown == sorted(shown)
    assert len(shown) > 10
    same = done("compare", written.network, written.network, "--data", written.data, "--tensors", 4).stdout
    assert "tensors are equal" in same


def test_tensors_of_a_renamed_network_in_another_layout(tmp_path: Path) -> None:
    first = networks.convolution(tmp_path / "a.onnx")
    nodes = [
        helper.make_node("Transpose", ["image", ], ["t0"], "t0_node", perm=[0, 1, 2, 3]),
        helper.make_node("Conv", ["t0", "w1"], ["k1"], "k1_node", pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["k1"], ["t1"], "t1_node", perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["t1"], ["k2"], "k2_node"),
        helper.make_node("Transpose", ["k2"], ["t2"], "t2_node", perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["t2"], ["k3"], "k3_node"),
        helper.make_node("Flatten", ["k3"], ["k4"], "k4_node"),
        helper.make_node("Gemm", ["k4", "w2", "b2"], ["scores"], "k5_node", transB=1),
    ]  # fmt: skip
    weights = {"w1": networks.random(8, 3, 3, 3), "w2": networks.random(4, 8), "b2": networks.random(4)}
    other = networks.save(tmp_path / "b.onnx", nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 4]}, weights)
    np.save(tmp_path / "x.npy", networks.random(5, 3, 8, 8))
    arguments = ("compare", first, other, "--data", tmp_path / "x.npy", "--tensors", 5)
    found = {row["name"]: row for row in record(*arguments)["tensors"]}
    assert list(found) == ["c1", "r1", "p", "f", "scores"]
    assert found["r1"]["name_b"] == "k2"
    assert (found["r1"]["axes"], found["c1"]["axes"]) == ([0, 3, 1, 2], None)  # 8 x 8 x 8: sizes do not tell
    assert not any(row["differs"] for row in found.values())
    assert "r1: another layout" in done(*arguments).stdout


def test_tensors_of_a_network_of_two_inputs_and_a_fixed_batch(tmp_path: Path) -> None:
    first = networks.two_inputs(tmp_path / "a.onnx")
    fixed = onnx.load(first)
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 4
        value.name += "_of_b"
    for node in fixed.graph.node:
        node.input[:] = [f"{name}_of_b" if name in ("left", "right") else name for name in node.input]
    onnx.save(fixed, tmp_path / "b.onnx")
    np.savez(tmp_path / "x.npz", left=networks.random(6, 4), right=networks.random(6, 6))
    found = record("compare", first, tmp_path / "b.onnx", "--data", tmp_path / "x.npz", "--tensors", 6)
    assert [(row["name"], row["elements"]) for row in found["tensors"]] == [
        ("l", 48), ("r", 48), ("sum", 48), ("y", 30)
    ]  # fmt: skip
    assert not any(row["differs"] for row in found["tensors"])


def test_a_negative_number_of_tensors_is_refused(written: Digits) -> None:
    with pytest.raises(ng.NarrowgaugeError, match="at least 0, got -1"):
        ng.compare(written.network, written.network, str(written.data), tensors=-1)

"""The written file beside the float network: what it finds and when it warns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.check import Check, check
from narrowgauge.demo import digits, network_path
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.graph.constants import set_constant
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.calibration.networks import batches_of
from tests.planning.networks import network, normal, planned, run, seen, sqnr

IMAGES = digits().images[1200:1264]


def checked(
    original: ir.Model, other: ir.Model, folder: Path, samples: np.ndarray = IMAGES, *, native: bool = False
) -> Check:
    write_onnx(other, folder / "model.onnx")
    name = str(original.graph.inputs[0].name)
    return check(
        original, folder / "model.onnx", batches_of(original, {name: samples}),
        network=original, runtime="onnxruntime" if native else "", threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return load(network_path("digits_conv")).model


def with_noise(model: ir.Model, amount: float) -> ir.Model:
    copy = model.clone()
    for number, value in enumerate(copy.graph.initializers.values()):
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim > 1:
            noise = normal(*array.shape, seed=number) * array.std() * np.float32(amount)
            set_constant(value, (array + noise).astype(np.float32))
    return copy


def test_a_good_network_raises_no_warning(model: ir.Model, tmp_path: Path) -> None:
    quantized = lower_to_qdq(model, planned(model, seen(model, digits().images[:32])))
    found = checked(model, quantized, tmp_path)
    assert found.warnings == ()
    assert found.latency == {}
    assert found.comparison.samples == len(IMAGES)
    assert found.comparison.sqnr_db == pytest.approx(sqnr(run(model, IMAGES), run(quantized, IMAGES)), abs=0.2)


def test_a_network_that_collapsed_is_said_first(model: ir.Model, tmp_path: Path) -> None:
    broken = with_noise(model, 5)
    found = checked(model, broken, tmp_path)
    disagreeing = 100 * np.mean(run(model, IMAGES).argmax(1) != run(broken, IMAGES).argmax(1))
    assert disagreeing > 20
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("WARNING: ")
    assert f"{disagreeing:.1f} % of the samples" in found.warnings[0]
    assert "do not ship it" in found.warnings[0]


@pytest.mark.parametrize("number", [3.0, np.nan])
def test_an_output_that_is_all_noise_is_said_where_there_are_no_classes(tmp_path: Path, number: float) -> None:
    body = "y = Gemm(x, w, b)"
    model = network("float[n, 16] x", "float[n, 1] y", body, w=normal(16, 1), b=np.zeros(1, np.float32))
    other = network("float[n, 16] x", "float[n, 1] y", body, w=normal(16, 1), b=np.zeros(1, np.float32))
    set_constant(other.graph.initializers["b"], np.full(1, number, np.float32))
    found = checked(model, other, tmp_path, normal(40, 16))
    assert found.comparison.agreement_top1 is None
    assert len(found.warnings) == 1
    assert "nearly as large as the output itself" in found.warnings[0]


def wide(side: int, layers: int) -> ir.Model:
    """Products of matrices, one behind the other; the network's cost grows with them."""
    body = "  ".join(f"h{n + 1} = MatMul(h{n}, w{n})" for n in range(layers))
    weights = {f"w{n}": normal(side, side, seed=n) / np.float32(np.sqrt(side)) for n in range(layers)}
    return network(f"float[n, {side}] h0", f"float[n, {side}] h{layers}", body, **weights)


def test_a_slower_network_is_said(tmp_path: Path) -> None:
    quick, slow, samples = wide(256, 1), wide(256, 20), normal(8, 256)
    found = checked(quick, slow, tmp_path, samples, native=True)
    ratio = found.latency["quantized"].median_ms / found.latency["float"].median_ms
    assert ratio > 1
    assert (
        found.warnings[-1]
        == f"the quantized network is {ratio:.2f} times slower than the float one here, on one thread"
    )
    again = checked(slow, quick, tmp_path, samples, native=True)
    assert not [warning for warning in again.warnings if "slower" in warning]
    assert again.latency["quantized"].runs == again.latency["float"].runs


def test_weights_that_lie_in_a_file_are_found_by_another_engine(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO times the float network here")
    write_onnx(ir.load(network_path("digits_conv")), tmp_path / "model.onnx")
    ir.save(ir.load(network_path("digits_conv")), tmp_path / "float.onnx", external_data="weights")
    given = ir.load(tmp_path / "float.onnx")
    found = check(
        given, tmp_path / "model.onnx", batches_of(given, {str(given.graph.inputs[0].name): IMAGES[:8]}),
        network=given, runtime="openvino", threads=1,
    )  # fmt: skip
    assert found.float_runtime == "openvino"
    assert found.comparison.sqnr_db > 100

"""ONNX files are written whole and read back: what does not read back as it was meant is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from narrowgauge.errors import OutputError
from narrowgauge.exporters import onnx as exporter
from narrowgauge.exporters.onnx import write_onnx
from narrowgauge.lowering.qdq import lower_to_qdq
from tests.planning.networks import network, normal, planned, run, seen

SAMPLES = normal(8, 16)


@pytest.fixture
def model() -> ir.Model:
    return network(
        "float[n, 16] x", "float[n, 8] y", "m = Gemm(x, w, b)  y = Softmax<axis = 1>(m)", w=normal(16, 8), b=normal(8)
    )


def outputs(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": SAMPLES})[0]


def test_a_file_that_onnx_and_its_runtime_take(model: ir.Model, tmp_path: Path) -> None:
    write_onnx(model, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx"), run(model, SAMPLES), rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_quantized_networks(model: ir.Model, tmp_path: Path, granularity: str) -> None:
    lowered = lower_to_qdq(model, planned(model, seen(model, SAMPLES), granularity=granularity))
    write_onnx(lowered, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    assert np.abs(outputs(tmp_path / "m.onnx") - run(lowered, SAMPLES)).max() < 0.02


def test_weights_beyond_the_limit_lie_beside_the_network(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = network("float[n, 16] x", "float[n, 2048] y", "y = MatMul(x, w)", w=normal(16, 2048))
    monkeypatch.setattr(exporter, "EXTERNAL_BYTES", 100_000)
    write_onnx(model, tmp_path / "small.onnx")
    write_onnx(wide, tmp_path / "wide.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "wide.onnx", "wide.onnx.data"]
    assert (tmp_path / "wide.onnx").stat().st_size < 10_000
    assert (tmp_path / "wide.onnx.data").stat().st_size >= 16 * 2048 * 4
    held = onnx.load(tmp_path / "wide.onnx").graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(held), normal(16, 2048))
    np.testing.assert_allclose(outputs(tmp_path / "wide.onnx"), run(wide, SAMPLES), rtol=1e-5)
    # The network in memory does not point into the file: it outlives it.
    (tmp_path / "wide.onnx.data").unlink()
    assert run(wide, SAMPLES).shape == (8, 2048)


def change_a_weight(proto: onnx.ModelProto) -> None:
    held = proto.graph.initializer[0]
    array = numpy_helper.to_array(held).copy()
    array.flat[-1] = np.nextafter(array.flat[-1], np.float32(9))
    held.CopyFrom(numpy_helper.from_array(array, held.name))


def rename_an_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].name = "other"


def drop_an_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.pop()


def rewire(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[1], proto.graph.node[0].input[2] = (
        proto.graph.node[0].input[2],
        proto.graph.node[0].input[1],
    )


def drop_an_attribute(proto: onnx.ModelProto) -> None:
    del proto.graph.node[1].attribute[:]


def drop_a_node(proto: onnx.ModelProto) -> None:
    proto.graph.node.pop()


def drop_an_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.pop()


@pytest.mark.parametrize(
    "damage",
    [
        change_a_weight,
        rename_an_initializer,
        drop_an_initializer,
        rewire,
        drop_an_attribute,
        drop_a_node,
        drop_an_output,
    ],
)
def test_what_reads_back_as_something_else_is_an_error(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[onnx.ModelProto], None]
) -> None:
    def damaged(written: ir.Model, path: Path) -> None:
        proto = ir.to_proto(written)
        damage(proto)
        onnx.save(proto, path)

    monkeypatch.setattr(ir, "save", damaged)
    with pytest.raises(OutputError, match=r"m\.onnx: .*reads back"):
        write_onnx(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_file_cut_short_is_an_error(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    def cut(written: ir.Model, path: Path) -> None:
        content = ir.to_proto(written).SerializeToString()
        path.write_bytes(content[: int(kept * len(content))])

    monkeypatch.setattr(ir, "save", cut)
    with pytest.raises(OutputError, match=r"m\.onnx"):
        write_onnx(model, tmp_path / "m.onnx")


def test_a_place_that_is_not_there_is_an_error(model: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not write the network: No such file"):
        write_onnx(model, tmp_path / "none" / "m.onnx")

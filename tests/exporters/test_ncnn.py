"""ncnn's table: lines as its tools read them, one number per channel or group, what stays float."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.errors import PlanError, TargetError
from narrowgauge.exporters.ncnn import TABLE, read_table, write
from tests.exporters.written import by_hand
from tests.lowering.networks import per_channel, per_tensor
from tests.planning.networks import network, normal, run

DATA = per_tensor("int8_narrow", 0.5)


def layer(body: str, weights: np.ndarray, shape: str = "float[n, 4, 4, 4] x", name: str = "layer") -> ir.Model:
    model = network(shape, "float y", body, w=weights)
    model.graph[0].name = name
    return model


def tools_table(path: Path) -> dict[str, list[float]]:
    """Read lines as ncnn2int8 does: words parted by spaces, the first is the key."""
    lines = [line.split(" ") for line in path.read_text().split("\n") if line]
    return {key: [float(np.float32(word)) for word in words] for key, *words in lines}


@pytest.mark.parametrize(
    ("body", "shape", "axis"),
    [
        ("y = Conv (x, w)", (6, 4, 3, 3), 0),
        ("y = Conv <group = 4> (x, w)", (4, 1, 3, 3), 0),
        ("y = Gemm (x, w)", (4, 5), 1),
        ("y = Gemm <transB = 1> (x, w)", (5, 4), 0),
        ("y = MatMul (x, w)", (4, 5), 1),
    ],
)
def test_lines_of_layers(tmp_path: Path, body: str, shape: tuple[int, ...], axis: int) -> None:
    """127 / absmax of each output channel, and of the data."""
    weights = normal(*shape)
    model = layer(body, weights, "float[n, 4, 4, 4] x" if len(shape) == 4 else "float[n, 4] x")
    write(by_hand(model, "ncnn", {"x": DATA, "w": per_channel("int8_narrow", weights, axis)}), tmp_path)
    table = tools_table(tmp_path / TABLE)
    assert list(table) == ["layer_param_0", "layer"]
    assert table["layer"] == [2.0]
    reach = np.abs(weights).max(axis=tuple(other for other in range(weights.ndim) if other != axis))
    np.testing.assert_allclose(table["layer_param_0"], 127 / reach, rtol=3e-7)


def test_one_scale_a_tensor_is_repeated(tmp_path: Path) -> None:
    for body, count in (("y = Conv (x, w)", 6), ("y = Conv <group = 2> (x, w)", 2)):
        model = layer(body, normal(6, 4 if count == 6 else 2, 3, 3))
        write(by_hand(model, "ncnn", {"x": DATA, "w": per_tensor("int8_narrow", 0.25)}), tmp_path)
        assert tools_table(tmp_path / TABLE)["layer_param_0"] == [4.0] * count


def test_groups_have_one_scale_each(tmp_path: Path) -> None:
    model = layer("y = Conv <group = 2> (x, w)", normal(6, 2, 3, 3))
    weights = per_channel("int8_narrow", normal(6, 2, 3, 3), 0)
    exported = write(by_hand(model, "ncnn", {"x": DATA, "w": weights}), tmp_path)
    assert tools_table(tmp_path / TABLE) == {}
    assert "'layer' in float, which the plan rounds: it takes one scale per group" in exported.notes[1]
    shared = Encoding(
        type=weights.type, granularity=weights.granularity, scale=np.repeat(np.float32([0.25, 0.5]), 3),
        zero_point=weights.zero_point,
    )  # fmt: skip
    write(by_hand(model, "ncnn", {"x": DATA, "w": shared}), tmp_path)
    assert tools_table(tmp_path / TABLE)["layer_param_0"] == [4.0, 2.0]


@pytest.mark.parametrize(
    ("body", "shape", "data", "said"),
    [
        ("y = Conv (x, w)", (6, 4, 3), "float[n, 4, 9] x", "two spatial axes, this one has 1"),
        ("y = MatMul (x, w)", (2, 4, 5), "float[n, 2, 3, 4] x", "a stack of shape"),
        ("y = Gemm <alpha = 2.0> (x, w)", (4, 5), "float[n, 4] x", "no transA, alpha or beta"),
        ("y = MatMul (x, w)", (4, 0), "float[n, 4] x", "it has no weights"),
    ],
)
def test_layers_that_ncnn_runs_in_float(
    tmp_path: Path, body: str, shape: tuple[int, ...], data: str, said: str
) -> None:
    model = layer(body, normal(*shape), data)
    exported = write(by_hand(model, "ncnn", {"x": DATA, "w": per_tensor("int8_narrow", 0.25)}), tmp_path)
    assert tools_table(tmp_path / TABLE) == {}
    assert said in exported.notes[1]


def test_scales_along_another_axis_stay_float(tmp_path: Path) -> None:
    model = layer("y = MatMul (x, w)", normal(4, 5), "float[n, 4] x")
    export = by_hand(model, "ncnn", {"x": DATA, "w": per_channel("int8_narrow", normal(4, 5), 0)})
    assert "the plan has one per axis 0" in write(export, tmp_path).notes[1]


def test_float_nodes_have_no_lines_and_other_values_are_told(tmp_path: Path) -> None:
    model = network("float[n, 4] x", "float z", "y = MatMul (x, w) z = Add (y, x)", w=normal(4, 4))
    weights = per_tensor("int8_narrow", 0.25)
    exported = write(by_hand(model, "ncnn", {"x": DATA, "w": weights, "z": DATA}), tmp_path)
    assert "'z': encodings that no layer of the table reads" in exported.notes[1]
    write(by_hand(model, "ncnn", {"x": DATA, "w": weights}, str(model.graph[0].name)), tmp_path)
    assert tools_table(tmp_path / TABLE) == {}


def test_constants_on_the_left_are_no_weights(tmp_path: Path) -> None:
    model = layer("y = MatMul (w, x)", normal(5, 4), "float[4, 3] x")
    exported = write(by_hand(model, "ncnn", {"x": DATA, "w": per_tensor("int8_narrow", 0.25)}), tmp_path)
    assert tools_table(tmp_path / TABLE) == {}
    assert "2 values (the first is 'x'): encodings that no layer" in exported.notes[1]


def test_weights_of_the_full_type_that_never_use_its_lowest_level(tmp_path: Path) -> None:
    model = layer("y = MatMul (x, w)", normal(4, 5), "float[n, 4] x")
    write(by_hand(model, "ncnn", {"x": DATA, "w": per_channel("int8", normal(4, 5), 1)}), tmp_path)
    assert len(tools_table(tmp_path / TABLE)["layer_param_0"]) == 5
    for scales in ({"x": DATA, "w": per_tensor("int8", 0.001)}, {"x": per_tensor("int8", 0.5), "w": DATA}):
        with pytest.raises(TargetError, match="one more: quantize it to int8_narrow"):
            write(by_hand(model, "ncnn", scales), tmp_path)


@pytest.mark.parametrize(
    "data", [per_tensor("uint8", 0.5), per_tensor("int8_narrow", 0.5, 1), per_tensor("int16", 0.5)]
)
def test_other_types_are_refused(tmp_path: Path, data: Encoding) -> None:
    model = layer("y = MatMul (x, w)", normal(4, 5), "float[n, 4] x")
    with pytest.raises(TargetError, match="'x'"):
        write(by_hand(model, "ncnn", {"x": data, "w": DATA}), tmp_path)


def test_a_scale_without_a_reciprocal_is_refused(tmp_path: Path) -> None:
    model = layer("y = MatMul (x, w)", normal(4, 5), "float[n, 4] x")
    with pytest.raises(TargetError, match="too small"):
        write(by_hand(model, "ncnn", {"x": per_tensor("int8_narrow", 1e-40), "w": DATA}), tmp_path)


@pytest.mark.parametrize("name", ["a b", "a\tb", "conv_param_0", "x" * 300])
def test_names_that_cannot_stand_in_a_table(tmp_path: Path, name: str) -> None:
    model = layer("y = MatMul (x, w)", normal(4, 5), "float[n, 4] x", name)
    with pytest.raises(TargetError, match="rename the node"):
        write(by_hand(model, "ncnn", {"x": DATA, "w": DATA}), tmp_path)


def test_a_table_of_ncnn2table(tmp_path: Path) -> None:
    """Lines end in a space there."""
    (tmp_path / TABLE).write_text("conv_0_param_0 64.000000 32.000000 \nconv_0 2.000000 \n")
    found = read_table(tmp_path / TABLE)
    assert found["conv_0_param_0"].scale.tolist() == [1 / 64, 1 / 32]
    assert found["conv_0"].same_as(DATA)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("conv\n", "line 1: expected 'LAYER number"),
        ("conv 1 2\n", "line 1: expected positive numbers, one for data"),
        ("a 1\nconv_param_0 1 0\n", "line 2: expected positive numbers"),
        ("conv nan\n", "positive numbers"),
        ("conv inf\n", "positive numbers"),
        ("conv x\n", "positive numbers"),
        ("conv 1\nconv 1\n", "line 2: 'conv' stands twice"),
        ("\n", "line 1"),
    ],
)
def test_refused_tables(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / TABLE).write_text(content)
    with pytest.raises(PlanError, match=said):
        read_table(tmp_path / TABLE)


def test_ncnn_computes_what_our_simulation_does(tmp_path: Path) -> None:
    """A convolution whose integer weights are made of the table's numbers as ncnn2int8 makes them, run by ncnn."""
    engine = pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")
    model = network(
        "float[1, 2, 8, 8] x", "float[1, 3, 6, 6] y", "y = Conv (x, w, b)", w=normal(3, 2, 3, 3), b=normal(3)
    )
    weights, bias = (model.graph.initializers[name].const_value.numpy() for name in ("w", "b"))
    scales = {"x": per_tensor("int8_narrow", 0.03), "w": per_channel("int8_narrow", weights, 0)}
    model.graph[0].name = "layer"
    export = by_hand(model, "ncnn", scales)
    write(export, tmp_path)
    table = {key: np.float32(numbers) for key, numbers in tools_table(tmp_path / TABLE).items()}
    scaled = weights.reshape(3, -1) * table["layer_param_0"][:, None]
    levels = np.trunc(scaled + np.copysign(0.5, scaled)).clip(-127, 127).astype(np.int8).tobytes()
    (tmp_path / "model.param").write_text(
        "7767517\n2 2\nInput in0 0 1 in0\nConvolution layer 1 1 in0 out0 0=3 1=3 5=1 6=54 8=2\n"
    )
    (tmp_path / "model.bin").write_bytes(
        struct.pack("<I", 0x000D4B38) + levels + bytes(-len(levels) % 4) + bias.tobytes()
        + table["layer_param_0"].tobytes() + table["layer"].tobytes()
    )  # fmt: skip
    net = engine.Net()
    assert net.load_param(str(tmp_path / "model.param")) == net.load_model(str(tmp_path / "model.bin")) == 0
    images = normal(1, 2, 8, 8, seed=1)
    extractor = net.create_extractor()
    extractor.input("in0", engine.Mat(images[0]).clone())
    _, output = extractor.extract("out0")
    np.testing.assert_allclose(np.array(output), run(export.simulated, images)[0], atol=1e-4)

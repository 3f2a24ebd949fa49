"""What engines show of their inside: the integers that they compute anyway, under the float network's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge import demo, quantize
from narrowgauge.errors import RuntimeFailure
from narrowgauge.graph.engine import open_session
from narrowgauge.importers.onnx import read
from narrowgauge.runtimes import litert, onnxruntime
from narrowgauge.runtimes.engines import ENGINES
from narrowgauge.runtimes.inner import LEVELS, open_inner, value_of
from tests.importers.tflite_networks import Op, T, constant, packed
from tests.passes.networks import network, node

IMAGES = demo.digits().images[:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional network for ONNX Runtime; OpenVINO reads its Q/DQ form, too."""
    out = tmp_path_factory.mktemp("inner") / "int8"
    quantize(demo.network_path("digits_conv"), {"image": IMAGES}, recipe="plain", samples=4, out=out)
    return out


def exposed(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Levels of a Q/DQ file whose QuantizeLinear nodes are made outputs by hand, in ONNX Runtime as it comes."""
    network = ir.load(path)
    values = {value.name: value for node in network.graph for value in node.outputs}
    network.graph.outputs.extend(values[f"{name}{LEVELS}"] for name in names)
    session = open_session(network, threads=1)
    wanted = [f"{name}{LEVELS}" for name in names]
    return dict(zip(names, session.run(wanted, {"image": IMAGES}), strict=True))


def test_onnx_runtime_gives_the_levels_of_its_fused_operators(folder: Path) -> None:
    inner = open_inner(folder / "model.onnx", threads=1)
    found = inner.run({"image": IMAGES})
    assert tuple(found) == inner.names
    assert len(found) > 4
    assert {levels.dtype for levels in found.values()} == {np.dtype(np.uint8)}
    for name, levels in exposed(folder / "model.onnx", inner.names).items():
        np.testing.assert_array_equal(found[name], levels, name)


def test_operators_are_fused_before_their_levels_become_outputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def kept(model: ir.Model, **options: Any) -> Any:
        opened.append(model)
        return open_session(model, **options)

    monkeypatch.setattr(onnxruntime, "open_session", kept)
    open_inner(folder / "model.onnx", threads=1)
    operators = [node.op_type for node in opened[-1].graph]
    integer = [node.op_type for node in read(folder / "integer.onnx").graph]
    assert "QLinearConv" in operators
    for operator in ("Conv", "Gemm", "QLinearConv", "QGemm"):
        assert operators.count(operator) == integer.count(operator), operator


def test_a_step_computes_from_what_it_is_given(folder: Path) -> None:
    inner = open_inner(folder / "integer.onnx", threads=1)
    steps = onnxruntime.open_steps(folder / "integer.onnx", inner.names, threads=1)
    found = inner.run({"image": IMAGES})
    for name, levels in steps({"image": IMAGES}, found).items():
        np.testing.assert_array_equal(levels, found[name], name)
    other = {**found, inner.names[1]: 255 - found[inner.names[1]]}
    changed = [name for name, levels in steps({"image": IMAGES}, other).items() if (levels != found[name]).any()]
    assert changed == [inner.names[2]]


def test_large_weights_pass_through_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narrowgauge.graph.engine.IN_MEMORY_BYTES", 1)
    inner = open_inner(folder / "model.onnx", threads=1)
    expected = exposed(folder / "model.onnx", inner.names)
    for name, levels in inner.run({"image": IMAGES}).items():
        np.testing.assert_array_equal(levels, expected[name])


def test_names_of_levels_tell_their_value() -> None:
    assert value_of("relu_quantized") == "relu"
    assert value_of("relu") == value_of("_quantized") == ""


def test_an_engine_that_shows_nothing_says_so(folder: Path) -> None:
    silent = [engine for engine in ENGINES if engine.name == "torch"]
    assert silent
    (folder / "empty.pt2").write_bytes(b"")
    with pytest.raises(RuntimeFailure, match="PyTorch does not show the integers inside a network"):
        open_inner(folder / "empty.pt2")


def test_an_engine_refuses_files_of_others(folder: Path) -> None:
    with pytest.raises(RuntimeFailure, match="litert does not run such a file"):
        open_inner(folder / "model.onnx", runtime="litert")


# --- OpenVINO -------------------------------------------------------------------------------------------------------


def test_openvino_shows_the_same_levels_of_a_file_and_of_its_ir(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    import openvino

    openvino.save_model(openvino.Core().read_model(folder / "model.onnx"), tmp_path / "m.xml", compress_to_fp16=False)
    first, second = (
        open_inner(path, runtime="openvino", threads=1) for path in (folder / "model.onnx", tmp_path / "m.xml")
    )
    one, other = (inner.run({"image": IMAGES}) for inner in (first, second))
    assert set(one) == set(open_inner(folder / "model.onnx", threads=1).names)
    assert len(set(one) & set(other)) > 4
    for name in set(one) & set(other):
        np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize(("second", "said"), [("x", True), ("bias", False)])
def test_openvino_tells_what_looking_changes(tmp_path: Path, second: str, said: bool) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    nodes = [
        node("QuantizeLinear", "x scale zero", "x_quantized"), node("DequantizeLinear", "x_quantized scale zero", "d"),
        node("Relu", "d", "r"), node("Add", f"r {'d' if second == 'x' else second}", "y"),
    ]  # fmt: skip
    constants = {"scale": np.float32(0.1), "zero": np.uint8(3), "bias": np.ones((1, 4), np.float32)}
    path = tmp_path / "m.onnx"
    path.write_bytes(network(nodes, {"x": ["n", 4]}, ["y"], constants).SerializeToString())
    assert bool(open_inner(path, runtime="openvino", threads=1).notes) == said


def test_openvino_is_near_to_onnx_runtime(folder: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    one = open_inner(folder / "model.onnx", runtime="openvino", threads=1).run({"image": IMAGES})
    for name, levels in open_inner(folder / "model.onnx", threads=1).run({"image": IMAGES}).items():
        assert levels.dtype == one[name].dtype
        assert np.abs(levels.astype(int) - one[name].astype(int)).mean() < 0.5, name


# --- LiteRT ---------------------------------------------------------------------------------------------------------

litert_only = pytest.mark.skipif(
    not next(engine for engine in ENGINES if engine.name == "litert").installed, reason="LiteRT is not installed"
)


def convolutions(folder: Path, metadata: dict[str, Any] | str | None = None, *, batch: int = 1) -> Path:
    """A file of two convolutions of one pixel between int8 levels, and a maximum of two axes behind a mean."""
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    generator = np.random.default_rng(5)
    weights = {"scale": [0.01] * 4, "axis": 0}
    tensors = [
        T(shape=(batch, 3, 5, 2), name="x", type="INT8", scale=[0.02], zero_point=[3]),
        constant(generator.integers(-127, 128, (4, 1, 1, 2)), np.int8, **weights),
        constant(generator.integers(-500, 500, 4), np.int32, scale=[0.0002] * 4),
        T(shape=(batch, 3, 5, 4), name="first", type="INT8", scale=[0.03], zero_point=[-4]),
        constant(generator.integers(-127, 128, (4, 1, 1, 4)), np.int8, **weights),
        constant(generator.integers(-500, 500, 4), np.int32, scale=[0.0003] * 4),
        T(shape=(batch, 3, 5, 4), name="second", type="INT8", scale=[0.05], zero_point=[7]),
    ]
    options = {"strideW": 1, "strideH": 1, "padding": 1}
    operators = [
        Op(name="CONV_2D", inputs=[0, 1, 2], outputs=[3], options=options, version=3),
        Op(name="CONV_2D", inputs=[3, 4, 5], outputs=[6], options=options, version=3),
    ]
    path = folder / "convolutions.tflite"
    data = packed(tensors, operators, [0], [6])
    path.write_bytes(data if metadata is None else with_metadata(data, metadata))
    return path


def with_metadata(data: bytes, content: dict[str, Any] | str) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    buffer, record = schema.BufferT(), schema.MetadataT()
    text = content if isinstance(content, str) else json.dumps(content)
    buffer.data = np.frombuffer(text.encode(), dtype=np.uint8)
    record.name, record.buffer = litert.METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [record]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def returned(path: Path, number: int, levels: np.ndarray, *, reference: bool) -> np.ndarray:
    """A tensor of a file that is rewritten so that the tensor is its output."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))
    model.subgraphs[0].outputs = [number]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(
        model_content=bytes(builder.Output()), num_threads=1, experimental_op_resolver_type=kernels
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, levels)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(number))


@litert_only
@pytest.mark.parametrize("runtime", ["litert", "litert-reference"])
def test_litert_gives_every_tensor_as_if_it_were_the_output(tmp_path: Path, runtime: str) -> None:
    path = convolutions(tmp_path)
    inner = open_inner(path, runtime=runtime, threads=1)
    assert inner.names == ("first", "second")
    levels = np.random.default_rng(1).integers(-128, 128, (1, 3, 5, 2)).astype(np.int8)
    found = inner.run({"x": (levels.astype(np.float32) - 3) * np.float32(0.02)})
    for name, number in (("first", 3), ("second", 6)):
        expected = returned(path, number, levels, reference=runtime == "litert-reference")
        np.testing.assert_array_equal(found[name], expected)


@litert_only
def test_litert_s_tensors_are_put_into_the_network_s_layout(tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(1, 3, 5, 2)).astype(np.float32)
    inner = open_inner(convolutions(tmp_path))
    assert not inner.laid_out  # others' files do not tell
    plain = inner.run({"x": x})
    metadata = {"channels_last": ["first"], "orders": {"second": [2, 0, 3, 1]}}
    inner = open_inner(convolutions(tmp_path, metadata))
    assert inner.laid_out
    turned = inner.run({"x": x})
    np.testing.assert_array_equal(turned["first"], plain["first"].transpose(0, 3, 1, 2))
    # Axis 0 of the tensor is axis 2 of the value, axis 1 its axis 0, ...
    assert turned["second"].shape == (3, 4, 1, 5)
    np.testing.assert_array_equal(turned["second"].transpose(2, 0, 3, 1), plain["second"])


@litert_only
def test_columns_whose_channels_are_innermost_are_put_in_order(tmp_path: Path) -> None:
    tensors = [
        T(shape=(1, 2, 3, 4), name="x", type="INT8", scale=[0.1], zero_point=[0]),
        constant(np.int32([1, 24])),
        T(shape=(1, 24), name="flat", type="INT8", scale=[0.1], zero_point=[0]),
    ]
    path = tmp_path / "flat.tflite"
    reshape = Op(name="RESHAPE", inputs=[0, 1], outputs=[2], options={})
    path.write_bytes(with_metadata(packed(tensors, [reshape], [0], [2]), {"flattened": {"flat": [4, 2, 3]}}))
    levels = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    found = open_inner(path).run({"x": levels * np.float32(0.1)})
    np.testing.assert_array_equal(found["flat"], levels.transpose(0, 3, 1, 2).reshape(1, 24))


@litert_only
@pytest.mark.parametrize(
    "metadata",
    ["{", "[1]", {"channels_last": 1}, {"orders": ["x"]}, {"orders": {"first": "0a"}}, {"flattened": {"first": None}}],
)
def test_metadata_that_is_not_ours_is_named(tmp_path: Path, metadata: Any) -> None:
    path = convolutions(tmp_path, metadata)
    with pytest.raises(RuntimeFailure, match=r"convolutions\.tflite: expected the metadata 'narrowgauge'"):
        open_inner(path)


@litert_only
@pytest.mark.parametrize(
    "metadata", [{"orders": {"first": [0, 1]}}, {"orders": {"first": [0, 1, 1, 9]}}, {"flattened": {"first": [4, 7]}}]
)
def test_metadata_that_does_not_fit_is_named(tmp_path: Path, metadata: Any) -> None:
    inner = open_inner(convolutions(tmp_path, metadata))
    with pytest.raises(RuntimeFailure, match="does not fit the tensors"):
        inner.run({"x": np.zeros((1, 3, 5, 2), np.float32)})


@litert_only
def test_the_reference_kernels_round_inputs_half_away(tmp_path: Path) -> None:
    """A maximum of a tensor with itself hands on what the input was rounded to; ties of the scale 0.25 are exact."""
    ends = {"type": "INT8", "scale": [0.25], "zero_point": [0]}
    tensors = [T(shape=(1, 4), name="x", **ends), T(shape=(1, 4), name="y", **ends)]
    path = tmp_path / "maximum.tflite"
    path.write_bytes(packed(tensors, [Op(name="MAXIMUM", inputs=[0, 0], outputs=[1], options={}, version=2)], [0], [1]))
    x = {"x": np.float32([[0.125, 0.375, -0.125, -0.625]])}
    assert open_inner(path, runtime="litert").run(x)["y"].tolist() == [[0, 2, 0, -2]]
    assert open_inner(path, runtime="litert-reference").run(x)["y"].tolist() == [[1, 2, -1, -3]]


# --- TVM ------------------------------------------------------------------------------------------------------------


def test_tvm_s_kernels_give_the_integers_of_the_integer_network(folder: Path) -> None:
    pytest.importorskip("tvm", reason="needs TVM: pip install 'narrowgauge[tvm]'")
    from narrowgauge.exporters.tvm.inner import open_inner as open_tvm

    inner = open_tvm(read(folder / "simulated.onnx"), threads=1)
    expected = open_inner(folder / "integer.onnx", threads=1).run({"image": IMAGES[:1]})
    found = inner.run({"image": IMAGES[:1]})
    assert len(set(found) & set(expected)) > 4
    for name in set(found) & set(expected):
        np.testing.assert_array_equal(found[name], expected[name], name)

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from narrowgauge.errors import ModelError
from narrowgauge.graph.quantized import is_quantized
from narrowgauge.importers.onnx import check_weights, load
from tests.passes.networks import assert_same, network, node, operators, random, run


def small(**options: object) -> onnx.ModelProto:
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Reshape", "r s", "y")]
    constants = {"w": random(3, 2, 1, 1), "b": random(3), "s": np.array([-1, 48])}
    return network(nodes, {"x": ["N", 2, 4, 4]}, ["y"], constants, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    onnx.save(small(), file)
    return file


def test_a_path_a_proto_and_an_ir_model_give_the_same(path: Path) -> None:
    expected = run(small())
    for given in (path, str(path), onnx.load(path), ir.load(path)):
        assert_same(expected, run(load(given).model))


def test_the_original_is_not_touched(path: Path) -> None:
    given = ir.load(path)
    before = ir.to_proto(given).SerializeToString()
    imported = load(given)
    assert imported.original is given
    assert ir.to_proto(given).SerializeToString() == before
    assert operators(load(path).original) == {"Conv": 1, "Relu": 1, "Reshape": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x1c\x00\x00\x00TFL3", "TFLite"),
        (b"PK\x03\x04", "zip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"this is a text\nof two lines", "text"),
        (b'{"a": 1}', "text"),
        (bytes(range(200, 256)) * 4, "not ONNX"),
        (b"\x08\x0a", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_no_network_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        load(file)
    assert "model.onnx" in str(caught.value)


def test_every_truncation_is_an_error(path: Path) -> None:
    content = path.read_bytes()
    for length in range(1, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"model\.onnx"):
            load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="expected a path"):
        load(3)  # type: ignore[arg-type]


def test_opsets_too_old_and_too_new_are_named() -> None:
    proto = small()
    for version in (6, 1000):
        proto.opset_import[0].version = version
        with pytest.raises(ModelError, match=f"opset {version}"):
            load(proto)
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="which opset"):
        load(proto)


def test_a_newer_opset_is_lowered_as_far_as_every_operator_means_the_same() -> None:
    assert load(small(opset=25)).model.opset_imports[""] in range(21, 26)
    relu = network([node("Relu", "x", "y")], {"x": [2]}, ["y"], opset=onnx.defs.onnx_opset_version())
    model = load(relu).model
    assert model.opset_imports[""] == 21
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(("count", "bad"), [(1, np.nan), (3, np.inf), (2, -np.inf)])
def test_weights_that_are_not_finite_are_named_and_counted(count: int, bad: float) -> None:
    proto = small()
    weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights.reshape(-1)[:count] = bad
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    with pytest.raises(ModelError, match=rf"'w'.*node_c.*{count} (NaN|infinity) among its 6"):
        load(proto)
    with pytest.raises(ModelError, match="'w'"):
        check_weights(ir.from_proto(proto))


def test_infinity_in_a_mask_is_no_error() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [node("Add", "x mask", "a"), node("Softmax", "a", "y")]
    proto = network(nodes, {"x": [4, 4]}, ["y"], {"mask": mask})
    assert_same(run(proto), run(load(proto).model))


def external(folder: Path) -> Path:
    file = folder / "model.onnx"
    proto = small()
    onnx.save_model(proto, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return file


def test_external_data(tmp_path: Path) -> None:
    file = external(tmp_path)
    assert_same(run(small()), run(load(file).model))


def test_external_data_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = load("model.onnx").model
    monkeypatch.chdir("/")
    assert_same(run(small()), run(model))


def test_external_data_missing_short_or_elsewhere(tmp_path: Path) -> None:
    file = external(tmp_path)
    data = tmp_path / "weights.bin"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(ModelError, match="truncated"):
        load(file)
    data.unlink()
    with pytest.raises(ModelError, match=r"weights\.bin, which is missing"):
        load(file)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.onnx").write_bytes(file.read_bytes().replace(b"weights.bin", b"../weig.bin"))
    (tmp_path / "weig.bin").write_bytes(content)
    with pytest.raises(ModelError, match="outside the network's folder"):
        load(outside / "model.onnx")
    (outside / "weights.bin").symlink_to(tmp_path / "weig.bin")
    (outside / "model.onnx").write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="outside the network's folder"):
        load(outside / "model.onnx")
    with pytest.raises(ModelError, match="path"):
        load(onnx.load(file, load_external_data=False))


def test_external_data_with_a_second_hard_link_is_refused(tmp_path: Path) -> None:
    file = external(tmp_path)
    (tmp_path / "other").hardlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="hard link"):
        load(file)


def test_a_huge_declared_shape_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    file = external(tmp_path)
    proto = onnx.load(file, load_external_data=False)
    proto.graph.initializer[0].dims[0] = 1 << 40
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="truncated or damaged"):
        load(file)
    proto = small()
    proto.graph.initializer[0].dims[0] = 1 << 40
    with pytest.raises(ModelError, match="'w'"):
        load(proto)


def test_a_sparse_file_over_the_protobuf_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with file.open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(ModelError, match="external data"):
        load(file)


def test_graphs_that_do_not_hold_together_are_refused() -> None:
    missing = network([node("Add", "x nowhere", "y")], {"x": [2]}, ["y"])
    with pytest.raises(ModelError, match="'nowhere', which nothing makes"):
        load(missing)
    cycle = network([node("Add", "x b", "a"), node("Relu", "a", "b")], {"x": [2]}, ["b"])
    with pytest.raises(ModelError, match="cycle"):
        load(cycle)
    with pytest.raises(ModelError, match="no node makes the output"):
        load(network([node("Relu", "x", "y")], {"x": [2]}, ["z"]))
    with pytest.raises(ModelError, match="no outputs"):
        load(network([node("Relu", "x", "y")], {"x": [2]}, []))


def test_nodes_out_of_order_are_sorted() -> None:
    proto = network([node("Neg", "r", "y"), node("Relu", "x", "r")], {"x": [2]}, ["y"])
    model = load(proto).model
    assert [each.op_type for each in model.graph] == ["Relu", "Neg"]
    onnx.checker.check_model(ir.to_proto(model))


def test_unknown_operators_pass_through_with_the_shapes_they_declare() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        helper.make_node("Strange", ["r"], ["s"], domain="com.example", name="strange", level=3),
        node("Clip", "s", "y", min=0.0),
    ]
    proto = network(nodes, {"x": ["N", 2, 4, 4]}, ["y"], {"w": random(3, 2, 1, 1)}, opset=10)
    proto.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 7]))
    model = load(proto).model
    strange = model.graph.node("strange")
    assert strange.domain == "com.example"
    assert strange.attributes.get_int("level") == 3
    assert list(strange.outputs[0].shape)[1] == 7
    assert operators(model) == {"Conv": 1, "Relu": 1, "Strange": 1, "Clip": 1}
    proto.graph.node[2].domain = ""
    assert operators(load(proto).model)["Strange"] == 1


def test_stale_recorded_shapes_are_not_believed() -> None:
    proto = network(
        [node("Relu", "x", "r"), node("Shape", "r", "s"), node("Reshape", "z s", "y")],
        {"x": ["N", 6], "z": ["M"]},
        ["y"],
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 6]))
    model = load(proto).model
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": np.zeros((2, 6), np.float32), "z": np.zeros(12, np.float32)}
    assert session.run(None, feeds)[0].shape == (2, 6)


def test_branches_keep_their_own_nodes_and_are_upgraded() -> None:
    def branch(name: str, axis: int) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Constant", [], [f"k{axis}"], value=numpy_helper.from_array(random(1))),
            helper.make_node("ReduceMean", ["r"], [f"m{axis}"], axes=[axis], keepdims=1),
            helper.make_node("Add", [f"m{axis}", f"k{axis}"], [f"o{axis}"]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"o{axis}", TensorProto.FLOAT, None)])

    nodes = [
        node("Relu", "x", "r"),
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", 2)),
    ]
    proto = network(nodes, {"x": [2, 3, 4]}, ["y"], {"zero": np.float32(0)}, opset=12)
    model = load(proto).model
    onnx.checker.check_model(ir.to_proto(model))
    for seed in range(6):
        assert_same(run(proto, seed), run(model, seed))


def test_functions_are_inlined() -> None:
    opset = helper.make_opsetid("", 21)
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("com.example", "Minus", ["a"], ["c"], body, [opset])
    nodes = [
        helper.make_node("Minus", ["x"], ["h"], domain="com.example"),
        helper.make_node("Minus", ["h"], ["y"], domain="com.example"),
    ]
    proto = network(nodes, {"x": ["N", 3]}, ["y"])
    proto.functions.append(function)
    imported = load(proto)
    assert operators(imported.model) == {"Relu": 2, "Neg": 2}
    assert len({each.name for each in imported.model.graph}) == 4
    assert any("inlined" in note for note in imported.notes)
    assert_same(run(proto), run(imported.model))


def test_constants_become_initializers_and_names_are_unique() -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value_float=2.0),
        helper.make_node("Mul", ["x", "k"], ["a"]),
        helper.make_node("Mul", ["a", "x"], ["y"], name="same"),
        helper.make_node("Neg", ["y"], ["z"], name="same"),
    ]
    model = load(network(nodes, {"x": [2]}, ["y", "z"]), simplify=False).model
    assert set(model.graph.initializers) == {"k"}
    assert operators(model) == {"Mul": 2, "Neg": 1}
    names = [each.name for each in model.graph]
    assert all(names)
    assert len(set(names)) == 3


def test_quantized_networks_are_recognised() -> None:
    assert not is_quantized(load(small()).model)
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    proto = network(nodes, {"x": ["N", 4]}, ["y"], {"s": np.float32(0.1), "z": np.uint8(3)})
    imported = load(proto)
    assert is_quantized(imported.model)
    assert_same(run(proto), run(imported.model))


ZOO = (
    "mobilenet_v1_025/mobilenet_v1_0.25_224",
    "mobilenet_v2/mobilenet_v2_1.0_224",
    "vit_tiny/vit_tiny_patch16_224",
    "cifar_resnet/resnet20",
    "cifar_resnet/resnet56",
    "dtln/model_1",
    "dtln/model_2",
    "onnx_other/mnist",
    "onnx_other/version-RFB-320",
    "onnx_other/silero_vad_16k_op15",
    "onnx_int8/mobilenet_v2_quant",
)


@pytest.mark.parametrize("name", ZOO)
def test_real_networks_give_the_same(zoo: Path, name: str) -> None:
    file = zoo / "models" / f"{name}.onnx"
    imported = load(file)
    model = imported.model
    assert model.opset_imports[""] == 21
    onnx.checker.check_model(ir.to_proto(model))
    assert not any(each.op_type == "Constant" for each in model.graph)
    assert_same(_run_file(file, os.fspath(file)), _run_file(file, ir.to_proto(model).SerializeToString()), 1e-5)
    original = {value.name for each in ir.load(file).graph for value in each.outputs}
    kept = {value.name for each in model.graph for value in each.outputs}
    assert len(kept & original) >= 0.9 * len(kept)


def _run_file(file: Path, source: str | bytes) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    sizes = {"batch": 2, "N": 2, "sequence": 512}
    feeds = {}
    for value in session.get_inputs():
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in value.shape]
        numbers = generator.standard_normal(shape).astype(np.float32)
        feeds[value.name] = np.array(16000, np.int64) if value.type == "tensor(int64)" else numbers
    return [np.asarray(output) for output in session.run(None, feeds)]


def test_recognised_structure_of_real_networks(zoo: Path) -> None:
    transformer = operators(load(zoo / "models/vit_tiny/vit_tiny_patch16_224.onnx").model)
    assert transformer["Gelu"] == 12
    assert transformer["LayerNormalization"] == 25
    assert transformer["Erf"] == transformer["Div"] == 0
    detector = operators(load(zoo / "models/onnx_other/version-RFB-320.onnx").model)
    assert detector["BatchNormalization"] == detector["Shape"] == detector["Flatten"] == 0
    assert operators(load(zoo / "models/dtln/model_2.onnx").model)["LayerNormalization"] == 1
    assert is_quantized(load(zoo / "models/onnx_int8/mobilenet_v2_quant.onnx").model)

"""MXNet's networks, against what MXNet 1.9.1 computed with them (golden_mxnet/make_golden.py)."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.errors import ModelError
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.pieces import piece
from narrowgauge.importers.mxnet import convert
from narrowgauge.importers.mxnet.ndarrays import read_parameters
from narrowgauge.importers.opening import load
from narrowgauge.lowering.qdq import lower_to_qdq

GOLDEN = Path(__file__).parent / "golden_mxnet"


def golden(name: str) -> tuple[dict[str, np.ndarray], list[tuple[str, np.ndarray]]]:
    """Return a network's inputs, and each output with MXNet's name of it."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        inputs = {key[3:]: stored[key] for key in stored if key.startswith("in:")}
        keys = sorted((key for key in stored if key.startswith("out:")), key=lambda key: int(key.split(":")[1]))
        return inputs, [(key.split(":", 2)[2], stored[key]) for key in keys]


def computed(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = open_session(model, threads=1, simulate=True)
    wanted = {one.name for one in session.get_inputs()}
    return list(session.run(None, {name: array for name, array in inputs.items() if name in wanted}))


@pytest.mark.parametrize("name", ["layers", "volumes", "arithmetic", "moving", "recurrent", "float_network"])
def test_every_operator_computes_what_mxnet_computes(name: str) -> None:
    inputs, expected = golden(name)
    converted = convert(GOLDEN / f"{name}-symbol.json", example=inputs)
    results = computed(converted.model, inputs)
    assert len(results) == len(expected)
    wrong = []
    for (output, wanted), got in zip(expected, results, strict=True):
        scale = max(float(np.abs(wanted).max(initial=0)), 1.0)
        if wanted.shape != got.shape or not np.allclose(got, wanted, rtol=1e-5, atol=1e-5 * scale):
            wrong.append((output, wanted.shape, got.shape))
    assert not wrong


def scale_of(value: ir.Value) -> np.float32 | None:
    """Return the scale of a value that a DequantizeLinear makes, else None."""
    node = value.producer()
    assert node is not None
    if node.op_type != "DequantizeLinear":
        return None
    scale = node.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    return np.float32(scale.const_value.numpy())


def stage(model: ir.Model, output: ir.Value, known: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute an output from the nearest values that are known."""
    nodes: set[ir.Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [one for one in node.inputs if one is not None and one.name not in known]
    part = piece(model, [node for node in model.graph if node in nodes], [str(output.name)])
    return computed(part, dict(known))[0]


@pytest.mark.parametrize("name", ["plain_int8", "fused_auto", "fused_int8"])
def test_quantized_networks_have_the_levels_that_mxnet_computes(name: str) -> None:
    inputs, expected = golden(name)
    model = convert(GOLDEN / f"{name}-symbol.json").model
    known = dict(inputs)
    assert len(model.graph.outputs) == len(expected) >= 9
    for output, (title, wanted) in zip(model.graph.outputs, expected, strict=True):
        got, scale = stage(model, output, known), scale_of(output)
        if scale is None:
            np.testing.assert_allclose(got, wanted, atol=2e-3, err_msg=title)
            continue
        steps = np.abs(np.rint(got / scale) - wanted)
        assert (steps <= 1).mean() >= 0.999, f"{title}: {np.unique(steps, return_counts=True)}"
        assert (steps == 0).mean() >= (0.65 if name.startswith("plain") else 0.98), title
        known[str(output.name)] = wanted * scale


# --- names, shapes, files ---


def graph_of(name: str) -> dict[str, Any]:
    content = json.loads((GOLDEN / f"{name}-symbol.json").read_text())
    assert isinstance(content, dict)
    return content


def write(folder: Path, graph: Mapping[str, Any], arrays: Mapping[str, np.ndarray], name: str = "net") -> Path:
    """Write a network's two files; return the symbol's path."""
    (folder / f"{name}-0000.params").write_bytes(stored(arrays))
    path = folder / f"{name}-symbol.json"
    path.write_text(json.dumps(graph))
    return path


FLAGS = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}


def stored(arrays: Mapping[str, np.ndarray], *, magic: int = 0xF993FAC9) -> bytes:
    """Write a .params file; a magic of 0 is the form before MXNet 0.11."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        rank, shape = array.ndim, array.shape
        if magic == 0:
            parts.append(struct.pack(f"<I{rank}I", rank, *shape))
        elif magic == 0xF993FAC8:
            parts.append(struct.pack(f"<Ii{rank}q", magic, rank, *shape))
        else:
            parts.append(struct.pack(f"<Iii{rank}q", magic, 0, rank, *shape))
        parts += [struct.pack("<iii", 1, 0, FLAGS[array.dtype.name]), np.ascontiguousarray(array).tobytes()]
    parts.append(struct.pack("<Q", len(arrays)))
    for name in arrays:
        parts.append(struct.pack("<Q", len(name.encode())) + name.encode())
    return b"".join(parts)


def node(operator: str, name: str, inputs: list[int], **attributes: str) -> dict[str, Any]:
    return {"op": operator, "name": name, "attrs": attributes, "inputs": [[one, 0, 0] for one in inputs]}


def symbol(*nodes: dict[str, Any], heads: tuple[int, ...] = ()) -> dict[str, Any]:
    numbers = heads or (len(nodes) - 1,)
    return {"nodes": list(nodes), "arg_nodes": [], "heads": [[one, 0, 0] for one in numbers]}


def test_values_and_weights_keep_their_names() -> None:
    model = convert(GOLDEN / "float_network-symbol.json").model
    assert model.opset_imports == {"": 21}
    assert [value.name for value in model.graph.inputs] == ["data"]
    assert [value.name for value in model.graph.outputs] == ["softmax_output"]
    assert {"conv0_weight", "bn0_moving_var", "fc_bias"} <= set(model.graph.initializers)
    values = {value.name for one in model.graph for value in one.outputs}
    assert {"conv0_output", "bn0_output", "sum_output", "cat_output", "fc_output"} <= values
    assert {"conv0", "bn0", "sum", "fc"} <= {one.name for one in model.graph}


def test_input_shapes_come_from_the_layers_the_file_or_the_example(tmp_path: Path) -> None:
    def shape(path: Path, example: Any = None) -> list[Any]:
        value = convert(path, example=example).model.graph.inputs[0]
        return [size if isinstance(size, int) else None for size in value.shape or ()]

    path = GOLDEN / "float_network-symbol.json"
    assert shape(path) == [None, 4, None, None]
    assert shape(path, {"data": (2, 4, 6, None)}) == [2, 4, 6, None]
    assert shape(path, np.zeros((3, 4, 6, 6))) == [None, 4, 6, 6]
    assert shape(path, [np.zeros((3, 4, 6, 6))]) == [None, 4, 6, 6]
    assert shape(path, "anything else") == [None, 4, None, None]
    written = graph_of("float_network")
    written["nodes"][0]["attrs"] = {"__shape__": "(16, 4, 0, 6)"}
    shutil.copy(GOLDEN / "float_network-0000.params", tmp_path / "net-0000.params")
    (tmp_path / "net-symbol.json").write_text(json.dumps(written))
    assert shape(tmp_path / "net-symbol.json") == [None, 4, None, 6]


def test_an_input_of_unknown_rank_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, symbol(node("null", "x", []), node("relu", "r", [0])), {})
    with pytest.raises(ModelError, match=r"shape of the input 'x'"):
        convert(path)
    notes = convert(path, example={"x": (None, 3), "z": (1,)}).notes
    assert any("z" in note for note in notes)


def test_older_spellings_mean_the_same(tmp_path: Path) -> None:
    graph, inputs = graph_of("float_network"), golden("float_network")[0]
    moved: dict[int, int] = {}
    nodes = []
    for number, one in enumerate(graph["nodes"]):
        if one["name"].endswith(("moving_mean", "moving_var")):
            continue
        moved[number] = len(nodes)
        sources = [[moved[source], output] for source, output, _ in one["inputs"] if source in moved]
        nodes.append({"op": one["op"], "name": one["name"], "param": one.get("attrs", {}), "attr": {"lr_mult": "2"},
                      "inputs": sources, "backward_source_id": -1})  # fmt: skip
    old = {"nodes": nodes, "arg_nodes": [], "heads": [[moved[number], output] for number, output, _ in graph["heads"]]}
    shutil.copy(GOLDEN / "float_network-0000.params", tmp_path / "net-0000.params")
    (tmp_path / "net-symbol.json").write_text(json.dumps(old))
    expected = computed(convert(GOLDEN / "float_network-symbol.json").model, inputs)
    np.testing.assert_array_equal(computed(convert(tmp_path / "net-symbol.json").model, inputs), expected)


@pytest.mark.parametrize("magic", [0, 0xF993FAC8, 0xF993FAC9, 0xF993FACA])
def test_every_form_of_parameters(tmp_path: Path, magic: int) -> None:
    arrays = {
        "arg:a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "aux:b": np.arange(4, dtype=np.int8),
        "c": np.arange(3, dtype=np.float16),
    }
    path = tmp_path / "net.params"
    path.write_bytes(stored(arrays, magic=magic))
    found = read_parameters(path)
    assert list(found) == ["a", "b", "c"]
    for array, expected in zip(found.values(), arrays.values(), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_the_file_beside_is_found(tmp_path: Path) -> None:
    for epoch in ("0000", "0012", "0003"):
        shutil.copy(GOLDEN / "float_network-0000.params", tmp_path / f"float_network-{epoch}.params")
    with pytest.raises(ModelError, match=r"float_network-symbol.json"):
        convert(tmp_path / "float_network-0003.params")
    path = Path(shutil.copy(GOLDEN / "float_network-symbol.json", tmp_path))
    assert convert(path).notes == ("trained parameters: float_network-0012.params",)
    assert convert(tmp_path / "float_network-0003.params").notes == ("trained parameters: float_network-0003.params",)
    with pytest.raises(ModelError, match=r"other-0000.params"):
        convert(shutil.copy(path, tmp_path / "other-symbol.json"))
    with pytest.raises(ModelError, match="no such file"):
        convert(tmp_path / "absent-symbol.json")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("null", "x", []), node("_contrib_MultiBoxPrior", "boxes", [0])], r"'_contrib_MultiBoxPrior'.*'boxes'"),
        ([node("null", "x", []), node("null", "w", []), node("Convolution", "c", [0, 1], kernel="(1,1)")], r"'w'.*'c'"),
        ([node("null", "x", []), node("Activation", "a", [0], act_type="odd")], r"Activation 'a'.*'odd'"),
        ([node("null", "x", []), node("Pooling", "p", [0], kernel="(2, two)")], r"Pooling 'p'.*two"),
        ([node("null", "x", []), node("elemwise_add", "a", [0])], r"elemwise_add 'a'.*input 1"),
        ([node("null", "x", []), node("relu", "r", [1])], r"node 1.*before this one"),
        ([node("null", "x", []), node("dot", "d", [0, 0])], r"dot 'd'.*matrix"),
        ([node("null", "x", []), node("_contrib_quantize_v2", "q", [0], out_type="int8")], r"'q'.*calib_mode"),
        ([node("null", "x", []), node("_contrib_dequantize", "q", [0, 0, 0])], r"'q'.*quantized numbers"),
        ([node("null", "x", []), node("transpose", "t", [0], axes="(0, 9)")], r"t_transpose.*fit"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, nodes: list[dict[str, Any]], words: str) -> None:
    path = write(tmp_path, symbol(*nodes), {})
    with pytest.raises(ModelError, match=words):
        convert(path, example={"x": (None, 4, 8, 8)})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'{"nodes": 3, "heads": []}', b"\xff\xfe", b"[" * 100000,
        b'{"nodes": [1], "heads": [[0, 0]]}', b'{"nodes": [{"op": 1}], "heads": []}', b'{"nodes": [], "heads": []}',
        b'{"nodes": [], "heads": [[0, 0, 0]]}',
    ],
)  # fmt: skip
def test_other_texts_are_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, {}, {})
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"net-symbol\.json"):
        convert(path)


@pytest.mark.parametrize("name", ["plain_int8", "fused_int8", "recurrent"])
def test_damaged_files_give_one_error(tmp_path: Path, name: str) -> None:
    parameters, text = (GOLDEN / f"{name}{suffix}" for suffix in ("-0000.params", "-symbol.json"))
    good = {path: path.read_bytes() for path in (parameters, text)}
    copies = {path: tmp_path / path.name for path in good}
    random = np.random.default_rng(4)
    inputs = golden(name)[0]
    for path, content in good.items():
        for other, whole in good.items():
            copies[other].write_bytes(whole)
        for cut in (0, 3, 8, 20, 24, len(content) // 3, len(content) // 2, len(content) - 4):
            copies[path].write_bytes(content[:cut])
            with pytest.raises(ModelError, match=path.name):
                convert(copies[text], example=inputs)
        for place in random.integers(0, len(content), 12):
            damaged = bytearray(content)
            damaged[place] ^= int(random.integers(1, 256))
            copies[path].write_bytes(damaged)
            with contextlib.suppress(ModelError):  # a flipped bit of a weight is a weight
                convert(copies[text], example=inputs)


def test_parameters_that_lie_about_their_size_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.params"
    array = struct.pack("<Iii2q", 0xF993FAC9, 0, 2, 2**40, 2**20) + struct.pack("<iii", 1, 0, 0)
    for content in (
        struct.pack("<QQQ", 0x112, 0, 2**60),
        struct.pack("<QQQ", 0x112, 0, 1) + array,
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<Iii", 0xF993FAC9, 1, 2),
        struct.pack("<QQQ", 0x112, 0, 0) + struct.pack("<Q", 7),
        b"PK\x03\x04 something else",
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"net\.params"):
            read_parameters(path)


def test_layers_with_the_channels_last_and_a_wanted_size(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    x, weights = (random.normal(0, 1, shape).astype(np.float32) for shape in ((2, 4, 6, 5), (4, 3, 4, 4)))
    same = {"kernel": "(4, 4)", "stride": "(2, 2)", "num_filter": "3"}
    plain = symbol(*(node("null", one, []) for one in "xw"), node("Deconvolution", "d", [0, 1], pad="(1, 1)", **same))
    wanted = symbol(*(node("null", one, []) for one in "xw"),
                    node("Deconvolution", "d", [0, 1], target_shape="(12, 10)", **same))  # fmt: skip
    first, second = (
        computed(convert(write(tmp_path, graph, {"w": weights}), example={"x": x}).model, {"x": x})[0]
        for graph in (plain, wanted)
    )
    np.testing.assert_array_equal(first, second)

    weights = random.normal(0, 1, (3, 4, 3, 2)).astype(np.float32)
    layer, pool = {"kernel": "(3, 2)", "num_filter": "3", "no_bias": "True"}, {"kernel": "(2, 2)", "pool_type": "avg"}
    results = []
    for layout, order in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))):
        graph = symbol(
            *(node("null", one, []) for one in "xw"),
            node("Convolution", "c", [0, 1], layout=layout, **layer), node("Pooling", "p", [2], layout=layout, **pool),
        )  # fmt: skip
        path = write(tmp_path, graph, {"w": weights.transpose(order)})
        results.append(computed(convert(path).model, {"x": x.transpose(order)})[0])
    np.testing.assert_allclose(results[0].transpose(0, 2, 3, 1), results[1], rtol=1e-5, atol=1e-6)


# --- quantized ---


def test_an_unfused_quantized_convolution(tmp_path: Path) -> None:
    """The products of levels, in units of both scales; the bias as levels of 32 bits."""
    random = np.random.default_rng(5)
    weights = random.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
    bias = random.integers(-127, 128, 4).astype(np.int8)
    bounds = {"wl": -0.5, "wh": 0.25, "bl": -2.0, "bh": 1.0}
    variables = [node("null", name, []) for name in ("x", "w", "b", *bounds)]
    quantize = node("_contrib_quantize_v2", "q", [0], out_type="int8", min_calib_range="-3", max_calib_range="2")
    layer = {
        "op": "_contrib_quantized_conv", "name": "c", "attrs": {"kernel": "(3, 3)", "num_filter": "4"},
        "inputs": [[7, 0, 0], [1, 0, 0], [2, 0, 0], [7, 1, 0], [7, 2, 0], *([n, 0, 0] for n in (3, 4, 5, 6))],
    }  # fmt: skip
    back = {"op": "_contrib_dequantize", "name": "d", "inputs": [[8, 0, 0], [8, 1, 0], [8, 2, 0]]}
    arrays = {"w": weights, "b": bias, **{name: np.array([one], dtype=np.float32) for name, one in bounds.items()}}
    path = write(tmp_path, symbol(*variables, quantize, layer, back), arrays)
    x = random.normal(0, 1, (2, 4, 5, 6)).astype(np.float32)
    result = computed(convert(path).model, {"x": x})[0]
    assert len(convert(path).notes) == 1
    levels = np.clip(np.rint(x / np.float32(3 / 127.5)), -128, 127)
    windows = np.lib.stride_tricks.sliding_window_view(levels, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, weights.astype(np.float64))
    unit = np.float64(3 / 127.5) * (0.5 / 127)
    whole = np.trunc(bias * (2 / 127) / unit).reshape(-1, 1, 1)
    np.testing.assert_allclose(result, (sums + whole) * unit, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain_int8", "fused_auto"])
def test_a_quantized_network_opens_with_its_plan(name: str) -> None:
    inputs = golden(name)[0]
    imported = load(GOLDEN / f"{name}-symbol.json")
    assert imported.framework == "MXNet"
    assert imported.plan is not None
    assert "fc_weight" in imported.plan.encodings
    simulated = lower_to_qdq(imported.original, imported.plan)
    given = computed(convert(GOLDEN / f"{name}-symbol.json").model, inputs)
    for result, expected in zip(computed(simulated, inputs), given, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_stored_levels_of_zeros_are_zeros_and_a_picture_is_flattened(tmp_path: Path) -> None:
    """MXNet stores a bias of zeros as levels of 127 with thresholds of zero."""
    weights = np.random.default_rng(7).integers(-127, 128, (3, 8)).astype(np.int8)
    bounds = {"wl": -0.5, "wh": 0.5, "bl": 0.0, "bh": 0.0}
    variables = [node("null", name, []) for name in ("x", "w", "b", *bounds)]
    quantize = node("_contrib_quantize_v2", "q", [0], out_type="int8", min_calib_range="-3", max_calib_range="2")
    layer = {
        "op": "_contrib_quantized_fully_connected", "name": "f", "attrs": {"num_hidden": "3"},
        "inputs": [[7, 0, 0], [1, 0, 0], [2, 0, 0], [7, 1, 0], [7, 2, 0], *([n, 0, 0] for n in (3, 4, 5, 6))],
    }  # fmt: skip
    back = {"op": "_contrib_dequantize", "name": "d", "inputs": [[8, 0, 0], [8, 1, 0], [8, 2, 0]]}
    arrays = {"w": weights, "b": np.full(3, 127, np.int8)}
    arrays |= {name: np.array([one], dtype=np.float32) for name, one in bounds.items()}
    path = write(tmp_path, symbol(*variables, quantize, layer, back), arrays)
    x = np.random.default_rng(8).normal(0, 1, (5, 2, 2, 2)).astype(np.float32)
    example = {"x": (None, 2, 2, 2)}
    result = computed(convert(path, example=example).model, {"x": x})[0]
    levels = np.clip(np.rint(x / np.float32(3 / 127.5)), -128, 127).reshape(5, 8)
    np.testing.assert_allclose(result, levels @ weights.T * (3 / 127.5) * (0.5 / 127), rtol=1e-5, atol=1e-5)
    imported = load(path, example=example)
    assert imported.plan is not None
    assert not any("biases" in note for note in imported.notes)


def test_what_mxnet_computes_otherwise_is_remarked(tmp_path: Path) -> None:
    """A signed summand before a Relu, a grouped convolution, and an unfused one of uint8."""
    weights = np.random.default_rng(10).normal(0, 1, (4, 2, 1, 1)).astype(np.float32)
    inner = symbol(
        node("null", "x0", []), node("null", "w0", []),
        node("Convolution", "c", [0, 1], kernel="(1, 1)", num_filter="4", num_group="2", no_bias="True"),
        node("null", "s0", []), node("elemwise_add", "a", [2, 3]), node("Activation", "r", [4], act_type="relu"),
    )  # fmt: skip
    quantize = {"out_type": "int8", "min_calib_range": "-3", "max_calib_range": "3"}
    fused = {
        "op": "_sg_mkldnn_conv", "name": "f", "subgraphs": [inner],
        "attrs": {"quantized": "true", "with_sum": "true", "min_calib_range": "0", "max_calib_range": "6"},
        "inputs": [[2, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0], [2, 1, 0], [2, 2, 0]],
    }  # fmt: skip
    graph = symbol(
        node("null", "x", []), node("null", "w", []), node("_contrib_quantize_v2", "q", [0], **quantize), fused
    )
    converted = convert(write(tmp_path, graph, {"w": weights}))
    assert ["summand" in note for note in converted.notes].count(True) == 1
    assert ["grouped" in note for note in converted.notes].count(True) == 1
    x = np.random.default_rng(11).normal(0, 1, (2, 4, 3, 3)).astype(np.float32)
    kernel = np.zeros((4, 4), dtype=np.float32)
    kernel[:2, :2], kernel[2:, 2:] = weights[:2, :, 0, 0], weights[2:, :, 0, 0]
    expected = np.clip(np.einsum("oc,nchw->nohw", kernel, x) + x, 0, 6)
    np.testing.assert_allclose(computed(converted.model, {"x": x})[0], expected, atol=0.15)


def test_a_scale_comes_from_the_threshold_and_the_version(tmp_path: Path) -> None:
    graph = symbol(
        node("null", "x", []),
        node("_contrib_quantize_v2", "q", [0], out_type="auto", min_calib_range="0", max_calib_range="2"),
    )
    for version, steps in ((0, 255.5), (10901, 255.5), (10500, 255.0)):
        graph["attrs"] = {"mxnet_version": ["int", version]}
        path = write(tmp_path, graph, {})
        model = convert(path, example={"x": (None, 3)}).model
        assert scale_of(model.graph.outputs[0]) == np.float32(2 / steps)


def test_a_network_of_two_inputs_a_shared_weight_and_an_input_returned(tmp_path: Path) -> None:
    weights = np.random.default_rng(6).normal(0, 1, (3, 4)).astype(np.float32)
    layers = [
        node("FullyConnected", name, [source, 2], no_bias="True", num_hidden="3")
        for source, name in ((0, "f"), (1, "g"))
    ]
    variables = [node("null", name, []) for name in ("x", "y", "w")]
    graph = symbol(*variables, *layers, node("identity", "i", [0]), heads=(3, 4, 5, 0, 2))
    model = convert(write(tmp_path, graph, {"arg:w": weights})).model
    x, y = np.ones((2, 4), dtype=np.float32), np.full((5, 4), 2, dtype=np.float32)
    results = computed(model, {"x": x, "y": y})
    for result, expected in zip(results, (x @ weights.T, y @ weights.T, x, x, weights), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_a_text_of_someone_else_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(ModelError, match=r"tokenizer\.json: expected .* MXNet symbol, got an object with 'version'"):
        load(path)


def test_a_name_that_only_looks_like_an_epoch(tmp_path: Path) -> None:
    """A file called after the network without an epoch stays out of the way."""
    shutil.copy(GOLDEN / "float_network-symbol.json", tmp_path / "net-symbol.json")
    shutil.copy(GOLDEN / "float_network-0000.params", tmp_path / "net.params")
    (tmp_path / "net").write_text("something else")
    assert convert(tmp_path / "net-symbol.json").notes == ("trained parameters: net.params",)

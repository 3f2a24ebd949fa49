"""Reading .tflite files: names, axes that may change, variables, and what is refused, damaged files first of all."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="TFLite files are read with its schema")

from narrowgauge.errors import MissingDependencyError, ModelError
from narrowgauge.graph.engine import open_session
from narrowgauge.importers import opening
from narrowgauge.importers.tflite import convert, read_network
from narrowgauge.importers.tflite.network import unique_names
from narrowgauge.runtimes.engines import open_program
from tests.importers.tflite_networks import Op, T, constant, opened, packed, packed_graphs, run_litert

RNG = np.random.default_rng(21)
CONVOLVES = {"padding": 0, "strideH": 2, "strideW": 2}


def small_network(batch: int = -1) -> bytes:
    """A convolution, a mean, a matrix product and a softmax over a batch that may change."""
    signature = [batch, 8, 8, 3]
    kernel, rows = RNG.normal(size=(4, 3, 3, 3)), RNG.normal(size=(5, 4))
    tensors = [
        T(shape=(1, 8, 8, 3), signature=signature, name="image"),
        constant(kernel, np.float32, name="kernel"), constant(np.ones(4), np.float32, name="bias"),
        T(shape=(1, 4, 4, 4), signature=[batch, 4, 4, 4], name="features"),
        constant([1, 2], np.int32), T(shape=(1, 4), signature=[batch, 4], name="mean"),
        constant(rows, np.float32, name="rows"), constant(np.zeros(5), np.float32),
        T(shape=(1, 5), signature=[batch, 5], name="logits"), T(shape=(1, 5), signature=[batch, 5], name="scores"),
    ]  # fmt: skip
    operators = [
        Op(name="CONV_2D", inputs=[0, 1, 2], outputs=[3], options=CONVOLVES | {"fusedActivationFunction": 1}),
        Op(name="MEAN", inputs=[3, 4], outputs=[5], options={"keepDims": False}),
        Op(name="FULLY_CONNECTED", inputs=[5, 6, 7], outputs=[8], options={}),
        Op(name="SOFTMAX", inputs=[8], outputs=[9], options={"beta": 1.0}),
    ]
    return packed(tensors, operators, [0], [9, 3])


def written(folder: Path, data: bytes) -> Path:
    path = folder / "network.tflite"
    path.write_bytes(data)
    return path


def test_the_batch_may_change_and_names_stay(tmp_path: Path) -> None:
    path = written(tmp_path, small_network())
    imported = opening.load(path)
    assert imported.framework == "TFLite"
    assert [value.name for value in imported.original.graph.inputs] == ["image"]
    assert [value.name for value in imported.original.graph.outputs] == ["scores", "features"]
    x = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
    interpreter = opened(path)
    interpreter.resize_tensor_input(0, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, x)
    interpreter.invoke()
    for model in (imported.original, imported.model):
        for found, detail in zip(
            open_session(model).run(None, {"image": x}), interpreter.get_output_details(), strict=True
        ):
            np.testing.assert_allclose(found, interpreter.get_tensor(detail["index"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 1])
def test_height_and_width_may_change(tmp_path: Path, padding: int) -> None:
    tensors = [
        T(shape=(1, 1, 1, 3), signature=[-1, -1, -1, 3], name="image"),
        constant(RNG.normal(size=(4, 3, 3, 3)), np.float32), constant(np.ones(4), np.float32),
        T(shape=(1, 1, 1, 4), signature=[-1, -1, -1, 4], name="features"),
        T(shape=(1, 1, 1, 4), signature=[-1, -1, -1, 4], name="pooled"),
    ]  # fmt: skip
    pools = CONVOLVES | {"padding": padding, "filterHeight": 3, "filterWidth": 2}
    operators = [
        Op(name="CONV_2D", inputs=[0, 1, 2], outputs=[3], options=CONVOLVES | {"padding": padding}),
        Op(name="AVERAGE_POOL_2D", inputs=[3], outputs=[4], options=pools),
    ]
    path = written(tmp_path, packed(tensors, operators, [0], [4]))
    program, imported = open_program(path, threads=1), opening.load(path)
    for shape in ((1, 9, 12, 3), (2, 16, 11, 3)):
        x = RNG.normal(size=shape).astype(np.float32)
        expected = program.run({"image": x})["pooled"]
        for model in (imported.original, imported.model):
            (found,) = open_session(model).run(None, {"image": x})
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_layers_of_a_simplified_network_lie_side_by_side(tmp_path: Path) -> None:
    imported = opening.load(written(tmp_path, small_network()))
    assert [node.op_type for node in imported.model.graph].count("Transpose") <= 2  # the input's and the output's


def test_a_file_is_known_by_its_signature(tmp_path: Path) -> None:
    path = tmp_path / "network.bin"
    path.write_bytes(small_network())
    assert opening.load(path).framework == "TFLite"


def test_names_that_are_missing_or_taken_get_a_number() -> None:
    assert unique_names(["a", "", "a", "a_1", "a"]) == ["a", "tensor_1", "a_2", "a_1", "a_3"]


def test_outputs_may_be_inputs_constants_and_the_same_twice(tmp_path: Path) -> None:
    tensors = [T(shape=(2, 3), name="x"), constant(np.ones((2, 3)), np.float32, name="one"), T(shape=(2, 3), name="y")]
    operators = [Op(name="ADD", inputs=[0, 1], outputs=[2], options={})]
    path = written(tmp_path, packed(tensors, operators, [0], [2, 0, 2, 1]))
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    model = convert(path).model
    assert [value.name for value in model.graph.outputs] == ["y", "x_1", "y_1", "one"]
    assert read_network(path).main.output_names() == ("y", "x_1", "y_1", "one")
    for found, expected in zip(
        open_session(model).run(None, {"x": x}), (x + 1, x, x + 1, np.ones((2, 3))), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_shapes_that_are_computed(tmp_path: Path) -> None:
    """Flatten all but the batch, as converters write it: SHAPE, STRIDED_SLICE, PACK, RESHAPE."""
    tensors = [
        T(shape=(1, 4, 6), signature=[-1, 4, 6]), T(shape=(3,), type="INT32"),
        constant([0], np.int32), constant([1], np.int32), constant([1], np.int32), T(shape=(), type="INT32"),
        constant(24, np.int32), T(shape=(2,), type="INT32"), T(shape=(1, 24), signature=[-1, 24]),
    ]  # fmt: skip
    operators = [
        Op(name="SHAPE", inputs=[0], outputs=[1], options={"outType": 2}),
        Op(name="STRIDED_SLICE", inputs=[1, 2, 3, 4], outputs=[5], options={"shrinkAxisMask": 1}),
        Op(name="PACK", inputs=[5, 6], outputs=[7], options={"valuesCount": 2}),
        Op(name="RESHAPE", inputs=[0, 7], outputs=[8], options={}),
    ]
    path = written(tmp_path, packed(tensors, operators, [0], [8]))
    x = RNG.normal(size=(5, 4, 6)).astype(np.float32)
    for model in (convert(path).model, opening.load(path).model):
        np.testing.assert_array_equal(open_session(model).run(None, {"t0": x})[0], x.reshape(5, 24))


@pytest.mark.parametrize(
    ("name", "places", "options", "expected"),
    [
        ("SLICE", ([1, 2], [2, -1]), {}, np.s_[1:3, 2:]),
        ("STRIDED_SLICE", ([1, 2], [3, 4], [1, 1]), {"endMask": 2}, np.s_[1:3, 2:]),
        ("STRIDED_SLICE", ([1, 2], [3, 5], [1, 2]), {"beginMask": 1}, np.s_[:3, 2:5:2]),
    ],
)
def test_places_that_are_computed(
    tmp_path: Path, name: str, places: tuple[list[int], ...], options: dict[str, int], expected: Any
) -> None:
    numbers = [T(shape=(2,), type="INT32", name=f"places_{n}") for n in range(2)]
    strides = [constant(place, np.int32) for place in places[2:]]
    tensors = [T(shape=(4, 6), name="x"), *numbers, *strides, T(shape=(-1, -1), name="y")]
    operator = Op(name=name, inputs=list(range(len(tensors) - 1)), outputs=[len(tensors) - 1], options=options)
    path = written(tmp_path, packed(tensors, [operator], [0, 1, 2], [len(tensors) - 1]))
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    feed = {"x": x, "places_0": np.int32(places[0]), "places_1": np.int32(places[1])}
    graph = convert(path).model.graph
    graph.outputs[0].shape = None
    (found,) = open_session(convert(path).model).run(None, feed)
    np.testing.assert_array_equal(found, x[expected])


def variable_network(*, keeps_state: bool = False) -> bytes:
    """A network that adds a variable, which its initialization fills."""
    handle = T(shape=(), type="RESOURCE", name="handle")
    named = Op(name="VAR_HANDLE", inputs=[], outputs=[1], options={"container": "c", "sharedName": "weights"})
    main = [
        T(shape=(2, 3), name="x"), handle, T(shape=(2, 3), name="weights"), T(shape=(2, 3), name="y"),
    ]  # fmt: skip
    operators = [
        Op(name="CALL_ONCE", inputs=[], outputs=[], options={"initSubgraphIndex": 1}),
        named,
        Op(name="READ_VARIABLE", inputs=[1], outputs=[2], options={}),
        Op(name="ADD", inputs=[0, 2], outputs=[3], options={}),
    ]
    if keeps_state:
        operators.append(Op(name="ASSIGN_VARIABLE", inputs=[1, 3], outputs=[], options={}))
    first = [constant(np.arange(6).reshape(2, 3), np.float32), handle]
    assign = Op(name="ASSIGN_VARIABLE", inputs=[1, 0], outputs=[], options={})
    return packed_graphs([(main, operators, [0], [3]), (first, [named, assign], [], [])])


def test_a_variable_that_only_the_initialization_writes_is_a_constant(tmp_path: Path) -> None:
    path = written(tmp_path, variable_network())
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    (found,) = open_session(convert(path).model).run(None, {"x": x})
    np.testing.assert_allclose(found, run_litert(path, {"x": x})[0])
    np.testing.assert_allclose(found, x + np.arange(6).reshape(2, 3))


def test_graphs_that_nothing_calls_are_noted(tmp_path: Path) -> None:
    other = [T(shape=(2, 3)), T(shape=(2, 3))]
    graph = (other, [Op(name="ABS", inputs=[0], outputs=[1], options={})], [0], [1])
    converted = convert(written(tmp_path, packed_graphs([graph, graph])))
    assert any("1 more graphs" in note for note in converted.notes)
    assert convert(written(tmp_path, variable_network())).notes == ()


def test_a_network_that_keeps_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"operator 4 \(ASSIGN_VARIABLE\).*keeps a state"):
        convert(written(tmp_path, variable_network(keeps_state=True)))


X = T(shape=(2, 3))
UNARY = Op(name="ABS", inputs=[0], outputs=[1], options={})


@pytest.mark.parametrize(
    ("tensors", "operator", "expected"),
    [
        ([X, X], replace(UNARY, name="NON_MAX_SUPPRESSION_V4"), r"operator 0 \(NON_MAX_SUPPRESSION_V4\) is not known"),
        ([X, X], replace(UNARY, name="WHILE"), r"operator 0 \(WHILE\) runs other graphs"),
        ([X, X], replace(UNARY, name="CUSTOM"), r"operator 0 \(CUSTOM .*is not known"),
        ([X, X], replace(UNARY, version=99), r"operator 0 \(ABS\) is of version 99; known is up to version 5"),
        ([replace(X, type="STRING"), X], UNARY, "got STRING"),
        ([X, X], replace(UNARY, inputs=[-1]), "expected input 0"),
        ([X, X, X], replace(UNARY, inputs=[2]), "'t2' is read before anything writes it"),
        ([X, X, replace(X, variable=True)], replace(UNARY, inputs=[2]), "'t2' keeps a state"),
        ([X, X], replace(UNARY, outputs=[1, 1]), "expected 1 outputs, got 2"),
        ([X, X, replace(X, data=np.float32([1, 2]))], replace(UNARY, inputs=[2]), "needs 24 bytes, the file has 8"),
        ([X, X, constant([9], np.int32)], replace(UNARY, name="EXPAND_DIMS", inputs=[0, 2]), "expected an axis"),
        ([X, X], replace(UNARY, name="SOFTMAX", options={"beta": float("nan")}), "expected finite options"),
    ],
)  # fmt: skip
def test_what_is_not_known_or_does_not_fit_is_refused(
    tmp_path: Path, tensors: list[T], operator: Op, expected: str
) -> None:
    path = written(tmp_path, packed(tensors, [operator], [0], [1]))
    with pytest.raises(ModelError, match=expected) as refused:
        convert(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_written_by_two_operators_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'t1' is written twice"):
        convert(written(tmp_path, packed([X, X], [UNARY, UNARY], [0], [1])))


def test_no_file_and_no_tflite_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        convert(tmp_path / "none.tflite")
    for data in (b"", b"TFL3", b"PK\x03\x04" * 20):
        with pytest.raises(ModelError, match="expected a TFLite network"):
            convert(written(tmp_path, data))


def is_refused(path: Path) -> bool:
    """Convert; any error but one of ours, on one line, fails the test."""
    try:
        convert(path)
    except ModelError as error:
        return "\n" not in str(error) or pytest.fail(str(error))
    return False


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, small_network())
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .narrowgauge\[litert\]"):
        convert(path)


def test_a_truncated_file_is_refused_or_read(tmp_path: Path) -> None:
    data = small_network()
    sizes = range(8, len(data), max(len(data) // 150, 1))
    assert sum(is_refused(written(tmp_path, data[:size])) for size in sizes) > 100


def test_a_damaged_file_is_refused_or_read(tmp_path: Path) -> None:
    """Flipped bytes give one error of ours, or a network; never another error, and never a hang."""
    data, rng = small_network(), np.random.default_rng(22)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(8, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        refused += is_refused(written(tmp_path, bytes(damaged)))
    assert refused > 25


FLOAT_NETWORKS = (
    "mlperf_tiny/ad01_fp32", "mlperf_tiny/pretrainedResnet", "mlperf_tiny/vww_96_float", "tflite_int8/conv_fc_mnist",
    "mobilenet_v1_025/mobilenet_v1_0.25_224_1_default_1",
)  # fmt: skip


@pytest.mark.parametrize("name", FLOAT_NETWORKS)
def test_float_networks_of_others(zoo: Path, name: str) -> None:
    path = zoo / "models" / f"{name}.tflite"
    imported = opening.load(path)
    (value,) = imported.original.graph.inputs
    shape = [extent if isinstance(extent, int) else 1 for extent in value.shape or ()]
    x = np.random.default_rng(23).normal(size=shape).astype(np.float32)
    (expected,) = run_litert(path, {str(value.name): x})
    for model in (imported.original, imported.model):
        (found,) = open_session(model, threads=1).run(None, {str(value.name): x})
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

"""LSTM, GRU and RNN as TFLite files, in LiteRT: float against ONNX Runtime, int8 against the integer reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import TargetError
from narrowgauge.exporters.tflite.conversion import convert
from narrowgauge.graph.recurrent import CELL_SCALE
from narrowgauge.graph.shapes import infer_shapes
from narrowgauge.importers.onnx import load
from narrowgauge.importers.prequantized import take_apart
from narrowgauge.importers.tflite import convert as imported
from narrowgauge.importers.tflite import read_network
from narrowgauge.passes import simplify
from narrowgauge.passes.unroll_recurrent import unroll_recurrent
from tests.exporters.making import export
from tests.exporters.tflite.running import exported, feed_of, in_litert, in_onnxruntime, operators, written
from tests.passes.recurrent_networks import BATCH, STEPS, in_integers, plan_of, recurrent

pytest.importorskip("ai_edge_litert", reason="LiteRT runs what is written")

KERNEL = "UNIDIRECTIONAL_SEQUENCE_LSTM"


def compare(model: ir.Model, folder: Path, plan: Plan | None = None, *, atol: float = 2e-6) -> Path:
    """Write a network and compare what LiteRT computes with what ONNX Runtime computes without the plan."""
    feed = feed_of(model, rows=1)
    expected = in_onnxruntime(model, feed)
    written(model, folder, plan)
    path = folder / "model.tflite"
    for _ in range(2):  # the state begins with zeros every time
        found = in_litert(path, model, feed)
        for name, array in expected.items():
            assert found[name].shape == array.shape
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=atol, err_msg=name)
    return path


# --- float ---


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)])
def test_a_float_lstm_is_the_kernel(tmp_path: Path, direction: str, outputs: tuple[int, ...]) -> None:
    path = compare(recurrent("LSTM", direction=direction, outputs=outputs), tmp_path)
    assert operators(path)[KERNEL] == (2 if direction == "bidirectional" else 1)


@pytest.mark.parametrize(
    "attributes",
    [{"peepholes": True}, {"bias": False}, {"steps": 1}, {"batch": "n"}, {"activations": ["Sigmoid", "Relu", "Relu"]}],
)
def test_variants_of_the_kernel(tmp_path: Path, attributes: dict[str, Any]) -> None:
    assert operators(compare(recurrent("LSTM", outputs=(0, 1), **attributes), tmp_path))[KERNEL] == 1


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LSTM", {"states": True}), ("LSTM", {"outputs": (0, 2)}), ("LSTM", {"clip": 0.5}),
        ("LSTM", {"input_forget": 1, "peepholes": True}), ("LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]}),
        ("GRU", {}), ("GRU", {"linear_before_reset": 1, "states": True, "direction": "bidirectional"}),
        ("GRU", {"direction": "reverse", "batch": "n"}), ("RNN", {"direction": "bidirectional"}),
    ],
)  # fmt: skip
def test_other_layers_become_steps(tmp_path: Path, operator: str, attributes: dict[str, Any]) -> None:
    assert operators(compare(recurrent(operator, **attributes), tmp_path))[KERNEL] == 0


def test_sequences_of_any_length_need_the_kernel(tmp_path: Path) -> None:
    conversion = convert(recurrent("LSTM", steps="time", outputs=(0,)), Plan(target="tflite", encodings={}))
    assert conversion.graph.operators[0].name == KERNEL
    with pytest.raises(TargetError, match=r"'layer' \(GRU\).*known only at run time.*fix it"):
        convert(recurrent("GRU", steps="time"), Plan(target="tflite", encodings={}))


def test_the_network_is_not_changed() -> None:
    model = recurrent("GRU")
    before = ir.to_proto(model).SerializeToString()
    convert(model, Plan(target="tflite", encodings={}))
    assert ir.to_proto(model).SerializeToString() == before


def around(model: ir.Model, *behind: tuple[str, dict[str, Any], list[Any]]) -> ir.Model:
    """Put operators behind an LSTM's first output, one after the other, each with constants of integers."""
    graph, value = model.graph, model.graph.outputs[0]
    graph.outputs.clear()
    for number, (operator, attributes, constants) in enumerate(behind):
        inputs: list[ir.Value | None] = [value]
        for place, one in enumerate(constants):
            tensor = ir.tensor(np.array(one, np.int64), name=f"constant_{number}_{place}")
            made = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
            graph.register_initializer(made)
            inputs.append(made)
        node = ir.node(operator, inputs=inputs, attributes=attributes, name=f"behind_{number}")
        node.outputs[0].name = f"value_{number}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        value = node.outputs[0]
    graph.outputs.append(value)
    infer_shapes(model)
    return model


BEHIND: dict[str, list[tuple[str, dict[str, Any], list[Any]]]] = {
    "squeezed": [("Squeeze", {}, [[1]])],
    "batch first": [("Squeeze", {}, [[1]]), ("Transpose", {"perm": (1, 0, 2)}, [])],
    "flat": [("Reshape", {}, [[STEPS * BATCH, -1]])],
    "side by side": [("Transpose", {"perm": (0, 2, 1, 3)}, []), ("Reshape", {}, [[0, 0, -1]])],
    "side by side, written out": [("Transpose", {"perm": (0, 2, 1, 3)}, []), ("Reshape", {}, [[STEPS, BATCH, -1]])],
    "side by side, flat": [("Transpose", {"perm": (0, 2, 1, 3)}, []), ("Reshape", {}, [[STEPS * BATCH, -1]])],
    "moved": [("Transpose", {"perm": (2, 0, 1, 3)}, [])],
    "computed": [("Neg", {}, [])],
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_what_follows_reads_the_state_directly(tmp_path: Path, direction: str, behind: str) -> None:
    if behind in ("squeezed", "batch first") and direction == "bidirectional":
        pytest.skip("two directions have no axis to leave out")
    path = compare(around(recurrent("LSTM", direction=direction, outputs=(0,)), *BEHIND[behind]), tmp_path)
    found = operators(path)
    assert found["TRANSPOSE"] <= 1
    if behind == "squeezed":
        assert sum(found.values()) == 1
    if behind.startswith("side by side") and behind != "side by side, flat":
        assert found["RESHAPE"] == 0


def test_layers_on_top_of_each_other_need_nothing_between(tmp_path: Path, zoo: Path) -> None:
    path = compare(simplified(zoo / "models" / "dtln" / "model_1.onnx"), tmp_path, atol=1e-5)
    assert operators(path)["TANH"] == 4  # states are inputs: steps


def simplified(path: Path) -> ir.Model:
    model = load(path).model
    simplify(model)
    return model


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("form", ["tflite-float", "tflite-float16"])
def test_a_network_of_others_in_real_numbers(tmp_path: Path, zoo: Path, number: int, form: str) -> None:
    model = simplified(zoo / "models" / "dtln" / f"model_{number}.onnx")
    feed = feed_of(model, rows=1)
    expected = in_onnxruntime(model, feed)
    written(model, tmp_path, form=form)
    found = in_litert(tmp_path / "model.tflite", model, feed)
    for name, array in expected.items():
        rounding = 0.002 if form == "tflite-float16" else 1e-5
        assert np.abs(found[name] - array).max() <= rounding * max(1, np.abs(array).max())


# --- integer weights ---


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_integer_weights_beside_real_numbers(tmp_path: Path, operator: str, direction: str) -> None:
    model = recurrent(operator, direction=direction, outputs=(0, 1), hidden=16)
    plan = plan_of(model, "dynamic")
    path = compare(model, tmp_path, plan, atol=0.1)
    graph = read_network(path).main
    products = [one for one in graph.operators if one.name in (KERNEL, "FULLY_CONNECTED")]
    assert products
    for one in products:
        assert one.options["asymmetric_quantize_inputs"]
        assert graph.tensors[one.inputs[2 if one.name == KERNEL else 1] or 0].type == "INT8"
        assert graph.tensors[one.inputs[0] or 0].type == "FLOAT32"


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_weights_alone_are_what_the_simulation_has(tmp_path: Path, operator: str, per_channel: bool) -> None:
    model = recurrent(operator, direction="bidirectional", outputs=(0, 1))
    plan = plan_of(model, "weight-only", per_channel=per_channel)
    feed = feed_of(model, rows=1)
    expected = in_onnxruntime(exported(model, plan).simulated, feed)
    written(model, tmp_path, plan)
    found = in_litert(tmp_path / "model.tflite", model, feed)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6)


def test_one_scale_for_each_row_has_no_kernel(tmp_path: Path) -> None:
    model = recurrent("LSTM", outputs=(0,))
    with pytest.raises(TargetError, match=r"LSTM.*one scale for each gate.*plan with one scale for each tensor"):
        convert(model, plan_of(model, "dynamic", per_channel=True))


# --- integers ---


@pytest.mark.parametrize("attributes", [{}, {"direction": "bidirectional"}, {"peepholes": True}, {"steps": 24}])
def test_an_lstm_in_integers(tmp_path: Path, attributes: dict[str, Any]) -> None:
    model = recurrent("LSTM", outputs=(0, 1), **attributes)
    path = compare(model, tmp_path, in_integers(model), atol=0.05)
    graph = read_network(path).main
    kernels = [one for one in graph.operators if one.name == KERNEL]
    assert kernels
    for one in kernels:
        types = [None if number is None else graph.tensors[number].type for number in one.inputs]
        assert types[0] == types[1] == types[18] == "INT8"
        assert types[12:16] == ["INT32"] * 4
        assert types[19] == "INT16"
        (scale,) = graph.tensors[one.inputs[19] or 0].quantization.scale  # type: ignore[union-attr]
        assert scale == (2.0**-11 if attributes.get("steps") == 24 else 2.0**-13)  # what so many steps can reach
        assert len(one.intermediates) == 5
        output = graph.tensors[one.outputs[0]].quantization
        assert graph.tensors[one.intermediates[4]].quantization.scale == output.scale  # type: ignore[union-attr]


def test_outputs_of_two_scales(tmp_path: Path) -> None:
    model = recurrent("LSTM", outputs=(0, 1))
    compare(model, tmp_path, in_integers(model, same=False), atol=0.05)


def test_a_scale_of_the_cells_that_is_given(tmp_path: Path) -> None:
    model = recurrent("LSTM", outputs=(0,))
    (node,) = model.graph
    plan = in_integers(model)
    node.metadata_props[CELL_SCALE] = str(2.0**-12)
    path = compare(model, tmp_path, plan, atol=0.05)
    (cells,) = [one for one in read_network(path).main.tensors if one.type == "INT16"]
    assert cells.quantization is not None
    assert cells.quantization.scale == np.float32(2.0**-12)
    node.metadata_props[CELL_SCALE] = "0.001"
    with pytest.raises(TargetError, match=r"'layer' \(LSTM\).*power of two"):
        convert(model, plan)


def test_16_bits_have_no_kernel(tmp_path: Path) -> None:
    model = recurrent("LSTM", outputs=(0,))
    plan = in_integers(model)
    wide = encoding_from_range(-3.0, 3.0, integer_type("int16"), PerTensor(), symmetric=True)
    path = compare(
        model, tmp_path, Plan(target="tflite", encodings={**plan.encodings, "x": wide, "Y": wide}), atol=0.05
    )
    graph = read_network(path).main
    (one,) = [operator for operator in graph.operators if operator.name == KERNEL]
    assert graph.tensors[one.inputs[0] or 0].type == "FLOAT32"


@pytest.mark.parametrize("operator", ["GRU", "RNN"])
def test_steps_in_integers_are_the_simulation(tmp_path: Path, operator: str) -> None:
    model = recurrent(operator, outputs=(0,))
    unroll_recurrent(model)
    feeds = [feed_of(model, seed=seed) for seed in range(4)]
    planned = export(model, {"x": np.stack([feed["x"] for feed in feeds])}, "tflite")
    assert not planned.plan.float_nodes
    expected = in_onnxruntime(planned.simulated, feeds[0])
    written(model, tmp_path, planned.plan)
    found = in_litert(tmp_path / "model.tflite", model, feeds[0])
    encoding = planned.plan.encodings["Y"]
    assert isinstance(encoding, Encoding)
    steps = np.abs(found["Y"] - expected["Y"]) / encoding.scale
    assert steps.max() < 2.5
    assert (steps > 0.5).mean() < 0.1
    assert operators(tmp_path / "model.tflite")["DEQUANTIZE"] == 1


@pytest.mark.parametrize("name", ["keras_lstm_mnist_ptq", "trained_lstm_int8"])
def test_a_file_of_others_comes_back_as_it_was(tmp_path: Path, zoo: Path, name: str) -> None:
    path = zoo / "models" / "tflite_int8" / f"{name}.tflite"
    kernels = [one for one in read_network(path).main.operators if one.name == KERNEL]
    parted = take_apart(imported(path).model, target="tflite")
    written(parted.model, tmp_path, parted.plan)
    ours = read_network(tmp_path / "model.tflite").main
    theirs = read_network(path).main
    (one,) = [operator for operator in ours.operators if operator.name == KERNEL]
    for number, other in zip(one.inputs, kernels[0].inputs, strict=True):
        assert (number is None) == (other is None)
        if number is None or other is None:
            continue
        mine, original = ours.tensors[number], theirs.tensors[other]
        assert mine.type == original.type
        if mine.data is not None:
            np.testing.assert_array_equal(mine.array(), original.array())
        np.testing.assert_array_equal(mine.quantization.scale, original.quantization.scale)  # type: ignore[union-attr]


@pytest.mark.parametrize(("mode", "version"), [("dynamic", 3), ("weight-only", 1), ("static", 1)])
def test_versions(mode: str, version: int) -> None:
    model = recurrent("LSTM", outputs=(0,), direction="reverse")
    conversion = convert(model, in_integers(model) if mode == "static" else plan_of(model, mode))
    versions = {operator.name: operator.version for operator in conversion.graph.operators}
    assert versions[KERNEL] == version
    assert versions["REVERSE_V2"] == (3 if mode == "static" else 1)


def test_an_open_batch_is_one_sample(tmp_path: Path) -> None:
    model = recurrent("LSTM", batch="n", outputs=(0,))
    value = ir.Value(name="rows", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", STEPS, 3]))
    (given,) = model.graph.inputs
    turn = ir.node("Transpose", inputs=[value], attributes={"perm": (1, 0, 2)}, name="turn")
    turn.outputs[0].name, turn.outputs[0].type, turn.outputs[0].shape = "turned", given.type, given.shape
    given.replace_all_uses_with(turn.outputs[0])
    model.graph.inputs[:] = [value]
    model.graph.insert_before(model.graph[0], turn)
    back = ir.node("Transpose", inputs=[model.graph.outputs[0]], attributes={"perm": (2, 0, 1, 3)}, name="back")
    back.outputs[0].name, back.outputs[0].type = "y", given.type
    model.graph.append(back)
    model.graph.outputs[:] = list(back.outputs)
    infer_shapes(model)
    feed = feed_of(model, rows=3)
    expected = in_onnxruntime(model, feed)
    notes = written(model, tmp_path).notes
    assert any("reset the variables" in note for note in notes)
    found = in_litert(tmp_path / "model.tflite", model, feed)  # one row a run
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=2e-6)
    assert "TRANSPOSE" not in operators(tmp_path / "model.tflite")


def test_layers_may_share_their_weights(tmp_path: Path) -> None:
    for operator in ("LSTM", "GRU"):
        model = recurrent(operator, outputs=(0,), steps=3)
        (node,) = model.graph
        again = ir.node(operator, inputs=node.inputs, attributes=node.attributes.copy(), num_outputs=1, name="again")
        again.outputs[0].name, again.outputs[0].type, again.outputs[0].shape = (
            "Z", node.outputs[0].type, node.outputs[0].shape
        )  # fmt: skip
        model.graph.append(again)
        model.graph.outputs.append(again.outputs[0])
        compare(model, tmp_path, plan_of(model, "dynamic"), atol=0.05)
        graph = read_network(tmp_path / "model.tflite").main
        assert not any(
            tensor.type == "FLOAT32" and tensor.data is not None and len(tensor.shape) == 2 for tensor in graph.tensors
        )


def test_a_network_of_others_with_integer_weights(tmp_path: Path, zoo: Path) -> None:
    model = simplified(zoo / "models" / "dtln" / "model_1.onnx")
    feed = {name: np.abs(array) * 0.1 for name, array in feed_of(model, rows=1).items()}
    planned = export(model, None, "tflite", mode="dynamic")
    simulated = in_onnxruntime(planned.simulated, feed)
    written(model, tmp_path, planned.plan)
    found = in_litert(tmp_path / "model.tflite", model, feed)
    for name, array in in_onnxruntime(model, feed).items():
        assert np.abs(found[name] - array).max() <= 0.05 * np.abs(array).max()
        assert np.abs(found[name] - simulated[name]).max() <= 0.02 * np.abs(array).max()  # another rounding at run time
    assert (tmp_path / "model.tflite").stat().st_size < 0.3 * sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )

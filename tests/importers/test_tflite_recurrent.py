"""UNIDIRECTIONAL_SEQUENCE_LSTM in its variants against LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is the reference")

from narrowgauge.errors import ModelError
from narrowgauge.graph.edits import is_operator
from narrowgauge.graph.engine import open_session
from narrowgauge.graph.recurrent import CELL_CLIP, CELL_SCALE, COUPLED_INPUT
from narrowgauge.importers.tflite import convert
from tests.importers.tflite_networks import T, constant, one_operator

BATCH, TIME, IN, HIDDEN = 2, 5, 3, 4
OPTIONS = {"fusedActivationFunction": 4, "cellClip": 0.0, "projClip": 0.0, "timeMajor": False}


def lstm_inputs(
    *, input_gate: bool = True, peepholes: bool = False, time_major: bool = False, hybrid: bool = False
) -> list[T | None]:
    """Inputs of a float LSTM in TFLite's order."""
    rng = np.random.default_rng(11)

    def weights(*shape: int) -> T:
        if hybrid:
            return constant(rng.integers(-127, 128, shape), np.int8, scale=[0.004])
        return constant(rng.normal(size=shape).astype(np.float32) / 2)

    def real(*shape: int) -> T:
        return constant(rng.normal(size=shape).astype(np.float32) / 2)

    inputs: list[T | None] = [T(shape=(TIME, BATCH, IN) if time_major else (BATCH, TIME, IN))]
    inputs += [weights(HIDDEN, IN) for _ in range(4)]
    inputs += [weights(HIDDEN, HIDDEN) for _ in range(4)]
    inputs += [real(HIDDEN) if peepholes else None for _ in range(3)]
    inputs += [real(HIDDEN) for _ in range(4)]
    inputs += [None, None]
    inputs += [T(shape=(BATCH, HIDDEN), variable=True) for _ in range(2)]
    inputs += [None] * 4
    if not input_gate:
        for number in (1, 5, 9, 12):
            inputs[number] = None
    return inputs


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("input_gate", [True, False])
def test_a_float_lstm_computes_what_litert_computes(
    tmp_path: Path, input_gate: bool, peepholes: bool, time_major: bool
) -> None:
    inputs = lstm_inputs(input_gate=input_gate, peepholes=peepholes, time_major=time_major)
    shape = (TIME, BATCH, IN) if time_major else (BATCH, TIME, IN)
    feed = {"t0": np.random.default_rng(12).normal(size=shape).astype(np.float32)}
    path = tmp_path / "lstm.tflite"
    (expected,) = one_operator(
        path, "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [T(shape=(1,))], feed, **OPTIONS | {"timeMajor": time_major}
    )
    (found,) = open_session(convert(path).model, threads=1).run(None, feed)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_integer_weights_keep_their_levels(tmp_path: Path) -> None:
    inputs = lstm_inputs(hybrid=True)
    feed = {"t0": np.random.default_rng(12).normal(size=(BATCH, TIME, IN)).astype(np.float32)}
    path = tmp_path / "lstm.tflite"
    states: list[Any] = [T(shape=(BATCH, HIDDEN), variable=True) for _ in range(2)]
    inputs[18:20] = states
    (expected,) = one_operator(
        path, "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [T(shape=(1,))], feed, version=2, **OPTIONS
    )
    converted = convert(path)
    levels = next(v for n, v in converted.model.graph.initializers.items() if n.endswith("recurrence_quantized"))
    assert levels.const_value is not None
    assert levels.const_value.numpy().dtype == np.int8
    assert levels.const_value.numpy().shape == (1, 4 * HIDDEN, HIDDEN)
    (found,) = open_session(converted.model, threads=1).run(None, feed)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert any("only the weights are rounded" in note for note in converted.notes)


@pytest.mark.parametrize(("cell_clip", "noted"), [(0.0, False), (10.0, False), (3.0, True)])
def test_a_limit_of_the_cells_is_noted_where_it_can_be_reached(tmp_path: Path, cell_clip: float, noted: bool) -> None:
    path = tmp_path / "lstm.tflite"
    feed = {"t0": np.zeros((BATCH, TIME, IN), dtype=np.float32)}
    one_operator(
        path, "UNIDIRECTIONAL_SEQUENCE_LSTM", lstm_inputs(), [T(shape=(1,))], feed, **OPTIONS | {"cellClip": cell_clip}
    )
    assert any("cells between" in note for note in convert(path).notes) == noted


def test_a_projection_is_refused(tmp_path: Path) -> None:
    inputs = lstm_inputs()
    inputs[16] = constant(np.eye(HIDDEN, dtype=np.float32))
    path = tmp_path / "lstm.tflite"
    feed = {"t0": np.zeros((BATCH, TIME, IN), dtype=np.float32)}
    one_operator(path, "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [T(shape=(1,))], feed, **OPTIONS)
    with pytest.raises(ModelError, match=r"operator 0 \(UNIDIRECTIONAL_SEQUENCE_LSTM\).*projection"):
        convert(path)


@pytest.mark.parametrize("name", ["trained_lstm", "trained_lstm_int8"])
def test_networks_of_others(zoo: Path, name: str) -> None:
    from tests.importers.tflite_networks import run_litert

    path = zoo / "models" / "tflite_int8" / f"{name}.tflite"
    model = convert(path).model
    (value,) = model.graph.inputs
    session, rng = open_session(model, threads=1, simulate=True), np.random.default_rng(13)
    for _ in range(3):
        if name.endswith("int8"):
            x = rng.integers(-128, 128, (1, 28, 28)).astype(np.int8)
            scale = model.graph.initializers[f"{value.name}_scale"].const_value
            assert scale is not None
            real = ((x.astype(np.int32) + 128) * scale.numpy()).astype(np.float32)
            (expected,) = run_litert(path, {str(value.name): x})
            (found,) = session.run(None, {str(value.name): real})
            assert np.abs(np.rint(found * 256) - 128 - expected).max() <= 4  # its inner state is not rounded here
        else:
            x = rng.normal(size=(1, 28, 28)).astype(np.float32)
            (expected,) = run_litert(path, {str(value.name): x})
            np.testing.assert_allclose(session.run(None, {str(value.name): x})[0], expected, rtol=1e-5, atol=1e-6)


def integer_file(**changes: Any) -> bytes:
    """An integer LSTM of one layer; `changes` are of its records."""
    from ai_edge_litert import schema_py_generated as schema

    from tests.core.engines.test_tflite_recurrent import packed_again, random_layer, written

    model = schema.ModelT.InitFromPackedBuf(written(random_layer(3, scales="random", input_gate=False, cell_clip=2.5)))
    if "hidden_scale" in changes:
        graph = model.subgraphs[0]
        graph.tensors[graph.operators[0].intermediates[4]].quantization.scale = [changes["hidden_scale"]]
    return packed_again(model)


def test_what_onnx_has_no_attribute_for_stays_with_the_node(tmp_path: Path) -> None:
    path = tmp_path / "lstm.tflite"
    path.write_bytes(integer_file())
    (node,) = [node for node in convert(path).model.graph if node.op_type == "LSTM"]
    assert float(node.metadata_props[CELL_SCALE]) == 2.0**-12
    assert float(node.metadata_props[CELL_CLIP]) == 2.5
    assert COUPLED_INPUT in node.metadata_props
    assert {use.node.op_type for use in node.outputs[0].uses()} == {"QuantizeLinear"}
    assert node.inputs[0] is not None
    assert is_operator(node.inputs[0].producer(), "DequantizeLinear")


def test_an_output_of_another_scale_than_the_kernels_is_not_taken_for_its_integers(tmp_path: Path) -> None:
    path = tmp_path / "lstm.tflite"
    path.write_bytes(integer_file(hidden_scale=0.25))
    (node,) = [node for node in convert(path).model.graph if node.op_type == "LSTM"]
    assert {use.node.op_type for use in node.outputs[0].uses()} == {"Squeeze"}


def test_a_float_lstm_is_not_rounded(tmp_path: Path) -> None:
    path = tmp_path / "lstm.tflite"
    feed = {"t0": np.zeros((BATCH, TIME, IN), dtype=np.float32)}
    one_operator(path, "UNIDIRECTIONAL_SEQUENCE_LSTM", lstm_inputs(), [T(shape=(1,))], feed, **OPTIONS)
    model = convert(path).model
    assert not [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert CELL_SCALE not in next(node for node in model.graph if node.op_type == "LSTM").metadata_props

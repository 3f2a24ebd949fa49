"""LSTM in integers: the levels of TensorFlow Lite's kernel, as the reference has them and as LiteRT computes them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.arithmetics import KERNELS
from narrowgauge.core.engines.tflite_recurrent import Gate, IntegerLstm, run
from narrowgauge.core.plan import Plan
from narrowgauge.graph.recurrent import CELL_CLIP, CELL_SCALE, COUPLED_INPUT
from narrowgauge.importers.tflite import convert
from narrowgauge.lowering.qdq import QdqStyle, lower_to_qdq
from tests.core.engines.test_tflite_recurrent import random_layer
from tests.importers.tflite_networks import opened
from tests.lowering.integer.networks import encoding, levels_of, lowered
from tests.passes.recurrent_networks import in_integers, recurrent

GATES = ("update", "out", "forget", "candidate")  # ONNX's order


def network_of(layers: list[IntegerLstm], steps: Any, batch: Any, **attributes: Any) -> tuple[ir.Model, Plan]:
    """An ONNX network and the plan whose levels are those of layers, one for each direction."""
    first = layers[0]
    direction = "bidirectional" if len(layers) == 2 else attributes.pop("direction", "forward")
    hidden, peepholes = first.hidden_size, first.out.peephole is not None
    model = recurrent(
        "LSTM", steps=steps, batch=batch, hidden=hidden, inputs=first.forget.input.levels.shape[1],
        direction=direction, peepholes=peepholes, outputs=(0, 1), **attributes,
    )  # fmt: skip
    arrays: dict[str, list[np.ndarray]] = {"W": [], "R": [], "B": [], "P": []}
    for layer in layers:
        gates = [gate_of(layer, name) for name in GATES]
        unit = [np.float32(layer.input.scale) * gate.input.scale for gate in gates]
        arrays["W"].append(np.concatenate([gate.input.levels * gate.input.scale for gate in gates]))
        arrays["R"].append(np.concatenate([gate.recurrence.levels * gate.recurrence.scale for gate in gates]))
        bias = [gate.bias.astype(np.float64) * one for gate, one in zip(gates, unit, strict=True)]
        arrays["B"].append(np.concatenate([*bias, np.zeros(4 * hidden)]))
        found = [gate.peephole for gate in gates[:3] if gate.peephole is not None]
        arrays["P"].append(np.concatenate([one.levels * one.scale for one in found] or [np.zeros(0)]))
    for name, parts in arrays.items():
        if name in model.graph.initializers:
            value = model.graph.initializers[name]
            value.const_value = ir.tensor(np.stack(parts).astype(np.float32), name=name)
    encodings = {"x": first.input, "W": weights_encoding(layers, "input"), "R": weights_encoding(layers, "recurrence")}
    encodings |= {str(value.name): first.output for value in model.graph.outputs}
    (node,) = model.graph
    node.metadata_props[CELL_SCALE] = repr(float(first.cell.scale))
    if first.cell_clip:
        node.metadata_props[CELL_CLIP] = repr(first.cell_clip)
    if first.update is None:
        node.metadata_props[COUPLED_INPUT] = "true"
    return model, Plan(target="tflite", encodings=encodings)


def gate_of(layer: IntegerLstm, name: str) -> Gate:
    return getattr(layer, name) or layer.forget


def weights_encoding(layers: list[IntegerLstm], which: str) -> Encoding:
    scales = [
        np.full(layers[0].hidden_size, getattr(gate_of(layers[0], name), which).scale) for name in GATES
    ]  # fmt: skip
    one = encoding("int8", np.concatenate(scales))
    return Encoding(type=one.type, granularity=type(one.granularity)(1), scale=one.scale, zero_point=one.zero_point)


def check(layer: IntegerLstm, *, direction: str = "forward", steps: Any = 6, seed: int = 0) -> None:
    model, plan = network_of([layer], steps, "batch", direction=direction)
    levels = np.random.default_rng(seed).integers(-128, 128, (6, 3, layer.forget.input.levels.shape[1]))
    real = ((levels - int(layer.input.zero_point)) * layer.input.scale).astype(np.float32)
    found = lowered(lower_to_qdq(model, plan, QdqStyle(drop_clips=False)), KERNELS["xnnpack"])
    assert not found.refusals
    expected, _ = run(layer, levels.astype(np.int8).transpose(1, 0, 2), reverse=direction == "reverse")
    got = levels_of(found.model, {"x": real})
    np.testing.assert_array_equal(got["Y_quantized"][:, 0], expected.transpose(1, 0, 2))
    last = expected[:, 0] if direction == "reverse" else expected[:, -1]
    np.testing.assert_array_equal(got["Y_h_quantized"][0], last)


@pytest.mark.parametrize("scales", ["random", "tie", "large"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_levels_of_the_reference(direction: str, scales: str) -> None:
    for seed in range(3):
        check(random_layer(seed, scales=scales), direction=direction, seed=seed)


@pytest.mark.parametrize(
    "variant",
    [{"peepholes": True}, {"input_gate": False}, {"cell_clip": 0.3}, {"cell_exponent": -9}, {"cell_exponent": -15}],
)
def test_variants(variant: dict[str, Any]) -> None:
    check(random_layer(5, scales="random", **variant))


def test_sequences_of_any_length() -> None:
    check(random_layer(6, scales="random"), steps="time")


@pytest.mark.parametrize("attributes", [{"direction": "bidirectional"}, {"outputs": (1,)}, {"steps": 1}])
def test_a_layer_has_its_encodings_from_the_plan(attributes: dict[str, Any]) -> None:
    model = recurrent("LSTM", **{"outputs": (0, 1)} | attributes)
    simulated = lower_to_qdq(model, in_integers(model), QdqStyle(drop_clips=False))
    found = lowered(simulated, KERNELS["tflite-reference"])
    assert not found.refusals
    feed = {"x": np.random.default_rng(0).normal(size=(attributes.get("steps", 4), 2, 3)).astype(np.float32)}
    integer, real = levels_of(found.model, feed), levels_of(simulated, feed)
    for name in set(real) & {"Y_quantized", "Y_h_quantized"}:
        assert np.abs(integer[name].astype(int) - real[name]).max() <= 8  # the simulation does not round the cells


@pytest.mark.parametrize(
    ("model", "rule", "reason"),
    [
        (recurrent("LSTM", outputs=(0,)), "fbgemm", "fbgemm has no LSTM in integers"),
        (recurrent("LSTM", outputs=(0,), states=True), "xnnpack", "does not begin with zeros"),
        (recurrent("LSTM", outputs=(0, 2)), "xnnpack", "cells are read"),
        (recurrent("LSTM", outputs=(0,), clip=1.0), "xnnpack", "clipped"),
        (recurrent("LSTM", outputs=(0,), activations=["Sigmoid", "Relu", "Tanh"]), "xnnpack", "activation functions"),
    ],
)
def test_other_layers_stay_as_they_are(model: ir.Model, rule: str, reason: str) -> None:
    found = lowered(lower_to_qdq(model, in_integers(model), QdqStyle(drop_clips=False)), KERNELS[rule])
    (refusal,) = found.refusals
    assert refusal.node == "layer"
    assert reason in refusal.reason


@pytest.mark.parametrize("resolver", ["AUTO", "BUILTIN_REF"])
@pytest.mark.parametrize("name", ["keras_lstm_mnist_ptq", "trained_lstm_int8"])
def test_files_of_others(zoo: Path, name: str, resolver: str) -> None:
    kinds = pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is the reference").OpResolverType
    path = zoo / "models" / "tflite_int8" / f"{name}.tflite"
    rule = "tflite-reference" if resolver == "BUILTIN_REF" else "xnnpack"
    converted = convert(path)
    found = lowered(converted.model, KERNELS[rule])
    assert not found.refusals
    told = pytest.warns(UserWarning, match="preserve_all_tensors")
    with told if resolver == "AUTO" else nullcontext():
        interpreter = opened(
            path, experimental_op_resolver_type=getattr(kinds, resolver), experimental_preserve_all_tensors=True
        )
    numbers = {one["name"]: one["index"] for one in interpreter.get_tensor_details() if one["name"]}
    (given,) = interpreter.get_input_details()
    rng = np.random.default_rng(3)
    compared = 0
    for _ in range(3):
        real = rng.random(given["shape"], dtype=np.float32)
        interpreter.reset_all_variables()
        interpreter.set_tensor(given["index"], _as_levels(real, given))
        interpreter.invoke()
        for value, levels in levels_of(found.model, {str(converted.model.graph.inputs[0].name): real}).items():
            tensor = value.removesuffix("_quantized")
            if tensor in numbers:
                expected = interpreter.get_tensor(numbers[tensor])
                if expected.dtype == levels.dtype and expected.shape == levels.shape:
                    np.testing.assert_array_equal(levels, expected, err_msg=tensor)
                    compared += expected.size
    assert compared > 3 * 28 * 20  # the layer's own levels among them


def _as_levels(real: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    if given["dtype"] == np.float32:
        return real
    scale, zero_point = given["quantization"]
    limits = np.iinfo(given["dtype"])
    return np.clip(np.rint(real / np.float32(scale)) + zero_point, limits.min, limits.max).astype(given["dtype"])

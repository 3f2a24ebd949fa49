"""Unrolled layers compute what ONNX Runtime computes with the layer, over all attributes of the operators."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.graph.engine import open_session
from narrowgauge.graph.recurrent import GATES
from narrowgauge.passes.unroll_recurrent import unroll_recurrent
from tests.passes.recurrent_networks import BATCH, STEPS, recurrent


def feed_of(model: ir.Model, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    extents = {"time": STEPS, "batch": BATCH}
    shapes = {
        str(value.name): [extents[str(size)] if not isinstance(size, int) else size for size in value.shape or ()]
        for value in model.graph.inputs
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def check(model: ir.Model, **options: Any) -> ir.Model:
    feed = feed_of(model)
    expected = open_session(model, threads=1).run(None, feed)
    names = [value.name for value in model.graph.outputs]
    unrolled, refusals = unroll_recurrent(model, **options)
    assert [one.node for one in unrolled] == ["layer"]
    assert not refusals
    assert not {node.op_type for node in model.graph} & set(GATES)
    assert [value.name for value in model.graph.outputs] == names
    for found, wanted in zip(open_session(model, threads=1).run(None, feed), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)
    return model


VARIANTS = list(itertools.product(["forward", "reverse", "bidirectional"], [False, True]))


@pytest.mark.parametrize(("direction", "states"), VARIANTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_layers(operator: str, bias: bool, direction: str, states: bool) -> None:
    check(recurrent(operator, direction=direction, states=states, bias=bias))


@pytest.mark.parametrize(("direction", "states"), VARIANTS)
def test_a_gru_that_resets_behind_the_product(direction: str, states: bool) -> None:
    for bias in (False, True):
        check(recurrent("GRU", direction=direction, states=states, bias=bias, linear_before_reset=1))


@pytest.mark.parametrize(("direction", "states"), VARIANTS)
@pytest.mark.parametrize("coupled", [0, 1])
def test_an_lstm_with_peepholes(direction: str, states: bool, coupled: int) -> None:
    check(recurrent("LSTM", direction=direction, states=states, peepholes=True, input_forget=coupled))


@pytest.mark.parametrize("states", [False, True])
def test_coupled_gates(states: bool) -> None:
    check(recurrent("LSTM", states=states, input_forget=1))


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_a_limit_of_the_gates(operator: str) -> None:
    check(recurrent(operator, clip=0.4, states=True))


@pytest.mark.parametrize(
    ("operator", "activations"),
    [
        ("LSTM", ["HardSigmoid", "Relu", "Tanh"]),
        ("LSTM", ["sigmoid", "LeakyRelu", "Softsign"]),
        ("GRU", ["HardSigmoid", "Elu"]),
        ("RNN", ["Softplus"]),
    ],
)
def test_activation_functions(operator: str, activations: list[str]) -> None:
    check(recurrent(operator, activations=activations, states=True))


def test_their_parameters() -> None:
    attributes = {"activations": ["HardSigmoid", "LeakyRelu"] * 2, "activation_alpha": [0.3, 0.1, 0.25, 0.2]}
    check(recurrent("GRU", direction="bidirectional", activation_beta=[0.4, 0.6], **attributes))


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_only_what_is_read_is_made(operator: str) -> None:
    model = check(recurrent(operator, outputs=(1,)))
    assert not any(node.op_type == "Unsqueeze" for node in model.graph)


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_a_batch_of_any_size(operator: str) -> None:
    check(recurrent(operator, batch="batch"))


def test_one_step() -> None:
    model = recurrent("LSTM", steps=1, states=True)
    check(model)
    assert not any(node.op_type in ("Concat", "Split") and len(node.outputs) == 1 for node in model.graph)


def test_what_the_steps_come_from_is_told() -> None:
    model = recurrent("GRU", direction="bidirectional")
    original = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    (unrolled,), _ = unroll_recurrent(model)
    parts = unrolled.weights["R"]
    assert [len(one) for one in parts] == [2, 2]
    for direction, names in enumerate(parts):
        arrays = [model.graph.initializers[name].const_value.numpy() for name in names]  # type: ignore[union-attr]
        np.testing.assert_array_equal(np.concatenate(arrays, axis=1).T, original["R"][direction])
    assert {node.name for node in model.graph} == set(unrolled.nodes)


def test_layers_that_are_kept() -> None:
    model = recurrent("LSTM")
    assert unroll_recurrent(model, keep=lambda layer: layer.operator == "LSTM") == ((), ())
    assert [node.op_type for node in model.graph] == ["LSTM"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (recurrent("GRU", steps="time"), "only at run time"),
        (recurrent("GRU", steps=10_000), "10000 steps; 1 to 512"),
        (recurrent("GRU", activations=["Affine", "Tanh"]), "Affine, Tanh; known are Sigmoid"),
        (recurrent("LSTM", layout=1), "batch comes before"),
    ],
)
def test_what_cannot_be_unrolled_stays(model: ir.Model, reason: str) -> None:
    before = [node.op_type for node in model.graph]
    unrolled, refusals = unroll_recurrent(model)
    assert not unrolled
    assert reason in refusals[0].reason
    assert [node.op_type for node in model.graph] == before

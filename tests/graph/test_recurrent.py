"""What the record of a recurrent layer says; what it computes, the tests of `passes.unroll_recurrent` show."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.errors import ModelError
from narrowgauge.graph.recurrent import (
    CELL_SCALE,
    Recurrent,
    cell_magnitude,
    cell_number,
    is_recurrent,
    recurrent_layer,
)
from narrowgauge.graph.refusals import Refusal
from tests.passes.recurrent_networks import recurrent


def layer_of(operator: str, **attributes: Any) -> Recurrent | Refusal:
    (node,) = recurrent(operator, **attributes).graph
    assert is_recurrent(node)
    return recurrent_layer(node)


def test_a_layer() -> None:
    layer = layer_of("LSTM", direction="bidirectional", peepholes=True, outputs=(0, 2), steps=7)
    assert isinstance(layer, Recurrent)
    assert (layer.operator, layer.hidden, layer.steps) == ("LSTM", 5, 7)
    assert [direction.reverse for direction in layer.directions] == [False, True]
    assert [one.operator for one in layer.directions[0].activations] == ["Sigmoid", "Tanh", "Tanh"]
    assert [layer.output(number) is not None for number in range(3)] == [True, False, True]
    assert layer.directions[1].peepholes is not None
    assert layer.directions[1].peepholes.shape == (3, 5)


def test_alphas_are_handed_out_in_order() -> None:
    layer = layer_of(
        "GRU", direction="bidirectional", activations=["HardSigmoid", "Tanh", "LeakyRelu", "Elu"],
        activation_alpha=[0.3, 0.2], activation_beta=[0.4],
    )  # fmt: skip
    assert isinstance(layer, Recurrent)
    first, second = (direction.activations for direction in layer.directions)
    assert dict(first[0].attributes) == pytest.approx({"alpha": 0.3, "beta": 0.4})
    assert dict(second[0].attributes) == pytest.approx({"alpha": 0.2})
    assert dict(second[1].attributes) == {"alpha": 1.0}  # the default


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"layout": 1}, "batch comes before"),
        ({"activations": ["Sigmoid", "Tanh"]}, "Sigmoid, Tanh; known are"),
        ({"activations": ["Affine", "Tanh", "Tanh"]}, "Affine"),
    ],
)
def test_what_is_not_known_is_refused(attributes: dict[str, Any], reason: str) -> None:
    found = layer_of("LSTM", **attributes)
    assert isinstance(found, Refusal)
    assert reason in found.reason


def test_weights_that_do_not_fit_are_refused() -> None:
    model = recurrent("LSTM")
    weights = model.graph.initializers["R"]
    weights.const_value = ir.tensor(np.zeros((1, 12, 5), np.float32))
    found = recurrent_layer(model.graph[0])
    assert isinstance(found, Refusal)
    assert "do not fit together" in found.reason


@pytest.mark.parametrize(("steps", "magnitude"), [(3, 3.0), (100, 16.0), ("time", 16.0)])
def test_what_cells_can_reach(steps: Any, magnitude: float) -> None:
    layer = layer_of("LSTM", steps=steps)
    assert isinstance(layer, Recurrent)
    assert cell_magnitude(layer) == magnitude


@pytest.mark.parametrize("text", ["", "abc", "-1", "0", "nan", "inf"])
def test_metadata_that_is_no_number(text: str) -> None:
    (node,) = recurrent("LSTM").graph
    assert cell_number(node, CELL_SCALE) is None
    node.metadata_props[CELL_SCALE] = text
    with pytest.raises(ModelError, match=r"'layer': expected its metadata 'narrowgauge\.cell_scale'"):
        cell_number(node, CELL_SCALE)

import numpy as np
import pytest

from narrowgauge.importers.onnx import load
from narrowgauge.passes.divide_to_multiply import divide_to_multiply
from tests.passes.networks import network, node, operators, random, rewrite


@pytest.mark.parametrize("divisor", [np.float32(4), np.float32(-0.3), random(5), random(1, 3, 1)])
def test_division_by_constants(divisor: np.ndarray) -> None:
    model, _ = rewrite(
        network([node("Div", "x c", "y")], {"x": ["N", 3, 5]}, ["y"], {"c": divisor}), divide_to_multiply
    )
    assert operators(model) == {"Mul": 1}
    assert model.graph[0].name == "node_y"


@pytest.mark.parametrize("divisor", [np.array([1, 0], np.float32), np.float32(1e-39), np.float32(3e38)])
def test_what_has_no_normal_inverse_stays(divisor: np.ndarray) -> None:
    proto = network([node("Div", "x c", "y")], {"x": ["N", 2]}, ["y"], {"c": divisor})
    model = load(proto, simplify=False).model
    divide_to_multiply(model)
    assert operators(model) == {"Div": 1}


def test_integers_stay() -> None:
    nodes = [node("Cast", "x", "i", to=7), node("Div", "i c", "j"), node("Cast", "j", "y", to=1)]
    model, _ = rewrite(network(nodes, {"x": ["N", 2]}, ["y"], {"c": np.int64(3)}), divide_to_multiply)
    assert operators(model)["Div"] == 1


def test_constants_over_a_value_stay() -> None:
    model, _ = rewrite(network([node("Div", "c x", "y")], {"x": [2]}, ["y"], {"c": np.float32(1)}), divide_to_multiply)
    assert operators(model) == {"Div": 1}

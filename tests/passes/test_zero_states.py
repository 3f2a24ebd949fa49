import numpy as np
import pytest

from narrowgauge.passes.zero_states import zero_states
from tests.passes.networks import network, node, operators, random, rewrite

GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


def states(kind: str, number: float) -> tuple[list, dict[str, np.ndarray]]:
    """Build a state [1, N, 3] as exporters do, from the size of the batch, of one number."""
    constants = {"n": np.array([1, 0, 3]), "zero": np.float32(number), "start": np.array(1)}
    nodes = [
        node("Shape", "x", "size"), node("Gather", "size start", "rows"), node("Unsqueeze", "rows axis", "batch"),
        node("Concat", "one batch three", "shape", axis=0),
    ]  # fmt: skip
    constants |= {"axis": np.array([0]), "one": np.array([1]), "three": np.array([3])}
    del constants["n"]
    if kind == "Expand":
        nodes.append(node("Expand", "zero shape", "h"))
    else:
        nodes += [node("ConstantOfShape", "shape", "z"), node("Add", "z zero", "h")][: 1 if number == 0 else 2]
        if number == 0:
            nodes[-1] = node("ConstantOfShape", "shape", "h")
            del constants["zero"]
    return nodes, constants


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("kind", ["Expand", "ConstantOfShape"])
@pytest.mark.parametrize("number", [0.0, 0.5])
def test_states_of_zeros_are_left_out(operator: str, kind: str, number: float) -> None:
    nodes, constants = states(kind, number)
    gates = GATES[operator]
    constants |= {"w": random(1, 3 * gates, 4), "r": random(1, 3 * gates, 3)}
    initial = "h h" if operator == "LSTM" else "h"
    nodes.append(node(operator, f"x w r - - {initial}", "y", hidden_size=3))
    model, _ = rewrite(network(nodes, {"x": [5, "N", 4]}, ["y"], constants), zero_states)
    assert (operators(model) == {operator: 1}) is (number == 0)


def test_a_state_that_is_given_stays() -> None:
    nodes = [node("LSTM", "x w r - - h c", "y", hidden_size=3)]
    constants = {"w": random(1, 12, 4), "r": random(1, 12, 3), "c": np.zeros((1, 2, 3), dtype=np.float32)}
    model, _ = rewrite(network(nodes, {"x": [5, 2, 4], "h": [1, 2, 3]}, ["y"], constants), zero_states)
    inputs = model.graph[0].inputs
    assert inputs[5] is not None
    assert len(inputs) < 7 or inputs[6] is None


def test_parts_of_zeros_are_zeros() -> None:
    nodes, constants = states("ConstantOfShape", 0.0)
    nodes += [node("Slice", "h first last", "part"), node("LSTM", "x w r - - part part", "y", hidden_size=3)]
    constants |= {"w": random(1, 12, 4), "r": random(1, 12, 3), "first": np.array([0]), "last": np.array([1])}
    model, _ = rewrite(network(nodes, {"x": [5, "N", 4]}, ["y"], constants), zero_states)
    assert operators(model) == {"LSTM": 1}

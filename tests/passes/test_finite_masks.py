import numpy as np
import onnx
import pytest
from onnx import TensorProto

from narrowgauge.passes.finite_masks import LOWEST, finite_masks
from tests.passes.networks import network, node, operators, random, rewrite

LEAST = float(np.finfo(np.float32).min)


def masked(lowest: float) -> np.ndarray:
    return np.where(np.arange(20).reshape(4, 5) % 3 == 1, lowest, 0).astype(np.float32)


@pytest.mark.parametrize("lowest", [-np.inf, LEAST, -1e9])
@pytest.mark.parametrize("moved", [False, True])
def test_added_constants_are_finite(lowest: float, moved: bool) -> None:
    nodes = [node("Add", "x mask", "a"), node("Softmax", "a", "y", axis=-1)]
    if moved:
        nodes[1:] = [node("Reshape", "a s", "b"), node("Softmax", "b", "y", axis=-1)]
    constants = {"mask": masked(lowest), **({"s": np.array([-1, 5])} if moved else {})}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 5]}, ["y"], constants), finite_masks)
    assert model.graph.initializers["mask"].const_value.numpy().min() == LOWEST


def test_what_something_else_reads_stays() -> None:
    nodes = [node("Add", "x mask", "a"), node("Softmax", "a", "y", axis=-1), node("Relu", "a", "z")]
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 5]}, ["y", "z"], {"mask": masked(-1e9)}), finite_masks)
    assert model.graph.initializers["mask"].const_value.numpy().min() == np.float32(-1e9)
    nodes = [node("Add", "x mask", "a"), node("Softmax", "a", "y", axis=-1), node("Add", "x mask", "z")]
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 5]}, ["y", "z"], {"mask": masked(-1e9)}), finite_masks)
    assert model.graph.initializers["mask"].const_value.numpy().min() == np.float32(-1e9)


def fed_mask(last: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    nodes = [node("Greater", "m level", "kept"), *last]
    read = {value for each in nodes for value in each.input}
    arrays = {"level": np.float32(-1), **constants}
    sizes = {"x": ["N", 2, 5, 5], "m": ["N", 1, 1, 5]}
    return network(nodes, sizes, ["y"], {name: array for name, array in arrays.items() if name in read})


@pytest.mark.parametrize("lowest", [-np.inf, LEAST])
@pytest.mark.parametrize("kept_first", [True, False])
def test_a_choice_becomes_an_addition(lowest: float, kept_first: bool) -> None:
    nodes = [
        *([] if kept_first else [node("Not", "kept", "lost")]),
        node("Where", "kept x low" if kept_first else "lost low x", "a"),
        node("Softmax", "a", "y", axis=-1),
    ]
    model, _ = rewrite(fed_mask(nodes, low=np.float32(lowest)), finite_masks)
    found = operators(model)
    assert (found["Add"], found["Where"]) == (1, 1)
    (where,) = (each for each in model.graph if each.op_type == "Where")
    assert all(value.const_value is not None for value in where.inputs[1:])


def test_the_guard_behind_finite_scores_is_left_out() -> None:
    nodes = [
        node("Neg", "x", "n"), node("Where", "kept zero low", "mask"), node("Add", "n mask", "a"),
        node("Softmax", "a", "s", axis=-1), node("IsNaN", "s", "bad"), node("Where", "bad zero s", "g"),
        node("Relu", "g", "y"),
    ]  # fmt: skip
    model, _ = rewrite(fed_mask(nodes, low=np.float32(-np.inf), zero=np.float32(0)), finite_masks)
    assert operators(model) == {"Greater": 1, "Neg": 1, "Where": 1, "Add": 1, "Softmax": 1, "Relu": 1}


@pytest.mark.parametrize("expanded", [True, False])
def test_empty_masks_are_left_out(expanded: bool) -> None:
    head = [node("Expand", "all s", "kept2")] if expanded else []
    nodes = [
        *head, node("Where", f"{'kept2' if expanded else 'all'} zero low", "mask"), node("Add", "x mask", "a"),
        node("Softmax", "a", "y", axis=-1),
    ]  # fmt: skip
    constants = {"all": np.ones((1, 1, 5), bool), "zero": np.float32(0), "low": np.float32(LEAST)}
    constants |= {"s": np.array([1, 4, 5])} if expanded else {}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 5]}, ["y"], constants), finite_masks)
    assert operators(model) == {"Softmax": 1}


def test_zeros_that_widen_stay() -> None:
    nodes = [node("Add", "x mask", "a"), node("Softmax", "a", "y", axis=-1)]
    model, _ = rewrite(network(nodes, {"x": [1, 5]}, ["y"], {"mask": np.zeros((4, 5), np.float32)}), finite_masks)
    assert operators(model) == {"Add": 1, "Softmax": 1}


def test_scores_are_not_touched() -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT), node("Add", "h bias", "a"), node("Softmax", "a", "y")]
    model, _ = rewrite(network(nodes, {"x": ["N", 5]}, ["y"], {"bias": random(5)}), finite_masks)
    assert np.array_equal(model.graph.initializers["bias"].const_value.numpy(), random(5))

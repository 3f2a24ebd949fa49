from itertools import permutations, product

import numpy as np
import pytest

from narrowgauge.passes.flatten_transposed import flatten_transposed
from tests.passes.networks import network, node, operators, random, rewrite

SIZES = [3, 2, 4]
FLATTENS = {
    "Flatten": lambda value: node("Flatten", value, "f"),
    "Flatten from behind": lambda value: node("Flatten", value, "f", axis=-3),
    "Reshape": lambda value: node("Reshape", f"{value} whole", "f"),
    "Reshape to the rest": lambda value: node("Reshape", f"{value} rest", "f"),
}
PRODUCTS = {
    "MatMul": (node("MatMul", "f w", "y"), False),
    "Gemm": (node("Gemm", "f w b", "y"), False),
    "Gemm with transB": (node("Gemm", "f w", "y", transB=1, alpha=0.5), True),
}
CONSTANTS = {"whole": np.array([0, 24]), "rest": np.array([-1, 24]), "b": random(5)}


@pytest.mark.parametrize(
    ("order", "flatten", "product_name"),
    list(product([(0, *order) for order in permutations((1, 2, 3))], FLATTENS, PRODUCTS)),
)
def test_the_weights_are_ordered_instead(order: tuple[int, ...], flatten: str, product_name: str) -> None:
    last, transposed = PRODUCTS[product_name]
    nodes = [node("Transpose", "x", "t", perm=list(order)), FLATTENS[flatten]("t"), last]
    read = {name for each in nodes for name in each.input}
    constants = {name: array for name, array in CONSTANTS.items() if name in read}
    constants["w"] = random(5, 24) if transposed else random(24, 5)
    model, refusals = rewrite(network(nodes, {"x": ["N", *SIZES]}, ["y"], constants), flatten_transposed)
    assert "Transpose" not in operators(model)
    assert not refusals


def test_weights_that_others_read_are_copied() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "f"), node("MatMul", "f w", "y"),
        node("MatMul", "z w", "q"),
    ]  # fmt: skip
    inputs = {"x": [2, *SIZES], "z": [2, 24]}
    model, _ = rewrite(network(nodes, inputs, ["y", "q"], {"w": random(24, 5)}), flatten_transposed)
    assert operators(model) == {"Flatten": 1, "MatMul": 2}


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("Transpose", "x", "t", perm=[1, 0, 2, 3]), node("Flatten", "t", "f", axis=1)], [24, 3, 2, 4]),
        ([node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "f", axis=2)], [2, 4, 3, 2]),
        (
            [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Relu", "t", "r"), node("Flatten", "t", "f")],
            [2, 3, 2, 4],
        ),
        (
            [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Flatten", "t", "f"), node("Relu", "f", "r")],
            [2, 3, 2, 4],
        ),
    ],
)
def test_what_would_change_the_result_is_left(nodes: list, shape: list[int]) -> None:
    width = int(np.prod(shape)) // {"f": shape[0]}["f"]
    if nodes[0].attribute[0].ints[0] != 0:
        width = int(np.prod(shape)) // shape[1]
    if len(nodes) == 2 and nodes[1].attribute and nodes[1].attribute[0].i == 2:
        width = shape[3] * shape[1]
    outputs = ["y", *(each.output[0] for each in nodes if each.op_type == "Relu")]
    proto = network([*nodes, node("MatMul", "f w", "y")], {"x": shape}, outputs, {"w": random(width, 5)})
    model, _ = rewrite(proto, flatten_transposed)
    assert operators(model)["Transpose"] == 1


def test_a_size_that_is_not_known_is_left() -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("Reshape", "t rest", "f"), node("MatMul", "f w", "y")]
    constants = {"rest": np.array([-1, 12]), "w": random(12, 5)}
    model, _ = rewrite(network(nodes, {"x": [2, 3, "H", 2]}, ["y"], constants), flatten_transposed)
    assert operators(model)["Transpose"] == 1

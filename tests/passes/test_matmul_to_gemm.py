from itertools import product

import numpy as np
import pytest

from narrowgauge.passes.matmul_to_gemm import matmul_to_gemm
from tests.passes.networks import network, node, operators, random, rewrite


@pytest.mark.parametrize(("shape", "first"), list(product([(), (1,), (4,), (1, 4), (1, 1)], (False, True))))
def test_a_product_and_its_bias_become_one_operator(shape: tuple[int, ...], first: bool) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "b m" if first else "m b", "y")]
    constants = {"w": random(3, 4), "b": np.asarray(random(*shape), dtype=np.float32)}
    model, refusals = rewrite(network(nodes, {"x": ["N", 3]}, ["y"], constants), matmul_to_gemm)
    assert operators(model) == {"Gemm": 1}
    assert [value.name for value in model.graph[0].outputs] == ["y"]
    assert not refusals


@pytest.mark.parametrize(
    ("nodes", "shape", "bias"),
    [
        ([node("MatMul", "x w", "m"), node("Add", "m b", "y")], ["N", 2, 3], (4,)),  # more than two axes
        ([node("MatMul", "x w", "m"), node("Add", "m b", "y")], [2, 3], (2, 4)),  # differs between rows
        ([node("MatMul", "x w", "m"), node("Add", "m b", "y")], [2, 3], (1, 2, 4)),  # widens
        ([node("MatMul", "x w", "m"), node("Add", "m m", "s"), node("Add", "s b", "y")], [2, 3], (4,)),
        ([node("MatMul", "x w", "m"), node("Sub", "m b", "y")], [2, 3], (4,)),
        ([node("MatMul", "x v", "m"), node("Add", "m b", "y")], [2, 3], (5, 2, 4)),  # a stack of weights
    ],
)
def test_what_is_no_gemm_is_left(nodes: list, shape: list, bias: tuple[int, ...]) -> None:
    read = {name for each in nodes for name in each.input}
    constants = {"w": random(3, 4), "v": random(5, 3, 4), "b": random(*bias)}
    proto = network(nodes, {"x": shape}, ["y"], {name: array for name, array in constants.items() if name in read})
    model, _ = rewrite(proto, matmul_to_gemm)
    assert "Gemm" not in operators(model)


def test_weights_shared_by_two_products_stay_as_they_are() -> None:
    nodes = [
        node("MatMul", "x w", "m"), node("Add", "m b", "r"), node("MatMul", "r w", "n"), node("Add", "n b", "y"),
    ]  # fmt: skip
    model, _ = rewrite(network(nodes, {"x": [2, 3]}, ["y"], {"w": random(3, 3), "b": random(3)}), matmul_to_gemm)
    assert operators(model) == {"Gemm": 2}
    assert set(model.graph.initializers) == {"w", "b"}

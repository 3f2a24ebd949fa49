import numpy as np
import pytest

from narrowgauge.passes.merge_scales import merge_scales
from tests.passes.networks import network, node, operators, random, rewrite

SIZES = {"x": ["N", 3, 4], "z": ["N", 4, 5]}


@pytest.mark.parametrize("order", ["x a", "a x"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_one_scale_is_left(order: str, shape: tuple[int, ...]) -> None:
    nodes = [node("Mul", order, "p"), node("Mul", "z b", "q"), node("MatMul", "p q", "y")]
    constants = {"a": np.full(shape, 0.3, np.float32), "b": np.float32(0.7)}
    model, _ = rewrite(network(nodes, SIZES, ["y"], constants), merge_scales)
    assert operators(model) == {"Mul": 1, "MatMul": 1}
    assert model.graph.initializers["a"].const_value.numpy() == pytest.approx(0.21)


def test_a_number_that_both_read_serves_once() -> None:
    nodes = [node("Mul", "x a", "p"), node("Mul", "z a", "q"), node("MatMul", "p q", "y")]
    model, _ = rewrite(network(nodes, SIZES, ["y"], {"a": np.float32(0.5)}), merge_scales)
    assert operators(model) == {"Mul": 1, "MatMul": 1}


@pytest.mark.parametrize("case", ["one", "read elsewhere", "of channels", "too small"])
def test_other_products_stay(case: str) -> None:
    nodes = [node("Mul", "x a", "p"), node("Mul", "z b", "q"), node("MatMul", "p q", "y")]
    constants = {"a": np.float32(0.3), "b": np.float32(0.7)}
    if case == "one":
        nodes, constants = [nodes[0], node("MatMul", "p z", "y")], {"a": constants["a"]}
    if case == "of channels":
        constants["b"] = random(5)
    if case == "too small":
        constants = {"a": np.float32(1e-30), "b": np.float32(1e-30)}
    outputs = ["y", "p"] if case == "read elsewhere" else ["y"]
    before = len(nodes)
    model, _ = rewrite(network(nodes, SIZES, outputs, constants), merge_scales)
    assert sum(operators(model).values()) == before

import numpy as np
import pytest

from narrowgauge.passes.einsum_to_matmul import einsum_to_matmul
from tests.passes.networks import network, node, operators, random, rewrite

EQUATIONS = {
    "ab,bc->ac": ([2, 3], [3, 4], {"MatMul": 1}),
    "abc,cde->abde": (["N", 3, 4], [4, 2, 5], {"MatMul": 1, "Reshape": 1}),
    "abcd,cde->abe": (["N", 3, 4, 2], [4, 2, 5], {"MatMul": 1, "Reshape": 1}),
    "abcd,cdef->abef": (["N", "T", 4, 2], [4, 2, 5, 3], {"MatMul": 1, "Reshape": 2}),
    " abc , cd -> abd ": ([1, 3, 4], [4, 2], {"MatMul": 1}),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("bias", ["none", "columns", "last column only", "with ones"])
def test_a_product_with_weights_becomes_one(equation: str, bias: str) -> None:
    shape, weight, expected = EQUATIONS[equation]
    columns = weight[
        len(weight) - (len(equation.split("->")[1].strip()) - len(shape) + _summed(shape, weight, equation)) :
    ]
    nodes = [node("Einsum", "x w", "y" if bias == "none" else "e", equation=equation)]
    constants = {"w": random(*weight)}
    if bias != "none":
        nodes.append(node("Add", "e b", "y"))
        full = {"columns": columns, "last column only": columns[-1:], "with ones": [1, *columns]}[bias]
        constants["b"] = random(*full)
    model, refusals = rewrite(network(nodes, {"x": shape}, ["y"], constants), einsum_to_matmul)
    assert operators(model) == {**expected, **({} if bias == "none" else {"Add": 1})}
    assert not refusals
    assert "w" in model.graph.initializers


def _summed(shape: list, weight: list, equation: str) -> int:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    return sum(letter in terms[1] for letter in terms[0])


def test_the_bias_comes_before_the_reshape() -> None:
    nodes = [node("Einsum", "x w", "e", equation="abc,cde->abde"), node("Add", "e b", "y")]
    constants = {"w": random(4, 2, 5), "b": random(2, 5)}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4]}, ["y"], constants), einsum_to_matmul)
    assert [each.op_type for each in model.graph] == ["MatMul", "Add", "Reshape"]
    assert set(model.graph.initializers) >= {"w", "b"}


@pytest.mark.parametrize(
    ("equation", "shape", "weight"),
    [
        ("abc,bcd->ad", [2, 3, 4], [3, 4, 5]),  # this one is a product
        ("abc,cbd->ad", [2, 3, 4], [4, 3, 5]),
        ("abc,dc->abd", [2, 3, 4], [5, 4]),
        ("abc,bd->acd", [2, 3, 4], [3, 5]),
        ("ab,bc->ca", [2, 3], [3, 4]),
        ("aa,ab->ab", [3, 3], [3, 4]),
        ("...c,cd->...d", [2, 3, 4], [4, 5]),
        ("ab,cd->abcd", [2, 3], [4, 5]),
        ("ab,b->a", [2, 3], [3]),
    ],
)
def test_other_sums_are_refused(equation: str, shape: list[int], weight: list[int]) -> None:
    proto = network([node("Einsum", "x w", "y", equation=equation)], {"x": shape}, ["y"], {"w": random(*weight)})
    model, refusals = rewrite(proto, einsum_to_matmul)
    if equation == "abc,bcd->ad":
        assert "Einsum" not in operators(model)
        return
    assert operators(model) == {"Einsum": 1}
    assert len(refusals) == 1


def test_products_of_activations_are_not_reported() -> None:
    proto = network([node("Einsum", "x z", "y", equation="ab,bc->ac")], {"x": [2, 3], "z": [3, 4]}, ["y"])
    model, refusals = rewrite(proto, einsum_to_matmul)
    assert operators(model) == {"Einsum": 1}
    assert not refusals


def test_weights_that_two_read_are_copied() -> None:
    nodes = [node("Einsum", "x w", "e", equation="abc,cde->abde"), node("Einsum", "x w", "y", equation="abc,cde->abde")]
    model, _ = rewrite(network(nodes, {"x": [2, 3, 4]}, ["e", "y"], {"w": random(4, 2, 5)}), einsum_to_matmul)
    assert operators(model) == {"MatMul": 2, "Reshape": 2}
    assert all(np.asarray(value.const_value).ndim <= 2 for value in model.graph.initializers.values())

import pytest

from narrowgauge.passes.einsum_of_activations import einsum_of_activations
from tests.passes.networks import network, node, operators, rewrite

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6}


def sizes(letters: str) -> list[int]:
    return [SIZES[letter] for letter in letters]


@pytest.mark.parametrize(
    "equation",
    ["aecd,abcd->acbe", "acbe,aecd->abcd", "abcd,abed->abce", "ab,bc->ac", "ab,cb->ca", "abc,adc->dab", "abc , ac->ab"],
)
def test_products(equation: str) -> None:
    first, second = equation.replace(" ", "").partition("->")[0].split(",")
    proto = network([node("Einsum", "x z", "y", equation=equation)], {"x": sizes(first), "z": sizes(second)}, ["y"])
    model, refusals = rewrite(proto, einsum_of_activations)
    matrices = equation != "abc , ac->ab"  # the second has no axis of its own
    assert operators(model)["MatMul"] == matrices
    assert bool(refusals) != matrices


@pytest.mark.parametrize("equation", ["ab,ab->ab", "abc,abd->abcd", "abc,cbd->ad", "aab,bc->ac", "...b,bc->...c"])
def test_other_sums_stay(equation: str) -> None:
    first, second = equation.partition("->")[0].replace("...", "a").split(",")
    proto = network([node("Einsum", "x z", "y", equation=equation)], {"x": sizes(first), "z": sizes(second)}, ["y"])
    model, (refusal,) = rewrite(proto, einsum_of_activations)
    assert operators(model) == {"Einsum": 1}
    assert refusal.operator == "Einsum"

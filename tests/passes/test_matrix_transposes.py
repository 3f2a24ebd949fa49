import numpy as np
import pytest

from narrowgauge.passes.matrix_transposes import matrix_transposes
from tests.passes.networks import network, node, operators, rewrite


def keys(first: list[int], last: list[int], sizes: tuple[int | str, ...] = ("N", 2, 5, 4)) -> tuple:
    nodes = [
        node("Reshape", "x first", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1]),
        node("Reshape", "t last", "y"),
    ]
    proto = network(nodes, {"x": sizes}, ["y"], {"first": np.array(first), "last": np.array(last)})
    return rewrite(proto, matrix_transposes)


@pytest.mark.parametrize("sizes", [("N", 2, 5, 4), (2, 2, 5, 4)])
def test_matrices_are_transposed_where_they_are(sizes: tuple[int | str, ...]) -> None:
    model, _ = keys([-1, 5, 4], [-1, 2, 4, 5], sizes)
    assert operators(model) == {"Transpose": 1}
    assert list(model.graph[0].attributes.get_ints("perm")) == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("first", "last"), [([-1, 5, 4], [-1, 4, 4, 5]), ([-1, 4, 5], [-1, 2, 5, 4]), ([-1, 5, 4], [-1, 2, 5, 4])]
)
def test_other_orders_stay(first: list[int], last: list[int]) -> None:
    model, _ = keys(first, last, (2, 2, 5, 4))
    assert operators(model) == {"Reshape": 2, "Transpose": 1}

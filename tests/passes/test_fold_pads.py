from itertools import product

import numpy as np
import pytest

from narrowgauge.passes.fold_pads import fold_pads
from tests.passes.networks import network, node, operators, random, rewrite

PADS = np.array([0, 0, 1, 2, 0, 0, 0, 3])


@pytest.mark.parametrize(
    ("strides", "own", "dilations", "axes"), list(product((1, 2), (False, True), (1, 2), (False, True)))
)
def test_into_convolution(strides: int, own: bool, dilations: int, axes: bool) -> None:
    attributes: dict[str, object] = {"strides": [strides, 1], "dilations": [dilations, 1]}
    attributes |= {"pads": [1, 0, 0, 2]} if own else {"auto_pad": "VALID"}
    constants = {"w": random(2, 3, 3, 2), "pads": np.array([1, 2, 0, 3]) if axes else PADS}
    constants |= {"axes": np.array([2, -1])} if axes else {}
    nodes = [node("Pad", "x pads - axes" if axes else "x pads", "p"), node("Conv", "p w", "y", **attributes)]
    model, refusals = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y"], constants), fold_pads)
    assert operators(model) == {"Conv": 1}
    assert not refusals


@pytest.mark.parametrize(("own", "count", "ceiling", "strides"), list(product((False, True), (0, 1), (0, 1), (1, 2))))
def test_into_average_pool(own: bool, count: int, ceiling: int, strides: int) -> None:
    attributes = {"kernel_shape": [3, 5], "strides": [strides] * 2, "count_include_pad": count, "ceil_mode": ceiling}
    attributes |= {"pads": [1, 0, 0, 1]} if own else {}
    nodes = [node("Pad", "x pads", "p"), node("AveragePool", "p", "y", **attributes)]
    model, refusals = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y"], {"pads": PADS}), fold_pads)
    foldable = not ceiling and (count or not own)
    assert operators(model)["Pad"] == (0 if foldable else 1)
    assert len(refusals) == (0 if foldable else 1)


@pytest.mark.parametrize(
    ("pads", "value", "mode", "reason"),
    [
        (PADS, 1.0, "constant", "zero"),
        (PADS, None, "reflect", "mode"),
        (PADS, None, "edge", "mode"),
        (np.array([0, 0, 1, 0, 0, 0, -1, 0]), None, "constant", "crops"),
        (np.array([0, 1, 0, 0, 0, 0, 0, 0]), None, "constant", "channels"),
    ],
)
def test_refuses_what_the_convolution_cannot_do(pads: np.ndarray, value: float | None, mode: str, reason: str) -> None:
    constants = {"w": random(2, 3 + int(pads[1]), 2, 2), "pads": pads}
    constants |= {} if value is None else {"v": np.float32(value)}
    nodes = [node("Pad", "x pads" if value is None else "x pads v", "p", mode=mode), node("Conv", "p w", "y")]
    model, (refusal,) = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y"], constants), fold_pads)
    assert reason in refusal.reason
    assert operators(model) == {"Pad": 1, "Conv": 1}


def test_all_readers_take_it_or_none() -> None:
    nodes = [
        node("Pad", "x pads", "p"),
        node("Conv", "p w", "y"),
        node("AveragePool", "p", "z", kernel_shape=[2, 4]),
    ]
    constants = {"w": random(2, 3, 2, 2), "pads": PADS}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y", "z"], constants), fold_pads)
    assert operators(model) == {"Conv": 1, "AveragePool": 1}
    nodes[2] = node("MaxPool", "p", "z", kernel_shape=[2, 2])
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y", "z"], constants), fold_pads)
    assert operators(model) == {"Pad": 1, "Conv": 1, "MaxPool": 1}


def test_refuses_windows_of_padding_only() -> None:
    nodes = [node("Pad", "x pads", "p"), node("AveragePool", "p", "y", kernel_shape=[2, 2])]
    model, (refusal,) = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y"], {"pads": PADS}), fold_pads)
    assert "padding only" in refusal.reason
    assert operators(model) == {"Pad": 1, "AveragePool": 1}


MAX_ATTRIBUTES = list(product((False, True), (1, 2), (1, 2), (0, 1)))


@pytest.mark.parametrize(("own", "strides", "dilations", "ceiling"), MAX_ATTRIBUTES)
@pytest.mark.parametrize("kind", ["zeros behind relu", "lowest", "edge", "zeros", "above"])
def test_into_maximum_pool(kind: str, own: bool, strides: int, dilations: int, ceiling: int) -> None:
    attributes = {"kernel_shape": [3, 5], "strides": [strides] * 2, "dilations": [dilations] * 2, "ceil_mode": ceiling}
    attributes |= {"pads": [1, 0, 0, 1]} if own else {}
    value = {"lowest": -np.inf, "above": 0.5}.get(kind, 0.0)
    nodes = [node("Relu", "x", "r")] if kind == "zeros behind relu" else [node("Identity", "x", "r")]
    nodes.append(
        node("Pad", "r pads" if kind == "edge" else "r pads v", "p", mode="edge" if kind == "edge" else "constant")
    )
    nodes.append(node("MaxPool", "p", "y", **attributes))
    constants = {"pads": PADS} | ({} if kind == "edge" else {"v": np.float32(value)})
    model, refusals = rewrite(network(nodes, {"x": ["N", 3, 6, 5]}, ["y"], constants), fold_pads)
    foldable = kind in {"zeros behind relu", "lowest", "edge"} and dilations == 1 and not ceiling
    assert operators(model)["Pad"] == (0 if foldable else 1)
    assert len(refusals) == (0 if foldable else 1)


def test_indices_of_a_maximum_pool_count_the_padding() -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Pad", "r pads", "p"),
        node("MaxPool", "p", "y i", kernel_shape=[3, 5]),
        node("Cast", "i", "j", to=1),
    ]
    model, (refusal,) = rewrite(network(nodes, {"x": [1, 3, 6, 5]}, ["y", "j"], {"pads": PADS}), fold_pads)
    assert "indices" in refusal.reason
    assert operators(model)["Pad"] == 1


@pytest.mark.parametrize("axes", [False, True])
@pytest.mark.parametrize("order", [[0, 3, 1, 2], [0, 3, 2, 1]])
def test_through_a_transpose(order: list[int], axes: bool) -> None:
    pads = np.array([1, 2, 0, 3]) if axes else np.array([0, 1, 2, 0, 0, 0, 3, 0])
    constants = {"w": random(2, 3, 3, 2), "pads": pads} | ({"axes": np.array([1, -2])} if axes else {})
    nodes = [
        node("Pad", "x pads - axes" if axes else "x pads", "p"),
        node("Transpose", "p", "t", perm=order),
        node("Conv", "t w", "y"),
        node("AveragePool", "t", "z", kernel_shape=[4, 5]),
    ]
    model, refusals = rewrite(network(nodes, {"x": ["N", 6, 5, 3]}, ["y", "z"], constants), fold_pads)
    assert operators(model) == {"Transpose": 1, "Conv": 1, "AveragePool": 1}
    assert not refusals


def test_a_transpose_that_others_read_stays_behind() -> None:
    constants = {"w": random(2, 3, 3, 2), "pads": np.array([0, 1, 2, 0, 0, 0, 3, 0])}
    nodes = [
        node("Pad", "x pads", "p"),
        node("Transpose", "p", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "y"),
        node("Relu", "t", "z"),
    ]
    model, _ = rewrite(network(nodes, {"x": ["N", 6, 5, 3]}, ["y", "z"], constants), fold_pads)
    assert [each.op_type for each in model.graph][:2] == ["Pad", "Transpose"]

from itertools import product

import numpy as np
import pytest

from narrowgauge.importers.onnx import load
from narrowgauge.passes.fold_affine import fold_affine
from narrowgauge.passes.fold_batchnorm import fold_batchnorm
from tests.passes.networks import network, node, operators, random, rewrite, statistics

BN = "gamma beta mean variance"


@pytest.mark.parametrize(
    ("group", "bias", "strides", "padding", "dilations"),
    list(product((1, 2), (False, True), (1, 2), ("NOTSET", "SAME_UPPER", "VALID", "pads"), (1, 2))),
)
def test_into_convolution(group: int, bias: bool, strides: int, padding: str, dilations: int) -> None:
    attributes: dict[str, object] = {"group": group, "strides": [strides, 1], "dilations": [dilations, 1]}
    if padding == "pads":
        attributes["pads"] = [1, 0, 2, 1]
    elif padding == "VALID" or dilations == 1:  # ONNX Runtime refuses SAME with dilations
        attributes["auto_pad"] = padding
    constants = {"w": random(6, 4 // group, 3, 2), **({"b": random(6)} if bias else {}), **statistics(6)}
    nodes = [
        node("Conv", "x w b" if bias else "x w", "c", **attributes),
        node("BatchNormalization", f"c {BN}", "y", epsilon=0.01),
    ]
    model, refusals = rewrite(network(nodes, {"x": ["N", 4, 9, 8]}, ["y"], constants), fold_batchnorm)
    assert operators(model) == {"Conv": 1}
    assert not refusals
    assert set(model.graph.initializers) >= {"w"}


@pytest.mark.parametrize(
    ("group", "bias", "strides", "output_padding", "rank"),
    [
        case
        for case in product((1, 2), (False, True), (1, 2), (0, 1), (3, 4))
        if case[3] < case[2]  # ONNX asks for output_padding < strides
    ],
)
def test_into_transposed_convolution(group: int, bias: bool, strides: int, output_padding: int, rank: int) -> None:
    spatial = rank - 2
    attributes = {
        "group": group,
        "strides": [strides] * spatial,
        "output_padding": [output_padding] * spatial,
        "pads": [1] * 2 * spatial,
    }
    constants = {"w": random(4, 6 // group, *([3] * spatial)), **({"b": random(6)} if bias else {}), **statistics(6)}
    nodes = [
        node("ConvTranspose", "x w b" if bias else "x w", "c", **attributes),
        node("BatchNormalization", f"c {BN}", "y"),
    ]
    model, _ = rewrite(network(nodes, {"x": ["N", 4, *([5] * spatial)]}, ["y"], constants), fold_batchnorm)
    assert operators(model) == {"ConvTranspose": 1}


@pytest.mark.parametrize(
    ("transposed", "alpha", "beta", "bias"),
    list(product((0, 1), (1.0, 0.5), (1.0, 2.0, 0.0), (None, (6,), (1, 6), (1,), (), (3, 6), (3, 1)))),
)
def test_into_gemm(transposed: int, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    constants = {"w": random(6, 4) if transposed else random(4, 6), **statistics(6)}
    if bias is not None:
        constants["b"] = np.asarray(random(*bias) if bias else 0.7, dtype=np.float32)
    nodes = [
        node("Gemm", "x w" if bias is None else "x w b", "c", transB=transposed, alpha=alpha, beta=beta),
        node("BatchNormalization", f"c {BN}", "y"),
    ]
    model, _ = rewrite(network(nodes, {"x": [3, 4]}, ["y"], constants), fold_batchnorm)
    assert operators(model) == {"Gemm": 1}


@pytest.mark.parametrize("bias", [False, True])
def test_into_matmul(bias: bool) -> None:
    nodes = [node("MatMul", "x w", "m"), *([node("Add", "b m", "a")] if bias else [])]
    nodes.append(node("BatchNormalization", f"{'a' if bias else 'm'} {BN}", "y"))
    constants = {"w": random(4, 6), **({"b": random(6)} if bias else {}), **statistics(6)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4]}, ["y"], constants), fold_batchnorm, fold_affine)
    assert operators(model) == {"MatMul": 1, "Add": 1}


def test_transposed_input_of_gemm_is_left_to_multiplication() -> None:
    nodes = [node("Gemm", "x w", "c", transA=1), node("BatchNormalization", f"c {BN}", "y")]
    model, _ = rewrite(network(nodes, {"x": [4, 3]}, ["y"], {"w": random(4, 6), **statistics(6)}), fold_batchnorm)
    assert operators(model) == {"Gemm": 1, "Mul": 1, "Add": 1}


def test_matmul_of_rank_three_has_its_channels_elsewhere() -> None:
    nodes = [node("MatMul", "x w", "m"), node("BatchNormalization", f"m {BN}", "y")]
    constants = {"w": random(4, 6), **statistics(5)}
    model, _ = rewrite(network(nodes, {"x": ["N", 5, 4]}, ["y"], constants), fold_batchnorm, fold_affine)
    assert operators(model) == {"MatMul": 1, "Mul": 1, "Add": 1}


@pytest.mark.parametrize("shape", [("N", 6), ("N", 6, 5), ("N", 6, 5, 3), ("N", 6, 2, 3, 2)])
def test_alone_becomes_multiplication_and_addition(shape: tuple[str | int, ...]) -> None:
    nodes = [node("Relu", "x", "r"), node("BatchNormalization", f"r {BN}", "y")]
    model, _ = rewrite(network(nodes, {"x": shape}, ["y"], statistics(6)), fold_batchnorm)
    assert operators(model) == {"Relu": 1, "Mul": 1, "Add": 1}


def test_output_read_twice_stays_what_it_was() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", f"c {BN}", "y"),
        node("Relu", "c", "z"),
    ]
    constants = {"w": random(6, 4, 1, 1), **statistics(6)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["y", "z"], constants), fold_batchnorm)
    assert operators(model) == {"Conv": 1, "Mul": 1, "Add": 1, "Relu": 1}


def test_convolution_that_is_itself_an_output_stays_what_it_was() -> None:
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "y")]
    constants = {"w": random(6, 4, 1, 1), **statistics(6)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["c", "y"], constants), fold_batchnorm)
    assert operators(model) == {"Conv": 1, "Mul": 1, "Add": 1}


def test_shared_weights_are_not_scaled_for_the_other_reader() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", f"c {BN}", "y"),
        node("Conv", "x w", "z"),
    ]
    constants = {"w": random(6, 4, 1, 1), **statistics(6)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["y", "z"], constants), fold_batchnorm)
    assert operators(model) == {"Conv": 2}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_refuses_statistics_without_a_finite_scale() -> None:
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "y")]
    constants = {"w": random(6, 4, 1, 1), **statistics(6)}
    constants["variance"] = np.full(6, -1, dtype=np.float32)
    model = load(network(nodes, {"x": ["N", 4, 3, 3]}, ["y"], constants), simplify=False).model
    (refusal,) = fold_batchnorm(model)
    assert refusal.node == "node_y"
    assert "variance" in refusal.reason
    assert operators(model) == {"Conv": 1, "BatchNormalization": 1}


def test_refuses_statistics_that_are_inputs() -> None:
    nodes = [node("BatchNormalization", f"x {BN}", "y")]
    inputs = {"x": ["N", 6, 3, 3], "gamma": [6]}
    constants = {name: array for name, array in statistics(6).items() if name != "gamma"}
    model, (refusal,) = rewrite(network(nodes, inputs, ["y"], constants), fold_batchnorm)
    assert "not constant" in refusal.reason
    assert operators(model) == {"BatchNormalization": 1}


def test_names_survive() -> None:
    nodes = [
        node("Conv", "x conv.weight", "convolved"),
        node("BatchNormalization", f"convolved {BN}", "normalised"),
        node("Relu", "normalised", "y"),
    ]
    constants = {"conv.weight": random(6, 4, 1, 1), **statistics(6)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["y"], constants), fold_batchnorm)
    convolution = model.graph[0]
    assert convolution.name == "node_convolved"
    assert [value.name for value in convolution.inputs] == ["x", "conv.weight", "conv.bias"]
    assert convolution.outputs[0].name == "normalised"

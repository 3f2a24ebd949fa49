"""A 1x1 Conv on a single pixel, flattened, is a Gemm."""

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

from narrowgauge.importers.onnx import load
from narrowgauge.passes import simplify
from narrowgauge.passes.pointwise_to_gemm import ACTIVATION_FUNCTIONS, pointwise_to_gemm
from tests.passes.networks import assert_same, network, node, operators, random, rewrite, run

# name -> how [N, 6, 1, 1] becomes [N, 6], c to y
FLATTENINGS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "Flatten": ([node("Flatten", "c", "y")], {}),
    "Flatten from behind": ([node("Flatten", "c", "y", axis=-3)], {}),
    "Reshape": ([node("Reshape", "c s", "y")], {"s": np.array([-1, 6])}),
    "Reshape by zero": ([node("Reshape", "c s", "y")], {"s": np.array([0, -1])}),
    "Squeeze": ([node("Squeeze", "c a", "y")], {"a": np.array([2, 3])}),
    "two": ([node("Squeeze", "c a", "q"), node("Squeeze", "q e", "y")], {"a": np.array([-1]), "e": np.array([2])}),
}
ATTRIBUTES: dict[str, dict[str, object]] = {
    "none": {},
    "all": {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1},
    "stride": {"strides": [2, 3], "dilations": [2, 2]},
    "valid": {"auto_pad": "VALID"},
    "same": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
}


@pytest.mark.parametrize(
    ("flattening", "attributes", "bias", "batch"), list(product(FLATTENINGS, ATTRIBUTES, (False, True), ("N", 1, 3)))
)
@pytest.mark.parametrize("is_output", [False, True])
def test_classifier(flattening: str, attributes: str, bias: bool, batch: int | str, is_output: bool) -> None:
    behind, constants = FLATTENINGS[flattening]
    constants = constants | {"w": random(6, 4, 1, 1)} | ({"b": random(6)} if bias else {})
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Conv", "p w b" if bias else "p w", "c", **ATTRIBUTES[attributes]),
        *behind,
        *([] if is_output else [node("Softmax", "y", "z")]),
    ]
    proto = network(nodes, {"x": [batch, 4, 3, 5]}, ["y" if is_output else "z"], constants)
    model, refusals = rewrite(proto, pointwise_to_gemm)
    assert [each.op_type for each in model.graph][:3] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert len(model.graph) == (3 if is_output else 4)
    assert model.graph[2].name == "node_c"
    assert model.graph[2].outputs[0].name == "y"
    assert model.graph.initializers["w"].shape == (6, 4)
    assert not refusals


@pytest.mark.parametrize("function", ACTIVATION_FUNCTIONS)
def test_activation_functions_between(function: str) -> None:
    nodes = [
        node("GlobalMaxPool", "x", "p"),
        node("Relu", "p", "r"),
        node("Conv", "r w b", "c"),
        node(function, "c low high" if function == "Clip" else "c", "a"),
        node("Conv", "a v", "d"),
        node(function, "d", "e"),
        node("Flatten", "e", "y"),
    ]
    constants = {"w": random(5, 4, 1, 1), "b": random(5), "v": random(6, 5, 1, 1)}
    constants |= {"low": np.float32(-0.5), "high": np.float32(0.7)} if function == "Clip" else {}
    model, refusals = rewrite(network(nodes, {"x": ["N", 4, 3, 5]}, ["y"], constants), pointwise_to_gemm)
    found = [each.op_type for each in model.graph]
    assert found == ["GlobalMaxPool", "Relu", "Flatten", "Gemm", function, "Gemm", function]
    assert [each.outputs[0].name for each in model.graph][3:] == ["c", "a", "d", "y"]
    assert not refusals


@pytest.mark.parametrize("kernel", [(1,), (1, 1, 1)])
def test_any_number_of_axes(kernel: tuple[int, ...]) -> None:
    nodes = [node("Conv", "x w", "c"), node("Flatten", "c", "y")]
    model, _ = rewrite(network(nodes, {"x": ["N", 4, *kernel]}, ["y"], {"w": random(6, 4, *kernel)}), pointwise_to_gemm)
    assert operators(model) == {"Flatten": 1, "Gemm": 1}


@pytest.mark.parametrize("late", [False, True])
def test_an_existing_flatten_serves(late: bool) -> None:
    """The same features go to a classifier by Conv and to one by Gemm."""
    first = [node("Flatten", "p", "f"), node("Gemm", "f v", "z")]
    second = [node("Conv", "p w", "c"), node("Flatten", "c", "y")]
    nodes = [node("GlobalAveragePool", "x", "p"), *(second + first if late else first + second)]
    constants = {"w": random(6, 4, 1, 1), "v": random(4, 3)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["y", "z"], constants), pointwise_to_gemm)
    assert operators(model) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 2}


@pytest.mark.parametrize("operator", ["Unsqueeze", "Reshape"])
def test_features_that_were_flat_before_are_used(operator: str) -> None:
    nodes = [
        node("ReduceMean", "x axes", "m", keepdims=0),
        node(operator, "m s", "u"),
        node("Conv", "u w", "c"),
        node("Relu", "c", "r"),
        node("Reshape", "r t", "y"),
    ]
    target = np.array([2, 3]) if operator == "Unsqueeze" else np.array([0, 4, 1, 1])
    constants = {"axes": np.array([2, 3]), "s": target, "w": random(6, 4, 1, 1), "t": np.array([-1, 6])}
    proto = network(nodes, {"x": ["N", 4, 3, 3]}, ["y"], constants)
    model, _ = rewrite(proto, pointwise_to_gemm)
    assert operators(model)["Flatten"] == 0
    model, _ = rewrite(proto, simplify)
    assert operators(model) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "Relu": 1}


def test_squeeze_and_excitation_stays() -> None:
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Conv", "p w", "c"),
        node("Relu", "c", "r"),
        node("Conv", "r v", "d"),
        node("Sigmoid", "d", "s"),
        node("Mul", "x s", "y"),
    ]
    constants = {"w": random(2, 4, 1, 1), "v": random(4, 2, 1, 1)}
    model, refusals = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["y"], constants), pointwise_to_gemm)
    assert operators(model)["Conv"] == 2
    assert not refusals


OTHERS: dict[str, tuple[list[onnx.NodeProto], list[int | str], list[str], dict[str, np.ndarray]]] = {
    "an image": ([node("Conv", "x w", "c"), node("Flatten", "c", "y")], ["N", 4, 2, 2], ["y"], {}),
    "a whole kernel": (
        [node("Conv", "x v", "c"), node("Flatten", "c", "y")],
        ["N", 4, 2, 2],
        ["y"],
        {"v": random(6, 4, 2, 2)},
    ),
    "an output": ([node("Conv", "x w", "c"), node("Flatten", "c", "y")], ["N", 4, 1, 1], ["c", "y"], {}),
    "two readers": (
        [node("Conv", "x w", "c"), node("Flatten", "c", "y"), node("Relu", "c", "z")],
        ["N", 4, 1, 1],
        ["z", "y"],
        {},
    ),
    "other rows": (
        [node("Conv", "x w", "c"), node("Reshape", "c s", "y")],
        ["N", 4, 1, 1],
        ["y"],
        {"s": np.array([-1, 3])},
    ),
    "one row": ([node("Conv", "x w", "c"), node("Flatten", "c", "y", axis=0)], ["N", 4, 1, 1], ["y"], {}),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_others_stay_and_are_not_reported(name: str) -> None:
    nodes, shape, outputs, constants = OTHERS[name]
    constants = constants or {"w": random(6, 4, 1, 1)}
    if "s" in constants:
        constants = constants | {"w": random(6, 4, 1, 1)}
    model, refusals = rewrite(network(nodes, {"x": shape}, outputs, constants), pointwise_to_gemm)
    assert operators(model)["Conv"] == 1
    assert not refusals


@pytest.mark.parametrize(
    ("attributes", "weights", "reason"),
    [
        ({"group": 2}, (6, 2, 1, 1), "groups"),
        ({"pads": [1, 1, 1, 1]}, (6, 4, 3, 3), "kernel"),
        ({"auto_pad": "SAME_UPPER"}, (6, 4, 2, 2), "kernel"),
        ({}, None, "constant"),
    ],
)
def test_refuses_and_still_does_what_is_behind(
    attributes: dict[str, object], weights: tuple[int, ...] | None, reason: str
) -> None:
    nodes = [
        node("Conv", "x w", "c", **attributes),
        node("Relu", "c", "r"),
        node("Conv", "r v", "d"),
        node("Flatten", "d", "y"),
    ]
    inputs: dict[str, list[int | str]] = {"x": ["N", 4, 1, 1]}
    constants = {"v": random(5, 6, 1, 1)}
    if weights is None:
        inputs["w"] = [6, 4, 1, 1]
    else:
        constants["w"] = random(*weights)
    model, (refusal,) = rewrite(network(nodes, inputs, ["y"], constants), pointwise_to_gemm)
    assert (refusal.node, refusal.operator) == ("node_c", "Conv")
    assert reason in refusal.reason
    assert [each.op_type for each in model.graph] == ["Conv", "Relu", "Flatten", "Gemm"]


def test_weights_that_another_layer_reads_stay_as_they_are() -> None:
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Conv", "p w b", "c"),
        node("Flatten", "c", "y"),
        node("Conv", "x w b", "z"),
    ]
    constants = {"w": random(6, 4, 1, 1), "b": random(6)}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 3, 3]}, ["y", "z"], constants), pointwise_to_gemm)
    assert operators(model) == {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "Conv": 1}
    assert model.graph.initializers["w"].shape == (6, 4, 1, 1)


def test_zoo_classifier(zoo: Path) -> None:
    path = zoo / "models" / "mobilenet_v1_025" / "mobilenet_v1_0.25_224.onnx"
    imported = load(path)
    assert [each.op_type for each in imported.model.graph][-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert_same(run(str(path)), run(imported.model))

"""Small networks and samples for the command line's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


Shapes = dict[str, list[int | str]]


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Shapes,
    outputs: Shapes,
    weights: dict[str, np.ndarray],
    *,
    domains: dict[str, int] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(*domain) for domain in (domains or {}).items())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return path


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolution(path: Path, *, weights: np.ndarray | None = None) -> Path:
    """Images 3 x 8 x 8 to 4 scores."""
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["scores"], "last", transB=1),
    ]
    held = {"w1": random(8, 3, 3, 3) if weights is None else weights, "w2": random(4, 8), "b2": random(4)}
    return save(path, nodes, {"image": ["n", 3, 8, 8]}, {"scores": ["n", 4]}, held)


def square_root(path: Path) -> Path:
    """NaN where the first product is negative."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["product"], "first"),
        helper.make_node("Sqrt", ["product"], ["root"], "root_node"),
        helper.make_node("MatMul", ["root", "w2"], ["y"], "last"),
    ]
    weights = {"w1": np.abs(random(4, 6)), "w2": random(6, 3)}
    return save(path, nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, weights)


def two_inputs(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["left", "w1"], ["l"], "left_product"),
        helper.make_node("MatMul", ["right", "w2"], ["r"], "right_product"),
        helper.make_node("Add", ["l", "r"], ["sum"], "sum_node"),
        helper.make_node("MatMul", ["sum", "w3"], ["y"], "last"),
    ]
    weights = {"w1": random(4, 8), "w2": random(6, 8, seed=1), "w3": random(8, 5, seed=2)}
    return save(path, nodes, {"left": ["n", 4], "right": ["n", 6]}, {"y": ["n", 5]}, weights)


def sequence(path: Path) -> Path:
    """Any number of steps of 8 features."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "last"),
    ]
    return save(
        path, nodes, {"x": ["n", "time", 8]}, {"y": ["n", "time", 5]}, {"w1": random(8, 16), "w2": random(16, 5)}
    )


def foreign(path: Path) -> Path:
    """An operator of somebody's own domain."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
        helper.make_node("Swirl", ["h"], ["s"], "swirl_node", domain="com.acme"),
        helper.make_node("MatMul", ["s", "w2"], ["y"], "last"),
    ]
    weights = {"w1": random(4, 8), "w2": random(8, 3)}
    return save(path, nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, weights, domains={"com.acme": 1})


def unquantizable(path: Path) -> Path:
    """A standard operator that no target runs in integers, between two products."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
        helper.make_node("Erf", ["h"], ["s"], "erf_node"),
        helper.make_node("MatMul", ["s", "w2"], ["y"], "last"),
    ]
    return save(path, nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, {"w1": random(4, 8), "w2": random(8, 3)})

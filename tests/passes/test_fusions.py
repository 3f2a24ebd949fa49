import math
from itertools import product

import numpy as np
import onnx
import pytest

from narrowgauge.passes.fuse_gelu import fuse_gelu
from narrowgauge.passes.fuse_hardswish import fuse_hardswish
from narrowgauge.passes.fuse_layernorm import fuse_layernorm
from tests.passes.networks import network, node, operators, random, rewrite

ROOT = {"divide": (node("Div", "x c", "a"), math.sqrt(2)), "multiply": (node("Mul", "c x", "a"), math.sqrt(0.5))}
PRODUCTS = {
    "(x * e) * 0.5": [node("Mul", "x e", "m"), node("Mul", "m half", "y")],
    "0.5 * (e * x)": [node("Mul", "e x", "m"), node("Mul", "half m", "y")],
    "(0.5 * x) * e": [node("Mul", "half x", "m"), node("Mul", "m e", "y")],
    "x * (0.5 * e)": [node("Mul", "half e", "m"), node("Mul", "x m", "y")],
    "(x * e) / 2": [node("Mul", "x e", "m"), node("Div", "m two", "y")],
    "(x / 2) * e": [node("Div", "x two", "m"), node("Mul", "m e", "y")],
    "x * (e / 2)": [node("Div", "e two", "m"), node("Mul", "m x", "y")],
}


def gelu(root: str, product_: str, *, one_first: bool) -> onnx.ModelProto:
    first, number = ROOT[root]
    nodes = [
        first,
        node("Erf", "a", "f"),
        node("Add", "one f" if one_first else "f one", "e"),
        *PRODUCTS[product_],
    ]
    constants = {"c": number, "one": 1.0, "half": 0.5, "two": 2.0}
    read = {value for each in nodes for value in each.input}
    arrays = {name: np.float32(value) for name, value in constants.items() if name in read}
    return network(nodes, {"x": ["N", 7]}, ["y"], arrays)


@pytest.mark.parametrize(("root", "order", "one_first"), list(product(ROOT, PRODUCTS, (False, True))))
def test_gelu_in_any_order(root: str, order: str, one_first: bool) -> None:
    model, refusals = rewrite(gelu(root, order, one_first=one_first), fuse_gelu)
    assert operators(model) == {"Gelu": 1}
    assert not refusals


def test_gelu_with_a_part_read_elsewhere_or_another_number_stays() -> None:
    proto = gelu("divide", "(x * e) * 0.5", one_first=False)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, None))
    model, (refusal,) = rewrite(proto, fuse_gelu)
    assert refusal.operator == "Erf"
    assert operators(model)["Erf"] == 1
    proto = gelu("divide", "(x * e) * 0.5", one_first=False)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(1.5), proto.graph.initializer[0].name))
    model, _ = rewrite(proto, fuse_gelu)
    assert operators(model)["Gelu"] == 0


def layernorm(
    square: str, quotient: str, scale: bool, shift: bool, axes: list[int], *, keep_second: bool = False
) -> onnx.ModelProto:
    nodes = [node("ReduceMean", "x axes", "m"), node("Sub", "x m", "d")]
    if keep_second:
        nodes.append(node("Sub", "x m", "d2"))
    operand = "d2" if keep_second else "d"
    nodes.append(node("Pow", "d two", "s") if square == "Pow" else node("Mul", "d d", "s"))
    nodes += [node("ReduceMean", "s axes", "v"), node("Add", "v epsilon", "w"), node("Sqrt", "w", "r")]
    if quotient == "Div":
        nodes.append(node("Div", f"{operand} r", "n"))
    else:
        nodes += [node("Reciprocal", "r", "i"), node("Mul", f"{operand} i", "n")]
    if scale:
        nodes.append(node("Mul", "gamma n", "g"))
    if shift:
        nodes.append(node("Add", f"{'g' if scale else 'n'} beta", "b"))
    nodes.append(node("Relu", "b" if shift else ("g" if scale else "n"), "y"))
    sizes = [6, 5][-len(axes) :]
    constants = {
        "axes": np.array(axes),
        "two": np.float32(2),
        "epsilon": np.float32(1e-3),
        "gamma": random(*sizes),
        "beta": random(*sizes, seed=1),
    }
    read = {value for each in nodes for value in each.input}
    return network(nodes, {"x": ["N", 6, 5]}, ["y"], {name: array for name, array in constants.items() if name in read})


@pytest.mark.parametrize(
    ("square", "quotient", "scale", "shift", "axes", "keep_second"),
    list(
        product(("Pow", "Mul"), ("Div", "Reciprocal"), (True, False), (True, False), ([-1], [2], [1, 2]), (False, True))
    ),
)
def test_layernorm(square: str, quotient: str, scale: bool, shift: bool, axes: list[int], keep_second: bool) -> None:
    proto = layernorm(square, quotient, scale, shift, axes, keep_second=keep_second)
    model, refusals = rewrite(proto, fuse_layernorm)
    assert operators(model) == {"LayerNormalization": 1, "Relu": 1}
    assert not refusals


def test_normalisation_over_other_axes_stays() -> None:
    proto = layernorm("Pow", "Div", False, False, [1])
    model, (refusal,) = rewrite(proto, fuse_layernorm)
    assert "last axes" in refusal.reason
    assert operators(model)["Sqrt"] == 1


@pytest.mark.parametrize("last", ["Div", "Mul", "product first", "sigmoid only"])
def test_hard_swish_and_hard_sigmoid(last: str) -> None:
    nodes = [node("Add", "x three", "a"), node("Clip", "a zero six", "c")]
    if last == "product first":
        nodes += [node("Mul", "x c", "p"), node("Div", "p six", "y")]
    else:
        nodes.append(node("Mul", "c sixth", "s") if last == "Mul" else node("Div", "c six", "s"))
        nodes.append(node("Relu", "s", "y") if last == "sigmoid only" else node("Mul", "s x", "y"))
    constants = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6}
    read = {value for each in nodes for value in each.input}
    arrays = {name: np.float32(number) for name, number in constants.items() if name in read}
    model, _ = rewrite(network(nodes, {"x": ["N", 40]}, ["y"], arrays), fuse_hardswish)
    assert operators(model) == ({"HardSigmoid": 1, "Relu": 1} if last == "sigmoid only" else {"HardSwish": 1})

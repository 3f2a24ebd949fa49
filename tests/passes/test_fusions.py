import math
from itertools import product

import numpy as np
import onnx
import pytest

from narrowgauge.importers.onnx import load
from narrowgauge.passes.fuse_gelu import fuse_gelu
from narrowgauge.passes.fuse_gelu_tanh import fuse_gelu_tanh
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


CUBES = {
    "power": [node("Pow", "x three", "p"), node("Mul", "k p", "t"), node("Add", "x t", "u"), node("Mul", "u r", "a")],
    "products": [
        node("Mul", "x x", "s"), node("Mul", "s x", "p"), node("Mul", "p k", "t"), node("Add", "t x", "u"),
        node("Mul", "r u", "a"),
    ],
    "taken out": [
        node("Mul", "x r", "v"), node("Mul", "k x", "s"), node("Mul", "s x", "p"), node("Add", "one p", "u"),
        node("Mul", "v u", "a"),
    ],
    "multiplied in": [
        node("Pow", "x two", "s"), node("Mul", "x s", "p"), node("Mul", "p kr", "t"), node("Mul", "r x", "u"),
        node("Add", "u t", "a"),
    ],
    "divided": [
        node("Pow", "x three", "p"), node("Div", "p ik", "t"), node("Add", "x t", "u"), node("Div", "u ir", "a"),
    ],
}  # fmt: skip


def gelu_by_tanh(cube: str, order: str, *, cubic: float = 0.044715) -> onnx.ModelProto:
    root = math.sqrt(2 / math.pi)
    nodes = [*CUBES[cube], node("Tanh", "a", "f"), node("Add", "f one", "e"), *PRODUCTS[order]]
    for each in nodes[-2:]:  # names of the products' own
        each.input[:] = ["m2" if value == "m" else value for value in each.input]
        each.output[:] = ["m2" if value == "m" else value for value in each.output]
    constants = {
        "one": 1.0, "half": 0.5, "two": 2.0, "three": 3.0, "k": cubic, "r": root, "kr": cubic * root, "ik": 1 / cubic,
        "ir": 1 / root,
    }  # fmt: skip
    read = {value for each in nodes for value in each.input}
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
    arrays = {name: np.float32(value) for name, value in constants.items() if name in read}
    return network(copies, {"x": ["N", 7]}, ["y"], arrays)


@pytest.mark.parametrize(("cube", "order"), list(product(CUBES, PRODUCTS)))
def test_gelu_by_tanh_in_any_form(cube: str, order: str) -> None:
    model, refusals = rewrite(gelu_by_tanh(cube, order), fuse_gelu_tanh)
    assert operators(model) == {"Gelu": 1}
    assert model.graph[0].attributes.get_string("approximate") == "tanh"
    assert not refusals


def test_another_polynomial_and_a_plain_tanh_stay() -> None:
    model, _ = rewrite(gelu_by_tanh("power", "(x * e) * 0.5", cubic=0.05), fuse_gelu_tanh)
    assert operators(model)["Tanh"] == 1
    model, _ = rewrite(network([node("Tanh", "x", "y")], {"x": ["N", 7]}, ["y"]), fuse_gelu_tanh)
    assert operators(model) == {"Tanh": 1}


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


VARIANCES = {
    "centred": [node("Sub", "x m", "d"), node("Mul", "d d", "s"), node("ReduceMean", "s axes", "v")],
    "difference": [
        node("Mul", "x x", "s"), node("ReduceMean", "s axes", "q"), node("Pow", "m two", "mm"),
        node("Sub", "q mm", "v"),
    ],
    "difference, not negative": [
        node("Pow", "x two", "s"), node("ReduceMean", "s axes", "q"), node("Mul", "m m", "mm"),
        node("Sub", "q mm", "n"), node("Relu", "n", "v"),
    ],
}  # fmt: skip
ROOTS = {
    "reciprocal": [node("Sqrt", "w", "r"), node("Reciprocal", "r", "i")],
    "quotient": [node("Sqrt", "w", "r"), node("Div", "one r", "i")],
    "power": [node("Pow", "w minus_half", "i")],
}
APPLIED = {
    "scaled difference": [node("Sub", "x m", "d2"), node("Mul", "d2 i", "n1"), node("Mul", "n1 gamma", "n2"),
                          node("Add", "beta n2", "z")],
    "shift of constants": [node("Mul", "i gamma", "g"), node("Mul", "x g", "n1"), node("Mul", "m g", "n2"),
                           node("Sub", "beta n2", "n3"), node("Add", "n1 n3", "z")],
    "difference of products": [node("Mul", "gamma i", "g"), node("Mul", "g x", "n1"), node("Mul", "g m", "n2"),
                               node("Sub", "n1 n2", "n3"), node("Add", "n3 beta", "z")],
    "without gamma": [node("Mul", "i x", "n1"), node("Mul", "i m", "n2"), node("Sub", "n1 n2", "z")],
}  # fmt: skip


@pytest.mark.parametrize(("variance", "root", "applied"), list(product(VARIANCES, ROOTS, APPLIED)))
def test_layernorm_as_other_frameworks_write_it(variance: str, root: str, applied: str) -> None:
    nodes = [
        node("ReduceMean", "x axes", "m"), *VARIANCES[variance], node("Add", "epsilon v", "w"), *ROOTS[root],
        *APPLIED[applied], node("Neg", "z", "y"),
    ]  # fmt: skip
    constants = {
        "axes": np.array([-1]), "two": np.float32(2), "epsilon": np.float32(1e-3), "one": np.float32(1),
        "minus_half": np.float32(-0.5), "gamma": random(5), "beta": random(5, seed=1),
    }  # fmt: skip
    read = {value for each in nodes for value in each.input}
    arrays = {name: array for name, array in constants.items() if name in read}
    model, refusals = rewrite(network(nodes, {"x": ["N", 6, 5]}, ["y"], arrays), fuse_layernorm)
    assert operators(model) == {"LayerNormalization": 1, "Neg": 1}
    assert not refusals


def test_the_size_of_the_axis_may_be_that_of_gamma() -> None:
    proto = layernorm("Pow", "Div", True, True, [-1])
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    model = load(proto, simplify=False).model
    assert not fuse_layernorm(model)
    assert operators(model) == {"LayerNormalization": 1, "Relu": 1}


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

"""Passes that compute shapes and constants and remove what does nothing."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from narrowgauge.graph.edits import is_operator
from narrowgauge.passes import SIMPLIFICATIONS, simplify, split_shared_weights
from narrowgauge.passes.fold_all import fold_all
from narrowgauge.passes.fold_constants import GROWTH_LIMIT_BYTES, fold_constants
from narrowgauge.passes.fold_shapes import fold_shapes
from narrowgauge.passes.merge_reshapes import merge_reshapes
from narrowgauge.passes.pool_means import pool_means
from narrowgauge.passes.remove_no_ops import remove_no_ops
from narrowgauge.passes.size_arithmetic import elementwise
from tests.passes.networks import network, node, operators, random, rewrite, run

NO_OPS = {
    "identity": ([node("Identity", "x", "y")], {}),
    "dropout": ([node("Dropout", "x", "y")], {}),
    "dropout with ratio": ([node("Dropout", "x r f", "y")], {"r": np.float32(0.4), "f": np.bool_(False)}),
    "cast": ([node("Cast", "x", "y", to=TensorProto.FLOAT)], {}),
    "transpose": ([node("Transpose", "x", "y", perm=[0, 1, 2, 3])], {}),
    "transpose of ones": ([node("Transpose", "x", "y", perm=[0, 3, 2, 1])], {}),
    "reshape": ([node("Reshape", "x s", "y")], {"s": np.array([-1, 1, 4, 1])}),
    "reshape by zeros": ([node("Reshape", "x s", "y")], {"s": np.array([0, 0, -1, 1])}),
    "slice": ([node("Slice", "x a b", "y")], {"a": np.array([0, 0]), "b": np.array([2**40, 2**40])}),
    "slice of all": ([node("Slice", "x a b c", "y")], {"a": np.array([-4]), "b": np.array([4]), "c": np.array([2])}),
    "pad": ([node("Pad", "x p", "y")], {"p": np.zeros(8, np.int64)}),
    "concat": ([node("Concat", "x", "y", axis=1)], {}),
    "sum": ([node("Sum", "x", "y")], {}),
    "split": ([node("Split", "x", "y", axis=1, num_outputs=1)], {}),
    "squeeze and unsqueeze": ([node("Squeeze", "x a", "q"), node("Unsqueeze", "q a", "y")], {"a": np.array([1])}),
}


@pytest.mark.parametrize("name", sorted(NO_OPS))
@pytest.mark.parametrize("place", ["between", "first and last"])
def test_no_ops_vanish_and_names_stay(name: str, place: str) -> None:
    inner, constants = NO_OPS[name]
    inner = [onnx.NodeProto.FromString(each.SerializeToString()) for each in inner]
    if place == "first and last":
        model, _ = rewrite(network(inner, {"x": ["N", 1, 4, 1]}, ["y"], constants), remove_no_ops, merge_reshapes)
        return  # an output must have its own name, so the node may stay
    inner[0].input[0] = "before"
    nodes = [node("Relu", "x", "before"), *inner, node("Neg", "y", "z")]
    model, _ = rewrite(network(nodes, {"x": ["N", 1, 4, 1]}, ["z"], constants), remove_no_ops, merge_reshapes)
    assert operators(model) == {"Relu": 1, "Neg": 1}
    assert model.graph[0].outputs[0].name == "before"


def test_identity_as_output_gives_its_name_to_what_is_before() -> None:
    model, _ = rewrite(network([node("Relu", "x", "r"), node("Identity", "r", "y")], {"x": [2]}, ["y"]), remove_no_ops)
    assert operators(model) == {"Relu": 1}


def test_identity_between_two_outputs_stays() -> None:
    nodes = [node("Relu", "x", "r"), node("Identity", "r", "y")]
    model, _ = rewrite(network(nodes, {"x": [2]}, ["r", "y"]), remove_no_ops)
    assert operators(model) == {"Relu": 1, "Identity": 1}


@pytest.mark.parametrize(
    "inner",
    [
        node("Reshape", "x s", "y"),
        node("Transpose", "x", "y", perm=[0, 2, 1, 3]),
        node("Slice", "x a b", "y"),
        node("Cast", "x", "y", to=TensorProto.DOUBLE),
    ],
    ids=lambda each: each.op_type,
)
def test_what_does_something_stays(inner: onnx.NodeProto) -> None:
    constants = {"s": np.array([-1, 4, 2, 3]), "a": np.array([0, 0]), "b": np.array([2**40, 1])}
    constants = {name: array for name, array in constants.items() if name in inner.input}
    kind = TensorProto.DOUBLE if inner.op_type == "Cast" else TensorProto.FLOAT
    model, _ = rewrite(network([inner], {"x": ["N", 3, 4, 2]}, {"y": kind}, constants), remove_no_ops)
    assert operators(model) == {inner.op_type: 1}


def test_constants_are_folded_under_their_names() -> None:
    nodes = [
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Mul", "wt two", "scaled"),
        node("Cast", "number", "cast", to=TensorProto.FLOAT),
        node("Add", "scaled cast", "sum"),
        node("MatMul", "x sum", "m"),
        node("Add", "m wt", "y"),
    ]
    constants = {"w": random(4, 4), "two": np.float32(2), "number": np.int64(3)}
    model, refusals = rewrite(network(nodes, {"x": [4, 4]}, ["y"], constants), fold_constants)
    assert operators(model) == {"MatMul": 1, "Add": 1}
    assert set(model.graph.initializers) == {"sum", "wt"}
    assert not refusals


def test_small_constants_do_not_become_huge() -> None:
    elements = GROWTH_LIMIT_BYTES // 4 + 16
    nodes = [
        node("ConstantOfShape", "s", "big", value=onnx.numpy_helper.from_array(np.array([1.5], np.float32))),
        node("Add", "x big", "y"),
    ]
    model, (refusal,) = rewrite(network(nodes, {"x": [1]}, ["y"], {"s": np.array([elements])}), fold_constants)
    assert operators(model) == {"ConstantOfShape": 1, "Add": 1}
    assert refusal.operator == "ConstantOfShape"
    model, _ = rewrite(network(nodes, {"x": [1]}, ["y"], {"s": np.array([100])}), fold_constants)
    assert operators(model) == {"Add": 1}


def test_a_constant_output_and_random_numbers_are_not_folded() -> None:
    nodes = [
        node("Relu", "w", "y"),
        node("RandomNormalLike", "w", "noise"),
        node("Mul", "noise zero", "none"),
        node("Add", "x none", "z"),
    ]
    constants = {"w": random(3), "zero": np.float32(0)}
    model, _ = rewrite(network(nodes, {"x": [3]}, ["y", "z"], constants), fold_constants)
    assert operators(model)["RandomNormalLike"] == 1
    assert operators(model)["Relu"] == 1


def test_stored_integer_weights_are_not_dequantized() -> None:
    nodes = [node("DequantizeLinear", "w scale", "f"), node("MatMul", "x f", "y")]
    constants = {"w": np.arange(12, dtype=np.int8).reshape(4, 3), "scale": np.float32(0.1)}
    model, _ = rewrite(network(nodes, {"x": [2, 4]}, ["y"], constants), *SIMPLIFICATIONS)
    assert operators(model) == {"DequantizeLinear": 1, "MatMul": 1}


def test_shape_computation_of_a_dynamic_batch_becomes_constant() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Gather", "s two", "h"),
        node("Unsqueeze", "n first", "n1"),
        node("Unsqueeze", "h first", "h1"),
        node("Concat", "n1 h1 rest", "target", axis=0),
        node("Reshape", "x target", "y"),
    ]
    constants = {"zero": np.int64(0), "two": np.int64(2), "first": np.array([0]), "rest": np.array([3, 5])}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 5]}, ["y"], constants), fold_shapes)
    assert operators(model) == {"Reshape": 1}
    assert list(model.graph[0].inputs[1].const_value.numpy()) == [0, 4, 3, 5]


def test_sizes_that_depend_on_two_dynamic_axes_stay() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s order", "target"),
        node("Reshape", "x target", "y"),
    ]
    proto = network(nodes, {"x": ["N", "M", 4]}, ["y"], {"order": np.array([1, 0, 2])})
    model, _ = rewrite(proto, fold_shapes)
    assert operators(model)["Shape"] == 1


def test_static_shape_becomes_constant_through_an_explicit_range() -> None:
    nodes = [
        node("Shape", "x", "s", start=1, end=-1),
        node("ConstantOfShape", "s", "zeros"),
        node("Add", "x zeros", "y"),
    ]
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 1]}, ["y"]), fold_shapes, fold_constants)
    assert operators(model) == {"Add": 1}


def test_reshapes_are_joined() -> None:
    nodes = [
        node("Flatten", "x", "f", axis=2),
        node("Reshape", "f a", "r"),
        node("Unsqueeze", "r one", "u"),
        node("Reshape", "u b", "z"),
        node("Neg", "z", "y"),
    ]
    constants = {"a": np.array([-1, 4, 5]), "b": np.array([-1, 12]), "one": np.array([1])}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 5]}, ["y"], constants), merge_reshapes)
    assert operators(model) == {"Reshape": 1, "Neg": 1}


def test_transpose_of_single_pixels_before_a_reshape_vanishes() -> None:
    nodes = [
        node("GlobalAveragePool", "x", "g"),
        node("Transpose", "g", "t", perm=[0, 2, 3, 1]),
        node("Reshape", "t s", "y"),
    ]
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 5]}, ["y"], {"s": np.array([-1, 3])}), merge_reshapes)
    assert operators(model) == {"GlobalAveragePool": 1, "Reshape": 1}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2]])
def test_mean_over_the_image_is_a_pool(keepdims: int, axes: list[int]) -> None:
    nodes = [node("ReduceMean", "x a", "m", keepdims=keepdims), node("Relu", "m", "y")]
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 5]}, ["y"], {"a": np.array(axes)}), pool_means)
    assert operators(model)["GlobalAveragePool"] == 1
    assert operators(model)["ReduceMean"] == 0


@pytest.mark.parametrize(("shape", "axes"), [(["N", 3, 4, 5], [1, 2]), (["N", 3, 4], [2]), (["N", 3, 4, 5], [3])])
def test_other_means_stay(shape: list[int | str], axes: list[int]) -> None:
    model, _ = rewrite(
        network([node("ReduceMean", "x a", "y")], {"x": shape}, ["y"], {"a": np.array(axes)}), pool_means
    )
    assert operators(model) == {"ReduceMean": 1}


def test_shared_weights_and_biases_are_copied_on_request() -> None:
    nodes = [
        node("Conv", "x w b", "c"),
        node("Conv", "c w b", "d"),
        node("MatMul", "d m", "e"),
        node("Add", "e n", "f"),
        node("MatMul", "f m", "g"),
        node("Add", "g n", "y"),
    ]
    constants = {"w": random(3, 3, 1, 1), "b": random(3), "m": random(4, 4), "n": random(4)}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants), split_shared_weights)
    assert len(model.graph.initializers) == 8
    assert all(len(value.uses()) == 1 for value in model.graph.initializers.values())
    assert {value.name for each in list(model.graph)[:1] for value in each.inputs} == {"x", "w", "b"}


def test_simplify_reports_a_refusal_once_and_not_for_what_is_gone() -> None:
    nodes = [
        node("BatchNormalization", "x g b m v", "n"),
        node("Conv", "n w", "c", pads=[1, 1, 1, 1]),
        node("Erf", "c", "y"),
    ]
    constants = {"w": random(3, 3, 3, 3), **dict(zip("gbmv", np.abs(random(4, 3)) + 0.1, strict=True))}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants))
    refusals = simplify(model)
    names = {each.name for each in model.graph}
    assert {refusal.operator for refusal in refusals} == {"Add", "Erf"}
    assert len(refusals) == len(set(refusals)) == 2
    assert {refusal.node for refusal in refusals} <= names
    assert not any(is_operator(each, "BatchNormalization") for each in model.graph)


def test_simplify_leaves_layers_with_their_biases_only() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c g b m v", "n"),
        node("Clip", "n zero six", "r"),
        node("ReduceMean", "r axes", "p", keepdims=0),
        node("MatMul", "p fc", "f"),
        node("Mul", "f two", "s"),
        node("Add", "s bias", "y"),
    ]
    constants = {
        "w": random(6, 3, 3, 3),
        **dict(zip("gbmv", np.abs(random(4, 6)) + 0.1, strict=True)),
        "zero": np.float32(0),
        "six": np.float32(6),
        "axes": np.array([2, 3]),
        "fc": random(6, 2),
        "two": np.float32(2),
        "bias": random(2),
    }
    model, refusals = rewrite(network(nodes, {"x": ["N", 3, 5, 5]}, ["y"], constants), simplify)
    expected = {"Conv": 1, "Clip": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert operators(model) == expected
    assert not refusals


@pytest.mark.parametrize(
    ("first", "perm", "expected"),
    [
        (node("Reshape", "x ones_last", "r"), [0, 3, 1, 2], {"Reshape": 1}),
        (node("Reshape", "x ones_first", "r"), [0, 3, 1, 2], {"Reshape": 1}),
        (node("Reshape", "x two", "r"), [0, 2, 1, 3], {"Reshape": 1, "Transpose": 1}),
        (node("Unsqueeze", "x axes", "r"), [0, 1, 3, 2], {"Reshape": 1}),
    ],
)
def test_a_transpose_of_axes_of_one_element_behind_a_reshape(first: onnx.NodeProto, perm: list, expected: dict) -> None:
    constants = {
        "ones_last": np.array([0, 6, 1, 1]),
        "ones_first": np.array([0, 1, 1, 6]),
        "two": np.array([0, 2, 3, 1]),
        "axes": np.array([2, 3]),
    }
    read = first.input[1]
    nodes = [first, node("Transpose", "r", "t", perm=perm), node("Relu", "t", "y")]
    proto = network(nodes, {"x": ["N", 6]}, ["y"], {read: constants[read]})
    model, _ = rewrite(proto, merge_reshapes)
    assert operators(model) == {**expected, "Relu": 1}


def test_a_shape_that_becomes_constant_keeps_the_name_of_the_batch() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n zeros", "u"),
        node("Concat", "u rest", "target", axis=0),
        node("Reshape", "x target", "r"),
        node("Relu", "r", "y"),
    ]
    constants = {"zero": np.array(0), "zeros": np.array([0]), "rest": np.array([2, -1])}
    model, _ = rewrite(network(nodes, {"x": ["N", 6, 4]}, ["y"], constants), fold_shapes)
    shape = model.graph[0].outputs[0].shape
    assert shape is not None
    assert [str(size) for size in shape] == ["N", "2", "12"]


def test_the_shape_of_an_expanded_token_is_known() -> None:
    """TorchScript writes `token.expand(rows, -1, -1)` as a choice between 1 and the size that is asked for."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n first", "n1"),
        node("Concat", "n1 minus minus", "target", axis=0), node("ConstantOfShape", "three", "ones", value=ONES),
        node("Mul", "ones minus", "all"), node("Equal", "target all", "keep"),
        node("Where", "keep ones target", "sizes"), node("Expand", "token sizes", "t"),
        node("Concat", "t x", "j", axis=1), node("Shape", "j", "s2"), node("Gather", "s2 two", "d"),
        node("Div", "d heads", "w"), node("Cast", "w", "f", to=TensorProto.FLOAT), node("Sqrt", "f", "root"),
        node("Div", "j root", "y"),
    ]  # fmt: skip
    constants = {
        "zero": np.int64(0), "two": np.int64(2), "first": np.array([0]), "minus": np.array([-1]),
        "three": np.array([3]), "heads": np.int64(2), "token": random(1, 1, 8),
    }  # fmt: skip
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 8]}, ["y"], constants), fold_all)
    joined = next(each.outputs[0] for each in model.graph if each.op_type == "Concat" and each.outputs[0].name == "j")
    assert [size if isinstance(size, int) else size.value for size in joined.shape] == ["N", 5, 8]
    assert not operators(model)["Sqrt"]


ONES = onnx.numpy_helper.from_array(np.array([1]))


@pytest.mark.parametrize(
    ("operator", "constant", "kept"),
    [("Mul", 1, True), ("Add", 0, True), ("Sub", 0, True), ("Div", 1, True), ("Mul", 2, False), ("Max", 1, False)],
)
def test_sizes_of_a_dynamic_axis_are_followed_through_what_keeps_them(operator: str, constant: int, kept: bool) -> None:
    nodes = [
        node("Shape", "x", "s", end=1), node(operator, "s c", "n"), node("Concat", "n rest", "target", axis=0),
        node("Expand", "x target", "e"), node("Relu", "e", "y"),
    ]  # fmt: skip
    constants = {"c": np.array([constant]), "rest": np.array([3])}
    sizes = {"x": ["N", 1] if kept else [1, 1]}
    model, _ = rewrite(network(nodes, sizes, ["y"], constants), fold_all)
    (expand,) = (each for each in model.graph if each.op_type == "Expand")
    found = [size if isinstance(size, int) else size.value for size in expand.outputs[0].shape]
    assert found == (["N", 3] if kept else [constant, 3])


@settings(max_examples=60)
@given(
    operator=st.sampled_from(["Add", "Div", "Max", "Min", "Mul", "Sub", "Equal"]),
    first=st.lists(st.integers(-9, 9), min_size=1, max_size=4), second=st.integers(-9, 9),
)  # fmt: skip
def test_arithmetic_of_known_sizes_is_that_of_onnx(operator: str, first: list[int], second: int) -> None:
    assume(operator != "Div" or second != 0)
    nodes = [node(operator, "a b", "c"), node("Cast", "c", "d", to=TensorProto.FLOAT), node("Add", "x d", "y")]
    proto = network(nodes, {"x": [1]}, ["y"], {"a": np.array(first), "b": np.array([second])})
    (wanted,) = run(proto)
    made = ir.node(operator, [ir.Value(name="a"), ir.Value(name="b")])
    found = elementwise(made, [tuple(first), (second,)])
    with_x = run(network([node("Identity", "x", "y")], {"x": [1]}, ["y"]))[0]
    assert np.allclose(with_x + np.array(found, np.float32), wanted)

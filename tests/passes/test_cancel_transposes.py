import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.passes.cancel_transposes import cancel_transposes
from tests.passes.networks import network, node, operators, random, rewrite

TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
SHAPE = ["N", 4, 6, 5]  # NHWC, 5 channels


def between(*inner: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Surround NHWC operators from h to z by the layout that a converter from TensorFlow writes."""
    return [
        node("Transpose", "x", "x_nchw", perm=TO_NCHW),
        node("Conv", "x_nchw w", "c"),
        node("Transpose", "c", "h", perm=TO_NHWC),
        *inner,
        node("Transpose", "z", "z_nchw", perm=TO_NCHW),
        node("Conv", "z_nchw w", "d"),
        node("Transpose", "d", "y", perm=TO_NHWC),
    ]


WEIGHTS = {"w": random(5, 5, 1, 1)}
INTS = {
    "pads": np.array([0, 1, 0, 2, 0, 0, 1, 2]),
    "pads_hw": np.array([1, 0, 0, 2]),
    "axes_hw": np.array([1, -2]),
    "starts": np.array([1, 0]),
    "ends": np.array([3, 4]),
    "axis_w": np.array([2]),
    "axis_h": np.array([1]),
    "three": np.array([3]),
    "zero": np.array([0]),
    "sizes": np.array([2, 3]),
    "axis_c": np.array([-1]),
}
FOLLOWING = {
    "unary": [node("Relu", "h", "z")],
    "clip": [node("Clip", "h low high", "z")],
    "per channel": [node("Add", "h channel", "z")],
    "constant first": [node("Sub", "channel h", "z")],
    "per position": [node("Mul", "h position", "z")],
    "prelu": [node("PRelu", "h channel", "z")],
    "residual": [node("Relu", "h", "r"), node("Add", "r h", "z")],
    "where": [node("Less", "h channel", "m"), node("Where", "m h channel", "z")],
    "concat and split": [
        node("Sigmoid", "h", "s"),
        node("Concat", "h s", "k", axis=3),
        node("Split", "k", "z k2", axis=-1, num_outputs=2),
    ],
    "concat of space": [node("Concat", "h h", "z", axis=1)],
    "pad": [
        node("Pad", "h pads", "p"),
        node("Slice", "p zero three axis_h", "q"),
        node("Slice", "q zero five axis_c", "z"),
    ],
    "pad of axes": [node("Pad", "h pads_hw - axes_hw", "z")],
    "slice": [node("Slice", "h starts ends axes_hw", "z")],
    "slice without axes": [node("Slice", "h one_two fifty", "z")],
    "mean": [node("ReduceMean", "h axes_hw", "m"), node("Mul", "h m", "z")],
    "maximum over channels": [node("ReduceMax", "h axis_c", "m"), node("Sub", "h m", "z")],
    "softmax": [node("Softmax", "h", "z")],
    "softmax over height": [node("Softmax", "h", "z", axis=1)],
    "scaled by a number": [node("ReduceMax", "h", "m", keepdims=0), node("Mul", "h m", "z")],
}
CONSTANTS = {
    **WEIGHTS,
    **INTS,
    "low": np.float32(-0.5),
    "high": np.float32(0.7),
    "channel": random(5),
    "position": random(1, 4, 6, 5),
    "five": np.array([5]),
    "one_two": np.array([0, 1]),
    "fifty": np.array([50, 3]),
}


@pytest.mark.parametrize("name", sorted(FOLLOWING))
def test_operators_between_convolutions_move_to_their_layout(name: str) -> None:
    nodes = between(*FOLLOWING[name])
    read = {value for each in nodes for value in each.input}
    constants = {key: np.asarray(array) for key, array in CONSTANTS.items() if key in read}
    model, _ = rewrite(network(nodes, {"x": SHAPE}, ["y"], constants), cancel_transposes)
    assert operators(model)["Transpose"] == 2  # one at the network's input, one at its output


def test_values_used_elsewhere_keep_their_layout_there() -> None:
    nodes = [*between(node("Relu", "h", "z")), node("LSTM", "flat lw lr", "s"), node("Reshape", "z sizes", "flat")]
    nodes = [*nodes[:4], nodes[-1], nodes[-2], *nodes[4:-2]]
    constants = {**WEIGHTS, "sizes": np.array([4, -1, 30]), "lw": random(1, 8, 30), "lr": random(1, 8, 2)}
    model, _ = rewrite(
        network(
            [each if each.op_type != "LSTM" else node("LSTM", "flat lw lr", "s", hidden_size=2) for each in nodes],
            {"x": SHAPE},
            ["y", "s", "z"],
            constants,
        ),
        cancel_transposes,
    )
    assert operators(model)["Transpose"] <= 3


def test_mean_without_kept_axes_needs_no_transpose() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Transpose", "c", "h", perm=TO_NHWC),
        node("Relu", "h", "r"),
        node("ReduceMean", "r axes", "y", keepdims=0),
    ]
    constants = {**WEIGHTS, "axes": np.array([1, 2])}
    model, _ = rewrite(network(nodes, {"x": ["N", 5, 3, 4]}, ["y"], constants), cancel_transposes)
    assert operators(model) == {"Conv": 1, "Relu": 1, "ReduceMean": 1}


def test_mean_right_behind_a_transpose_reads_through_it() -> None:
    nodes = [node("Transpose", "x", "h", perm=TO_NHWC), node("ReduceMean", "h axes", "y", keepdims=0)]
    model, _ = rewrite(network(nodes, {"x": ["N", 5, 3, 4]}, ["y"], {"axes": np.array([1, -2])}), cancel_transposes)
    assert operators(model) == {"ReduceMean": 1}


def test_mean_that_would_swap_what_is_left_keeps_its_transpose() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Transpose", "c", "h", perm=TO_NHWC),
        node("ReduceMean", "h axes", "y", keepdims=0),
    ]
    constants = {**WEIGHTS, "axes": np.array([1])}
    model, _ = rewrite(network(nodes, {"x": ["N", 5, 3, 4]}, ["y"], constants), cancel_transposes)
    assert operators(model)["Transpose"] == 1


@settings(max_examples=60)
@given(orders=st.lists(st.permutations(range(4)), min_size=1, max_size=5), relus=st.lists(st.booleans(), min_size=5))
def test_any_chain_of_transposes_becomes_at_most_one(orders: list[list[int]], relus: list[bool]) -> None:
    nodes, value = [], "x"
    for number, order in enumerate(orders):
        nodes.append(node("Transpose", value, f"t{number}", perm=order))
        value = f"t{number}"
        if relus[number]:
            nodes.append(node("Relu", value, f"r{number}"))
            value = f"r{number}"
    model, _ = rewrite(network(nodes, {"x": [2, 3, 4, 5]}, [value]), cancel_transposes)
    assert operators(model)["Transpose"] <= 1


@settings(max_examples=80)
@given(data=st.data())
def test_any_graph_of_transposes_and_elementwise_operators_gives_the_same(data: st.DataObject) -> None:
    """Every value of shape [2, 3, 3, 3] under permutation of the last three axes, so that all operands fit."""
    values, nodes = ["x", "z"], []
    for number in range(data.draw(st.integers(2, 12))):
        kind = data.draw(st.sampled_from(["Transpose", "Relu", "Add", "Concat", "Conv", "ReduceMean", "constant"]))
        first = data.draw(st.sampled_from(values))
        name = f"v{number}"
        if kind == "Transpose":
            order = [0, *(1 + axis for axis in data.draw(st.permutations(range(3))))]
            nodes.append(node("Transpose", first, name, perm=order))
        elif kind == "Relu":
            nodes.append(node("Relu", first, name))
        elif kind == "Conv":
            nodes.append(node("Conv", f"{first} w", name))
        elif kind == "constant":
            nodes.append(node("Mul", f"k {first}", name))
        elif kind == "ReduceMean":
            nodes += [node("ReduceMean", f"{first} axes", f"m{number}"), node("Sub", f"{first} m{number}", name)]
        elif kind == "Concat":
            axis = data.draw(st.integers(1, 3))
            nodes += [
                node("Concat", f"{first} {data.draw(st.sampled_from(values))}", f"k{number}", axis=axis),
                node("Split", f"k{number}", f"{name} u{number}", axis=axis, num_outputs=2),
            ]
        else:
            nodes.append(node("Add", f"{first} {data.draw(st.sampled_from(values))}", name))
        values.append(name)
    outputs = data.draw(st.lists(st.sampled_from(values[2:]), min_size=1, max_size=3, unique=True))
    read = {value for each in nodes for value in each.input}
    constants = {"w": random(3, 3, 1, 1), "k": random(3, 1), "axes": np.array([1, 3])}
    shape = [2, 3, 3, 3]
    proto = network(
        nodes,
        {name: shape for name in ("x", "z") if name in read},
        outputs,
        {name: array for name, array in constants.items() if name in read},
    )
    before = operators_of(proto)["Transpose"]
    model, _ = rewrite(proto, cancel_transposes)
    assert operators(model)["Transpose"] <= before


def operators_of(proto: onnx.ModelProto) -> dict[str, int]:
    return {name: sum(each.op_type == name for each in proto.graph.node) for name in ("Transpose",)}


BEHIND = {
    "bias": [node("Add", "h channel", "z")],
    "bias and activation": [node("Add", "h channel", "b"), node("Relu", "b", "z")],
    "bounded": [node("Clip", "h low high", "z")],
    "square": [node("Sub", "channel h", "b"), node("Neg", "b", "z")],
    "per position": [node("Mul", "h position", "z")],
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("end", ["reshape", "output"])
def test_what_works_by_element_comes_before_the_transpose_of_a_convolution(name: str, end: str) -> None:
    nodes = [node("Conv", "x w", "c"), node("Transpose", "c", "h", perm=TO_NHWC), *BEHIND[name]]
    if end == "reshape":
        nodes.append(node("Reshape", "z flat", "y"))
    read = {value for each in nodes for value in each.input}
    constants = {key: np.asarray(array) for key, array in CONSTANTS.items() if key in read}
    constants |= {"w": random(5, 3, 1, 1)} | ({"flat": np.array([0, -1])} if end == "reshape" else {})
    proto = network(nodes, {"x": ["N", 3, 4, 6]}, ["y" if end == "reshape" else "z"], constants)
    model, _ = rewrite(proto, cancel_transposes)
    kinds = [each.op_type for each in model.graph]
    assert kinds.index("Transpose") == len(BEHIND[name]) + 1
    assert kinds.count("Transpose") == 1


@pytest.mark.parametrize("pads", [False, True])
def test_the_scaling_of_the_input_comes_behind_its_transpose(pads: bool) -> None:
    nodes = [node("Mul", "x channel", "a"), node("Sub", "a channel", "b"), node("Relu", "b", "c")]
    nodes += [node("Transpose", "c", "t", perm=TO_NCHW)]
    nodes += [node("Pad", "t pads", "p"), node("Conv", "p w", "y")] if pads else [node("Conv", "t w", "y")]
    constants = {**WEIGHTS, "channel": random(5)} | ({"pads": INTS["pads"][[0, 3, 1, 2, 4, 7, 5, 6]]} if pads else {})
    constants |= {"pads": np.array([0, 0, 1, 0, 0, 0, 1, 2])} if pads else {}
    model, _ = rewrite(network(nodes, {"x": SHAPE}, ["y"], constants), cancel_transposes)
    assert model.graph[0].op_type == "Transpose"
    assert operators(model)["Transpose"] == 1


def test_an_input_that_others_read_too_is_not_transposed_twice() -> None:
    nodes = [
        node("Mul", "x channel", "a"),
        node("Transpose", "a", "t", perm=TO_NCHW),
        node("Conv", "t w", "y"),
        node("Reshape", "a flat", "z"),
    ]
    constants = {**WEIGHTS, "channel": random(5), "flat": np.array([0, -1])}
    model, _ = rewrite(network(nodes, {"x": SHAPE}, ["y", "z"], constants), cancel_transposes)
    assert operators(model)["Transpose"] == 1

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.passes.fold_affine import fold_affine
from tests.passes.networks import network, node, operators, random, rewrite

LAYERS = {
    "Conv": (node("Conv", "LAYER_IN w", "LAYER_OUT"), {"w": random(4, 4, 3, 3)}, ["N", 4, 6, 6], (4, 1, 1)),
    "Conv grouped": (
        node("Conv", "LAYER_IN w b", "LAYER_OUT", group=2, strides=[2, 1]),
        {"w": random(4, 2, 3, 3), "b": random(4)},
        ["N", 4, 6, 6],
        (4, 1, 1),
    ),
    "Conv padded": (
        node("Conv", "LAYER_IN w", "LAYER_OUT", pads=[1, 0, 0, 1]),
        {"w": random(4, 4, 3, 3)},
        ["N", 4, 6, 6],
        (4, 1, 1),
    ),
    "Conv same": (
        node("Conv", "LAYER_IN w", "LAYER_OUT", auto_pad="SAME_LOWER"),
        {"w": random(4, 4, 3, 3)},
        ["N", 4, 6, 6],
        (4, 1, 1),
    ),
    "Conv 1d": (node("Conv", "LAYER_IN w", "LAYER_OUT"), {"w": random(4, 4, 3)}, ["N", 4, 6], (4, 1)),
    "ConvTranspose": (
        node("ConvTranspose", "LAYER_IN w", "LAYER_OUT", group=2, strides=[2, 2]),
        {"w": random(4, 2, 3, 3)},
        ["N", 4, 3, 3],
        (4, 1, 1),
    ),
    "Gemm": (
        node("Gemm", "LAYER_IN w b", "LAYER_OUT", transB=1, alpha=0.5, beta=2.0),
        {"w": random(4, 4), "b": random(4)},
        [3, 4],
        (4,),
    ),
    "Gemm without bias": (node("Gemm", "LAYER_IN w", "LAYER_OUT", alpha=2.0), {"w": random(4, 4)}, [3, 4], (4,)),
    "Gemm wide bias": (
        node("Gemm", "LAYER_IN w b", "LAYER_OUT", beta=0.5),
        {"w": random(4, 4), "b": random(3, 1)},
        [3, 4],
        (4,),
    ),
    "MatMul": (node("MatMul", "LAYER_IN w", "LAYER_OUT"), {"w": random(4, 4)}, ["N", 3, 4], (4,)),
    "MatMul batched": (node("MatMul", "LAYER_IN w", "LAYER_OUT"), {"w": random(2, 4, 4)}, [2, 3, 4], (4,)),
}
OPERATORS = ("Mul", "Add", "Sub", "Div", "c - x", "Neg")
WIDTHS = ("scalar", "one", "channel", "full")


def affine_node(kind: str, source: str, constant: str, result: str) -> object:
    if kind == "Neg":
        return node("Neg", source, result)
    if kind == "c - x":
        return node("Sub", f"{constant} {source}", result)
    operands = f"{source} {constant}" if len(result) % 2 or kind in {"Div", "Sub"} else f"{constant} {source}"
    return node(kind, operands, result)


def numbers(width: str, channel_shape: tuple[int, ...], seed: int) -> np.ndarray:
    shapes = {"scalar": (), "one": (1,), "channel": channel_shape, "full": (1, *channel_shape)}
    generator = np.random.default_rng(seed)
    return np.asarray(generator.uniform(0.3, 2, shapes[width]) * generator.choice([-1, 1]), dtype=np.float32)


@settings(max_examples=150)
@given(
    layer=st.sampled_from(sorted(LAYERS)),
    before=st.lists(st.tuples(st.sampled_from(OPERATORS), st.sampled_from(WIDTHS)), max_size=3),
    behind=st.lists(st.tuples(st.sampled_from(OPERATORS), st.sampled_from(WIDTHS)), max_size=3),
)
def test_chains_before_and_behind_a_layer_give_the_same(
    layer: str, before: list[tuple[str, str]], behind: list[tuple[str, str]]
) -> None:
    proto, constants, shape, channel_shape = LAYERS[layer]
    arrays, nodes, value = dict(constants), [], "x"
    for position, chain in enumerate((before, behind)):
        for number, (kind, width) in enumerate(chain):
            name = f"{'pq'[position]}{'v' * (number + 1)}"
            arrays[f"c_{name}"] = numbers(width, channel_shape, seed=number)
            nodes.append(affine_node(kind, value, f"c_{name}", name))
            value = name
        if position == 0:
            copy = type(proto)()
            copy.CopyFrom(proto)
            copy.input[0], copy.output[0], value = value, "layer", "layer"
            copy.name = "layer_node"
            nodes.append(copy)
    model, _ = rewrite(network(nodes, {"x": shape}, [value], arrays), fold_affine)
    left = operators(model)
    if layer != "MatMul batched":
        assert sum(left.values()) <= 2 + len(before)  # whatever is behind goes in (a MatMul keeps the Add of its bias)


@pytest.mark.parametrize("layer", ["Conv", "Conv grouped", "Gemm", "Gemm without bias", "Gemm wide bias"])
def test_everything_before_and_behind_goes_in(layer: str) -> None:
    proto, constants, shape, channel_shape = LAYERS[layer]
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.input[0], copy.output[0], copy.name = "v2", "v3", "layer_node"
    arrays = {**constants, **{f"k{index}": numbers("channel", channel_shape, index) for index in range(4)}}
    nodes = [
        node("Sub", "x k0", "v1"),
        node("Div", "v1 k1", "v2"),
        copy,
        node("Mul", "k2 v3", "v4"),
        node("Add", "k3 v4", "y"),
    ]
    model, refusals = rewrite(network(nodes, {"x": shape}, ["y"], arrays), fold_affine)
    assert operators(model) == {proto.op_type: 1}
    assert not refusals


@pytest.mark.parametrize("layer", ["Conv padded", "Conv same", "ConvTranspose"])
def test_refuses_a_shift_that_the_border_would_not_see(layer: str) -> None:
    proto, constants, shape, channel_shape = LAYERS[layer]
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.input[0], copy.output[0], copy.name = "a", "y", "layer_node"
    arrays = {**constants, "k": numbers("channel", channel_shape, 0)}
    model, (refusal,) = rewrite(network([node("Add", "x k", "a"), copy], {"x": shape}, ["y"], arrays), fold_affine)
    assert refusal.node == "node_a"
    assert operators(model) == {proto.op_type: 1, "Add": 1}
    # A scale alone is exact, zero stays zero.
    model, refusals = rewrite(network([node("Mul", "x k", "a"), copy], {"x": shape}, ["y"], arrays), fold_affine)
    assert operators(model) == {proto.op_type: 1}
    assert not refusals


def test_broadcasting_that_widens_the_input_is_kept() -> None:
    nodes = [node("Mul", "x k", "a"), node("Conv", "a w", "y")]
    constants = {"k": random(1, 3, 1, 1), "w": random(5, 3, 1, 1)}
    model, _ = rewrite(network(nodes, {"x": ["N", 1, 4, 4]}, ["y"], constants), fold_affine)
    assert operators(model) == {"Mul": 1, "Conv": 1}


def test_broadcasting_that_adds_an_axis_is_kept() -> None:
    nodes = [node("Mul", "x k", "a"), node("Conv", "a w", "y")]
    constants = {"k": random(1, 1, 1, 1), "w": random(5, 3, 1, 1)}
    model, _ = rewrite(network(nodes, {"x": [3, 4, 4]}, ["y"], constants), fold_affine)
    assert operators(model) == {"Mul": 1, "Conv": 1}


def test_broadcasting_that_widens_the_output_is_kept() -> None:
    nodes = [node("Conv", "x w", "a"), node("Mul", "a k", "y")]
    constants = {"k": random(1, 3, 1, 1), "w": random(1, 3, 1, 1)}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants), fold_affine)
    assert operators(model) == {"Mul": 1, "Conv": 1}


def test_constants_that_differ_by_position_are_kept() -> None:
    nodes = [node("Conv", "x w", "a"), node("Mul", "a k", "y")]
    constants = {"k": random(1, 1, 4, 4), "w": random(5, 3, 1, 1)}
    model, _ = rewrite(network(nodes, {"x": ["N", 3, 4, 4]}, ["y"], constants), fold_affine)
    assert operators(model) == {"Mul": 1, "Conv": 1}


def test_weights_that_would_overflow_are_kept() -> None:
    nodes = [node("Conv", "x w", "a"), node("Mul", "a k", "y")]
    constants = {"k": np.asarray(3e38, np.float32), "w": np.full((1, 1, 1, 1), 1e-3, np.float32)}
    proto = network(nodes, {"x": ["N", 1, 2, 2]}, ["y"], constants)
    model, _ = rewrite(proto, fold_affine)
    assert operators(model) == {"Conv": 1}
    constants["w"] = np.full((1, 1, 1, 1), 1e3, np.float32)
    constants["k2"] = np.asarray(1e-38, np.float32)
    nodes = [node("Mul", "x k2", "s"), node("Relu", "s", "r"), node("Conv", "r w", "a"), node("Mul", "a k", "y")]
    model, _ = rewrite(network(nodes, {"x": ["N", 1, 2, 2]}, ["y"], constants), fold_affine)
    assert operators(model) == {"Mul": 2, "Relu": 1, "Conv": 1}


CHAIN_OPERANDS = {
    "number": (),
    "channels": (4, 1, 1),
    "positions": (1, 5, 6),
    "all": (1, 4, 5, 6),
    "widening": (2, 4, 5, 6),
}


@settings(max_examples=60)
@given(
    chain=st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul", "Div", "Neg", "c -"]), st.sampled_from(sorted(CHAIN_OPERANDS))),
        min_size=1,
        max_size=5,
    ),
    dynamic=st.booleans(),
)
def test_chains_between_other_operators_are_merged(chain: list[tuple[str, str]], dynamic: bool) -> None:
    nodes, constants, value = [node("Relu", "x", "r")], {}, "r"
    for number, (operator, operand) in enumerate(chain):
        if operator == "Neg":
            nodes.append(node("Neg", value, f"v{number}"))
        else:
            constants[f"c{number}"] = np.asarray(random(*CHAIN_OPERANDS[operand], seed=number) + 3, dtype=np.float32)
            operands = f"c{number} {value}" if operator == "c -" else f"{value} c{number}"
            nodes.append(node("Sub" if operator == "c -" else operator, operands, f"v{number}"))
        value = f"v{number}"
    nodes.append(node("Softplus", value, "y"))
    shape = ["N", 4, 5, 6] if dynamic else [1, 4, 5, 6]
    model, _ = rewrite(network(nodes, {"x": shape}, ["y"], constants), fold_affine)
    kinds = {operand for operator, operand in chain if operator != "Neg"}
    if len(kinds - {"number"}) <= 1 and "widening" not in kinds:
        assert len(model.graph) <= 4
    assert len(model.graph) <= len(nodes)


def test_a_batchnorm_written_out_before_an_activation_is_a_product_and_a_sum() -> None:
    nodes = [
        node("Concat", "x x", "c", axis=1),
        node("Sub", "c mean", "d"),
        node("Mul", "d scale", "e"),
        node("Add", "e beta", "b"),
        node("Relu", "b", "y"),
    ]
    constants = {name: random(4, 1, 1, seed=number) for number, name in enumerate(("mean", "scale", "beta"))}
    model, refusals = rewrite(network(nodes, {"x": ["N", 2, 3, 3]}, ["y"], constants), fold_affine)
    assert [each.op_type for each in model.graph] == ["Concat", "Mul", "Add", "Relu"]
    assert model.graph[2].outputs[0].name == "b"
    assert not refusals


def test_what_several_read_is_not_merged() -> None:
    nodes = [node("Mul", "x two", "a"), node("Mul", "a two", "b"), node("Relu", "a", "z"), node("Relu", "b", "y")]
    model, _ = rewrite(network(nodes, {"x": ["N", 3]}, ["y", "z"], {"two": np.float32(2)}), fold_affine)
    assert operators(model)["Mul"] == 2

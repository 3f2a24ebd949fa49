import numpy as np
import onnx_ir as ir

from narrowgauge.importers.layer_names import name_after_layers
from narrowgauge.importers.onnx import load
from tests.passes.networks import assert_same, network, node, random, run


def named(outputs: tuple[str, ...] = ()) -> ir.Model:
    """Name a network of two layers, `first` (with its weights in another layout) and `second`, and a shared `scale`."""
    nodes = [
        node("Transpose", "x", "a1", perm=[0, 3, 1, 2]),
        node("Transpose", "w", "w1", perm=[3, 2, 0, 1]),
        node("Conv", "a1 w1", "a2"),
        node("Transpose", "a2", "a3", perm=[0, 2, 3, 1]),
        node("Mul", "a3 s", "b1"),
        node("Relu", "b1", "b2"),
        node("Mul", "b2 s", "c1"),
        node("Neg", "c1", "y"),
    ]
    proto = network(nodes, {"x": ["N", 4, 4, 3]}, ["y"], {"w": random(1, 1, 3, 5), "s": random(5)})
    before = run(proto)
    model = load(proto, simplify=False).model
    paths = ["first", "first", "first", "first", "outer/second", "outer/second", "outer", ""]
    layers = dict(zip(model.graph, paths, strict=True))
    weights = {model.graph.initializers["w"]: "kernel", model.graph.initializers["s"]: "scale"}
    name_after_layers(model, layers, weights, outputs)
    assert_same(before, run(model))
    return model


def test_a_layer_names_the_value_that_it_hands_over() -> None:
    names = [value.name for each in named().graph for value in each.outputs]
    assert names == [
        "first/Transpose",
        "first/kernel",
        "first",  # what is transposed last, since the transposes will go
        "first/Transpose_1",
        "outer/second/Mul",
        "outer/second",
        "outer",
        "Neg",
    ]


def test_weights_have_the_name_of_the_layer_that_reads_them_first() -> None:
    assert set(named().graph.initializers) == {"first/kernel_stored", "outer/second/scale"}


def test_inputs_keep_their_names_and_outputs_get_those_wanted() -> None:
    graph = named(("answer",)).graph
    assert graph.inputs[0].name == "x"
    assert graph.outputs[0].name == "answer"
    assert graph[-1].name == "answer"


def test_names_are_unique_where_layers_want_the_same() -> None:
    nodes = [node("Relu", "x", "a"), node("Abs", "a", "b"), node("Relu", "b", "y")]
    model = load(network(nodes, {"x": ["N", 3]}, ["y"]), simplify=False).model
    name_after_layers(model, dict(zip(model.graph, ["x", "", "x"], strict=True)), {})
    names = [value.name for each in model.graph for value in each.outputs]
    assert len({*names, "x"}) == 4


def test_values_may_take_names_that_others_had() -> None:
    model = load(network([node("Relu", "x", "b"), node("Abs", "b", "a")], {"x": ["N", 3]}, ["a"]), simplify=False).model
    name_after_layers(model, dict(zip(model.graph, ["a", "b"], strict=True)), {})
    assert [value.name for each in model.graph for value in each.outputs] == ["a", "b"]
    assert np.isfinite(run(model)[0]).all()

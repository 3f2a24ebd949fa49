"""A Conv over patches, flattened to a sequence, is a product of patches and weights."""

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

from narrowgauge.demo.networks import network_path
from narrowgauge.importers.onnx import load
from narrowgauge.passes import simplify
from narrowgauge.passes.patches_to_matmul import patches_to_matmul
from tests.passes.networks import assert_same, network, node, operators, random, rewrite, run

# name -> what makes a sequence [N, 15, 6] or an image [N, 5, 3, 6] of the Conv's output c, [N, 6, 5, 3], and constants
FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "flatten(2).transpose(1, 2)": (
        [node("Reshape", "c s", "f"), node("Transpose", "f", "t", perm=[0, 2, 1])],
        {"s": np.array([0, 6, -1])},
    ),
    "reshape to known sizes": (
        [node("Reshape", "c s", "f"), node("Transpose", "f", "t", perm=[0, 2, 1])],
        {"s": np.array([-1, 6, 15])},
    ),
    "permute(0, 2, 3, 1)": ([node("Transpose", "c", "t", perm=[0, 2, 3, 1])], {}),
    "permute, then flatten(1, 2)": (
        [node("Transpose", "c", "p", perm=[0, 2, 3, 1]), node("Reshape", "p s", "t")],
        {"s": np.array([-1, 15, 6])},
    ),
    "two reshapes": (
        [
            node("Reshape", "c s", "f"),
            node("Unsqueeze", "f a", "u"),
            node("Transpose", "u", "t", perm=[0, 2, 3, 1]),
        ],
        {"s": np.array([0, 0, -1]), "a": np.array([2])},
    ),
}
PADDING: dict[str, dict[str, object]] = {
    "none": {},
    "zeros": {"pads": [0, 0, 0, 0], "auto_pad": "NOTSET"},
    "valid": {"auto_pad": "VALID"},
    "same upper": {"auto_pad": "SAME_UPPER"},
    "same lower": {"auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize(
    ("form", "padding", "bias", "batch", "given"),
    list(product(FORMS, PADDING, (False, True), ("N", 1, 3), (False, True))),
)
def test_patches_of_images(form: str, padding: str, bias: bool, batch: int | str, given: bool) -> None:
    nodes, constants = FORMS[form]
    attributes = {"strides": [4, 2], **PADDING[padding]}
    attributes |= {"kernel_shape": [4, 2], "dilations": [1, 1], "group": 1} if given else {}
    constants = constants | {"w": random(6, 3, 4, 2), "k": random(6)} | ({"b": random(6)} if bias else {})
    conv = node("Conv", "x w b" if bias else "x w", "c", **attributes)
    nodes = [conv, *nodes, node("Mul", "t k", "y")]
    model, refusals = rewrite(network(nodes, {"x": [batch, 3, 20, 6]}, ["y"], constants), patches_to_matmul)
    count = operators(model)
    assert (count["Conv"], count["MatMul"], count["Add"]) == (0, 1, int(bias))
    assert not refusals
    weights = model.graph.initializers["w"]  # under its own name
    assert weights.shape == (24, 6)
    assert any(value.name == "t" for each in model.graph for value in each.outputs)
    assert any(each.name == "node_c" and each.op_type == "MatMul" for each in model.graph)
    assert all(len(value.shape) <= 4 for each in model.graph for value in each.outputs)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("bias", [False, True])
def test_the_sequence_is_an_output(form: str, bias: bool) -> None:
    nodes, constants = FORMS[form]
    constants = constants | {"w": random(6, 2, 3, 3)} | ({"b": random(6)} if bias else {})
    nodes = [node("Conv", "x w b" if bias else "x w", "c", strides=[3, 3]), *nodes]
    model, _ = rewrite(network(nodes, {"x": ["N", 2, 15, 9]}, ["t"], constants), patches_to_matmul)
    assert operators(model)["Conv"] == 0


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [((4,), (12,)), ((4,), (4,)), ((1, 3), (5, 6)), ((3, 1), (6, 5)), ((2, 3, 4), (4, 9, 8)), ((4, 2), (4, 2))],
)
@pytest.mark.parametrize("flat", [False, True])
def test_any_number_of_axes(kernel: tuple[int, ...], sizes: tuple[int, ...], channels: int, flat: bool) -> None:
    axes = 3 if flat else 2 + len(kernel)
    nodes = [
        node("Conv", "x w b", "c", strides=kernel),
        *([node("Reshape", "c s", "f")] if flat else []),
        node("Transpose", "f" if flat else "c", "y", perm=[0, *range(2, axes), 1]),
    ]
    constants = {"w": random(5, channels, *kernel), "b": random(5)} | ({"s": np.array([0, 5, -1])} if flat else {})
    model, refusals = rewrite(network(nodes, {"x": ["N", channels, *sizes]}, ["y"], constants), patches_to_matmul)
    assert (operators(model)["Conv"], operators(model)["MatMul"]) == (0, 1)
    assert not refusals


def sequence(*before: onnx.NodeProto, **attributes: object) -> list[onnx.NodeProto]:
    conv = node("Conv", "x w", "c", **{"strides": [2, 2], **attributes})
    return [*before, conv, node("Reshape", "c s", "f"), node("Transpose", "f", "y", perm=[0, 2, 1])]


REFUSED: dict[str, tuple[list[onnx.NodeProto], list[int | str], tuple[int, ...], str]] = {
    "groups": (sequence(group=2), ["N", 4, 6, 6], (6, 2, 2, 2), "groups"),
    "dilation": (sequence(dilations=[2, 1]), ["N", 4, 6, 6], (6, 4, 2, 2), "dilated"),
    "padding": (sequence(pads=[1, 1, 1, 1]), ["N", 4, 6, 6], (6, 4, 2, 2), "padded"),
    "same padding": (sequence(auto_pad="SAME_UPPER"), ["N", 4, 5, 6], (6, 4, 2, 2), "5 x 6"),
    "left over": (sequence(), ["N", 4, 6, 7], (6, 4, 2, 2), "6 x 7"),
    "dynamic": (sequence(), ["N", 4, "H", 6], (6, 4, 2, 2), "not fixed"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refuses(name: str) -> None:
    nodes, shape, weights, reason = REFUSED[name]
    proto = network(nodes, {"x": shape}, ["y"], {"w": random(*weights), "s": np.array([0, 6, -1])})
    model, (refusal,) = rewrite(proto, patches_to_matmul)
    assert (refusal.node, refusal.operator) == ("node_c", "Conv")
    assert reason in refusal.reason
    assert operators(model) == {"Conv": 1, "Reshape": 1, "Transpose": 1}


def test_refuses_weights_that_are_computed() -> None:
    proto = network(sequence(), {"x": ["N", 4, 6, 6], "w": [6, 4, 2, 2]}, ["y"], {"s": np.array([0, 6, -1])})
    model, (refusal,) = rewrite(proto, patches_to_matmul)
    assert "constant" in refusal.reason
    assert operators(model)["Conv"] == 1


def test_refuses_to_mix_patches_and_batch() -> None:
    nodes = sequence()
    constants = {"w": random(6, 4, 2, 2), "s": np.array([-1, 6, 3])}  # [3 N, 6, 3] of [N, 6, 3, 3]
    model, (refusal,) = rewrite(network(nodes, {"x": ["N", 4, 6, 6]}, ["y"], constants), patches_to_matmul)
    assert "batch" in refusal.reason
    assert operators(model)["Conv"] == 1


OTHERS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], list[str]]] = {
    "a pixel": ([node("Conv", "x w", "c"), node("Transpose", "c", "y", perm=[0, 2, 3, 1])], (6, 4, 1, 1), ["y"]),
    "overlap": (
        [node("Conv", "x w", "c", strides=[2, 2]), node("Transpose", "c", "y", perm=[0, 2, 3, 1])],
        (6, 4, 3, 3),
        ["y"],
    ),
    "image": ([node("Conv", "x w", "c", strides=[2, 2]), node("Relu", "c", "y")], (6, 4, 2, 2), ["y"]),
    "other order": (
        [node("Conv", "x w", "c", strides=[2, 2]), node("Transpose", "c", "y", perm=[0, 3, 2, 1])],
        (6, 4, 2, 2),
        ["y"],
    ),
    "two readers": (
        [
            node("Conv", "x w", "c", strides=[2, 2]),
            node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
            node("Relu", "c", "z"),
        ],
        (6, 4, 2, 2),
        ["y", "z"],
    ),
    "an output": (
        [node("Conv", "x w", "c", strides=[2, 2]), node("Transpose", "c", "y", perm=[0, 2, 3, 1])],
        (6, 4, 2, 2),
        ["c", "y"],
    ),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_convolutions_stay_and_are_not_reported(name: str) -> None:
    nodes, weights, outputs = OTHERS[name]
    model, refusals = rewrite(
        network(nodes, {"x": ["N", 4, 6, 6]}, outputs, {"w": random(*weights)}), patches_to_matmul
    )
    assert operators(model)["Conv"] == 1
    assert not refusals


def test_weights_that_another_layer_reads_stay_as_they_are() -> None:
    nodes = [*sequence(), node("Conv", "x w", "z", strides=[1, 1])]
    constants = {"w": random(6, 4, 2, 2), "s": np.array([0, 6, -1])}
    model, _ = rewrite(network(nodes, {"x": ["N", 4, 6, 6]}, ["y", "z"], constants), patches_to_matmul)
    assert (operators(model)["Conv"], operators(model)["MatMul"]) == (1, 1)
    assert model.graph.initializers["w"].shape == (6, 4, 2, 2)


def test_channels_last_input_needs_no_transpose_to_and_fro() -> None:
    nodes = [
        node("Transpose", "x", "i", perm=[0, 3, 1, 2]),
        node("Conv", "i w", "c", strides=[2, 2]),
        node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
    ]
    model, _ = rewrite(network(nodes, {"x": ["N", 6, 6, 4]}, ["y"], {"w": random(6, 4, 2, 2)}), patches_to_matmul)
    assert operators(model) == {"Reshape": 2, "Transpose": 1, "MatMul": 1}


def test_stem_with_normalised_channels() -> None:
    """The stem of a ConvNeXt: patches, then LayerNormalization in channels-last, then a convolution again."""
    nodes = [
        node("Conv", "x w b", "c", strides=[4, 4]),
        node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "t g h", "l", axis=-1),
        node("Transpose", "l", "u", perm=[0, 3, 1, 2]),
        node("Conv", "u d", "y", group=6, pads=[1, 1, 1, 1]),
    ]
    constants = {
        "w": random(6, 3, 4, 4),
        "b": random(6),
        "g": random(6),
        "h": random(6, seed=1),
        "d": random(6, 1, 3, 3),
    }
    model, refusals = rewrite(network(nodes, {"x": ["N", 3, 16, 12]}, ["y"], constants), simplify)
    assert (operators(model)["Conv"], operators(model)["MatMul"], operators(model)["LayerNormalization"]) == (1, 1, 1)
    assert not refusals


def test_exported_shape_computation_and_batch_norm_are_seen_through() -> None:
    """What torch.onnx.export writes for `x.flatten(2).transpose(1, 2)` behind a Conv and BatchNorm, dynamic batch."""
    nodes = [
        node("Conv", "x w", "c", strides=[2, 2]),
        node("BatchNormalization", "c g h m v", "n"),
        node("Shape", "n", "size"),
        node("Slice", "size zero two zero", "front"),
        node("Concat", "front rest", "target", axis=0),
        node("Reshape", "n target", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Concat", "t t", "y", axis=1),
    ]
    constants = dict(zip("ghmv", np.abs(random(4, 6)) + 0.1, strict=True))
    constants |= {"w": random(6, 4, 2, 2), "zero": np.array([0]), "two": np.array([2]), "rest": np.array([-1])}
    model, refusals = rewrite(network(nodes, {"x": ["N", 4, 6, 8]}, ["y"], constants), simplify)
    count = operators(model)
    assert (count["Conv"], count["MatMul"], count["Add"], count["BatchNormalization"]) == (0, 1, 1, 0)
    assert not refusals


def test_demo_transformer() -> None:
    path = network_path("digits_vit")
    imported = load(path)
    assert not any(each.op_type == "Conv" for each in imported.model.graph)
    assert_same(run(str(path)), run(imported.model))


def test_zoo_transformer(zoo: Path) -> None:
    path = zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx"
    imported = load(path)
    assert not any(each.op_type == "Conv" for each in imported.model.graph)
    assert_same(run(str(path)), run(imported.model))

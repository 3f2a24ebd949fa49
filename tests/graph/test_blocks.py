"""Blocks of transformers are found by structure: pre-norm, post-norm, parallel, windows, decoders; nothing else."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.graph.block_roles import Part, Role, block_roles
from narrowgauge.graph.blocks import find_blocks
from narrowgauge.importers.onnx import load
from tests.graph.transformers import (
    SIZE,
    TOKENS,
    Writer,
    gated,
    normed_behind,
    parallel,
    parallel_sum,
    post_norm,
    pre_norm,
    transformer,
)
from tests.planning.networks import network, normal


def kinds(model: ir.Model) -> list[list[str]]:
    return [[branch.kind for branch in block.branches] for block in find_blocks(model)]


def writers(model: ir.Model, words: str) -> list[str]:
    """Operators that write the values of a role, in the network's order."""
    roles = block_roles(model)
    return [
        node.op_type
        for node in model.graph
        for value in node.outputs
        if value.name in roles and roles[str(value.name)].words == words
    ]


@pytest.mark.parametrize("block", [pre_norm, gated, normed_behind])
def test_an_attention_and_an_mlp_are_a_block(block) -> None:
    assert kinds(transformer(block)) == [["attention", "MLP"]] * 3


@pytest.mark.parametrize("move", ["Expand(x, whole)", "Tile(x, once)", "Cast<to = 1>(x)", "Dropout(x)"])
def test_a_stream_that_is_moved_beside_its_branch_is_the_same(move: str) -> None:
    writer = Writer()
    writer.weights |= {"whole": np.array([1, TOKENS, SIZE], np.int64), "once": np.array([1, 1, 1], np.int64)}
    x = writer.value(f"Add({writer.value(move)}, {writer.attention(writer.norm('x'))})")
    assert kinds(writer.model(writer.value(f"Add({x}, {writer.perceptron(writer.norm(x))})"))) == [["attention", "MLP"]]


def test_post_norm_with_a_mask() -> None:
    model = transformer(post_norm, masked=True)
    assert kinds(model) == [["attention", "MLP"]] * 3
    for number in range(3):
        assert writers(model, f"block {number}, LayerNorm after attention") == ["LayerNormalization"]
        assert writers(model, f"block {number}, LayerNorm after MLP") == ["LayerNormalization"]
    assert writers(model, "final LayerNorm") == []


def test_parallel_branches_are_one_block() -> None:
    assert kinds(transformer(parallel)) == [["attention", "MLP"]] * 3
    model = transformer(parallel_sum)
    assert kinds(model) == [["attention and MLP"]] * 3
    assert writers(model, "block 1, MLP hidden") == ["Gelu"]
    assert writers(model, "block 1, attention and MLP output") == ["Add"]
    assert writers(model, "block 1, LayerNorm before attention and MLP") == ["LayerNormalization"]


def test_one_block() -> None:
    assert kinds(transformer(pre_norm, depth=1)) == [["attention", "MLP"]]


def test_every_value_of_a_block_has_its_role() -> None:
    model = transformer(pre_norm)
    found = {words: writers(model, f"block 1, {words}") for words in (
        "LayerNorm before attention", "q", "k", "v", "attention scores", "attention (softmax)", "attention context",
        "attention output", "residual stream after attention", "LayerNorm before MLP",
        "MLP hidden before the activation", "MLP hidden", "MLP output", "residual stream after MLP",
    )}  # fmt: skip
    assert found == {
        "LayerNorm before attention": ["LayerNormalization"],
        "q": ["MatMul", "Add", "Reshape", "Transpose"],
        "k": ["MatMul", "Add", "Reshape", "Transpose"],
        "v": ["MatMul", "Add", "Reshape", "Transpose"],
        "attention scores": ["MatMul", "Mul"],
        "attention (softmax)": ["Softmax"],
        "attention context": ["MatMul", "Transpose", "Reshape"],
        "attention output": ["MatMul", "Add"],
        "residual stream after attention": ["Add"],
        "LayerNorm before MLP": ["LayerNormalization"],
        "MLP hidden before the activation": ["MatMul", "Add"],
        "MLP hidden": ["Gelu"],
        "MLP output": ["MatMul", "Add"],
        "residual stream after MLP": ["Add"],
    }


def test_a_decoder_with_attention_to_an_encoder() -> None:
    """Self-attention, attention to the encoder, MLP: three branches a block, behind blocks of two."""
    writer = Writer()
    encoded = pre_norm(writer, pre_norm(writer, "x"))
    y = "y"
    for _ in range(2):
        y = writer.value(f"Add({y}, {writer.attention(writer.norm(y))})")
        y = writer.value(f"Add({y}, {writer.attention(writer.norm(y), memory=encoded)})")
        y = writer.value(f"Add({y}, {writer.perceptron(writer.norm(y))})")
    model = writer.model(y, f"float[n, {TOKENS}, {SIZE}] x, float[n, {TOKENS}, {SIZE}] y")
    assert kinds(model) == [["attention", "MLP"]] * 2 + [["attention", "attention", "MLP"]] * 2
    assert len(writers(model, "block 2, k")) == 8


def test_windows_and_a_stage_between() -> None:
    """Attention over windows of a picture, and a layer that narrows the stream between two stages, as Swin has them."""
    writer = Writer()
    shapes = {"windows": [-1, 2, SIZE], "tokens": [-1, TOKENS, SIZE], "apart": [0, 2, 2, SIZE // 2],
              "joined": [0, 2, SIZE]}  # fmt: skip
    writer.weights |= {name: np.array(sizes, np.int64) for name, sizes in shapes.items()}
    x = "x"
    for _ in range(2):
        for _ in range(2):
            windows = writer.value(f"Reshape({writer.norm(x)}, windows)")
            back = writer.value(f"Reshape({writer.attention(windows, mask=writer.weight(2, 2, 2))}, tokens)")
            x = writer.value(f"Add({x}, {back})")
            x = writer.value(f"Add({x}, {writer.perceptron(writer.norm(x))})")
        x = writer.linear(writer.norm(x), SIZE, SIZE)
    model = writer.model(x)
    assert kinds(model) == [["attention", "MLP"]] * 4


def test_a_packed_projection_is_all_three() -> None:
    writer = Writer()
    writer.weights |= {"three": np.array([0, TOKENS, 3, 2, SIZE // 2], np.int64),
                       **{f"i{number}": np.array(number, np.int64) for number in range(3)}}  # fmt: skip
    packed = writer.value(f"Reshape({writer.linear(writer.norm('x'), SIZE, 3 * SIZE)}, three)")
    packed = writer.value(f"Transpose<perm = [2, 0, 3, 1, 4]>({packed})")
    q, k, v = (writer.value(f"Gather<axis = 0>({packed}, i{number})") for number in range(3))
    scores = writer.value(f"MatMul({q}, {writer.value(f'Transpose<perm = [0, 1, 3, 2]>({k})')})")
    context = writer.value(f"MatMul({writer.value(f'Softmax<axis = -1>({scores})')}, {v})")
    together = writer.value(f"Reshape({writer.value(f'Transpose<perm = [0, 2, 1, 3]>({context})')}, joined)")
    x = writer.value(f"Add({writer.linear(together, SIZE, SIZE)}, x)")
    model = writer.model(x)
    assert kinds(model) == [["attention"]]
    assert writers(model, "block 0, q/k/v") == ["MatMul", "Add", "Reshape", "Transpose"]
    assert [writers(model, f"block 0, {letter}") for letter in "qkv"] == [
        ["Gather"], ["Gather", "Transpose"], ["Gather"],
    ]  # fmt: skip


def test_keys_that_come_first_are_keys() -> None:
    """Scores as keys times queries, turned before the Softmax."""
    writer = Writer()
    q, k, v = (writer.linear("x", SIZE, SIZE) for _ in range(3))
    product = writer.value(f"MatMul({k}, {writer.value(f'Transpose<perm = [0, 2, 1]>({q})')})")
    scores = writer.value(f"Transpose<perm = [0, 2, 1]>({product})")
    context = writer.value(f"MatMul({writer.value(f'Softmax<axis = -1>({scores})')}, {v})")
    model = writer.model(writer.value(f"Add({writer.linear(context, SIZE, SIZE)}, x)"))
    roles = block_roles(model)
    assert [roles[name].words for name in (q, k, v)] == ["block 0, q", "block 0, k", "block 0, v"]


def test_a_residual_network_of_convolutions_has_no_blocks() -> None:
    model = network(
        "float[n, 8, 6, 6] x", "float[n, 8, 6, 6] y",
        "a = Conv<pads = [1, 1, 1, 1]>(x, w1)  b = Relu(a)  c = Conv<pads = [1, 1, 1, 1]>(b, w2)  s = Add(c, x)  "
        "r = Relu(s)  d = Conv(r, w3)  e = Clip(d)  f = Conv<group = 8, pads = [1, 1, 1, 1]>(e, w4)  g = Clip(f)  "
        "h = Conv(g, w5)  y = Add(r, h)",
        w1=normal(8, 8, 3, 3), w2=normal(8, 8, 3, 3), w3=normal(8, 8, 1, 1), w4=normal(8, 1, 3, 3),
        w5=normal(8, 8, 1, 1),
    )  # fmt: skip
    assert find_blocks(model) == ()
    assert block_roles(model) == {}


def test_an_inverted_residual_beside_a_transformer_is_no_mlp() -> None:
    writer = Writer()
    writer.weights |= {"k1": normal(8, 8, 1, 1), "k2": normal(8, 1, 3, 3), "k3": normal(8, 8, 1, 1),
                       "flat": np.array([0, TOKENS, SIZE], np.int64)}  # fmt: skip
    wide = writer.value("Relu(" + writer.value("Conv(x, k1)") + ")")
    deep = writer.value("Relu(" + writer.value(f"Conv<group = 8, pads = [1, 1, 1, 1]>({wide}, k2)") + ")")
    x = writer.value(f"Add(x, {writer.value(f'Conv({deep}, k3)')})")
    x = pre_norm(writer, writer.value(f"Reshape({x}, flat)"))
    model = writer.model(x, "float[n, 8, 2, 4] x")
    assert kinds(model) == [["attention", "MLP"]]
    assert writers(model, "stem")
    assert not writers(model, "patch embedding")


def test_a_sum_around_all_blocks_is_none() -> None:
    writer = Writer()
    x = pre_norm(writer, pre_norm(writer, "x"))
    model = writer.model(writer.value(f"Add(x, {writer.linear(x, SIZE, SIZE)})"))
    assert kinds(model) == [["attention", "MLP"]] * 2


def test_a_squeeze_and_a_softmax_at_the_end_are_no_attention() -> None:
    model = network(
        "float[n, 8] x", "float[n, 4] y",
        "a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  s = Add(x, c)  d = MatMul(s, w3)  y = Softmax(d)",
        w1=normal(8, 16), w2=normal(16, 8), w3=normal(8, 4),
    )  # fmt: skip
    assert find_blocks(model) == ()


def test_channels_have_words() -> None:
    assert Role(part=Part.HIDDEN, block=7).channel_words(417) == "block 7, MLP unit 417"
    assert Role(part=Part.MLP_OUTPUT, block=7).channel_words(41) == "block 7, residual channel 41"
    assert Role(part=Part.STREAM, detail="residual stream before block 0").channel_words(3) == "residual channel 3"
    assert Role(part=Part.PROJECTED, block=0, detail="q/k").channel_words(5) == "block 0, channel 5 of q/k"


@pytest.mark.parametrize("simplify", [True, False])
def test_the_vision_transformer(zoo: Path, simplify: bool) -> None:
    path = zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx"
    model = load(path, simplify=simplify).model
    assert kinds(model) == [["attention", "MLP"]] * 12
    if simplify:
        roles = block_roles(model)
        assert roles["gelu_7"].channel_words(417) == "block 7, MLP unit 417"
        assert roles["linear_31"].channel_words(41) == "block 7, residual channel 41"
        assert writers(model, "final LayerNorm") == ["LayerNormalization"]
        assert writers(model, "patch embedding") == ["MatMul", "Add", "Concat"]


@pytest.mark.parametrize(
    "path", ["mobilenet_v2/mobilenet_v2_1.0_224.onnx", "cifar_resnet/resnet20.onnx", "dtln/model_1.onnx"]
)
def test_other_networks_have_no_blocks(zoo: Path, path: str) -> None:
    assert block_roles(load(zoo / "models" / path).model) == {}

"""Attention of a sample before and after quantization, beside weights worked out by hand."""

from __future__ import annotations

import base64

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.attention_maps import (
    AttentionMaps,
    attention_maps,
    attention_names,
    attentions,
    describe_attention,
)
from narrowgauge.analysis.attention_pictures import AttentionPicture
from narrowgauge.analysis.probability_loss import round_probabilities
from narrowgauge.analysis.records import AttentionHead
from narrowgauge.core.encoding import AnyEncoding, NormalizedEncoding
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.plan import Plan
from narrowgauge.graph.block_roles import block_roles
from tests.analysis.attention import WIDTH, attending, weights_of
from tests.analysis.exact import batched
from tests.graph.transformers import SIZE, TOKENS, Writer, pre_norm
from tests.planning.networks import network, normal

SHARES = NormalizedEncoding(type=integer_type("uint4"))
NOTHING = Plan(target="t", encodings={})
Array = np.ndarray


def maps_of(model: ir.Model, feed: dict[str, Array], encoding: AnyEncoding = SHARES) -> AttentionMaps:
    found = attention_maps(model, model, Plan(target="t", encodings={"p": encoding}), batched(model, feed)[0])
    assert found is not None
    return found


def moved(first: Array, second: Array) -> list[float]:
    """Total variation distance of each head, `(windows, heads, queries, keys)` given."""
    return (np.abs(first - second).sum(axis=-1) / 2).mean(axis=(0, 2)).tolist()


def numbers(picture: AttentionPicture) -> tuple[Array, Array]:
    """Weights and changes that a picture holds, `(rows, columns)` each."""
    shape = picture.rows, picture.columns
    levels = np.frombuffer(base64.b64decode(picture.weights), np.uint8).reshape(shape)
    changes = np.frombuffer(base64.b64decode(picture.changes), np.int8).reshape(shape)
    return picture.highest * (levels / 255) ** 2, picture.furthest * changes / 127


def assert_shows(picture: AttentionPicture, first: Array, second: Array) -> None:
    weights, changes = numbers(picture)
    np.testing.assert_allclose(weights, first, atol=picture.highest / 255)
    np.testing.assert_allclose(changes, second - first, atol=picture.furthest / 250)


# --- which nodes are attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behind", "reader"),
    [
        ("a = MatMul(p, vh)", "MatMul"),
        ("d = Dropout(p) i = Identity(d) c = Cast<to = 1>(i) a = MatMul(c, vh)", "MatMul"),
        ("r = Reshape(p, whole) a = MatMul(r, vh)", "Reshape"),
        ("m = Neg(p) a = MatMul(p, vh)", "MatMul"),
    ],
)
def test_weights_are_found_through_what_hands_them_on(behind: str, reader: str) -> None:
    model = attending(behind, whole=np.array([0, 0, 0, 0]))
    (found,) = attentions(model)
    assert (found.node.outputs[0].name, found.reader.op_type) == ("p", reader)
    assert found.node is list(model.graph)[found.depth]


@pytest.mark.parametrize(
    "behind",
    ["a = MatMul(vh, p)", "a = MatMul(p, table)", "a = Neg(p)", "m = Neg(p) a = MatMul(m, vh)", "a = Identity(p)"],
)
def test_other_softmaxes_are_none(behind: str) -> None:
    assert attentions(attending(behind, table=normal(5, 4))) == ()


@pytest.mark.parametrize(("axis", "count"), [(-1, 1), (2, 1), (1, 0)])
def test_weights_lie_along_the_last_axis(axis: int, count: int) -> None:
    model = network("float[n, 4, 4] x", "float[n, 4, 4] y", f"p = Softmax<axis = {axis}>(x) y = MatMul(p, x)")
    assert len(attentions(model)) == count


# --- what is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_what_moves_is_the_mean_distance_over_the_queries(heads: int) -> None:
    tokens = normal(1, 5, WIDTH)
    model = attending(heads=heads)
    found = maps_of(model, {"t": tokens})
    first = weights_of(tokens, heads)
    second = round_probabilities(first, SHARES)[1]
    assert [one.moved for one in found.heads] == pytest.approx(moved(first, second), rel=1e-3)
    assert [(one.attention, one.head, one.value) for one in found.heads] == [(0, head, "p") for head in range(heads)]
    assert {(one.node, one.depth) for one in found.heads} == {
        (attentions(model)[0].node.name, attentions(model)[0].depth)
    }


def test_errors_that_come_from_before_count_too() -> None:
    tokens = normal(1, 5, WIDTH)
    model = attending()
    found = attention_maps(model, model, NOTHING, batched(model, {"t": tokens})[0])
    assert found is not None
    assert [one.moved for one in found.heads] == [0, 0]
    other = attending()
    shifted = normal(WIDTH, WIDTH, seed=1) * 1.5
    other.graph.initializers["wq"].const_value = ir.tensor(shifted)
    found = attention_maps(model, other, NOTHING, batched(model, {"t": tokens})[0])
    assert found is not None
    assert min(one.moved for one in found.heads) > 0.01


@pytest.mark.parametrize("axis", ["n", "3"])
def test_only_the_first_sample_of_a_batch_counts(axis: str) -> None:
    tokens = normal(3, 5, WIDTH)
    found = maps_of(attending(tokens=f"float[{axis}, 5, 8] t"), {"t": tokens})
    first = weights_of(tokens[:1])
    assert [one.moved for one in found.heads] == pytest.approx(
        moved(first, round_probabilities(first, SHARES)[1]), rel=1e-3
    )
    assert {(one.rows, one.columns) for one in found.pictures.pictures} == {(5, 5)}


def test_of_windows_the_one_that_changes_most_is_shown() -> None:
    tokens = normal(1, 24, WIDTH)
    model = attending(tokens="float[n, 24, 8] x", front="t = Reshape(x, windows)", windows=np.array([-1, 6, WIDTH]))
    found = maps_of(model, {"x": tokens})
    first = weights_of(tokens.reshape(4, 6, WIDTH))
    second = round_probabilities(first, SHARES)[1]
    assert [one.moved for one in found.heads] == pytest.approx(moved(first, second), rel=1e-3)
    for picture in found.pictures.pictures:
        distances = np.abs(first - second)[:, picture.head].sum(axis=(1, 2))
        assert picture.window == distances.argmax()
        assert_shows(picture, first[picture.window, picture.head], second[picture.window, picture.head])


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_an_images_weights_lie_over_its_patches(extra: int) -> None:
    patch = normal(WIDTH, 3, 8, 8, seed=9) / 8
    front = "c = Conv<strides = [8, 8]>(x, patch) r = Reshape(c, flat) u = Transpose<perm = [0, 2, 1]>(r)"
    front += " t = Concat<axis = 1>(first, u)" if extra else " t = Identity(u)"
    model = attending(
        tokens="float[1, 3, 32, 32] x", front=front, patch=patch, flat=np.array([0, 0, -1]),
        first=normal(1, extra, WIDTH, seed=5),
    )  # fmt: skip
    image = normal(1, 3, 32, 32, seed=3)
    found = maps_of(model, {"x": image})
    squares = image.reshape(3, 4, 8, 4, 8)
    tokens = np.einsum("cihjw,ochw->ijo", squares, patch).reshape(1, 16, WIDTH)
    tokens = np.concatenate([normal(1, extra, WIDTH, seed=5), tokens], axis=1)
    first = weights_of(tokens)[0]
    second = round_probabilities(first, SHARES)[1]
    over = [one for one in found.pictures.pictures if one.shown != "matrix"]
    assert {one.shown for one in over} == {"class token" if extra else "mean of the queries"}
    for picture in over:
        maps = (first[picture.head], second[picture.head])
        rows = [one[0] if extra else one.mean(axis=0) for one in maps]
        assert_shows(picture, *(row[extra:].reshape(4, 4) for row in rows))
    assert (found.pictures.rows, found.pictures.columns) == (32, 32)
    whole = [one for one in found.pictures.pictures if one.shown == "matrix"]
    assert {(one.rows, one.columns) for one in whole} == {(16 + extra, 16 + extra)}


def test_of_a_long_sequence_the_first_tokens_are_shown() -> None:
    model = attending(
        tokens="int64[n, words] i", front="t = Gather<axis = 0>(table, i)", table=normal(50, WIDTH, seed=4)
    )
    words = np.random.default_rng(0).integers(0, 50, (1, 300))
    found = maps_of(model, {"i": words})
    first = weights_of(normal(50, WIDTH, seed=4)[words[0]][np.newaxis])[0]
    second = round_probabilities(first, SHARES)[1]
    assert [one.moved for one in found.heads] == pytest.approx(moved(first[None], second[None]), rel=1e-3)
    for picture in found.pictures.pictures:
        assert picture.shown == "matrix"
        assert_shows(picture, first[picture.head, :256, :256], second[picture.head, :256, :256])
    assert found.pictures.pixels == ""


def test_without_attention_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narrowgauge.analysis.attention_maps.exposed", pytest.fail)
    model = attending("a = Neg(p)")
    assert attention_maps(model, model, NOTHING, batched(model, {"t": normal(1, 5, WIDTH)})[0]) is None


def test_rows_that_are_masked_as_a_whole_weigh_nothing() -> None:
    model = network("float[n, 2, 4, 4] x", "float[n, 2, 4, 4] y", "p = Softmax(x) y = MatMul(p, x)")
    x = normal(1, 2, 4, 4)
    x[0, 0, 1] = -np.inf
    found = maps_of(model, {"x": x})
    assert np.isfinite([one.moved for one in found.heads]).all()


@pytest.mark.parametrize(("share", "said"), [(0.0314, "3.1 %"), (0.0004, "0.04 %"), (0, "0 %")])
def test_the_head_that_changes_most_is_named(share: float, said: str) -> None:
    heads = [
        AttentionHead(node="n", value="p", depth=3, attention=block, block=block, head=2, moved=share * block / 7)
        for block in (1, 7, 2)
    ]
    where = "block 7" if share else "block 1"
    assert describe_attention(heads) == f"attention changes most in {where}, head 2: {said} of its weight moves"


def test_attentions_are_named_by_the_blocks_of_roles_and_causes() -> None:
    """One pools the tokens in front of all blocks; each block of a decoder has two."""
    writer = Writer()
    scores = writer.value("MatMul(x, across)")
    x = writer.value(f"MatMul({writer.value(f'Softmax<axis = -1>({scores})')}, x)")
    writer.weights["across"] = normal(SIZE, TOKENS)
    for _ in range(2):
        x = writer.value(f"Add({x}, {writer.attention(writer.norm(x))})")
        x = pre_norm(writer, x)
    model = writer.model(x)
    found = attention_maps(model, model, NOTHING, batched(model, {"x": normal(1, TOKENS, SIZE)})[0])
    assert found is not None
    roles = block_roles(model)
    blocks = [None if one.value not in roles else roles[one.value].block for one in found.heads]
    assert [one.block for one in found.heads] == blocks
    assert sorted({(one.attention, one.block) for one in found.heads}) == [(0, None), (1, 0), (2, 0), (3, 1), (4, 1)]
    assert attention_names(found.heads) == {
        0: "attention 0", 1: "block 0, attention 1", 2: "block 0, attention 2", 3: "block 1, attention 3",
        4: "block 1, attention 4",
    }  # fmt: skip
    alone = [one for one in found.heads if one.attention in {0, 2}]
    assert attention_names(alone) == {0: "attention 0", 2: "block 0"}

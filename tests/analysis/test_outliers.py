"""Outliers are found, followed back to the layer and the unit that write them, with all that they stretch."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.outlier_words import describe
from narrowgauge.analysis.outliers import Place, find_outliers, origin
from narrowgauge.analysis.records import Outlier
from narrowgauge.calibration.collect import collect
from narrowgauge.data import batches, default_preprocess, input_specs, open_samples
from narrowgauge.demo import NETWORK_NAMES, digits, network_path
from narrowgauge.graph.block_roles import block_roles
from narrowgauge.importers.onnx import load
from tests.calibration.networks import batches_of
from tests.planning.networks import name_of, network, normal, seen

SIZE, TOKENS, UNITS = 16, 6, 24
UNIT, CHANNEL, TOKEN = 5, 3, 2


def stream_network(tail: str = "y = LayerNormalization<axis = -1>(r, g, o)") -> ir.Model:
    """A block of a transformer whose unit 5 fires on token 2 and writes that into channel 3 of the stream."""
    first, second = normal(SIZE, UNITS, seed=1) / 4, normal(UNITS, SIZE, seed=2) / 10
    first[:, UNIT] = 0
    first[0, UNIT] = 100
    second[UNIT] = 0
    second[UNIT, CHANNEL] = -3
    return network(
        f"float[n, {TOKENS}, {SIZE}] x", f"float[n, {TOKENS}, {SIZE}] y",
        f"h = MatMul(x, w1)  b = Add(h, b1)  a = Gelu(b)  m = MatMul(a, w2)  c = Add(m, b2)  s = Add(x, c) "
        f"i = MatMul(s, w3)  r = Add(i, s) {tail}",
        w1=first, b1=np.zeros(UNITS, np.float32), w2=second, b2=np.zeros(SIZE, np.float32),
        w3=np.where(np.arange(SIZE)[:, None] == CHANNEL, 0, normal(SIZE, SIZE, seed=3)) / 20,
        g=np.ones(SIZE, np.float32), o=np.zeros(SIZE, np.float32),
    )  # fmt: skip


def samples() -> np.ndarray:
    found = normal(40, TOKENS, SIZE, seed=4)
    found[..., 0] = -1
    found[:, TOKEN, 0] = 1
    return found


def outliers_of(model: ir.Model, feed: np.ndarray) -> tuple[Outlier, ...]:
    return find_outliers(model, seen(model, feed), batches_of(model, {"x": feed[:8]}))


def test_an_outlier_of_the_stream_is_followed_to_its_unit() -> None:
    model = stream_network()
    stream = next(one for one in outliers_of(model, samples()) if one.source == name_of(model, "m"))
    assert (stream.channel, stream.unit, stream.source_value) == (CHANNEL, UNIT, "a")
    assert stream.positions == (TOKEN,)
    assert stream.reach == pytest.approx(300, rel=0.05)
    assert stream.others < stream.reach / 4
    assert stream.value in {"c", "s", "r"}


def test_the_unit_is_an_outlier_of_its_own() -> None:
    model = stream_network()
    unit = next(one for one in outliers_of(model, samples()) if one.source == name_of(model, "h"))
    assert (unit.value in {"a", "b"}, unit.channel, unit.positions) == (True, UNIT, (TOKEN,))


def test_each_source_is_named_once() -> None:
    keys = [(one.source, one.channel) for one in outliers_of(stream_network(), samples())]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("tail", "channel"),
    [
        ("t = Transpose<perm = [0, 2, 1]>(r)  y = Conv(t, k)", CHANNEL),
        ("t = Concat<axis = 2>(x, r)  y = MatMul(t, k)", SIZE + CHANNEL),
        ("t = Concat<axis = 1>(r, x)  y = MatMul(t, k)", CHANNEL),
        ("t = Reshape(r, flat)  y = MatMul(t, k)", CHANNEL),
        ("t = Gather<axis = 1>(r, two)  y = MatMul(t, k)", CHANNEL),
        ("t = Mul(r, half)  y = MatMul(t, k)", CHANNEL),
    ],
)
def test_moves_of_data_are_followed(tail: str, channel: int) -> None:
    base = stream_network()
    kernel = normal(4, SIZE, 1) if "Conv" in tail else normal(2 * SIZE if "axis = 2" in tail else SIZE, 4)
    weights = {name: value.const_value.numpy() for name, value in base.graph.initializers.items()}
    model = network(
        f"float[n, {TOKENS}, {SIZE}] x", "float[n, p, q] y",
        "h = MatMul(x, w1)  b = Add(h, b1)  a = Gelu(b)  m = MatMul(a, w2)  c = Add(m, b2)  s = Add(x, c) "
        f"i = MatMul(s, w3)  r = Add(i, s) {tail}",
        **{name: weights[name] for name in ("w1", "b1", "w2", "b2", "w3")},
        k=kernel, flat=np.array([0, TOKENS, SIZE], np.int64), two=np.array([TOKEN, 1], np.int64),
        half=np.full(SIZE, 0.5, np.float32),
    )  # fmt: skip
    feed = samples()
    statistics = seen(model, feed)
    value = next(value for node in model.graph for value in node.outputs if value.name == "t")
    axis = 1 if "Conv" in tail else 2
    first = origin(statistics, Place(value, axis, channel))
    assert (first.value.name, first.channel) == ("m", CHANNEL)


@pytest.mark.parametrize("move", ["Gather<axis = 1>(r, zero)", "Slice(r, zero, one, one)"])
def test_what_stands_out_in_a_part_alone_is_followed_to_who_wrote_it(move: str) -> None:
    """Of token 0 channel 3 is large, of token 1 all others are."""
    model = network(
        f"float[n, 2, {SIZE}] x", f"float[n, 1, {SIZE}] y", f"r = MatMul(x, w)  t = {move}  y = Neg(t)",
        w=np.eye(SIZE, dtype=np.float32), zero=np.array([0], np.int64), one=np.array([1], np.int64),
    )  # fmt: skip
    feed = normal(16, 2, SIZE)
    feed[:, 0, CHANNEL] = 100
    feed[:, 1] *= 100
    part = next(value for node in model.graph for value in node.outputs if value.name == "t")
    assert origin(seen(model, feed), Place(part, 2, CHANNEL)).value.name == "r"


def test_a_channel_of_a_convolution_is_found_and_its_unit() -> None:
    """Group 2 of 2, so that the weights' rows are not the input's channels."""
    weights = normal(16, 8, 1, 1, seed=1)
    weights[12] *= 0.01
    weights[12, 3] = 40
    first = normal(16, 3, 3, 3)
    first[11] *= 4
    model = network(
        "float[n, 3, 8, 8] x", "float[n, 16, 6, 6] y",
        "a = Conv(x, w)  r = Relu(a)  c = Conv<group = 2>(r, v)  y = Relu(c)", w=first, v=weights,
    )  # fmt: skip
    found = outliers_of(model, normal(12, 3, 8, 8, seed=5))
    assert [(one.channel, one.source, one.unit, one.source_value) for one in found] == [
        (12, name_of(model, "c"), 11, "r")
    ]


def test_an_outlier_of_the_samples_has_no_source() -> None:
    model = network("float[n, 5, 16] x", "float[n, 5, 4] y", "y = MatMul(x, w)", w=normal(16, 4))
    feed = normal(8, 5, 16)
    feed[..., 9] *= 50
    (found,) = outliers_of(model, feed)
    assert (found.value, found.channel, found.source, found.unit) == ("x", 9, "", None)
    assert "the samples bring it" in describe(found)


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_networks_without_outliers_have_none_that_stand_out_far(name: str) -> None:
    model = load(network_path(name)).model
    images = digits().images[:64]
    opened = open_samples({"image": images}, input_specs(model))
    found = find_outliers(model, seen(model, {"image": images}), batches(opened.take(8), 8, input_specs(model)))
    assert all(one.reach < 10 * one.others for one in found)


def test_the_vision_transformers_outlier_comes_from_one_hidden_unit(zoo: Path) -> None:
    path = zoo / "models" / "vit_tiny" / "vit_tiny_patch16_224.onnx"
    model = load(path).model
    opened = open_samples(zoo / "images" / "nips17", input_specs(model), preprocess=default_preprocess(path))
    few = list(batches(opened.take(4), 4, input_specs(model)))
    found = find_outliers(model, collect(model, few), few)
    stream = next(one for one in found if one.channel == 41 and one.unit is not None)
    assert (stream.unit, set(stream.positions)) == (417, {1, 14, 183, 196})
    assert stream.reach > 400
    assert (stream.words, stream.source_words) == ("block 7, residual channel 41", "block 7, MLP unit 417")
    assert (stream.tokens, stream.read) == (True, (0,))
    assert -stream.reach <= stream.low < stream.high < -100 < -10 < -stream.ordinary
    roles = block_roles(model)
    assert len(stream.stretched) >= 9
    assert all(roles[name].channel_words(41).endswith("residual channel 41") for name in stream.stretched)

"""Rotated streams: the network computes the same, outliers are spread, and what cannot be rotated is left alone."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.demo import digits, network_path
from narrowgauge.importers.onnx import load
from narrowgauge.lowering.qdq import lower_to_qdq
from narrowgauge.recovery.rotate_streams import Rotation, rotate_streams, rotation
from tests.planning.networks import network, normal, planned, run, seen, sqnr

D, T = 16, 5


@settings(max_examples=25)
@given(st.integers(8, 65), st.integers(0, 2**32 - 1), st.booleans())
def test_a_rotation_is_orthogonal_and_keeps_the_ones(size: int, seed: int, spread: bool) -> None:
    direction = np.random.default_rng(seed).standard_normal(size) if spread else None
    turn = rotation(size, direction, seed=seed)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-10)
    np.testing.assert_allclose(turn.sum(axis=1), 1, atol=1e-10)
    if direction is not None and size % 2 == 0:
        centred = direction - direction.mean()
        spread_out = np.abs(centred @ turn)
        np.testing.assert_allclose(spread_out, np.linalg.norm(centred) / np.sqrt(size), rtol=1e-6)


def test_a_direction_without_any_extent_changes_nothing() -> None:
    np.testing.assert_array_equal(rotation(12, np.full(12, 3.0)), rotation(12))


WEIGHTS = {
    "e": normal(D, D, seed=1), "p": normal(1, T, D, seed=2), "g1": 1 + normal(D, seed=3) / 4,
    "o1": normal(D, seed=4) / 4, "w1": normal(D, 24, seed=5) / 4, "b1": normal(24, seed=6),
    "w2": normal(24, D, seed=7) / 4, "b2": normal(D, seed=8), "g2": 1 + normal(D, seed=9) / 4, "o2": normal(D, seed=10),
    "w3": normal(D, 7, seed=11),
    "v": normal(D, 24, seed=5).T.copy(), "u": normal(D, 24, seed=7), "c": normal(1, 1, D, seed=12),
    "square": normal(D, D, seed=13) / 4, "zero": np.array(0, np.int64), "mean": np.array([1], np.int64),
    "table": normal(9, D, seed=14), "flat": np.array([-1, D], np.int64), "back": np.array([-1, T, D], np.int64),
    "one": np.array([1.5], np.float32), "g4": normal(2 * D), "o4": normal(2 * D), "w4": normal(2 * D, 7),
}  # fmt: skip

HEAD = "n = LayerNormalization<axis = -1>(r, g2, o2)  q = Gather<axis = 1>(n, zero)  y = MatMul(q, w3)"
BLOCK = (
    "k = LayerNormalization<axis = -1>(s, g1, o1)  h = MatMul(k, w1)  a = Add(h, b1)  f = Gelu(a)  m = MatMul(f, w2)"
)
INTO = "x0 = MatMul(x, e)  s = Add(x0, p)"
FULL = f"{INTO}  {BLOCK}  l = Add(m, b2)  r = Add(s, l)  {HEAD}"

BODIES = {
    "block": FULL,
    "no bias": FULL.replace("a = Add(h, b1)  f = Gelu(a)", "f = Gelu(h)"),
    "no offset": FULL.replace("(s, g1, o1)", "(s, g1)"),
    "subtracted": FULL.replace("r = Add(s, l)", "r = Sub(s, l)"),
    "one number for all": FULL.replace("s = Add(x0, p)", "s1 = Add(x0, p)  s = Add(s1, one)"),
    "weights of two layers": FULL.replace("y = MatMul(q, w3)", "y1 = MatMul(n, w1)  y = Gather<axis = 1>(y1, zero)"),
    "square layer": FULL.replace(HEAD, "r1 = LayerNormalization<axis = -1>(r, g1, o1)  r2 = MatMul(r1, square)  "
                                 "r3 = Add(r, r2)  " + HEAD.replace("(r, g2", "(r3, g2")),
    "mean of tokens": FULL.replace("q = Gather<axis = 1>(n, zero)", "q = ReduceMean<keepdims = 0>(n, mean)"),
    "read directly": FULL.replace("y = MatMul(q, w3)", "z = Gather<axis = 1>(r, zero)  z1 = MatMul(z, w3)  "
                                  "z2 = MatMul(q, w3)  y = Add(z1, z2)"),
    "moves": FULL.replace("r = Add(s, l)", "r0 = Add(s, l)  r1 = Reshape(r0, flat)  r = Reshape(r1, back)"),
    "gemm": f"{INTO}  k0 = LayerNormalization<axis = -1>(s, g1, o1)  k = Reshape(k0, flat)  "
            "h = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(k, v, b1)  f = Gelu(h)  "
            "m0 = Gemm<transB = 1>(f, u, b2)  m = Reshape(m0, back)  r = Add(s, m)  " + HEAD,
    "gemm without bias": f"{INTO}  k0 = LayerNormalization<axis = -1>(s, g1, o1)  k = Reshape(k0, flat)  "
                         "h = Gemm<transB = 1>(k, v)  f = Gelu(h)  m0 = MatMul(f, w2)  m = Reshape(m0, back)  "
                         "r = Add(s, m)  " + HEAD,
}  # fmt: skip


def of_body(body: str, outputs: str = "float[n, q] y", **others: np.ndarray) -> ir.Model:
    weights = {**WEIGHTS, **others}
    used = {name: array for name, array in weights.items() if f"{name}," in body or f"{name})" in body}
    return network(f"float[n, {T}, {D}] x", outputs, body, **used)


FEED = normal(30, T, D, seed=20)


def rotated(model: ir.Model, feed: np.ndarray = FEED) -> tuple[ir.Model, tuple[Rotation, ...]]:
    found, _, done = rotate_streams(model, seen(model, feed), calibrate=lambda changed: seen(changed, feed))
    return found, done


@pytest.mark.parametrize("name", list(BODIES))
def test_the_network_computes_the_same(name: str) -> None:
    model = of_body(BODIES[name])
    before = run(model, FEED)
    turned, done = rotated(model)
    assert len(done) == 1
    np.testing.assert_allclose(run(turned, FEED), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    np.testing.assert_array_equal(run(model, FEED), before)  # the given network is not changed


def test_embedding_tables_and_class_tokens_are_rotated_too() -> None:
    start = "x0 = Gather(table, x)  t = Expand(c, shape)  x1 = Concat<axis = 1>(t, x0)  s = Add(x1, p)"
    body = f"{start}  {BLOCK}  r = Add(s, m)  {HEAD}"
    used = {
        name: array for name, array in WEIGHTS.items() if f"{name}," in body or f"{name})" in body or name == "table"
    }
    model = network(f"int64[6, {T - 1}] x", "float[6, 7] y", body, shape=np.array([6, 1, D], np.int64), **used)
    feed = {"x": np.random.default_rng(0).integers(0, 9, (6, T - 1))}
    turned, _, done = rotate_streams(model, seen(model, feed), calibrate=lambda changed: seen(changed, feed))
    assert len(done) == 1
    np.testing.assert_allclose(run(turned, feed), run(model, feed), atol=1e-4)


LEFT_ALONE = {
    "normalized behind the addition": (FULL.replace("r = Add(s, l)", "r = Add(k, l)"), "float[n, q] y"),
    "read by an activation function": (FULL.replace("r = Add(s, l)", "r0 = Add(s, l)  r = Relu(r0)"), "float[n, q] y"),
    "an output of the network": (FULL, f"float[n, q] y, float[n, {T}, {D}] r"),
    "normalization that is returned": (FULL, f"float[n, q] y, float[n, {T}, {D}] n"),
    "written by an input": (FULL.replace("x0 = MatMul(x, e)", "x0 = Identity(x)"), "float[n, q] y"),
    "joined along the channels": (FULL.replace("r = Add(s, l)", "r0 = Add(s, l)  r1 = Concat<axis = 2>(r0, l)  r = "
                                               "Add(r1, r1)").replace("(r, g2, o2)", "(r, g4, o4)")
                                  .replace("(q, w3)", "(q, w4)"), "float[n, q] y"),
    "no normalization": ("h = MatMul(x, w1)  f = Gelu(h)  y = MatMul(f, w2)", f"float[n, {T}, {D}] y"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LEFT_ALONE))
def test_what_cannot_be_rotated_is_left_alone(name: str) -> None:
    model = of_body(*LEFT_ALONE[name])
    turned, done = rotated(model)
    assert (turned, done) == (model, ())


def test_an_outlier_of_the_stream_is_spread() -> None:
    """A hidden unit that fires on few tokens and writes into one channel."""
    into, bias, out_of = (WEIGHTS[name].copy() for name in ("w1", "b1", "w2"))
    into[:, 3] *= 20
    bias[3] = -10
    out_of[3] = 0
    out_of[3, 5] = 10
    model = of_body(FULL, w1=into, b1=bias, w2=out_of)
    turned, (done,) = rotated(model)
    assert done.reach_after < 0.5 * done.reach_before
    before, after = (
        sqnr(run(model, FEED), run(lower_to_qdq(each, planned(each, seen(each, FEED), "tflite")), FEED))
        for each in (model, turned)
    )
    assert after > before + 3, (before, after)


def test_a_trained_transformer_computes_the_same() -> None:
    model = load(network_path("digits_vit")).model
    images = digits().images[:64]
    turned, done = rotated(model, images)
    assert len(done) == 1
    np.testing.assert_allclose(run(turned, images), run(model, images), atol=1e-3)

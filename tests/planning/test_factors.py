"""Who around a value takes a power-of-two factor, and which products take shares."""

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.core.numbers import integer_type
from narrowgauge.planning.choices import NodeChoice
from narrowgauge.planning.place import Placement
from tests.planning.networks import network, normal, placed

D, T = 8, 5
WEIGHTS = {
    "w": normal(D, D, seed=1), "b": normal(D, seed=2), "g": 1 + normal(D, seed=3) / 4, "pos": normal(T, D, seed=4),
    "two": normal(2, T, D, seed=5), "gt": 1 + normal(T, D, seed=6) / 4, "ot": normal(T, D, seed=7),
    "matrix": normal(T, 3, seed=8), "vector": np.arange(T, dtype=np.float32),
}  # fmt: skip


def placement_of(body: str, inputs: str = f"float[n, {T}, {D}] x", **nodes: NodeChoice) -> Placement:
    model: ir.Model = network(inputs, "float[n, k, j] y", body, **WEIGHTS)
    return placed(model, "integer-only", nodes=nodes)


STREAM = "s0 = MatMul(x, w)  s = Add(s0, pos)"
NORM = "n = LayerNormalization<axis = -1>(s, g, b)"
MATRIX = f"float[{T}, {D}] x"
READERS = {
    "a layer": (f"{STREAM}  m = MatMul(s, w)", True),
    "a normalization": (f"{STREAM}  {NORM}  m = MatMul(n, w)", True),
    "its axis counted from the front": (f"{STREAM}  m = LayerNormalization<axis = 2>(s, g, b)", True),
    "a normalization of tokens, too": (f"{STREAM}  m = LayerNormalization<axis = 1>(s, gt, ot)", False),
    "an addition": (f"{STREAM}  {NORM}  m = Add(s, n)", True),
    "a product with another activation": (f"{STREAM}  t = Transpose<perm = [0, 2, 1]>(x)  m = MatMul(s, t)", False),
    "a table": (f"{STREAM}  m = Gelu(s)", True),
    "another operator": (f"{STREAM}  m = Sigmoid(s)", False),
}
MATRICES = {
    "a layer": (f"{STREAM}  m = Gemm(s, w, b)", True),
    "a layer of the transpose": (
        f"{STREAM}  t = Gemm<transA = 1>(s, pos)  m = MatMul(x, t)", False
    ),
    "a layer whose bias it is": (f"{STREAM}  m = Gemm(x, w, s)", False),
    "an addition of the same rank": (f"{STREAM}  {NORM}  m = Add(s, n)", True),
    "an addition of a higher rank": (f"{STREAM}  {NORM}  a = Add(n, two)  m = Add(s, a)", False),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_who_reads_a_factor(reader: str) -> None:
    body, factor = READERS[reader]
    assert placement_of(f"{body}  y = Sigmoid(m)").activations["s"].factor == factor


@pytest.mark.parametrize("reader", MATRICES)
def test_who_reads_a_factor_of_a_matrix(reader: str) -> None:
    body, factor = MATRICES[reader]
    assert placement_of(f"{body}  y = Sigmoid(m)", MATRIX).activations["s"].factor == factor


KEYS = "k = MatMul(x, w)  t = Transpose<perm = [0, 2, 1]>(k)  l = MatMul(k, t)"
ATTENTION = f"{KEYS}  a = Softmax<axis = -1>(l)"
WRITERS = {
    "a layer": ("s = MatMul(x, w)", True),
    "a layer and its activation function": ("m = MatMul(x, w)  c = Add(m, b)  s = Relu(c)", True),
    "attention with one head": (f"{ATTENTION}  s = MatMul(a, k)", False),
    "attention with an activation function": (f"{ATTENTION}  c = MatMul(a, k)  s = Relu(c)", False),
    "attention without a softmax": (f"{KEYS}  s = MatMul(l, k)", False),
}
PROJECTION = "  o = MatMul(s, w)  y = Sigmoid(o)"


@pytest.mark.parametrize("writer", WRITERS)
def test_who_writes_a_factor(writer: str) -> None:
    body, factor = WRITERS[writer]
    assert placement_of(body + PROJECTION).activations["s"].factor == factor


def test_a_gemm_of_two_activations_writes_no_factor() -> None:
    body = "k = MatMul(x, w)  s = Gemm<transB = 1>(k, k)  o = Gemm(s, matrix)  y = Sigmoid(o)"
    assert not placement_of(body, MATRIX).activations["s"].factor


def test_a_stream_of_products_of_activations_is_wide() -> None:
    """All that read it could take a factor, the product cannot write one."""
    body = f"{ATTENTION}  s = MatMul(a, k)  {NORM}  m = Add(s, n)  y = Sigmoid(m)"
    slot = placement_of(body).activations["s"]
    assert (slot.type, slot.factor) == (integer_type("int16"), False)


PRODUCTS = {
    "with values": ("y = MatMul(a, k)", True),
    "of several heads": ("h = Unsqueeze(k, one)  y = MatMul(a, h)", True),
    "of values with them": ("v = Transpose<perm = [0, 2, 1]>(k)  y = MatMul(v, a)", False),
    "of values with them transposed": (
        "v = Transpose<perm = [0, 2, 1]>(k)  c = Transpose<perm = [0, 2, 1]>(a)  y = MatMul(v, c)", False
    ),
    "with constants": ("y = MatMul(a, matrix)", False),
    "with a constant vector": ("y = MatMul(a, vector)", False),
    "with a vector": ("e = Sigmoid(z)  y = MatMul(a, e)", False),
    "with two values": ("u = MatMul(a, k)  v = MatMul(a, x)  y = Add(u, v)", False),
    "with themselves": ("y = MatMul(a, a)", False),
}  # fmt: skip


@pytest.mark.parametrize("product", PRODUCTS)
def test_which_products_take_shares(product: str) -> None:
    body, normalized = PRODUCTS[product]
    model = network(
        f"float[n, {T}, {D}] x, float[{T}] z", "float[n, k, j] y", f"{ATTENTION}  {body}", one=np.array([1]), **WEIGHTS
    )
    assert placed(model, "integer-only").activations["a"].normalized == normalized


@pytest.mark.parametrize(("axis", "normalized"), [(-1, True), (2, True), (1, False)])
def test_shares_are_of_the_last_axis(axis: int, normalized: bool) -> None:
    body = f"{KEYS}  a = Softmax<axis = {axis}>(l)  y = MatMul(a, k)"
    assert placement_of(body).activations["a"].normalized == normalized


def test_a_product_in_float_takes_no_shares() -> None:
    body = f"{ATTENTION}  u = MatMul(a, k)  y = Sigmoid(u)"
    assert placement_of(body).activations["a"].normalized
    assert not placement_of(body, u=NodeChoice(keep_float="by hand")).activations["a"].normalized

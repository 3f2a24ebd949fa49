"""Multiplications of a layer, against counting them by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from narrowgauge.graph.costs import multiply_accumulates
from narrowgauge.graph.shapes import infer_shapes
from tests.planning.networks import network, node_of, normal

CONVOLUTIONS = network(
    "float[n, 8, 10, 10] x", "float[n, 4, 20, 20] t",
    "a = Conv<pads = [1, 1, 1, 1]>(x, full)  b = Conv<group = 16, strides = [2, 2], pads = [1, 1, 1, 1]>(a, deep)"
    "  t = ConvTranspose<strides = [4, 4]>(b, up)",
    full=normal(16, 8, 3, 3), deep=normal(16, 1, 3, 3), up=normal(16, 4, 4, 4),
)  # fmt: skip

PRODUCTS = network(
    "float[n, 7, 5] x, float[n, 6] z",
    "float[n, 7, 3] y, float[n, 2] u, float[n, 7, 5] v, float[4, 7, 2] s, float[n, 7] p",
    "y = MatMul(x, w)  u = Gemm<transB = 1>(z, g)  v = Relu(x)  s = MatMul(x, stack)  p = MatMul(x, vector)",
    w=normal(5, 3), g=normal(2, 6), stack=normal(4, 5, 2), vector=normal(5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "output", "expected"),
    [
        (CONVOLUTIONS, "a", 16 * 10 * 10 * 8 * 9),
        (CONVOLUTIONS, "b", 16 * 5 * 5 * 9),
        (CONVOLUTIONS, "t", 16 * 5 * 5 * 4 * 16),
        (PRODUCTS, "y", 7 * 3 * 5),
        (PRODUCTS, "u", 2 * 6),
        (PRODUCTS, "v", 0),
        (PRODUCTS, "s", 4 * 7 * 2 * 5),
        (PRODUCTS, "p", 7 * 5),
    ],
)
def test_multiplications(model: ir.Model, output: str, expected: int) -> None:
    infer_shapes(model)
    assert multiply_accumulates(node_of(model, output)) == expected

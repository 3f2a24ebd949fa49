"""Attention in a few nodes, and what its weights are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.planning.networks import network, normal

Array = np.ndarray
WIDTH = 8

PRODUCTS = """
q = MatMul(t, wq) k = MatMul(t, wk) v = MatMul(t, wv)
q4 = Reshape(q, split) k4 = Reshape(k, split) v4 = Reshape(v, split)
qh = Transpose<perm = [0, 2, 1, 3]>(q4) kh = Transpose<perm = [0, 2, 3, 1]>(k4) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
s = MatMul(qh, kh)
p = Softmax<axis = -1>(s)
"""


def attending(behind: str = "a = MatMul(p, vh)", *, heads: int = 2, tokens: str = "float[n, 5, 8] t", front: str = "",
              **more: Array) -> ir.Model:  # fmt: skip
    """Tokens `t`, attention weights `p` of shape `[n, heads, tokens, tokens]`, what `behind` makes of them as `a`."""
    weights = {name: normal(WIDTH, WIDTH, seed=seed) for seed, name in enumerate(("wq", "wk", "wv"), 1)}
    split = np.array([0, 0, heads, WIDTH // heads])
    return network(tokens, "float[?, ?, ?, ?] a", f"{front} {PRODUCTS} {behind}", split=split, **weights, **more)


def weights_of(tokens: Array, heads: int = 2) -> Array:
    """Attention weights of tokens, `(rows, heads, queries, keys)`, float32."""
    rows, count, _ = tokens.shape
    q, k = (
        (tokens @ normal(WIDTH, WIDTH, seed=seed)).reshape(rows, count, heads, -1).transpose(0, 2, 1, 3)
        for seed in (1, 2)
    )
    scores = q @ k.transpose(0, 1, 3, 2)
    parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.float32(parts / parts.sum(axis=-1, keepdims=True))

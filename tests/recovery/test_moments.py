"""Moments say of any weights what the rows themselves say, and merge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.recovery.moments import Moments, moments
from tests.planning.networks import normal


def parts(*counts: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    inputs = [1 + normal(2, count, 5, seed=number) for number, count in enumerate(counts)]
    outputs = [normal(2, count, 3, seed=100 + number) - 2 for number, count in enumerate(counts)]
    return inputs, outputs


def same(first: Moments, second: Moments) -> None:
    assert first.count == second.count
    for name in ("inputs", "outputs", "gram", "cross", "energy"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-3)


@given(st.lists(st.integers(0, 20), min_size=3, max_size=3))
def test_merging_in_any_order_is_one_pass(counts: list[int]) -> None:
    inputs, outputs = parts(*counts)
    a, b, c = (moments(x, y) for x, y in zip(inputs, outputs, strict=True))
    whole = moments(np.concatenate(inputs, axis=1), np.concatenate(outputs, axis=1))
    same(a.merge(b).merge(c), whole)
    same(c.merge(a.merge(b)), whole)


def test_errors_are_those_of_the_rows() -> None:
    (x,), (y,) = parts(50)
    weights = normal(2, 3, 5, seed=7)
    off = x @ weights.transpose(0, 2, 1) - y
    seen = moments(x, y)
    np.testing.assert_allclose(seen.error(weights), np.square(off).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(seen.mean_error(weights), off.mean(axis=1), rtol=1e-3, atol=1e-5)
    spread = np.square(off - off.mean(axis=1, keepdims=True)).sum(axis=1)
    np.testing.assert_allclose(seen.centered().error(weights), spread, rtol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 1e-3], ids=["constant", "nearly constant"])
def test_large_means_do_not_drown_what_varies(spread: float) -> None:
    x = (1000 + 100 * normal(1, 1, 6)) * (1 + spread * normal(1, 4001, 6, seed=1))
    x = x.astype(np.float32)
    found = moments(x, x[:, :, :2]).centered()
    off = (x - x.mean(axis=1, keepdims=True, dtype=np.float64)).astype(np.float64)
    wanted = off.transpose(0, 2, 1) @ off
    np.testing.assert_allclose(found.gram, wanted, rtol=1e-3, atol=1e-3 * float(np.abs(wanted).max()) + 1)
    assert np.linalg.eigvalsh(found.gram).min() > 0


def test_moments_of_numbers_whose_squares_leave_float32_are_not_finite() -> None:
    rows = np.full((1, 4, 2), 1e30, dtype=np.float32) * np.array([1, -1, 1, -1], dtype=np.float32)[:, None]
    seen = moments(rows, rows).merge(moments(rows, -rows))
    assert not np.isfinite(seen.gram).all()
    assert not np.isfinite(seen.cross).any()

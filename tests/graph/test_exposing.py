"""Inner values come out as they are computed, in groups that stay within a bound."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.graph.engine import open_session, run_session
from narrowgauge.graph.exposing import in_rounds, returning
from tests.planning.networks import network, normal


@given(st.lists(st.integers(0, 50)), st.integers(1, 60))
def test_rounds_keep_all_in_order_and_within_the_bound(sizes: list[int], most: int) -> None:
    rounds = in_rounds(sizes, lambda size: size, most)
    assert [size for group in rounds for size in group] == sizes
    assert all(group and (sum(group) <= most or len(group) == 1) for group in rounds)


def test_a_copy_returns_the_values_that_are_asked_for() -> None:
    model = network("float[n, 3] x", "float[n, 3] y", "a = Relu(x)  b = Neg(a)  y = Abs(b)")
    session, x = open_session(returning(model, ["b", "a"])), normal(2, 3)
    found = run_session(session, ["b", "a"], {"x": x})
    np.testing.assert_array_equal(found["a"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["b"], -np.maximum(x, 0))
    assert [value.name for value in model.graph.outputs] == ["y"]

"""Reshapes of tensors whose axes are in another order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.exporters.tflite.forms import channels_last
from narrowgauge.exporters.tflite.reshaping import reshaped_order


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Two shapes of equally many numbers, and an order of the first one's axes."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=6))

    def shape() -> list[int]:
        cuts = sorted(draw(st.lists(st.integers(0, len(factors)), max_size=4)))
        bounds = [0, *cuts, len(factors)]
        return [int(np.prod(factors[a:b])) for a, b in pairwise(bounds)]

    before, after = shape(), shape()
    return before, after, tuple(draw(st.permutations(range(len(before)))))


@given(reshapes())
def test_reshaped_tensor_holds_the_output_in_the_order_it_says(
    case: tuple[list[int], list[int], tuple[int, ...]],
) -> None:
    before, after, home = case
    value = np.arange(np.prod(before)).reshape(before)
    order = reshaped_order(before, after, home)
    if order is None:
        return
    assert sorted(order) == list(range(len(after)))
    tensor = value.transpose(home).reshape([after[axis] for axis in order])
    np.testing.assert_array_equal(tensor, value.reshape(after).transpose(order))


def test_rows_of_an_image_stay_where_they_are() -> None:
    assert reshaped_order(["n", 4, 6, 7], ["n", 4, 42], channels_last(4)) == (0, 2, 1)
    assert reshaped_order(["n", 4, 1, 1], ["n", 4], channels_last(4)) == (0, 1)
    assert reshaped_order(["n", 4, 6, 7], ["n", 168], channels_last(4)) is None
    assert reshaped_order(["n", 4, 6, 7], ["n", 2, 2, 6, 7], channels_last(4)) == (0, 3, 4, 1, 2)

"""Histograms over the leading bits of float32."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from narrowgauge.calibration.histogram import EMPTY, Histogram, histogram_of, intervals, merge_histograms

Array = npt.NDArray[np.float32]

any_floats = arrays.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32))
finite_floats = arrays.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


def same(first: Histogram, second: Histogram) -> bool:
    return (
        first.bins.tobytes() == second.bins.tobytes()
        and first.counts.tobytes() == second.counts.tobytes()
        and first.bins.dtype == second.bins.dtype
        and first.counts.dtype == second.counts.dtype
    )


@given(any_floats)
def test_every_finite_value_is_counted_once_in_its_bin(values: Array) -> None:
    histogram = histogram_of(values)
    finite = values[np.isfinite(values)]
    bins, counts = np.unique(finite.view(np.uint32) >> 16, return_counts=True)
    np.testing.assert_array_equal(histogram.bins, bins)
    np.testing.assert_array_equal(histogram.counts, counts)
    assert histogram.total == finite.size


@given(finite_floats)
def test_intervals_hold_the_values_as_numpy_counts_them(values: Array) -> None:
    laid = intervals(histogram_of(values), float(values.min()), float(values.max()))
    assert laid.counts.sum() == values.size
    assert (laid.lower <= laid.upper).all()
    assert (np.diff(laid.lower) >= 0).all()
    assert values.min() <= laid.lower.min()
    assert laid.upper.max() <= values.max()
    for lower, upper, count in zip(laid.lower, laid.upper, laid.counts, strict=True):
        reached = ((values >= lower) & (values <= upper)).sum()
        normal = abs(lower) >= np.finfo(np.float32).tiny or abs(upper) >= np.finfo(np.float32).tiny
        assert reached >= count or not normal


@given(st.floats(2.0**-100, 2.0**100, width=32), st.booleans())
def test_bins_are_as_fine_as_a_128th_of_their_power_of_two(value: float, negative: bool) -> None:
    number = -value if negative else value
    laid = intervals(histogram_of(np.array([number, 0.0], np.float32)), -np.inf, np.inf)
    (index,) = np.flatnonzero((laid.lower != 0) | (laid.upper != 0))
    assert laid.lower[index] <= number <= laid.upper[index]
    assert laid.upper[index] - laid.lower[index] == 2.0 ** np.floor(np.log2(value)) / 128


def test_bulk_counts_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    laid = intervals(histogram_of(values), float(values.min()), float(values.max()))
    edges = np.unique(np.concatenate([laid.lower, laid.upper]))
    ours = np.zeros(edges.size - 1)
    np.add.at(ours, np.searchsorted(edges, laid.lower[laid.lower < laid.upper]), laid.counts[laid.lower < laid.upper])
    theirs = np.histogram(values, edges)[0]
    # Negative bins are closed at the end nearer to zero, numpy's at the lower one; the extremes are bins of their own.
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(np.cumsum(ours - theirs)).max() <= 3


@given(any_floats, any_floats, any_floats)
def test_merging_is_commutative_and_associative_and_equals_one_pass(a: Array, b: Array, c: Array) -> None:
    first, second, third = histogram_of(a), histogram_of(b), histogram_of(c)
    together = histogram_of(np.concatenate([a, b, c]))
    assert same(merge_histograms([first, second]), merge_histograms([second, first]))
    assert same(merge_histograms([merge_histograms([first, second]), third]), together)
    assert same(merge_histograms([first, merge_histograms([second, third])]), together)
    assert same(merge_histograms([first, EMPTY]), first)


def test_zeros_of_both_signs_and_subnormal_numbers_are_at_zero() -> None:
    laid = intervals(histogram_of(np.array([0.0, -0.0, 1e-40, -1e-42], np.float32)), -1e-42, 1e-40)
    assert (laid.lower == 0).all()
    assert (laid.upper == 0).all()
    assert laid.counts.sum() == 4


def test_the_largest_float32_has_a_finite_bin() -> None:
    largest = float(np.finfo(np.float32).max)
    laid = intervals(histogram_of(np.array([largest, -largest], np.float32)), -largest, largest)
    assert np.isfinite(laid.lower).all()
    assert np.isfinite(laid.upper).all()

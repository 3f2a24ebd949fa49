"""Logarithms and square roots of integers, at and beside every power and square."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.integer_logarithm import (
    floor_log2,
    integer_square_root,
    ratio_thresholds,
)

BESIDE_POWERS = np.array(
    [value for power in range(63) for value in (2**power - 1, 2**power, 2**power + 1) if 0 < value < 2**63]
)


def test_floor_log2_beside_powers() -> None:
    expected = [int(value).bit_length() - 1 for value in BESIDE_POWERS]
    np.testing.assert_array_equal(floor_log2(BESIDE_POWERS), expected)
    np.testing.assert_array_equal(floor_log2(np.array([0, 2**63 - 1])), [0, 62])


def test_square_roots_beside_squares() -> None:
    roots = sorted({*range(1, 3000), *(2**power + step for power in range(31) for step in (-1, 0, 1)), 2**31 - 1})
    values = [root * root + step for root in roots if 0 < root < 2**31 for step in (-1, 0, 1)]
    values += [2**62 - 1, *BESIDE_POWERS[BESIDE_POWERS < 2**62].tolist()]
    np.testing.assert_array_equal(integer_square_root(np.array(values)), [math.isqrt(value) for value in values])


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1))
def test_square_roots(values: list[int]) -> None:
    np.testing.assert_array_equal(integer_square_root(np.array(values)), [math.isqrt(value) for value in values])


def test_square_roots_of_every_small_number() -> None:
    values = np.arange(200_000)
    np.testing.assert_array_equal(integer_square_root(values), np.floor(np.sqrt(values)))
    assert integer_square_root(np.zeros((0, 3), np.int64)).shape == (0, 3)


@given(st.integers(1, 2**15), st.integers(0, 2**18))
def test_the_published_thresholds(part: int, rest: int) -> None:
    """`round(sum / e)`, then the leading bit, up by one where the bit behind it is set; halves rounded up."""
    total = part + rest
    rounded = math.floor(Fraction(total, part) + Fraction(1, 2))
    leading = rounded.bit_length() - 1
    code = leading + (2 * (rounded - 2**leading) >= 2**leading)
    for bits in (1, 5):
        thresholds = ratio_thresholds("three_halves", codes=20, fraction_bits=bits)
        assert np.searchsorted(thresholds, (total << bits) // part, side="right") == code


@given(st.integers(1, 2**15), st.integers(0, 2**18), st.integers(1, 10))
def test_thresholds_at_the_square_root_of_two(part: int, rest: int, bits: int) -> None:
    """The logarithm rounded, but for ratios that a unit is missing of."""
    total = part + rest
    thresholds = ratio_thresholds("square_root_of_two", codes=20, fraction_bits=bits)
    code = int(np.searchsorted(thresholds, (total << bits) // part, side="right"))
    squared = Fraction(total, part) ** 2
    assert squared >= Fraction(2) ** (2 * code - 1)
    assert (total / part - 2.0**-bits) ** 2 < 2.0 ** (2 * code + 1)


def test_the_first_thresholds() -> None:
    np.testing.assert_array_equal(ratio_thresholds("three_halves", codes=4, fraction_bits=1), [3, 5, 11, 23])
    assert ratio_thresholds("three_halves", codes=0, fraction_bits=1).shape == (0,)
    np.testing.assert_array_equal(
        ratio_thresholds("square_root_of_two", codes=3, fraction_bits=8), [363, 725, 1449]
    )  # 256 times 1.41421, 2.82843, 5.65685, rounded up
    with pytest.raises(ValueError, match="at least 1 fraction bit"):
        ratio_thresholds("three_halves", codes=4, fraction_bits=0)

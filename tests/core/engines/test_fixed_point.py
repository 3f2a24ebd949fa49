"""The closed forms compute what the rules say step by step, ties and saturation included."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from narrowgauge.core.engines import fixed_point
from narrowgauge.core.engines.fixed_point import (
    DOUBLE_ROUNDING,
    NEON_DOUBLE_ROUNDING,
    ROUNDING_16_BITS,
    SINGLE_ROUNDING,
    Multiplier,
    Rule,
    half_away_form,
    quantized_multiplier,
    truncated_mantissa_form,
)
from narrowgauge.core.engines.rescale import ComputedRescale, IntegerRescale

RULES = {
    "double": DOUBLE_ROUNDING, "neon": NEON_DOUBLE_ROUNDING, "single": SINGLE_ROUNDING, "16 bits": ROUNDING_16_BITS,
}  # fmt: skip
INT8 = (-128, 127)

sums = st.one_of(
    st.integers(-(2**31) + 1, 2**31 - 1),
    st.integers(-64, 64),
    st.builds(lambda odd, power: odd << power, st.integers(-9, 9), st.integers(0, 24)),  # ties of powers of two
)
multipliers = st.one_of(
    st.floats(2.0**-33, 1, exclude_max=True),
    st.integers(1, 40).map(lambda power: 2.0**-power),
    st.builds(lambda part, power: part / 3 * 2.0**-power, st.integers(1, 7), st.integers(3, 20)),
)


def array(numbers: int | list[int]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int64)


def half_away(exact: Fraction) -> int:
    return (1 if exact >= 0 else -1) * floor(abs(exact) + Fraction(1, 2))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(st.lists(sums, min_size=1, max_size=8), multipliers, st.integers(-128, 127))
@example([-1, 1, -2, 2, -3, 3], 0.5, 0)
@example([-(2**31) + 1, 2**31 - 1], 0.99999999999, 5)
@example([-1, 1], 2.0**-33, 0)
def test_forms_are_the_rules(rule: Rule, numbers: list[int], real: float, zero_point: int) -> None:
    multiplier = quantized_multiplier(real)
    levels = rule.form(multiplier, zero_point, INT8).levels(array(numbers))
    np.testing.assert_array_equal(levels, np.clip(rule.literal(array(numbers), multiplier) + zero_point, *INT8))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(st.lists(st.integers(-(2**14), 2**14), min_size=1, max_size=8), st.floats(1, 2.0**8))
def test_multipliers_above_one(rule: Rule, numbers: list[int], real: float) -> None:
    multiplier = quantized_multiplier(real)
    limits = (-(2**31), 2**31 - 1)
    levels = rule.form(multiplier, 3, limits).levels(array(numbers))
    np.testing.assert_array_equal(levels, np.clip(rule.literal(array(numbers), multiplier) + 3, *limits))


@given(st.lists(sums, min_size=1, max_size=8), st.integers(2**29, 2**31 - 1), st.integers(-31, 0))
def test_a_divided_multiplier_may_have_a_bit_less(numbers: list[int], q31: int, shift: int) -> None:
    """As in a mean (reduce.h): the form holds below 2^30, too."""
    multiplier = Multiplier(q31=array(q31), shift=array(shift))
    levels = DOUBLE_ROUNDING.form(multiplier, 0, INT8).levels(array(numbers))
    np.testing.assert_array_equal(levels, np.clip(DOUBLE_ROUNDING.literal(array(numbers), multiplier), *INT8))


@given(sums, multipliers)
@example(-1, 1 - 2.0**-53)
def test_double_rounding_from_its_definition(number: int, real: float) -> None:
    multiplier = quantized_multiplier(real)
    high = floor(Fraction((number << int(multiplier.left)) * int(multiplier.q31), 2**31) + Fraction(1, 2))
    twice = half_away(Fraction(high, 2 ** int(multiplier.right)))
    assert DOUBLE_ROUNDING.literal(array(number), multiplier) == twice
    up = floor(Fraction(high, 2 ** int(multiplier.right)) + Fraction(1, 2))
    assert NEON_DOUBLE_ROUNDING.literal(array(number), multiplier) == (up if multiplier.right else high)


@given(sums, multipliers)
def test_single_rounding_from_its_definition(number: int, real: float) -> None:
    multiplier = quantized_multiplier(real)
    exact = number * int(multiplier.q31) * Fraction(2) ** (int(multiplier.shift) - 31)
    assert SINGLE_ROUNDING.literal(array(number), multiplier) == floor(exact + Fraction(1, 2))


@given(st.lists(sums, min_size=1, max_size=8), st.floats(2.0**-32, 255, width=32), st.integers(-128, 127))
@example([-(2**31) + 1, 2**31 - 1, 1, -1], 2.0**-32, 0)
def test_truncated_mantissa(numbers: list[int], scale: float, zero_point: int) -> None:
    levels = truncated_mantissa_form(np.asarray(scale, np.float32), zero_point, INT8).levels(array(numbers))
    exact = [floor(number * Fraction(scale) + Fraction(1, 2)) + zero_point for number in numbers]
    np.testing.assert_array_equal(levels, np.clip(exact, *INT8))


@given(st.lists(sums, min_size=1, max_size=8), multipliers, st.integers(-128, 127))
@example([-5, 5, 15, -15, 25], 0.3, 0)  # 0.3 is less than 3/10: the product in float64 is a tie all the same
def test_half_away_of_a_float64_product(numbers: list[int], real: float, zero_point: int) -> None:
    levels = half_away_form(real, zero_point, INT8).levels(array(numbers))
    steps = [half_away(Fraction(float(number) * real)) for number in numbers]
    np.testing.assert_array_equal(levels, np.clip(np.array(steps) + zero_point, *INT8))


def test_half_away_is_computed_where_31_bits_do_not_do() -> None:
    real = np.array([0.3, 0.25 * (1 - 2.0**-50)])  # the second: 2 times it is below a half by less than 2^-31
    form = half_away_form(real, 0, INT8)
    assert isinstance(form, ComputedRescale)
    np.testing.assert_array_equal(form.levels(array([[5, 2], [-5, -2]])), [[2, 0], [-2, 0]])
    assert isinstance(half_away_form(real[:1], 0, INT8), IntegerRescale)


near_ties = st.builds(lambda half, away: (half, away), st.integers(0, 2**15), st.integers(-2, 2))


@given(
    st.one_of(multipliers, st.floats(2.0**-16, 2.0**10)), st.lists(near_ties, min_size=1, max_size=8),
    st.lists(st.integers(-(2**36), 2**36), max_size=4),
)  # fmt: skip
@example(1 / 3, [(0, 0), (1, 0), (4, 0), (16384, 0)], [])
@example(0.9 * 2.0**-9, [(1, 0), (4, 0), (32767, 0)], [])
def test_half_away_of_16_bit_levels(real: float, halves: list[tuple[int, int]], others: list[int]) -> None:
    """Sums around those at which levels change, where 31 bits of the multiplier do not do."""
    positive = [round((half + 0.5) / real) + away for half, away in halves]
    numbers = [one for one in (*positive, *(-one for one in positive), *others) if abs(one) <= 2**36]
    form = half_away_form(real, 0, (-(2**15), 2**15 - 1))
    steps = [half_away(Fraction(float(number) * real)) for number in numbers]
    np.testing.assert_array_equal(form.levels(array(numbers)), np.clip(steps, -(2**15), 2**15 - 1))


def test_most_factors_of_16_bit_levels_have_an_integer_form() -> None:
    rng = np.random.default_rng(0)
    for real in (rng.uniform(2.0**-11, 2.0**-9, 100), rng.uniform(2.0**-16, 2.0**-14, 20), 2.0 ** -np.arange(12.0)):
        assert isinstance(half_away_form(real, 0, (-(2**15), 2**15 - 1)), IntegerRescale)


@given(st.floats(2.0**-31, 2.0**29))
def test_multipliers_are_the_nearest_of_31_bits(real: float) -> None:
    multiplier = quantized_multiplier(real)
    assert 2**30 <= multiplier.q31 < 2**31
    held = int(multiplier.q31) * Fraction(2) ** (int(multiplier.shift) - 31)
    assert abs(held - Fraction(real)) <= Fraction(2) ** (int(multiplier.shift) - 32)


def test_multipliers_at_the_ends() -> None:
    ends = quantized_multiplier([0.0, 2.0**-40, 1 - 2.0**-40, 2.0**40])
    np.testing.assert_array_equal(ends.q31, [0, 0, 2**30, 2**31 - 1])
    np.testing.assert_array_equal(ends.shift, [0, 0, 1, 30])
    for rule in RULES.values():
        assert (rule.form(quantized_multiplier(2.0**-40), 0, INT8).levels(array([-(2**31), 2**31 - 1])) == 0).all()


def test_sixteen_bit_products() -> None:
    """Gemmlowp's SaturatingRoundingDoublingHighMul of int16."""
    found = fixed_point.doubling_high_multiply_16_bits(array([3, -3, 16384, -16384, 1, -1]), array(16384))
    np.testing.assert_array_equal(found, [2, -1, 8192, -8192, 1, 0])

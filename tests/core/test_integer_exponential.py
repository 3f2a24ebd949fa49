"""Exponentials in integers: every input of every type, and what fits int32."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from narrowgauge.core.integer_exponential import (
    code_weights,
    exponential_codes,
    exponential_table,
    most_shift,
    most_table_bits,
    polynomial_exponential,
)
from narrowgauge.errors import PlanError

LARGEST = 2**31 - 1

scales = st.one_of(
    st.floats(1e-4, 1.6),
    st.integers(1, 12).map(lambda power: 2.0**-power),
    st.integers(1, 2**20).map(lambda constant: math.sqrt(1 / 0.35815147 / constant)),  # where the constant changes
)


@given(scales, st.integers(1, 31), st.sampled_from([256, 65536]))
def test_the_table_is_exact_to_half_a_unit(scale: float, bits: int, count: int) -> None:
    table = exponential_table(scale, bits=bits, count=count)
    one = 2**bits - 1
    assert table[0] == one
    assert table.shape == (count,)
    assert (np.diff(table) <= 0).all()
    assert (np.abs(table / one - np.exp(-np.arange(count) * scale)) <= 0.5 / one * (1 + 1e-9)).all()


@given(scales, st.sampled_from([1, 2, 49, 197, 577, 4096]), st.sampled_from([0, 255]))
@example(0.08, 197, 255)
@example(0.2, 197, 255)
def test_i_exp_fits_int32_up_to_the_greatest_shift_and_no_further(scale: float, tokens: int, steps: int) -> None:
    """All inputs of 8 and of 16 bits; the worst row is that of equal tokens, whose exponentials are all greatest."""
    shift = most_shift(scale, tokens=tokens, steps=steps)
    constant = math.floor(1 / 0.35815147 / scale**2)
    if shift >= 0:
        exponential = polynomial_exponential(scale, shift=shift)
        table = exponential.table(65536)  # asserts every step
        assert (table >= 0).all()
        assert table.max() == table[0] == constant << shift
        assert tokens * int(table[0]) <= LARGEST
        assert steps * int(table[0]) + tokens * int(table[0]) // 2 <= LARGEST
    over = constant << (shift + 1)
    assert shift == 30 or max(tokens * over, steps * over + tokens * over // 2) > LARGEST


@pytest.mark.parametrize("shift", range(31))
def test_the_smallest_scale_of_each_shift(shift: int) -> None:
    """`constant << shift` fits while the constant is at most `(2^31 - 1) >> shift`: a bound of the scale."""
    constant = LARGEST >> shift
    scale = math.sqrt(1 / 0.35815147 / (constant + 0.5))
    if constant <= 2**25:  # where a float64 tells one constant from the next with room
        assert most_shift(scale) == shift
        assert polynomial_exponential(scale, shift=shift).table(65536).max() == constant << shift
        with pytest.raises(PlanError, match="fits int32 with a shift of 0 to"):
            polynomial_exponential(math.sqrt(1 / 0.35815147 / (constant + 1.5)), shift=shift)


@pytest.mark.parametrize("scale", [0.01, 0.05, 0.08, 0.2, 0.5, 1.0, 1.18])
def test_the_published_shift_overflows(scale: float) -> None:
    with pytest.raises(PlanError, match="use fewer bits, or the table"):
        polynomial_exponential(scale, shift=30)


def test_the_published_shift_fits_only_where_a_level_is_more_than_a_factor_of_three() -> None:
    assert polynomial_exponential(1.2, shift=30).table().max() == 2**30


@given(scales, st.integers(0, 12))
def test_i_exp_is_the_published_formula(scale: float, shift: int) -> None:
    """As FQ-ViT writes it, in float64, which holds these integers."""
    if shift > most_shift(scale):
        return
    x = -np.arange(256.0)
    x0 = np.floor(-0.6931 / scale)
    x = np.maximum(x, shift * x0)
    q = np.floor(x / x0)
    r = x - x0 * q
    z = r * (r + np.floor(0.96963238 / 0.35815147 / scale)) + np.floor(1 / 0.35815147 / scale**2)
    published = np.maximum(np.floor(z * 2.0 ** (shift - q)), 0)
    np.testing.assert_array_equal(polynomial_exponential(scale, shift=shift).table(), published)


def test_the_table_is_far_more_accurate_at_the_scales_of_attention() -> None:
    for scale in (0.08, 0.2):
        exact = np.exp(-np.arange(256) * scale)
        table, polynomial = exponential_table(scale), polynomial_exponential(scale, shift=13).table()
        near = exact > 0.01
        assert np.abs(table / table[0] / exact - 1)[near].max() < 0.002
        assert np.abs(polynomial / polynomial[0] / exact - 1)[near].max() > 0.15


@given(st.integers(1, 70000), st.sampled_from([0, 1, 255, 256]))
@example(512, 255)
@example(65538, 255)
def test_the_widest_table_of_a_row(tokens: int, steps: int) -> None:
    def greatest(bits: int) -> int:
        entry = 2**bits - 1
        return max(tokens * entry, steps * entry + tokens * entry // 2)

    bits = most_table_bits(tokens, steps=steps)
    assert greatest(bits) <= LARGEST < greatest(bits + 1)


def test_the_widths_that_the_docstring_names() -> None:
    assert [most_table_bits(tokens) for tokens in (512, 513, 65538, 65539)] == [22, 21, 15, 14]
    assert [most_shift(scale, tokens=197, steps=255) for scale in (0.08, 0.2, 0.0006)] == [13, 16, -1]
    assert [most_shift(scale) for scale in (0.08, 0.2, 0.0006)] == [22, 24, 8]
    assert most_table_bits(2**31) == 0


@given(scales, st.sampled_from([(4, 0), (5, 1), (8, 4), (8, 0)]), st.sampled_from([256, 65536]))
def test_codes_are_rounded_logarithms(scale: float, widths: tuple[int, int], count: int) -> None:
    bits, octave_bits = widths
    codes = exponential_codes(scale, bits=bits, octave_bits=octave_bits, count=count)
    assert codes[0] == 0
    assert (np.diff(codes) >= 0).all()
    exact = np.arange(count) * scale / math.log(2) * 2**octave_bits
    assert (np.abs(codes - np.minimum(exact, 2**bits)) <= 0.5 + 1e-6).all()
    weights = code_weights(bits=bits, octave_bits=octave_bits)[codes]
    kept = (codes < 2**bits) & (exact < 13 * 2**octave_bits)
    # Half a code, and half a unit of a weight of 4 units at least.
    factor = 2.0 ** (0.5 / 2**octave_bits) * (1 + 1e-6) * (1 if octave_bits == 0 else 1.126)
    ratio = weights[kept] / (2.0**15 * np.exp(-np.arange(count) * scale)[kept])
    assert ratio.max() <= factor
    assert ratio.min() >= 1 / factor


def test_what_codes_stand_for() -> None:
    np.testing.assert_array_equal(code_weights(), [*(2**15 >> np.arange(16)), 0])
    np.testing.assert_array_equal(code_weights(shift=3), [8, 4, 2, 1, *[0] * 13])
    np.testing.assert_array_equal(code_weights(bits=8)[:17], [*(2**15 >> np.arange(16)), 0])
    sixteenths = code_weights(bits=8, octave_bits=4)
    assert sixteenths.shape == (257,)
    assert sixteenths[[0, 16, 32, 255, 256]].tolist() == [2**15, 2**14, 2**13, 1, 0]
    assert sixteenths[8] == round(2**14.5)


@pytest.mark.parametrize("scale", [0.0, -0.1, math.inf, math.nan])
def test_scales_that_are_none(scale: float) -> None:
    with pytest.raises(PlanError, match="positive and finite"):
        exponential_table(scale)
    with pytest.raises(PlanError, match="positive and finite"):
        exponential_codes(scale)
    with pytest.raises(PlanError, match="positive and finite"):
        polynomial_exponential(scale, shift=1)


def test_what_is_refused() -> None:
    with pytest.raises(PlanError, match="1 to 31 bits, got 32"):
        exponential_table(0.1, bits=32)
    with pytest.raises(PlanError, match="1 to 15 bits, some of which part an octave, got 16 and 0"):
        exponential_codes(0.1, bits=16)
    with pytest.raises(PlanError, match="got 4 and 5"):
        code_weights(bits=4, octave_bits=5)
    with pytest.raises(PlanError, match=r"below 1\.67"):
        polynomial_exponential(2.0, shift=1)

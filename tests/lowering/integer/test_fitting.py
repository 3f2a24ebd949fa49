"""Integer forms of rescales against the rescales themselves, sum by sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowgauge.core.engines.fixed_point import DOUBLE_ROUNDING, SINGLE_ROUNDING, integer_rescale, quantized_multiplier
from narrowgauge.core.engines.rescale import ComputedRescale, FloatRescale, IntegerRescale, Rescale
from narrowgauge.errors import PlanError
from narrowgauge.lowering.integer.fitting import integer_form, saturation, thresholds, within_62_bits

REACH = 5000


def sums_of(channels: int) -> np.ndarray:
    return np.broadcast_to(np.arange(-REACH, REACH + 1)[:, None], (2 * REACH + 1, channels))


def ends(channels: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(channels, -REACH), np.full(channels, REACH)


def double_rounding(real: np.ndarray, low: int, high: int) -> IntegerRescale:
    return DOUBLE_ROUNDING.form(quantized_multiplier(real), 3, (low, high))


multipliers = st.one_of(
    st.floats(1e-5, 3.0),
    st.integers(-14, 1).map(lambda power: 2.0**power),
    st.tuples(st.integers(1, 9), st.integers(4, 12)).map(lambda pair: pair[0] * 0.3 * 2.0 ** -pair[1]),
)


@settings(max_examples=60)
@given(
    real=st.lists(multipliers, min_size=1, max_size=4), low=st.sampled_from([-128, 3, 0]),
    kind=st.sampled_from(["double", "float", "computed", "jumps"]), offset=st.floats(-3, 3),
)  # fmt: skip
def test_every_sum_has_the_level_of_the_rule(real: list[float], low: int, kind: str, offset: float) -> None:
    factors = np.array(real)
    rescale: Rescale
    if kind == "double":
        rescale = double_rounding(factors, low, 127)
    elif kind == "float":
        rescale = FloatRescale(multiplier=factors.astype(np.float32), zero_point=-7, low=low, high=127)
    else:
        steps = factors.astype(np.float32) * np.float32(300 if kind == "jumps" else 1)

        def compute(sums: np.ndarray) -> np.ndarray:
            made = (np.asarray(sums).astype(np.float32) + np.float32(offset)) * steps
            return np.clip(np.rint(made) + 5, low, 127).astype(np.int64)

        rescale = ComputedRescale(compute=compute, channels=len(real), low=low, high=127)
    low_sums, high_sums = saturation(rescale, *ends(len(real)))
    form = integer_form(rescale, low_sums, high_sums)
    sums = sums_of(len(real))
    np.testing.assert_array_equal(form.levels(np.clip(sums, low_sums, high_sums)), rescale.levels(sums))


def test_thresholds_are_the_least_sums_of_levels() -> None:
    rescale = double_rounding(np.array([0.013, 0.4]), -128, 127)
    levels = np.arange(-127, 128)
    found = thresholds(rescale, levels, *ends(2))
    all_levels = rescale.levels(sums_of(2))
    for channel in range(2):
        for level, threshold in zip(levels, found[:, channel], strict=True):
            reached = np.flatnonzero(all_levels[:, channel] >= level)
            assert threshold == (reached[0] - REACH if len(reached) else REACH + 1)


def test_beyond_saturation_sums_are_cut() -> None:
    rescale = double_rounding(np.array([0.1, 2.0, 1e-9]), -128, 127)
    low, high = saturation(rescale, *ends(3))
    assert rescale.levels(low[None]).tolist() == [[-128, -128, 3]]
    assert rescale.levels(high[None]).tolist() == [[127, 127, 3]]
    assert (low[:2] > -REACH).all()
    assert (high[:2] < REACH).all()


def test_rounding_twice_needs_no_sign_above_zero() -> None:
    """A fused Relu cuts off negative sums, and with them the inner clip of gemmlowp's rule."""
    with_sign = double_rounding(np.array([0.0137, 0.0021]), -128, 127)
    without = double_rounding(np.array([0.0137, 0.0021]), 3, 127)
    assert integer_form(with_sign, *ends(2)).rescale.above.any()
    low, high = saturation(without, *ends(2))
    assert not integer_form(without, low, high).rescale.above.any()


def test_a_rule_that_turns_too_late_for_a_line_is_told_where_levels_begin() -> None:
    """Levels begin at 1, 2, 4, 8, ...: no line, nor one that is late by one level."""
    rescale = ComputedRescale(
        compute=lambda sums: np.floor(np.log2(np.maximum(sums, 1))).astype(np.int64), channels=1, low=0, high=12
    )
    with pytest.raises(PlanError, match="no arithmetic in 64-bit integers gives the engine's levels"):
        integer_form(rescale, np.array([1]), np.array([4096]))


def test_large_sums_of_float32_are_compared_with_where_levels_begin() -> None:
    """Float32 is coarser than these sums, so that many levels begin a little early or late."""
    factor = np.float32(127 / 2**24 / 1.3)

    def compute(sums: np.ndarray) -> np.ndarray:
        made = (np.asarray(sums).astype(np.float32) * np.float32(1 / 3) + np.float32(0.3)) * (factor * 3)
        return np.clip(np.rint(made), 0, 127).astype(np.int64)

    rescale = ComputedRescale(compute=compute, channels=1, low=0, high=127)
    least, greatest = np.array([-(2**24)]), np.array([2**25])
    form = integer_form(rescale, least, greatest)
    assert form.begins is not None
    levels = np.arange(1, 128)
    around = (thresholds(rescale, levels, least, greatest) + np.arange(-3, 4)).reshape(-1, 1)
    np.testing.assert_array_equal(form.levels(around), rescale.levels(around))


def test_sums_that_overflow_the_engine_are_refused() -> None:
    """A multiplier of 64 shifts sums by 7 bits: beyond 2^24 LiteRT's int32 is anything."""
    least, most = np.array([-(2**24), -100]), np.array([2**24, 100])
    form = double_rounding(np.array([64.0, 2.0**20]), -128, 127)
    np.testing.assert_array_equal(within_62_bits(form, least, most), (least, most))
    with pytest.raises(PlanError, match="a unit of the sum is 64 steps of the output and sums reach 1073741824"):
        within_62_bits(form, least, most * np.array([64, 1]))
    once = SINGLE_ROUNDING.form(quantized_multiplier([64.0]), 3, (-128, 127))  # its product is one of int64
    assert within_62_bits(once, least[:1] * 64, most[:1] * 64)[1] == 2**30


def test_sums_beyond_62_bits_are_cut_where_levels_no_longer_change() -> None:
    least, most = np.array([-(2**40)]), np.array([2**40])
    form = integer_rescale([2**31 - 1], 2**39, 40, (-1, 0), 0, (-(2**15), 2**15 - 1))
    low, high = within_62_bits(form, least, most)
    assert (low, high) == (-(2**31), 2**31)
    assert saturation(form, low, high)[1] < 2**25
    flat = integer_rescale([2**31 - 1], 2**53, 54, (-1, 0), 0, (-(2**15), 2**15 - 1))
    with pytest.raises(PlanError, match="their product exceeds the engine's integers"):
        within_62_bits(flat, least, most)

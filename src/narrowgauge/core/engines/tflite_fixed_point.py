"""Sigmoid and tanh of 16 bits, in integers, as TensorFlow Lite's integer LSTM computes them.

Everything is written in int64, which holds every product; `_wrapped` says where the kernel's type of 16 bits would
wrap. Levels of 16 bits are looked up in tables of 65536 entries, the entry of level `x` at `x + 32768`.

Source: gemmlowp, fixedpoint/fixedpoint.h (`logistic`, `tanh`, `exp_on_negative_values`) of `FixedPoint<int16_t, n>`.
Measured on ai-edge-litert 2.3, x86-64: no differing integer of LSTMs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from narrowgauge.core.engines.fixed_point import Integers, divide_by_power_of_two, doubling_high_multiply_16_bits

LEAST, GREATEST = -(2**15), 2**15 - 1

GATE_BITS = 3
"""Integer bits of what goes into the gates' activation functions: levels of 2^-12 between -8 and 8."""

_EXPONENTIALS = (
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)
"""n, exp(-2^n) in units of 2^-31."""  # fmt: skip


def saturated(values: npt.ArrayLike) -> Integers:
    """Keep values within 16 bits."""
    return np.clip(np.asarray(values, dtype=np.int64), LEAST, GREATEST)


@cache
def sigmoid_table() -> Integers:
    """Sigmoid of levels of 2^-12, in units of 2^-15."""
    levels = np.arange(LEAST, GREATEST + 1)
    positive = levels > 0
    magnitude = _wrapped(np.where(positive, levels, -levels))
    result = _times_power(_reciprocal_iteration(_exponential(_wrapped(-magnitude), GATE_BITS)), 1)
    table = np.where(levels == 0, 1 << 14, np.where(positive, result, _wrapped(GREATEST - result)))
    table.setflags(write=False)
    return table


@cache
def tanh_table(integer_bits: int) -> Integers:
    """Tanh of levels of 2^(integer_bits - 15), in units of 2^-15.

    Args:
        integer_bits: 0 to 6.
    """
    levels = np.arange(LEAST, GREATEST + 1)
    negative = levels < 0
    minus_magnitude = np.where(negative, levels, -levels)
    quotient = _reciprocal_iteration(_exponential(minus_magnitude, integer_bits + 1))
    result = _times_power(_wrapped(quotient - (1 << 13)), 2)
    table = np.where(levels == 0, 0, np.where(negative, _wrapped(-result), result))
    table.setflags(write=False)
    return table


def _exponential(levels: Integers, integer_bits: int) -> Integers:
    """exp(x) of x below 0, in units of 2^-15."""
    fraction_bits = 15 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    within = (levels & (quarter - 1)) - quarter  # between -1/4 and 0
    result = _exponential_of_quarter(_times_power(within, integer_bits))
    remainder = _wrapped(within - levels)
    for power, exponential in _EXPONENTIALS:
        if integer_bits > power:
            chosen = remainder & int(_wrapped(np.int64(1 << (fraction_bits + power))))
            result = np.where(chosen != 0, doubling_high_multiply_16_bits(result, _constant(exponential)), result)
    if integer_bits > 5:
        result = np.where(levels < _constant(-(1 << (36 - integer_bits))), 0, result)
    return np.where(levels == 0, GREATEST, result)


def _exponential_of_quarter(levels: Integers) -> Integers:
    """exp(x) of x between -1/4 and 0, both in units of 2^-15: four terms of the series around -1/8."""
    middle, third = _constant(1895147668), _constant(715827883)  # exp(-1/8), 1/3
    x = levels + (1 << 12)
    x2 = doubling_high_multiply_16_bits(x, x)
    x3, x4 = doubling_high_multiply_16_bits(x2, x), doubling_high_multiply_16_bits(x2, x2)
    rest = divide_by_power_of_two(doubling_high_multiply_16_bits(divide_by_power_of_two(x4, 2) + x3, third) + x2, 1)
    return saturated(middle + doubling_high_multiply_16_bits(np.int64(middle), x + rest))


def _reciprocal_iteration(levels: Integers) -> Integers:
    """2 / (1 + x) of x between 0 and 1, in units of 2^-13: three steps of Newton and Raphson."""
    # gemmlowp's RoundingHalfSum: ties away from zero, and no sum here is negative.
    half_denominator = (levels + GREATEST + 1) >> 1
    intercept, slope = _constant(1515870810), _constant(-1010580540)  # 48/17, -32/17
    result = _wrapped(intercept + doubling_high_multiply_16_bits(half_denominator, slope))
    for _ in range(3):
        error = _wrapped((1 << 13) - doubling_high_multiply_16_bits(half_denominator, result))
        result = _wrapped(result + _times_power(doubling_high_multiply_16_bits(result, error), 2))
    return result


def _times_power(levels: Integers, exponent: int) -> Integers:
    """Multiply by 2^exponent, 0 or more, and saturate."""
    return saturated(levels << exponent)


def _constant(number: int) -> int:
    """A constant of 32 bits in 16."""
    return int(divide_by_power_of_two(np.asarray(number, dtype=np.int64), 16))


def _wrapped(values: npt.ArrayLike) -> Integers:
    return np.asarray(values, dtype=np.int64).astype(np.int16).astype(np.int64)

"""Exponentials of differences of levels, in integers: tables, and I-BERT's polynomial beside them.

A softmax needs `exp(-k * scale)` of the differences `k = 0, 1, 2, ...` between the greatest level of a row and the
others. Levels of 8 bits have 256 differences, so a table holds every value that can occur, each rounded once. It is
the one to use: exact to half a unit, where the polynomial is off by 18 % of exponentials above 0.01 at a scale of 0.08,
and by 76 % at 0.2, since `ln 2` is a whole number of levels; one look-up for a division, two products and two shifts;
and its width is chosen, not given by the scale. `PolynomialExponential` is what FQ-ViT computes. `exponential_codes`
rounds exponentials to powers of two, or to parts of an octave, so that what multiplies values is a shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from narrowgauge.core.integer_width import LARGEST_INT32, Integers, within
from narrowgauge.errors import PlanError

_LN2 = 0.6931
_SQUARE = 0.35815147
_LINEAR = 0.96963238


def exponential_table(scale: float, *, bits: int = 15, count: int = 256) -> Integers:
    """Tabulate `round((2^bits - 1) exp(-k scale))` for `k = 0 ... count - 1`: each fits `bits` bits, unsigned.

    Args:
        scale: real value of one level of the softmax's input, whatever it is multiplied by before included.
        bits: of an entry, 1 to 31. With 15 a row of 65538 tokens adds up in int32 (`most_table_bits`).
        count: how many differences occur: 256 of 8-bit levels.

    Raises:
        PlanError: the scale is not positive and finite, or the width none of these.
    """
    _check_scale(scale)
    if not 1 <= bits <= 31:
        raise PlanError(f"expected exponentials of 1 to 31 bits, got {bits}")
    entries = np.rint(np.exp(-np.arange(count) * scale) * (2**bits - 1))
    return within(entries, bits + 1)


def exponential_codes(scale: float, *, bits: int = 4, octave_bits: int = 0, count: int = 256) -> Integers:
    """Tabulate `-log2` of the exponentials, rounded: `round(k scale / ln 2)`, for `k = 0 ... count - 1`.

    The codes of Log-Int-Softmax, but of the exponentials instead of the probabilities: a table says them, without the
    row's sum, and the division that the sum asks for comes behind the product with the values (`DeferredSoftmax`).
    That makes up for what rounding adds to all weights of a row: 25.7 dB instead of 17.8 on ViT-Ti.

    Args:
        scale: real value of one level of the softmax's input, whatever it is multiplied by before included.
        bits: of a code, 1 to 15.
        octave_bits: of a code, those that part an octave: none of 4 bits, 4 of 8 bits reach down to `2^-16` both.
        count: how many differences occur: 256 of 8-bit levels.

    Returns:
        Codes of 0 to `2^bits`, which means 0.

    Raises:
        PlanError: the scale is not positive and finite, or a width none of these.
    """
    _check_scale(scale)
    _check_code(bits, octave_bits)
    octaves = np.minimum(np.arange(count) * (scale / math.log(2)), 2.0**bits)
    return within(np.minimum(np.rint(octaves * 2**octave_bits), 2**bits), bits + 2)


def code_weights(*, bits: int = 4, octave_bits: int = 0, shift: int = 15) -> Integers:
    """Tabulate what the codes `0 ... 2^bits` stand for, in units of `2^-shift`: `1 << (shift - code)` of octaves.

    Codes beyond `shift` octaves carry nothing, and `2^bits` means 0. Parts of an octave are rounded to a unit. Sums of
    8-bit values fit int32 with 257 tokens and a shift of 15, 1028 with 13, which is as accurate on ViT-Ti;
    there the code 15 stands for 0 anyway, so that 4 bits store every code.

    Raises:
        PlanError: a width that codes cannot have.
    """
    _check_code(bits, octave_bits)
    octaves = np.arange(2**bits + 1) / 2**octave_bits
    weights = np.rint(np.exp2(shift - octaves)).astype(np.int64)
    weights[-1] = 0
    return within(weights, shift + 2)


def most_table_bits(tokens: int, *, steps: int = 255) -> int:
    """Return the widest entries with which a softmax of so many tokens stays within int32, 0 where none does.

    Both must fit: the sum of the row, `tokens * e`, and the numerator of its division, `steps * e + sum / 2`. Of 255
    steps: 22 bits up to 512 tokens, 15 bits up to 65 538.
    """
    fitting = (
        bits
        for bits in range(31, 0, -1)
        if tokens * (2**bits - 1) <= LARGEST_INT32
        and steps * (2**bits - 1) + tokens * (2**bits - 1) // 2 <= LARGEST_INT32
    )
    return next(fitting, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolynomialExponential:
    """I-BERT's i-exp as FQ-ViT writes it: `((r (r + linear) + constant) << (shift - q))`, `k = q * halving - r`.

    Kim, Gholami, Yao, Mahoney, Keutzer, "I-BERT: Integer-only BERT Quantization", 2021, section 3.5; Lin et al.,
    "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022, and their code
    (models/ptq/layers.py, QIntSoftmax), whose coefficients, `0.35815147 x^2 + 0.96963238 x + 1`, and whose
    `x0 = floor(-0.6931 / scale)` these are. Differs: integers, where theirs are float32 numbers of 24 bits. One unit
    is `0.35815147 scale^2 / 2^shift`; a softmax divides by it.

    | number | bound | bits, the sign's included |
    |---|---|---|
    | `k` cut at `shift * halving` | `31 (0.6931 / scale + 1)` | 24 |
    | `r (r + linear)` | `constant` | 32 |
    | `r (r + linear) + constant` | `constant` | 32 |
    | result | `constant << shift` | 32 |

    `constant = floor(2.7921 / scale^2)`, so the result fits int32 if and only if `constant << shift` does:
    `most_shift`. FQ-ViT's shift of 30 fits only where `constant` is 1, a scale above 1.18, which no attention has.

    Attributes:
        halving: levels over which the exponential halves, at least 1.
        linear: coefficient, in levels.
        constant: coefficient, in levels squared, at least 1.
        shift: bits behind the point. A difference beyond `shift * ln 2` counts as that: no result is less than
            `2^-shift` of the greatest.
    """

    halving: int
    linear: int
    constant: int
    shift: int

    def values(self, differences: Integers) -> Integers:
        """Compute the exponentials of differences, 0 or more, any shape."""
        cut = within(np.minimum(differences, self.shift * self.halving), 24)
        quotient = cut // self.halving
        rest = quotient * self.halving - cut
        square = within(rest * (rest + self.linear), 32)
        polynomial = within(np.maximum(square + self.constant, 0), 32)
        return within(polynomial << (self.shift - quotient), 32)

    def table(self, count: int = 256) -> Integers:
        """Tabulate it for the differences `0 ... count - 1`: what a softmax takes."""
        return self.values(np.arange(count, dtype=np.int64))


def polynomial_exponential(scale: float, *, shift: int) -> PolynomialExponential:
    """Find the integers of i-exp for one scale.

    Raises:
        PlanError: the scale is not positive and finite; or too great, so that no polynomial is left; or the results
            do not fit int32.
    """
    _check_scale(scale)
    constant = _constant(scale)
    if constant < 1:
        raise PlanError(f"i-exp needs a scale below 1.67, since a level is less than exp(-1.67) else; got {scale}")
    if not 0 <= shift <= 30 or constant << shift > LARGEST_INT32:
        raise PlanError(
            f"i-exp of the scale {scale} fits int32 with a shift of 0 to {most_shift(scale)}, got {shift}; "
            "use fewer bits, or the table of exponentials"
        )
    return PolynomialExponential(
        halving=-math.floor(-_LN2 / scale),
        linear=math.floor(_LINEAR / _SQUARE / scale),
        constant=constant,
        shift=shift,
    )


def most_shift(scale: float, *, tokens: int = 1, steps: int = 0) -> int:
    """Return the greatest shift of i-exp with which a row of so many tokens stays within int32, -1 where none does.

    The sum `tokens * e` must fit and, for codes of `steps` levels, the numerator `steps * e + sum / 2`. With 197
    tokens and 255 steps: 13 at a scale of 0.08, 16 at 0.2; at 0.0006, levels of 16 bits over a range of 40, none. One
    exponential by itself: 22, 24 and 8.
    """
    constant = _constant(scale)
    most = max(tokens * constant, steps * constant + tokens * constant // 2)
    return min((LARGEST_INT32 // max(most, 1)).bit_length() - 1, 30)


def _constant(scale: float) -> int:
    return math.floor(1.0 / _SQUARE / scale**2)


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise PlanError(f"expected the scale of a softmax's input to be positive and finite, got {scale}")


def _check_code(bits: int, octave_bits: int) -> None:
    if not (1 <= bits <= 15 and 0 <= octave_bits <= bits):
        raise PlanError(f"expected codes of 1 to 15 bits, some of which part an octave, got {bits} and {octave_bits}")

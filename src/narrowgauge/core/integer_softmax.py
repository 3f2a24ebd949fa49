"""Softmax over levels in integers: codes per tensor, codes per row with the division behind the product, logarithms.

Every form takes levels [..., queries, tokens], subtracts each from the greatest of its row (so that the input's zero
point is of no matter) and looks the exponential up (`integer_exponential`). They differ in what becomes of it:

- `UniformSoftmax`: `round(steps e / sum)`, one division for each number. Small probabilities share the few lowest
  levels, of which 1 / 255 is one.
- `DeferredSoftmax`: exponentials multiply the values as they are, and each row is divided once, behind the product.
  Every row has all levels for itself, no number is rounded twice, and the weights of a row add up to 1 exactly, however
  coarse they are. Where the exponentials are powers of two (`exponential_codes` of 4 bits), that product is shifts.
- `LogIntSoftmax`: FQ-ViT's 4 bits, `-log2(e / sum)` rounded, one division for each number; the product is shifts.

Attention of the 12 blocks of ViT-Ti against float64 on the same levels, mean and worst SQNR in dB (8 images; scores and
values of 8 bits, attention not rounded here; rounding it to 8 bits leaves 32.8 and 29.2 of an exact softmax):

| softmax | mean | worst |
|---|---|---|
| `UniformSoftmax`, 255 steps | 23.8 | 14.1 |
| the same, exponentials by the polynomial with its greatest shift | 22.4 | 15.6 |
| `LogIntSoftmax`, 4 bits, three halves | 17.8 | 13.9 |
| `LogIntSoftmax`, 4 bits, square root of two | 19.0 | 15.1 |
| `DeferredSoftmax`, codes of 4 bits | 25.7 | 22.7 |
| `DeferredSoftmax`, codes of 8 bits (sixteenths of an octave) | 49.7 | 47.5 |
| `DeferredSoftmax`, exponentials of 8 bits | 36.4 | 27.6 |
| `DeferredSoftmax`, exponentials of 15 bits | 79.4 | 67.8 |

`kept`, booleans that broadcast against the levels, says which tokens take part: the windows of a Swin transformer. A
mask that is added to the logits cannot be rounded to 8 bits with them. A row without any kept token is all zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.integer_exponential import code_weights
from narrowgauge.core.integer_logarithm import Threshold, ratio_thresholds
from narrowgauge.core.integer_width import LARGEST_INT32, Integers, within
from narrowgauge.errors import PlanError

Kept = npt.NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSoftmax:
    """Softmax in levels of `1 / steps`, zero point 0: `(steps e + (sum >> 1)) // sum`, which is half up.

    | number | bits, unsigned; n those of an exponential, N tokens |
    |---|---|
    | exponential | n |
    | sum | n + log2 N |
    | `steps e + sum / 2` | the greater of n + 8 and the sum's, plus 1 |

    All fit int32 with as many bits as `most_table_bits` or as great a shift as `most_shift` says.

    Attributes:
        exponentials: of the differences 0, 1, 2, ..., from a table or a polynomial; never rising.
        steps: levels that stand for 1.
    """

    exponentials: Integers
    steps: int = 255

    def levels(self, levels: Integers, kept: Kept = None) -> Integers:
        """Compute the levels of rows [..., tokens].

        Raises:
            PlanError: more tokens than fit int32.
        """
        parts, total = _parts(self.exponentials, levels, kept)
        _check(total.size and int(total.max()) // 2 + self.steps * int(self.exponentials[0]), levels.shape[-1])
        numerator = within(self.steps * parts + (total >> 1), 32)
        return np.asarray(numerator // np.maximum(total, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class DeferredSoftmax:
    """Softmax times values, one division a row: `(sum(e v) (multiplier + s/2) // s + half) >> shift`, `s = sum(e)`.

    | number | bits, the sign's included; N tokens |
    |---|---|
    | exponential | n, unsigned |
    | row's sum `s`, at least the first exponential | 1 + n + log2 N |
    | `v`, a level less its zero point | 9 |
    | `sum(e v)` | 9 + n + log2 N: int32 up to 33 025 tokens of 8 bits, 257 of `2^15` |
    | row's reciprocal `(multiplier + s/2) // s` | 32; its numerator 32 + n, one number a row |
    | product of both | 41 + n: `sum(e v) / s` is at most 255 |

    The result is that of an exact division but for ties within `2^-15` of a level (of 197 tokens of 8 bits; the
    reciprocal is rounded to a half, and the sum multiplies that). Where a target multiplies bytes only, exponentials of
    more than 8 bits are two bytes, and the sum is 256 times that of the high ones plus that of the low ones.

    Attributes:
        exponentials: of the differences 0, 1, 2, ...; never rising.
        multiplier: real value of one level of `v` in levels of the output, times `2^shift`.
        shift: bits behind the point.
        zero_point: of the output.
        low: least level that is written.
        high: greatest level.
    """

    exponentials: Integers
    multiplier: int
    shift: int
    zero_point: int
    low: int
    high: int

    def levels(self, levels: Integers, values: Integers, kept: Kept = None) -> Integers:
        """Compute the levels of attention.

        Args:
            levels: of the logits, [..., queries, tokens].
            values: levels less their zero point, -255 to 255, [..., tokens, channels].
            kept: which tokens take part.

        Returns:
            Levels, [..., queries, channels].

        Raises:
            PlanError: more tokens than fit int32.
        """
        parts, total = _parts(self.exponentials, levels, kept)
        one = int(self.exponentials[0])
        _check(255 * one * levels.shape[-1], levels.shape[-1])
        sums = within(parts @ within(values, 9), 32)
        divisor = np.maximum(total, one)
        reciprocal = within((self.multiplier + (divisor >> 1)) // divisor, 32)
        product = within(sums * reciprocal, 41 + one.bit_length())
        steps = (product + (1 << (self.shift - 1))) >> self.shift
        return np.asarray(np.clip(steps + self.zero_point, self.low, self.high))


def deferred_softmax(exponentials: Integers, values: Encoding, output: Encoding) -> DeferredSoftmax:
    """Find the integers of a softmax times values.

    Args:
        exponentials: of the differences 0, 1, 2, ...: `exponential_table` of 8 bits or more, or what codes stand for,
            `code_weights()[exponential_codes()]`.
        values: at most 8 bits, one scale.
        output: one scale.

    Raises:
        PlanError: the values have several scales or more than 8 bits, or are far out of proportion to the output.
    """
    if values.scale.ndim or output.scale.ndim or values.type.bits > 8:
        raise PlanError("expected values of at most 8 bits and an output, each with one scale")
    ratio = float(values.scale) / float(output.scale)
    # The reciprocal is greatest where a row's sum is the first exponential alone.
    shift = math.floor(math.log2(float(exponentials[0]) * LARGEST_INT32 / ratio))
    if not 1 <= shift <= 62:
        raise PlanError(f"expected values in proportion to their average, got the scales' ratio {ratio}")
    return DeferredSoftmax(
        exponentials=exponentials,
        multiplier=round(math.ldexp(ratio, shift)),
        shift=shift,
        zero_point=int(output.zero_point),
        low=output.type.minimum,
        high=output.type.maximum,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogIntSoftmax:
    """Log-Int-Softmax: the code of a probability `e / sum` is `-log2` of it, rounded; `2^bits` means 0.

    Lin et al., "FQ-ViT: Post-Training Quantization for Fully Quantized Vision Transformer", 2022,
    "Softmax quantized with Log-Int-Softmax". The ratio `(sum << fraction_bits) // e` is compared with thresholds; it
    has n + log2 N + `fraction_bits` bits, n of them an exponential's, N tokens. Differs: a probability below the last
    code is a code of its own, `2^bits`, where the paper has no bits left to say so. (Where only `bits` are stored, let
    the last code mean 0: with 4 bits that takes `2^-15` from each such token.)

    Attributes:
        exponentials: of the differences 0, 1, 2, ...; never rising.
        thresholds: the least ratio of the codes 1, 2, ... (`ratio_thresholds`).
        fraction_bits: of the ratio.
    """

    exponentials: Integers
    thresholds: Integers
    fraction_bits: int

    def codes(self, levels: Integers, kept: Kept = None) -> Integers:
        """Compute the codes of rows [..., tokens], 0 to `2^bits`.

        Raises:
            PlanError: more tokens than fit int32.
        """
        parts, total = _parts(self.exponentials, levels, kept)
        _check(total.size and int(total.max()) << self.fraction_bits, levels.shape[-1])
        ratio = within(total << self.fraction_bits, 32) // np.maximum(parts, 1)
        codes = np.searchsorted(self.thresholds, ratio, side="right")
        return np.where(parts > 0, codes, len(self.thresholds))


def log_int_softmax(
    exponentials: Integers, *, bits: int, threshold: Threshold, tokens: int
) -> LogIntSoftmax:  # fmt: skip
    """Find the thresholds of a softmax of rows of so many tokens.

    The paper's thresholds take one fraction bit, the square root of 2 up to 8, as int32 leaves room for.

    Raises:
        PlanError: the sum of so many tokens leaves no room in int32.
    """
    room = (LARGEST_INT32 // max(tokens * int(exponentials[0]), 1)).bit_length() - 1
    if room < 1:
        raise PlanError(f"the sum of {tokens} exponentials of {exponentials[0]} leaves no bit of int32; use fewer bits")
    fraction_bits = 1 if threshold == "three_halves" else min(room, 8)
    # A ratio of more than int32 holds does not occur, so thresholds beyond are left at its end.
    count = min(2**bits, 30 - fraction_bits)
    thresholds = np.full(2**bits, LARGEST_INT32, dtype=np.int64)
    thresholds[:count] = ratio_thresholds(threshold, codes=count, fraction_bits=fraction_bits)
    return LogIntSoftmax(exponentials=exponentials, thresholds=thresholds, fraction_bits=fraction_bits)


def attention_by_shifts(codes: Integers, values: Integers, *, bits: int) -> Integers:
    """Sum values that are shifted by codes: `sum(v << (15 - code))`, in units of `2^-15` of a value's level.

    FQ-ViT, the same section: `A V = sum(V << (15 - code)) >> 15`. The shift to the right is left to the rescale
    behind, whose multiplier takes it in without rounding twice. Codes beyond 15, and `2^bits`, carry nothing.

    Bits: with the codes of a softmax of any number of tokens, |sum| <= 1.5 * 255 * 2^15 < 2^24, which is 25 bits with
    the sign: a code's `2^-code` is at most 1.5 times the probability (up to 1.5, where code 0 ends), and these add up
    to 1. With any codes at all, int32 holds 257 tokens.

    Where a target multiplies bytes only: `1 << (15 - code)` is a look-up of its high and its low byte, and the sum is
    256 times that of the high bytes plus that of the low ones.

    Args:
        codes: 0 to `2^bits`, [..., queries, tokens].
        values: levels less their zero point, -255 to 255, [..., tokens, channels].
        bits: of a code.

    Returns:
        [..., queries, channels].
    """
    return within(code_weights(bits=bits)[codes] @ within(values, 9), 32)


def _parts(exponentials: Integers, levels: Integers, kept: Kept) -> tuple[Integers, Integers]:
    """Return the exponentials of rows and their sums, the last axis of the sums kept with an extent of 1."""
    levels = np.asarray(levels, dtype=np.int64)
    least = int(levels.min()) if levels.size else 0
    candidates = levels if kept is None else np.where(kept, levels, least)
    greatest = candidates.max(axis=-1, keepdims=True, initial=least)
    # A level that is not kept may lie above the greatest one.
    parts = exponentials[np.maximum(greatest - levels, 0)]
    parts = parts if kept is None else np.where(kept, parts, 0)
    return parts, parts.sum(axis=-1, keepdims=True)


def _check(greatest: int, tokens: int) -> None:
    if greatest > LARGEST_INT32:
        raise PlanError(f"{tokens} tokens do not fit int32 with exponentials of so many bits; use fewer bits")

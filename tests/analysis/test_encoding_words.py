"""Names, ranges and steps of encodings of every kind."""

import dataclasses

import numpy as np
import pytest

from narrowgauge.analysis.encoding_words import (
    channel_shifts,
    representable,
    scale_words,
    shift_words,
    steps,
    type_words,
)
from narrowgauge.core.encoding import DynamicEncoding, Encoding, LogEncoding, NormalizedEncoding
from narrowgauge.core.granularity import PerAxis, PowerOfTwoFactor
from narrowgauge.core.logarithmic import dequantize_logarithm
from narrowgauge.core.numbers import integer_type

UINT4, UINT8 = integer_type("uint4"), integer_type("uint8")
PARTED = LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two")


def channels(granularity: PerAxis, *scales: float) -> Encoding:
    count = len(scales)
    return Encoding(type=UINT8, granularity=granularity, scale=np.float32(scales), zero_point=np.zeros(count, np.int32))


def test_types_are_named_by_what_levels_mean() -> None:
    assert type_words(channels(PerAxis(0), 1.0)) == "uint8"
    assert type_words(DynamicEncoding(type=UINT8)) == "uint8"
    assert type_words(LogEncoding(type=UINT4)) == "log2 4 bits"
    assert type_words(PARTED) == "log2 8 bits, 16 an octave"
    assert type_words(NormalizedEncoding(type=UINT8)) == "shares 8 bits"
    assert scale_words(NormalizedEncoding(type=UINT8)) == "each row at run time"


def test_shifts_are_those_of_the_channels() -> None:
    factor = channels(PowerOfTwoFactor(-1), 0.3, 0.6, 9.6, 0.3)
    found = channel_shifts(factor)
    assert found is not None
    assert found.tolist() == [0, 1, 5, 0]
    assert shift_words(factor) == "shifts 0 to 5"
    for other in (channels(PerAxis(-1), 0.3, 0.6), channels(PowerOfTwoFactor(-1)), PARTED, None):
        assert channel_shifts(other) is None
        assert shift_words(other) == ""


@pytest.mark.parametrize("encoding", [LogEncoding(type=UINT4), PARTED])
def test_logarithms_span_and_step_as_their_levels_do(encoding: LogEncoding) -> None:
    levels = dequantize_logarithm(np.arange(encoding.type.levels), encoding).astype(np.float64)
    assert representable(encoding) == (levels[levels > 0].min(), 1)
    assert steps(encoding, 197) == pytest.approx((np.diff(levels[::-1]).min(), np.diff(levels[::-1]).max()))
    normalized = dataclasses.replace(encoding, normalized=True)
    assert representable(normalized) == (0, 1)
    low, high = steps(normalized, 10)
    assert low == pytest.approx(steps(encoding, 10)[0] / 10)
    assert high == steps(encoding, 10)[1]


def test_steps_of_shares_lie_between_a_row_of_one_and_one_of_equal_numbers() -> None:
    assert steps(NormalizedEncoding(type=UINT8), 4) == pytest.approx((1 / (4 * 255), 1 / 255))
    assert steps(NormalizedEncoding(type=UINT8), None)[0] == 0

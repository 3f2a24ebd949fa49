"""Levels of logarithms and shares: what the integers do, number by number."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import (
    Encoding,
    LogEncoding,
    NormalizedEncoding,
    encoding_from_json,
    encoding_to_json,
    same_encoding,
)
from narrowgauge.core.granularity import PerAxis, PowerOfTwoFactor, granularity_words, scale_shape
from narrowgauge.core.integer_softmax import log_int_softmax
from narrowgauge.core.logarithmic import dequantize_logarithm, quantize_logarithm
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError

UINT4, UINT8 = integer_type("uint4"), integer_type("uint8")
ROOT = LogEncoding(type=UINT4, threshold="square_root_of_two")


def factor(shift: list[int], base: float = 0.1, axis: int = -1) -> Encoding:
    return Encoding(
        type=UINT8,
        granularity=PowerOfTwoFactor(axis),
        scale=np.ldexp(np.float32(base), np.array(shift, dtype=np.int32)),
        zero_point=np.arange(len(shift), dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("number", "level"),
    [(1.0, 0), (0.67, 0), (0.66, 1), (0.5, 1), (1 / 2.4, 1), (0.4, 2), (1 / 3, 2), (1 / 5.4, 2), (1 / 5.6, 3),
     (2.0**-14, 14), (2.0**-15, 15), (2.0**-20, 15), (0.0, 15), (2.0, 0), (-1.0, 15), (np.nan, 15)],
)  # fmt: skip
def test_the_papers_thresholds(number: float, level: int) -> None:
    assert quantize_logarithm(number, LogEncoding(type=UINT4)) == level


def test_a_level_means_a_power_of_two_and_the_last_one_nothing() -> None:
    encoding = LogEncoding(type=UINT4)
    np.testing.assert_array_equal(dequantize_logarithm([0, 1, 14, 15], encoding), [1, 0.5, 2.0**-14, 0])
    parted = LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two")
    np.testing.assert_array_equal(dequantize_logarithm([16, 160], parted), [0.5, 2.0**-10])


@given(st.floats(2.0**-14, 1.0))
def test_at_the_square_root_of_two_a_number_is_off_by_half_an_octave_at_most(number: float) -> None:
    found = float(dequantize_logarithm(quantize_logarithm(number, ROOT), ROOT))
    assert 2**-0.5 - 1e-6 <= found / number <= 2**0.5 + 1e-6


@given(st.lists(st.integers(0, 255), min_size=1, max_size=9))
def test_integers_of_a_softmax_get_the_same_levels(levels: list[int]) -> None:
    exponentials = np.rint(4095 * np.exp(-np.arange(256) / 16)).astype(np.int64)
    softmax = log_int_softmax(exponentials, bits=4, threshold="three_halves", tokens=9)
    parts = exponentials[max(levels) - np.array(levels)]
    shares = parts / parts.sum()
    wanted = np.minimum(softmax.codes(np.array(levels, dtype=np.int64)), 15)
    np.testing.assert_array_equal(quantize_logarithm(shares, LogEncoding(type=UINT4)), wanted)


@pytest.mark.parametrize(
    "encoding",
    [LogEncoding(type=UINT4), LogEncoding(type=UINT4, normalized=True),
     LogEncoding(type=UINT8, octave_bits=4, threshold="square_root_of_two"),
     NormalizedEncoding(type=UINT8), factor([0, 3, 7, 0]), factor([2, 2]), factor([])],
)  # fmt: skip
def test_encodings_survive_json(encoding: Encoding | LogEncoding | NormalizedEncoding) -> None:
    record = json.loads(json.dumps(encoding_to_json(encoding)))
    back = encoding_from_json(record, name="x")
    assert same_encoding(back, encoding)
    assert not same_encoding(back, LogEncoding(type=integer_type("uint5")))


def test_a_factor_is_written_as_a_base_and_shifts() -> None:
    record = encoding_to_json(factor([1, 3, 1]))
    assert record == {
        "type": "uint8", "granularity": "power-of-two-factor", "axis": -1, "scale": 0.2, "shift": [0, 2, 0],
        "zero_point": [0, 1, 2],
    }  # fmt: skip
    assert isinstance(factor([0]).granularity, PerAxis)
    assert scale_shape(PowerOfTwoFactor(-1), (2, 3, 5)) == (5,)
    assert granularity_words(PowerOfTwoFactor(-1)) == "axis -1, powers of two apart"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"type": "int4", "logarithmic": True}, "unsigned type"),
        ({"type": "uint9", "logarithmic": True}, "at most 8 bits"),
        ({"type": "uint8", "logarithmic": True, "octave_bits": 8}, "octave"),
        ({"type": "uint8", "logarithmic": True, "octave_bits": 2}, "parts no octave"),
        ({"type": "uint8", "logarithmic": True, "threshold": "2"}, "threshold"),
        ({"type": "uint8", "logarithmic": True, "scale": 1.0}, "unknown key 'scale'"),
        ({"type": "int8", "normalized": True}, "unsigned type"),
        ({"type": "uint8", "normalized": 1}, "true or false"),
        ({"type": "uint8", "granularity": "power-of-two-factor", "axis": 1, "scale": 1.0}, "'shift' is missing"),
        ({"type": "uint8", "granularity": "power-of-two-factor", "axis": 1, "scale": 1.0, "shift": [0.5]}, "integers"),
        ({"type": "uint8", "granularity": "power-of-two-factor", "axis": 1, "scale": 1.0, "shift": [-1]}, "0 to 16"),
        ({"type": "uint8", "granularity": "power-of-two-factor", "axis": 1, "scale": [1.0], "shift": [1]}, "number"),
        ({"type": "uint8", "scale": 1.0, "shift": [1]}, "power-of-two-factor only"),
    ],
)
def test_what_is_no_encoding_is_refused(record: dict, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        encoding_from_json(record, name="x")


def test_scales_that_are_no_powers_of_two_apart_are_refused() -> None:
    with pytest.raises(PlanError, match="powers of two"):
        dataclasses.replace(factor([0, 1]), scale=np.float32([0.1, 0.3]))
    with pytest.raises(PlanError, match="powers of two"):
        factor([0, 17])

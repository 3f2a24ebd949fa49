"""Weighted sums of levels: within half a step of the real sum, in the widths that are stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.engines.integer_sums import weighted_sum
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.errors import PlanError

CHANNELS = 5


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    kind = integer_type(draw(st.sampled_from(["uint8", "int8", "int16", "uint16"])))
    channels = draw(st.booleans())
    shape = (CHANNELS,) if channels else ()
    exponents = draw(st.lists(st.floats(-6, 6), min_size=CHANNELS, max_size=CHANNELS))
    points = draw(st.lists(st.integers(kind.minimum, kind.maximum), min_size=CHANNELS, max_size=CHANNELS))
    scale = np.exp2(np.asarray(exponents[: CHANNELS if channels else 1])).astype(np.float32).reshape(shape)
    zero_point = np.asarray(points[: CHANNELS if channels else 1], dtype=np.int32).reshape(shape)
    return Encoding(type=kind, granularity=PerAxis(-1) if channels else PerTensor(), scale=scale, zero_point=zero_point)


def drawn(kind: Encoding, seed: int) -> np.ndarray:
    ends = [kind.type.minimum, kind.type.maximum]
    levels = np.random.default_rng(seed).integers(ends[0], ends[1] + 1, (7, CHANNELS))
    levels[0], levels[1] = ends
    return levels


def steps(levels: np.ndarray, kind: Encoding, output: Encoding) -> np.ndarray:
    real = (levels - kind.zero_point) * kind.scale.astype(np.float64)
    return np.asarray(real / output.scale.astype(np.float64))


@given(encodings(), encodings(), encodings(), st.sampled_from([(1, 1), (1, -1)]), st.integers(0, 99))
def test_a_sum_is_rounded_once(one: Encoding, other: Encoding, output: Encoding, signs: tuple[int, int], seed: int):
    form = weighted_sum((one, other), output, signs=signs)
    levels = [drawn(each, seed + number) for number, each in enumerate((one, other))]
    exact = sum(sign * steps(each, kind, output) for sign, each, kind in zip(signs, levels, (one, other), strict=True))
    expected = np.clip(exact + output.zero_point, output.type.minimum, output.type.maximum)
    found = form.levels(*levels)
    # A multiplier of 31 bits is off by 2^-32 of the greatest one, a level and its zero point have 17 bits.
    assert (np.abs(found - expected) <= 0.5 + 2.0**-12 * max(1, np.abs(exact).max() * 2.0**-16)).all()


@given(encodings(), st.integers(0, 99))
def test_the_same_encoding_keeps_every_level(kind: Encoding, seed: int) -> None:
    levels = drawn(kind, seed)
    np.testing.assert_array_equal(weighted_sum((kind,), kind).levels(levels), levels)


def test_ties_go_up() -> None:
    one, two = (
        Encoding(type=integer_type("int8"), granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(0))  # type: ignore[arg-type]
        for scale in (0.5, 1.0)
    )
    np.testing.assert_array_equal(
        weighted_sum((one,), two).levels(np.arange(-5, 6)), [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]
    )


def test_bounds_are_levels_of_each_channel() -> None:
    output = Encoding(
        type=integer_type("uint8"), granularity=PerAxis(-1), scale=np.float32([0.5, 1, 2, 4, 8]),
        zero_point=np.int32([10, 20, 30, 40, 50]),
    )  # fmt: skip
    form = weighted_sum((output,), output, bounds=(0.0, 12.0))
    np.testing.assert_array_equal(form.low, [10, 20, 30, 40, 50])
    np.testing.assert_array_equal(form.high, [34, 32, 36, 43, 52])


def test_what_does_not_fit_is_refused() -> None:
    kinds = [
        Encoding(type=integer_type("uint8"), granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(0))  # type: ignore[arg-type]
        for scale in (1.0, 2.0**-14)
    ]
    with pytest.raises(PlanError, match="at most 4096 fit"):
        weighted_sum((kinds[0],), kinds[1])
    several = [
        Encoding(
            type=integer_type("uint8"), granularity=PerAxis(-1), scale=np.ones(count, np.float32),
            zero_point=np.zeros(count, np.int32),
        )
        for count in (3, 4)
    ]  # fmt: skip
    with pytest.raises(PlanError, match="alike in number"):
        weighted_sum((several[0],), several[1])

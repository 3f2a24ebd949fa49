"""Power-of-two factors: what they cover, what they cost, and FQ-ViT's rule as its authors compute it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor, PowerOfTwoFactor
from narrowgauge.core.numbers import IntegerType
from narrowgauge.core.power_of_two_factor import (
    ChannelFactor,
    choose_factor,
    factor_of,
    published_factor,
)
from narrowgauge.errors import PlanError

UINT8 = IntegerType(bits=8, signed=False)
TYPES = [UINT8, IntegerType(bits=8, signed=True), IntegerType(bits=4, signed=True), IntegerType(bits=16, signed=True)]


def stream(seed: int, channels: int = 24, rows: int = 400) -> np.ndarray:
    """Ordinary channels, and one that a few tokens drive to -588: a vision transformer's residual stream."""
    generator = np.random.default_rng(seed)
    real = generator.normal(generator.normal(0, 1, channels), generator.uniform(0.3, 2, channels), (rows, channels))
    real[: rows // 50, 0] = generator.uniform(-588, -480, rows // 50)
    return real.astype(np.float32)


def chosen(real: np.ndarray, **arguments) -> ChannelFactor:
    return choose_factor(real.min(axis=0), real.max(axis=0), UINT8, **arguments)


def error(real: np.ndarray, factor: ChannelFactor, type: IntegerType = UINT8) -> np.ndarray:
    return np.square(round_trip(real, factor.encoding(type, -1)) - real).mean(axis=0)


extremes = st.lists(
    st.tuples(st.floats(-1000, 1000, width=32), st.floats(0, 1000, width=32)).map(lambda pair: (pair[0], sum(pair))),
    min_size=1, max_size=12,
)  # fmt: skip


@given(extremes, st.sampled_from(TYPES), st.integers(0, 8))
def test_without_rows_every_channel_is_covered_by_the_least_shift(ends, type: IntegerType, most_shift: int) -> None:
    low, high = np.array(ends, dtype=np.float64).T
    factor = choose_factor(low, high, type, most_shift=most_shift)
    assert factor.shifts.min() == 0
    assert factor.shifts.max() <= most_shift
    encoding = factor.encoding(type, 0)
    half = encoding.scale / 2 * 1.0001 + 1e-12  # the zero point is rounded
    assert (encoding.minimum <= np.minimum(low, 0) + half).all()
    assert (encoding.maximum >= np.maximum(high, 0) - half).all()
    needed = (np.maximum(high, 0) - np.minimum(low, 0)) / (type.levels - 1)
    assert (encoding.scale[factor.shifts > 0] < 2.0001 * needed[factor.shifts > 0]).all()


@given(st.floats(2.0**-60, 1.0, width=32), st.lists(st.tuples(st.integers(0, 16), st.integers(0, 255)), min_size=1))
def test_encodings_are_read_back(base: float, channels: list[tuple[int, int]]) -> None:
    shifts, zero_points = np.array(channels).T
    factor = ChannelFactor(base=base, shifts=shifts - shifts.min(), zero_points=zero_points)
    encoding = factor.encoding(UINT8, 2)
    assert encoding.granularity == PowerOfTwoFactor(2)
    found = factor_of(encoding)
    assert found.base == base
    np.testing.assert_array_equal(found.shifts, factor.shifts)
    np.testing.assert_array_equal(found.zero_points, zero_points)


def test_one_scale_is_a_factor_of_one_channel() -> None:
    found = factor_of(Encoding(type=UINT8, granularity=PerTensor(), scale=np.float32(0.3), zero_point=np.int32(7)))
    assert (found.base, found.shifts.tolist(), found.zero_points.tolist()) == (float(np.float32(0.3)), [0], [7])


@pytest.mark.parametrize("scale", [[0.1, 0.3], [1.0, 2.0**17], [0.1, np.nextafter(np.float32(0.2), np.float32(1))]])
def test_scales_that_are_no_powers_of_two_are_refused(scale: list[float]) -> None:
    encoding = Encoding(type=UINT8, granularity=PerAxis(0), scale=np.float32(scale), zero_point=np.zeros(2, np.int32))
    with pytest.raises(PlanError, match="powers of two"):
        factor_of(encoding)


@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_rows_choose_what_no_other_shift_betters(seed: int, most_shift: int) -> None:
    """Against every shift with the zero point that covers, at the base that was chosen."""
    real = stream(seed)
    factor = chosen(real, most_shift=most_shift, rows=real)
    found = error(real, factor)
    for shift in range(most_shift - int(factor.shifts.min()) + 1):
        scale = np.ldexp(factor.base, shift)
        zero_points = np.clip(np.rint(-np.minimum(real.min(axis=0), 0) / scale), 0, 255).astype(np.int64)
        other = ChannelFactor(base=factor.base, shifts=np.full(24, shift), zero_points=zero_points)
        if shift <= factor.shifts.max():
            assert (found <= error(real, other) * (1 + 1e-4) + 1e-12).all()


def test_a_zero_point_per_channel_saves_the_ordinary_channels() -> None:
    """The published rule loses the positive side of ordinary channels to the zero point of the widest one."""
    real = stream(0)
    ends = real.min(axis=0), real.max(axis=0)
    ours, published = chosen(real, rows=real), published_factor(*ends, UINT8, rows=real)
    plain = choose_factor(*ends, UINT8, most_shift=0)
    ordinary = slice(1, None)
    assert error(real, published)[ordinary].sum() < 0.5 * error(real, plain)[ordinary].sum()
    assert error(real, ours)[ordinary].sum() < 0.1 * error(real, published)[ordinary].sum()
    assert error(real, ours).sum() < 1.5 * error(real, plain)[0]


def test_weights_move_the_base() -> None:
    """Where the widest channel is of no matter, the base is chosen for the others."""
    low = np.array([-300.0, *np.full(9, -2.4)])
    high = np.array([300.0, *np.full(9, 2.4)])
    plain = choose_factor(low, high, UINT8, most_shift=7)
    weighted = choose_factor(low, high, UINT8, most_shift=7, weights=np.array([0.0, *np.ones(9)]))
    assert weighted.scales[1:].max() < plain.scales[1:].max()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 5]))
def test_the_published_rule_as_its_authors_compute_it(seed: int, most_shift: int) -> None:
    real = stream(seed, channels=6, rows=60)
    found = published_factor(real.min(axis=0), real.max(axis=0), UINT8, rows=real, most_shift=most_shift)
    greatest = np.float32((float(real.max()) - float(real.min())) / 255)
    zero_point = np.clip(0 - np.round(real.min() / greatest), 0, 255)
    base = greatest / 2**most_shift
    for channel, shift in enumerate(found.shifts):
        losses = []
        for power in range(most_shift + 1):
            scale = float(base * 2**power)
            data = real[:, channel].astype(np.float64)
            written = (np.clip(np.round(data / scale + zero_point), 0, 255) - zero_point) * scale
            losses.append(((data - written) ** 2).sum())
        assert losses[shift] <= min(losses) * (1 + 1e-9)
    assert found.base == float(base)
    assert (found.zero_points == zero_point).all()


def test_channels_of_nothing() -> None:
    zeros = choose_factor(np.zeros(3), np.zeros(3), UINT8, rows=np.zeros((2, 3)))
    assert (zeros.encoding(UINT8, 0).scale > 0).all()
    assert round_trip(np.zeros((1, 3)), zeros.encoding(UINT8, 1)).tolist() == [[0.0, 0.0, 0.0]]
    some = choose_factor(np.array([0.0, -1.0]), np.array([0.0, 4.0]), UINT8, rows=np.zeros((0, 2)))
    assert factor_of(some.encoding(UINT8, 0)).shifts.tolist() == some.shifts.tolist()
    none = np.zeros(0)
    assert choose_factor(none, none, UINT8).shifts.shape == (0,)
    assert published_factor(none, none, UINT8, rows=np.zeros((4, 0))).shifts.shape == (0,)


def test_what_is_refused() -> None:
    with pytest.raises(PlanError, match="for each channel"):
        choose_factor(np.zeros(3), np.ones(2), UINT8)
    with pytest.raises(PlanError, match="finite"):
        choose_factor(np.array([-np.inf]), np.ones(1), UINT8)
    with pytest.raises(PlanError, match="not above"):
        published_factor(np.ones(1), np.zeros(1), UINT8, rows=np.ones((1, 1)))
    with pytest.raises(PlanError, match="rows of 2 channels"):
        choose_factor(np.zeros(2), np.ones(2), UINT8, rows=np.ones((5, 3)))
    with pytest.raises(PlanError, match="0 to 16, got 17"):
        choose_factor(np.zeros(2), np.ones(2), UINT8, most_shift=17)
    with pytest.raises(PlanError, match="weight for each of 2"):
        choose_factor(np.zeros(2), np.ones(2), UINT8, weights=np.ones(3))

"""The loss from a histogram, beside that of the elements which it counted."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.analysis.histogram_loss import histogram_sums
from narrowgauge.analysis.loss_sums import element_sums, entropy_bits
from narrowgauge.calibration.histogram import histogram_of
from narrowgauge.calibration.statistics import ChannelStatistics, TensorStatistics
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.ranges import encoding_from_range

Array = npt.NDArray[np.float32]


def seen(values: Array, axis: int | None = None) -> TensorStatistics:
    channels = None
    if axis is not None:
        columns = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        channels = ChannelStatistics(
            axis=axis, minimum=columns.min(axis=1), maximum=columns.max(axis=1),
            total=columns.sum(axis=1, dtype=np.float64), count=columns.shape[1],
        )  # fmt: skip
    return TensorStatistics(
        minimum=float(values.min()), maximum=float(values.max()), histogram=histogram_of(values), channels=channels
    )


def samples(name: str) -> Array:
    rng = np.random.default_rng(5)
    normal = rng.normal(0, 1, 200_000)
    drawn = {
        "normal": normal,
        "shifted": normal + 3,
        "heavy tails": rng.standard_t(3, 200_000),
        "Relu": np.maximum(normal, 0),
        "Relu6": np.clip(3 * normal, 0, 6),
        "HardSwish": normal * 3 * np.clip(normal * 3 + 3, 0, 6) / 6,
        "small": 1e-12 * normal,
    }
    return drawn[name].astype(np.float32)


@pytest.mark.parametrize("name", ["normal", "shifted", "heavy tails", "Relu", "Relu6", "HardSwish", "small"])
@pytest.mark.parametrize("kind", ["uint8", "int4", "int16"])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_both_errors_are_within_a_percent_of_the_elements(name: str, kind: str, share: float) -> None:
    values = samples(name)
    encoding = encoding_from_range(share * values.min(), share * values.max(), integer_type(kind), PerTensor())
    found, exact = histogram_sums(seen(values), encoding), element_sums(values, encoding)
    assert found.elements == pytest.approx(exact.elements)
    assert found.rounding + found.clipping == pytest.approx(exact.rounding + exact.clipping, rel=0.01)
    assert found.rounding == pytest.approx(exact.rounding, rel=0.01)
    assert found.clipping == pytest.approx(exact.clipping, rel=0.03)  # a few elements in the tails
    assert found.clipped == pytest.approx(exact.clipped, rel=0.02, abs=2)
    assert found.signal == pytest.approx(exact.signal, rel=1e-3)
    assert (found.minimum, found.maximum) == (exact.minimum, exact.maximum)
    if kind != "int16":  # levels far fewer than elements
        assert entropy_bits(found.levels) == pytest.approx(entropy_bits(exact.levels), abs=0.005)
        used = float((1 - np.exp(found.free)).sum())
        assert used == pytest.approx(np.count_nonzero(exact.levels), abs=0.02 * exact.levels.size)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60), st.integers(2, 8), st.floats(0.1, 1.0))
def test_nothing_is_lost_or_made_up(numbers: list[float], bits: int, share: float) -> None:
    values = np.array(numbers, np.float32)
    encoding = encoding_from_range(share * values.min(), share * values.max(), integer_type(f"int{bits}"), PerTensor())
    found = histogram_sums(seen(values), encoding)
    assert found.elements == pytest.approx(values.size)
    assert found.levels.sum() == pytest.approx(values.size)
    assert found.clipped <= values.size * (1 + 1e-9)
    assert found.rounding <= (values.size * (float(encoding.scale) / 2) ** 2) * (1 + 1e-6)
    used = float((1 - np.exp(found.free)).sum())
    assert 1 - 1e-9 <= used <= min(values.size, encoding.type.levels) + 1e-9


def test_numbers_that_are_bins_of_their_own_are_exact() -> None:
    values = np.repeat(np.array([0, 6], np.float32), [700, 300])
    encoding = encoding_from_range(0.0, 5.0, integer_type("uint8"), PerTensor())
    found, exact = histogram_sums(seen(values), encoding), element_sums(values, encoding)
    assert found.clipping == pytest.approx(exact.clipping, rel=1e-5)
    assert (found.clipped, found.rounding) == (300, 0.0)
    np.testing.assert_allclose(found.levels, exact.levels)
    assert (1 - np.exp(found.free)).sum() == 2


def test_a_scale_per_channel_takes_each_channel_between_its_extremes() -> None:
    rng = np.random.default_rng(2)
    values = (rng.uniform(-1, 1, (64, 8, 30)) * np.array([1, 1, 1, 1, 2, 2, 3, 3])[:, None]).astype(np.float32)
    reach = np.abs(values).max(axis=(0, 2))
    encoding = encoding_from_range(-reach, reach, integer_type("int8"), PerAxis(1), symmetric=True)
    found, exact = histogram_sums(seen(values, axis=1), encoding), element_sums(values, encoding)
    assert found.elements == pytest.approx(values.size)
    assert found.rounding == pytest.approx(exact.rounding, rel=0.03)
    assert found.clipped == exact.clipped == 0
    without = histogram_sums(replace(seen(values), channels=None), encoding)  # extremes unknown: all of it anywhere
    assert without.elements == pytest.approx(values.size)
    assert without.clipping > 0


@pytest.mark.parametrize("number", [0.0, 3.0, -0.7])
def test_one_number_all_over(number: float) -> None:
    values = np.full(50, number, np.float32)
    encoding = encoding_from_range(values.min(), values.max(), integer_type("uint8"), PerTensor())
    found, exact = histogram_sums(seen(values), encoding), element_sums(values, encoding)
    assert found.elements == 50
    assert found.rounding == pytest.approx(exact.rounding, abs=1e-12)
    assert entropy_bits(found.levels) == 0.0


def test_statistics_without_a_histogram_have_no_elements() -> None:
    encoding: Encoding = encoding_from_range(-1, 1, integer_type("int8"), PerTensor())
    tensor = replace(seen(np.array([-1, 1], np.float32)), histogram=histogram_of(np.zeros(0, np.float32)))
    assert histogram_sums(tensor, encoding).elements == 0.0

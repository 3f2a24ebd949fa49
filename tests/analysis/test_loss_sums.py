"""Sums of the two errors, beside the reference arithmetic element by element."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from narrowgauge.analysis import loss_sums
from narrowgauge.analysis.loss_sums import LossSums, element_sums, entropy_bits, no_sums
from narrowgauge.core.arithmetic import dequantize, quantize, round_trip, spread
from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, scale_shape
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError
from tests.core.strategies import integer_types

Array = npt.NDArray[np.float32]


def reference_sums(values: Array, encoding: Encoding, wanted: Array) -> tuple[float, float, int, list[int]]:
    """Rounding and clipping squares, how many are clipped, and how many elements have each level."""
    kind = encoding.type
    scale = spread(encoding.scale, encoding, values.shape)
    steps = np.rint((wanted / scale).astype(np.float32)).astype(np.float64)
    level = steps + spread(encoding.zero_point, encoding, values.shape)
    beyond = (level < kind.minimum) | (level > kind.maximum)
    errors = (round_trip(values, encoding) - wanted).astype(np.float64) ** 2
    found = quantize(values, encoding).astype(int)
    counts = [int((found == each).sum()) for each in range(kind.minimum, kind.maximum + 1)]
    return float(errors[~beyond].sum()), float(errors[beyond].sum()), int(beyond.sum()), counts


@st.composite
def rounded_tensors(draw: st.DrawFn) -> tuple[Array, Encoding]:
    kind = draw(integer_types.filter(lambda one: one.bits <= 6))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    granularity: Granularity = draw(st.sampled_from([PerTensor(), PerAxis(axis), PerBlock(axis, 2)]))
    covered = scale_shape(granularity, shape)
    scale = draw(arrays.arrays(np.float32, covered, elements=st.floats(2.0**-10, 4.0, width=32)))
    zero_point = draw(arrays.arrays(np.int32, covered, elements=st.integers(kind.minimum, kind.maximum)))
    values = draw(arrays.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
    return values, Encoding(type=kind, granularity=granularity, scale=scale, zero_point=zero_point)


@given(rounded_tensors(), st.booleans())
def test_the_two_errors_are_those_of_the_reference_arithmetic(case: tuple[Array, Encoding], optimised: bool) -> None:
    values, encoding = case
    wanted = values[::-1].copy() if optimised else values  # any other numbers of that shape
    rounding, clipping, clipped, counts = reference_sums(values, encoding, wanted)
    found = element_sums(values, encoding, wanted=wanted if optimised else None)
    assert found.rounding == pytest.approx(rounding, rel=1e-6, abs=1e-12)
    assert found.clipping == pytest.approx(clipping, rel=1e-6, abs=1e-12)
    assert (found.clipped, found.levels.tolist()) == (clipped, counts)
    assert found.signal == pytest.approx(float((wanted.astype(np.float64) ** 2).sum()), rel=1e-12)
    assert (found.elements, found.minimum, found.maximum) == (values.size, wanted.min(), wanted.max())
    np.testing.assert_array_equal(np.isneginf(found.free), np.array(counts) > 0)


@given(rounded_tensors())
def test_a_rounding_error_is_at_most_half_a_step(case: tuple[Array, Encoding]) -> None:
    values, encoding = case
    found = element_sums(values, encoding)
    half = spread(encoding.scale, encoding, values.shape).astype(np.float64) / 2
    assert found.rounding <= (np.broadcast_to(half, values.shape) ** 2).sum() * (1 + 1e-4) + 1e-9


def encoding_of(scale: float, zero_point: int = 0, bits: int = 8, *, signed: bool = False) -> Encoding:
    kind = IntegerType(bits=bits, signed=signed)
    return Encoding(type=kind, granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point))


def assert_equal(first: LossSums, second: LossSums) -> None:
    for name in ("elements", "minimum", "maximum", "clipped"):
        assert getattr(first, name) == getattr(second, name)
    for name in ("signal", "rounding", "clipping"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-12)
    np.testing.assert_array_equal(first.levels, second.levels)
    np.testing.assert_array_equal(first.free, second.free)


@given(st.integers(0, 100), st.integers(0, 100))
def test_parts_add_up_to_the_whole_in_any_order(first: int, second: int) -> None:
    values = np.random.default_rng(0).normal(0, 3, 100).astype(np.float32)
    encoding = encoding_of(0.02, 128)
    low, high = sorted((first, second))
    parts = [element_sums(values[part], encoding) for part in (slice(0, low), slice(low, high), slice(high, None))]
    whole = element_sums(values, encoding)
    assert_equal(parts[0].merge(parts[1]).merge(parts[2]), whole)
    assert_equal(parts[2].merge(parts[0].merge(parts[1])), whole)
    assert_equal(no_sums(256).merge(whole), whole)


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerBlock(1, 3)], ids=str)
def test_a_tensor_that_is_worked_on_in_pieces_gives_the_same_sums(
    granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (300, 7)).astype(np.float32)
    shape = scale_shape(granularity, values.shape)
    encoding = Encoding(
        type=IntegerType(bits=4, signed=True),
        granularity=granularity,
        scale=rng.uniform(0.05, 0.3, shape).astype(np.float32),
        zero_point=rng.integers(-3, 4, shape).astype(np.int32),
    )
    whole = element_sums(values, encoding)
    monkeypatch.setattr(loss_sums, "_PIECE_ELEMENTS", 64)
    assert_equal(element_sums(values, encoding), whole)
    total = float(((round_trip(values, encoding) - values).astype(np.float64) ** 2).sum())
    assert whole.rounding + whole.clipping == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_scalars_and_tensors_without_elements_have_sums(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 0.26, np.float32)
    found = element_sums(values, encoding_of(0.1))
    assert found.elements == values.size
    assert found.levels.sum() == values.size
    assert found.rounding == pytest.approx(values.size * 0.04**2, rel=1e-4)


def test_numbers_whose_squares_leave_float32_have_finite_sums() -> None:
    found = element_sums(np.array([1e30, -1e30], np.float32), encoding_of(1e-3))
    assert found.clipped == 2
    assert found.signal == pytest.approx(2e60)
    assert found.clipping == pytest.approx(2e60)


def test_a_scale_that_does_not_fit_is_refused() -> None:
    encoding = Encoding(
        type=IntegerType(bits=8, signed=True),
        granularity=PerAxis(0),
        scale=np.ones(3, np.float32),
        zero_point=np.zeros(3, np.int32),
    )
    with pytest.raises(PlanError, match=r"expected scales of shape \(2,\)"):
        element_sums(np.ones((2, 3), np.float32), encoding)


def test_what_is_restored_exactly_loses_nothing() -> None:
    encoding = encoding_of(0.1, 7)
    values = dequantize(np.arange(256), encoding)
    found = element_sums(values, encoding)
    assert (found.rounding, found.clipping, found.clipped) == (0.0, 0.0, 0)
    assert entropy_bits(found.levels) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("counts", "bits"), [([0, 0, 5], 0.0), ([1, 1, 0, 1, 1], 2.0), ([1, 3], 0.8112781245), ([0, 0], 0.0)]
)
def test_entropy_is_that_of_the_shares(counts: list[int], bits: float) -> None:
    assert entropy_bits(np.array(counts, np.float64)) == pytest.approx(bits)

"""Ranges of weights from the array itself."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from narrowgauge.calibration.weights import WEIGHT_ESTIMATORS, weight_range
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.granularity import Granularity, PerAxis, PerBlock, PerTensor, scale_shape
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import ModelError, PlanError, RecipeError

Array = npt.NDArray[np.float32]

INT8, INT4, UINT4 = integer_type("int8"), integer_type("int4"), integer_type("uint4")
GRANULARITIES = [PerTensor(), PerAxis(0), PerAxis(1), PerAxis(-1), PerBlock(0, 4), PerBlock(1, 3), PerBlock(-1, 99)]
TYPES = [integer_type(name) for name in ("int2", "int3", "int4_narrow", "uint4", "int8", "uint8")]


def squared_error(
    weights: Array, granularity: Granularity, kind: IntegerType, symmetric: bool, estimator: str
) -> float:
    low, high = weight_range(weights, granularity, kind, symmetric=symmetric, estimator=estimator)
    encoding = encoding_from_range(low, high, kind, granularity, symmetric=symmetric)
    return float(np.sum((round_trip(weights, encoding).astype(np.float64) - weights) ** 2))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_max_is_exact_per_tensor_channel_and_block(granularity: Granularity) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 10, 3)).astype(np.float32)
    low, high = weight_range(weights, granularity, INT8, symmetric=True)
    shape = scale_shape(granularity, weights.shape)
    assert low.shape == high.shape == shape
    assert low.dtype == high.dtype == np.float32
    for index in np.ndindex(shape):
        if isinstance(granularity, PerTensor):
            part = weights
        elif isinstance(granularity, PerAxis):
            part = weights.take(index[0], axis=granularity.axis)
        else:
            axis = granularity.axis % 3
            start = index[axis] * granularity.size
            run = slice(start, start + granularity.size)
            part = weights[tuple(run if number == axis else place for number, place in enumerate(index))]
        assert (low[index], high[index]) == (part.min(), part.max())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from(TYPES),
)
def test_mse_is_never_worse_than_max(
    granularity: Granularity, symmetric: bool, weights: Array, kind: IntegerType
) -> None:
    found, baseline = (squared_error(weights, granularity, kind, symmetric, name) for name in ("mse", "max"))
    assert found <= baseline * (1 + 1e-5) + 1e-9 * float(np.square(weights, dtype=np.float64).sum())


@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
@pytest.mark.parametrize("elements", [9, 100, 3000])
@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_mse_is_near_the_best_threshold(name: str, elements: int, family: str) -> None:
    """Against the measured errors of many thresholds, channel by channel."""
    rng, kind = np.random.default_rng(1), integer_type(name)
    weights = getattr(rng, family)(size=(6, elements)).astype(np.float32)
    reach = np.abs(weights).max(axis=1)
    best = np.full(6, np.inf)
    for share in np.linspace(0.1, 1, 181):
        encoding = encoding_from_range(-reach * share, reach * share, kind, PerAxis(0), symmetric=True)
        best = np.minimum(best, np.square(round_trip(weights, encoding) - weights).sum(axis=1))
    found = squared_error(weights, PerAxis(0), kind, True, "mse")
    # Of few elements and many levels the error jumps from one threshold to the next.
    assert found <= {9: 1.5, 100: 1.1, 3000: 1.03}[elements] * best.sum()


def test_mse_searches_both_ends_of_an_asymmetric_range() -> None:
    rng = np.random.default_rng(2)
    weights = np.concatenate([rng.uniform(-1, 2, (1, 500)), [[-6.0, 3.0]]], axis=1).astype(np.float32)
    shares = np.linspace(0.2, 1, 41)
    errors = []
    for low_share in shares:
        encoding = encoding_from_range(np.full(41, -6 * low_share), 3 * shares, UINT4, PerAxis(0))
        errors.append(np.square(round_trip(np.repeat(weights, 41, axis=0), encoding) - weights).sum(axis=1).min())
    assert squared_error(weights, PerAxis(0), UINT4, False, "mse") <= 1.05 * min(errors)
    assert squared_error(weights, PerAxis(0), UINT4, False, "max") > 1.5 * min(errors)


@pytest.mark.parametrize("estimator", WEIGHT_ESTIMATORS)
@pytest.mark.parametrize("granularity", [PerAxis(0), PerBlock(1, 64)], ids=str)
def test_each_channel_is_looked_at_alone(estimator: str, granularity: Granularity) -> None:
    weights = np.random.default_rng(3).standard_t(3, size=(5, 300)).astype(np.float32)
    together = weight_range(weights, granularity, INT4, symmetric=True, estimator=estimator)
    for channel in range(5):
        alone = weight_range(weights[channel : channel + 1], granularity, INT4, symmetric=True, estimator=estimator)
        np.testing.assert_array_equal(alone[0][0], together[0][channel])
        np.testing.assert_array_equal(alone[1][0], together[1][channel])


@pytest.mark.parametrize("estimator", WEIGHT_ESTIMATORS)
def test_channels_of_zeros_and_weights_without_elements(estimator: str) -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[1] = 1.0
    low, high = weight_range(weights, PerAxis(0), INT8, symmetric=True, estimator=estimator)
    assert (low[0], high[0]) == (0.0, 0.0)
    assert high[1] == 1.0
    for shape in ((0, 4), (3, 0)):
        low, high = weight_range(np.zeros(shape, np.float32), PerAxis(0), INT8, symmetric=True, estimator=estimator)
        assert low.shape == high.shape == (shape[0],)


@pytest.mark.parametrize("estimator", WEIGHT_ESTIMATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerBlock(1, 2)], ids=str)
def test_weights_that_are_no_numbers_are_refused(estimator: str, bad: float, granularity: Granularity) -> None:
    weights = np.ones((3, 5), np.float32)
    weights[1, 4] = bad
    with pytest.raises(ModelError, match="finite"):
        weight_range(weights, granularity, INT8, symmetric=True, estimator=estimator)


def test_unknown_estimator_and_missing_axis_are_refused() -> None:
    weights = np.ones((3, 5), np.float32)
    with pytest.raises(RecipeError, match=r"max, mse.*'entropy'"):
        weight_range(weights, PerTensor(), INT8, symmetric=True, estimator="entropy")
    with pytest.raises(PlanError, match="axis"):
        weight_range(weights, PerAxis(2), INT8, symmetric=True)

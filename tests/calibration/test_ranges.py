"""Estimators of ranges, against brute force on the values themselves and against their papers' numbers."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from narrowgauge.calibration.aciq import gaussian_clip, laplace_clip
from narrowgauge.calibration.entropy import divergences
from narrowgauge.calibration.histogram import EMPTY, histogram_of
from narrowgauge.calibration.ranges import ESTIMATORS, Estimator, Range, estimator
from narrowgauge.calibration.statistics import TensorStatistics
from narrowgauge.core.arithmetic import round_trip
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import IntegerType, integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import RecipeError, StatisticsError

Array = npt.NDArray[np.float32]

INT8, UINT8, INT4 = integer_type("int8"), integer_type("uint8"), integer_type("int4")
TYPES = [integer_type(name) for name in ("int2", "uint3", "int4", "uint4", "int8", "uint8", "int8_narrow", "int16")]


def statistics(values: Array) -> TensorStatistics:
    finite = values[np.isfinite(values)]
    return TensorStatistics(
        minimum=float(finite.min(initial=np.inf)),
        maximum=float(finite.max(initial=-np.inf)),
        histogram=histogram_of(values),
        channels=None,
    )


def error(values: Array, low: float, high: float, kind: IntegerType, *, symmetric: bool) -> float:
    """Mean squared error as measured on the values."""
    encoding = encoding_from_range(low, high, kind, PerTensor(), symmetric=symmetric)
    return float(np.mean((round_trip(values, encoding).astype(np.float64) - values) ** 2))


def drawn(kind: str, size: int = 20_000, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=size)
    made = {
        "gaussian": lambda: normal,
        "laplace": lambda: rng.laplace(size=size),
        "heavy": lambda: rng.standard_t(2, size=size),
        "relu": lambda: np.maximum(normal, 0),
        "relu6": lambda: np.clip(4 * normal, 0, 6),
        "gelu": lambda: 3 * normal * 0.5 * (1 + np.tanh(0.8 * 3 * normal)),
        "shifted": lambda: normal + 2,
        "negative": lambda: -np.abs(normal),
        "outlier": lambda: np.append(normal, 60.0),
        "steps": lambda: rng.integers(0, 12, size) / 4.0,
        "softmax": lambda: rng.dirichlet(np.full(50, 0.1), size // 50).reshape(-1),
    }[kind]()
    return made.astype(np.float32)


KINDS = ["gaussian", "laplace", "heavy", "relu", "relu6", "gelu", "shifted", "negative", "outlier", "steps", "softmax"]

any_values = st.one_of(
    arrays.arrays(np.float32, st.integers(1, 80), elements=st.floats(-1e4, 1e4, width=32)),
    arrays.arrays(np.float32, st.integers(1, 80), elements=st.floats(0, 6, width=32)),
    arrays.arrays(np.float32, st.integers(1, 9), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    arrays.arrays(np.float32, st.integers(1, 9), elements=st.sampled_from([0.0, 1.0, -1.0, 1e-42, 3e38, 6.0])),
)


# --- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ESTIMATORS, "percentile:99", "percentile:100"])
@given(any_values, st.sampled_from(TYPES), st.booleans())
def test_every_range_lies_within_the_exact_extremes(
    name: str, values: Array, kind: IntegerType, symmetric: bool
) -> None:
    found = estimator(name)(statistics(values), kind, symmetric=symmetric)
    assert min(values.min(), 0) <= found.minimum <= found.maximum <= max(values.max(), 0)
    if values.any():  # some number other than zero is kept
        assert found.minimum < 0 or found.maximum > 0
    encoding_from_range(found.minimum, found.maximum, kind, PerTensor(), symmetric=symmetric)


@pytest.mark.parametrize("choose", ESTIMATORS.values(), ids=ESTIMATORS)
def test_without_counts_the_extremes_remain(choose: Estimator) -> None:
    tensor = TensorStatistics(minimum=-1.0, maximum=2.0, histogram=EMPTY, channels=None)
    assert choose(tensor, INT8, symmetric=False) == Range(minimum=-1.0, maximum=2.0)


@pytest.mark.parametrize("choose", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_without_a_finite_value_there_is_no_range(choose: Estimator, values: list[float]) -> None:
    with pytest.raises(StatisticsError, match="finite"):
        choose(statistics(np.array(values, np.float32)), INT8, symmetric=True)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_scale_with_the_values(name: str, kind: str) -> None:
    """By a power of two, which the histogram's bins follow exactly."""
    values = drawn(kind, 2000)
    plain = ESTIMATORS[name](statistics(values), UINT8, symmetric=False)
    large = ESTIMATORS[name](statistics(values * np.float32(1024)), UINT8, symmetric=False)
    assert (large.minimum, large.maximum) == pytest.approx((plain.minimum * 1024, plain.maximum * 1024), rel=1e-5)


@pytest.mark.parametrize("name", ["max", "entropy", "mse"])
@pytest.mark.parametrize("kind", ["relu", "relu6", "gaussian", "softmax"])
def test_zeros_say_nothing_about_a_range(name: str, kind: str) -> None:
    """As many zeros again, and a hundred times as many."""
    values = drawn(kind, 5000)
    plain = ESTIMATORS[name](statistics(values), UINT8, symmetric=False)
    for times in (1, 100):
        padded = np.concatenate([values, np.zeros(times * values.size, np.float32)])
        found = ESTIMATORS[name](statistics(padded), UINT8, symmetric=False)
        assert found.maximum == plain.maximum
        assert found.minimum in (plain.minimum, 0.0)


# --- names ----------------------------------------------------------------------------------------------------


def test_estimators_are_read_from_their_names() -> None:
    assert set(ESTIMATORS) == {"max", "percentile", "entropy", "mse", "aciq"}
    for name, choose in ESTIMATORS.items():
        assert estimator(f" {name.upper()} ") is choose
    seen = statistics(drawn("laplace"))
    by_default = estimator("percentile")(seen, INT8, symmetric=False)
    assert by_default == estimator("percentile:99.99")(seen, INT8, symmetric=False)
    assert by_default.maximum < estimator("percentile:99.999")(seen, INT8, symmetric=False).maximum


@pytest.mark.parametrize("name", ["kl", "", "max:3", "mse:", "entropy:128"])
def test_unknown_estimators_are_refused_with_the_known_ones(name: str) -> None:
    if name == "mse:":
        assert estimator(name) is ESTIMATORS["mse"]
        return
    with pytest.raises(RecipeError, match=r"max, percentile, entropy, mse, aciq") as refused:
        estimator(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["percentile:high", "percentile:50", "percentile:101", "percentile:nan"])
def test_other_percentiles_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="percentile"):
        estimator(name)


# --- max, percentile ------------------------------------------------------------------------------------------


def test_max_is_exact() -> None:
    values = drawn("gaussian")
    found = ESTIMATORS["max"](statistics(values), INT8, symmetric=True)
    assert (found.minimum, found.maximum) == (values.min(), values.max())


def within_a_bin(found: float, values: Array, percent: float) -> bool:
    """Between numpy's percentiles one rank around, and a bin (at most a 64th) wider."""
    rank = 100.0 / values.size
    low = np.percentile(values, max(percent - rank, 0.0), method="lower")
    high = np.percentile(values, min(percent + rank, 100.0), method="higher")
    return bool(low - abs(low) / 64 <= found <= high + abs(high) / 64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 99.99])
def test_percentiles_are_numpys(kind: str, percent: float) -> None:
    values = drawn(kind)
    both = estimator(f"percentile:{percent}")(statistics(values), UINT8, symmetric=False)
    assert within_a_bin(both.maximum, values, percent) or values.max() <= 0
    assert within_a_bin(both.minimum, values, 100 - percent) or values.min() >= 0
    one = estimator(f"percentile:{percent}")(statistics(values), INT8, symmetric=True)
    assert within_a_bin(max(-one.minimum, one.maximum), np.abs(values), percent)


def test_each_tail_is_cut_on_its_own_side() -> None:
    values = np.concatenate([np.linspace(-1, 10, 10_000), [-50.0, 90.0]]).astype(np.float32)
    found = estimator("percentile:99.9")(statistics(values), UINT8, symmetric=False)
    assert found.minimum == pytest.approx(-1, abs=0.05)
    assert found.maximum == pytest.approx(10, abs=0.1)


def test_data_of_one_sign_keep_their_near_end() -> None:
    values = drawn("relu") + np.float32(0.5)
    assert estimator("percentile:95")(statistics(values), UINT8, symmetric=False).minimum == values.min()


def test_a_percentile_of_zero_cuts_nothing() -> None:
    values = np.zeros(100_000, np.float32)
    values[:3] = [1.0, 2.0, 5.0]
    assert estimator("percentile")(statistics(values), UINT8, symmetric=False).maximum == 5.0


# --- mse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
def test_mse_finds_the_best_threshold(kind: str, name: str) -> None:
    """Against the measured error of a few hundred thresholds; symmetric."""
    values, type_ = drawn(kind), integer_type(name)
    found = ESTIMATORS["mse"](statistics(values), type_, symmetric=True)
    reach = float(np.abs(values).max())
    best = min(
        error(values, -reach * share, reach * share, type_, symmetric=True) for share in np.linspace(0.004, 1, 250)
    )
    assert error(values, found.minimum, found.maximum, type_, symmetric=True) <= 1.02 * best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["uint3", "uint4", "uint8"])
def test_mse_finds_the_best_pair_of_ends(kind: str, name: str) -> None:
    """Against the measured error of a grid over both ends."""
    values, type_ = drawn(kind, 4000), integer_type(name)
    found = ESTIMATORS["mse"](statistics(values), type_, symmetric=False)
    shares = np.exp2(-np.linspace(0, 4, 17))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    lows, highs = (low * shares if low else [0.0]), (high * shares if high else [0.0])
    best = min(error(values, one, other, type_, symmetric=False) for one in lows for other in highs)
    assert error(values, found.minimum, found.maximum, type_, symmetric=False) <= 1.03 * best


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([kind for kind in KINDS if kind != "steps"]),
    st.floats(-3, 3),
    st.floats(0.5, 3),
    st.sampled_from(TYPES),
    st.booleans(),
)
def test_mse_is_never_worse_than_max(
    seed: int, kind: str, shift: float, power: float, type_: IntegerType, symmetric: bool
) -> None:
    few_levels = type_.levels <= 16
    values = drawn(kind, 1000, seed).astype(np.float64)
    values = (np.sign(values) * np.abs(values) ** power + shift * few_levels).astype(np.float32)
    seen = statistics(values)
    errors = [
        error(values, found.minimum, found.maximum, type_, symmetric=symmetric)
        for found in (ESTIMATORS[name](seen, type_, symmetric=symmetric) for name in ("mse", "max"))
    ]
    # The histogram knows a value to a 128th; where a step is narrower, luck decides, more so for a few values.
    slack = np.mean(np.square(values / 128)) if few_levels else 0.0
    assert errors[0] <= 1.2 * errors[1] + slack


def test_mse_uses_the_one_level_more_below_zero() -> None:
    """Of int2's levels -2 to 1, values of one negative number need a step of half of it."""
    values = np.full(100, -1.0, np.float32) + np.linspace(0, 0.2, 100, dtype=np.float32)
    found = ESTIMATORS["mse"](statistics(values), integer_type("int2"), symmetric=True)
    assert found.minimum == pytest.approx(-0.5, abs=0.1)
    assert error(values, found.minimum, found.maximum, integer_type("int2"), symmetric=True) < 0.01


def test_mse_keeps_a_bound_that_many_values_have() -> None:
    values = drawn("relu6")
    found = ESTIMATORS["mse"](statistics(values), INT4, symmetric=False)
    assert found.maximum == pytest.approx(6.0, rel=0.03)


def test_mse_clips_an_outlier_where_steps_are_wide() -> None:
    found = ESTIMATORS["mse"](statistics(drawn("outlier", 200_000)), INT4, symmetric=True)
    assert found.maximum < 6.0


# --- aciq -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "laplace", "gaussian"), [(2, 2.83, 1.71), (3, 3.89, 2.15), (4, 5.03, 2.55)])
def test_aciq_has_the_papers_thresholds(bits: int, laplace: float, gaussian: float) -> None:
    assert laplace_clip(2.0 ** (bits - 1)) == pytest.approx(laplace, abs=0.01)
    assert gaussian_clip(2.0 ** (bits - 1)) == pytest.approx(gaussian, abs=0.01)


@pytest.mark.parametrize("steps", [2.0, 7.5, 64.0, 256.0, 32768.0])
@pytest.mark.parametrize("clip", [laplace_clip, gaussian_clip])
def test_aciq_minimises_its_papers_error(clip: Callable[[float], float], steps: float) -> None:
    thresholds = np.linspace(0.5, 30, 59_001)
    rounding = (thresholds / steps) ** 2 / 12
    tail = np.array([math.erfc(y / math.sqrt(2)) for y in thresholds])
    density = math.sqrt(2 / math.pi) * np.exp(-(thresholds**2) / 2)
    clipping = {
        laplace_clip: 2 * np.exp(-thresholds),
        gaussian_clip: (thresholds**2 + 1) * tail - thresholds * density,
    }[clip]
    assert clip(steps) == pytest.approx(thresholds[np.argmin(clipping + rounding)], abs=2e-3)


@pytest.mark.parametrize(("kind", "expected"), [("laplace", 5.03), ("gaussian", 2.55)])
def test_aciq_tells_the_families_apart(kind: str, expected: float) -> None:
    values = 3 * drawn(kind, 100_000)
    found = ESTIMATORS["aciq"](statistics(values), INT4, symmetric=True)
    assert found.maximum == pytest.approx(3 * expected, rel=0.02)
    around = ESTIMATORS["aciq"](statistics(values + np.float32(1)), INT4, symmetric=False)
    assert around.maximum == pytest.approx(3 * expected + 1, rel=0.02)
    assert around.minimum == pytest.approx(1 - 3 * expected, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "bits", "expected"), [("laplace", 3, 5.03), ("laplace", 2, 3.89), ("gaussian", 3, 2.55)]
)
def test_aciq_behind_a_relu_has_all_levels_on_one_side(kind: str, bits: int, expected: float) -> None:
    """So its thresholds are those of one bit more; zeros are what the Relu cut off."""
    values = np.maximum(drawn(kind, 200_000), 0)
    found = ESTIMATORS["aciq"](statistics(values), IntegerType(bits=bits, signed=False), symmetric=False)
    assert found.maximum == pytest.approx(expected, rel=0.02)
    assert found.minimum == 0.0


# --- entropy --------------------------------------------------------------------------------------------------


def divergence(counts: npt.NDArray[np.float64], kept: int, levels: int) -> float:
    """KL(P||Q) of the calibration's pseudocode, bin by bin."""
    reference = counts[:kept].copy()
    reference[-1] += counts[kept:].sum()
    candidate = np.zeros(kept)
    for level in range(levels):
        group = slice(level * kept // levels, (level + 1) * kept // levels)
        filled = reference[group] > 0
        if filled.any():
            candidate[group] = np.where(filled, counts[:kept][group].sum() / filled.sum(), 0)
    reference, candidate = reference / reference.sum(), candidate / max(candidate.sum(), 1)
    some = reference > 0
    if (candidate[some] == 0).any():
        return math.inf
    return float(np.sum(reference[some] * np.log(reference[some] / candidate[some])))


@given(
    arrays.arrays(np.float64, 64, elements=st.integers(0, 9).map(float)).filter(np.any),
    st.integers(2, 40),
)
def test_running_sums_give_the_divergence_of_the_pseudocode(counts: npt.NDArray[np.float64], levels: int) -> None:
    candidates = np.arange(levels, 65)
    expected = [divergence(counts, candidate, levels) for candidate in candidates]
    np.testing.assert_allclose(divergences(counts, candidates, levels), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "relu", "gelu", "heavy"])
@pytest.mark.parametrize(("name", "symmetric", "levels"), [("int8", True, 128), ("int4", True, 8)])
def test_entropy_finds_the_least_divergence(kind: str, name: str, symmetric: bool, levels: int) -> None:
    values = drawn(kind, 200_000)
    reach = float(np.abs(values).max())
    counts = np.histogram(np.abs(values), 2048, (0, reach))[0].astype(np.float64)
    counts[0] = 0  # the bin of zero
    found = ESTIMATORS["entropy"](statistics(values), integer_type(name), symmetric=symmetric)
    kept = min(round(max(-found.minimum, found.maximum) / reach * 2048 - 0.5), 2048)
    near = range(max(kept - 16, levels), min(kept + 16, 2048) + 1)
    best = min(divergence(counts, candidate, levels) for candidate in range(levels, 2049, 16))
    # The linear bins are interpolated from the leading bits' ones: those of single values in the tail lie elsewhere.
    assert min(divergence(counts, candidate, levels) for candidate in near) <= 1.05 * best + 5e-4


@pytest.mark.parametrize("kind", ["relu", "relu6", "gelu", "gaussian", "laplace", "softmax"])
@pytest.mark.parametrize(("type_", "symmetric"), [(UINT8, False), (INT8, True)])
def test_entropy_does_not_collapse(kind: str, type_: IntegerType, symmetric: bool) -> None:
    """With the bin of zero kept it would choose 1 / 16 of the range behind a Relu."""
    values = drawn(kind, 100_000)
    found = ESTIMATORS["entropy"](statistics(values), type_, symmetric=symmetric)
    inside = np.mean((values >= found.minimum) & (values <= found.maximum))
    assert inside > 0.995
    assert error(values, found.minimum, found.maximum, type_, symmetric=symmetric) < 0.01 * values.var()


def test_entropy_clips_outliers() -> None:
    values = drawn("outlier", 200_000)
    found = ESTIMATORS["entropy"](statistics(values), INT8, symmetric=True)
    assert 3.0 < found.maximum < 10.0


def test_entropy_with_more_levels_than_bins_clips_nothing() -> None:
    values = drawn("laplace")
    found = ESTIMATORS["entropy"](statistics(values), integer_type("int16"), symmetric=True)
    assert (found.minimum, found.maximum) == (values.min(), values.max())


def test_entropy_keeps_values_that_each_have_a_level() -> None:
    values = drawn("steps")
    found = ESTIMATORS["entropy"](statistics(values), UINT8, symmetric=False)
    assert found.maximum == values.max()

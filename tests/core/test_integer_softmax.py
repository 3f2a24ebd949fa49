"""Softmax of levels in integers: against exact quotients, against real numbers, and within int32."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from narrowgauge.core.encoding import Encoding
from narrowgauge.core.granularity import PerAxis, PerTensor
from narrowgauge.core.integer_exponential import (
    code_weights,
    exponential_codes,
    exponential_table,
    most_shift,
    most_table_bits,
    polynomial_exponential,
)
from narrowgauge.core.integer_softmax import (
    UniformSoftmax,
    attention_by_shifts,
    deferred_softmax,
    log_int_softmax,
)
from narrowgauge.core.numbers import IntegerType
from narrowgauge.errors import PlanError

UINT8 = IntegerType(bits=8, signed=False)
THRESHOLDS = ["three_halves", "square_root_of_two"]
TABLE = exponential_table(0.05, bits=8)

scales = st.sampled_from([0.003, 0.02, 0.08, 0.1 * math.log(2), math.log(2), 0.2, 0.9])
seeds = st.integers(0, 2**32 - 1)


def encoding(scale: float, zero_point: int = 0) -> Encoding:
    return Encoding(type=UINT8, granularity=PerTensor(), scale=np.float32(scale), zero_point=np.int32(zero_point))


def rows(seed: int, tokens: int, count: int = 4) -> np.ndarray:
    """Rows that are even, peaked, all equal, and anything."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 255, (count, tokens), endpoint=True)
    levels[0] = generator.integers(100, 108, tokens)
    levels[1, 0] = 255
    levels[2] = generator.integers(0, 255)
    return levels


def probabilities(levels: np.ndarray, scale: float) -> np.ndarray:
    parts = np.exp((levels - levels.max(axis=-1, keepdims=True)) * scale)
    return parts / parts.sum(axis=-1, keepdims=True)


@given(seeds, scales, st.sampled_from([1, 2, 49, 197]), st.sampled_from([255, 256, 15]))
def test_uniform_codes_are_exact_quotients_half_up(seed: int, scale: float, tokens: int, steps: int) -> None:
    levels = rows(seed, tokens)
    table = exponential_table(scale)
    found = UniformSoftmax(exponentials=table, steps=steps).levels(levels)
    parts = table[levels.max(axis=-1, keepdims=True) - levels]
    for row, codes in zip(parts.tolist(), found.tolist(), strict=True):
        assert codes == [math.floor(Fraction(steps * part, sum(row)) + Fraction(1, 2)) for part in row]
    # A rounded exponential is off by half a unit, and so is each of the sum's.
    error = steps * (0.5 + 0.5 * tokens) / 32767
    assert np.abs(found - steps * probabilities(levels, scale)).max() <= 0.5 + error


@given(st.integers(1, 3000), st.sampled_from([255, 256]))
@example(512, 255)
def test_the_worst_row_fits_with_the_widest_table(tokens: int, steps: int) -> None:
    """Equal tokens have the greatest sum, one token alone the greatest share; the arithmetic asserts its bits."""
    bits = most_table_bits(tokens, steps=steps)
    softmax = UniformSoftmax(exponentials=exponential_table(0.1, bits=bits), steps=steps)
    assert softmax.levels(np.full((1, tokens), 7)).max() == (2 * steps + tokens) // (2 * tokens)
    alone = np.zeros((1, tokens), np.int64)
    alone[0, 0] = 255
    softmax.levels(alone)


@pytest.mark.parametrize("scale", [0.05, 0.08, 0.2])
def test_the_polynomial_fits_a_row_of_a_vision_transformer(scale: float) -> None:
    shift = most_shift(scale, tokens=197, steps=255)
    softmax = UniformSoftmax(exponentials=polynomial_exponential(scale, shift=shift).table())
    assert softmax.levels(np.full((1, 197), 3)).tolist() == [[1] * 197]
    with pytest.raises(PlanError, match="197 tokens do not fit int32"):
        UniformSoftmax(exponentials=polynomial_exponential(scale, shift=shift + 1).table()).levels(np.full((1, 197), 3))


def tables(scale: float) -> dict[str, np.ndarray]:
    return {
        "8 bits": exponential_table(scale, bits=8),
        "15 bits": exponential_table(scale, bits=15),
        "codes of 4 bits": code_weights()[exponential_codes(scale)],
        "codes of 8 bits": code_weights(bits=8, octave_bits=4)[exponential_codes(scale, bits=8, octave_bits=4)],
    }


@pytest.mark.parametrize("table", tables(0.1))
@settings(max_examples=30)
@given(seeds, scales, st.sampled_from([1, 2, 49, 257]), st.sampled_from([0.3, 1.0, 3.7]), st.integers(0, 255))
def test_deferred_division_is_exact_but_for_ties(
    table: str, seed: int, scale: float, tokens: int, ratio: float, zero_point: int
) -> None:
    generator = np.random.default_rng(seed)
    levels, values = rows(seed, tokens), generator.integers(-255, 255, (tokens, 6), endpoint=True)
    form = deferred_softmax(tables(scale)[table], encoding(0.02 * ratio), encoding(0.02, zero_point))
    found = form.levels(levels, values)
    parts = form.exponentials[levels.max(axis=-1, keepdims=True) - levels]
    exact = (parts @ values) / parts.sum(axis=-1, keepdims=True)
    real = exact * float(np.float32(0.02 * ratio)) / float(np.float32(0.02)) + zero_point
    assert np.abs(np.clip(real, -0.5, 255.5) - found).max() <= 0.5 + 2.0**-13


@pytest.mark.parametrize(("bits", "tokens"), [(8, 33025), (15, 257), (12, 2056)])
def test_the_worst_row_of_deferred_division_fits(bits: int, tokens: int) -> None:
    """Equal tokens have the greatest sum of values; one token alone the greatest reciprocal."""
    form = deferred_softmax(exponential_table(0.5, bits=bits), encoding(0.02), encoding(0.02))
    ends = np.array([[255, -255]] * tokens)
    assert form.levels(np.full((1, tokens), 7), ends).tolist() == [[255, 0]]
    assert form.levels(np.array([[255] + [0] * (tokens - 1)]), ends).tolist() == [[255, 0]]
    with pytest.raises(PlanError, match=f"{tokens + 1} tokens do not fit int32"):
        form.levels(np.zeros((1, tokens + 1), np.int64), np.zeros((tokens + 1, 1), np.int64))


def test_how_accurate_each_is() -> None:
    """Attention spread over 197 tokens, of which 1 / 255 is about what each has; in the order that they claim."""
    generator = np.random.default_rng(0)
    levels = np.clip(np.rint(generator.normal(128, 25, (500, 197))), 0, 255).astype(np.int64)
    values = generator.integers(-128, 127, (197, 64))
    exact = probabilities(levels, 0.08) @ values

    def noise(found: np.ndarray) -> float:
        return float(np.square(found - exact).sum() / np.square(exact).sum())

    def deferred(name: str) -> float:
        weights = tables(0.08)[name][levels.max(axis=-1, keepdims=True) - levels]
        return noise(weights @ values / weights.sum(axis=-1, keepdims=True))

    uniform = noise(UniformSoftmax(exponentials=exponential_table(0.08)).levels(levels) @ values / 255)
    published = log_int_softmax(exponential_table(0.08), bits=4, threshold="three_halves", tokens=197)
    log_int = noise(attention_by_shifts(published.codes(levels), values, bits=4) / 2**15)
    assert deferred("codes of 4 bits") < 0.7 * log_int
    assert deferred("8 bits") < 0.5 * uniform
    assert deferred("codes of 8 bits") < 0.01 * deferred("codes of 4 bits")
    assert deferred("15 bits") < 1e-5


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=30)
@given(seeds, scales, st.sampled_from([1, 2, 49, 197]))
def test_codes_of_log_int_softmax(threshold, bits: int, seed: int, scale: float, tokens: int) -> None:
    levels = rows(seed, tokens)
    table = exponential_table(scale)
    form = log_int_softmax(table, bits=bits, threshold=threshold, tokens=tokens)
    found = form.codes(levels)
    parts = table[levels.max(axis=-1, keepdims=True) - levels]
    ratio = parts.sum(axis=-1, keepdims=True) / np.maximum(parts, 1)
    if threshold == "three_halves":
        rounded = np.floor(ratio + 0.5)
        leading = np.floor(np.log2(rounded))
        exact = leading + (rounded >= 1.5 * 2**leading)
        near = np.zeros(ratio.shape, bool)
    else:
        exact = np.floor(np.log2(ratio) + 0.5)
        near = np.abs(np.log2(ratio) + 0.5 - np.rint(np.log2(ratio) + 0.5)) < 2.0 ** (1 - form.fraction_bits)
    exact = np.where(parts > 0, np.minimum(exact, 2**bits), 2**bits)
    assert (np.abs(found - exact) <= near).all()


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=40)
@given(seeds, scales, st.sampled_from([1, 2, 3, 5, 49, 197, 3000]))
def test_shifted_sums_fit_25_bits_for_any_number_of_tokens(
    threshold, bits: int, seed: int, scale: float, tokens: int
) -> None:
    """All values at their end, which no sum of shifted ones exceeds: 1.5 * 255 * 2^15 < 2^24."""
    form = log_int_softmax(exponential_table(scale), bits=bits, threshold=threshold, tokens=tokens)
    codes = form.codes(rows(seed, tokens))
    sums = attention_by_shifts(codes, np.full((tokens, 1), 255), bits=bits)
    assert sums.max() <= 1.5 * 255 * 2**15 < 2**24
    np.testing.assert_array_equal(attention_by_shifts(codes, np.full((tokens, 1), -255), bits=bits), -sums)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_weight_is_at_most_one_and_a_half_times_its_probability(threshold) -> None:
    """Every ratio up to 2^20, in steps of a unit: the bound that holds for any number of tokens."""
    form = log_int_softmax(exponential_table(0.1), bits=4, threshold=threshold, tokens=8)
    ratios = np.arange(2**form.fraction_bits, 2**20)
    codes = np.searchsorted(form.thresholds, ratios, side="right")
    # The probability of a ratio is more than that of the next one: 2^fraction_bits / (ratio + 1).
    weights = np.where(codes < 16, 2.0**-codes, 0)
    assert (weights * (ratios + 1) <= 1.5 * 2**form.fraction_bits).all()


def test_any_codes_fit_with_257_tokens() -> None:
    codes = np.zeros((1, 257), np.int64)
    assert attention_by_shifts(codes, np.full((257, 1), 255), bits=4).max() == 257 * 255 * 2**15 < 2**31 - 1


@given(seeds, st.sampled_from([4, 8]))
def test_attention_by_shifts(seed: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 2**bits, (2, 3, 7), endpoint=True)
    values = generator.integers(-255, 255, (2, 7, 5), endpoint=True)
    weights = np.where((codes < 16) & (codes < 2**bits), 2.0 ** (15 - codes), 0)
    np.testing.assert_array_equal(attention_by_shifts(codes, values, bits=bits), weights @ values)


@pytest.mark.parametrize("name", ["uniform", "deferred", *THRESHOLDS])
def test_tokens_that_are_not_kept_do_not_count(name: str) -> None:
    """As if they were not there; also where a masked level is the greatest, and where none is kept."""
    generator = np.random.default_rng(5)
    levels = generator.integers(0, 255, (2, 4, 9), endpoint=True)
    values = generator.integers(-255, 255, (9, 3), endpoint=True)
    kept = np.zeros((4, 9), bool)
    kept[0], kept[1, :4], kept[2, 5] = True, True, True
    levels[..., 8] = 255

    def computed(levels: np.ndarray, values: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
        if name == "uniform":
            return UniformSoftmax(exponentials=exponential_table(0.05)).levels(levels, kept) @ values
        if name == "deferred":
            return deferred_softmax(TABLE, encoding(1.0), encoding(2.0, 128)).levels(levels, values, kept)
        codes = log_int_softmax(exponential_table(0.05), bits=4, threshold=name, tokens=9).codes(levels, kept)
        return attention_by_shifts(codes, values, bits=4)

    found = computed(levels, values, kept)
    for row, chosen in enumerate(kept[:3]):
        alone = computed(levels[:, row : row + 1, chosen], values[chosen])
        np.testing.assert_array_equal(found[:, row : row + 1], alone)
    np.testing.assert_array_equal(found[:, 3], np.full((2, 3), 128 if name == "deferred" else 0))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 2, 5)])
def test_rows_without_numbers(shape: tuple[int, ...]) -> None:
    levels = np.zeros(shape, np.int64)
    assert UniformSoftmax(exponentials=exponential_table(0.05)).levels(levels).shape == shape
    assert log_int_softmax(TABLE, bits=4, threshold="three_halves", tokens=5).codes(levels).shape == shape
    found = deferred_softmax(TABLE, encoding(1.0), encoding(1.0)).levels(levels, np.zeros((shape[-1], 2), np.int64))
    assert found.shape == (*shape[:-1], 2)


def test_what_does_not_fit_is_refused() -> None:
    wide = exponential_table(0.05, bits=24)
    with pytest.raises(PlanError, match="200 tokens do not fit int32"):
        UniformSoftmax(exponentials=wide).levels(np.zeros((1, 200), np.int64))
    with pytest.raises(PlanError, match="leaves no bit of int32"):
        log_int_softmax(wide, bits=4, threshold="three_halves", tokens=128)
    form = log_int_softmax(wide, bits=4, threshold="three_halves", tokens=64)
    with pytest.raises(PlanError, match="65 tokens do not fit int32"):
        form.codes(np.zeros((1, 65), np.int64))
    with pytest.raises(PlanError, match="in proportion"):
        deferred_softmax(TABLE, encoding(2.0**50), encoding(2.0**-50))
    channels = Encoding(
        type=UINT8, granularity=PerAxis(0), scale=np.ones(2, np.float32), zero_point=np.zeros(2, np.int32)
    )
    with pytest.raises(PlanError, match="each with one scale"):
        deferred_softmax(TABLE, channels, encoding(1.0))

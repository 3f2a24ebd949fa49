"""Levels chosen by their effect on the output: near the best there are, and on the target's grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from narrowgauge.recovery.moments import Moments, moments
from narrowgauge.recovery.rounding import RIDGES, Grid, Ridge, ScaleRule, best_ridge, round_to_moments
from tests.planning.networks import normal

EXACT = Ridge(target=1e-3, feedback=1e-3)


def mixed(rows: int, inputs: int, *, groups: int = 1, seed: int = 0) -> np.ndarray:
    """Rows whose inputs depend on each other, as neighbouring pixels and channels do."""
    mixing = normal(groups, inputs, inputs, seed=seed + 1) + 2
    return normal(groups, rows, inputs, seed=seed) @ mixing


def seen(inputs: np.ndarray, weights: np.ndarray) -> Moments:
    return moments(inputs, inputs @ weights.transpose(0, 2, 1))


def grid(weights: np.ndarray, bits: int, shape: tuple[int, ...], *, zero_point: int = 0) -> Grid:
    """Signed levels less a zero point; the scale of the largest weight."""
    highest = 2 ** (bits - 1) - 1
    full = np.full(shape, np.abs(weights).max() / highest, dtype=np.float32)
    ends = [np.full((1, 1, 1), end - zero_point, dtype=np.float32) for end in (-highest - 1, highest)]
    return Grid(scale=full, lowest=ends[0], highest=ends[1])


RULE = ScaleRule(smallest=np.full((1, 1, 1), 1e-6))


def nearest_error(weights: np.ndarray, found: Moments, held: Grid) -> float:
    levels = np.clip(np.rint(weights / held.scale.transpose(0, 2, 1)), held.lowest[0, 0, 0], held.highest[0, 0, 0])
    return float(found.error(levels * held.scale.transpose(0, 2, 1)).sum())


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 1, 1)], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("inputs", [9, 150], ids=["few inputs", "many"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_output_is_far_nearer_than_with_nearest_levels(bits: int, inputs: int, shape: tuple[int, ...]) -> None:
    weights = normal(1, 8, inputs, seed=3)
    found = seen(mixed(2000, inputs), weights)
    held = grid(weights, bits, shape)
    scale, levels = round_to_moments(weights, found, held, RULE, ridge=EXACT)
    assert scale.shape == shape
    assert levels.shape == weights.shape
    assert (levels == np.rint(levels)).all()
    assert levels.min() >= held.lowest.min()
    assert levels.max() <= held.highest.max()
    assert found.error(levels * scale.transpose(0, 2, 1)).sum() < 0.5 * nearest_error(weights, found, held)


def test_few_inputs_are_rounded_almost_as_well_as_by_trying_everything() -> None:
    weights = normal(20, 1, 5, seed=3)
    found = seen(mixed(500, 5, groups=20), weights)
    held = grid(weights, 2, (20, 1, 1))
    fixed = ScaleRule(free=False, smallest=RULE.smallest)
    _, levels = round_to_moments(weights, found, held, fixed, ridge=EXACT)
    every = np.array(list(itertools.product(range(-2, 2), repeat=5)), dtype=np.float32)
    trials = np.broadcast_to(every, (20, len(every), 5)) * held.scale
    wide = seen(mixed(500, 5, groups=20), np.broadcast_to(weights, (20, 1, 5)))
    best = np.stack([wide.error(trials[:, n : n + 1]) for n in range(len(every))]).min(axis=0)
    assert found.error(levels * held.scale).sum() < 1.05 * best.sum()


def test_inputs_that_are_independent_want_the_nearest_levels() -> None:
    weights = normal(1, 6, 40, seed=2)
    held = grid(weights, 4, (1, 1, 6))
    inputs = np.eye(40, dtype=np.float32)[None]
    fixed = ScaleRule(free=False, smallest=RULE.smallest)
    _, levels = round_to_moments(weights, seen(inputs, weights), held, fixed, ridge=EXACT)
    np.testing.assert_array_equal(levels, np.clip(np.rint(weights / held.scale.transpose(0, 2, 1)), -8, 7))


def test_weights_make_up_for_an_input_that_came_too_small() -> None:
    weights, inputs = normal(1, 6, 20, seed=2), mixed(500, 20)
    found = moments(inputs / 2, inputs @ weights.transpose(0, 2, 1))
    scale, levels = round_to_moments(weights, found, grid(weights, 8, (1, 1, 6)), RULE, ridge=EXACT)
    assert found.error(levels * scale.transpose(0, 2, 1)).sum() < 1e-3 * found.energy.sum()


def test_a_scale_keeps_its_rules() -> None:
    weights = normal(1, 6, 40, seed=2)
    found = seen(mixed(500, 40), weights)
    held = grid(weights, 4, (1, 1, 6))
    scale, _ = round_to_moments(weights, found, held, ScaleRule(power_of_two=True, smallest=RULE.smallest), ridge=EXACT)
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(scale))), scale)
    smallest = np.array([1, 1e-6, 1, 1e-6, 1, 1e-6]).reshape(1, 1, 6)
    scale, _ = round_to_moments(weights, found, held, ScaleRule(smallest=smallest), ridge=EXACT)
    np.testing.assert_array_equal(scale.reshape(-1)[::2], 1)
    assert (scale.reshape(-1)[1::2] < 1).all()


def test_levels_on_one_side_of_zero() -> None:
    weights = np.abs(normal(1, 6, 40, seed=2))
    found = seen(mixed(500, 40), weights)
    held = grid(weights, 4, (1, 1, 6), zero_point=-8)  # levels 0 to 15
    scale, levels = round_to_moments(weights, found, held, RULE, ridge=EXACT)
    assert levels.min() >= 0
    assert levels.max() <= 15
    assert found.error(levels * scale.transpose(0, 2, 1)).sum() < nearest_error(weights, found, held)


def test_dead_inputs_and_weights_stay_finite() -> None:
    weights = normal(2, 6, 40, seed=2)
    weights[0, 3] = 0
    inputs = mixed(500, 40, groups=2)
    inputs[:, :, 5] = 0
    inputs[1] = 0
    scale, levels = round_to_moments(weights, seen(inputs, weights), grid(weights, 4, (2, 1, 6)), RULE, ridge=RIDGES[0])
    assert np.isfinite(scale).all()
    assert np.isfinite(levels).all()
    assert (scale > 0).all()
    assert not levels[0, 3].any()


def test_few_rows_are_trusted_less_than_many() -> None:
    """With noise on what is wanted, 60 rows say little of 50 inputs, 20000 much."""
    weights = normal(1, 8, 50, seed=3)
    held = grid(weights, 4, (1, 1, 8))

    def half(rows: int, seed: int) -> Moments:
        inputs = normal(1, rows, 50, seed=seed) @ (normal(1, 50, 50, seed=99) + 2)
        noise = 30 * normal(1, rows, 8, seed=seed + 50)
        return moments(inputs, inputs @ weights.transpose(0, 2, 1) + noise)

    few = best_ridge(weights, [half(60, 1), half(60, 2)], held, RULE)
    many = best_ridge(weights, [half(20000, 1), half(20000, 2)], held, RULE)
    assert few.target > many.target
    assert best_ridge(weights, [half(60, 1)], held, RULE) == RIDGES[0]


def test_inputs_that_never_change_are_rounded_too() -> None:
    weights = normal(1, 4, 8, seed=3)
    still = np.broadcast_to(1000 + 100 * normal(1, 1, 8), (1, 500, 8)).astype(np.float32)
    found = seen(still, weights)
    for moved in (found, found.centered()):
        scale, levels = round_to_moments(weights, moved, grid(weights, 4, (1, 1, 4)), RULE, ridge=RIDGES[-1])
        assert np.isfinite(scale).all()
        assert np.isfinite(levels).all()

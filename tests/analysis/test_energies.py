"""Energies are sums of squares of what is finite in the float network."""

from __future__ import annotations

import math

import numpy as np
import pytest

from narrowgauge.analysis.energies import energy, error_energy, output_noise
from tests.planning.networks import normal


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 40_000)])
def test_sums_of_squares(shape: tuple[int, ...]) -> None:
    one, other = np.asarray(normal(*shape)), np.asarray(normal(*shape, seed=1))
    assert energy(one) == pytest.approx(float(np.square(one, dtype=np.float64).sum()))
    assert error_energy(one, other) == pytest.approx(float(np.square(other - one, dtype=np.float64).sum()))


def test_large_float16_and_float32_do_not_overflow() -> None:
    assert energy(np.full(4, 6e4, np.float16)) == pytest.approx(4 * 3.6e9, rel=1e-3)
    assert error_energy(np.full(2, -3e38, np.float32), np.full(2, 3e38, np.float32)) == pytest.approx(7.2e77, rel=1e-6)


def test_what_is_not_finite_in_the_reference_counts_nothing() -> None:
    mask = np.array([1.0, -np.inf, np.nan, 2.0])
    assert energy(mask) == 5.0
    assert error_energy(mask, np.array([1.5, 7.0, 8.0, 2.0])) == 0.25
    assert error_energy(mask, mask) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_the_other_alone_is_infinitely_wrong(bad: float) -> None:
    assert error_energy(np.ones(3), np.array([1.0, bad, 1.0])) == math.inf


def test_noise_is_the_mean_over_the_outputs() -> None:
    assert output_noise([1.0, 0.0], [4.0, 0.0]) == 0.125
    assert output_noise([1.0], [0.0]) == math.inf
    assert output_noise([], []) == 0.0

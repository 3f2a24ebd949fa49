"""What every rounding at run time must keep, whatever the numbers; which levels it takes is checked in test_hybrid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from narrowgauge.core.engines.hybrid import HYBRIDS
from narrowgauge.core.engines.hybrid_rounding import (
    round_asymmetrically,
    round_like_onnx,
    round_like_xnnpack,
    round_symmetrically,
)
from tests.core.engines.golden_hybrid import ENGINES, FILE

ROUNDINGS = [round_symmetrically, round_asymmetrically, round_like_xnnpack, round_like_onnx]
# Rows of numbers below 1e-30 have scales that float32 does not hold.
LARGE_ENOUGH = st.floats(-1e6, 1e6, width=32).filter(lambda number: number == 0 or abs(number) > 1e-30)
NUMBERS = LARGE_ENOUGH | st.sampled_from([0.0, 1.0, -1.0, 127.5, -0.5])
ROWS = st.tuples(st.integers(0, 4), st.integers(0, 19)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=NUMBERS)
)


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: rounding.__name__)
@given(values=ROWS)
def test_levels_stand_for_numbers_a_step_away_at_most(rounding, values: np.ndarray) -> None:
    rows = rounding(values)
    assert rows.levels.shape == values.shape
    assert rows.scale.shape == rows.zero_point.shape == (len(values), 1)
    assert rows.scale.dtype == np.float32
    least, most = (0, 255) if rounding is round_like_onnx else (-128, 127)
    assert ((rows.levels >= least) & (rows.levels <= most)).all()
    assert ((rows.zero_point >= least) & (rows.zero_point <= most)).all()
    # Half a step is rounded away, and as much of the zero point; float32 adds a little.
    assert (np.abs(rows.steps * rows.scale.astype(np.float64) - values) <= 1.01 * rows.scale).all()
    assert (rows.steps[values == 0] == 0).all()


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda rounding: rounding.__name__)
def test_numbers_that_float32_hardly_holds(rounding) -> None:
    values = np.array([[1e-45, -1e-45, 0], [3e38, 1, -1e-40], [1e-38, -1e-39, 1e-44]], np.float32)
    assert np.isfinite(rounding(values).scale).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_layers_that_litert_computed(engine: str, symmetric: bool) -> None:
    golden = np.load(FILE)
    weights = golden["weights"].astype(np.int64)
    how = HYBRIDS[engine].of("product", per_channel=True, symmetric=symmetric)
    made = how.layer(golden["values"], lambda steps: steps @ weights.T, golden["scale"], golden["bias"])
    assert (made == golden[f"{engine} {'symmetric' if symmetric else 'asymmetric'}"]).all()

"""Where outliers fall and how large they are, against numbers that were put there."""

import numpy as np
import onnx_ir as ir
import pytest

from narrowgauge.analysis.outlier_positions import Spot, look_at
from tests.calibration.networks import batches_of
from tests.planning.networks import network, normal

SPOT = Spot(value="a", axis=2, channel=3, threshold=20.0)


def same(shape: str = "n, 6, 8") -> ir.Model:
    return network(f"float[{shape}] x", f"float[{shape}] y", "a = Identity(x)  y = Relu(a)")


def planted() -> np.ndarray:
    found = normal(20, 6, 8)
    found[:, 4, 3] = np.linspace(-100, -50, 20)
    found[:12, 1, 3] = 30
    found[0, 2, 3] = 1000
    return found


def test_positions_ends_and_the_median_of_the_rest() -> None:
    feed = planted()
    (seen,) = look_at(same(), {"one": SPOT}, batches_of(same(), {"x": feed}, 8)).values()
    assert seen.positions == (4, 1)  # the most frequent one first; the one of a single sample is none
    channel = feed[..., 3].ravel()
    large = np.abs(channel) > SPOT.threshold
    assert (seen.low, seen.high) == pytest.approx(tuple(np.percentile(channel[large], [10, 90])), rel=1e-5)
    assert seen.ordinary == pytest.approx(np.median(np.abs(channel[~large])), rel=1e-5)


def test_values_without_positions_have_sizes_alone() -> None:
    model = same("n, 8")
    feed = normal(20, 8)
    feed[:, 3] = 50
    spot = Spot(value="a", axis=1, channel=3, threshold=20.0)
    (seen,) = look_at(model, {"one": spot}, batches_of(model, {"x": feed}, 8)).values()
    assert (seen.positions, seen.low, seen.high) == ((), 50, 50)
    assert np.isnan(seen.ordinary)


def test_without_samples_nothing_is_known() -> None:
    (seen,) = look_at(same(), {"one": SPOT}, []).values()
    assert seen.positions == ()
    assert np.isnan([seen.low, seen.high, seen.ordinary]).all()


def test_too_many_positions_are_none() -> None:
    model = same("n, 40, 8")
    feed = normal(8, 40, 8)
    feed[..., 3] = 50
    (seen,) = look_at(model, {"one": SPOT}, batches_of(model, {"x": feed}, 8)).values()
    assert (seen.positions, seen.low) == ((), 50)

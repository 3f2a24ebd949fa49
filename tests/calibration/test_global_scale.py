"""The range that looks at no data."""

import numpy as np
import pytest

from narrowgauge.calibration.global_scale import global_scale
from narrowgauge.calibration.ranges import estimator
from narrowgauge.core.granularity import PerTensor
from narrowgauge.core.numbers import integer_type
from narrowgauge.core.ranges import encoding_from_range
from narrowgauge.errors import RecipeError
from tests.calibration.test_ranges import statistics


@pytest.mark.parametrize(
    ("name", "kind", "step"),
    [
        ("global-scale", "int8", 8 / 128),
        ("global-scale:16", "int8", 16 / 128),
        ("global-scale", "int4", 8 / 8),
        ("global-scale", "int16", 8 / 2**15),
    ],
)
def test_the_step_is_that_of_tvm_whatever_the_data(name: str, kind: str, step: float) -> None:
    for data in (np.ones(5, np.float32), np.linspace(-100, 3, 50, dtype=np.float32)):
        found = estimator(name)(statistics(data), integer_type(kind), symmetric=True)
        made = encoding_from_range(found.minimum, found.maximum, integer_type(kind), PerTensor(), symmetric=True)
        assert made.scale == np.float32(step)
        assert made.zero_point == 0


@pytest.mark.parametrize("name", ["global-scale:0", "global-scale:-1", "global-scale:nan", "global-scale:inf"])
def test_a_scale_must_be_positive(name: str) -> None:
    with pytest.raises(RecipeError, match="expected a global scale above 0"):
        estimator(name)
    with pytest.raises(RecipeError, match="expected a number behind the colon"):
        estimator("global-scale:large")


def test_it_is_made_from_its_reach() -> None:
    found = global_scale(4.0)(statistics(np.ones(3, np.float32)), integer_type("int8"), symmetric=True)
    assert (found.minimum, found.maximum) == (-4.0 * 127 / 128, 4.0 * 127 / 128)

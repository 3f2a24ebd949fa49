"""Rows that only fill a fixed batch are left out where they can be told, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from narrowgauge.data import Batch
from narrowgauge.graph.feeds import named, sample_rows

SAMPLES = np.arange(6.0).reshape(3, 2)
FILLED = np.concatenate([SAMPLES, SAMPLES[-1:]])


def batch(count: int, **feed: np.ndarray) -> Batch:
    names = tuple(f"s{number}" for number in range(count))
    return Batch(feed=feed, count=count, names=names, labels=(None,) * count)


def test_rows_behind_the_samples_are_left_out() -> None:
    filled = batch(3, x=FILLED, level=np.asarray(0.5))  # a scalar has no rows
    np.testing.assert_array_equal(sample_rows(10 * FILLED, filled), 10 * SAMPLES)


@pytest.mark.parametrize(
    ("fed", "value"),
    [
        (batch(4, x=FILLED), FILLED),
        (batch(3, x=FILLED), np.ones((5, 4))),
        (batch(3, x=FILLED), np.asarray(1.0)),
        (batch(1, x=np.arange(4.0)), np.ones(4)),
        (batch(3, x=FILLED, mask=np.ones((2, 4))), np.ones(4)),
        (batch(3, level=np.asarray(0.5)), np.ones(4)),
    ],
    ids=["all are samples", "another axis", "scalar", "rows that differ", "feeds of several lengths", "no rows fed"],
)
def test_any_other_value_is_whole(fed: Batch, value: np.ndarray) -> None:
    assert sample_rows(value, fed) is value


def test_samples_are_named_by_the_first_and_the_last() -> None:
    assert named(batch(1, x=SAMPLES)) == "sample s0"
    assert named(batch(3, x=SAMPLES)) == "samples s0 to s2"

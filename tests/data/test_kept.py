"""Samples that are gone through several times are read once where they fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from narrowgauge.data import InputSpec, open_samples
from narrowgauge.data.kept import KeptBatches

INPUTS = (InputSpec(name="x", shape=(None, 4), dtype=np.dtype(np.float32)),)


class Counted:
    """Ten samples that say how often they were read."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        yield from ({"x": np.full((1, 4), number, np.float32)} for number in range(10))


def rows(kept: KeptBatches) -> list[float]:
    return [float(row[0]) for batch in kept for row in batch.feed["x"]]


def test_what_fits_is_read_once() -> None:
    source = Counted()
    kept = KeptBatches(open_samples(source, INPUTS), 4, INPUTS)
    assert rows(kept) == rows(kept) == list(range(10))
    assert source.passes == 1


def test_what_does_not_fit_is_read_anew_and_whole() -> None:
    source = Counted()
    kept = KeptBatches(open_samples(source, INPUTS), 4, INPUTS, limit=100)
    assert rows(kept) == rows(kept) == list(range(10))
    assert source.passes == 2


def test_a_pass_that_ends_early_keeps_nothing() -> None:
    kept = KeptBatches(open_samples(Counted(), INPUTS), 4, INPUTS)
    next(iter(kept))
    assert rows(kept) == list(range(10))

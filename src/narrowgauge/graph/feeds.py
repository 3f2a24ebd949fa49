"""What a run of a network is fed with, and which rows of what it gives are samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


class Feed(Protocol):
    """Some samples that go through a network together."""

    @property
    def feed(self) -> Mapping[str, Array]:
        """Input name -> array."""


class Batch(Feed, Protocol):
    """Samples that can be counted and named."""

    @property
    def count(self) -> int:
        """How many of the rows are samples; rows behind them only fill a fixed batch."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each sample."""


def sample_rows(value: Array, batch: Batch) -> Array:
    """Leave out the rows that only fill a fixed batch; of a value whose first axis is not the batch, nothing.

    Rows are known to fill where every array that is fed has as many of them as the value, and repeats its last sample
    in those behind the samples.
    """
    fed, count = [array for array in batch.feed.values() if array.ndim], batch.count
    if value.ndim == 0 or len(value) <= count or {len(array) for array in fed} != {len(value)}:
        return value
    return value[:count] if all((array[count:] == array[count - 1]).all() for array in fed) else value


def named(batch: Batch) -> str:
    """Name a batch's samples in a message."""
    return f"sample {batch.names[0]}" if len(batch.names) == 1 else f"samples {batch.names[0]} to {batch.names[-1]}"

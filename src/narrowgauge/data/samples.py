"""Samples: what one run is fed with, who it is, and the lazy row of all of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from narrowgauge.data.inputs import Array
from narrowgauge.data.preprocess import Preprocess
from narrowgauge.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One feed: usually one row of a batch; several where a Python iterable brought them together.

    Attributes:
        feed: Input name -> array with its batch axis, ready to run.
        names: Who each row is (file name or index), one per row.
        labels: Class index of each row, None where unknown, one per row.
        whole: The feed must be run as it is: it is neither cut nor joined with others, and counts as one sample.
    """

    feed: Mapping[str, Array]
    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    whole: bool = False

    @property
    def name(self) -> str:
        """Who the sample is; of several rows, the first."""
        return self.names[0]

    @property
    def label(self) -> int | None:
        """Class index of the sample; of several rows, the first."""
        return self.labels[0]

    @property
    def rows(self) -> int:
        """How many rows the feed holds."""
        return len(self.names)

    @property
    def size(self) -> int:
        """How many samples the feed counts as."""
        return 1 if self.whole else len(self.names)


def cut(sample: Sample, start: int, stop: int) -> Sample:
    """Return rows `start` to `stop` (exclusive) of a sample; scalars stay as they are."""
    if (start, stop) == (0, sample.rows):
        return sample
    return replace(
        sample,
        feed={name: array[start:stop] if array.ndim else array for name, array in sample.feed.items()},
        names=sample.names[start:stop],
        labels=sample.labels[start:stop],
    )


class Source(Protocol):
    """Where samples come from."""

    @property
    def notes(self) -> list[str]:
        """What the user should know about the data; grows while samples are read."""

    @property
    def count(self) -> int | None:
        """How many samples there are; None where only reading tells."""

    @property
    def preprocess(self) -> Preprocess | None:
        """How images become inputs, what was assumed included; None where samples are arrays and nothing was said."""

    def name_of(self, index: int) -> str:
        """Return the name of a sample."""

    def read(self, start: int, stop: int | None) -> Iterator[Sample]:
        """Yield samples `start` to `stop` (exclusive; None: to the end) in order.

        A source that can be read only once raises DataError where `start` has passed already.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """A lazy, ordered row of samples; iterate over it as often as its source allows.

    `take`, `skip` and slices make views that read nothing by themselves, so that one source is split into a
    calibration part and a held-out part. Of a one-shot iterator, the calibration part is to be read first.
    """

    source: Source
    start: int = 0
    stop: int | None = None

    @property
    def count(self) -> int | None:
        """How many samples there are, None where only reading tells. Unreadable ones that are skipped count."""
        if self.source.count is None:
            return None
        stop = self.source.count if self.stop is None else min(self.stop, self.source.count)
        return max(0, stop - self.start)

    @property
    def preprocess(self) -> Preprocess | None:
        """How images become inputs, what was assumed included; None where samples are arrays and nothing was said."""
        return self.source.preprocess

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the data, so far; each once."""
        return tuple(dict.fromkeys(self.source.notes))

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples in order."""
        if self.stop is not None and self.stop <= self.start:
            return iter(())
        return self.source.read(self.start, self.stop)

    def take(self, number: int) -> "Samples":
        """Return a view of the first `number` samples."""
        return self[:number]

    def skip(self, number: int) -> "Samples":
        """Return a view without the first `number` samples."""
        return self[number:]

    def __getitem__(self, part: slice) -> "Samples":
        """Return a view of a slice with no step and no negative bound.

        Raises:
            DataError: The slice has a step or a negative bound.
        """
        first, last = part.start or 0, part.stop
        if part.step not in (None, 1) or first < 0 or (last is not None and last < 0):
            raise DataError(f"Expected a slice of samples with no step and no negative bound, got {part}.")
        ends = [end for end in (self.stop, None if last is None else self.start + last) if end is not None]
        return replace(self, start=self.start + first, stop=min(ends, default=None))

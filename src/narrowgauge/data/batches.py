"""Group samples into the runs of an engine."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from narrowgauge.data.inputs import Array, InputSpec, has_batch_axis, rows_per_run
from narrowgauge.data.samples import Sample, cut


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one run is fed with.

    Attributes:
        feed: Input name -> array, all rows of the run.
        count: How many rows are samples; rows from `count` on repeat the last one to fill a fixed batch and must not be
            counted.
        names: Who each row is, `count` of them.
        labels: Class index of each row or None, `count` of them.
    """

    feed: Mapping[str, Array]
    count: int
    names: tuple[str, ...]
    labels: tuple[int | None, ...]


def batches(samples: Iterable[Sample], size: int, inputs: Sequence[InputSpec]) -> Iterator[Batch]:
    """Group samples, in order, into runs that the network takes.

    Single rows of equal shapes are joined: up to `size` where the batch axis is dynamic, up to the network's own
    extent where it is fixed (then a smaller rest is filled by repeating its last row). A feed of several rows from a
    Python iterable is run as it came where the network takes it, and cut into rows where it does not. Feeds of a
    network without a common batch axis, and whole feeds, are run one by one.

    Args:
        samples: The samples.
        size: Largest number of rows to join where the network leaves it open, at least 1.
        inputs: The network's inputs.
    """
    fixed = rows_per_run(inputs)
    limit = max(1, size) if fixed is None else fixed
    group: list[Sample] = []
    failure: Exception | None = None
    try:
        for sample in _pieces(samples, fixed, has_batch_axis(inputs)):
            if group and not (_single(sample) and _alike(group[0], sample)):
                yield _join(group, fixed)
                group = []
            group.append(sample)
            if len(group) == limit or not _single(sample):
                yield _join(group, fixed)
                group = []
    except Exception as error:  # what came before it is run first
        failure = error
    if group:
        yield _join(group, fixed)
    if failure is not None:
        raise failure


def single_row(feed: Mapping[str, Array], inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Cut a run's feed down to its first row where the network leaves the number of rows open, else return it all."""
    open_rows = has_batch_axis(inputs) and rows_per_run(inputs) is None
    return {name: array[:1] if open_rows and array.ndim else array for name, array in feed.items()}


def _pieces(samples: Iterable[Sample], fixed: int | None, cuttable: bool) -> Iterator[Sample]:
    """Cut feeds whose number of rows the network does not take into single rows."""
    for sample in samples:
        if sample.whole or not cuttable or fixed is None or sample.rows == fixed:
            yield sample
        else:
            yield from (cut(sample, row, row + 1) for row in range(sample.rows))


def _single(sample: Sample) -> bool:
    return sample.rows == 1 and not sample.whole


def _alike(first: Sample, second: Sample) -> bool:
    """Tell whether two single rows can share a run: equal shapes, and equal values of scalars."""
    return all(
        array.shape == second.feed[name].shape and (array.ndim > 0 or array == second.feed[name])
        for name, array in first.feed.items()
    )


def _join(group: Sequence[Sample], fixed: int | None) -> Batch:
    names = tuple(name for sample in group for name in sample.names)
    labels = tuple(label for sample in group for label in sample.labels)
    missing = 0 if fixed is None or not _single(group[0]) else fixed - len(group)
    feeds = [sample.feed for sample in (*group, *[group[-1]] * missing)]
    feed = {name: _stack([each[name] for each in feeds]) for name in feeds[0]}
    return Batch(feed=feed, count=len(names), names=names, labels=labels)


def _stack(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1 or arrays[0].ndim == 0:
        return arrays[0]
    return np.concatenate(arrays, axis=0)

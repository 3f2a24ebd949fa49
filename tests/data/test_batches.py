from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.data import Batch, InputSpec, batches, open_samples
from tests.data.networks import PICTURE, SPEECH, TEXT, image_input


def run_sizes(data: Any, size: int, inputs: Sequence[InputSpec]) -> list[int]:
    return [len(next(iter(batch.feed.values()))) for batch in batches(open_samples(data, inputs), size, inputs)]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=30), st.integers(1, 7))
def test_every_row_appears_once_and_in_order(feeds: list[tuple[int, int]], size: int) -> None:
    """Feeds of any number of rows and any length of sequence, each row carrying its number."""
    position, data = 0, []
    for rows, length in feeds:
        ids = np.arange(position, position + rows)[:, None].repeat(length, axis=1)
        data.append({"ids": ids, "mask": np.ones_like(ids)})
        position += rows
    seen: list[int] = []
    for batch in batches(open_samples(data, TEXT), size, TEXT):
        assert len(batch.names) == len(batch.labels) == batch.count == len(batch.feed["ids"])
        assert batch.count <= max(size, 4)
        seen.extend(batch.feed["ids"][:, 0].tolist())
    assert seen == list(range(position))


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 9))
def test_fixed_batch_is_filled_and_the_filling_is_not_counted(count: int, fixed: int, size: int) -> None:
    inputs = image_input(fixed, 2)
    data = np.arange(count, dtype=np.float32)[:, None].repeat(2, axis=1)
    found: list[Batch] = list(batches(open_samples(data, inputs), size, inputs))
    assert all(batch.feed["input"].shape == (fixed, 2) for batch in found)
    assert [value for batch in found for value in batch.feed["input"][: batch.count, 0]] == list(range(count))
    assert all(batch.count == fixed for batch in found[:-1])
    assert (found[-1].feed["input"][found[-1].count - 1 :] == count - 1).all()


@given(st.integers(1, 25), st.integers(1, 9))
def test_equal_rows_fill_batches(count: int, size: int) -> None:
    sizes = run_sizes(np.zeros((count, 3, 8, 8), np.float32), size, PICTURE)
    assert sizes == [size] * (count // size) + ([count % size] if count % size else [])


def test_another_length_starts_another_batch() -> None:
    data = [{"ids": np.ones((1, n), np.int64), "mask": np.ones((1, n), np.int64)} for n in (4, 4, 5, 4, 4, 4)]
    assert run_sizes(data, 8, TEXT) == [2, 1, 3]


def test_feeds_of_several_rows_stay_as_they_came_where_the_network_takes_them() -> None:
    feeds = [np.zeros((rows, 3, 8, 8), np.float32) for rows in (6, 1, 1, 2)]
    assert run_sizes(feeds, 4, PICTURE) == [6, 2, 2]
    assert run_sizes(feeds, 4, image_input(1, 3, 8, 8)) == [1] * 10


def test_whole_feeds_and_networks_without_batch_axis_run_one_by_one() -> None:
    assert run_sizes(np.zeros((3, 7, 5), np.float32), 4, image_input(None, 5)) == [7, 7, 7]
    feeds = [{"input": np.zeros((1, 64)), "state": np.zeros((2, 1, 128)), "sr": 16000}] * 3
    assert run_sizes(feeds, 4, SPEECH) == [1, 1, 1]


def test_scalars_join_only_where_they_are_equal() -> None:
    inputs = (*image_input(None, 5), InputSpec(name="rate", shape=(), dtype=np.dtype(np.int64)))
    data = {"input": np.zeros((5, 5), np.float32), "rate": np.array([1, 1, 2, 2, 2])}
    found = [(batch.count, int(batch.feed["rate"])) for batch in batches(open_samples(data, inputs), 8, inputs)]
    # one entry per scalar makes no whole feeds: rows join as long as the scalar stays
    assert found == [(2, 1), (3, 2)]

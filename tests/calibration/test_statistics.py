"""Statistics as data: merging, and the file."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowgauge.calibration.histogram import EMPTY, histogram_of
from narrowgauge.calibration.statistics import ChannelStatistics, Statistics, TensorStatistics, merge_tensors
from narrowgauge.errors import OutputError, StatisticsError
from tests.calibration.networks import assert_same_statistics, assert_same_tensor

NOTHING = TensorStatistics(minimum=np.inf, maximum=-np.inf, histogram=EMPTY, channels=None)


def seen(values: list[list[float]], first_bad_index: int = -1) -> TensorStatistics:
    """Statistics of rows of three channels."""
    array = np.array(values, np.float32).reshape(-1, 3)
    return TensorStatistics(
        minimum=float(array.min()),
        maximum=float(array.max()),
        histogram=histogram_of(array),
        channels=ChannelStatistics(
            axis=1,
            minimum=array.min(axis=0),
            maximum=array.max(axis=0),
            total=array.sum(axis=0, dtype=np.float64),
            count=len(array),
        ),
        nan_count=int(first_bad_index >= 0),
        first_bad="" if first_bad_index < 0 else f"sample {first_bad_index}",
        first_bad_index=first_bad_index,
    )


def statistics(**tensors: TensorStatistics) -> Statistics:
    return Statistics(tensors=tensors, aliases={"z": "y"}, samples=3, sampled=4096, network="abc")


rows = st.lists(st.lists(st.integers(-99, 99).map(float), min_size=3, max_size=3), min_size=1, max_size=6)
parts = st.one_of(st.builds(seen, rows, st.integers(-1, 9)), st.just(NOTHING))


@given(parts, parts, parts)
def test_merging_tensors_is_commutative_and_associative(
    a: TensorStatistics, b: TensorStatistics, c: TensorStatistics
) -> None:
    assert_same_tensor(merge_tensors([a, b]), merge_tensors([b, a]))
    assert_same_tensor(merge_tensors([merge_tensors([a, b]), c]), merge_tensors([a, merge_tensors([b, c])]))


@given(rows, rows)
def test_merging_equals_looking_at_all_at_once(a: list[list[float]], b: list[list[float]]) -> None:
    assert_same_tensor(merge_tensors([seen(a), seen(b)]), seen(a + b))


@given(parts)
def test_a_shard_that_saw_nothing_changes_nothing(part: TensorStatistics) -> None:
    assert_same_tensor(merge_tensors([part, NOTHING]), part)


def test_channels_whose_number_changes_are_dropped() -> None:
    first = seen([[1, 2, 3]])
    assert first.channels is not None
    two = replace(first.channels, minimum=np.zeros(2, np.float32), maximum=np.ones(2, np.float32), total=np.ones(2))
    assert merge_tensors([first, replace(first, channels=two)]).channels is None


def test_statistics_of_another_network_or_another_sampling_do_not_merge() -> None:
    first = statistics(y=seen([[1, 2, 3]]))
    with pytest.raises(StatisticsError, match="network"):
        first.merge(replace(first, network="abd"))
    with pytest.raises(StatisticsError, match="4096 and 64"):
        first.merge(replace(first, sampled=64))


def test_aliases_lead_to_the_value_that_was_observed() -> None:
    found = statistics(y=seen([[1, 2, 3]]))
    assert found.of("z") is found.tensors["y"]
    with pytest.raises(StatisticsError, match="'elsewhere'"):
        found.of("elsewhere")


# --- file -----------------------------------------------------------------------------------------------------


def test_saving_and_loading(tmp_path: Path) -> None:
    original = statistics(
        y=seen([[1, 2, 3], [-4, 0, 7]], 5), empty=NOTHING, plain=replace(seen([[1, 2, 3]]), channels=None)
    )
    path = tmp_path / "statistics.npz"
    original.save(path)
    original.save(str(path))
    assert_same_statistics(Statistics.load(path), original)
    assert [entry.name for entry in tmp_path.iterdir()] == ["statistics.npz"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing.*statistics\.npz"):
        statistics().save(tmp_path / "missing" / "statistics.npz")


def _pickled(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path.with_suffix(".npy").rename(path)


def _archive(**arrays: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        path.write_bytes(buffer.getvalue())

    return write


def _header(value: object) -> object:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _text_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no arrays")


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("samples: 3"),
    "json": lambda path: path.write_text("{}"),
    "pickle": _pickled,
    "plain npy": lambda path: path.write_bytes(_npy(np.zeros(3))),
    "other npz": _archive(weights=np.zeros(3)),
    "pickle in npz": _archive(header=np.array([{"a": 1}], dtype=object)),
    "header no JSON": _archive(header=np.zeros(3, np.uint8)),
    "header a list": _archive(header=_header([1, 2])),
    "other format": _archive(header=_header({"format": "narrowgauge statistics 99"})),
    "tensors missing": _archive(header=_header({"format": "narrowgauge statistics 1", "tensors": [{"name": "x"}]})),
    "zip": _text_archive,
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
}


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "statistics.npz"
    FOREIGN[kind](path)
    with pytest.raises(StatisticsError, match=r"statistics\.npz: expected statistics"):
        Statistics.load(path)


def test_a_damaged_file_is_refused_or_unharmed(tmp_path: Path) -> None:
    """One byte changed, or the end missing, at many places."""
    path = tmp_path / "statistics.npz"
    original = statistics(y=seen([[1, 2, 3], [-4, 0, 7]], 5))
    original.save(path)
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        for damaged in (bytes(flipped), content[:place]):
            path.write_bytes(damaged)
            try:
                found = Statistics.load(path)
            except StatisticsError:
                refused += 1
            else:
                assert_same_statistics(found, original)
    assert refused > len(content) / 7

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from narrowgauge.data import Preprocess, open_samples
from narrowgauge.errors import DataError
from tests.data.networks import PICTURE, SPEECH, TEXT

NUMBERS = [np.full((1, 3, 8, 8), number, np.float32) for number in range(10)]


def values(samples: Any) -> list[int]:
    return [int(row.flat[0]) for sample in samples for row in sample.feed["input"]]


class Tensor:
    """What torch tensors are to NumPy."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self.array


class Loader:
    """What torch data loaders are to us: an iterable of [x, y] in batches."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        for start in (0, 4, 8):
            rows = np.concatenate(NUMBERS[start : start + 4])
            yield [Tensor(rows), Tensor(np.arange(start, start + len(rows)) + 100)]


def test_a_list_is_read_as_often_as_asked() -> None:
    samples = open_samples(NUMBERS, PICTURE)
    assert values(samples) == values(samples) == list(range(10))
    assert samples.count is None


def test_a_generator_is_split_once_and_in_order() -> None:
    samples = open_samples(iter(NUMBERS), PICTURE)
    calibration, rest = samples.take(4), samples.skip(4)
    assert values(calibration) == [0, 1, 2, 3]
    assert values(rest) == [4, 5, 6, 7, 8, 9]
    with pytest.raises(DataError, match="read only once and has passed"):
        list(calibration)


def test_a_generator_is_read_no_further_than_asked() -> None:
    source = iter(NUMBERS)
    assert values(open_samples(source, PICTURE).take(3)) == [0, 1, 2]
    assert int(next(source).flat[0]) == 3


def test_loader_batches_give_labels_and_are_cut_at_the_split() -> None:
    for data in (Loader(), iter(Loader())):
        samples = open_samples(data, PICTURE)
        first, rest = samples.take(6), samples[6:]
        assert [(sample.rows, sample.labels[0]) for sample in first] == [(4, 100), (2, 104)]
        assert [(sample.name, sample.labels) for sample in rest] == [("data[6]", (106, 107)), ("data[8]", (108, 109))]


def test_tuples_follow_the_order_of_the_inputs() -> None:
    ids, mask = np.ones((2, 5), np.int64), np.zeros((2, 5), np.int64)
    (sample,) = open_samples([(ids, mask)], TEXT)
    np.testing.assert_array_equal(sample.feed["mask"], mask)
    (sample,) = open_samples([(ids, mask, np.array([3, 4]))], TEXT)
    assert sample.labels == (3, 4)
    (sample,) = open_samples([({"ids": ids, "mask": mask}, [3, 4])], TEXT)
    assert sample.labels == (3, 4)


def test_labels_in_the_dict_and_targets_that_are_none() -> None:
    (sample,) = open_samples([{"input": NUMBERS[0], "labels": np.array([7])}], PICTURE)
    assert sample.labels == (7,)
    samples = open_samples([(NUMBERS[0], np.zeros((1, 8, 8)))], PICTURE)
    assert [sample.label for sample in samples] == [None]
    assert any("targets" in note for note in samples.notes)


def test_single_arrays_without_batch_axis_get_one() -> None:
    assert [sample.feed["input"].shape for sample in open_samples([NUMBERS[0][0]] * 2, PICTURE)] == [(1, 3, 8, 8)] * 2


def test_feed_of_a_network_without_batch_axis_stays_whole() -> None:
    feed = {"input": np.zeros((4, 64)), "state": np.zeros((2, 4, 128)), "sr": 16000}
    (sample,) = open_samples([feed], SPEECH)
    assert sample.whole
    assert sample.feed["input"].shape == (4, 64)


def test_images_from_python_are_preprocessed() -> None:
    white = Image.new("RGB", (20, 10), "white")
    samples = open_samples([(white, 3), white], PICTURE, preprocess=Preprocess(resize=8, crop=8, label_offset=1))
    assert [(sample.label, float(sample.feed["input"].min())) for sample in samples] == [(4, 1.0), (None, 1.0)]


def test_missing_input_names_the_feed() -> None:
    with pytest.raises(DataError, match=r"data\[1\].*missing 'mask'"):
        list(
            open_samples([{"ids": np.ones((1, 2), int), "mask": np.ones((1, 2), int)}, {"ids": np.ones((1, 2))}], TEXT)
        )


def test_nothing_is_an_error() -> None:
    for data in ([], iter(())):
        with pytest.raises(DataError, match="at least one feed"):
            list(open_samples(data, PICTURE))
    with pytest.raises(DataError, match="got int"):
        open_samples(3, PICTURE)  # type: ignore[arg-type]


def test_module_callable_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_calibration_feeds.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    for number in range(3):\n"
        "        yield {'input': np.full((1, 3, 8, 8), number)}\n"
        "def failing():\n"
        "    yield {'input': np.zeros((1, 3, 8, 8))}\n"
        "    raise RuntimeError('disk on fire')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    samples = open_samples("my_calibration_feeds:feeds", PICTURE)
    assert values(samples) == values(samples) == [0, 1, 2]
    assert values(samples.skip(1)) == [1, 2]
    with pytest.raises(DataError, match="my_calibration_feeds:failing, but after 1 of them it failed: RuntimeError"):
        list(open_samples("my_calibration_feeds:failing", PICTURE))
    with pytest.raises(DataError, match="my_calibration_feeds:nothing to name a function"):
        open_samples("my_calibration_feeds:nothing", PICTURE)
    with pytest.raises(DataError, match="Expected a module no_such_module"):
        open_samples("no_such_module:feeds", PICTURE)


def test_torch_tensors_and_loaders() -> None:
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(np.concatenate(NUMBERS))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.arange(10)), batch_size=4, shuffle=False
    )
    samples = open_samples(loader, PICTURE)
    assert values(samples) == list(range(10))
    assert [label for sample in samples for label in sample.labels] == list(range(10))
    assert values(open_samples(images, PICTURE)) == list(range(10))
    with pytest.raises(DataError, match="detach"):
        list(open_samples([images.requires_grad_()], PICTURE))


def test_torch_loaders_tell_their_count_and_give_dicts() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    images = torch.from_numpy(np.concatenate(NUMBERS))

    class Named(torch.utils.data.Dataset):  # type: ignore[misc,name-defined,unused-ignore]
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input": images[index % 10], "label": index}

    for drop, count in ((False, 10), (True, 8)):
        loader = torch.utils.data.DataLoader(Named(), batch_size=4, drop_last=drop)
        samples = open_samples(loader, PICTURE)
        assert samples.count == count == len(values(samples)) == len(values(samples))
        assert [label for sample in samples for label in sample.labels] == list(range(count))
        assert values(samples.skip(6)) == list(range(6, count))
        assert not samples.notes
    shuffled = open_samples(torch.utils.data.DataLoader(Named(), batch_size=4, shuffle=True), PICTURE)
    assert any("shuffle=False" in note for note in shuffled.notes)


def test_data_sets_are_read_to_their_length_and_no_further() -> None:
    class Pairs:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
            return NUMBERS[index][0], index + 7

    samples = open_samples(Pairs(), PICTURE)  # type: ignore[arg-type]
    assert values(samples) == values(samples) == [0, 1, 2]
    assert [sample.label for sample in samples] == [7, 8, 9]


def test_streaming_loaders_and_those_of_networks_without_batch_axis() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc,name-defined,unused-ignore]
        def __iter__(self) -> Iterator[Any]:
            return iter(NUMBERS)

    assert open_samples(torch.utils.data.DataLoader(Stream(), batch_size=None), PICTURE).count is None
    feeds = [{"input": np.zeros((4, 64)), "state": np.zeros((2, 4, 128)), "sr": np.array(16000)}] * 3
    loader = torch.utils.data.DataLoader(feeds, batch_size=1, collate_fn=lambda items: items[0])
    samples = open_samples(loader, SPEECH)
    assert samples.count == 3 == len(list(samples))


def test_an_iterator_is_let_go_as_soon_as_a_part_is_read() -> None:
    """A loader stops its workers when its iterator goes; left to Python's collector, that took ten seconds."""
    gone: list[int] = []

    def items() -> Iterator[np.ndarray[Any, Any]]:
        try:
            yield from NUMBERS
        finally:
            gone.append(1)

    gc.disable()
    try:
        samples = open_samples(items, PICTURE)
        assert values(samples.take(3)) == [0, 1, 2]
        assert len(gone) == 1
        next(iter(samples))
        assert len(gone) == 2
    finally:
        gc.enable()


def test_whole_arrays_with_the_class_index_of_each_row() -> None:
    rows, labels = np.concatenate(NUMBERS), np.arange(10) + 100
    samples = open_samples((rows, labels), PICTURE)
    assert values(samples) == list(range(10))
    assert [label for sample in samples for label in sample.labels] == labels.tolist()
    assert values(open_samples((NUMBERS[0], NUMBERS[1]), PICTURE)) == [0, 1]

from pathlib import Path

import numpy as np
import pytest

from narrowgauge.data import InputSpec, open_samples
from narrowgauge.errors import DataError
from tests.data.networks import PICTURE, SPEECH, TEXT, image_input

PICTURES = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)


def test_array_of_the_inputs_rank_has_the_batch_first() -> None:
    samples = open_samples(PICTURES, PICTURE)
    assert samples.count == 5
    assert [sample.name for sample in samples] == [f"data[{index}]" for index in range(5)]
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.feed["input"], PICTURES[index : index + 1])


def test_array_of_one_axis_more_holds_whole_feeds() -> None:
    sequences = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
    samples = list(open_samples(sequences, image_input(None, 3)))
    assert [sample.size for sample in samples] == [1] * 4
    assert all(sample.whole and sample.rows == 7 for sample in samples)
    np.testing.assert_array_equal(samples[2].feed["input"], sequences[2])


def test_npy_is_memory_mapped_and_float64_is_cast(tmp_path: Path) -> None:
    np.save(tmp_path / "pictures.npy", PICTURES.astype(np.float64))
    samples = open_samples(tmp_path / "pictures.npy", PICTURE)
    feeds = [sample.feed["input"] for sample in samples]
    assert {feed.dtype for feed in feeds} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(feeds), PICTURES)
    assert samples.count == 5
    assert isinstance(samples.source._columns[0].array, np.memmap)


def test_npz_feeds_inputs_by_name_and_keeps_integer_ids(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    np.savez(tmp_path / "text.npz", mask=np.ones((3, 4), np.int64), ids=ids, label=np.array([4, 5, 6]))
    samples = list(open_samples(tmp_path / "text.npz", TEXT))
    assert [sample.label for sample in samples] == [4, 5, 6]
    assert samples[1].feed["ids"].dtype == np.int64
    np.testing.assert_array_equal(samples[1].feed["ids"], ids[1:2])
    assert samples[0].feed.keys() == {"ids", "mask"}


def test_constant_inputs_are_given_once() -> None:
    sound = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    samples = list(open_samples({"input": sound, "state": np.zeros((2, 1, 128)), "sr": 16000}, SPEECH))
    assert len(samples) == 3
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.feed["input"], sound[index : index + 1])
        assert sample.feed["state"].shape == (2, 1, 128)
        assert sample.feed["sr"].shape == ()
        assert sample.feed["sr"] == 16000


def test_constant_without_batch_axis_gets_one() -> None:
    samples = list(open_samples({"ids": np.ones((3, 4), np.int64), "mask": np.ones(4, np.int64)}, TEXT))
    assert [sample.feed["mask"].shape for sample in samples] == [(1, 4)] * 3


def test_scalars_per_sample() -> None:
    arrays = {"input": np.zeros((2, 1, 512)), "state": np.zeros((2, 2, 1, 128)), "sr": np.array([8000, 16000])}
    assert [int(sample.feed["sr"]) for sample in open_samples(arrays, SPEECH)] == [8000, 16000]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 8, 8, 3), r"expected arrays of \? x 3 x 8 x 8 .* got 5 x 8 x 8 x 3. The array looks like NHWC"),
        ((5, 4, 8, 8), r"got 5 x 4 x 8 x 8. The network takes 3 channels, the array has 4"),
        ((5, 3, 8, 9), r"got 5 x 3 x 8 x 9"),
        ((8, 8), r"expected 4 axes \(the first one the batch\) or 5"),
        ((0, 3, 8, 8), "expected at least one sample, got an array of shape 0 x 3 x 8 x 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_both(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    np.save(tmp_path / "given.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=message) as caught:
        open_samples(tmp_path / "given.npy", PICTURE)
    assert "given.npy" in str(caught.value)


def test_nchw_for_an_nhwc_network_is_named() -> None:
    with pytest.raises(DataError, match="looks like NCHW"):
        open_samples(PICTURES, image_input(None, 8, 8, 3))


def test_types_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected int64 for input 'ids'.*got float64"):
        open_samples({"ids": np.zeros((3, 4)), "mask": np.ones((3, 4), np.int64)}, TEXT)
    with pytest.raises(DataError, match="values from 300 to 300, which do not fit"):
        list(open_samples(np.full((1, 3, 8, 8), 300), image_input(None, 3, 8, 8, dtype=np.uint8)))
    with pytest.raises(DataError, match="array of numbers"):
        open_samples(np.array([["word"]]), PICTURE)
    with pytest.raises(DataError, match="complex64"):
        open_samples(np.zeros((1, 3, 8, 8), np.complex64), PICTURE)


def test_raw_pixels_for_a_float_network_are_noted() -> None:
    samples = open_samples(np.zeros((1, 3, 8, 8), np.uint8), PICTURE)
    assert ["uint8" in note for note in samples.notes] == [True]


def test_missing_and_extra_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", np.ones((3, 4), np.int64))
    with pytest.raises(DataError, match="got 'arr_0'; missing 'ids', 'mask'"):
        open_samples(tmp_path / "text.npz", TEXT)
    with pytest.raises(DataError, match="one array without a name"):
        open_samples(PICTURES, TEXT)
    samples = open_samples({"input": PICTURES, "other": np.zeros(2)}, PICTURE)
    assert any("'other'" in note for note in samples.notes)


def test_different_numbers_of_samples_are_refused() -> None:
    with pytest.raises(DataError, match="'ids' holds 3, 'mask' holds 2"):
        open_samples({"ids": np.ones((3, 4), np.int64), "mask": np.ones((2, 4), np.int64)}, TEXT)


@pytest.mark.parametrize("name", ["broken.npy", "broken.npz"])
@pytest.mark.parametrize("kept", [0, 3, 90, 200])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    np.savez(path, input=PICTURES) if name.endswith("z") else np.save(path, PICTURES)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=name):
        open_samples(path, PICTURE)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (touched.touch, ())

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "trap.npz", input=np.array([Trap()], dtype=object))
    for name in ("trap.npy", "trap.npz"):
        with pytest.raises(DataError, match=name):
            open_samples(tmp_path / name, PICTURE)
    assert not touched.exists()


def test_network_of_only_a_scalar() -> None:
    spec = (InputSpec(name="level", shape=(), dtype=np.dtype(np.float32)),)
    assert [float(sample.feed["level"]) for sample in open_samples(np.array([1.0, 2.0]), spec)] == [1.0, 2.0]

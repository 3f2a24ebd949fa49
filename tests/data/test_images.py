import io
import threading
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from narrowgauge.data import Preprocess, open_samples
from narrowgauge.errors import DataError
from tests.data.networks import PICTURE, SPEECH, image_input

RAW = Preprocess(scale=(1.0,))


def image_file(path: Path, level: int = 0, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (level, level, level)).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Ten images whose level is their place by name, written in another order, among files of other kinds."""
    folder = tmp_path / "flat"
    for level in (7, 2, 9, 0, 4, 1, 8, 3, 6, 5):
        image_file(folder / f"{level:02}.png", level)
    (folder / "readme.txt").write_text("not an image", encoding="utf-8")
    (folder / "._00.png").write_bytes(b"left by an operating system")
    return folder


def test_a_flat_folder_is_read_by_name(flat: Path) -> None:
    samples = open_samples(flat, PICTURE, preprocess=RAW)
    assert samples.count == 10
    assert [(sample.name, sample.label) for sample in samples] == [(f"{level:02}.png", None) for level in range(10)]
    assert [int(sample.feed["input"][0, 0, 0, 0]) for sample in samples] == list(range(10))
    assert samples.notes == ()


def test_parts_read_only_what_they_hold(flat: Path) -> None:
    samples = open_samples(flat, PICTURE, preprocess=RAW)
    assert [sample.name for sample in samples.skip(3).take(2)] == ["03.png", "04.png"]
    assert [sample.name for sample in samples[8:20]] == ["08.png", "09.png"]
    assert (samples.take(4).count, samples.skip(4).count, samples.skip(11).count) == (4, 6, 0)
    assert list(samples.skip(11)) == []
    with pytest.raises(DataError, match="slice"):
        samples[::2]


def test_a_folder_per_class_gives_labels(tmp_path: Path) -> None:
    for name in ("zebra/a.jpg", "ant/b.png", "ant/deep/c.png", "bee/d.bmp"):
        image_file(tmp_path / name)
    samples = open_samples(tmp_path, PICTURE, preprocess=Preprocess(label_offset=10))
    assert [(sample.name, sample.label) for sample in samples] == [
        ("ant/b.png", 10),
        ("bee/d.bmp", 11),
        ("zebra/a.jpg", 12),
        ("ant/deep/c.png", 10),
    ]
    assert any("3 folders in sorted order, 'ant' is 0 and 'zebra' is 2" in note for note in samples.notes)


def test_the_first_samples_of_class_folders_are_of_all_classes(tmp_path: Path) -> None:
    counts = {"ant": 3, "bee": 5, "cat": 1}
    for name, count in counts.items():
        for number in range(count):
            image_file(tmp_path / name / f"{number}.png")
    names = [sample.name for sample in open_samples(tmp_path, PICTURE, preprocess=RAW)]
    assert names[:5] == ["ant/0.png", "bee/0.png", "cat/0.png", "ant/1.png", "bee/1.png"]
    assert sorted(names) == sorted(f"{name}/{number}.png" for name in counts for number in range(counts[name]))
    in_order = open_samples(tmp_path, PICTURE, preprocess=RAW, labels=list(range(9)))  # labels by position: by path
    assert [sample.name for sample in in_order] == sorted(names)
    assert [sample.label for sample in in_order] == list(range(9))


def test_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    for name in ("train/a.png", "val/b.png"):
        image_file(tmp_path / name)
    samples = open_samples(tmp_path, PICTURE, preprocess=RAW)
    assert [sample.label for sample in samples] == [None, None]
    assert any("'train' and 'val' are taken for parts of a data set" in note for note in samples.notes)


def test_folders_that_are_no_classes_are_noted(tmp_path: Path) -> None:
    image_file(tmp_path / "images" / "a.png")
    one = open_samples(tmp_path, PICTURE, preprocess=RAW)
    assert [sample.label for sample in one] == [None]
    assert any("one folder 'images'" in note for note in one.notes)
    image_file(tmp_path / "b.png")
    mixed = open_samples(tmp_path, PICTURE, preprocess=RAW)
    assert [sample.label for sample in mixed] == [None, None]
    assert any("beside" in note for note in mixed.notes)


def test_numbered_class_folders_sorted_as_text_are_noted(tmp_path: Path) -> None:
    for name in ("2", "10", "1"):
        image_file(tmp_path / name / "a.png")
    samples = open_samples(tmp_path, PICTURE, preprocess=RAW)
    assert {sample.name: sample.label for sample in samples} == {"1/a.png": 0, "10/a.png": 1, "2/a.png": 2}
    assert any("sorted as text" in note for note in samples.notes)


def test_without_preprocessing_the_size_comes_from_the_network(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png", 255, size=20)
    samples = open_samples(tmp_path, image_input(None, 12, 12, 1))
    (sample,) = samples
    np.testing.assert_array_equal(sample.feed["input"], np.ones((1, 12, 12, 1), np.float32))
    assert any("no preprocessing was given" in note for note in samples.notes)


def test_image_of_the_wrong_size_is_named_with_what_to_set(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png", size=9)
    with pytest.raises(DataError, match=r"a.png: expected an image of 3 x 8 x 8 .* got 3 x 9 x 9 .* set `resize`"):
        list(open_samples(tmp_path, PICTURE, preprocess=RAW))


def test_input_without_batch_axis_gets_whole_images(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png")
    (sample,) = open_samples(tmp_path, image_input(3, 8, 8))
    assert sample.whole
    assert sample.feed["input"].shape == (3, 8, 8)


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_image_is_named_or_skipped(flat: Path, damage: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    contents = {"empty": b"", "text": b"<html>", "half": buffer.getvalue()[: len(buffer.getvalue()) // 2]}
    (flat / "03.png").write_bytes(contents[damage])
    with pytest.raises(DataError, match=r"03.png: expected an image, but it cannot be read"):
        list(open_samples(flat, PICTURE, preprocess=RAW))
    samples = open_samples(flat, PICTURE, preprocess=RAW, labels=list(range(10)), on_error="skip")
    assert [sample.label for sample in samples] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert [sample.label for sample in samples] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert ["03.png" in note for note in samples.notes] == [True]


def test_only_damaged_images_are_an_error_even_when_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a.png"):
        list(open_samples(tmp_path, PICTURE, preprocess=RAW, on_error="skip"))


def test_folders_without_data_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got an empty folder"):
        open_samples(tmp_path, PICTURE)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"got 1 files of types .mp4"):
        open_samples(tmp_path, PICTURE)
    with pytest.raises(DataError, match="nothing is there"):
        open_samples(tmp_path / "gone", PICTURE)
    with pytest.raises(DataError, match=r"known kind, got .*clip.mp4"):
        open_samples(tmp_path / "clip.mp4", PICTURE)


def test_images_for_a_network_of_several_inputs_are_refused(flat: Path) -> None:
    with pytest.raises(DataError, match="'state'"):
        open_samples(flat, SPEECH)


def test_lists_of_paths(flat: Path) -> None:
    path = flat.parent / "list.txt"
    path.write_text("# chosen\nflat/05.png\n\nflat/01.png 7\n", encoding="utf-8")
    samples = open_samples(path, PICTURE, preprocess=RAW)
    assert [(sample.name, sample.label) for sample in samples] == [("flat/05.png", None), ("flat/01.png", 7)]
    paths = [flat / "02.png", flat / "01.png"]
    assert [int(sample.feed["input"].flat[0]) for sample in open_samples(paths, PICTURE, preprocess=RAW)] == [2, 1]
    path.write_text("flat/none.png\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none.png, but none is there"):
        open_samples(path, PICTURE)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected paths"):
        open_samples(path, PICTURE)
    path.write_text("flat/01.png\nlist.txt\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"got types .png, .txt"):
        open_samples(path, PICTURE)


def test_folders_and_lists_of_arrays_take_the_names_of_their_files(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((1, 3, 8, 8), number))
    found = [(sample.name, int(sample.feed["input"].flat[0])) for sample in open_samples(tmp_path, PICTURE)]
    assert found == [("0.npy", 0), ("1.npy", 1), ("2.npy", 2)]
    (tmp_path / "list.txt").write_text("2.npy 5\n0.npy\n", encoding="utf-8")
    samples = open_samples(tmp_path / "list.txt", PICTURE)
    assert [sample.name for sample in samples] == ["2.npy", "0.npy"]


def test_zip_archives_of_class_folders(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 50).save(buffer, "PNG")
    with ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("test/dog/1.png", "test/cat/2.png", "__MACOSX/test/cat/2.png"):
            archive.writestr(name, buffer.getvalue())
    samples = open_samples(tmp_path / "set.zip", PICTURE, preprocess=RAW)
    assert [(sample.name, sample.label) for sample in samples] == [("cat/2.png", 0), ("dog/1.png", 1)]
    assert {float(sample.feed["input"].max()) for sample in samples} == {50.0}
    (tmp_path / "set.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"set.zip: expected a zip archive"):
        open_samples(tmp_path / "set.zip", PICTURE)


def test_leaving_early_ends_the_threads(flat: Path) -> None:
    reader = iter(open_samples(flat, PICTURE, preprocess=RAW))
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]

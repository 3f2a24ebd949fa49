from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from narrowgauge.data import Preprocess, open_samples
from narrowgauge.data.samples import Sample
from narrowgauge.errors import DataError
from tests.data.networks import PICTURE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b c.png", "d.png"):
        Image.new("RGB", (8, 8)).save(images / name)
    return images


def labelled(folder: Path, text: str) -> tuple[list[int | None], tuple[str, ...]]:
    path = folder.parent / "labels.txt"
    path.write_text(text, encoding="utf-8")
    samples = open_samples(folder, PICTURE, preprocess=Preprocess(), labels=path)
    found: list[Sample] = list(samples)
    return [sample.label for sample in found], samples.notes


def test_lines_of_path_and_index(folder: Path) -> None:
    labels, notes = labelled(folder, "# classes\n\nd.png 3\n./a.png\t1\nb c.png 2\n")
    assert labels == [1, 2, 3]
    assert notes == ()


def test_unknown_names_and_images_without_label_are_noted(folder: Path) -> None:
    labels, notes = labelled(folder, "a.png 1\ngone.png 2\n")
    assert labels == [1, None, None]
    assert any("1 labels are of no sample: gone.png" in note for note in notes)
    assert any("2 of 3 samples have no label: b c.png, d.png" in note for note in notes)


def test_paths_of_another_folder_are_matched_by_file_name(folder: Path) -> None:
    labels, notes = labelled(folder, "images/a.png 1\nb c.png 2\n/data/old/d.png 3\n")
    assert labels == [1, 2, 3]
    assert any("2 labels were given by file name: 'images/a.png' is 'a.png'" in note for note in notes)


def test_a_file_name_of_two_samples_labels_neither(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "e.png")
    labels, notes = labelled(folder, "a.png 1\ne.png 2\n")
    assert labels == [1, None, None, None, None]
    assert any("1 labels are of no sample: e.png" in note for note in notes)


def test_one_index_per_line_goes_by_order(folder: Path) -> None:
    assert labelled(folder, "5\n6\n7\n")[0] == [5, 6, 7]
    with pytest.raises(DataError, match="expected 3 labels, one per sample, got 2"):
        labelled(folder, "5\n6\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\n", r"labels.txt, line 1: expected `relative-path label-index`, got 'a.png'"),
        ("a.png 1\na.png 2\n", r"line 2: 'a.png' has label 2 here and 1 above"),
        ("x/e.png 1\n", r"such as 'a.png', but none of the 1 paths, such as 'x/e.png', is one"),
        ("x/a.png 1\ny/a.png 1\n", r"nor has a file name that belongs to one sample alone"),
        ("\n", "expected lines"),
    ],
)
def test_what_is_wrong_with_a_file_of_labels_is_said(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled(folder, text)


def test_missing_file_of_labels(folder: Path) -> None:
    with pytest.raises(DataError, match=r"file of labels at .*gone.txt"):
        open_samples(folder, PICTURE, labels=folder / "gone.txt")


def test_labels_for_arrays_and_iterables(tmp_path: Path) -> None:
    pictures = np.zeros((4, 3, 8, 8), np.float32)
    np.save(tmp_path / "labels.npy", np.arange(4))
    for data in (pictures, list(pictures), iter(pictures)):
        samples = open_samples(data, PICTURE, labels=tmp_path / "labels.npy")
        first, rest = list(samples.take(1)), list(samples.skip(1))
        assert [sample.label for sample in (*first, *rest)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="2 labels and more samples"):
        list(open_samples(list(pictures), PICTURE, labels=[1, 2]))
    with pytest.raises(DataError, match="integer label"):
        open_samples(pictures, PICTURE, labels=np.zeros(4))
